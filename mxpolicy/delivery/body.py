"""The mail data over a session, and the final dot behind it (RFC 5321 §4.1.1.4).

A path that swallows the mail data, or our acknowledgements, is to be found before the dot
leaves. Later another host could not be asked without the risk of a second copy. So the dot
waits until the host's kernel has the mail data, or the path has proved that it lets such
data through (`mxpolicy.routing.evidence.PathProof`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING

from mxpolicy.delivery.dialogue import Dialogue
from mxpolicy.net.ack_watch import StreamSilent
from mxpolicy.net.channel import StreamClosed
from mxpolicy.protocol.dot_stuffing import DotStuffer
from mxpolicy.protocol.smtp_events import BodyRefused, Closing, DotAnswered
from mxpolicy.protocol.smtp_states import State
from mxpolicy.reply import Reply
from mxpolicy.routing.candidate import Phase
from mxpolicy.routing.evidence import PathProof

if TYPE_CHECKING:
    from mxpolicy.delivery.mail_data import MailData
    from mxpolicy.options import LongLines

__all__ = ["Body"]

# Bytes of one write.
_CHUNK = 64 * 1024

_Step = Callable[..., Awaitable[bool]]


class Body:
    """The mail data of one message after the other, over *dialogue*.

    Where a method has a *progress*, that is how many seconds without an acknowledged byte
    are too many. It raises `SessionFailed` where the host has gone or takes nothing more.

    Args:
        dialogue: Of the session.
        clock: Seconds, monotonic.
    """

    def __init__(self, dialogue: Dialogue, clock: Callable[[], float]) -> None:
        self._dialogue = dialogue
        self._stream = dialogue.stream
        self._clock = clock
        self._size = 0  # bytes that were written
        self._rest = b""  # given to `give` and not written
        self._proof = PathProof()

    # -- the mail data ----------------------------------------------------

    async def send(
        self, mail_data: MailData, long_lines: LongLines, progress: float
    ) -> Reply | None:
        """Send *mail_data*, dot-stuffed; return a refusal that came meanwhile."""
        self._size = 0
        stuffer = DotStuffer(long_lines)
        piece = b""  # kept until it is known whether it is the last one
        async for chunk in mail_data.chunks(_CHUNK):
            if piece:
                early = await self._send_piece(piece, progress)
                if early is not None:
                    return early
            piece = stuffer.encode(chunk)
        return await self._send_end(piece + stuffer.finish(), progress)

    async def _send_piece(self, piece: bytes, progress: float) -> Reply | None:
        steps: Iterator[_Step] = chain(
            [partial(self._stream.write, piece)], repeat(self._stream.resume)
        )
        early = await self._unless_refused(steps, progress)
        self._size += len(piece)
        self._proof.written(len(piece), self._stream.handed_over)
        return early

    async def _send_end(self, piece: bytes, progress: float) -> Reply | None:
        """Send the last *piece* of the mail data, which ends with CRLF.

        The CRLF leaves in a segment of its own, if `drain` would wait for its arrival. A
        kernel may keep an acknowledgement back for 40 to 200 ms, in case a reply can
        carry it (RFC 9293 §3.8.6.3). Linux, Windows and the BSDs do not do so for a
        second segment.
        """
        if self._is_proven(self._size + len(piece)):
            return await self._send_piece(piece, progress)
        self._stream.announce(True)
        early = await self._send_piece(piece[:-2], progress)
        self._stream.announce(False)
        if early is None:
            early = await self._send_piece(piece[-2:], progress)
        # Two bytes more than the larger segment: near enough for a later message.
        self._proof.written(len(piece), self._stream.handed_over)
        return early

    def give(self, body: bytes) -> bool:
        """Send all of the mail data, dot-stuffed, at once; return whether the kernel has taken it.

        If it has not, `finish` sends the rest.

        Raises:
            StreamClosed: The peer closed. `Dialogue.next` will say so, too.
            LocalTrouble: Our own kernel is out of something.
        """
        self._size = len(body)
        is_proven = self._is_proven(self._size)
        cut = len(body) if is_proven else len(body) - 2  # see `_send_end`
        self._rest = body[cut:]
        if not is_proven:
            self._stream.announce(True)
        is_taken = self._stream.give(body[:cut])
        if not is_proven:
            self._stream.announce(False)
        if not is_taken:
            return False
        self._proof.written(cut, self._stream.handed_over)
        rest, self._rest = self._rest, b""
        if rest and not self._stream.give(rest):
            return False
        self._proof.written(self._size, self._stream.handed_over)
        return True

    async def finish(self, progress: float) -> Reply | None:
        """Send what `give` has left of the mail data; see `send`."""
        early = await self._unless_refused(repeat(self._stream.resume), progress)
        if early is None and self._rest:
            rest, self._rest = self._rest, b""
            self._size -= len(rest)
            early = await self._send_piece(rest, progress)
        return early

    async def drain(self, progress: float) -> Reply | None:
        """Wait until the dot may follow; see `send`. It costs a round trip."""
        if self._is_proven(self._size):
            return None
        step: _Step = partial(self._stream.drain, suffices=self._suffices)
        return await self._unless_refused(repeat(step), progress)

    def may_dot_follow(self) -> bool:
        """Return whether `drain` would not wait."""
        return self._is_proven(self._size) or self._suffices(
            self._stream.unacknowledged()
        )

    def _is_proven(self, unacknowledged: int) -> bool:
        return self._proof.covers(unacknowledged, self._clock())

    def _suffices(self, unacknowledged: int) -> bool:
        """Return whether the dot may follow when the host's kernel lacks so many bytes."""
        arrived = self._stream.handed_over - unacknowledged
        self._proof.acknowledged(arrived, self._clock())
        return self._is_proven(unacknowledged)

    async def _unless_refused(
        self, steps: Iterator[_Step], progress: float
    ) -> Reply | None:
        """Take *steps* until one returns True, or the host refuses.

        Each is a method of `Stream` that takes *heed_input*. The next one follows where
        the host has said something else.
        """
        dialogue = self._dialogue
        while True:
            gone = None
            try:
                if not dialogue.heard and await next(steps)(
                    progress_timeout=progress, heed_input=True
                ):
                    return None
            except StreamClosed as exc:
                gone = exc  # a reply before that is still there to be read
            except StreamSilent as exc:
                raise dialogue.phase.unheard(exc) from exc
            if await dialogue.has_heard():  # in the middle of the mail data
                event: BodyRefused | Closing = await dialogue.next(BodyRefused, Closing)
                dialogue.is_cut_short = True
                return event.reply
            if gone is not None:
                raise dialogue.phase.broken(gone) from gone

    # -- the dot ----------------------------------------------------------

    def begin_dot(self, progress: float) -> None:
        """Give the final dot, which leaves in a write of its own with `Dialogue.next`.

        Args:
            progress: Seconds in which it must leave.
        """
        dialogue = self._dialogue
        dialogue.phase.enter(Phase.DOT)
        dialogue.is_sent = False  # nor will it be, if it is refused before that
        dialogue.dot_leaves_in = progress
        dialogue.smtp.dot()

    async def reply_to_dot(self, timeout: float) -> Reply:  # noqa: ASYNC109
        """Return the reply that decides.

        That is the answer to the dot, or a refusal that came before the host had it.

        Args:
            timeout: Seconds for the reply, from `begin_dot` on.

        Raises:
            SessionFailed: There is no reply. See `take_dot_back`.
        """
        dialogue = self._dialogue
        left = max(0.0, timeout - dialogue.phase.seconds())
        event = await self._answer_to_dot(left)
        if isinstance(event, DotAnswered):
            self.dot_is_answered()
        # A host that has refused must not get the dot after that.
        dialogue.is_cut_short = not isinstance(event, DotAnswered) and (
            not dialogue.has_arrived() or isinstance(event, BodyRefused)
        )
        return event.reply

    async def late_reply(self, timeout: float | None = None) -> Reply:  # noqa: ASYNC109
        """Return the reply to the dot, which `reply_to_dot` has not got in its time.

        Args:
            timeout: Seconds; None is as long as it takes.

        Raises:
            SessionFailed: It will not come, or has not.
        """
        return (await self._answer_to_dot(timeout)).reply

    async def _answer_to_dot(
        self,
        timeout: float | None,  # noqa: ASYNC109
    ) -> DotAnswered | BodyRefused | Closing:
        event: DotAnswered | BodyRefused | Closing
        event = await self._dialogue.next(
            DotAnswered, BodyRefused, Closing, timeout=timeout
        )
        return event

    def dot_is_answered(self) -> None:
        """The reply to the dot is here; so the host's kernel has all before it."""
        self._proof.acknowledged(self._dialogue.sent_until, self._clock())

    @property
    def awaits_reply_to_dot(self) -> bool:
        """Whether the dot is the last thing that was said."""
        return self._dialogue.smtp.state is State.DOT

    def take_dot_back(self) -> bool:
        """Return whether the host cannot have the dot, after `reply_to_dot` has failed.

        Either it has not left us, or the kernel still has it: the host's window is
        closed. A partly sent dot cannot end the message. Then the connection is reset at
        once, or the kernel might still send the rest when the window opens.
        """
        if not self._dialogue.is_sent:
            return True
        state = self._stream.send_state()
        if state is None or not state.unsent:
            return False
        self._dialogue.abort()
        return True
