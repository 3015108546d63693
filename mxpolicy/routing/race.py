"""The race to the first ready host: which is dialled when, which is taken, when to stop.

A scheduler without I/O, clock or chance. `mxpolicy.delivery.attempt` owns the sockets
and tells it what happened and when. It answers with actions. All time before *ready* is
its business; the time of a transaction is not.

Theory of operation
-------------------

One law: racing only makes delivery sooner. A *patient sender* asks one candidate after
the other in order of preference (RFC 5321 §5.1). The race never causes a bounce, a
deferral or a duplicate that a patient sender would not have caused. From it follows:

* A candidate that is merely slow stays in the race while others start beside it.
* A refusal (4yz, 5yz) by a worse rank is not final before every better one was *heard*:
  a patient sender would have asked the better one first. The race goes on for it, and
  after a 5yz for no other.
* A greylisting site gets two visits, not one for each of its hosts. Visits to a worse
  rank, out of turn, do not count against a better one. When both were to addresses of
  one host, another host gets a third visit.
* A candidate that was *turned away* has not failed. It had to make room for another, our
  patience ended in its transaction, or it got tired of waiting for us. It is asked again
  after all others, and then with a patient sender's time.
* A host *in doubt* may have the message, as it did not answer the final dot. It comes
  after those that cannot have it: a device that cuts every final dot there must not keep
  the message from them. A 5yz that they say before its turn is final no sooner for that.
  Of its addresses the one that was in doubt comes last.

A candidate is *heard* when it has answered or failed. It is heard too when it was turned
away after a patient sender's wait (`race_timing.PATIENT_TIME`). The seconds of this
attempt and of earlier ones for the same message add up. Where one remembered verdict has
them all, the candidate is asked once more, for its full time only, since it may be back.

Times are seconds on one monotonic clock, the caller's; a *now* never runs
backwards. Several calls may carry the same *now*.

What the caller does
--------------------

Call `Race.begin` once. Then, whatever happens, call the method for it and do
the actions returned, in their order:

=========  =====================================================================
`Start`    Dial the candidate and open a session as far as READY. Report every
           phase entered with `Race.reached`, the end with `Race.failed`. One
           candidate may be started again after it was dropped.
`Drop`     Hang up (with QUIT, if it has greeted). Report nothing
           more of it; what is reported all the same is ignored.
`Doubt`    Write the provisional verdict; the candidate stays open.
`Wake`     Call `Race.wake` at that time. It replaces every earlier `Wake`; none
           in the list means that time does not matter. Late, early and
           needless calls do no harm.
`Take`     Begin the transaction. Nothing is started or dropped until
           `Race.drop_others`, `Race.resume` or `Race.restart` is called. Go on
           reporting the others; only the last two report the taken one's end.
`GiveUp`   The attempt is over. Every open candidate was dropped before it, in
           the same list. No method has an effect any more.
=========  =====================================================================

Every list ends in exactly one of `Wake`, `Take` and `GiveUp`, or is returned
between `Take` and `resume`, or after `GiveUp`. So every `Start` is ended by
exactly one of: `failed` from the caller, `Drop`, `Take`, each from us. A candidate that
was taken with a session of an earlier message may be started once more (`Race.restart`).
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.candidate import (
    Awaited,
    Candidate,
    Finding,
    Phase,
    Rank,
    Scope,
    Verdict,
)
from mxpolicy.routing.race_timing import (
    Entrant,
    patience,
    patient_time,
)
from mxpolicy.routing.runner import Runner, Standing, doubts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxpolicy.options import RaceOptions

__all__ = [
    "MAX_DIALLED",
    "Action",
    "Doubt",
    "Drop",
    "GiveUp",
    "GiveUpReason",
    "Race",
    "Start",
    "Take",
    "Wake",
]

# A domain may publish hundreds of addresses. Where this many fail, others would fail
# too. RFC 5321 §5.1 asks for at least two.
MAX_DIALLED = 32

# The rest of the deadline is for the transaction. After a refusal by a worse host the
# better ones may use all of it: they decide whether the mail bounces.
SHARE_FOR_FINDING = 1 / 3

# Sessions that may end in 4yz, 421 and x.7.z included. With more, a greylisting domain
# with 13 MX would see us 13 times. With only one, a best MX that always says 4yz would
# keep the message from a good second one for ever.
TRANSIENT_VISITS = 2

# Seconds for which every host keeps a session in which we say nothing, the grace
# included. Postfix under stress hangs up after 10; RFC 5321 §4.5.3.2.7 asks for 300.
TIRING = 1.0

# How a session ends when a reply of the host decides.
_REPLIES = frozenset({Verdict.TRANSIENT, Verdict.PERMANENT})


class Start(NamedTuple):
    """Dial *candidate* now."""

    candidate: Candidate


class Drop(NamedTuple):
    """Hang up on *candidate*, which was started and has not failed by itself.

    Attributes:
        candidate: The one to hang up on.
        finding: That it was too slow, to log and to remember. None when it was
            not: another one won. ``finding.full`` tells whether it had its full
            time. If not (only before `GiveUp`, when the time for all was up), the
            finding is for the text of the deferral.
    """

    candidate: Candidate
    finding: Finding | None = None


class Doubt(NamedTuple):
    """Our patience with *candidate* has ended; it stays open.

    Given once for a candidate and phase. Its finding is never full.
    """

    candidate: Candidate
    finding: Finding


class Take(NamedTuple):
    """*candidate* is ready and has won: begin the transaction."""

    candidate: Candidate


class Wake(NamedTuple):
    """Call `Race.wake` *at* this time, unless another call comes before it."""

    at: float


class GiveUpReason(Enum):
    """Why no other candidate is asked in this attempt."""

    EXHAUSTED = "exhausted"
    """Each one that a patient sender would have asked has failed or had its full time."""
    DEADLINE = "deadline"
    """The time for finding a ready host is up; some had less than their full time."""
    CAPPED = "capped"
    """Some are left that may not be asked: enough sessions ended in 4yz, 32 were dialled,
    or our own trouble prevents it."""


class GiveUp(NamedTuple):
    """The attempt is over: defer what is not settled.

    A 5yz that was said on the way bounces only if `Race.has_better_pending` is False for
    the candidate that said it.
    """

    reason: GiveUpReason


Action = Start | Drop | Doubt | Take | Wake | GiveUp


class _Mode(Enum):
    NEW = auto()  # before begin
    RACING = auto()
    SUSPENDED = auto()  # one is taken
    OVER = auto()  # given up


class Race:
    """One attempt to find a ready host for one message.

    Args:
        entrants: In the order of trying, best first. Those of less doubt come before
            the others in any case. Of equal candidates the first counts. When it is
            empty, `begin` gives up at once.
        timing: Delays, places (at least one of each) and grace.
        deadline: When the whole message must be settled. At the deadline or later
            nothing is taken or started. All rounds together, finding a ready host may
            take a third of the time left at `begin`. The time between `Take` and
            `resume` does not count.
    """

    def __init__(
        self, entrants: Sequence[Entrant], timing: RaceOptions, deadline: float
    ) -> None:
        self._runners: dict[Candidate, Runner] = {}
        in_turn = sorted(enumerate(entrants), key=lambda one: doubts(one[1]))
        for index, (place, entrant) in enumerate(in_turn):
            self._runners.setdefault(entrant.candidate, Runner(entrant, index, place))
        self._timing = timing
        self._deadline = deadline
        self._mode = _Mode.NEW
        self._budget = 0.0  # seconds left for finding a ready host
        self._since = 0.0  # when this round began
        self._limit = 0.0  # when it must be over
        self._dialled = 0
        self._ceiling: Rank | None = None  # after a 5yz only better ones matter
        self._taken: Runner  # while the race is SUSPENDED

    # What the caller tells us

    def begin(self, now: float) -> list[Action]:
        """Start the race. Call it once, before anything else."""
        assert self._mode is _Mode.NEW, "a race begins once"
        self._budget = max(0.0, self._deadline - now) * SHARE_FOR_FINDING
        self._open_round(now)
        return self._advance(now)

    def reached(self, candidate: Candidate, phase: Phase, now: float) -> list[Action]:
        """Take note that *candidate* entered *phase*, READY at the furthest.

        Phases may be skipped (an idle session is READY at once). A phase that was
        entered before is ignored. So a session that has to connect again, in clear
        after a failed TLS handshake, keeps its place and reports as before.

        When it comes after a patient sender's time, which may end while another is
        taken, the candidate has failed: its refusal must not be final.
        """
        runner = self._runners[candidate]
        if runner.standing is Standing.OPEN and phase > runner.phase:
            if self._mode is _Mode.SUSPENDED and self._fails_at(runner) <= now:
                runner.is_late = True
            runner.phase = min(phase, Phase.READY)
            runner.since = now
        return self.wake(now)

    def failed(
        self,
        candidate: Candidate,
        finding: Finding | None,
        now: float,
        *,
        is_crowded: bool = False,
    ) -> list[Action]:
        """Take note that *candidate* failed before it was taken.

        None, or a finding about ourselves (`Scope.SITE`), says that we failed, not the
        candidate (a `mxpolicy.errors.LocalTrouble`). It is not asked again in this
        attempt, and is not heard: a 5yz from a worse one does not become final. "No
        route" is not of this kind: the candidate fails.

        It is turned away, and asked again after all others, when it was ready and hung
        up while we kept it waiting, and when we ended its session (``finding.wait``). It
        is still only turned away when it then gets less far than before: it may have too
        many connections, among them the one that we gave up.

        The same holds where it turned us away while it has other connections of ours
        (*is_crowded*): a worse one's refusal must not be final for that. Then it is asked
        once more after the others, when it may have a place again.
        """
        runner = self._runners[candidate]
        if runner.standing is Standing.OPEN:
            if finding is None or finding.scope is Scope.SITE:
                runner.standing = Standing.LOCAL_FAILURE
            elif runner.is_ready or finding.wait is not None:
                runner.turn_away(finding.wait)
            elif runner.was_further_than(finding.phase):
                runner.standing = Standing.TURNED_AWAY
            elif is_crowded and self._has_worse(runner):
                if runner.is_second_run:
                    runner.standing = Standing.LOCAL_FAILURE
                else:
                    runner.turn_away(None)
            else:
                runner.fail()
        return self.wake(now)

    def wake(self, now: float) -> list[Action]:
        """Look at the clock. Harmless at any time."""
        return self._advance(now) if self._mode is _Mode.RACING else []

    def drop_others(self, now: float) -> list[Action]:
        """Drop all others: the taken one has answered RCPT well.

        Returns `Drop` actions only. A later `resume` is possible, when the
        connection is lost in the body: those dropped here may then be started
        again.
        """
        assert self._mode is _Mode.SUSPENDED, "none is taken"
        self._taken.was_kept_waiting = False  # the wait did no harm
        return [self._let_go(runner, now) for runner in self._open()]

    def resume(
        self, finding: Finding, now: float, *, in_doubt: bool = False
    ) -> list[Action]:
        """Go on: the taken one's session ended with recipients not settled.

        Never call it when the host may have the message for the first time (no reply
        after the final dot): another host would make a duplicate.

        Args:
            finding: TRANSIENT when a reply of 4yz left a recipient unsettled;
                PERMANENT when every unsettled one was refused with 5yz; any
                other verdict when no reply decided (CLOSED, SILENT, STALLED, a
                reply that was about the session). With a ``wait`` our patience
                ended, and it is turned away. `Scope.SITE` as in `failed`.
            now: The time.
            in_doubt: The host may have the message for some recipients, as before. No
                other address of it is asked.

        Returns actions as `begin` does. One of the others that is ready is taken at
        once. After PERMANENT only candidates of a better rank than the refusing one are
        asked; when there are none left this gives up. When the answers to recipients
        differ, give TRANSIENT. Then offer those refused with 5yz only to candidates of a
        better rank than the refusing one.

        One that was kept waiting, and is lost without a reply before `drop_others`, may have
        got tired of that: it is asked again after all others. Give CLOSED for a 421 that
        answers the first command of such a session: it is the host's idle timeout (RFC
        5321 §4.5.3.2.7).
        """
        assert self._mode is _Mode.SUSPENDED, "none is taken"
        actions: list[Action] = []
        if in_doubt:
            actions = self._leave_host(now)
            finding = finding._replace(wait=None)  # never the same one again
        self._note_end_of_taken(finding)
        self._open_round(now)
        actions += self._drop_late(now)
        actions += [
            self._let_go(runner, now)
            for runner in self._open()
            if not self._may_be_asked(runner)
        ]
        if (best := self._best_ready()) and now < self._deadline:
            return [*actions, self._take(best, now)]
        return actions + self._advance(now)

    def restart(self, now: float) -> list[Action]:
        """Go on: the taken one's session was one of an earlier message, and was over.

        That says nothing of the candidate. It is dialled anew at once, in the place that
        it has, as if it had not been ready.

        Returns actions as `begin` does.
        """
        assert self._mode is _Mode.SUSPENDED, "none is taken"
        taken = self._taken
        self._open_round(now)
        if now >= self._limit:
            taken.standing = Standing.WAITING
            return self._drop_late(now) + self._advance(now)
        taken.standing = Standing.OPEN
        taken.phase, taken.since = Phase.CONNECT, now
        taken.was_kept_waiting = False
        return [*self._drop_late(now), Start(taken.candidate), *self._advance(now)]

    def has_better_pending(self, candidate: Candidate) -> bool:
        """Return whether a refusal (4yz, 5yz) by *candidate* is not final.

        True while one of a better rank is not *heard*: it was not asked, is open or
        taken, or was turned away before it had a patient sender's time. True also when
        better ones said 4yz so often that a patient sender would not have come to
        *candidate*.

        It may be called at any time, for a taken candidate before `resume` too. If it is
        False, a 5yz is final at once.
        """
        better = [r for r in self._runners.values() if r.rank < candidate.rank]
        if not all(runner.is_heard for runner in better):
            return True
        return sum(runner.ended_in_4yz for runner in better) >= TRANSIENT_VISITS

    def others_left(self) -> int:
        """Return how many beside the taken one may still be asked in this attempt.

        Those of more doubt do not count: they may have the message.
        """
        if len(self._runners) == 1:
            return 0
        doubts = self._taken.doubts
        waiting = [
            runner
            for runner in (*self._queue(), *self._queue_again())
            if runner.doubts <= doubts
        ]
        return min(len(waiting), MAX_DIALLED - self._dialled) + len(self._open())

    def is_last_chance(self) -> bool:
        """Return whether the taken one was asked again; then it gets all its time."""
        return self._taken.is_second_run

    def waits(self) -> Mapping[Candidate, Mapping[Awaited, float]]:
        """Return {candidate: {awaited: seconds}} of all waits that ended without answer."""
        return {r.candidate: r.waits for r in self._runners.values() if r.waits}

    # The course of a round

    def _open_round(self, now: float) -> None:
        self._mode = _Mode.RACING
        self._since = now
        self._limit = self._deadline
        if self._ceiling is None:
            self._limit = min(now + self._budget, self._deadline)

    def _advance(self, now: float) -> list[Action]:
        """Do all that is due, and say when to look again."""
        actions: list[Action] = self._drop_expired(now)
        if now >= self._deadline:
            return actions + self._give_up(now)
        if best := self._best_ready():
            grace_ends = min(self._grace_ends(best), self._limit)
            ends = self._take(best, now) if grace_ends <= now else Wake(grace_ends)
            return [*actions, ends]
        if now >= self._limit:
            return actions + self._give_up(now)
        start_at = self._start_due(now, actions)
        still_open = self._open()
        if not still_open:
            return actions + self._give_up(now)
        at = min(self._limit, start_at, *map(self._fails_at, still_open))
        return [*actions, Wake(at)]

    def _drop_late(self, now: float) -> list[Action]:
        """Count those as failed that a patient sender would have left meanwhile."""
        actions: list[Action] = []
        for runner in self._open():
            if runner.is_late:
                actions.append(self._let_go(runner, now))
                runner.standing = Standing.FAILED
        return actions

    def _fails_at(self, runner: Runner) -> float:
        return runner.fails_at(is_hurried=self._ceiling is not None)

    def _drop_expired(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for runner in self._open():
            if self._fails_at(runner) <= now:
                runner.note(runner.wait(now))
                runner.standing = Standing.FAILED
                actions.append(Drop(runner.candidate, runner.finding(now)))
        return actions

    def _start_due(self, now: float, actions: list[Action]) -> float:
        """Start the next in turn while it is due and has a place; return when to look."""
        while following := self._next_in_turn():
            ends = self._patience_ends(following, now, actions)
            if ends > now:
                return ends
            room_at = self._make_room(following, now, actions)
            if room_at > now:
                return room_at
            following.start(now)
            self._dialled += 1
            actions.append(Start(following.candidate))
        return inf

    def _patience_ends(
        self, following: Runner, now: float, actions: list[Action]
    ) -> float:
        """Doubt those with which our patience has ended; return when it ends next.

        The answer is *now* when it has ended with all of them.
        """
        soonest = inf
        for runner in self._open():
            allowed = patience(
                runner.entrant, runner.phase, following.candidate, self._timing
            )
            ends = runner.since + allowed
            if ends <= now and runner.phase not in runner.doubted:
                runner.doubted.add(runner.phase)
                finding = runner.finding(now)._replace(full=False)
                actions.append(Doubt(runner.candidate, finding))
            if runner.doubts < following.doubts:
                ends = max(ends, self._copy_risked_at(runner))
            if ends > now:
                soonest = min(soonest, ends)
        return now if soonest == inf else soonest

    def _copy_risked_at(self, runner: Runner) -> float:
        """Return until when *runner* is waited for before one of more doubt starts.

        That one may have the message, so asking it risks a copy. A patient sender would
        not, as long as *runner* may answer. Half of the time is left for it all the same,
        unless *runner* has answered EHLO: TLS has a time of its own.
        """
        patient = runner.since + patient_time(runner.phase)
        if runner.phase is Phase.TLS:
            return patient
        half = self._since + (self._limit - self._since) / 2
        return min(patient, half)

    def _make_room(self, following: Runner, now: float, actions: list[Action]) -> float:
        """Return when there is a place for *following*.

        A candidate that has had its full time gives up its own.
        """
        crowd = self._crowd_before(following)
        if not crowd:
            return now
        first = min(crowd, key=lambda runner: runner.yields_at(following))
        at = first.yields_at(following)
        if at <= now:
            first.turn_away(first.wait(now))
            actions.append(Drop(first.candidate, first.finding(now)))
        return at

    def _crowd_before(self, following: Runner) -> list[Runner]:
        """Return those of which one must go before *following* can start, if any."""
        if self._is_rank_full(following.rank):
            return [r for r in self._open() if r.rank == following.rank]
        crowd = self._open()
        return crowd if len(crowd) >= self._timing.open else []

    def _next_in_turn(self) -> Runner | None:
        """Return the one to start next; of a rank without a place only if all are so."""
        if self._dialled >= MAX_DIALLED:
            return None
        waiting, again = self._queue(), self._queue_again()
        if not again and not waiting:
            return None
        # One that was turned away is asked again before one of more doubt.
        least = min((runner.doubts for runner in again), default=None)
        queue = [r for r in waiting if least is None or r.doubts <= least] or again
        for runner in queue:
            if not self._is_rank_full(runner.rank):
                return runner
        return queue[0] if queue else None

    # Ends

    def _take(self, runner: Runner, now: float) -> Take:
        runner.standing = Standing.TAKEN
        self._taken = runner
        runner.was_kept_waiting = runner.since + TIRING < now
        self._mode = _Mode.SUSPENDED
        self._budget = max(0.0, self._budget - (now - self._since))
        return Take(runner.candidate)

    def _let_go(self, runner: Runner, now: float) -> Drop:
        """Drop one that has not failed; it may be asked again."""
        runner.standing = Standing.WAITING
        if runner.is_ready:
            return Drop(runner.candidate)
        runner.note(runner.wait(now))
        finding = runner.finding(now)
        return Drop(runner.candidate, finding if finding.full else None)

    def _leave_host(self, now: float) -> list[Action]:
        """Count all addresses of the taken one's host as failed."""
        taken = self._taken
        taken.was_kept_waiting = False
        same = [
            r
            for r in self._runners.values()
            if r.candidate.host == taken.candidate.host
        ]
        actions: list[Action] = [
            self._let_go(runner, now)
            for runner in same
            if runner.standing is Standing.OPEN
        ]
        for runner in same:
            if runner is not taken:
                runner.standing = Standing.FAILED
        return actions

    def _give_up(self, now: float) -> list[Action]:
        """Drop all and end. Those that are open have not failed."""
        self._mode = _Mode.OVER
        actions: list[Action] = []
        for runner in self._open():
            finding = None if runner.is_ready else runner.finding(now)
            runner.turn_away(None if runner.is_ready else runner.wait(now))
            actions.append(Drop(runner.candidate, finding))
        return [*actions, GiveUp(self._reason(now))]

    def _reason(self, now: float) -> GiveUpReason:
        if all(
            runner.is_heard or not self._matters(runner)
            for runner in self._runners.values()
        ):
            return GiveUpReason.EXHAUSTED
        return GiveUpReason.DEADLINE if now >= self._limit else GiveUpReason.CAPPED

    def _note_end_of_taken(self, finding: Finding) -> None:
        taken = self._taken
        taken.has_stalled = finding.verdict is Verdict.STALLED
        if finding.scope is Scope.SITE:
            taken.standing = Standing.LOCAL_FAILURE
        elif finding.wait is not None:
            taken.turn_away(finding.wait)
        elif taken.was_kept_waiting and finding.verdict not in _REPLIES:
            taken.turn_away(None)
        else:
            taken.fail()
        if finding.verdict is Verdict.TRANSIENT:
            taken.ended_in_4yz = True
        elif finding.verdict is Verdict.PERMANENT:
            self._ceiling = taken.rank  # better than before: else it was not asked

    # The candidates, by their standing

    def _has_worse(self, runner: Runner) -> bool:
        return any(runner.rank < other.rank for other in self._runners.values())

    def _all(self, standing: Standing) -> list[Runner]:
        return [r for r in self._runners.values() if r.standing is standing]

    def _open(self) -> list[Runner]:
        return self._all(Standing.OPEN)

    def _queue(self) -> list[Runner]:
        """Return those that were not asked yet."""
        return [r for r in self._all(Standing.WAITING) if self._may_be_asked(r)]

    def _queue_again(self) -> list[Runner]:
        """Return those that were turned away and are to be asked again.

        One that stalled will hardly take the message. It is asked only when a worse one
        has refused: it may say otherwise.
        """
        return [
            r
            for r in self._all(Standing.TURNED_AWAY)
            if r.may_be_asked_again
            and self._may_be_asked(r)
            and not (r.has_stalled and self._ceiling is None)
        ]

    def _matters(self, runner: Runner) -> bool:
        """Whether its answer could still change the 5yz that another has said."""
        if self._ceiling is None:
            return True
        return runner.rank < self._ceiling and not runner.has_had_its_chances

    def _may_be_asked(self, runner: Runner) -> bool:
        """Whether a patient sender would still come to ask it.

        It would stop at the second 4yz, or at the third where two were of one host. It
        would hear those of a worse rank only later, so they do not count. Nor do equals
        that come after *runner* and were asked before it, as it is in doubt: each try
        would stop at them, and never come to it. Once False, this stays False.
        """
        said_4yz = [
            other.candidate.host
            for other in self._runners.values()
            if other.ended_in_4yz and not other.comes_after(runner)
        ]
        is_new = len({*said_4yz}) < TRANSIENT_VISITS and (
            runner.candidate.host not in said_4yz
        )
        return self._matters(runner) and (len(said_4yz) < TRANSIENT_VISITS or is_new)

    def _is_rank_full(self, rank: Rank) -> bool:
        taken = sum(runner.rank == rank for runner in self._open())
        return taken >= self._timing.open_per_rank

    def _best_ready(self) -> Runner | None:
        ready = [runner for runner in self._open() if runner.is_ready]
        return min(ready, key=lambda r: (r.turn, r.since, r.index), default=None)

    def _grace_ends(self, best: Runner) -> float:
        """Return until when a better one may still overtake; the past if none may.

        One that is asked again does not wait: waiting may be why it left.
        """
        if best.is_second_run or not any(
            runner.turn < best.turn and runner.phase >= Phase.GREETING
            for runner in self._open()
        ):
            return -inf
        first = min(runner.since for runner in self._open() if runner.is_ready)
        return first + self._timing.grace
