"""The stories of the demo: which faults stand in a message's way, and how it must end.

Every story has a domain of its own below ``.example`` (RFC 2606 §3), with one
host for each behaviour, in order of preference: ``mx1``, ``mx2``, …

What a mail server would have taken is told for the defaults of Postfix 3.7's
smtp(8) and of Exim 4.96's smtp transport, measured with one message. Sums of
such measurements, for faults in a row, are marked with a tilde.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mxpolicy.outcome import EXIT_BOUNCE, EXIT_DEFER, EXIT_DELIVERED

__all__ = ["STORIES", "Behaviour", "Story"]


class Behaviour(Enum):
    """How a host of the demo treats whoever knocks. The value says it in words."""

    GOOD = "takes mail for everybody but nobody@"
    DROPPED = "its SYNs are dropped"
    SILENT = "accepts the connection and says nothing"
    CLOSES = "accepts the connection and closes it"
    REJECTS = "greets with 554"
    REFUSES = "refuses the connection"


class Story(NamedTuple):
    """One message, what stands in its way, and how it must end.

    Attributes:
        title: One line for the screen.
        hosts: Behaviours in order of preference; empty for a null MX (RFC 7505).
        exit_status: What ``mxpolicy pipe`` must answer.
        delivered_to: Place in *hosts* of the one that must have the message
            afterwards, exactly once; None when nobody may have it.
        expected: Seconds until the answer by the rules of the race; the screen
            takes its scale from it.
        within: Seconds after which the story did not come out as it should,
            however it ended; generous, for a slow machine.
        postfix: What Postfix's defaults take.
        exim: What Exim's defaults take.
        local_part: Of the recipient.
    """

    name: str
    title: str
    hosts: tuple[Behaviour, ...]
    exit_status: int
    delivered_to: int | None
    expected: float
    within: float
    postfix: str
    exim: str
    local_part: str = "you"

    @property
    def domain(self) -> str:
        """The recipient's domain, and the nexthop."""
        return f"{self.name}.example"

    @property
    def recipient(self) -> str:
        """The forward-path."""
        return f"{self.local_part}@{self.domain}"

    def host_name(self, place: int) -> str:
        """Return the name of the host at *place*, counted from 0."""
        return f"mx{place + 1}.{self.domain}"


def _past(
    name: str, title: str, *faults: Behaviour, expected: float, postfix: str, exim: str
) -> Story:
    """Tell of *faults* in order of preference, and a good host behind them."""
    return Story(
        name,
        title,
        hosts=(*faults, Behaviour.GOOD),
        exit_status=EXIT_DELIVERED,
        delivered_to=len(faults),
        expected=expected,
        within=2 * expected + 5,
        postfix=postfix,
        exim=exim,
    )


def _kept_back(
    name: str,
    title: str,
    *hosts: Behaviour,
    exit_status: int,
    says: str,
    local_part: str = "you",
) -> Story:
    """Tell of a message that nobody gets; both mail servers say the same at once."""
    return Story(
        name,
        title,
        hosts=hosts,
        exit_status=exit_status,
        delivered_to=None,
        expected=0.5,
        within=6.0,
        postfix=says,
        exim=says,
        local_part=local_part,
    )


_TWO = (Behaviour.GOOD, Behaviour.GOOD)

STORIES: tuple[Story, ...] = (
    Story(
        "healthy",
        "Two good hosts: the first one gets it.",
        hosts=_TWO,
        exit_status=EXIT_DELIVERED,
        delivered_to=0,
        expected=0.5,
        within=6.0,
        postfix="at once",
        exim="at once",
    ),
    _past(
        "dropped",
        "A firewall drops every SYN to the first MX.",
        Behaviour.DROPPED,
        expected=1.8,
        postfix="30 s",
        exim="133 s",
    ),
    _past(
        "silent",
        "A firewall answers the SYN for a first MX that is not there.",
        Behaviour.SILENT,
        expected=8.3,
        postfix="300 s",
        exim="300 s",
    ),
    _past(
        "closed",
        "The first MX closes at once, the second greets with 554.",
        Behaviour.CLOSES,
        Behaviour.REJECTS,
        expected=0.5,
        postfix="at once",
        exim="at once",
    ),
    _past(
        "mixed",
        "Two MX dropped, one silent, then a good one.",
        Behaviour.DROPPED,
        Behaviour.DROPPED,
        Behaviour.SILENT,
        expected=11.3,
        postfix="~360 s",
        exim="~566 s",
    ),
    _kept_back(
        "nullmx",
        "The domain says by a null MX that it takes no mail.",
        exit_status=EXIT_BOUNCE,
        says="bounced",
    ),
    _kept_back(
        "unknown",
        "The first MX does not know the recipient.",
        *_TWO,
        exit_status=EXIT_BOUNCE,
        says="bounced",
        local_part="nobody",
    ),
    _kept_back(
        "refused",
        "Every MX refuses the connection.",
        Behaviour.REFUSES,
        Behaviour.REFUSES,
        exit_status=EXIT_DEFER,
        says="deferred",
    ),
    _past(
        "twelve",
        "Twelve MX dropped, the thirteenth good.",
        *(Behaviour.DROPPED,) * 12,
        expected=18.3,
        postfix="deferred, 5 tried",
        exim="deferred, 5 tried",
    ),
)
