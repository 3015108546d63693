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
from math import inf
from typing import Protocol, assert_never

from mxpolicy.delivery import events, trouble
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.dialogue import SessionFailed
from mxpolicy.delivery.envelope import Envelope
from mxpolicy.delivery.events import Delays
from mxpolicy.delivery.failures import Failures
from mxpolicy.delivery.journal import host_of
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.opening import TlsUse, Way, open_session
from mxpolicy.delivery.plan import Plan
from mxpolicy.delivery.session import Session
from mxpolicy.delivery.trace import Trace
from mxpolicy.delivery.transaction import TransactionResult
from mxpolicy.errors import LocalTrouble
from mxpolicy.options import TlsLevel
from mxpolicy.outcome import Deferred, Outcome
from mxpolicy.protocol.smtp_states import State, Verb, facts
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
from mxpolicy.routing.unresolved import has_better

__all__ = ["DOT_TIME", "Attempt", "Journal", "OutOfTime"]

# RFC 5321 §4.5.3.2.6: a sender that gives up on the final dot sooner makes duplicates.
# So the deadline is for sending it; its reply has these seconds more.
DOT_TIME = facts(State.DOT).timeout
# A silent host is never left sooner than this in the transaction, however many
# others wait: the reply to RCPT may depend on a call-out to a third host.
SHORTEST_PATIENCE = 10.0

