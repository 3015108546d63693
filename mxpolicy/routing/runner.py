"""One candidate in the race: how far it is, and what is known of its waits.

`mxpolicy.routing.race` decides, and has the theory. Times are the race's.
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.routing.candidate import Finding, Phase, Wait
from mxpolicy.routing.race_timing import (
    FULL_PHASE,
    awaited_in,
    full_time,
    is_patient,
    patient_time,
    phase_of,
    slow_verdict,
)

if TYPE_CHECKING:
    from mxpolicy.routing.candidate import Awaited, Candidate, Rank
    from mxpolicy.routing.race_timing import Entrant

__all__ = ["DOUBTS_ENOUGH", "Runner", "Standing", "doubts"]

# Final dots without an answer, at one host, for one recipient.
DOUBTS_ENOUGH = 2


def doubts(entrant: Entrant) -> tuple[int, int]:
    """Return how likely a copy is there: at its host, then at its address."""
    return entrant.doubts, entrant.doubts_here


class Standing(Enum):
    """Where it stands."""

    WAITING = auto()  # not asked, or dropped before it could answer
    OPEN = auto()
    TURNED_AWAY = auto()  # by our patience, not by its failure; see `Runner.is_heard`
    TAKEN = auto()
    FAILED = auto()  # it answered, failed, or had a patient sender's time
    LOCAL_FAILURE = auto()  # our own trouble: not heard, and not asked again


class Runner:
    """One candidate's way through the race."""

    __slots__ = (
        "awaited",
        "doubted",
        "ended_in_4yz",
        "entrant",
        "has_stalled",
        "index",
        "is_late",
        "is_second_run",
        "phase",
        "place",
        "since",
        "standing",
        "waits",
        "was_kept_waiting",
    )

    def __init__(self, entrant: Entrant, index: int, place: int) -> None:
        self.entrant = entrant
        self.index = index  # in the order of trying
        self.place = place  # in that order, if none were in doubt
        self.standing = Standing.WAITING
        self.phase = Phase.CONNECT
        self.since = 0.0  # when the phase was entered
        self.is_second_run = False
        self.is_late = False  # a patient sender would have left it
        self.waits: dict[Awaited, float] = {}  # without answer, in this attempt
        self.awaited: Awaited | None = None  # when it was turned away
        self.has_stalled = False
        self.doubted: set[Phase] = set()
        self.was_kept_waiting = False  # ready long before it was taken
        self.ended_in_4yz = False  # its session: one of TRANSIENT_VISITS

    @property
    def candidate(self) -> Candidate:
        return self.entrant.candidate

    @property
    def rank(self) -> Rank:
        return self.entrant.candidate.rank

    @property
    def doubts(self) -> tuple[int, int]:
        """How likely a copy is there: at its host, then at its address."""
        return doubts(self.entrant)

    @property
    def turn(self) -> tuple[tuple[int, int], Rank]:
        """When it is asked; smaller is sooner. What it says counts by its rank."""
        return self.doubts, self.rank

    def comes_after(self, other: Runner) -> bool:
        """Whether a patient sender, which minds no doubts, asks it after *other*."""
        if self.rank != other.rank:
            return self.rank > other.rank
        return self.place > other.place and self.doubts < other.doubts

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.READY

    @property
    def is_heard(self) -> bool:
        """Whether a refusal by a worse one may be final without this one."""
        if self.standing is Standing.WAITING:
            return self.has_had_its_chances
        if self.standing is Standing.TURNED_AWAY:
            return self.awaited is not None and self.was_patient(self.awaited)
        return self.standing is Standing.FAILED

    @property
    def has_had_its_chances(self) -> bool:
        """Whether it was in doubt so often that a worse one's refusal counts without it.

        It is still asked after all others, as it may take the message one day. But each
        try may make a copy. After the first one a patient sender went on to the worse
        one, and accepted its refusal.
        """
        return self.entrant.silences_of_all >= DOUBTS_ENOUGH

    @property
    def may_be_asked_again(self) -> bool:
        """Whether it may be, once turned away; when our patience ended, once only."""
        return not self.is_heard and not (self.is_second_run and self.awaited)

    def was_patient(self, awaited: Awaited) -> bool:
        """Whether we waited for *awaited* as long as a patient sender would."""
        before = self.entrant.waits.get(awaited, 0.0)
        seconds = before + self.waits.get(awaited, 0.0)
        return is_patient(awaited, seconds) or self.is_remembered(awaited)

    def is_remembered(self, awaited: Awaited) -> bool:
        """Whether one remembered verdict had a patient sender's time for *awaited*."""
        wait = self.entrant.remembered
        return wait is not None and wait.awaited is awaited and is_patient(*wait)

    def fails_at(self, *, is_hurried: bool) -> float:
        """Return when an open one has failed.

        Args:
            is_hurried: A worse one has refused, and only better ones are awaited.
        """
        if self.is_ready:
            return inf
        if is_hurried and self.is_remembered(awaited_in(self.phase)):
            return self.since + full_time(self.phase)
        return self.since + patient_time(self.phase)

    def turn_away(self, wait: Wait | None) -> None:
        """It goes because of us: our patience, with its *wait*, ended, or its own did."""
        self.standing = Standing.TURNED_AWAY
        self.awaited = wait.awaited if wait else None
        if wait is not None:
            self.note(wait)

    def fail(self) -> None:
        """It answered or failed by itself; earlier waits for it do not matter then."""
        self.standing = Standing.FAILED
        self.waits.clear()

    def was_further_than(self, phase: Phase) -> bool:
        """Whether it is asked again, and was turned away in a later phase than *phase*."""
        if not self.is_second_run or self.awaited is None:
            return False
        return phase < phase_of(self.awaited)

    def note(self, wait: Wait) -> None:
        """Add a wait that ended without answer."""
        self.waits[wait.awaited] = self.waits.get(wait.awaited, 0.0) + wait.seconds

    def wait(self, now: float) -> Wait:
        """Return the wait so far for an open one that is not ready."""
        return Wait(awaited_in(self.phase), now - self.since)

    def start(self, now: float) -> None:
        self.is_second_run = self.standing is Standing.TURNED_AWAY
        self.standing = Standing.OPEN
        self.is_late = False
        self.phase = Phase.CONNECT
        self.since = now

    def finding(self, now: float) -> Finding:
        """Return what can be said of an open one that is not ready."""
        return Finding(
            slow_verdict(self.phase),
            self.phase,
            now - self.since,
            full=self.since + full_time(self.phase) <= now,
        )

    def yields_at(self, following: Runner) -> float:
        """Return when this one makes room for *following*.

        One that made room before does not do so again. One that is asked the second time
        gets room later than others: it has had its own full time.
        """
        if self.is_second_run:
            return inf
        hurries = following.standing is Standing.WAITING
        return self.since + (full_time(self.phase) if hurries else FULL_PHASE)
