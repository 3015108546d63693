"""One attempt: a message, a plan, the race to a ready host, and the transactions.

The shell of `mxpolicy.routing.race`. The race decides who is started, dropped
and taken; this module owns the sockets and the tasks and tells the race what
became of them. Everything runs in one event loop, so the race is called
directly from whichever task has something to tell, and its actions are carried
out before that task goes on.

Who is settled how
    A recipient is settled when a host takes the message for it, and when a
    transaction ends that finally refused it or left it in doubt at a host for the
    first time. A refusal from a worse host while a better one is merely slow is kept,
    and so is a doubt that is not the first; the race goes on for that recipient. What
    is unsettled at the end is settled by `failures.combine` from all that was seen.

    What a host has said after the final dot stands, whatever happens to us after
    it: an exception of our own, or the end of our task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Protocol, assert_never

from mxpolicy.delivery import events, trouble
from mxpolicy.delivery.approach import SMALL_SEGMENT, Approach
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.dialogue import Listener, SessionFailed
from mxpolicy.delivery.envelope import Envelope
from mxpolicy.delivery.events import Delays
from mxpolicy.delivery.failures import Failures
from mxpolicy.delivery.journal import host_of
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.plan import Plan
from mxpolicy.delivery.session import Session
from mxpolicy.delivery.trace import Trace
from mxpolicy.delivery.transaction import DOT_TIME, Transaction, TransactionResult
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Deferred, Outcome
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import Reply, printable
from mxpolicy.routing import race as racing
from mxpolicy.routing.candidate import (
    Awaited,
    Candidate,
    Finding,
    Phase,
    Scope,
    Verdict,
    Wait,
)
from mxpolicy.routing.known_hosts import NOTHING_KNOWN, KnownHosts
from mxpolicy.routing.tls_requirement import (
    TlsRequirement,
    tls_requirement,
    wanted_by_host,
)
from mxpolicy.routing.unresolved import has_better

__all__ = ["Attempt", "Journal", "OutOfTime"]

# A silent host is never left sooner than this in the transaction, however many
# others wait: the reply to RCPT may depend on a call-out to a third host.
SHORTEST_PATIENCE = 10.0

# Seconds for a second connection to a host that did not take the message over the first
# one: to connect and to greet, TLS included.
RETRY_TIME = 60.0

_Reason = racing.GiveUpReason

# (recipient's index, outcome, delays, what was tried)
Settle = Callable[[int, Outcome, Delays, tuple[str, ...]], None]


class Journal(Protocol):
    """What an attempt tells and asks the journal: `mxpolicy.delivery.claims.Claims`.

    A *relay* is a candidate's text, ``host[address]:port``.
    """

    def doubts(self, index: int) -> Mapping[str, int]:
        """{relay: how often it may have got the message for this recipient}."""

    def note_doubt(self, indices: Iterable[int], relay: str) -> None:
        """*relay* saw the final dot for these recipients, and has not answered it."""

    def has_memory(self) -> bool:
        """Whether what is noted outlives this process, as far as can be told."""

    def waits(self, index: int) -> Mapping[tuple[str, str], float]:
        """{(relay, `Awaited`'s word): seconds waited in vain before}.

        By relay, not by host: a patient sender waits for each address.
        """

    def note_wait(
        self, indices: Iterable[int], relay: str, awaited: str, seconds: float
    ) -> None:
        """So many *seconds* more; the keys as in `waits`."""

    async def dot_is_next(self, relay: str, indices: Iterable[int]) -> None:
        """Called before each final dot, which is sent when it has returned.

        Raises:
            LocalTrouble: It is not to be sent.
        """


class OutOfTime(LocalTrouble):
    """Too little time is left for the final dot; it was not sent."""


class Attempt:
    """Deliver one message to *recipients* over *plan*; use once, by `run`.

    Args:
        context: The engine's.
        trace: The message's. All times are as its `now`.
        plan: Has at least one candidate. A refusal is not final while one of its
            unresolved hosts is better.
        envelope: The whole envelope.
        recipients: Indices into it: those this plan is for.
        mail_data: Readable any number of times.
        deadline: Until then hosts are asked and mail data is sent; the
            final dot is not sent later, and its reply has `DOT_TIME` more.
        settle: Called once for each of *recipients*, as soon as its outcome is known.
        journal: What became of this message before, and becomes of it now.
        known: What is remembered of the candidates.
        may_send_dot: Asked before the mail data is sent, and again just before the final
            dot, which makes the message the host's (RFC 5321 §4.1.1.4).
        ends: When the mail server stops listening. A dot whose reply may come after it
            is not sent.
    """

    def __init__(
        self,
        context: Context,
        trace: Trace,
        plan: Plan,
        envelope: Envelope,
        recipients: Iterable[int],
        mail_data: MailData,
        *,
        deadline: float,
        settle: Settle,
        journal: Journal,
        may_send_dot: Callable[[], Awaitable[bool]],
        known: KnownHosts = NOTHING_KNOWN,
        ends: float = inf,
    ) -> None:
        self._context = context
        self._options = context.options
        self._supplier = context.sessions
        self._trace = trace
        self._tell = trace.tell
        self._now = trace.now
        self._plan = plan
        self._known = known
        self._envelope = envelope
        self._mail_data = mail_data
        self._planned = trace.now()
        self._deadline = deadline
        self._last_dot = min(deadline, ends - DOT_TIME)
        self._unsettled = set(recipients)
        self._report = settle
        self._journal = journal
        self._may_send_dot = may_send_dot
        self._race = racing.Race(
            [self._entry(candidate) for candidate in plan.candidates],
            self._options.race,
            deadline,
        )
        self._failures = Failures(self._is_overruled, self._options.greeting_5xx)
        # Tasks that reach for a candidate, or offer it the message.
        self._runners: dict[Candidate, asyncio.Task[None]] = {}
        # Ready: waiting to be taken.
        self._sessions: dict[Candidate, Session] = {}
        self._phase: dict[Candidate, Phase] = {}
        # Of those that would not have the message in clear.
        self._wanted_tls: dict[Candidate, TlsRequirement] = {}
        # Of transactions that are not concluded: one, or none.
        self._results: dict[Candidate, TransactionResult] = {}
        # Why no other host is asked after a transaction that we had to end ourselves.
        self._hopeless: _Reason | None = None
        self._delays = Delays(dns=self._planned)
        self._transfer_began = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[_Reason]
        self._over = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Settle every recipient; never raises for anything a host does.

        When it is cancelled, or raises for a bug, those whom a host has taken,
        or may have taken, are settled all the same, and nobody else.
        """
        try:
            async with asyncio.TaskGroup() as self._group:
                self._perform(self._race.begin(self._now()))
                reason = await self._over  # everybody was dropped before it
        except BaseException:
            self._settle_what_hosts_have()
            raise
        finally:
            self._over.cancel()
            self._set_alarm(None)
            for session in self._sessions.values():
                self._supplier.give_back(session)
        self._note_waits(self._unsettled)
        for index in sorted(self._unsettled):
            self._settle(index, self._failures.combine(index, reason))

    def cancel(self, outcome: Deferred) -> None:
        """Dial no host and send no final dot any more.

        Those whose dot is out are settled by what becomes of it, all others at once by
        *outcome*. `run` returns when all are settled.
        """
        if self._over.done():
            return
        results = self._results.values()
        at_dot = {index for result in results for index in result.in_doubt}
        others = self._unsettled - at_dot
        self._note_waits(others)
        in_doubt = self._failures.all_in_doubt()
        for index in sorted(others):
            self._settle(index, in_doubt.get(index, outcome))
        self._hopeless = _Reason.CAPPED
        if self._results:  # a candidate is taken
            self._perform(self._race.settled(self._now()))
        else:
            for candidate in {**self._runners, **self._sessions}:
                self._drop(candidate, None)
        if not at_dot:
            for candidate in self._results:
                self._runners[candidate].cancel()
            self._end(_Reason.CAPPED)

    def _entry(self, candidate: Candidate) -> racing.Entry:
        doubts = [
            _doubts_at(candidate, self._journal.doubts(index))
            for index in self._unsettled
        ]
        at_host, here = max(doubts, default=(0, 0))
        of_all, _ = min(doubts, default=(0, 0))
        waits = [self._journal.waits(index) for index in self._unsettled]
        # Where recipients have waited differently, what all of them have.
        least = {
            awaited: min(
                (one.get((str(candidate), awaited.value), 0.0) for one in waits),
                default=0.0,
            )
            for awaited in Awaited
        }
        entry = self._known.entry(candidate)
        return entry._replace(
            doubts=at_host, doubts_here=here, doubts_of_all=of_all, waits=least
        )

    def _note_waits(self, indices: Iterable[int]) -> None:
        """Tell the journal, for *indices*, which candidates we waited for in vain."""
        for candidate, waits in self._race.waits().items():
            for awaited, seconds in waits.items():
                self._journal.note_wait(indices, str(candidate), awaited.value, seconds)

    # -- the race's actions -----------------------------------------------

    def _perform(self, actions: Iterable[racing.Action]) -> None:
        """Carry out what the race wants; the one place where it gets its way."""
        for action in actions:
            if self._over.done():
                return
            match action:
                case racing.Start(candidate):
                    self._start(candidate)
                case racing.Drop(candidate, finding):
                    self._drop(candidate, finding)
                case racing.Take(candidate):
                    self._take(candidate)
                case racing.Wake(at):
                    self._set_alarm(at)
                case racing.GiveUp(reason):
                    self._end(reason)
                case racing.Doubt(candidate, finding):
                    self._tell(events.CandidateDoubted, candidate, finding)
                case _:
                    assert_never(action)

    def _start(self, candidate: Candidate) -> None:
        self._phase[candidate] = Phase.CONNECT
        self._tell(events.CandidateStarted, candidate)
        self._run(candidate, self._reach(candidate))

    def _drop(self, candidate: Candidate, finding: Finding | None) -> None:
        if finding is not None:
            self._record(candidate, finding)
        else:
            phase = self._phase[candidate]
            self._tell(events.CandidateDropped, candidate, phase)
        runner = self._runners.pop(candidate, None)
        if runner is not None:
            runner.cancel()
        session = self._sessions.pop(candidate, None)
        if session is not None:
            self._supplier.give_back(session)

    def _take(self, candidate: Candidate) -> None:
        self._tell(events.CandidateTaken, candidate)
        self._run(candidate, self._transact(candidate))

    def _run(self, candidate: Candidate, work: Coroutine[None, None, None]) -> None:
        self._runners[candidate] = self._group.create_task(work)

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
        except Exception as exc:  # a callback's exception would reach nobody
            if self._over.done():
                raise
            self._over.set_exception(exc)

    def _end(self, reason: _Reason) -> None:
        """Let `run` come to its end."""
        if not self._over.done():
            self._over.set_result(reason)

    # -- reaching a candidate ---------------------------------------------

    async def _reach(self, candidate: Candidate) -> None:
        """Take *candidate* to ready and tell the race; the owner of its whole trouble."""
        try:
            session = await self._open(candidate, self._approach(candidate))
            self._tell_of_detour(session)
        except Exception as error:
            failed = self._failure(self._phase[candidate], error)
            del self._runners[candidate]
            self._record(candidate, failed.finding, failed.reply)
            is_ours = failed.finding.scope is Scope.SITE  # says nothing against it
            finding = None if is_ours else failed.finding
            self._perform(self._race.failed(candidate, finding, self._now()))
        else:
            del self._runners[candidate]
            self._sessions[candidate] = session
            self._perform(self._race.reached(candidate, Phase.READY, self._now()))

    async def _open(self, candidate: Candidate, approach: Approach) -> Session:
        listener = Listener(
            entered=partial(self._entered, candidate),
            progressed=partial(self._tell, events.Progressed, candidate),
            ignored=lambda reply: self._tell(events.StrayReply, candidate, reply.text),
        )
        session = await self._supplier.open(candidate, approach, listener)
        if session.is_secured:
            self._tell(events.Secured, candidate)
        return session

    def _approach(self, candidate: Candidate) -> Approach:
        """Return how *candidate* is reached first."""
        is_small = self._known.needs_small_segments(candidate)
        return Approach(self._tls(candidate), SMALL_SEGMENT if is_small else None)

    def _tls(self, candidate: Candidate) -> TlsRequirement:
        if candidate in self._wanted_tls:
            return self._wanted_tls[candidate]
        is_broken = self._known.is_tls_broken(candidate)
        return tls_requirement(self._options.tls.default, is_broken=is_broken)

    def _tell_of_detour(self, session: Session) -> None:
        """Tell that the ordinary way had failed and another one has not."""
        is_small = session.approach.segment_size is not None
        in_clear = session.approach.had_to_be_in_clear
        if is_small or in_clear:
            self._tell(events.WorkedAround, session.candidate, is_small, in_clear)

    def _entered(self, candidate: Candidate, phase: Phase) -> None:
        """Tell of a phase once, also when the candidate is dialled a second time."""
        if phase <= self._phase[candidate]:
            return
        self._phase[candidate] = phase
        self._tell(events.PhaseReached, candidate, phase)
        if phase is Phase.READY:
            return  # the race is told when the session is in our hands
        self._perform(self._race.reached(candidate, phase, self._now()))
        if candidate not in self._runners:
            raise asyncio.CancelledError  # dropped in answer to what it has reached

    def _failure(self, phase: Phase, error: Exception) -> SessionFailed:
        """Return how a session failed by *error* in *phase*; tell of a bug of ours."""
        if isinstance(error, SessionFailed):
            return error
        if not isinstance(error, LocalTrouble):
            self._trace.trouble(error)
        return SessionFailed(_own_finding(phase, error))

    def _record(
        self, candidate: Candidate, finding: Finding, reply: Reply | None = None
    ) -> None:
        self._failures.failed(candidate, finding, reply)
        self._tell(events.CandidateFailed, candidate, finding)

    def _is_overruled(self, candidate: Candidate) -> bool:
        """Return whether a refusal by *candidate* is not final, now.

        The one place where that is decided; asked again at the end of the attempt.
        """
        return self._race.has_better_pending(candidate) or has_better(
            self._plan.unresolved, candidate
        )

    # -- the transaction --------------------------------------------------

    async def _transact(self, candidate: Candidate) -> None:
        """Offer the message to the winner; the owner of its whole trouble."""
        session = self._sessions.pop(candidate)
        self._begin_transfer(session)
        wanted = self._failures.open_to(candidate, sorted(self._unsettled))
        offer = _Offer(session, wanted)
        self._results[candidate] = offer.result
        try:
            unfit = self._misfit(session, wanted)
            if unfit is not None:
                offer.ending = self._failures.unfit(candidate, unfit)
                self._tell(events.CandidateFailed, candidate, offer.ending)
            elif wanted:
                await self._offer(offer)
                await self._offer_past_a_stall(offer)
                await self._offer_under_tls(offer)
        except BaseException:
            offer.session.abort()
            raise
        finally:
            self._supplier.give_back(offer.session)
            del self._runners[candidate]
        self._conclude(candidate, wanted, offer.result, offer.ending)

    async def _offer_past_a_stall(self, offer: _Offer) -> None:
        """Offer it again, by other approaches, where what we sent did not arrive.

        To the same host, before any other: it is the best one that is there, was
        alive a moment ago, and has not seen a dot.
        """
        candidate = offer.session.candidate
        while offer.has_stalled and offer.left() and self._hopeless is None:
            others_left = bool(self._race.others_left())
            approach = offer.session.approach.after_stall(others_left=others_left)
            if approach is None:
                return
            try:
                await self._reopen(offer, approach._replace(tls=self._tls(candidate)))
            except SessionFailed as failed:
                if failed.finding.full:  # else that it stalled has been said
                    self._record(candidate, failed.finding, failed.reply)
                return
            await self._offer(offer)
            if offer.ending is None:
                self._tell_of_detour(offer.session)

    async def _offer_under_tls(self, offer: _Offer) -> None:
        """Offer it once more under TLS, where it was refused for being in clear.

        We came in clear by our own choice: TLS had failed, for want of one packet
        perhaps, or the memory knew no better. Such a refusal says nothing of the mail:
        when TLS fails again, it is deferred.
        """
        session, result = offer.session, offer.result
        if not session.might_have_tls:
            return
        said = result.take_back_for_want_of_tls()
        if said is None or not offer.left():
            return
        candidate = session.candidate
        tls = self._wanted_tls[candidate] = wanted_by_host(said.text)
        self._tell(events.TlsWanted, candidate, said.text)
        if result.in_doubt or self._hopeless is not None:
            # Another dot is not sent now: the next attempt begins with TLS.
            finding = Finding(Verdict.TLS_FAILED, Phase.TLS, 0.0)
            self._record(candidate, tls.unmet(finding))
            return
        try:
            await self._reopen(offer, Approach(tls, session.approach.segment_size))
        except SessionFailed as failed:
            reply = failed.reply if failed.finding.phase is Phase.TLS else None
            offer.ending = tls.unmet(failed.finding)
            self._record(candidate, offer.ending, reply)
            return
        await self._offer(offer)
        await self._offer_past_a_stall(offer)

    async def _reopen(self, offer: _Offer, approach: Approach) -> None:
        """Go on with another session to the same host, after the end of this one.

        Raises:
            SessionFailed: There is none; not in full where our time was up.
        """
        old, began = offer.session, self._now()
        old.quit()
        try:
            async with asyncio.timeout(min(RETRY_TIME, self._time_left())):
                offer.session = await self._open(old.candidate, approach)
        except LocalTrouble as error:
            raise self._failure(Phase.CONNECT, error) from error
        except TimeoutError:
            waited = self._now() - began
            wait = Wait(Awaited.TLS, waited)
            raise SessionFailed(
                Finding(Verdict.TLS_SILENT, Phase.TLS, waited, full=False, wait=wait)
            ) from None
        self._supplier.give_back(old)

    def _begin_transfer(self, session: Session) -> None:
        self._transfer_began = self._now()
        self._delays = Delays(
            dns=self._planned,
            reach=self._transfer_began - self._planned - session.tls_seconds,
            tls=session.tls_seconds,
        )

    def _misfit(self, session: Session, wanted: list[int]) -> trouble.Misfit | None:
        return trouble.misfit(
            session.extensions,
            size=self._mail_data.size,
            needs_smtputf8=self._envelope.needs_smtputf8(wanted),
            masked=session.is_masked,
        )

    async def _offer(self, offer: _Offer) -> None:
        """Run the transaction for those that are left, and note how the session broke."""
        transaction = Transaction(
            offer.session,
            self._envelope,
            offer.left(),
            self._mail_data,
            self,
            offer.result,
            long_lines=self._options.long_lines,
            progress=self._options.transaction.body_progress,
        )
        offer.ending = None
        try:
            await transaction.run()
        except Exception as error:
            if isinstance(error, LocalTrouble):
                late = isinstance(error, OutOfTime)
                self._hopeless = _Reason.DEADLINE if late else _Reason.CAPPED
            failed = self._failure(Phase.TRANSACTION, error)
            offer.session.abort()
            offer.ending, offer.result.goodbye = failed.finding, failed.reply
            self._record(offer.session.candidate, failed.finding, failed.reply)

    def _conclude(
        self,
        candidate: Candidate,
        wanted: list[int],
        result: TransactionResult,
        ending: Finding | None,
    ) -> None:
        """Settle who can be settled; the race goes on for the others."""
        now = self._now()
        waited = now - self._transfer_began
        self._delays = self._delays._replace(transfer=waited)
        self._settle_taken(candidate, result, ending)
        del self._results[candidate]
        alone = len(wanted) == 1
        undecided = self._settle_refused(candidate, result, waited, alone)
        over = self._hopeless if self._unsettled else _Reason.EXHAUSTED
        if over is not None:
            self._perform(self._race.settled(now))
            self._end(over)
            return
        if ending is None and undecided:
            ending = trouble.ending(undecided, waited=waited, alone=alone)
        elif ending is None:
            # Those left were not offered: they have a refusal from a better host.
            ending = Finding(Verdict.PERMANENT, Phase.TRANSACTION, waited)
        in_doubt = bool(result.in_doubt)
        self._perform(self._race.resume(ending, now, in_doubt=in_doubt))

    def _settle_taken(
        self, candidate: Candidate, result: TransactionResult, ending: Finding | None
    ) -> None:
        relay = str(candidate)
        for index in result.delivered.keys() & self._unsettled:  # `taken` has failed
            self._settle(index, trouble.delivered(result.delivered[index], relay))
        for index in sorted(result.in_doubt):
            assert ending is not None, "a dot without an answer is a broken session"
            self._doubt(candidate, index, trouble.in_doubt(ending, relay))

    def _doubt(self, candidate: Candidate, index: int, outcome: Deferred) -> None:
        """Settle a recipient for which *candidate* may have the message, or go on.

        The first time no other host is asked: it would be a second copy. A host that
        does not answer the second time may never do so; then others may have a copy.
        Without a state file each time would be the first, and the host would keep the
        message from all others: then they are asked at once, as smtp(8) does it.
        """
        at_host, _ = _doubts_at(candidate, self._journal.doubts(index))
        is_first = not at_host and self._journal.has_memory()
        self._journal.note_doubt([index], str(candidate))
        if is_first:
            self._settle(index, outcome)
        else:
            self._failures.in_doubt(index, outcome)

    def _settle_refused(
        self,
        candidate: Candidate,
        result: TransactionResult,
        waited: float,
        alone: bool,
    ) -> list[tuple[Verb, Reply]]:
        """Settle those whose refusal is final; return what the others were told."""
        undecided = []
        for index, (verb, reply) in result.refused.items():
            refusal = self._failures.refused(
                candidate, index, verb, reply, waited=waited, alone=alone
            )
            if refusal is None:
                undecided.append((verb, reply))
            else:
                self._settle(index, refusal)
        return undecided

    # -- what a transaction asks: delivery.transaction.Control --------------

    def patience(self, standard: float) -> float:
        """Return the seconds to wait for a reply: fewer when others are waiting.

        Never under `SHORTEST_PATIENCE`, and never past the deadline. A host that has
        only outlasted this patience is asked again, with all its time.
        """
        left = max(0.0, self._deadline - self._now())
        others = self._race.others_left()
        if not others or self._race.is_last_chance():
            return min(standard, left)
        share = min(self._options.transaction.silence, left / others)
        return min(standard, left, max(SHORTEST_PATIENCE, share))

    def _time_left(self) -> float:
        return max(0.0, self._last_dot - self._now())

    def time_before_dot(self) -> float:
        """Return the seconds in which the final dot may still be sent (see `Control`)."""
        left = self._time_left()
        if not left:
            raise OutOfTime("too little time is left for the end of the mail data")
        return left

    async def recipients_answered(
        self, result: TransactionResult, accepted: Sequence[int]
    ) -> None:
        """Let the losers go when there is nothing left for them (see `Control`)."""
        if not self._unsettled - result.accepted:
            self._perform(self._race.settled(self._now()))
        if accepted:  # else the mail data would be sent for nothing
            await self._permit_dot()

    async def dot_is_next(
        self, candidate: Candidate, recipients: Sequence[int]
    ) -> None:
        """Let the owner of the message know, and ask it (see `Control`)."""
        await self._journal.dot_is_next(str(candidate), recipients)
        await self._permit_dot()

    async def _permit_dot(self) -> None:
        if self._hopeless is not None:
            raise LocalTrouble("the delivery was cancelled")
        may_send = False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._time_left()):
                may_send = await self._may_send_dot()
        self.time_before_dot()
        if not may_send:
            raise LocalTrouble("the mail server that started us has gone away")

    def taken(
        self, candidate: Candidate, recipients: Sequence[int], reply: Reply
    ) -> None:
        """Settle *recipients* at once: nothing that comes now can undo it."""
        transfer = self._now() - self._transfer_began
        self._delays = self._delays._replace(transfer=transfer)
        for index in recipients:
            self._settle(index, trouble.delivered(reply, str(candidate)))

    # -- the end of each recipient ------------------------------------------

    def _settle(self, index: int, outcome: Outcome) -> None:
        self._report(index, outcome, self._delays, self._failures.tried(index))
        self._unsettled.discard(index)

    def _settle_what_hosts_have(self) -> None:
        """Settle those for whom a dot was out when something stopped us.

        A bug, or that our task was cancelled.
        """
        outcomes: dict[int, Outcome] = dict(self._failures.all_in_doubt())
        for candidate, result in self._results.items():
            relay = str(candidate)
            outcomes |= {
                index: trouble.delivered(reply, relay)
                for index, reply in result.delivered.items()
            }
            stopped = Finding(
                Verdict.CLOSED, Phase.DOT, 0.0, Scope.SITE, text="stopped by ourselves"
            )
            self._journal.note_doubt(result.in_doubt, relay)
            outcomes |= dict.fromkeys(result.in_doubt, trouble.in_doubt(stopped, relay))
        for index in self._unsettled & outcomes.keys():
            self._report(index, outcomes[index], self._delays, ())
            self._unsettled.discard(index)


class _Offer:
    """The message as it is offered to one candidate, over one session after another.

    Attributes:
        session: The one that is used now, or was used last.
        wanted: Indices of the recipients it is offered for.
        result: What was answered.
        ending: How *session* broke, None if it did not.
    """

    __slots__ = ("ending", "result", "session", "wanted")

    def __init__(self, session: Session, wanted: list[int]) -> None:
        self.session = session
        self.wanted = wanted
        self.result = TransactionResult()
        self.ending: Finding | None = None

    @property
    def has_stalled(self) -> bool:
        """Whether the host acknowledged nothing more."""
        return self.ending is not None and self.ending.verdict is Verdict.STALLED

    def left(self) -> list[int]:
        """Return those of whom nothing is decided."""
        return self.result.unsettled(self.wanted)


def _doubts_at(candidate: Candidate, doubts: Mapping[str, int]) -> tuple[int, int]:
    """Return how often *candidate*'s host was in doubt, and how often it itself."""
    at_host = sum(
        times for relay, times in doubts.items() if host_of(relay) == candidate.host
    )
    return at_host, doubts.get(str(candidate), 0)


def _own_finding(phase: Phase, error: Exception) -> Finding:
    """Return the finding for our own trouble: it is about nobody else."""
    verdict = Verdict.SILENT if isinstance(error, OutOfTime) else Verdict.CLOSED
    text = printable(str(error) or type(error).__name__)
    return Finding(verdict, phase, 0.0, Scope.SITE, text=text)
