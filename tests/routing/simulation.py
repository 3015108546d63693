"""A world of hosts and a clock that is moved, to run a race in.

A `Host` is a script: what a candidate does after it is dialled, and what it
answers when it is taken. `Simulation` plays the part of the attempt's shell and
is its referee: it asserts after every call what must hold at every moment.
"""

from __future__ import annotations

import heapq
from math import inf
from typing import NamedTuple

from mxpolicy.options import RaceOptions
from mxpolicy.routing.candidate import (
    Awaited,
    Candidate,
    Finding,
    Phase,
    Verdict,
    Wait,
)
from mxpolicy.routing.race import (
    MAX_DIALLED,
    TIRING,
    Action,
    Doubt,
    Drop,
    GiveUp,
    GiveUpReason,
    Race,
    Start,
    Take,
    Wake,
)
from mxpolicy.routing.race_timing import Entrant, awaited_in, is_patient

DEFAULTS = RaceOptions()

Step = tuple[float, "Phase | Verdict | None"]

# Seconds for the reply to RCPT: a patient sender's, and ours while others wait.
RCPT_TIME = 300.0
SILENCE = 60.0


class Answer(NamedTuple):
    """What a host says when it is taken.

    Attributes:
        verdict: None when it takes the message; else how the session ends.
        after: Seconds until then, which may be too many for whoever waits.
        settles: It answers RCPT well before that.
    """

    verdict: Verdict | None = None
    after: float = 0.1
    settles: bool = False


class Host(NamedTuple):
    """What a host does: steps of (seconds since the one before, what).

    A step is a phase reached, a verdict it fails with, or None: our own trouble
    in dialling it. After the last one nothing happens any more. A session that
    was ready for longer than *idle_time* is found closed when it is taken.
    """

    steps: tuple[Step, ...]
    answer: Answer = Answer()
    idle_time: float = inf


ACCEPTS = Answer()


def greeting_after(seconds: float, answer: Answer = ACCEPTS) -> Host:
    """Return a host that is good, with a 220 that comes late."""
    steps = (
        (0.02, Phase.GREETING),
        (seconds, Phase.EHLO),
        (0.05, Phase.READY),
    )
    return Host(steps, answer)


GOOD = greeting_after(0.02)  # SYN-ACK after 20 ms, ready at 90 ms
DROPPED = Host(())
REFUSED = Host(((0.02, Verdict.REFUSED),))
SILENT = Host(((0.02, Phase.GREETING),))
CLOSED = Host(((0.02, Phase.GREETING), (0.02, Verdict.CLOSED)))
SILENT_AT_EHLO = Host(((0.02, Phase.GREETING), (0.02, Phase.EHLO)))
SILENT_AT_TLS = Host(
    ((0.02, Phase.GREETING), (0.02, Phase.EHLO), (0.02, Phase.TLS)),
)
POOLED = Host(((0.0, Phase.READY),))
OUR_TROUBLE = Host(((0.0, None),))


def answering(verdict: Verdict) -> Host:
    """Return a good host whose session ends with *verdict*."""
    return GOOD._replace(answer=Answer(verdict))


def equal_hosts(count: int, preference: int = 10) -> list[Candidate]:
    """Return *count* hosts of one preference."""
    return [
        Candidate(f"mx{n}-{preference}.example", f"192.0.2.{n + 1}", 25, preference)
        for n in range(count)
    ]


def ranked_hosts(count: int) -> list[Candidate]:
    """Return *count* hosts, each of a preference of its own, best first."""
    return [
        Candidate(f"mx{n}.example", f"192.0.2.{n + 1}", 25, 10 * n)
        for n in range(count)
    ]


def dual_stack(candidate: Candidate) -> list[Candidate]:
    """Return the IPv6 and the IPv4 candidate of one host."""
    return [
        candidate._replace(address="2001:db8::" + candidate.address[8:]),
        candidate,
    ]


