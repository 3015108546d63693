"""What became of each recipient: `Delivered`, `Deferred` or `Bounced`; nothing else.

A closed union, consumed with ``match`` and ``assert_never``. When in doubt an
outcome is `Deferred`: the mail server keeps the message and asks again.
"""

from __future__ import annotations

from typing import NamedTuple

from mxpolicy.reply import EnhancedStatus, Reply

__all__ = [
    "EXIT_BOUNCE",
    "EXIT_DEFER",
    "EXIT_DELIVERED",
    "Bounced",
    "Deferred",
    "Delivered",
    "Outcome",
    "Tried",
]

# sysexits(3): the only statuses with the same meaning for Postfix's pipe(8) and Exim's
# pipe transport with its default temp_errors.
EXIT_DELIVERED = 0
EXIT_BOUNCE = 69
EXIT_DEFER = 75


class Tried(NamedTuple):
    """One candidate that was tried, for the text that says why.

    Attributes:
        candidate: As shown, or its key as text.
        verdict: The verdict's word.
        waited: Seconds.
        text: What the host or the system said, printable; may be empty.
    """

    candidate: str
    verdict: str
    waited: float
    text: str = ""

    def __str__(self) -> str:
        said = f" ({self.text})" if self.text else ""
        return f"{self.candidate} {self.verdict} {self.waited:.1f}s{said}"


class Delivered(NamedTuple):
    """The host took responsibility: its 2yz after the final dot (RFC 5321 §6.1)."""

    status: EnhancedStatus
    text: str
    reply: Reply
    relay: str


class Deferred(NamedTuple):
    """Not now: the mail server tries again later.

    Attributes:
        status: Class 4.
        text: One line, the important part first.
        reply: The reply that decided, None when none did.
        relay: The candidate that decided, its key as text
            (`mxpolicy.routing.candidate.Key`), or ``none``.
        may_have_arrived: The relay may have seen the final dot, and did not answer it.
    """

    status: EnhancedStatus
    text: str
    reply: Reply | None = None
    relay: str = "none"
    may_have_arrived: bool = False


class Bounced(NamedTuple):
    """Never: the mail server tells the sender. Fields as in `Deferred`, class 5."""

    status: EnhancedStatus
    text: str
    reply: Reply | None = None
    relay: str = "none"


Outcome = Delivered | Deferred | Bounced
