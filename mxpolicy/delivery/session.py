"""One SMTP session with one candidate: the shell around `mxpolicy.protocol.smtp_client`.

`Session.open` takes a connected stream to *ready* and has no timers: until then
the race owns the time and ends a slow session by cancelling its task.
`Session.transact` runs a mail transaction (RFC 5321 §3.3) and bounds every wait
itself, because after *ready* the time belongs to the message.

A session never decides what a reply means for a recipient. It says who was
answered what; `mxpolicy.delivery.trouble` judges.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol, TypeVar

from mxpolicy.delivery import trouble
from mxpolicy.delivery.envelope import Envelope
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.errors import MxPolicyError, RemoteProtocolError, TLSError
from mxpolicy.net import tls
from mxpolicy.net.stream import Stream, StreamClosed, StreamSilent
from mxpolicy.options import LongLines
from mxpolicy.protocol import smtp_client as smtp
from mxpolicy.protocol.dot_stuffing import DotStuffer
from mxpolicy.reply import Reply, printable
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Scope, Verdict

__all__ = ["Control", "Session", "SessionFailed", "TransactionResult"]

_CHUNK = 64 * 1024

# Seconds for the rest of a refusal that began to arrive in the middle of the body.
_EARLY_REPLY = 10.0

E = TypeVar("E")


class SessionFailed(MxPolicyError):
    """The session cannot be used any more.

    Attributes:
        finding: Verdict, phase, and how long that phase had lasted.
        reply: What the host said, None when it said nothing.
    """

    def __init__(self, finding: Finding, reply: Reply | None = None) -> None:
        super().__init__(finding, reply)
        self.finding = finding
        self.reply = reply

    def __str__(self) -> str:
        return f"{self.finding.verdict.value} {self.finding.text}".rstrip()


class Control(Protocol):
    """What a transaction asks of whoever owns the message; see `Attempt`."""

    def patience(self, standard: float) -> float:
        """Seconds to wait for a reply whose standard time-out is *standard*."""

    def patience_at_dot(self) -> float:
        """Seconds to wait for the reply to the final dot."""

    def recipients_answered(self, result: TransactionResult) -> None:
        """Every RCPT of the first batch has been answered, DATA not yet sent."""

    def permit_dot(self) -> None:
        """Raise when the final dot must not be sent: out of time, input not whole."""


class TransactionResult:
    """Who was answered what; filled in while the transaction runs.

    It is as true after an exception as after a return: what was answered
    before a session broke stays answered.

    Attributes:
        delivered: The 2yz to the final dot, by recipient index.
        refused: The verb and the 4yz or 5yz that decided, by recipient index.
        accepted: Recipients with a 2yz to RCPT, whatever came after it.
        in_doubt: Recipients whose final dot is out and unanswered.
    """

    __slots__ = ("accepted", "delivered", "in_doubt", "refused")

    def __init__(self) -> None:
        self.delivered: dict[int, Reply] = {}
        self.accepted: set[int] = set()
        self.refused: dict[int, tuple[smtp.Verb, Reply]] = {}
        self.in_doubt: frozenset[int] = frozenset()

    def refuse(self, recipients: Iterable[int], verb: smtp.Verb, reply: Reply) -> None:
        """*reply* to *verb* refused all of *recipients*."""
        for index in recipients:
            self.refused[index] = (verb, reply)


class Session:
    """An SMTP session over *stream*.

    Args:
        stream: Connected; the session owns it from now on.
        candidate: Whom it is connected to.
        helo: Our name for EHLO.
        is_myself: Whether a name given in an EHLO reply is ours (a loop).
        use_tls: Whether STARTTLS is used when it is offered.
        clock: Seconds, monotonic.
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
    ) -> None:
        self.candidate = candidate
        self.tls_seconds = 0.0
        self._stream = stream
        self._smtp = smtp.SmtpClient(helo)
        self._is_myself = is_myself
        self._use_tls = use_tls
        self._clock = clock
        self._events: deque[smtp.Event] = deque()
        self._phase = Phase.GREETING
        self._entered = clock()

    @property
    def extensions(self) -> smtp.Extensions:
        """What the last EHLO reply offered."""
        return self._smtp.extensions

    @property
    def greeting_is_masked(self) -> bool:
        """A firewall rewrites this host's SMTP."""
        return self._smtp.banner_masked

    # -- to ready ---------------------------------------------------------

    async def open(self, on_phase: Callable[[Phase], None]) -> None:
        """Go from the connected stream to *ready*, calling *on_phase* for each phase.

        Raises:
            SessionFailed: The host does not get us there. The stream is closed.
        """
        try:
            self._enter(Phase.GREETING, on_phase)
            self._judge_greeting((await self._next(smtp.Greeted)).reply)
            self._enter(Phase.EHLO, on_phase)
            await self._say_hello()
            if self._use_tls and self.extensions.starttls:
                self._enter(Phase.TLS, on_phase)
                await self._start_tls()
            self._enter(Phase.READY, on_phase)
        except BaseException:
            self._stream.abort()
            raise

    def _enter(self, phase: Phase, on_phase: Callable[[Phase], None]) -> None:
        self._phase, self._entered = phase, self._clock()
        on_phase(phase)

    def _judge_greeting(self, reply: Reply) -> None:
        if reply.is_transient:
            raise self._failed(Verdict.GREETING_4XX, reply=reply)
        if not 200 <= reply.code < 300:
            raise self._failed(Verdict.GREETING_5XX, reply=reply)

    async def _say_hello(self) -> None:
        """EHLO, and HELO to those who do not know it (RFC 5321 §3.2)."""
        self._smtp.ehlo()
        reply = (await self._next(smtp.EhloAnswered)).reply
        if reply.is_permanent:
            self._smtp.helo()
            reply = (await self._next(smtp.HeloAnswered)).reply
        if not reply.is_positive:
            raise self._failed(Verdict.EHLO_REFUSED, reply=reply)
        # Only on port 25 is a host that calls itself by our name ourselves; on
        # another port it is a second instance on this machine (as in Postfix).
        if self.candidate.port == 25 and self._is_myself(self._smtp.ehlo_name):
            raise self._failed(Verdict.LOOPS_TO_MYSELF, reply=reply)

    async def _start_tls(self) -> None:
        """STARTTLS (RFC 3207); a host that thinks better of it goes on in clear."""
        began = self._clock()
        self._smtp.starttls()
        event = await self._next(smtp.TlsReady, smtp.StartTlsRefused)
        if isinstance(event, smtp.StartTlsRefused):
            return
        try:
            await self._stream.start_tls(tls.opportunistic(), self.candidate.host)
        except TLSError as exc:
            raise self._failed(Verdict.TLS_FAILED, str(exc)) from exc
        except RemoteProtocolError as exc:
            raise self._failed(Verdict.TLS_FAILED, str(exc)) from exc
        self._smtp.tls_established()
        self._smtp.ehlo()
        reply = (await self._next(smtp.EhloAnswered)).reply
        if not reply.is_positive:
            raise self._failed(Verdict.TLS_FAILED, reply=reply)
        self.tls_seconds = self._clock() - began

    # -- the transaction --------------------------------------------------

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

        Recipients that the host has "too many" of get a second transaction in
        this session (RFC 5321 §4.5.3.1.10), as long as each one takes some.

        Raises:
            SessionFailed: The session broke; *result* holds what had been
                answered, and ``result.in_doubt`` whose dot was out.
            Exception: Whatever ``control.permit_dot`` raised; no dot was sent.
        """
        self._phase, self._entered = Phase.TRANSACTION, self._clock()
        self._body = (long_lines, body_progress)
        pending = list(recipients)
        while pending:
            limit = self._smtp.extensions.recipients_max or len(pending)
            batch, later = pending[:limit], pending[limit:]
            taken = await self._one_transaction(
                envelope, batch, mail_data, control, result
            )
            crowded = [
                index
                for index in batch
                if index in result.refused
                and trouble.is_too_many_recipients(*result.refused[index])
            ]
            if not taken or not (crowded or later):
                self._leave_out(later, result)
                return
            for index in crowded:
                del result.refused[index]
            pending = crowded + later
            self._phase = Phase.TRANSACTION

    @staticmethod
    def _leave_out(later: list[int], result: TransactionResult) -> None:
        """The batch before was refused whole: its last word stands for the rest too."""
        if later and result.refused:
            verb, reply = next(reversed(result.refused.values()))
            if verb is not smtp.Verb.RCPT:
                result.refuse(later, verb, reply)

    async def _one_transaction(
        self,
        envelope: Envelope,
        batch: list[int],
        mail_data: MailData,
        control: Control,
        result: TransactionResult,
    ) -> list[int]:
        """MAIL to dot for one batch; return the recipients the host took."""
        accepted = await self._offer(envelope, batch, mail_data, control, result)
        control.recipients_answered(result)
        if not accepted:
            return []
        self._smtp.data()
        event = await self._next(
            smtp.DataAnswered,
            timeout=control.patience(smtp.facts(smtp.State.DATA).timeout),
        )
        if not event.reply.is_positive:
            result.refuse(accepted, smtp.Verb.DATA, event.reply)
            return []
        early = await self._send_body(mail_data)
        if early is not None:
            result.refuse(accepted, smtp.Verb.DOT, early)
            return []
        control.permit_dot()
        return await self._send_dot(accepted, control, result)

    async def _offer(
        self,
        envelope: Envelope,
        batch: list[int],
        mail_data: MailData,
        control: Control,
        result: TransactionResult,
    ) -> list[int]:
        """MAIL and RCPT, pipelined where offered; return who was accepted."""
        self._smtp.mail(
            envelope.reverse_path.wire if envelope.reverse_path else "",
            size=mail_data.size,
            body8bit=mail_data.has_8bit,
            smtputf8=envelope.needs_smtputf8,
        )
        for index in batch:
            self._smtp.rcpt(envelope.recipients[index].mailbox.wire)
        timeout = smtp.facts(smtp.State.MAIL).timeout
        reply = (
            await self._next(smtp.MailAnswered, timeout=control.patience(timeout))
        ).reply
        if not reply.is_positive:
            result.refuse(batch, smtp.Verb.MAIL, reply)
            return []
        timeout = smtp.facts(smtp.State.RCPT).timeout
        accepted = []
        for index in batch:
            answer = await self._next(
                smtp.RcptAnswered, timeout=control.patience(timeout)
            )
            if answer.reply.is_positive:
                accepted.append(index)
                result.accepted.add(index)
            else:
                result.refuse([index], smtp.Verb.RCPT, answer.reply)
        return accepted

    async def _send_body(self, mail_data: MailData) -> Reply | None:
        """Stream the mail data; return a reply that came before the dot, if any."""
        long_lines, progress = self._body
        stuffer = DotStuffer(long_lines)
        chunks = (stuffer.encode(chunk) for chunk in mail_data.chunks(_CHUNK))
        for data in chunks:
            if not await self._write_body(data, progress):
                return await self._early_reply()
        if not await self._write_body(stuffer.finish(), progress):
            return await self._early_reply()
        return None

    async def _write_body(self, data: bytes, progress: float) -> bool:
        """Write one piece; False when the host has said something before the dot."""
        try:
            return await self._stream.write(
                data, progress_timeout=progress, heed_input=True
            )
        except StreamClosed:
            return False  # what it said before is still there to be read
        except StreamSilent as exc:
            raise self._failed(Verdict.SILENT, str(exc)) from exc

    async def _early_reply(self) -> Reply:
        """Return the refusal that came in the middle of the body; fail if it was none."""
        event: smtp.BodyRefused | smtp.Closing
        event = await self._next(smtp.BodyRefused, smtp.Closing, timeout=_EARLY_REPLY)
        return event.reply

    async def _send_dot(
        self, accepted: list[int], control: Control, result: TransactionResult
    ) -> list[int]:
        """The final dot, in a write of its own: the one moment of doubt."""
        self._phase, self._entered = Phase.DOT, self._clock()
        result.in_doubt = frozenset(accepted)
        self._smtp.dot()
        event: smtp.DotAnswered | smtp.Closing
        event = await self._next(
            smtp.DotAnswered, smtp.Closing, timeout=control.patience_at_dot()
        )
        reply = event.reply
        result.in_doubt = frozenset()
        if reply.is_positive:
            result.delivered.update(dict.fromkeys(accepted, reply))
            return accepted
        result.refuse(accepted, smtp.Verb.DOT, reply)
        return []

    # -- the end ----------------------------------------------------------

    def quit(self) -> None:
        """Say QUIT and let go, without waiting for the answer (as Postfix does)."""
        last_words = b""
        # A reply may have come that makes QUIT pointless or wrong; then go silently.
        with suppress(MxPolicyError):
            self._smtp.quit()
            last_words = self._smtp.data_to_send()
        self._stream.close(last_words)

    def abort(self) -> None:
        """Reset the connection: the host must not take what it has for a message."""
        self._stream.abort()

    # -- bytes and events -------------------------------------------------

    async def _next(self, *kinds: type[E], timeout: float | None = None) -> E:  # noqa: ASYNC109
        """Return the next event, which must be one of *kinds*.

        Raises:
            SessionFailed: The peer closed, was silent for *timeout* seconds,
                answered 421, or did not speak SMTP.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._events:
                    await self._exchange()
        except TimeoutError:
            raise self._failed(Verdict.SILENT, self._awaited()) from None
        except StreamClosed as exc:
            raise self._failed(Verdict.CLOSED, str(exc)) from exc
        except RemoteProtocolError as exc:
            raise self._failed(self._nonsense(), printable(str(exc))) from exc
        event = self._events.popleft()
        if isinstance(event, kinds):
            return event
        if isinstance(event, smtp.Closing):
            raise self._failed(self._verdict_of_421(), reply=event.reply)
        raise AssertionError(f"{event!r} in place of {kinds!r}")

    async def _exchange(self) -> None:
        """Send what may leave now, then take in whatever comes."""
        data = self._smtp.data_to_send()
        if data:
            await self._stream.write(data)
        received = await self._stream.read()
        if not received:
            raise StreamClosed("connection closed by the host")
        self._events.extend(self._smtp.receive_data(received))

    def _nonsense(self) -> Verdict:
        return Verdict.NOT_SMTP if self._phase is Phase.GREETING else Verdict.CLOSED

    def _verdict_of_421(self) -> Verdict:
        if self._phase is Phase.GREETING:
            return Verdict.GREETING_4XX
        if self._phase < Phase.READY:
            return Verdict.EHLO_REFUSED
        return Verdict.TRANSIENT

    def _awaited(self) -> str:
        return smtp.facts(self._smtp.state).log_words

    def _failed(
        self, verdict: Verdict, text: str = "", *, reply: Reply | None = None
    ) -> SessionFailed:
        """Make the exception for a failure now, in this phase."""
        finding = Finding(
            verdict,
            self._phase,
            self._clock() - self._entered,
            Scope.HOST,
            text=reply.text if reply else text,
        )
        return SessionFailed(finding, reply)