class Simulation:
    """One race in one world, played to its end by `run`.

    Attributes:
        log: Every action, with the time at which it was given.
        ready_at: When each candidate became ready.
        outcome: ``delivered``, ``bounced`` or ``deferred``, once `run` is done.
        given_up: The reason, if it came to that.
    """

    def __init__(
        self,
        world: dict[Candidate, Host],
        *,
        timing: RaceOptions = DEFAULTS,
        deadline: float = 900.0,
        start: float = 0.0,
        entrants: list[Entrant] | None = None,
        lag: float = 0.0,
        early_wakes: bool = False,
    ) -> None:
        self.world = world
        self.timing = timing
        self.deadline = deadline
        self.now = start
        self.lag = lag
        self.early_wakes = early_wakes
        self.entrants = entrants or [Entrant(c) for c in world]
        self.race = Race(self.entrants, timing, deadline)
        self.log: list[tuple[float, Action]] = []
        self.ready_at: dict[Candidate, float] = {}
        self.outcome = ""
        self.given_up: GiveUpReason | None = None
        self.refused_by: list[Candidate] = []
        self.taken: list[Candidate] = []
        self.finding_time = 0.0
        self._round_began = start
        self.waited: dict[tuple[Candidate, Awaited], float] = {}
        self.spoke: set[Candidate] = set()  # answered, or failed by themselves
        self._racing = True
        self._since: dict[Candidate, float] = {}  # when the phase was entered
        self._open: dict[Candidate, int] = {}  # which dialling
        self._phase: dict[Candidate, Phase] = {}
        self._may_not_be_asked: set[Candidate] = set()
        self._answers: dict[Candidate, Answer] = {}
        self._ready_since: dict[Candidate, float] = {}
        self._dialled = 0
        self._serial = 0
        self._wake_at: float | None = None
        self._events: list[tuple[float, int, Candidate, int, int]] = []

    # What the tests read

    def times(self, kind: type[Action], candidate: Candidate) -> list[float]:
        """Return when an action of *kind* was given for *candidate*."""
        return [
            at
            for at, action in self.log
            if isinstance(action, kind)
            and not isinstance(action, Wake | GiveUp)
            and action.candidate == candidate
        ]

    @property
    def started(self) -> list[Candidate]:
        """Who was dialled, in order, each time."""
        return [a.candidate for _, a in self.log if isinstance(a, Start)]

    @property
    def ended_at(self) -> float:
        """When the last action was given."""
        return self.log[-1][0]

    # The course

    def run(self) -> Simulation:
        """Play to the end; more than 5,000 steps are taken for an endless loop."""
        self._do(self.race.begin(self.now))
        for _ in range(5000):
            if self.outcome:
                return self
            self._step()
        raise AssertionError("the race does not end")

    def _step(self) -> None:
        at, *_ = self._events[0] if self._events else (float("inf"),)
        if self._wake_at is not None and self._wake_at <= at:
            self._to_wake()
            return
        assert self._events, "nothing is open and nothing scheduled"
        at, _, candidate, dialling, step = heapq.heappop(self._events)
        self.now = max(self.now, at)
        if step < 0:
            self._answer(candidate, step)
        elif self._open.get(candidate) == dialling:
            self._happens(candidate, dialling, step)

    def _to_wake(self) -> None:
        assert self._wake_at is not None
        wake_at = self._wake_at
        halfway = (self.now + wake_at) / 2
        if self.early_wakes and halfway < wake_at:  # it may be rounded up
            self.now = halfway
            self._do(self.race.wake(self.now))
            assert self._wake_at == wake_at, "an early call changes nothing"
        self.now = max(self.now, self._wake_at + self.lag)
        self._do(self.race.wake(self.now))

    def _happens(self, candidate: Candidate, dialling: int, step: int) -> None:
        what = self.world[candidate].steps[step][1]
        if isinstance(what, Phase):
            awaited = awaited_in(self._phase[candidate])
            waited = self.now - self._since[candidate]
            if is_patient(awaited, waited):  # a patient sender has left it by now
                self._note(candidate, awaited, waited)
            self._phase[candidate] = what
            self._since[candidate] = self.now
            if what is Phase.READY:
                self.ready_at.setdefault(candidate, self.now)
                self._ready_since[candidate] = self.now
            self._plan_step(candidate, dialling, step + 1)
            self._do(self.race.reached(candidate, what, self.now))
            return
        phase = self._phase[candidate]
        del self._open[candidate]
        finding = Finding(what, phase, 0.0) if what else None
        if finding and phase < Phase.READY:
            self.spoke.add(candidate)
        self._do(self.race.failed(candidate, finding, self.now))

    def _answer(self, candidate: Candidate, step: int) -> None:
        answer = self._answers[candidate]
        if step == -3:
            self._lose_patience(candidate, answer.after)
            return
        if step == -1 and (answer.settles or answer.verdict is None):
            self._do_drops(self.race.drop_others(self.now))
            assert not self._open, "settled left somebody open"
            if answer.verdict is None:
                self.outcome = "delivered"
            else:
                self._schedule(answer.after, candidate, 0, -2)
            return
        assert answer.verdict is not None
        if answer.verdict is Verdict.PERMANENT:
            self.refused_by.append(candidate)
        final = not self.race.has_better_pending(candidate)
        finding = Finding(answer.verdict, Phase.TRANSACTION, answer.after)
        if candidate in self._may_not_be_asked:
            self.spoke.add(candidate)
        self._racing = True
        self._round_began = self.now
        actions = self.race.resume(finding, self.now)
        if final and answer.verdict is Verdict.PERMANENT:
            assert isinstance(actions[-1], GiveUp), "a final refusal ends the attempt"
        self._do(actions)

    def _lose_patience(self, candidate: Candidate, seconds: float) -> None:
        """End the session with the taken one, which has not answered in time."""
        self._note(candidate, Awaited.RCPT, seconds)
        wait = Wait(Awaited.RCPT, seconds)
        finding = Finding(Verdict.SILENT, Phase.TRANSACTION, seconds, wait=wait)
        self._racing = True
        self._round_began = self.now
        self._do(self.race.resume(finding, self.now))

    def _note(self, candidate: Candidate, awaited: Awaited, seconds: float) -> None:
        before = self.waited.get((candidate, awaited), 0.0)
        self.waited[candidate, awaited] = before + seconds

    # What the race told us to do

    def _do(self, actions: list[Action]) -> None:
        now = self.now
        if not self._racing:
            assert actions == [], "acts while somebody is taken or all is over"
            return
        assert [type(a) in (Wake, Take, GiveUp) for a in actions].count(True) == 1
        assert isinstance(actions[-1], Wake | Take | GiveUp)
        self._wake_at = None
        for action in actions:
            self._act(action, now)
        self._check(now)

    def _do_drops(self, actions: list[Action]) -> None:
        for action in actions:
            assert isinstance(action, Drop)
            self._act(action, self.now)

    def _act(self, action: Action, now: float) -> None:
        self.log.append((now, action))
        match action:
            case Start(candidate):
                self._start(candidate, now)
            case Drop(candidate, finding):
                del self._open[candidate]
                phase = self._phase[candidate]
                if phase < Phase.READY:
                    seconds = now - self._since[candidate]
                    self._note(candidate, awaited_in(phase), seconds)
                if finding is not None:
                    assert finding.phase is phase
            case Doubt(candidate, finding):
                assert candidate in self._open
                assert not finding.full
                assert len(self.times(Doubt, candidate)) <= len(Phase)
            case Take(candidate):
                self._take(candidate, now)
            case Wake(at):
                assert at > now, "a wake must be in the future"
                self._wake_at = at
            case GiveUp(reason):
                self._give_up(reason)

    def _start(self, candidate: Candidate, now: float) -> None:
        assert candidate not in self._open
        assert candidate not in self._may_not_be_asked, "nobody is asked twice"
        assert now < self.deadline, "nobody is dialled after the deadline"
        self._dialled += 1
        self._open[candidate] = self._dialled
        self._phase[candidate] = Phase.CONNECT
        self._since[candidate] = now
        self._plan_step(candidate, self._dialled, 0)

    def _take(self, candidate: Candidate, now: float) -> None:
        assert self._phase[candidate] is Phase.READY
        assert now < self.deadline, "nobody is taken after the deadline"
        del self._open[candidate]
        self.taken.append(candidate)
        self._racing = False
        self.finding_time += now - self._round_began
        host = self.world[candidate]
        waited = now - self._ready_since[candidate]
        answer = Answer(Verdict.CLOSED) if waited > host.idle_time else host.answer
        is_hurried = self.race.others_left() and not self.race.is_last_chance()
        patience = min(SILENCE if is_hurried else RCPT_TIME, self.deadline - now)
        if answer.after >= patience:
            self._answers[candidate] = Answer(after=patience)
            self._schedule(patience, candidate, 0, -3)
            return
        self._answers[candidate] = answer
        is_lost = answer.verdict in (Verdict.CLOSED, Verdict.SILENT, Verdict.STALLED)
        # Whoever closes after less than that was not tired: it has failed.
        if not (is_lost and waited > TIRING and not answer.settles):
            self._may_not_be_asked.add(candidate)
        self._schedule(answer.after, candidate, 0, -1)

    def _give_up(self, reason: GiveUpReason) -> None:
        assert not self._open, "whoever is open is dropped before giving up"
        self.given_up = reason
        final = [c for c in self.refused_by if not self.race.has_better_pending(c)]
        for candidate in final:
            for better in (c for c in self.world if c.rank < candidate.rank):
                assert self._is_heard(better), "bounced without asking a better one"
        self.outcome = "bounced" if final else "deferred"

    def _is_heard(self, candidate: Candidate) -> bool:
        """Whether a patient sender would have gone on to the next, as seen from outside."""
        (entrant,) = (one for one in self.entrants if one.candidate == candidate)
        return candidate in self.spoke or any(
            is_patient(
                awaited,
                self.waited.get((candidate, awaited), 0.0)
                + entrant.waits.get(awaited, 0.0),
            )
            or (entrant.remembered is not None and is_patient(*entrant.remembered))
            for awaited in Awaited
        )

    def _check(self, now: float) -> None:
        """What holds at every moment, as seen from outside."""
        assert len(self._open) <= self.timing.open
        for candidate in self._open:
            same = [c for c in self._open if c.rank == candidate.rank]
            assert len(same) <= self.timing.open_per_rank
        assert self._dialled <= MAX_DIALLED
        if self._racing and not self.given_up:
            assert self._open, "the race goes on, but nobody is open"
            assert self._wake_at is not None
            assert now < self.deadline

    def _plan_step(self, candidate: Candidate, dialling: int, step: int) -> None:
        steps = self.world[candidate].steps
        if step < len(steps):
            self._schedule(steps[step][0], candidate, dialling, step)

    def _schedule(
        self, after: float, candidate: Candidate, dialling: int, step: int
    ) -> None:
        self._serial += 1
        event = (self.now + after, self._serial, candidate, dialling, step)
        heapq.heappush(self._events, event)


