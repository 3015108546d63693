"""The offer of a message to one host that is ready: the shell of the transaction.

The time before *ready* is the race's. From there to the reply to the dot it is an
`Offer`'s. It runs transactions and opens sessions, while the host may still take the
message:

1. MAIL to dot over the session that has won the race.
2. Where the host stopped acknowledging: by other approaches (`Approach.after_stall`).
3. Where the host refused the message for being in clear: once more under TLS.

The settlement and `Offer.answers` have the answers. `mxpolicy.delivery.attempt` decides
what they mean, when the offer has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from mxpolicy.delivery import events, trouble
from mxpolicy.delivery.answers import Answers
from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.message import Message
from mxpolicy.delivery.session import Session
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.delivery.settlement import RecipientState
from mxpolicy.delivery.trace import Trace
from mxpolicy.delivery.transaction import Transaction
from mxpolicy.errors import LocalTrouble
from mxpolicy.options import Options
from mxpolicy.outcome import Outcome
from mxpolicy.protocol.smtp_states import State, facts
from mxpolicy.reply import Reply, printable
from mxpolicy.routing.candidate import (
    Awaited,
    Candidate,
    Finding,
    Phase,
    Scope,
    Verdict,
    Wait,
)
from mxpolicy.routing.race import GiveUpReason
from mxpolicy.routing.reuse import PATIENCE, Counts, Stage, what_counts
from mxpolicy.routing.tls_requirement import TlsRequirement, wanted_by_host

__all__ = [
    "Offer",
    "Offerer",
    "OutOfTime",
    "failure",
    "tell_of_detour",
]

# Seconds for which a silent host is waited for at least, in the transaction, however
# many others wait: the reply to RCPT may depend on a call-out to a third host.
SHORTEST_PATIENCE = 10.0

# Seconds for a message that still comes from the mail server, which writes it at once.
SIZE_TIME = 5.0

# Seconds for a second connection to the same host, from connect to ready, TLS included.
RETRY_TIME = 60.0


class OutOfTime(LocalTrouble):
    """Too little time is left for the final dot; it was not sent."""


class Offerer(Protocol):
    """What an offer asks of its maker: `mxpolicy.delivery.attempt.Attempt`."""

    def record(
        self, candidate: Candidate, finding: Finding, reply: Reply | None = None
    ) -> None:
        """*candidate* has failed in this way; *reply* is what it said."""

    def others_left(self) -> int:
        """How many other candidates may still be asked."""

    def is_last_chance(self) -> bool:
        """Whether this candidate has all its time, though others are left."""

    def recipients_answered(self) -> None:
        """A host has answered every RCPT."""

    def settle(self, number: int, outcome: Outcome) -> None:
        """Give a recipient its outcome."""


class Supplier(Protocol):
    """Supplies sessions: `mxpolicy.delivery.attempt_sessions.AttemptSessions`."""

    async def open(self, candidate: Candidate, approach: Approach) -> Session:
        """Return another session that is ready; raises as `Sessions.open` does."""

    def give_back(self, session: Session) -> None:
        """Take back a session that is not to be used any more."""


class Offer:
    """Offers *message* over *session* and any that follows it; use once, by `run`.

    Args:
        options: The operator's.
        message: What is offered.
        attempt: Told what happens.
        sessions: Supplies those that follow.
        session: Ready.
        tls: What was asked of *session* before anything had failed.
        numbers: The recipients that it is offered for.
        stage: How far the fast path has come with all of them.

    Attributes:
        candidate: The host.
        session: The one that is used now, or was used last; the attempt gives it back.
        tls: What is asked of the next session.
        answers: How the host refused it.
        ending: How the last session broke, None if it did not.
        over: Why no other host is to be asked, None if others may be.
        void_because: Why the host is to be dialled anew: the session had had a
            transaction before, and was over; or it takes no more of so many recipients.
            None if neither is so.
        is_unanswered: The final dot was not answered in time, and the host may still do
            so over *session*. The attempt keeps it, or ends it.
    """

    def __init__(
        self,
        options: Options,
        message: Message,
        attempt: Offerer,
        sessions: Supplier,
        session: Session,
        tls: TlsRequirement,
        numbers: Sequence[int],
        stage: Stage = Stage.NOT_BEGUN,
    ) -> None:
        self._stage = stage
        self._options = options
        self._sessions = sessions
        self._message = message
        self._attempt = attempt
        self.candidate = session.candidate
        self._numbers = numbers
        self.session = session
        self.tls = tls
        self.answers = Answers()
        self.ending: Finding | None = None
        self.over: GiveUpReason | None = None
        self.void_because: str | None = None
        self.is_unanswered = False

    async def run(self) -> None:
        """Offer the message until the host has taken or refused it, or has failed."""
        try:
            await self._transact()
            if await self._is_void():
                return
            await self._go_on_after_a_stall()
            await self._go_on_under_tls()
        except BaseException:
            self.session.abort()
            self.is_unanswered = False
            raise

    async def misfit(self) -> trouble.Misfit | None:
        """Return why the host's EHLO reply rules the message out, if it does.

        A message that still comes, of unknown size, is waited for where the host has a
        limit: too large for this host, it may be right for the next one.
        """
        mail_data = self._message.mail_data
        if self.session.extensions.size and mail_data.likely_size is None:
            with suppress(TimeoutError, LocalTrouble):  # `run` meets the latter again
                async with asyncio.timeout(SIZE_TIME):
                    await mail_data.whole()
        return trouble.misfit(
            self.session.extensions,
            size=mail_data.likely_size,
            needs_smtputf8=self._message.envelope.needs_smtputf8(self._numbers),
            masked=self.session.is_masked,
        )

    def _left(self) -> list[int]:
        """Return the recipients that the host has neither taken nor refused."""
        settlement = self._message.settlement
        is_out = self._stage is Stage.DOT
        state = RecipientState.DOT_SENT if is_out else RecipientState.OPEN
        numbers = settlement.those(state, self._numbers)
        return [number for number in numbers if number not in self.answers.refused]

    # -- one session after another ------------------------------------------

    async def _transact(self) -> None:
        """Run the transaction for those that are left, and note how the session broke."""
        transaction = Transaction(
            self.session,
            self._message.envelope,
            self._left(),
            self._message.mail_data,
            self,
            self._message.settlement,
            self.answers,
            long_lines=self._options.long_lines,
            progress=self._options.transaction.body_progress,
            stage=self._stage,
        )
        self._stage = Stage.NOT_BEGUN  # of the next one
        self.ending, self.is_unanswered = None, False
        try:
            await transaction.run()
        except Exception as error:
            if isinstance(error, LocalTrouble):
                is_late = isinstance(error, OutOfTime)
                self.over = GiveUpReason.DEADLINE if is_late else GiveUpReason.CAPPED
            failed = failure(self._message.trace, Phase.TRANSACTION, error)
            self.is_unanswered = self._may_still_answer(failed.finding)
            if not self.is_unanswered:
                self.session.abort()
            self.ending, self.answers.goodbye = failed.finding, failed.reply
            if self.session.course.is_in_step or self._what_counts() is Counts.ALL:
                self._attempt.record(self.candidate, failed.finding, failed.reply)

    def _what_counts(self) -> Counts:
        """Return what counts of the last transaction."""
        if self.over is not None:
            return Counts.ALL
        if not self.session.is_old:
            is_spent = self.ending is not None and self.ending.verdict is Verdict.UNFIT
            return Counts.DIAL_ANEW if is_spent else Counts.ALL
        settlement = self._message.settlement
        return what_counts(
            self.session.course,
            ended=self.ending.verdict if self.ending else None,
            dot_is_out=bool(settlement.those(RecipientState.DOT_SENT, self._numbers)),
        )

    async def _is_void(self) -> bool:
        """Return whether the host is to be dialled anew; see `void_because`.

        What an old session has said is forgotten then, and also where our own time is up.
        """
        counts = self._what_counts()
        if not self.session.is_old:
            if counts is Counts.DIAL_ANEW:
                self.void_because = self._words_of_the_end()
            return counts is Counts.DIAL_ANEW
        if counts is Counts.IF_IN_STEP and await self._is_in_step():
            self.answers.are_in_step()
            counts = Counts.ALL
        if counts is Counts.ALL and self.over is None and self.session.is_reused:
            # Of a new session the host may have another opinion.
            said = self.answers.take_back_about_session()
            if said is not None and not self.in_doubt():
                self.void_because = f"refused: {said.text}"
        elif counts is not Counts.ALL:
            self.void_because = self._words_of_the_end()
        if counts is not Counts.ALL or self.over is not None:
            self.answers.take_back_unproven()
        return self.void_because is not None

    async def _is_in_step(self) -> bool:
        left = self._message.time_left()
        return await self.session.is_in_step(min(PATIENCE, left / 4))

    def _words_of_the_end(self) -> str:
        if self.ending is not None:
            return f"{self.ending.verdict.value} {self.ending.text}".rstrip()
        replies = [reply.text for _, reply in self.answers.refused.values()]
        return f"refused: {replies[0]}" if replies else "closed"

    def _may_still_answer(self, finding: Finding) -> bool:
        """Return whether all that has ended is our time for the reply to the dot."""
        return (
            finding.scope is Scope.HOST
            and finding.phase is Phase.DOT
            and finding.verdict is Verdict.SILENT
            and bool(self.in_doubt())
        )

    def in_doubt(self) -> list[int]:
        """Return the recipients whose dot is out and was not answered."""
        return self._message.settlement.those(RecipientState.DOT_SENT, self._numbers)

    async def _go_on_after_a_stall(self) -> None:
        """Offer it by other approaches, where our data did not arrive.

        The same host is asked before any other. It is the best one that is there, was
        alive a moment ago, and has not seen a dot.
        """
        while self._left() and self.over is None:
            if self.ending is None or self.ending.verdict is not Verdict.STALLED:
                return
            others_left = bool(self._attempt.others_left())
            approach = self.session.approach.after_stall(others_left=others_left)
            if approach is None:
                return
            try:
                await self._reopen(approach._replace(tls=self.tls))
            except SessionFailed as failed:
                if failed.finding.full:  # else the stall has been recorded
                    self._attempt.record(self.candidate, failed.finding, failed.reply)
                return
            await self._transact()
            if self.ending is None:
                tell_of_detour(self._message.trace, self.session)

    async def _go_on_under_tls(self) -> None:
        """Offer it once more under TLS, where it was refused for being in clear.

        We chose to come in clear. TLS had failed, perhaps for one lost packet, or the
        memory had it wrong. Such a refusal says nothing of the mail, which is deferred
        when TLS fails again.
        """
        if not self.session.might_have_tls:
            return
        said = self.answers.take_back_for_want_of_tls()
        if said is None or not self._left():
            return
        self.tls = wanted_by_host(said.text)
        self._message.trace.tell(events.TlsWanted, self.candidate, said.text)
        if self.over is not None or self.in_doubt():
            # No other dot is sent now: the next attempt begins with TLS.
            finding = Finding(Verdict.TLS_FAILED, Phase.TLS, 0.0)
            self._attempt.record(self.candidate, self.tls.unmet(finding))
            return
        try:
            await self._reopen(Approach(self.tls, self.session.approach.segment_size))
        except SessionFailed as failed:
            reply = failed.reply if failed.finding.phase is Phase.TLS else None
            self.ending = self.tls.unmet(failed.finding)
            self._attempt.record(self.candidate, self.ending, reply)
            return
        await self._transact()
        await self._go_on_after_a_stall()

    async def _reopen(self, approach: Approach) -> None:
        """Go on with another session to the same host, after the end of this one.

        Raises:
            SessionFailed: There is none; not in full where our time was up.
        """
        old, began = self.session, self._message.trace.now()
        old.quit()
        try:
            async with asyncio.timeout(min(RETRY_TIME, self._message.time_left())):
                self.session = await self._sessions.open(self.candidate, approach)
        except LocalTrouble as error:
            raise failure(self._message.trace, Phase.CONNECT, error) from error
        except TimeoutError:
            waited = self._message.trace.now() - began
            wait = Wait(Awaited.TLS, waited)
            raise SessionFailed(
                Finding(Verdict.TLS_SILENT, Phase.TLS, waited, full=False, wait=wait)
            ) from None
        self._sessions.give_back(old)

    # -- what a transaction asks: delivery.transaction.Control --------------

    def patience(self, state: State) -> float:
        """Return the seconds to wait for a reply: fewer when other hosts are left.

        At least `SHORTEST_PATIENCE`, but not past the deadline. A host that is too slow
        for it is asked again later, with all its time. The mail data has all the time in
        which its dot may be sent (see `Control`).
        """
        if state is State.BODY:
            return self._time_before_dot()
        standard = facts(state).timeout
        left = max(0.0, self._message.deadline - self._message.trace.now())
        if self.session.is_reused and not self.session.course.is_in_step:
            return min(standard, PATIENCE, left / 4)
        others = self._attempt.others_left()
        if not others or self._attempt.is_last_chance():
            return min(standard, left)
        share = min(self._options.transaction.silence, left / others)
        return min(standard, left, max(SHORTEST_PATIENCE, share))

    def _time_before_dot(self) -> float:
        left = self._message.time_left()
        if not left:
            raise OutOfTime("too little time is left for the end of the mail data")
        return left

    async def is_next(self, what: State, recipients: Sequence[int]) -> None:
        """Ask whether the message is still to be sent (see `Control`).

        Before the mail data, hosts that are not needed any more are let go. Before the
        dot it is noted in the journal.
        """
        message = self._message
        if what is State.BODY:
            self._attempt.recipients_answered()
        else:
            await message.journal.dot_is_next(str(self.candidate.key), recipients)
        may_send = False
        if message.is_wanted is not None:
            may_send = message.is_wanted()
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(message.time_left()):
                    may_send = await message.may_send_dot()
        self._time_before_dot()
        if not may_send:
            raise LocalTrouble("the mail server that started us has gone away")

    def taken(self, recipients: Sequence[int]) -> None:
        """Settle *recipients* at once: nothing that happens now can undo it."""
        for number in recipients:
            self._attempt.settle(number, self._message.settlement.delivered(number))


def tell_of_detour(trace: Trace, session: Session) -> None:
    """Tell that the ordinary approach had failed and another one has not."""
    is_small = session.approach.segment_size is not None
    in_clear = session.approach.had_to_be_in_clear
    if is_small or in_clear:
        trace.tell(events.WorkedAround, session.candidate, is_small, in_clear)


def failure(trace: Trace, phase: Phase, error: Exception) -> SessionFailed:
    """Return *error* in *phase* as the failure of a session; tell of a bug of ours."""
    if isinstance(error, SessionFailed):
        return error
    if not isinstance(error, LocalTrouble):
        trace.trouble(error)
    # Our own trouble is about no host.
    verdict = Verdict.SILENT if isinstance(error, OutOfTime) else Verdict.CLOSED
    text = printable(str(error) or type(error).__name__)
    return SessionFailed(Finding(verdict, phase, 0.0, Scope.SITE, text=text))
