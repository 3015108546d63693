"""One attempt: a message, a plan, and the race to a host that takes it.

The shell of `mxpolicy.routing.race`. The race decides which candidate is started,
dropped and taken. This module owns the tasks and tells the race what became of them.
All runs in one event loop. The task that has something to tell calls the race itself, and
carries out its actions before it goes on.

`AttemptSessions` reaches a candidate. An `Offer` offers the message to the winner, and
`AttemptRecipients` judges the result. For those that it does not settle the race goes on.

What a host has said after the final dot stands, whatever happens to us after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import assert_never

from mxpolicy.delivery import events
from mxpolicy.delivery.attempt_recipients import AttemptRecipients
from mxpolicy.delivery.attempt_sessions import AttemptSessions, Begun
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.message import Message
from mxpolicy.delivery.offer import Offer, failure
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
from mxpolicy.routing.unresolved import has_better

__all__ = ["Attempt"]

_Reason = racing.GiveUpReason


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
        self._is_cancelled = False
        self._context = context
        self._options = context.options
        self._message = message
        self._tell = message.trace.tell
        self._now = message.trace.now
        self._plan = plan
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
        self._sessions = AttemptSessions(
            context, message, plan, known, self._recipients, self._entered, begun
        )
        self._race = racing.Race(
            [self._recipients.entrant(candidate) for candidate in plan.candidates],
            self._options.race,
            # What is begun is gone on with, whatever the time.
            max(message.deadline, self._now() + 1.0 if begun else 0.0),
        )
        # They connect to a candidate, or offer it the message.
        self._tasks: dict[Candidate, asyncio.Task[None]] = {}
        # Sessions that wait to be taken.
        self._ready: dict[Candidate, Session] = {}
        # The offer that is not concluded: one, or none.
        self._offers: dict[Candidate, Offer] = {}
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
            self._sessions.end()
            for session in self._ready.values():
                self._sessions.give_back(session)
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
                    self._sessions.start(candidate)
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
            self._sessions.drop(candidate)
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
        try:
            session = await self._sessions.reach(candidate)
        except Exception as error:
            phase = self._sessions.phase(candidate)
            failed = failure(self._message.trace, phase, error)
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

    def _entered(self, candidate: Candidate, phase: Phase) -> None:
        self._perform(self._race.reached(candidate, phase, self._now()))
        if candidate not in self._tasks:
            raise asyncio.CancelledError  # dropped in answer to what it has reached

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
        self._recipients.transfer_begins(session.tls_seconds)
        offered = self._recipients.open_to(candidate)
        offer = Offer(
            self._options,
            self._message,
            self,
            self._sessions,
            session,
            self._sessions.tls(candidate),
            offered,
            self._sessions.take(candidate),
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
            self._sessions.leave(offer)
            if offer.void_because is None:  # else it may keep its place
                self._tell(events.CandidateLeft, candidate)
            del self._tasks[candidate], self._offers[candidate]
        self._conclude(candidate, offered, offer)

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
                self._sessions.dial_anew(candidate)
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