class Patient(NamedTuple):
    """How a patient sender would have fared: one after the other, best first.

    Attributes:
        outcome: As in `Simulation`.
        ready_at: When the first of them was ready; None if none ever was.
    """

    outcome: str
    ready_at: float | None


def ask_patiently(world: dict[Candidate, Host]) -> Patient:
    """Ask in the order of rank, each with all the time it may have at the utmost.

    30 s to connect and 300 s for every later phase; the first 5yz bounces, the
    second 4yz defers.
    """
    now, first, visits = 0.0, None, 0
    for candidate in sorted(world, key=lambda c: c.rank):
        is_ready, took = _connect_patiently(world[candidate].steps)
        now += took
        if not is_ready:
            continue
        first = now if first is None else first
        answer = world[candidate].answer
        if answer.after >= RCPT_TIME:
            now += RCPT_TIME
            continue
        if answer.verdict is None:
            return Patient("delivered", first)
        if answer.verdict is Verdict.PERMANENT:
            return Patient("bounced", first)
        if answer.verdict is Verdict.TRANSIENT:
            visits += 1
            if visits >= 2:
                break
    return Patient("deferred", first)


def _connect_patiently(steps: tuple[Step, ...]) -> tuple[bool, float]:
    took, utmost = 0.0, 30.0
    for seconds, what in steps:
        if seconds >= utmost:
            break
        took += seconds
        if what is Phase.READY:
            return True, took
        if not isinstance(what, Phase):
            return False, took
        utmost = 300.0
    return False, took + utmost