# Seconds for a second connection to a host whose path has swallowed the first one's
# packets: to connect and to greet, TLS included.
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
        # Ready: waiting to be taken, or taken.
        self._sessions: dict[Candidate, Session] = {}
        self._phase: dict[Candidate, Phase] = {}
        # Those that would not have the message in clear.
        self._tls_only: set[Candidate] = set()
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
            self._set_alarm(None)
            for session in self._sessions.values():
                session.quit()
        self._note_waits()
        for index in sorted(self._unsettled):
            self._settle(index, self._failures.combine(index, reason))

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

    def _note_waits(self) -> None:
        """Tell the journal, for the unsettled, which candidates we waited for in vain."""
        for candidate, waits in self._race.waits().items():
            for awaited, seconds in waits.items():
                self._journal.note_wait(
                    self._unsettled, str(candidate), awaited.value, seconds
                )

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
            session.quit()

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
            small = self._known.needs_small_segments(candidate)
            way = Way.SMALL_SEGMENTS if small else Way.ORDINARY
            session = await self._open(candidate, way)
            self._tell_of_detour(session)
        except SessionFailed as failed:
            self._failed(candidate, failed.finding, failed.reply)
        except LocalTrouble as failed:
            self._spoilt(candidate, failed)
        except Exception as failed:
            self._trace.trouble(failed)
            self._spoilt(candidate, failed)
        else:
            del self._runners[candidate]
            self._sessions[candidate] = session
            self._perform(self._race.reached(candidate, Phase.READY, self._now()))

    async def _open(self, candidate: Candidate, way: Way) -> Session:
        session = await open_session(
            self._context,
            candidate,
            lambda phase: self._entered(candidate, phase),
            way,
            self._tls_use(candidate),
            on_stray=lambda reply: self._tell(events.StrayReply, candidate, reply.text),
        )
        if session.is_secured:
            self._tell(events.Secured, candidate)
        return session

    def _tls_use(self, candidate: Candidate) -> TlsUse:
        if candidate in self._tls_only:
            return TlsUse.ONLY
        is_broken = self._known.is_tls_broken(candidate)
        return TlsUse.LEFT_OUT if is_broken else TlsUse.TRIED

    def _tell_of_detour(self, session: Session) -> None:
        """Tell that the ordinary way had failed and another one has not."""
        if session.has_small_segments or session.had_to_be_in_clear:
            self._tell(
                events.WorkedAround,
                session.candidate,
                session.has_small_segments,
                session.had_to_be_in_clear,
            )

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

    def _failed(
        self, candidate: Candidate, finding: Finding, reply: Reply | None = None
    ) -> None:
        del self._runners[candidate]
        self._record(candidate, finding, reply)
        self._perform(self._race.failed(candidate, finding, self._now()))

    def _spoilt(self, candidate: Candidate, error: Exception) -> None:
        """Our own trouble kept us from *candidate*; nothing is said against it."""
        del self._runners[candidate]
        self._record(candidate, _own_finding(self._phase[candidate], error))
        self._perform(self._race.failed(candidate, None, self._now()))

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
        session = self._sessions[candidate]
        self._begin_transfer(session)
        wanted = self._failures.open_to(candidate, sorted(self._unsettled))
        result = TransactionResult()
        self._results[candidate] = result
        ending = None
        try:
            unfit = self._misfit(session, wanted)
            if unfit is not None:
                ending = self._failures.unfit(candidate, unfit)
                self._tell(events.CandidateFailed, candidate, ending)
            elif wanted:
                ending = await self._offer(session, wanted, result)
                ending = await self._offer_past_a_stall(session, wanted, result, ending)
                ending = await self._offer_under_tls(candidate, wanted, result, ending)
            self._sessions[candidate].quit()  # unless it was aborted
        except BaseException:
            self._sessions[candidate].abort()
            raise
        finally:
            del self._sessions[candidate], self._runners[candidate]
        self._conclude(candidate, wanted, result, ending)

    async def _offer_past_a_stall(
        self,
        session: Session,
        wanted: list[int],
        result: TransactionResult,
        ending: Finding | None,
    ) -> Finding | None:
        """Offer it again, in other ways, where what we sent did not arrive.

        To the same host, before anybody else: it is the best one that is there, was
        alive a moment ago, and has not seen a dot. Returns how the last session broke.
        """
        candidate = session.candidate
        for way in (Way.SMALL_SEGMENTS, Way.DOT_UNSEEN):
            left = result.unsettled(wanted)
            if ending is None or ending.verdict is not Verdict.STALLED or not left:
                break
            if way is Way.SMALL_SEGMENTS and session.has_small_segments:
                continue
            if way is Way.DOT_UNSEEN and self._race.others_left():
                break  # they may do better than a dot that leaves us in doubt
            again = await self._open_again(candidate, way)
            if not isinstance(again, Session):
                break
            session = self._sessions[candidate] = again
            ending = await self._offer(session, left, result)
            if ending is None:
                self._tell_of_detour(session)
        return ending

    async def _offer_under_tls(
        self,
        candidate: Candidate,
        wanted: list[int],
        result: TransactionResult,
        ending: Finding | None,
    ) -> Finding | None:
        """Offer it once more under TLS, where it was refused for being in clear.

        We came in clear by our own choice: TLS had failed, for want of one packet
        perhaps, or the memory knew no better. A refusal of that is none of the mail:
        when TLS fails again, it is deferred. Returns how the last session broke.
        """
        session = self._sessions[candidate]
        is_our_choice = self._options.tls.default is not TlsLevel.NONE
        if not (is_our_choice and session.might_have_tls):
            return ending
        left, reply = result.take_back_for_want_of_tls(wanted)
        if reply is None or not left:
            return ending
        self._tls_only.add(candidate)
        self._tell(events.TlsWanted, candidate, reply.text)
        said = f"in clear it said {reply.text}"
        if result.in_doubt or self._hopeless is not None:
            # Another dot is not sent now: the next attempt begins with TLS.
            self._record(
                candidate, Finding(Verdict.TLS_FAILED, Phase.TLS, 0.0, text=said)
            )
            return ending
        session.quit()
        way = Way.SMALL_SEGMENTS if session.has_small_segments else Way.ORDINARY
        again = await self._open_again(candidate, way, said)
        if isinstance(again, Finding):
            return again
        self._sessions[candidate] = again
        ending = await self._offer(again, left, result)
        return await self._offer_past_a_stall(again, left, result, ending)

    async def _open_again(
        self, candidate: Candidate, way: Way, remark: str = ""
    ) -> Session | Finding:
        """Return another session, or the finding, with *remark*, why there is none."""
        began, reply = self._now(), None
        try:
            async with asyncio.timeout(min(RETRY_TIME, self.time_before_dot())):
                return await self._open(candidate, way)
        except SessionFailed as failed:
            finding, reply = failed.finding, failed.reply
            if remark and finding.phase < Phase.TLS:
                # Perhaps for the sake of the first connection, as in `opening`.
                text = f"the second connection: {failed}"
                finding = Finding(
                    Verdict.TLS_FAILED, Phase.TLS, finding.waited, text=text
                )
                reply = None
        except LocalTrouble as failed:
            finding = _own_finding(Phase.CONNECT, failed)
        except TimeoutError:
            waited = self._now() - began
            wait = Wait(Awaited.TLS, waited)
            finding = Finding(
                Verdict.TLS_SILENT, Phase.TLS, waited, full=False, wait=wait
            )
            if not remark:
                return finding  # that it stalled has been said
        text = "; ".join(filter(None, (finding.text, remark)))
        finding = finding._replace(text=printable(text))
        self._record(candidate, finding, reply)
        return finding

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

    async def _offer(
        self, session: Session, wanted: list[int], result: TransactionResult
    ) -> Finding | None:
        """Run the transaction; return how the session broke, None if it did not."""
        reply = None
        try:
            await session.transact(
                self._envelope,
                wanted,
                self._mail_data,
                long_lines=self._options.long_lines,
                body_progress=self._options.transaction.body_progress,
                control=self,
                result=result,
            )
        except SessionFailed as failed:
            finding, reply = failed.finding, failed.reply
        except LocalTrouble as failed:
            late = isinstance(failed, OutOfTime)
            self._hopeless = _Reason.DEADLINE if late else _Reason.CAPPED
            finding = _own_finding(Phase.TRANSACTION, failed)
        except Exception as failed:
            self._trace.trouble(failed)
            finding = _own_finding(Phase.TRANSACTION, failed)
        else:
            return None
        session.abort()
        result.goodbye = reply
        self._record(session.candidate, finding, reply)
        return finding

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

    # -- what a transaction asks: delivery.session.Control ------------------

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

    def time_before_dot(self) -> float:
        """Return the seconds in which the final dot may still be sent."""
        return max(0.0, self._last_dot - self._now())

    def patience_at_dot(self) -> float:
        """Return the seconds to wait for the reply to the final dot."""
        return DOT_TIME

    def progressed(self, candidate: Candidate) -> None:
        """Tell that the host of the transaction goes on (see `Control`)."""
        self._tell(events.Progressed, candidate)

    def recipients_answered(self, result: TransactionResult) -> None:
        """Let the losers go when nobody is left for them."""
        open_questions = self._unsettled - result.accepted
        if not open_questions:
            self._perform(self._race.settled(self._now()))

    async def dot_is_next(self, relay: str, recipients: Sequence[int]) -> None:
        """Let the owner of the message know (see `Control`)."""
        await self._journal.dot_is_next(relay, recipients)

    def taken(self, relay: str, recipients: Sequence[int], reply: Reply) -> None:
        """Settle *recipients* at once: nothing that comes now can undo it."""
        transfer = self._now() - self._transfer_began
        self._delays = self._delays._replace(transfer=transfer)
        for index in recipients:
            self._settle(index, trouble.delivered(reply, relay))

    async def permit_dot(self) -> None:
        """Raise when the final dot must not be sent (see `Control`)."""
        may_send = False
        with suppress(TimeoutError):
            async with asyncio.timeout(self.time_before_dot()):
                may_send = await self._may_send_dot()
        if not self.time_before_dot():
            raise OutOfTime("too little time is left for the end of the mail data")
        if not may_send:
            raise LocalTrouble("the mail server that started us has gone away")

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
