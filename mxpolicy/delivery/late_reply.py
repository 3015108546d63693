"""Sessions whose final dot was not answered in time: their hosts are listened to on.

The mail server was told 4.4.2 by then, and will ask again. A 250 that still comes saves
the second copy which that would make (RFC 1047). So a process that lives on, the daemon,
keeps the session open. `mxpolicy.delivery.delivery` notes in the journal how it ends.

Such a session carries no more mail. It goes when its time is over, when the process
stops, or when its host has no room for another one (`LateReplies.give_way`). There is a
bound for all of them, and one for those of a host. Beyond it a session is not kept.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.errors import LocalTrouble
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mxpolicy.delivery.session import Session
    from mxpolicy.reply import Reply
    from mxpolicy.routing.candidate import Candidate

__all__ = ["Heard", "LateReplies", "LateReply"]

# Sessions that are kept, each a descriptor and some 50 KiB. A host that answers late may
# do so for all its mail. It has limits of its own, and new mail for it comes first.
MOST, MOST_PER_HOST = 500, 50


class Heard(NamedTuple):
    """How it ended.

    Attributes:
        reply: What the host said to the dot, None if nothing.
        text: The same as one printable line, or why there is no reply.
    """

    reply: Reply | None
    text: str


class LateReply:
    """One session that is listened to; made by `LateReplies.keep`."""

    def __init__(
        self,
        session: Session,
        seconds: float,
        release: Callable[[Session], None],
        reported: Callable[[LateReply], None],
    ) -> None:
        self.candidate = session.candidate
        self._session = session
        self._release = release
        self._reported = reported
        self._loop = asyncio.get_running_loop()
        self._ends = self._loop.time() + seconds
        self._why = f"no reply in another {seconds:.0f}s"
        self._timer: asyncio.Timeout | None = None
        self._listening = asyncio.create_task(self._listen())
        self._reporting: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the session has gone."""
        return self._listening.done()

    async def heard(self) -> Heard:
        """Wait until the session has gone; return what was heard."""
        return await self._listening

    def report_by(self, work: Coroutine[None, None, None]) -> None:
        """Let *work* note what was `heard`. To be called once, when the delivery is over."""
        self._reporting = asyncio.create_task(work)
        self._reporting.add_done_callback(lambda _: self._reported(self))

    def end(self, why: str) -> None:
        """Listen no longer; what has come until now counts."""
        if self.is_over:
            return
        self._why, self._ends = why, self._loop.time()
        if self._timer is not None and not self._timer.expired():
            self._timer.reschedule(self._ends)

    async def closed(self) -> None:
        """Wait until the session has gone."""
        await asyncio.wait([self._listening])

    async def reported(self) -> None:
        """Wait until that is noted, too, where a delivery is over."""
        await self.closed()
        if self._reporting is not None:
            await asyncio.wait([self._reporting])

    async def _listen(self) -> Heard:
        self._session.dialogue.stream.keep_alive()
        try:
            reply = await self._hear()
        except (SessionFailed, LocalTrouble) as gone:
            return Heard(None, printable(str(gone)))
        except TimeoutError:
            return Heard(None, self._why)
        else:
            return Heard(reply, reply.text)
        finally:
            if self._session.body.awaits_reply_to_dot:
                self._session.abort()
            self._release(self._session)

    async def _hear(self) -> Reply:
        """Return the reply; raise TimeoutError when the time is over without one."""
        body = self._session.body
        try:
            async with asyncio.timeout_at(self._ends) as self._timer:
                return await body.late_reply()
        except TimeoutError:
            self._timer = None
            if self._session.dialogue.stream.has_input():
                return await body.late_reply(0.0)
            raise


class LateReplies:
    """The sessions of one process that are listened to.

    Args:
        most: How many at once.
        most_per_host: The same, of one host; see `Candidate.shares_host`.
    """

    def __init__(self, most: int = MOST, most_per_host: int = MOST_PER_HOST) -> None:
        self._most = most
        self._most_per_host = most_per_host
        self._kept: list[LateReply] = []  # until it is reported; the oldest first
        self._is_stopped = False

    def __len__(self) -> int:
        """Return how many sessions are open."""
        return len(self._open())

    def _open(self) -> list[LateReply]:
        return [late for late in self._kept if not late.is_over]

    def keep(
        self, session: Session, seconds: float, release: Callable[[Session], None]
    ) -> LateReply | None:
        """Listen to *session* for *seconds*; return None where that is not to be.

        Args:
            session: Its final dot is out and not answered. It is ours from now on.
            seconds: 0 is not at all.
            release: Given the session when it has ended.
        """
        there = [late.candidate for late in self._open()]
        of_host = sum(one.shares_host(session.candidate) for one in there)
        is_full = len(there) >= self._most or of_host >= self._most_per_host
        if self._is_stopped or is_full or not seconds:
            return None
        late = LateReply(session, seconds, release, self._kept.remove)
        self._kept.append(late)
        return late

    async def give_way(self, candidate: Candidate | None) -> bool:
        """End the oldest session; return False where there is none.

        To be called when there is no room for another one, here or at the host: a message
        that may go through comes first.

        Args:
            candidate: Those with its address only; None is all.
        """
        ended = self.end_oldest(candidate)
        if ended is not None:
            await ended.closed()
        return ended is not None

    def end_oldest(self, candidate: Candidate | None) -> LateReply | None:
        """Begin to end the oldest session, and return it; see `give_way`."""
        those = self._open()
        if candidate is not None:
            socket = candidate.key.socket
            those = [late for late in those if late.candidate.key.socket == socket]
        if not those:
            return None
        those[0].end("ended to make room for another session")
        return those[0]

    async def stop(self) -> None:
        """Keep no more; end all, and return when that is noted."""
        self._is_stopped = True
        kept = list(self._kept)
        for late in kept:
            late.end("stopped by ourselves")
        for late in kept:
            await late.reported()
