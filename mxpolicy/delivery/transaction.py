"""One message over one session: from MAIL to the dot (RFC 5321 §3.3).

A `Transaction` offers the message to some of its recipients. It notes in a `Settlement`
and in `Answers` how each was answered. `mxpolicy.delivery.refusals` says what a reply
means. After *ready* the time is the message's, so a transaction limits every wait itself.
`Control` says how much time there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from mxpolicy.delivery.answers import Answers
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.message import Envelope
from mxpolicy.delivery.session import Session
from mxpolicy.delivery.settlement import RecipientState, Settlement
from mxpolicy.net.ack_watch import telling_progress
from mxpolicy.options import LongLines
from mxpolicy.protocol.smtp_events import (
    DataAnswered,
    MailAnswered,
    RcptAnswered,
)
from mxpolicy.protocol.smtp_states import DOT_TIME, State, Verb
from mxpolicy.reply import Reply
from mxpolicy.routing.candidate import Phase, Verdict
from mxpolicy.routing.reuse import Course, Stage

__all__ = ["Control", "Transaction"]

E = TypeVar("E")


class Control(Protocol):
    """What a transaction asks of its maker: `mxpolicy.delivery.offer.Offer`."""

    def patience(self, state: State) -> float:
        """Seconds to wait in *state* for a reply.

        For `State.BODY`, those in which the final dot may still be sent.

        Raises:
            LocalTrouble: It may not.
        """

    async def is_next(self, what: State, recipients: Sequence[int]) -> None:
        """The mail data (BODY) or the final dot (DOT) is next, for *recipients*.

        Raises:
            LocalTrouble: It must not be sent: the time is over, the mail server has gone,
                or another process has the message.
        """

    def taken(self, recipients: Sequence[int]) -> None:
        """The host has the message for *recipients*: its 2yz to the dot is here."""


class Transaction:
    """Offers a message over *session*; use once, by `run`.

    Args:
        session: Ready. It can be used again only when `run` has returned.
        envelope: The whole envelope.
        recipients: The numbers of those that are offered.
        mail_data: Readable any number of times.
        control: Says how much time there is, and whether the dot may be sent.
        settlement: Told which recipients the host accepts, and when the dot leaves.
        answers: Filled in.
        long_lines: What is done about long lines.
        progress: Seconds without an acknowledged byte of the mail data that are too
            many.
        stage: How far the fast path has come over *session*, with all *recipients*.
            Replies that it could not use are still to be heard.
    """

    def __init__(
        self,
        session: Session,
        envelope: Envelope,
        recipients: Iterable[int],
        mail_data: MailData,
        control: Control,
        settlement: Settlement,
        answers: Answers,
        *,
        long_lines: LongLines,
        progress: float,
        stage: Stage = Stage.NOT_BEGUN,
    ) -> None:
        self._stage = stage
        self._session = session
        self._dialogue = session.dialogue
        self._body = session.body
        self._smtp = session.dialogue.smtp
        self._envelope = envelope
        self._recipients = list(recipients)
        self._mail_data = mail_data
        self._control = control
        self._settlement = settlement
        self._answers = answers
        self._long_lines = long_lines
        self._progress = progress

    async def run(self) -> None:
        """Offer the message, and note the answers.

        Takes several transactions when the host limits the recipients of one
        (RFC 9422). The same holds for recipients that were "too many" (RFC 5321
        §4.5.3.1.10), as long as the host takes some in each.

        Raises:
            SessionFailed: The session broke. Earlier answers stand. A recipient whose dot
                may be out and is unanswered is in `RecipientState.DOT_SENT`.
            Exception: What *control* raised; no dot was sent.
        """
        try:
            await self._run()
        finally:
            self._settlement.withdrawn(self._recipients)

    async def _run(self) -> None:
        if self._stage is Stage.NOT_BEGUN:
            self._session.course = Course()
            self._dialogue.phase.enter(Phase.TRANSACTION)
            await self._dialogue.heed_what_has_come()
        pending = self._recipients
        while pending:
            if self._stage is Stage.NOT_BEGUN:
                await self._session.make_ready(self._control.patience(State.RSET))
            batch = self._next_batch(pending)
            later = [number for number in pending if number not in batch]
            some_taken = await self._one_transaction(batch, later)
            self._stage = Stage.NOT_BEGUN
            if not self._session.is_old:
                self._answers.are_in_step()  # nothing was said before that
            over_limit = self._answers.take_back_over_limit(batch) if some_taken else []
            refused = self._answers.refused
            later = [number for number in later if number not in refused]
            # All others may have been settled while we waited for the dot's reply.
            pending = self._settlement.those(RecipientState.OPEN, [*over_limit, *later])

    def _next_batch(self, pending: Sequence[int]) -> list[int]:
        """Return the recipients of the next transaction (RFC 9422)."""
        session, recipients = self._session, self._envelope.recipients
        domains = [recipients[number].domain for number in pending]
        batch = session.extensions.limits.next_batch(domains, session.domains)
        if not batch:
            text = f"takes recipients of {len(session.domains)} domains a session"
            raise self._dialogue.phase.failed(Verdict.UNFIT, text)
        session.domains.update(domains[index] for index in batch)
        return [pending[index] for index in batch]

    async def _one_transaction(
        self, batch: Sequence[int], later: Sequence[int]
    ) -> bool:
        """MAIL to dot for *batch*; return whether the host has taken it for some."""
        accepted = await self._name(batch, later)
        if not accepted:
            is_sender_refused = self._session.course.is_sender_refused
            if self._stage is Stage.ASKED_ALL and not is_sender_refused:
                await self._hear_data_for_none()
            return False
        if self._stage < Stage.BODY:
            await self._control.is_next(State.BODY, accepted)
        refusal = None
        if self._stage < Stage.DOT:
            refusal = await self._data()
        if refusal is None:
            if self._stage < Stage.DOT:
                await self._control.is_next(State.DOT, accepted)
            refusal = await self._dot(accepted)
        if refusal is None:
            return True
        self._answers.refuse(accepted, *refusal)
        self._settlement.released(accepted)
        return False

    async def _name(self, batch: Sequence[int], later: Sequence[int]) -> list[int]:
        """MAIL and RCPT; return the recipients that were accepted."""
        if self._stage >= Stage.ACCEPTED:
            if self._stage < Stage.DOT:
                self._settlement.accepted(batch)
            return list(batch)
        if self._stage is Stage.NOT_BEGUN:
            self._give_mail(batch)
        await self._session.hear_reset(self._control.patience(State.RSET))
        reply = (await self._answer(MailAnswered)).reply
        if reply.is_positive:
            return await self._hear_recipients(batch)
        self._note(is_sender_refused=True)
        # No recipient was named before it: it holds for the others too.
        self._answers.refuse((*batch, *later), Verb.MAIL, reply)
        return []

    def _give_mail(self, batch: Sequence[int]) -> None:
        """Give MAIL and RCPT, which leave together where the host allows it."""
        self._dialogue.heed_the_end()
        envelope = self._envelope
        self._smtp.mail(
            envelope.sender,
            size=self._mail_data.likely_size,
            body8bit=self._mail_data.may_have_8bit,
            smtputf8=envelope.needs_smtputf8(batch),
            dsn=envelope.dsn,
        )
        for number in batch:
            self._smtp.rcpt(
                envelope.recipients[number].wire,
                dsn=envelope.recipients_dsn.get(number),
            )

    async def _hear_recipients(self, batch: Sequence[int]) -> list[int]:
        """Hear the replies to RCPT; return the recipients that were accepted."""
        accepted = []
        for number in batch:
            reply = (await self._answer(RcptAnswered)).reply
            if reply.is_positive:
                accepted.append(number)
            else:
                self._answers.refuse([number], Verb.RCPT, reply)
        if len(accepted) < len(batch):
            self._note(is_recipient_refused=True)
        self._settlement.accepted(accepted)
        return accepted

    async def _hear_data_for_none(self) -> None:
        """Hear the reply to a DATA that was pipelined, when all recipients are refused.

        After 354 a host waits for mail data: the session cannot be used again.
        """
        reply = (await self._answer(DataAnswered)).reply
        self._session.heard_data_reply(reply.code)
        if reply.is_positive:
            self._dialogue.is_cut_short = True

    async def _data(self) -> tuple[Verb, Reply] | None:
        """Send DATA and the mail data; return the refusal that ended it, if any."""
        if self._stage < Stage.ASKED_ALL:
            self._dialogue.heed_the_end()
            self._smtp.data()
        if self._stage < Stage.GO_AHEAD:
            reply = (await self._answer(DataAnswered)).reply
            self._session.heard_data_reply(reply.code)
            if not reply.is_positive:
                return Verb.DATA, reply
        self._answers.are_in_step()
        told = telling_progress(
            self._dialogue.stream, self._session.listener.progressed
        )
        try:
            async with asyncio.timeout(self._control.patience(State.BODY)):
                with told:
                    early = await self._send_body()
        except TimeoutError:
            self._control.patience(State.BODY)
            text = self._dialogue.phase.doing()
            raise self._dialogue.phase.failed(Verdict.SILENT, text) from None
        if early is None:
            return None
        if self._is_goodbye(early):
            raise self._dialogue.phase.failed(Verdict.CLOSED, reply=early)
        return Verb.DOT, early

    def _is_goodbye(self, reply: Reply) -> bool:
        """Return whether *reply*, before the dot, is about an old session, not the mail."""
        return reply.code == 421 and self._session.is_reused

    async def _send_body(self) -> Reply | None:
        """Send the mail data; return the refusal that came before the dot, if any."""
        if self._stage < Stage.BODY:
            early = await self._body.send(
                self._mail_data, self._long_lines, self._progress
            )
        else:
            early = await self._body.finish(self._progress)
        if early is not None or not self._session.approach.waits_for_body:
            return early
        return await self._body.drain(self._progress)

    async def _dot(self, accepted: Sequence[int]) -> tuple[Verb, Reply] | None:
        """Send the final dot; return the refusal, if any.

        Only between the dot and its reply is there doubt about which side has the message.
        """
        if self._stage < Stage.DOT:
            self._session.listener.progressed()
            self._settlement.dot_sent(accepted, str(self._session.candidate.key))
        try:
            if self._stage < Stage.DOT:
                self._body.begin_dot(self._progress)
            reply = await self._body.reply_to_dot(DOT_TIME)
        except BaseException:
            if self._body.take_dot_back():
                self._settlement.released(accepted)
            raise
        if self._is_goodbye(reply) and self._dialogue.is_cut_short:
            self._settlement.released(accepted)
            raise self._dialogue.phase.failed(Verdict.CLOSED, reply=reply)
        self._note(dot=reply.code)
        if not reply.is_positive:
            return Verb.DOT, reply
        self._settlement.taken(accepted, reply)
        self._control.taken(accepted)
        return None

    async def _answer(self, kind: type[E]) -> E:
        """Return the next event, which must come while there is time for it."""
        patience = self._control.patience(self._smtp.state)
        event = await self._dialogue.next(kind, timeout=patience)
        self._session.listener.progressed()
        return event

    def _note(self, **facts: Any) -> None:
        """Note how the transaction goes, for the next user of the session."""
        self._session.course = self._session.course._replace(**facts)
