"""One SMTP session with one candidate: the shell around `mxpolicy.protocol.smtp_client`.

`Session.open` takes a connected stream to *ready*. Until then the race owns the
time and ends a slow session by cancelling its task; only TLS has a limit of its
own, because what follows from it is not another host but the same one in clear.
`Session.transact` runs a mail transaction (RFC 5321 §3.3) and bounds every wait
itself, because after *ready* the time belongs to the message.

A session never decides what a reply means for a recipient. It says who was
answered what; `mxpolicy.delivery.trouble` judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from mxpolicy.delivery.dialogue import Dialogue, SessionFailed
from mxpolicy.delivery.envelope import Envelope
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.transaction import Control, Transaction, TransactionResult
from mxpolicy.errors import RemoteProtocolError, TLSError
from mxpolicy.net import tls
from mxpolicy.net.ack_watch import StreamSilent, telling_progress
from mxpolicy.net.stream import Stream, StreamClosed
from mxpolicy.options import LongLines
from mxpolicy.protocol.extensions import Extensions
from mxpolicy.protocol.smtp_client import SmtpClient
from mxpolicy.protocol.smtp_events import (
    BodyRefused,
    Closing,
    DataAnswered,
    DotAnswered,
    EhloAnswered,
    Greeted,
    HeloAnswered,
    MailAnswered,
    RcptAnswered,
    RsetAnswered,
    StartTlsRefused,
    TlsReady,
)
from mxpolicy.protocol.smtp_states import State, Verb, facts
from mxpolicy.reply import Reply, printable
from mxpolicy.routing.candidate import Candidate, Phase, Verdict

__all__ = ["HANDSHAKE_TIME", "Session"]

# Seconds from STARTTLS to the EHLO reply under TLS, the full time of a phase in the
# race. Some middleboxes swallow a ClientHello; no host needs so long for one.
HANDSHAKE_TIME = 30.0

E = TypeVar("E")


class Session(Dialogue):
    """An SMTP session over *stream*.

    Args:
        stream: Connected; the session owns it from now on.
        candidate: Whom it is connected to.
        helo: Our name for EHLO.
        is_myself: Whether a name given in an EHLO reply is ours (a loop).
        use_tls: Whether STARTTLS is used when it is offered.
        needs_tls: With it: a session in clear is a failure.
        has_small_segments: *stream* was dialled so.
        sends_dot_unseen: Whether the dot goes out also when the host's kernel is
            not known to have the body, as any other sender's does; see `_drain`.
        clock: Seconds, monotonic.
        handshake_time: Seconds from STARTTLS to the EHLO reply under TLS, for a host
            that answers EHLO at once.
        on_stray: Told of each reply that answers nothing and was dropped.

    Attributes:
        candidate: As given.
        has_small_segments: As given.
        had_to_be_in_clear: TLS had failed before, in a session of its own.
        is_secured: It is under TLS.
        tls_seconds: How long STARTTLS, handshake and EHLO took; 0 without TLS.
    """

    def __init__(
        self,
        stream: Stream,
        candidate: Candidate,
        *,
        helo: str,
        is_myself: Callable[[str], bool],
        use_tls: bool,
        clock: Callable[[], float],
        needs_tls: bool = False,
        has_small_segments: bool = False,
        sends_dot_unseen: bool = False,
        handshake_time: float = HANDSHAKE_TIME,
        on_stray: Callable[[Reply], None] = lambda reply: None,
    ) -> None:
        super().__init__(stream, SmtpClient(helo), clock, on_stray)
        self.candidate = candidate
        self.has_small_segments = has_small_segments
        self.had_to_be_in_clear = False
        self.is_secured = False
        self.tls_seconds = 0.0
        self._sends_dot_unseen = sends_dot_unseen
        self._is_myself = is_myself
        self._use_tls = use_tls
        self._needs_tls = needs_tls
        self._handshake_time = handshake_time
        self._hello_seconds = 0.0
        self._client_hello_was_sent = False

    @property
    def extensions(self) -> Extensions:
        """What the last EHLO reply offered."""
        return self._smtp.extensions

    @property
    def is_masked(self) -> bool:
        """Whether a firewall overwrites what the host says."""
        return self._smtp.banner_masked or self.extensions.starttls_masked

    @property
    def might_have_tls(self) -> bool:
        """Whether this session is in clear and another one may be under TLS.

        TLS had failed, or is left out, or the host put it off, or a firewall hides it.
        """
        reasons = self.had_to_be_in_clear, self.extensions.starttls, self.is_masked
        return not self.is_secured and any(reasons)

    # -- to ready ---------------------------------------------------------

    async def open(self, on_phase: Callable[[Phase], None]) -> None:
        """Go from the connected stream to *ready*, calling *on_phase* for each phase.

        Raises:
            SessionFailed: The host does not get us there. The stream is closed,
                after any exception.
        """
        try:
            self._enter(Phase.GREETING, on_phase)
            await self._hear_greeting()
            self._enter(Phase.EHLO, on_phase)
            await self._say_hello()
            if self._needs_tls or (self._use_tls and self.extensions.starttls):
                self._enter(Phase.TLS, on_phase)
                await self._secure()
            self._enter(Phase.READY, on_phase)
        except BaseException as exc:
            if isinstance(exc, SessionFailed) and exc.reply is not None:
                self.quit()  # it speaks SMTP, and may wait for that (RFC 5321 §3.1)
            else:
                self.abort()
            raise

    async def _hear_greeting(self) -> None:
        reply = (await self._next(Greeted)).reply
        if reply.is_transient:
            raise self._failed(Verdict.GREETING_4XX, reply=reply)
        if reply.is_permanent:
            raise self._failed(Verdict.GREETING_5XX, reply=reply)

    async def _say_hello(self) -> None:
        began = self._clock()
        reply = await self._hello()
        self._hello_seconds = self._clock() - began
        if not _is_completion(reply):
            raise self._failed(Verdict.EHLO_REFUSED, reply=reply)
        # Only on port 25 is a host that calls itself by our name ourselves; on
        # another port it is a second instance on this machine (as in Postfix).
        if self.candidate.port == 25 and self._is_myself(self._smtp.ehlo_name):
            raise self._failed(Verdict.LOOPS_TO_MYSELF, reply=reply)

    async def _hello(self) -> Reply:
        """Say EHLO, and HELO after any answer but 2yz and 421; return the last answer.

        RFC 5321 §3.2 has that for those who do not know EHLO. Some of them say so by
        a 4yz or by a code of their own, and smtp(8) delivers to them.
        """
        self._heed_the_end()
        self._smtp.ehlo()
        refusal = (await self._next(EhloAnswered)).reply
        if _is_completion(refusal):
            return refusal
        self._heed_the_end()
        self._smtp.helo()
        try:
            return (await self._next(HeloAnswered)).reply
        except SessionFailed as failed:
            if failed.finding.verdict is not Verdict.CLOSED:
                raise
            return refusal  # it hung up: what it had said to EHLO stands

    async def _secure(self) -> None:
        """STARTTLS (RFC 3207); a host that puts it off goes on in clear, if it may."""
        if not self.extensions.starttls:
            raise self._failed(Verdict.STARTTLS_MISSING)
        began = self._clock()
        # Who is slow to answer EHLO will be slow to answer STARTTLS and EHLO again.
        patience = self._handshake_time + 2 * self._hello_seconds
        try:
            async with asyncio.timeout(patience):
                if not await self._start_tls():
                    return
                reply = await self._hello()
        except TimeoutError:
            failed = self._out_of_patience(patience, Verdict.TLS_SILENT)
            failed.client_hello_was_sent = self._client_hello_was_sent
            raise failed from None
        except (TLSError, RemoteProtocolError) as exc:
            raise self._failed(Verdict.TLS_FAILED, printable(str(exc))) from exc
        if not _is_completion(reply):
            raise self._failed(Verdict.TLS_FAILED, reply=reply)
        self.is_secured = True
        self.tls_seconds = self._clock() - began

    async def _start_tls(self) -> bool:
        """Do the handshake; False when the host does not want it after all."""
        self._heed_the_end()
        self._smtp.starttls()
        event: TlsReady | StartTlsRefused
        event = await self._next(TlsReady, StartTlsRefused)
        if isinstance(event, StartTlsRefused):
            if self._needs_tls:
                raise self._failed(Verdict.STARTTLS_REFUSED, reply=event.reply)
            return False
        self._client_hello_was_sent = True
        await self._stream.start_tls(tls.opportunistic(), self.candidate.host)
        self._smtp.tls_established()
        return True

    # -- the transactions -------------------------------------------------

    async def transact(
        self,
        envelope: Envelope,
        recipients: Iterable[int],
        mail_data: MailData,
        *,
        long_lines: LongLines,
        body_progress: float,
        control: Control,
        result: TransactionResult,
    ) -> None:
        """Offer the message for *recipients* and write what was answered into *result*.

        Takes several transactions when the host limits the recipients of one
        (RFC 9422), and for those it had "too many" of (RFC 5321 §4.5.3.1.10) as
        long as each takes some.

        Raises:
            SessionFailed: The session broke; *result* holds what had been
                answered, and ``result.in_doubt`` whose dot was out.
            Exception: Whatever ``control.dot_is_next`` and ``control.permit_dot``
                raised; no dot was sent.
        """
        self._enter(Phase.TRANSACTION)
        await self._heed_what_has_come()
        transaction = Transaction(
            envelope, mail_data, long_lines, body_progress, control, result
        )
        limits = self.extensions.limits
        pending, done = list(recipients), 0
        while pending:
            self._enter(Phase.TRANSACTION)
            if limits.mailmax is not None and done >= limits.mailmax:
                raise self._failed(Verdict.UNFIT, f"takes {done} messages a session")
            if done:
                await self._clear(control)
            size = limits.rcptmax or len(pending)
            batch, later = pending[:size], pending[size:]
            some_taken = await self._one_transaction(transaction, batch, later)
            crowded = result.take_back_crowded(batch) if some_taken else []
            pending = crowded + [
                index for index in later if index not in result.refused
            ]
            done += 1

    async def _clear(self, control: Control) -> None:
        """Make the session fit for another transaction."""
        self._heed_the_end()
        if self._smtp.state is State.CLOSED:
            raise self._failed(Verdict.CLOSED, "nothing more after its refusal")
        if self._smtp.state is State.READY:
            return
        self._smtp.rset()
        reply = (await self._answer(RsetAnswered, control)).reply
        if not reply.is_positive:
            raise self._failed(Verdict.CLOSED, reply=reply)

    async def _one_transaction(
        self, transaction: Transaction, batch: Sequence[int], later: Sequence[int]
    ) -> bool:
        """MAIL to dot for *batch*; return whether the host has taken it for some."""
        result, control = transaction.result, transaction.control
        reply = await self._mail(transaction, batch)
        accepted = []
        if reply.is_positive:
            accepted = await self._recipients(transaction, batch)
        else:
            # Said before any recipient was named: it holds for the others too.
            result.refuse((*batch, *later), Verb.MAIL, reply)
        control.recipients_answered(result)
        if not accepted:
            return False
        await control.permit_dot()  # else the mail data would be sent for nothing
        refusal = await self._data(transaction)
        if refusal is None:
            await control.dot_is_next(str(self.candidate), accepted)
            await control.permit_dot()
            refusal = await self._dot(transaction, accepted)
        if refusal is None:
            return True
        result.refuse(accepted, *refusal)
        return False

    async def _mail(self, transaction: Transaction, batch: Sequence[int]) -> Reply:
        """Give MAIL and RCPT, which leave together where the host allows it."""
        self._heed_the_end()
        envelope, mail_data = transaction.envelope, transaction.mail_data
        self._smtp.mail(
            envelope.reverse_path.wire if envelope.reverse_path else "",
            size=mail_data.size,
            body8bit=mail_data.has_8bit,
            smtputf8=envelope.needs_smtputf8(batch),
        )
        for index in batch:
            self._smtp.rcpt(envelope.recipients[index].mailbox.wire)
        return (await self._answer(MailAnswered, transaction.control)).reply

    async def _recipients(
        self, transaction: Transaction, batch: Sequence[int]
    ) -> list[int]:
        """Hear the replies to RCPT; return who was accepted."""
        result = transaction.result
        accepted = []
        for index in batch:
            answer = await self._answer(RcptAnswered, transaction.control)
            if answer.reply.is_positive:
                accepted.append(index)
            else:
                result.refuse([index], Verb.RCPT, answer.reply)
        result.accepted.update(accepted)
        return accepted

    async def _data(self, transaction: Transaction) -> tuple[Verb, Reply] | None:
        """DATA and the mail data; return the refusal that ended it, if one did."""
        control = transaction.control
        self._heed_the_end()
        self._smtp.data()
        reply = (await self._answer(DataAnswered, control)).reply
        if not reply.is_positive:
            return Verb.DATA, reply
        try:
            async with asyncio.timeout(control.time_before_dot()):
                with telling_progress(
                    self._stream, lambda: control.progressed(self.candidate)
                ):
                    early = await self._body(transaction)
                    if early is None:
                        early = await self._drain(transaction)
        except TimeoutError:
            await control.permit_dot()
            raise self._failed(Verdict.SILENT, self._awaited()) from None
        return None if early is None else (Verb.DOT, early)

    async def _body(self, transaction: Transaction) -> Reply | None:
        """Stream the mail data; return the refusal that came before the dot, if any."""
        for piece in transaction.pieces():
            write = partial(self._stream.write, piece)
            early = await self._unless_refused(write, self._stream.resume, transaction)
            if early is not None:
                return early
        return None

    async def _drain(self, transaction: Transaction) -> Reply | None:
        """Wait until the host's kernel has the body; return a refusal that came first.

        A path that swallows the body, or our acknowledgements, shows itself here,
        before the final dot: the last moment at which another host may be asked
        without a second copy. It costs a round trip, and what the host takes its
        time for before it acknowledges the last segment.
        """
        if self._sends_dot_unseen:
            return None
        drain = self._stream.drain
        return await self._unless_refused(drain, drain, transaction)

    async def _unless_refused(
        self,
        begin: Callable[..., Awaitable[bool]],
        go_on: Callable[..., Awaitable[bool]],
        transaction: Transaction,
    ) -> Reply | None:
        """Do *begin*, then *go_on* as often as the host says what is no refusal.

        Both are methods of `Stream` that take *heed_input*.
        """
        step = begin
        while True:
            gone = None
            try:
                if not self._events and await step(
                    progress_timeout=transaction.progress, heed_input=True
                ):
                    return None
            except StreamClosed as exc:
                gone = exc  # what it said before is still there to be read
            except StreamSilent as exc:
                raise self._unheard(exc) from exc
            early = await self._early_refusal()
            if early is not None:
                return early
            if gone is not None:
                raise self._closed(gone) from gone
            step = go_on

    async def _early_refusal(self) -> Reply | None:
        """Hear what the host says in the middle of the mail data; return a refusal."""
        with self._translated():
            await self._listen()
        if not self._events:
            return None
        event: BodyRefused | Closing
        event = await self._next(BodyRefused, Closing)
        self._is_cut_short = True
        return event.reply

    async def _dot(
        self, transaction: Transaction, accepted: Sequence[int]
    ) -> tuple[Verb, Reply] | None:
        """The final dot, in a write of its own: the one moment of doubt."""
        result = transaction.result
        transaction.control.progressed(self.candidate)
        self._enter(Phase.DOT)
        self._smtp.dot()
        self._is_sent = False  # nor will it be, if it is refused before that
        self._dot_progress = transaction.progress
        result.in_doubt = frozenset(accepted)
        event: DotAnswered | BodyRefused | Closing
        try:
            event = await self._next(
                DotAnswered,
                BodyRefused,
                Closing,
                timeout=transaction.control.patience_at_dot(),
            )
        except BaseException:
            if not self._is_sent or self._dot_never_left():
                result.in_doubt = frozenset()  # nobody can have read this dot
            raise
        result.in_doubt = frozenset()
        # A host that has refused must not come by the dot after that.
        self._is_cut_short = not isinstance(event, DotAnswered) and (
            not self._has_arrived() or isinstance(event, BodyRefused)
        )
        if not event.reply.is_positive:
            return Verb.DOT, event.reply
        result.delivered.update(dict.fromkeys(accepted, event.reply))
        transaction.control.taken(str(self.candidate), accepted, event.reply)
        return None

    def _dot_never_left(self) -> bool:
        """Take the dot back, if the kernel still has it: the host's window is closed.

        A partly sent dot cannot end the message. The reset follows the look at once, or
        the kernel might still send the rest when the window opens.
        """
        state = self._stream.send_state()
        if state is None or not state.unsent:
            return False
        self.abort()
        return True

    async def _answer(self, kind: type[E], control: Control) -> E:
        """Return the next event, waited for as long as the message allows."""
        timeout = facts(self._smtp.state).timeout
        event = await self._next(kind, timeout=control.patience(timeout))
        control.progressed(self.candidate)
        return event


def _is_completion(reply: Reply) -> bool:
    """2yz (RFC 5321 §4.2.1), and not the 3yz that `Reply.is_positive` lets pass too."""
    return 200 <= reply.code < 300
