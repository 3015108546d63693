"""What happened, as values: the one stream on which log, demo and metrics live.

The engine is given ``observe: Callable[[Event], None]`` and calls it as things
happen; nothing else logs or counts a delivery. Every event carries ``at``,
seconds on the engine's monotonic clock since the message was taken in hand.
An observer must not raise and must not block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mxpolicy.outcome import Outcome
from mxpolicy.routing.candidate import Candidate, Finding, Phase

__all__ = [
    "DUNNO",
    "AccessJudged",
    "CandidateDoubted",
    "CandidateDropped",
    "CandidateFailed",
    "CandidateStarted",
    "CandidateTaken",
    "Delays",
    "Event",
    "Observe",
    "PhaseReached",
    "Planned",
    "Progressed",
    "RecipientSettled",
    "Secured",
    "StrayReply",
    "TlsWanted",
    "Trouble",
    "WorkedAround",
    "nobody",
]


class Planned(NamedTuple):
    """The plan stands: candidates in the order in which they would be asked.

    Attributes:
        remarks: What was left out or repaired, one printable line each.
    """

    at: float
    nexthop: str
    candidates: tuple[Candidate, ...]
    remarks: tuple[str, ...]


class CandidateStarted(NamedTuple):
    """A connection attempt began."""

    at: float
    candidate: Candidate


class PhaseReached(NamedTuple):
    """A candidate entered a phase."""

    at: float
    candidate: Candidate
    phase: Phase


class Progressed(NamedTuple):
    """A host has answered a command of the transaction, or taken more mail data."""

    at: float
    candidate: Candidate


class CandidateFailed(NamedTuple):
    """A candidate will not be used any more in this attempt, or not for these recipients."""

    at: float
    candidate: Candidate
    finding: Finding


class CandidateDoubted(NamedTuple):
    """Our patience with a candidate has ended: the next one may start beside it."""

    at: float
    candidate: Candidate
    finding: Finding


class WorkedAround(NamedTuple):
    """A candidate was reached in a second way, after the ordinary one had failed.

    Attributes:
        small_segments: By small TCP segments.
        in_clear: Without STARTTLS, though it was offered.
    """

    at: float
    candidate: Candidate
    small_segments: bool
    in_clear: bool


class Secured(NamedTuple):
    """A candidate is spoken to under TLS."""

    at: float
    candidate: Candidate


class TlsWanted(NamedTuple):
    """A candidate would not have the message in clear: it is offered again under TLS.

    Attributes:
        text: What it said.
    """

    at: float
    candidate: Candidate
    text: str


class StrayReply(NamedTuple):
    """A host said what answers nothing: it was ignored, and the next reply counts.

    Attributes:
        text: What it said, one printable line.
    """

    at: float
    candidate: Candidate
    text: str


class CandidateDropped(NamedTuple):
    """A candidate was let go because another one won or needed its place."""

    at: float
    candidate: Candidate
    phase: Phase


class CandidateTaken(NamedTuple):
    """The race was won: the transaction begins with this candidate."""

    at: float
    candidate: Candidate


class Delays(NamedTuple):
    """Where the time went, in seconds: ``dns``, ``reach``, ``tls``, ``transfer``."""

    dns: float = 0.0
    reach: float = 0.0
    tls: float = 0.0
    transfer: float = 0.0


class RecipientSettled(NamedTuple):
    """The outcome of one recipient; exactly one for each, whatever happens.

    Attributes:
        tried: One printable text for each candidate that failed, in order.
    """

    at: float
    recipient: str
    outcome: Outcome
    delays: Delays
    egress: str
    tried: tuple[str, ...]


DUNNO = "DUNNO"
"""The answer that decides nothing, to the mail server's question (access(5))."""


class AccessJudged(NamedTuple):
    """A mail server asked about a sender and a recipient, and was answered.

    Attributes:
        at: Seconds from the question to the answer.
        protocol_state: Where the SMTP session is, Postfix's name.
        client: The SMTP client's address; empty when there is none.
        sender, recipient: As asked, printable; empty when not known.
        found: ``finding domain`` for each thing that was found, printable.
        action: The answer.
    """

    at: float
    queue_id: str
    protocol_state: str
    client: str
    sender: str
    recipient: str
    found: tuple[str, ...]
    action: str


class Trouble(NamedTuple):
    """Our own trouble, for the log: never a fact about a host."""

    at: float
    text: str


Event = (
    Planned
    | CandidateStarted
    | PhaseReached
    | Progressed
    | CandidateFailed
    | CandidateDoubted
    | WorkedAround
    | Secured
    | TlsWanted
    | StrayReply
    | CandidateDropped
    | CandidateTaken
    | RecipientSettled
    | AccessJudged
    | Trouble
)

Observe = Callable[[Event], None]


def nobody(event: Event) -> None:
    """Observe nothing."""
