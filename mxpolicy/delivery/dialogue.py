"""The bytes under a session: what leaves, what comes, and how waiting for it ends.

A `Dialogue` moves bytes between a stream and `mxpolicy.protocol.smtp_client`. Every
failure of that becomes a `SessionFailed`. It sends only the final dot and QUIT by itself.
`mxpolicy.delivery.session` and `mxpolicy.delivery.transaction` give the other commands,
and know what the answers mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from typing import NamedTuple, TypeVar

from mxpolicy.errors import MxPolicyError, RemoteProtocolError
from mxpolicy.net.ack_watch import AckWatch, StreamSilent, StreamStalled
from mxpolicy.net.channel import StreamClosed
from mxpolicy.net.stream import Stream
from mxpolicy.protocol.smtp_client import SmtpClient
from mxpolicy.protocol.smtp_events import (
    BodyRefused,
    Closing,
    DotAnswered,
    Event,
    StrayReply,
)
from mxpolicy.protocol.smtp_states import State, facts
from mxpolicy.reply import Reply, printable
from mxpolicy.routing.candidate import Awaited, Finding, Phase, Scope, Verdict, Wait
from mxpolicy.routing.evidence import PathProof

__all__ = ["Dialogue", "Listener", "SessionFailed"]

# Seconds for the rest of a reply that the host has begun unasked.
_REST_OF_A_REPLY = 10.0

# Seconds between two looks at whether an unanswered command has arrived.
_LOOK = 1.0

# What we wait for in each state. A transaction after RSET begins with MAIL. While a dot
# has not left, only the body is awaited.
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

# The verdict when the host says goodbye, or speaks no SMTP, in a phase before *ready*.
_GOODBYE = {
    Phase.GREETING: Verdict.GREETING_4XX,
    Phase.EHLO: Verdict.EHLO_REFUSED,
    Phase.TLS: Verdict.STARTTLS_REFUSED,
}
_NONSENSE = {
    Phase.GREETING: Verdict.NOT_SMTP,
    Phase.TLS: Verdict.TLS_FAILED,  # a reply in clear that must not be believed
}

E = TypeVar("E")

_Step = Callable[..., Awaitable[bool]]


class SessionFailed(MxPolicyError):
    """The session cannot be used any more.

    Attributes:
        finding: Verdict, phase, and how long that phase had lasted.
        reply: What the host said, None when it said nothing.
        client_hello_is_unanswered: It failed in waiting for the answer to a ClientHello
            (RFC 8446 §4.1.2), the first packet of a session that may be large. The
            answer may be large, too.
    """

    def __init__(self, finding: Finding, reply: Reply | None = None) -> None:
        super().__init__(finding, reply)
        self.finding = finding
        self.reply = reply
        self.client_hello_is_unanswered = False

    def add_remark(self, remark: str) -> None:
        """Append *remark* to the text."""
        text = "; ".join(filter(None, (self.finding.text, remark)))
        self.finding = self.finding._replace(text=printable(text))

    def __str__(self) -> str:
        return f"{self.finding.verdict.value} {self.finding.text}".rstrip()


class Listener(NamedTuple):
    """Is told what a session does, as it does it. By default it ignores all.

    Attributes:
        entered: A phase begins, on the way to ready.
        progressed: The host has answered a command of a transaction, or taken more of
            the mail data.
        ignored: The host has sent a reply that answers no command; it was dropped.
    """

    entered: Callable[[Phase], None] = lambda phase: None
    progressed: Callable[[], None] = lambda: None
    ignored: Callable[[Reply], None] = lambda reply: None


class Dialogue:
    """SMTP over *stream*, which it owns from now on.

    Args:
        stream: Connected.
        helo: Our name for EHLO.
        clock: Seconds, monotonic.
        ignored: Is told of each reply that answers no command and was dropped.

    Attributes:
        stream: As given.
        smtp: The protocol. The commands that it is given leave with `next`.
        strays: How many replies answered no command.
        bears_strays: Whether such a reply is dropped. Else it ends the session: the
            next ones might be taken for answers that they are not.
        is_cut_short: The host has refused the message before it had the final dot.
    """

    def __init__(
        self,
        stream: Stream,
        helo: str,
        clock: Callable[[], float],
        ignored: Callable[[Reply], None],
    ) -> None:
        self.stream = stream
        self.smtp = SmtpClient(helo)
        self.strays = 0
        self.bears_strays = True
        self._clock = clock
        self._ignored = ignored
        self._events: deque[Event] = deque()
        self._phase = Phase.GREETING
        self._entered = clock()
        self.is_cut_short = False  # in the middle of the mail data
        self._is_sent = True  # the kernel has taken all that we had to send
        self._has_rest = False  # the stream has some of it, and is to `resume`
        self._trouble: RemoteProtocolError | None = None  # that `next` is to raise
        self._sent_until = 0  # `Stream.acknowledged` once it has arrived
        self._dot_progress = 0.0  # seconds in which the dot must leave
        self._body_size = 0  # bytes of the mail data that were written
        self._body_rest = b""  # of it, given to `give_body` and not written
        self._proof = PathProof()

    def enter(self, phase: Phase) -> None:
        """Begin *phase*: any failure from now on is a failure in it."""
        self._phase, self._entered = phase, self._clock()

    # -- the end ----------------------------------------------------------

    def quit(self) -> None:
        """Say QUIT and let go, without waiting for the answer (as Postfix does).

        A host that has refused the message in the middle gets no more of it. Nor does it
        get an orderly end, which it might take for the end of the mail data.
        """
        if self.is_cut_short:
            self.abort()
            return
        last_words = b""
        # A reply may have come that makes QUIT pointless or wrong; then go silently.
        with suppress(MxPolicyError):
            self.smtp.quit()
            last_words = self.smtp.data_to_send()
        self.stream.close(last_words)

    def abort(self) -> None:
        """Reset the connection: the part that the host has must not become a message."""
        self.stream.abort()

    # -- bytes and events -------------------------------------------------

    async def next(self, *kinds: type[E], timeout: float | None = None) -> E:  # noqa: ASYNC109
        """Send what is due; return the next event, which is one of *kinds*.

        Raises:
            SessionFailed: The peer closed, was silent for *timeout* seconds,
                answered 421, or did not speak SMTP.
        """
        try:
            await self._wait_for_event(timeout)
        except TimeoutError:
            raise self.out_of_patience(timeout or 0.0) from None
        except (StreamClosed, RemoteProtocolError) as exc:
            raise self._broken(exc) from exc
        event = self._events.popleft()
        if isinstance(event, kinds):
            return event
        raise self._unexpected(event)

    def _broken(self, exc: StreamClosed | RemoteProtocolError) -> SessionFailed:
        """Return the failure for what the stream or the protocol has raised."""
        if isinstance(exc, StreamClosed):
            return self._closed(exc)
        verdict = _NONSENSE.get(self._phase, Verdict.CLOSED)
        return self.failed(verdict, printable(str(exc)))

    async def _wait_for_event(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Exchange bytes until there is an event; raise TimeoutError without one.

        Before it gives up it looks once more. We may have been stopped (SIGSTOP, a
        frozen machine) while the reply came in time. A reply to the final dot that we
        leave unread makes a second copy.
        """
        if self._trouble is not None:
            raise self._trouble
        if self._events:
            return
        self.stream.wait_at_most(timeout)
        try:
            while not self._events:
                await self._exchange()
        except TimeoutError:
            await self._listen()
            if not self._events:
                raise
        finally:
            self.stream.wait_at_most(None)

    async def _exchange(self) -> None:
        """Send what may leave now, then read what comes."""
        if self.smtp.awaits and not self.smtp.is_asking:
            await self._listen_before_asking()
            if self._events:
                return
        data = self.smtp.data_to_send()
        if data or self._has_rest:
            self._is_sent = False
            # Closed: a reply before that (421, 552) is still there to be read.
            with suppress(StreamClosed):
                if self._has_rest:
                    await self.stream.resume()
                if data:
                    await self.stream.write(data)
                self._note_sent()
            self._has_rest = False
        if self._phase in (Phase.TRANSACTION, Phase.DOT):
            await self._watch_what_was_sent()
        await self._take_in()

    def _note_sent(self) -> None:
        self._is_sent = True
        self._sent_until = self.stream.handed_over

    async def _watch_what_was_sent(self) -> None:
        """Wait until something comes, or all that was sent is acknowledged.

        Nothing is watched before *ready*: a slow host is overtaken there.
        """
        watch = None  # most replies come before it is needed
        while not await self.stream.wait_for_input(_LOOK):
            if not self.stream.unacknowledged():
                return
            watch = watch or AckWatch(self.stream)
            self._look(watch)

    def _look(self, watch: AckWatch) -> None:
        """Raise when our data provably does not arrive.

        After the dot only one thing proves it: the dot has not left, in all the time that
        a slow reader has for the body.
        """
        if self._phase is not Phase.DOT:
            try:
                watch.check()
            except StreamStalled as exc:
                raise self._unheard(exc) from exc
            return
        state = self.stream.send_state()
        patient = self._clock() - self._entered < self._dot_progress
        if state is not None and state.unsent and not patient:
            raise self.out_of_patience(self._dot_progress, text="its window is closed")

    async def _listen_before_asking(self) -> None:
        """Hear what the host says while no reply is due, to the end of its reply.

        Called right before a command leaves. A reply that is there now is no answer to
        the command. Later it could not be told from one.
        """
        await self._listen()
        if not self.smtp.is_in_mid_reply:
            return
        try:
            async with asyncio.timeout(_REST_OF_A_REPLY) as rest:
                while self.smtp.is_in_mid_reply and not self._events:
                    await self._take_in()
                    await self._listen()
        except TimeoutError:
            if not rest.expired():
                raise
            text = "a reply to nothing, without an end"
            raise self.failed(Verdict.SILENT, text) from None

    async def _listen(self) -> None:
        """Read what is there, without waiting, up to an event."""
        while not self._events and self.stream.has_input():
            await self._take_in()

    async def _take_in(self) -> None:
        """Wait for data and read it. A reply that answers no command is dropped."""
        self._understand(await self.stream.read())

    def _understand(self, received: bytes) -> None:
        if not received:
            raise StreamClosed("connection closed by the host")
        is_early = self._phase is Phase.DOT and not self._has_arrived()
        for event in self.smtp.receive_data(received, is_early=is_early):
            if not isinstance(event, StrayReply):
                self._events.append(event)
                continue
            self.strays += 1
            if not self.bears_strays:
                text = f"a reply to nothing: {event.reply.text}"
                self._trouble = RemoteProtocolError(text)
                raise self._trouble
            self._ignored(event.reply)

    # -- without waiting ----------------------------------------------------
    #
    # For `mxpolicy.delivery.fast_path`. The methods that wait may be called after them.

    @property
    def heard(self) -> list[Event]:
        """The events that `forget_heard` or `next` has not taken yet."""
        return list(self._events)

    def forget_heard(self, count: int) -> None:
        """Take the first *count* events that were `heard`."""
        for _ in range(count):
            self._events.popleft()

    def hear_now(self) -> None:
        """Read what is there; the events are in `heard`.

        Raises:
            StreamClosed: The peer closed. `next` will say so, too.
            RemoteProtocolError: It did not speak SMTP; the same.
            LocalTrouble: Our own kernel is out of something.
        """
        received = self.stream.take()
        while received is not None:
            self._understand(received)
            # What is left in the socket is announced again, but not what TLS has.
            received = self.stream.take() if self.stream.tls else None

    def heed_what_is_broken(self) -> None:
        """Raise when the server broke the protocol behind what was `heard`.

        `next` will do so, too. To be called before the dot: until then no reply is worth
        more than to know that none is out of step.
        """
        self._trouble = self._trouble or self.smtp.error
        if self._trouble is not None:
            raise self._trouble

    def send_now(self) -> bool:
        """Send the commands that may leave; return whether the kernel has taken them.

        If it has not, `next` sends the rest. Raises as `hear_now`.
        """
        data = self.smtp.data_to_send()
        if data:
            self._is_sent, self._has_rest = False, True
            if not self.stream.give(data):
                return False
            self._has_rest = False
            self._note_sent()
        return True

    def give_body(self, body: bytes) -> bool:
        """Send all of the mail data; return whether the kernel has taken it.

        If it has not, `finish_body` sends the rest. Raises as `hear_now`.
        """
        self._body_size = len(body)
        is_proven = self._is_proven(self._body_size)
        cut = len(body) if is_proven else len(body) - 2  # see `send_end`
        self._body_rest = body[cut:]
        if not is_proven:
            self.stream.announce(True)
        is_taken = self.stream.give(body[:cut])
        if not is_proven:
            self.stream.announce(False)
        if not is_taken:
            return False
        self._proof.written(cut, self.stream.handed_over)
        rest, self._body_rest = self._body_rest, b""
        if rest and not self.stream.give(rest):
            return False
        self._proof.written(self._body_size, self.stream.handed_over)
        return True

    def may_dot_follow(self) -> bool:
        """Return whether `drain` would not wait."""
        return self._is_proven(self._body_size) or self._dot_may_follow(
            self.stream.unacknowledged()
        )

    def dot_is_answered(self) -> None:
        """The reply to the dot is here; so the host's kernel has all before it."""
        self._proof.acknowledged(self._sent_until, self._clock())

    def is_quiet(self) -> bool:
        """Whether no transaction is open, and the host has said nothing more."""
        is_ready = self.smtp.state is State.READY and self.smtp.awaits is None
        is_heard = not self._events and not self.smtp.is_in_mid_reply
        return is_ready and is_heard and not self.stream.has_input()

    def _has_arrived(self) -> bool:
        """Return whether the host's kernel may have all that we sent, at the last read.

        A host answers what it has read, and every segment that it sends acknowledges
        that (RFC 9293 §3.10.7.4). Our kernel handles the acknowledgement in a segment
        before it gives us the data in it. So while the dot is unacknowledged *after* a
        read, that read brought no answer to the dot. It holds also when the
        acknowledgement comes in the segment of the reply. Where the kernel does not tell,
        all counts as arrived.
        """
        return self._is_sent and self.stream.acknowledged >= self._sent_until

    # -- the mail data ----------------------------------------------------

    def begin_body(self) -> None:
        """The mail data of a message is next."""
        self._body_size = 0

    async def send_body(self, piece: bytes, progress: float) -> Reply | None:
        """Send *piece* of the mail data; return a refusal that came meanwhile.

        Args:
            progress: Seconds without an acknowledged byte that are too many.

        Raises:
            SessionFailed: The host has gone, or takes nothing more.
        """
        steps: Iterator[_Step] = chain(
            [partial(self.stream.write, piece)], repeat(self.stream.resume)
        )
        early = await self._unless_refused(steps, progress)
        self._body_size += len(piece)
        self._proof.written(len(piece), self.stream.handed_over)
        return early

    async def send_end(self, piece: bytes, progress: float) -> Reply | None:
        """Send the last *piece* of the mail data, which ends with CRLF; see `send_body`.

        The CRLF leaves in a segment of its own, if `drain` would wait for its arrival. A
        kernel may keep an acknowledgement back for 40 to 200 ms, in case a reply can
        carry it (RFC 9293 §3.8.6.3). Linux, Windows and the BSDs do not do so for a
        second segment.
        """
        if self._is_proven(self._body_size + len(piece)):
            return await self.send_body(piece, progress)
        self.stream.announce(True)
        early = await self.send_body(piece[:-2], progress)
        self.stream.announce(False)
        if early is None:
            early = await self.send_body(piece[-2:], progress)
        # Two bytes more than the larger segment: near enough for a later message.
        self._proof.written(len(piece), self.stream.handed_over)
        return early

    async def finish_body(self, progress: float) -> Reply | None:
        """Send what `give_body` has left of the mail data; see `send_body`."""
        early = await self._unless_refused(repeat(self.stream.resume), progress)
        if early is None and self._body_rest:
            rest, self._body_rest = self._body_rest, b""
            self._body_size -= len(rest)
            early = await self.send_body(rest, progress)
        return early

    async def drain(self, progress: float) -> Reply | None:
        """Wait until the dot may follow; see `send_body`.

        A path that swallows the body, or our acknowledgements, is found here. Later
        another host could not be asked without the risk of a second copy. So the host's
        kernel must have the body, or the path must have proved that it lets such data
        through (`mxpolicy.routing.evidence.PathProof`). It costs a round trip.
        """
        if self._is_proven(self._body_size):
            return None
        step: _Step = partial(self.stream.drain, suffices=self._dot_may_follow)
        return await self._unless_refused(repeat(step), progress)

    def _is_proven(self, unacknowledged: int) -> bool:
        return self._proof.covers(unacknowledged, self._clock())

    def _dot_may_follow(self, unacknowledged: int) -> bool:
        """Return whether it may, when the host's kernel lacks so many bytes."""
        arrived = self.stream.handed_over - unacknowledged
        self._proof.acknowledged(arrived, self._clock())
        return self._is_proven(unacknowledged)

    async def _unless_refused(
        self, steps: Iterator[_Step], progress: float
    ) -> Reply | None:
        """Take *steps* until one returns True, or the host refuses.

        Each is a method of `Stream` that takes *heed_input*. The next one follows where
        the host has said something else.
        """
        while True:
            gone = None
            try:
                if not self._events and await next(steps)(
                    progress_timeout=progress, heed_input=True
                ):
                    return None
            except StreamClosed as exc:
                gone = exc  # a reply before that is still there to be read
            except StreamSilent as exc:
                raise self._unheard(exc) from exc
            early = await self._early_refusal()
            if early is not None:
                return early
            if gone is not None:
                raise self._closed(gone) from gone

    async def _early_refusal(self) -> Reply | None:
        """Hear what the host says in the middle of the mail data; return a refusal."""
        try:
            await self._listen()
        except (StreamClosed, RemoteProtocolError) as exc:
            raise self._broken(exc) from exc
        if not self._events:
            return None
        event: BodyRefused | Closing = await self.next(BodyRefused, Closing)
        self.is_cut_short = True
        return event.reply

    def begin_dot(self, progress: float) -> None:
        """Give the final dot, which leaves in a write of its own by `reply_to_dot`.

        Args:
            progress: Seconds in which it must leave.
        """
        self.enter(Phase.DOT)
        self._is_sent = False  # nor will it be, if it is refused before that
        self.smtp.dot()
        self._dot_progress = progress

    async def reply_to_dot(self, timeout: float) -> Reply:  # noqa: ASYNC109
        """Return the reply that decides.

        That is the answer to the dot, or a refusal that came before the host had it.

        Args:
            timeout: Seconds for the reply, from `begin_dot` on.

        Raises:
            SessionFailed: There is no reply. See `take_dot_back`.
        """
        left = max(0.0, timeout - (self._clock() - self._entered))
        event: DotAnswered | BodyRefused | Closing
        event = await self.next(DotAnswered, BodyRefused, Closing, timeout=left)
        if isinstance(event, DotAnswered):
            self.dot_is_answered()
        # A host that has refused must not get the dot after that.
        self.is_cut_short = not isinstance(event, DotAnswered) and (
            not self._has_arrived() or isinstance(event, BodyRefused)
        )
        return event.reply

    @property
    def awaits_reply_to_dot(self) -> bool:
        """Whether the dot is the last thing that was said."""
        return self.smtp.state is State.DOT

    async def late_reply(self, timeout: float | None = None) -> Reply:  # noqa: ASYNC109
        """Return the reply to the dot, which `reply_to_dot` has not got in its time.

        Args:
            timeout: Seconds; None is as long as it takes.

        Raises:
            SessionFailed: It will not come, or has not.
        """
        event: DotAnswered | BodyRefused | Closing
        event = await self.next(DotAnswered, BodyRefused, Closing, timeout=timeout)
        return event.reply

    def take_dot_back(self) -> bool:
        """Return whether the host cannot have the dot, after `reply_to_dot` has failed.

        Either it has not left us, or the kernel still has it: the host's window is
        closed. A partly sent dot cannot end the message. Then the connection is reset at
        once, or the kernel might still send the rest when the window opens.
        """
        if not self._is_sent:
            return True
        state = self.stream.send_state()
        if state is None or not state.unsent:
            return False
        self.abort()
        return True

    # -- what has failed --------------------------------------------------

    async def heed_what_has_come(self) -> None:
        """Raise when the host has ended a session that was kept waiting.

        It is the host's idle timeout, 421 or not, and says nothing about the message (RFC
        5321 §4.5.3.2.7).
        """
        try:
            await self._listen()
        except (StreamClosed, RemoteProtocolError) as exc:
            raise self.failed(Verdict.CLOSED, printable(str(exc))) from exc
        if self._events:
            goodbye = self._unexpected(self._events.popleft())
            raise self.failed(Verdict.CLOSED, reply=goodbye.reply)

    def heed_the_end(self) -> None:
        """Raise when the host has said goodbye right after its last reply."""
        if self._events:
            raise self._unexpected(self._events.popleft())

    def _unexpected(self, event: Event) -> SessionFailed:
        """Return the failure for an event that answers no command: a goodbye."""
        assert isinstance(event, Closing), f"{event!r} is no answer"
        reply = event.reply
        usual = Verdict.TRANSIENT if reply.is_transient else Verdict.CLOSED
        return self.failed(_GOODBYE.get(self._phase, usual), reply=reply)

    def _closed(self, exc: StreamClosed) -> SessionFailed:
        if self._phase is Phase.GREETING and (said := self.smtp.skipped):
            return self.failed(Verdict.NOT_SMTP, f"not an SMTP reply: {said!r}")
        is_tls = self._phase is Phase.TLS
        verdict = Verdict.TLS_FAILED if is_tls else Verdict.CLOSED
        return self.failed(verdict, str(exc))

    def out_of_patience(
        self, seconds: float, verdict: Verdict = Verdict.SILENT, text: str = ""
    ) -> SessionFailed:
        """Make the exception for a host that was waited for *seconds* in vain."""
        failed = self.failed(verdict, text or self.doing())
        wait = Wait(_AWAITED[self.smtp.state], seconds)
        failed.finding = failed.finding._replace(wait=wait)
        return failed

    def doing(self) -> str:
        """Return what we are doing, in words for the log."""
        # The rest says what that means for the message; `trouble` has its own words.
        return facts(self.smtp.state).log_words.partition(";")[0]

    def failed(
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
        return self.out_of_patience(exc.seconds, verdict, str(exc))
