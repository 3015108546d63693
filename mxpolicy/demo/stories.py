"""The stories of the demo: what stands in the way of two messages, and how each must end.

Every story has a domain of its own below ``.example`` (RFC 2606 §3), with one
host for each behaviour, in order of preference: ``mx1``, ``mx2``, …

For comparison, each has the time that the first message takes by the defaults of Postfix
3.7's smtp(8) and of Exim 4.96's smtp transport. A tilde marks a sum of measurements, for
several faults in a row.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mxpolicy.outcome import EXIT_BOUNCE, EXIT_DEFER, EXIT_DELIVERED

__all__ = ["STORIES", "Behaviour", "Ending", "Story"]


class Behaviour(Enum):
    """What a host does. The value says it in words."""

    GOOD = "takes mail"
    DROPPED = "its SYNs are dropped"
    REFUSES = "refuses the connection"
    SILENT = "accepts the connection and says nothing"
    CLOSES = "accepts the connection and closes it"
    REJECTS = "greets with 554"
    BREAKS = "closes the connection at DATA"
    GREYLISTS = "answers the first RCPT with 450"
    EMPTY = "knows no recipient"


class Ending(NamedTuple):
    """How one message must end.

    Attributes:
        exit_status: What ``mxpolicy pipe`` must answer.
        taken_by: The one host that must have the message, its place in the story
            counted from 0; None when no host may have it.
    """

    exit_status: int
    taken_by: int | None = None


class Story(NamedTuple):
    """What stands in the way of two messages, sent one after the other.

    Attributes:
        hosts: In order of preference; empty for a null MX (RFC 7505).
        ends: How the first and the second message must end.
        wait: Seconds for which the first message must wait for hosts that do not
            answer. The second one must not.
        postfix: What Postfix's defaults take for the first message.
        exim: The same of Exim's.
    """

    name: str
    title: str
    hosts: tuple[Behaviour, ...]
    ends: tuple[Ending, Ending]
    postfix: str
    exim: str
    wait: float = 0.0

    @property
    def domain(self) -> str:
        """The recipient's domain, and the nexthop."""
        return f"{self.name}.example"

    @property
    def recipient(self) -> str:
        """The forward-path."""
        return f"you@{self.domain}"

    def host_name(self, place: int) -> str:
        """Return the name of the host at *place*, counted from 0."""
        return f"mx{place + 1}.{self.domain}"


def _past(
    name: str,
    title: str,
    *faults: Behaviour,
    postfix: str,
    exim: str,
    wait: float = 0.0,
) -> Story:
    """Return a story with a good host behind *faults*, which gets both messages."""
    ends = (Ending(EXIT_DELIVERED, len(faults)),) * 2
    return Story(name, title, (*faults, Behaviour.GOOD), ends, postfix, exim, wait)


STORIES = (
    Story(
        "healthy",
        "Two good hosts: the first one gets the mail.",
        (Behaviour.GOOD, Behaviour.GOOD),
        (Ending(EXIT_DELIVERED, 0),) * 2,
        postfix="at once",
        exim="at once",
    ),
    _past(
        "dropped",
        "A firewall drops every SYN to the first MX.",
        Behaviour.DROPPED,
        postfix="30 s",
        exim="133 s",
        wait=1.5,
    ),
    _past(
        "silent",
        "A firewall answers the SYN for a first MX that is not there.",
        Behaviour.SILENT,
        postfix="300 s",
        exim="300 s",
        wait=8.0,
    ),
    _past(
        "closed",
        "The first MX hangs up at once, the second at DATA; the third greets with 554.",
        Behaviour.CLOSES,
        Behaviour.BREAKS,
        Behaviour.REJECTS,
        postfix="at once",
        exim="at once",
    ),
    _past(
        "mixed",
        "Two MX dropped, one silent, then a good one.",
        Behaviour.DROPPED,
        Behaviour.DROPPED,
        Behaviour.SILENT,
        postfix="~360 s",
        exim="~566 s",
        wait=11.0,
    ),
    Story(
        "greylist",
        "Both MX answer the first RCPT with 450, as greylisting does.",
        (Behaviour.GREYLISTS, Behaviour.GREYLISTS),
        (Ending(EXIT_DEFER), Ending(EXIT_DELIVERED, 0)),
        postfix="deferred",
        exim="deferred",
    ),
    Story(
        "nullmx",
        "The domain says by a null MX that it takes no mail.",
        (),
        (Ending(EXIT_BOUNCE),) * 2,
        postfix="bounced",
        exim="bounced",
    ),
    Story(
        "unknown",
        "The first MX does not know the recipient.",
        (Behaviour.EMPTY, Behaviour.GOOD),
        (Ending(EXIT_BOUNCE),) * 2,
        postfix="bounced",
        exim="bounced",
    ),
    Story(
        "refused",
        "Every MX refuses the connection.",
        (Behaviour.REFUSES, Behaviour.REFUSES),
        (Ending(EXIT_DEFER),) * 2,
        postfix="deferred",
        exim="deferred",
    ),
    _past(
        "twelve",
        "Twelve MX dropped, the thirteenth good.",
        *(Behaviour.DROPPED,) * 12,
        postfix="deferred",
        exim="deferred",
        wait=18.0,
    ),
)
