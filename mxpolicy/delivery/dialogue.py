"""The bytes under a session: what leaves, what comes, and how waiting for it ends.

A `Dialogue` moves bytes between a stream and `mxpolicy.protocol.smtp_client` and turns
every way in which that can fail into a `SessionFailed`. Which commands are said and
what their answers mean is `mxpolicy.delivery.session`'s.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from mxpolicy.errors import MxPolicyError, RemoteProtocolError
from mxpolicy.net.ack_watch import AckWatch, StreamSilent, StreamStalled
from mxpolicy.net.stream import Stream, StreamClosed
from mxpolicy.protocol.smtp_client import SmtpClient
from mxpolicy.protocol.smtp_events import Closing, Event, StrayReply
from mxpolicy.protocol.smtp_states import State, facts
from mxpolicy.reply import Reply, printable
from mxpolicy.routing.candidate import Awaited, Finding, Phase, Scope, Verdict, Wait

__all__ = ["Dialogue", "SessionFailed"]

# Seconds for the rest of what a host has begun to say unasked.
_REST_OF_A_REPLY = 10.0

# Seconds between two looks at what has become of a command that nobody answers.
_LOOK = 1.0

# What we wait for in each state. A transaction after RSET begins with MAIL; of a dot
# that is known not to have left, only the body was awaited.
_AWAITED: dict[State, Awaited] = {
    State.GREETING: Awaited.GREETING,
    State.EHLO: Awaited.EHLO,
    State.HELO: Awaited.EHLO,
    State.STARTTLS: Awaited.TLS,
    State.TLS_HANDSHAKE: Awaited.TLS,
    State.READY: Awaited.MAIL,
    State.RSET: Awaited.MAIL,
    State.MAIL: Awaited.MAIL,
    State.RCPT: Awaited.RCPT,
    State.DATA: Awaited.DATA,
    State.BODY: Awaited.BODY,
    State.DOT: Awaited.BODY,
    State.QUIT: Awaited.MAIL,
    State.CLOSED: Awaited.BODY,
}

E = TypeVar("E")


class SessionFailed(MxPolicyError):
    """The session cannot be used any more.

    Attributes:
        finding: Verdict, phase, and how long that phase had lasted.
        reply: What the host said, None when it said nothing.
        client_hello_was_sent: It failed after that (RFC 8446 §4.1.2), which is the
            first packet of a session that may be large.
    """

    def __init__(self, finding: Finding, reply: Reply | None = None) -> None:
        super().__init__(finding, reply)
        self.finding = finding
        self.reply = reply
        self.client_hello_was_sent = False

    def __str__(self) -> str:
        return f"{self.finding.verdict.value} {self.finding.text}".rstrip()


class Dialogue:
    """SMTP over *stream*, which it owns from now on.

    Args:
        stream: Connected.
        client: The protocol's side of it.
        clock: Seconds, monotonic.
        on_stray: Told of each reply that answers nothing and was dropped.
    """

    def __init__(
        self,
        stream: Stream,
        client: SmtpClient,
        clock: Callable[[], float],
        on_stray: Callable[[Reply], None],
    ) -> None:
        self._stream = stream
        self._smtp = client
        self._clock = clock
        self._on_stray = on_stray
        self._events: deque[Event] = deque()
        self._phase = Phase.GREETING
        self._entered = clock()
        self._is_cut_short = False  # in the middle of the mail data
        self._is_sent = True  # the kernel has taken all that we had to say
        self._sent_until = 0  # what `Stream.acknowledged` is when it has arrived
        self._dot_progress = 0.0  # seconds for the dot to leave in

    def _enter(
        self, phase: Phase, on_phase: Callable[[Phase], None] | None = None
    ) -> None:
        self._phase, self._entered = phase, self._clock()
        if on_phase is not None:
            on_phase(phase)

    # -- the end ----------------------------------------------------------

    def quit(self) -> None:
        """Say QUIT and let go, without waiting for the answer (as Postfix does).

        A host that has judged the message before it had all of it gets no more of
        it, and no orderly end that it might take for the end of the mail data.
        """
        if self._is_cut_short:
            self.abort()
            return
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
        with self._translated():
            try:
                await self._wait_for_event(timeout)
            except TimeoutError:
                raise self._out_of_patience(timeout or 0.0) from None
        event = self._events.popleft()
        if isinstance(event, kinds):
            return event
        raise self._unexpected(event)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise SessionFailed for what a stream or the protocol raises."""
        try:
            yield
        except StreamClosed as exc:
            raise self._closed(exc) from exc
        except RemoteProtocolError as exc:
            raise self._failed(self._nonsense(), printable(str(exc))) from exc

    async def _wait_for_event(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Exchange bytes until there is an event; raise TimeoutError without one.

        Before it gives up it looks once more. Somebody may have stopped us
        (SIGSTOP, a frozen machine): then the reply has come in time, and to leave
        the one to the final dot unread is to send the message twice.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self._events:
                    await self._exchange()
        await self._listen()
        if not self._events:
            raise TimeoutError

    async def _exchange(self) -> None:
        """Send what may leave now, then take in whatever comes."""
        if self._smtp.awaits and not self._smtp.is_asking:
            await self._listen_before_asking()
            if self._events:
                return
        data = self._smtp.data_to_send()
        if data:
            self._is_sent = False
            # Closed: what it said before that (421, 552) is still there to be read.
            with suppress(StreamClosed):
                await self._stream.write(data)
                self._is_sent = True
                self._sent_until = self._stream.handed_over
        if self._phase in (Phase.TRANSACTION, Phase.DOT):
            await self._watch_what_was_sent()
        await self._take_in()

    async def _watch_what_was_sent(self) -> None:
        """Wait until something comes, or all that was sent is acknowledged.

        Before *ready* nobody watches: there, whoever is slow is merely overtaken.
        """
        watch = AckWatch(self._stream)
        while self._stream.unacknowledged():
            if await self._stream.wait_for_input(_LOOK):
                return
            self._look(watch)

    def _look(self, watch: AckWatch) -> None:
        """Raise when what was sent provably does not arrive.

        After the dot only the dot that has not left in all the time a slow reader
        is given for the body.
        """
        if self._phase is not Phase.DOT:
            try:
                watch.check()
            except StreamStalled as exc:
                raise self._unheard(exc) from exc
            return
        state = self._stream.send_state()
        patient = self._clock() - self._entered < self._dot_progress
        if state is not None and state.unsent and not patient:
            raise self._out_of_patience(self._dot_progress, text="its window is closed")

    async def _listen_before_asking(self) -> None:
        """Hear what the host says while no reply is due, to the end of its sentence.

        Right before a command leaves, after all that was slow: what is there now is
        no answer to it, and nobody could tell that from what comes later.
        """
        try:
            async with asyncio.timeout(_REST_OF_A_REPLY):
                await self._listen()
                while self._smtp.is_in_mid_reply and not self._events:
                    await self._take_in()
                    await self._listen()
        except TimeoutError:
            text = "a reply to nothing, without an end"
            raise self._failed(Verdict.SILENT, text) from None

    async def _listen(self) -> None:
        """Take in what is there, without waiting, up to an event."""
        while not self._events and self._stream.has_input():
            await self._take_in()

    async def _take_in(self) -> None:
        """Read once, waiting for it. What answers nothing is told and forgotten."""
        received = await self._stream.read()
        if not received:
            raise StreamClosed("connection closed by the host")
        is_early = self._phase is Phase.DOT and not self._has_arrived()
        for event in self._smtp.receive_data(received, is_early=is_early):
            if isinstance(event, StrayReply):
                self._on_stray(event.reply)
            else:
                self._events.append(event)

    def _has_arrived(self) -> bool:
        """Whether the host's kernel may have all that we said, as of what was just read.

        A host answers what it has read, and every segment that it sends acknowledges
        that (RFC 9293 §3.10.7.4); our kernel looks at the acknowledgement of a segment
        before it lets us have its data. So while the dot is unacknowledged *after* a
        read, what was read is no answer to it, also when the acknowledgement rides on
        the reply itself. Where the kernel does not tell, all counts as arrived.
        """
        return self._is_sent and self._stream.acknowledged >= self._sent_until

    async def _heed_what_has_come(self) -> None:
        """Fail when the host has ended a session that was kept waiting.

        That is its idle timeout and nothing about the message, 421 or not (RFC
        5321 §4.5.3.2.7).
        """
        try:
            await self._listen()
        except (StreamClosed, RemoteProtocolError) as exc:
            raise self._failed(Verdict.CLOSED, printable(str(exc))) from exc
        if self._events:
            goodbye = self._unexpected(self._events.popleft())
            raise self._failed(Verdict.CLOSED, reply=goodbye.reply)

    def _heed_the_end(self) -> None:
        """Raise when the host has said goodbye right behind its last reply."""
        if self._events:
            raise self._unexpected(self._events.popleft())

    def _unexpected(self, event: Event) -> SessionFailed:
        """Return the failure for an event that nobody asked for: a goodbye."""
        if isinstance(event, Closing):
            return self._failed(
                self._verdict_of_goodbye(event.reply), reply=event.reply
            )
        raise AssertionError(f"{event!r} is no answer")

    def _closed(self, exc: StreamClosed) -> SessionFailed:
        if self._phase is Phase.GREETING and (said := self._smtp.skipped):
            return self._failed(Verdict.NOT_SMTP, f"not an SMTP reply: {said!r}")
        is_tls = self._phase is Phase.TLS
        verdict = Verdict.TLS_FAILED if is_tls else Verdict.CLOSED
        return self._failed(verdict, str(exc))

    def _nonsense(self) -> Verdict:
        if self._phase is Phase.TLS:
            return Verdict.TLS_FAILED  # words in clear that nobody must believe
        return Verdict.NOT_SMTP if self._phase is Phase.GREETING else Verdict.CLOSED

    def _verdict_of_goodbye(self, reply: Reply) -> Verdict:
        match self._phase:
            case Phase.GREETING:
                return Verdict.GREETING_4XX
            case Phase.EHLO:
                return Verdict.EHLO_REFUSED
            case Phase.TLS:
                return Verdict.STARTTLS_REFUSED
            case _:
                return Verdict.TRANSIENT if reply.is_transient else Verdict.CLOSED

    def _out_of_patience(
        self, seconds: float, verdict: Verdict = Verdict.SILENT, text: str = ""
    ) -> SessionFailed:
        """Make the exception for a host that was waited for *seconds* in vain."""
        failed = self._failed(verdict, text or self._awaited())
        wait = Wait(_AWAITED[self._smtp.state], seconds)
        failed.finding = failed.finding._replace(wait=wait)
        return failed

    def _awaited(self) -> str:
        # What that means for the message, if anything, is `trouble`'s to say.
        return facts(self._smtp.state).log_words.partition(";")[0]

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
            is_transient=reply is not None and reply.is_transient,
        )
        return SessionFailed(finding, reply)

    def _unheard(self, exc: StreamSilent) -> SessionFailed:
        stalled = isinstance(exc, StreamStalled)
        verdict = Verdict.STALLED if stalled else Verdict.SILENT
        return self._out_of_patience(exc.seconds, verdict, str(exc))
