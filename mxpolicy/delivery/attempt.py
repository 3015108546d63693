"""One attempt: a message, a plan, and the race to a host that takes it.

The shell of `mxpolicy.routing.race`. The race decides which candidate is started,
dropped and taken. This module owns the tasks and tells the race what became of them.
All runs in one event loop. The task that has something to tell calls the race itself, and
carries out its actions before it goes on.

An `Offer` offers the message to the winner, and `AttemptRecipients` judges the result.
For those that it does not settle the race goes on.

What a host has said after the final dot stands, whatever happens to us after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from math import inf
from typing import NamedTuple, assert_never

from mxpolicy.delivery import events
from mxpolicy.delivery.approach import SMALL_SEGMENT, Approach
from mxpolicy.delivery.attempt_recipients import AttemptRecipients
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.offer import Message, Offer, failure, tell_of_detour
from mxpolicy.delivery.plan import Plan
from mxpolicy.delivery.session import Session
from mxpolicy.outcome import Deferred, Outcome
from mxpolicy.reply import Reply
from mxpolicy.routing import race as racing
from mxpolicy.routing.candidate import (
    Candidate,
    Finding,
    Phase,
    Scope,
)
from mxpolicy.routing.known_hosts import NOTHING_KNOWN, KnownHosts
from mxpolicy.routing.reachability import TURNED_AWAY
from mxpolicy.routing.reuse import Stage
from mxpolicy.routing.tls_requirement import TlsRequirement, tls_requirement
from mxpolicy.routing.unresolved import has_better

__all__ = ["Attempt", "Begun"]

_Reason = racing.GiveUpReason


class Begun(NamedTuple):
    """A transaction that the fast path has begun, for all recipients.

    Attributes:
        session: In use.
        stage: How far it has come.
        strays: Replies that answered no command; see `events.StrayReply`.
    """

    session: Session
    stage: Stage
    strays: Sequence[str] = ()


class Attempt:
    """Delivers *message* to some of its recipients by *plan*; use once, by `run`.

    Args:
        context: What all messages share.
        message: What is delivered.
        plan: It has at least one candidate. A refusal is not final while one of its
            unresolved hosts is better.
        numbers: The recipients that this plan is for.
        known: What is remembered of the candidates.
        begun: What the fast path has begun, with the first candidate.
    """

    def __init__(
        self,
        context: Context,
        message: Message,
        plan: Plan,
        numbers: Iterable[int],
        known: KnownHosts = NOTHING_KNOWN,
        begun: Begun | None = None,
    ) -> None:
        self._begun = begun
        self._is_cancelled = False
        self._context = context
        self._options = context.options
        self._sessions = context.sessions
        self._message = message
        self._tell = message.trace.tell
        self._now = message.trace.now
        self._plan = plan
        self._known = known
        self._recipients = AttemptRecipients(
            message,
            plan,
            numbers,
            known,
            self._is_overruled,
            self._options.greeting_5xx,
        )
        self._failures = self._recipients.failures
        self._passed_over = self._recipients.passed_over
        self._planned = self._now()
        self._race = racing.Race(
            [self._recipients.entrant(candidate) for candidate in plan.candidates],
            self._options.race,
            # What is begun is gone on with, whatever the time.
            max(message.deadline, self._planned + 1.0 if begun else 0.0),
        )
        # They connect to a candidate, or offer it the message.
        self._tasks: dict[Candidate, asyncio.Task[None]] = {}
        # Sessions that wait to be taken.
        self._ready: dict[Candidate, Session] = {}
        self._phase: dict[Candidate, Phase] = {}
        # Of candidates that the message was offered to.
        self._tls_wanted: dict[Candidate, TlsRequirement] = {}
        # Whose session of an earlier message was over.
        self._dialled_anew: set[Candidate] = set()
        # The offer that is not concluded: one, or none.
        self._offers: dict[Candidate, Offer] = {}
        self._progress_told = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[_Reason]
        self._over = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Settle every recipient; never raises for anything a host does.

        When it is cancelled, or raises for a bug, only those recipients are settled that
        a host has, or may have.
        """
        try:
            async with asyncio.TaskGroup() as self._group:
                self._perform(self._race.begin(self._now()))
                reason = await self._over  # every candidate was dropped before it
        except BaseException:
            self._recipients.settle_stopped()
            raise
        finally:
            self._over.cancel()
            self._set_alarm(None)
            for session in self._ready.values():
                self._sessions.give_back(session)
            if self._begun is not None:  # cancelled before it was gone on with
                self._begun.session.abort()
                self._sessions.give_back(self._begun.session)
        self._recipients.settle_rest(reason, self._race.waits())

    def cancel(self, outcome: Deferred) -> None:
        """Dial no host and send no final dot any more.

        Recipients whose dot is out are settled by its reply, all others at once by
        *outcome*. `run` returns when all are settled.
        """
        if self._over.done():
            return
        self._is_cancelled = True
        at_dot = self._recipients.settle_cancelled(outcome, self._race.waits())
        if self._offers:
            self._perform(self._race.drop_others(self._now()))
        else:
            for candidate in {**self._tasks, **self._ready}:
                self._drop(candidate, None)
        for candidate, offer in self._offers.items():
            offer.over = _Reason.CAPPED
            if not at_dot:
                self._tasks[candidate].cancel()
        if not at_dot:
            self._end(_Reason.CAPPED)

    # -- the race's actions -----------------------------------------------

    def _perform(self, actions: Iterable[racing.Action]) -> None:
        """Carry out *actions*; nothing else does what the race decides."""
        for action in actions:
            if self._over.done():
                return
            match action:
                case racing.Start(candidate):
                    self._phase[candidate] = Phase.CONNECT
                    self._passed_over.started(candidate, self._now())
                    self._tell(events.CandidateStarted, candidate)
                    self._run(candidate, self._reach(candidate))
                case racing.Drop(candidate, finding):
                    self._drop(candidate, finding)
                case racing.Take(candidate):
                    self._tell(events.CandidateTaken, candidate)
                    self._run(candidate, self._offer(candidate))
                case racing.Wake(at):
                    self._set_alarm(at)
                case racing.GiveUp(reason):
                    self._end(reason)
                case racing.Doubt(candidate, finding):
                    self._tell(events.CandidateDoubted, candidate, finding)
                case _:
                    assert_never(action)

    def _drop(self, candidate: Candidate, finding: Finding | None) -> None:
        if finding is not None:
            self.record(candidate, finding)
        else:
            phase = self._phase[candidate]
            self._passed_over.dropped(candidate, self._now())
            self._tell(events.CandidateDropped, candidate, phase)
        if task := self._tasks.pop(candidate, None):
            task.cancel()
        if session := self._ready.pop(candidate, None):
            self._sessions.give_back(session)

    def _run(self, candidate: Candidate, work: Coroutine[None, None, None]) -> None:
        self._tasks[candidate] = self._group.create_task(work)

    def _set_alarm(self, at: float | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if at is not None:
            delay = max(0.0, at - self._now())
            self._alarm = asyncio.get_running_loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        try:
            self._perform(self._race.wake(self._now()))
        except Exception as exc:  # else the loop would only log it
            if self._over.done():
                raise
            self._over.set_exception(exc)

    def _end(self, reason: _Reason) -> None:
        """Let `run` come to its end."""
        if not self._over.done():
            self._over.set_result(reason)

    # -- reaching a candidate ---------------------------------------------

    async def _reach(self, candidate: Candidate) -> None:
        """Take *candidate* to ready and tell the race; handle all that fails in it."""
        is_small = self._known.needs_small_segments(candidate)
        approach = Approach(self._tls(candidate), SMALL_SEGMENT if is_small else None)
        try:
            session = self._take_idle(candidate, approach)
            if session is None:
                session = await self.open(candidate, approach)
                tell_of_detour(self._message.trace, session)
        except Exception as error:
            failed = failure(self._message.trace, self._phase[candidate], error)
            del self._tasks[candidate]
            self.record(candidate, failed.finding, failed.reply)
            is_ours = failed.finding.scope is Scope.SITE  # it says nothing of the host
            finding = None if is_ours else failed.finding
            is_crowded = (
                failed.finding.verdict in TURNED_AWAY
                and self._context.memory.is_reached(candidate)
            )
            self._perform(
                self._race.failed(
                    candidate, finding, self._now(), is_crowded=is_crowded
                )
            )
        else:
            del self._tasks[candidate]
            self._ready[candidate] = session
            self._perform(self._race.reached(candidate, Phase.READY, self._now()))

    async def open(self, candidate: Candidate, approach: Approach) -> Session:
        """Return a session that is ready; raises as `Sessions.open` does."""
        listener = self._listener(candidate)
        session = await self._sessions.open(candidate, approach, listener)
        self._note_tls(session)
        return session

    def _note_tls(self, session: Session) -> None:
        self._recipients.reached(session.candidate, session.tls)
        if session.is_secured:
            self._tell(events.Secured, session.candidate)

    def _take_idle(self, candidate: Candidate, approach: Approach) -> Session | None:
        """Return the session of an earlier message, if one fits."""
        if candidate in self._dialled_anew:
            return None
        listener = self._listener(candidate)
        session: Session | None
        if self._begun is not None:
            session = self._begun.session
            session.listener = listener
        else:
            session = self._sessions.take_idle(candidate, approach, listener)
        if session is not None:
            self._tell(events.SessionReused, candidate)
            self._entered(candidate, Phase.READY)
            self._note_tls(session)
        return session

    def _listener(self, candidate: Candidate) -> Listener:
        return Listener(
            entered=partial(self._entered, candidate),
            progressed=partial(self._progressed, candidate),
            ignored=lambda reply: self._tell(events.StrayReply, candidate, reply.text),
        )

    def _tls(self, candidate: Candidate) -> TlsRequirement:
        if candidate in self._tls_wanted:
            return self._tls_wanted[candidate]
        is_broken = self._known.is_tls_broken(candidate)
        return tls_requirement(self._options.tls.default, is_broken=is_broken)

    def _entered(self, candidate: Candidate, phase: Phase) -> None:
        """Tell of a phase once, also when the candidate is dialled a second time."""
        if phase <= self._phase[candidate]:
            return
        self._phase[candidate] = phase
        self._passed_over.entered(candidate, phase, self._now())
        self._tell(events.PhaseReached, candidate, phase)
        if phase is Phase.READY:
            return  # the race is told when we have the session
        self._perform(self._race.reached(candidate, phase, self._now()))
        if candidate not in self._tasks:
            raise asyncio.CancelledError  # dropped in answer to what it has reached

    def _progressed(self, candidate: Candidate) -> None:
        """Tell that the host goes on; not each of its quick answers."""
        now = self._now()
        if now >= self._progress_told + events.PROGRESS_TOLD:
            self._progress_told = now
            self._tell(events.Progressed, candidate)

    def record(
        self, candidate: Candidate, finding: Finding, reply: Reply | None = None
    ) -> None:
        """*candidate* has failed in this way; *reply* is what it said."""
        self._failures.failed(candidate, finding, reply)
        self._passed_over.failed(candidate)
        self._tell(events.CandidateFailed, candidate, finding)

    # -- the offer --------------------------------------------------------

    async def _offer(self, candidate: Candidate) -> None:
        """Offer the message to the winner, and judge the result."""
        session = self._ready.pop(candidate)
        self._progress_told = self._now()
        self._recipients.transfer_begins(session.tls_seconds)
        offered = self._recipients.open_to(candidate)
        stage = Stage.NOT_BEGUN
        if self._begun is not None:
            stage = self._begun.stage
            for text in self._begun.strays:
                self._tell(events.StrayReply, candidate, text)
            self._begun = None
        offer = Offer(
            self._context,
            self._message,
            self,
            session,
            self._tls(candidate),
            offered,
            stage,
        )
        if self._is_cancelled:
            offer.over = _Reason.CAPPED
        self._offers[candidate] = offer
        try:
            unfit = await offer.misfit()
            if unfit is not None:
                offer.ending = self._failures.unfit(candidate, unfit)
                self._tell(events.CandidateFailed, candidate, offer.ending)
            elif offered:
                await offer.run()
        finally:
            self._let_session_go(offer)
            if offer.void_because is None:  # else it may keep its place
                self._tell(events.CandidateLeft, candidate)
            self._tls_wanted[candidate] = offer.tls
            del self._tasks[candidate], self._offers[candidate]
        self._conclude(candidate, offered, offer)

    def _let_session_go(self, offer: Offer) -> None:
        """Give the session back, unless the reply to the dot may still come over it."""
        if offer.is_unanswered:
            if self._message.keep(offer.session, offer.in_doubt()):
                return
            offer.session.abort()
        known_until = -inf
        try:
            if offer.void_because is not None and offer.session.is_reused:
                self._sessions.was_over(offer.session)
            known_until = self._known_until(offer.candidate)
        finally:
            self._sessions.give_back(offer.session, known_until)

    def _known_until(self, candidate: Candidate) -> float:
        """Return until when such mail goes to *candidate*, on the clock."""
        context, left = self._context, self._planned + self._plan.ttl - self._now()
        due = self._known.better_is_due(candidate) - context.utc()
        return context.clock() + min(left, due)

    def _conclude(self, candidate: Candidate, offered: list[int], offer: Offer) -> None:
        """Settle the recipients that can be; the race goes on for the others."""
        now, recipients = self._now(), self._recipients
        ending, in_doubt = recipients.settle_answered(
            candidate, offered, offer.answers, offer.ending
        )
        recipients.transfer_ends()
        over = offer.over if recipients.unsettled() else _Reason.EXHAUSTED
        if offer.void_because is not None:
            if over is None and recipients.open_to(candidate):
                self._dialled_anew.add(candidate)
                self._tell(events.SessionReplaced, candidate, offer.void_because)
                self._perform(self._race.restart(now))
                return
            self._tell(events.CandidateLeft, candidate)
        if over is not None:
            self._perform(self._race.drop_others(now))
            self._end(over)
            return
        self._perform(self._race.resume(ending, now, in_doubt=in_doubt))

    def _is_overruled(self, candidate: Candidate) -> bool:
        """Return whether a refusal by *candidate* is not final, now.

        Only this decides it, and it is asked again at the end of the attempt.
        """
        return self._race.has_better_pending(candidate) or has_better(
            self._plan.unresolved, candidate
        )

    # -- what an offer asks: delivery.offer.Offerer -----------------------------

    def others_left(self) -> int:
        """Return how many other candidates may still be asked."""
        return self._race.others_left()

    def is_last_chance(self) -> bool:
        """Return whether the candidate has all its time, though others are left."""
        return self._race.is_last_chance()

    def recipients_answered(self) -> None:
        """Let the losers go when there is nothing left for them."""
        if self._recipients.are_accepted():
            self._perform(self._race.drop_others(self._now()))

    def settle(self, number: int, outcome: Outcome) -> None:
        """Give a recipient its outcome, as far as the plan lets it be."""
        self._recipients.settle(number, outcome)
