"""The events of a delivery, as values: all that log, demo and metrics are made of.

A request brings ``observe: Callable[[Event], None]``, which is called for each event.
Nothing else logs or counts a delivery. An observer must not block, and what it raises is
lost. Every event carries:

at
    Seconds since the delivery began, monotonic.
queue_id
    The mail server's name for the message; empty for what concerns no message, or one
    without a name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mxpolicy.outcome import Outcome
from mxpolicy.routing.candidate import Candidate, Finding, Phase

__all__ = [
    "DUNNO",
    "PROGRESS_TOLD",
    "AccessJudged",
    "CandidateDoubted",
    "CandidateDropped",
    "CandidateFailed",
    "CandidateLeft",
    "CandidateStarted",
    "CandidateTaken",
    "Delays",
    "Event",
    "HostRecovered",
    "LateReplyEnded",
    "Notice",
    "Observe",
    "PhaseReached",
    "Planned",
    "Progressed",
    "RecipientSettled",
    "Secured",
    "SessionReplaced",
    "SessionReused",
    "StrayReply",
    "TlsWanted",
    "Trouble",
    "WorkedAround",
]


class _Candidate(NamedTuple):
    at: float
    candidate: Candidate
    queue_id: str = ""


class _CandidatePhase(NamedTuple):
    at: float
    candidate: Candidate
    phase: Phase
    queue_id: str = ""


class _CandidateFinding(NamedTuple):
    at: float
    candidate: Candidate
    finding: Finding
    queue_id: str = ""


class _CandidateText(NamedTuple):
    at: float
    candidate: Candidate
    text: str
    queue_id: str = ""


class Planned(NamedTuple):
    """The plan is made: the candidates, in the order in which they would be asked.

    Attributes:
        remarks: What was left out or repaired, one printable line each.
    """

    at: float
    nexthop: str
    candidates: tuple[Candidate, ...]
    remarks: tuple[str, ...]
    queue_id: str = ""


class CandidateStarted(_Candidate):
    """A connection attempt began."""


class PhaseReached(_CandidatePhase):
    """A candidate entered a phase."""


class Progressed(_Candidate):
    """A host has answered a command of the transaction, or taken more mail data.

    Of one that goes on quickly it is told once in `PROGRESS_TOLD`.
    """


class CandidateFailed(_CandidateFinding):
    """A candidate is given up for this attempt, or for some of its recipients."""


class CandidateDoubted(_CandidateFinding):
    """A candidate is slow: the next one may start beside it."""


class WorkedAround(NamedTuple):
    """A candidate was reached in a second way, after the first one had failed.

    Attributes:
        small_segments: By small TCP segments.
        in_clear: Without STARTTLS, though it was offered.
    """

    at: float
    candidate: Candidate
    small_segments: bool
    in_clear: bool
    queue_id: str = ""


class Secured(_Candidate):
    """The session with a candidate is under TLS."""


class SessionReused(_Candidate):
    """A candidate is ready at once, by the session of an earlier message."""


class SessionReplaced(_CandidateText):
    """The session of an earlier message was over: the candidate is dialled anew.

    Attributes:
        text: How it ended, or what the host said; one printable line.
    """


class TlsWanted(_CandidateText):
    """A host did not take the message in clear: it is offered again under TLS.

    Attributes:
        text: What it said.
    """


class StrayReply(_CandidateText):
    """A host sent a reply that answers no command: it is ignored.

    Attributes:
        text: What it said, one printable line.
    """


class CandidateDropped(_CandidatePhase):
    """A candidate was let go, because another one won or needed its place."""


class CandidateTaken(_Candidate):
    """A candidate has won the race: its transaction begins."""


class CandidateLeft(_Candidate):
    """The transaction with a candidate is over; the session with it ends, or is kept."""


class Delays(NamedTuple):
    """Where the time went, in seconds: ``dns``, ``reach``, ``tls``, ``transfer``."""

    dns: float = 0.0
    reach: float = 0.0
    tls: float = 0.0
    transfer: float = 0.0


class RecipientSettled(NamedTuple):
    """A recipient has its outcome: exactly one for each, whatever happens.

    Attributes:
        tried: One printable text for each candidate that failed, or was passed over for
            another one (`mxpolicy.delivery.passed_over`).
        tls: Protocol and cipher with the relay, ``TLSv1.3/TLS_AES_256_GCM_SHA384``; empty
            in clear.
    """

    at: float
    recipient: str
    outcome: Outcome
    delays: Delays
    tried: tuple[str, ...]
    queue_id: str = ""
    tls: str = ""


class LateReplyEnded(NamedTuple):
    """A final dot was not answered in time: the reply has come since, or none will.

    The recipient was deferred then. This is what the mail server's next attempt goes by.

    Attributes:
        is_taken: The host has the message: the next attempt ends as delivered. Otherwise
            it asks again.
        text: What the host said, or why there is no reply.
    """

    at: float
    candidate: Candidate
    recipient: str
    is_taken: bool
    text: str
    queue_id: str = ""


PROGRESS_TOLD = 1.0
"""Seconds between two of `Progressed`, and before the first one."""

DUNNO = "DUNNO"
"""The answer that decides nothing, to the mail server's question (access(5))."""


class AccessJudged(NamedTuple):
    """The mail server asked about a sender and a recipient, and has its answer.

    Attributes:
        at: Seconds from the question to the answer.
        protocol_state: Where the SMTP session is, Postfix's name; of any characters.
        client: The SMTP client's address; empty when there is none.
        sender, recipient: As asked, and as is ``queue_id``: of any characters, of the
            length of a request at most. Empty when not known.
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


class HostRecovered(NamedTuple):
    """A host is ready again, and the mail server is told of the mail deferred for it.

    Attributes:
        messages: How many messages that is.
    """

    at: float
    candidate: Candidate
    messages: int
    queue_id: str = ""


class Trouble(NamedTuple):
    """Trouble of our own, for the log; it blames no host."""

    at: float
    text: str
    queue_id: str = ""


class Notice(NamedTuple):
    """The daemon began, has read its configuration again, or ends."""

    at: float
    text: str
    queue_id: str = ""


Event = (
    Planned
    | CandidateStarted
    | PhaseReached
    | Progressed
    | CandidateFailed
    | CandidateDoubted
    | WorkedAround
    | Secured
    | SessionReused
    | SessionReplaced
    | TlsWanted
    | StrayReply
    | CandidateDropped
    | CandidateTaken
    | CandidateLeft
    | RecipientSettled
    | LateReplyEnded
    | AccessJudged
    | HostRecovered
    | Trouble
    | Notice
)

Observe = Callable[[Event], None]
