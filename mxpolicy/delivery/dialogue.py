"""The bytes under a session: what leaves, what comes, and how waiting for it ends.

A `Dialogue` moves bytes between a stream and `mxpolicy.protocol.smtp_client`. Every
failure of that becomes a `SessionFailed`. It says only QUIT by itself.
`mxpolicy.delivery.session` and `mxpolicy.delivery.transaction` give the other commands,
and know what the answers mean. `mxpolicy.delivery.body` sends the mail data.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from mxpolicy.delivery.session_phase import SessionPhase
from mxpolicy.errors import MxPolicyError, RemoteProtocolError
from mxpolicy.net.ack_watch import AckWatch, StreamStalled
from mxpolicy.net.channel import StreamClosed
from mxpolicy.net.stream import Stream
from mxpolicy.protocol.smtp_client import SmtpClient
from mxpolicy.protocol.smtp_events import Event, StrayReply
from mxpolicy.protocol.smtp_states import State
from mxpolicy.reply import Reply
from mxpolicy.routing.candidate import Phase, Verdict

__all__ = ["Dialogue", "Listener"]

# Seconds for the rest of a reply that the host has begun unasked.
_REST_OF_A_REPLY = 10.0

# Seconds between two looks at whether an unanswered command has arrived.
_LOOK = 1.0

E = TypeVar("E")


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
        phase: How far the session is; it makes the exception for each failure.
        strays: How many replies answered no command.
        bears_strays: Whether such a reply is dropped. Else it ends the session: the
            next ones might be taken for answers that they are not.
        is_cut_short: The host has refused the message before it had the final dot.
        is_sent: Whether the kernel has taken all that we had to send.
        sent_until: `Stream.acknowledged` once that has arrived.
        dot_leaves_in: Seconds in which the kernel must send the final dot.
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
        self.phase = SessionPhase(self.smtp, clock)
        self.is_cut_short = False  # in the middle of the mail data
        self.is_sent = True
        self.sent_until = 0
        self.dot_leaves_in = 0.0
        self._ignored = ignored
        self._events: deque[Event] = deque()
        self._has_rest = False  # the stream has some of it, and is to `resume`
        self._trouble: RemoteProtocolError | None = None  # that `next` is to raise

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
            raise self.phase.out_of_patience(timeout or 0.0) from None
        except (StreamClosed, RemoteProtocolError) as exc:
            raise self.phase.broken(exc) from exc
        event = self._events.popleft()
        if isinstance(event, kinds):
            return event
        raise self.phase.unexpected(event)

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
            self.is_sent = False
            # Closed: a reply before that (421, 552) is still there to be read.
            with suppress(StreamClosed):
                if self._has_rest:
                    await self.stream.resume()
                if data:
                    await self.stream.write(data)
                self._note_sent()
            self._has_rest = False
        if self.phase.now in (Phase.TRANSACTION, Phase.DOT):
            await self._watch_what_was_sent()
        await self._take_in()

    def _note_sent(self) -> None:
        self.is_sent = True
        self.sent_until = self.stream.handed_over

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
        if self.phase.now is not Phase.DOT:
            try:
                watch.check()
            except StreamStalled as exc:
                raise self.phase.unheard(exc) from exc
            return
        state = self.stream.send_state()
        patient = self.phase.seconds() < self.dot_leaves_in
        if state is not None and state.unsent and not patient:
            text = "its window is closed"
            raise self.phase.out_of_patience(self.dot_leaves_in, text=text)

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
            raise self.phase.failed(Verdict.SILENT, text) from None

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
        is_early = self.phase.now is Phase.DOT and not self.has_arrived()
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

    async def has_heard(self) -> bool:
        """Read what is there, without waiting; return whether there is an event.

        Raises:
            SessionFailed: The host closed, or did not speak SMTP.
        """
        try:
            await self._listen()
        except (StreamClosed, RemoteProtocolError) as exc:
            raise self.phase.broken(exc) from exc
        return bool(self._events)

    async def heed_what_has_come(self) -> None:
        """Raise when the host has ended a session that was kept waiting.

        It is the host's idle timeout, 421 or not, and says nothing about the message (RFC
        5321 §4.5.3.2.7).
        """
        if await self.has_heard():
            goodbye = self.phase.unexpected(self._events.popleft())
            raise self.phase.failed(Verdict.CLOSED, reply=goodbye.reply)

    def heed_the_end(self) -> None:
        """Raise when the host has said goodbye right after its last reply."""
        if self._events:
            raise self.phase.unexpected(self._events.popleft())

    def has_arrived(self) -> bool:
        """Return whether the host's kernel may have all that we sent, at the last read.

        A host answers what it has read, and every segment that it sends acknowledges
        that (RFC 9293 §3.10.7.4). Our kernel handles the acknowledgement in a segment
        before it gives us the data in it. So while the dot is unacknowledged *after* a
        read, that read brought no answer to the dot. It holds also when the
        acknowledgement comes in the segment of the reply. Where the kernel does not tell,
        all counts as arrived.
        """
        return self.is_sent and self.stream.acknowledged >= self.sent_until

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
            self.is_sent, self._has_rest = False, True
            if not self.stream.give(data):
                return False
            self._has_rest = False
            self._note_sent()
        return True

    def is_quiet(self) -> bool:
        """Whether no transaction is open, and the host has said nothing more."""
        is_ready = self.smtp.state is State.READY and self.smtp.awaits is None
        is_heard = not self._events and not self.smtp.is_in_mid_reply
        return is_ready and is_heard and not self.stream.has_input()
