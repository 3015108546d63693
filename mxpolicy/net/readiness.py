"""When a connection can be read or written, by the event loop; and for how long to wait.

A socket is watched for input also from one wait to the next: to begin and to end that
costs more than a reply. One timer serves all limits of a connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.net.channel import StreamClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.net.channel import Channel

__all__ = ["Readiness"]


class Readiness:
    """Waits for *channel*, which belongs to one task at a time.

    A wait that is cancelled leaves no task and no registered descriptor behind.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._woken: asyncio.Future[None] | None = None
        self._waits_for_input = False
        self._told: Callable[[], None] | None = None  # in its place: `watch`
        # Where the socket is watched for input: also from one wait to the next.
        self._watched_by: asyncio.AbstractEventLoop | None = None
        self._is_unwanted = False  # input has come after the last wait
        # When waiting for the peer ends, on the loop's clock, and the one timer for it.
        self._until = inf
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = inf

    def watch(self, told: Callable[[], None]) -> None:
        """See `mxpolicy.net.stream.Stream.watch`."""
        assert self._woken is None, "a stream belongs to one task at a time"
        self._told = told
        self._begin_watching(asyncio.get_running_loop())

    def unwatch(self) -> None:
        """See `mxpolicy.net.stream.Stream.unwatch`."""
        self._told, self._is_unwanted = None, False

    def wait_at_most(self, seconds: float | None) -> None:
        """See `mxpolicy.net.stream.Stream.wait_at_most`."""
        if seconds is None:
            self._until = inf
        else:
            self._until = asyncio.get_running_loop().time() + seconds

    async def ready(self, *, reading: bool = False, writing: bool = False) -> None:
        """See `mxpolicy.net.stream.Stream.ready`."""
        loop, sock = asyncio.get_running_loop(), self._channel.socket
        descriptor = sock.fileno()
        if descriptor < 0:
            raise StreamClosed("closed by ourselves")
        assert self._woken is None, "a stream belongs to one task at a time"
        self._woken = woken = loop.create_future()
        self._waits_for_input, self._is_unwanted = reading, False
        try:
            if reading:
                self._begin_watching(loop)
            if writing:
                loop.add_writer(descriptor, _wake, woken)
            self._set_alarm(loop)
            await woken
        except BaseException:
            self._stop_watching()
            raise
        finally:
            self._woken = None
            # Not in a callback of the future, as in sock_recv: by then the number may
            # belong to another socket.
            if writing and sock.fileno() == descriptor:
                loop.remove_writer(descriptor)
                if self._channel.announced:
                    self._channel.hear_announcement()
                    self._stop_watching()

    async def pause(
        self, seconds: float, *, reading: bool = False, writing: bool = False
    ) -> None:
        """Like `ready`, for at most *seconds*."""
        until, end = self._until, asyncio.get_running_loop().time() + seconds
        if until <= end:
            await self.ready(reading=reading, writing=writing)
            return
        self._until = end
        try:
            with suppress(TimeoutError):
                await self.ready(reading=reading, writing=writing)
        finally:
            self._until = until

    def end(self) -> None:
        """Look for nothing more: the socket is about to be closed. What waits is told."""
        self.unwatch()
        self._stop_watching()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._rings_at = None, inf
        woken = self._woken
        if woken is not None:
            woken.get_loop().remove_writer(self._channel.socket.fileno())
            if not woken.done():
                woken.set_exception(StreamClosed("closed by ourselves"))

    # --- input

    def _begin_watching(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._watched_by is None:
            loop.add_reader(self._channel.socket.fileno(), self._has_come)
            self._watched_by = loop

    def _has_come(self) -> None:
        """There is input, or something in the error queue.

        Where nothing waits for input, it is looked for no longer: it would wake us all
        the time. But asyncio calls this once more, before the input is read. An
        announcement may come after the end of `Stream.drain`, so every wait looks for it.

        BUGS: After anything in the error queue, and after a reset, libuv looks for
        nothing more. A reset that came together with input is noticed under uvloop only
        by the next read or write, or when a wait ends.
        """
        if self._channel.announced:
            self._channel.hear_announcement()
            loop = self._stop_watching()
            if loop is not None:
                self._begin_watching(loop)
        if self._told is not None:
            self._told()
        elif self._woken is not None and self._waits_for_input:
            _wake(self._woken)
        elif self._is_unwanted:
            self._stop_watching()
        else:
            self._is_unwanted = True

    def _stop_watching(self) -> asyncio.AbstractEventLoop | None:
        """Look for no input any more; return where it was looked for."""
        loop, self._watched_by = self._watched_by, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._channel.socket.fileno())
        return loop

    # --- time

    def _set_alarm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ring when the time to wait is over, or before."""
        if self._until < self._rings_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._rings_at = self._until
            self._alarm = loop.call_at(self._until, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm, self._rings_at = None, inf
        if self._woken is None:
            return  # the next one that waits sets the alarm
        if loop.time() < self._until:
            self._set_alarm(loop)
        elif not self._woken.done():
            self._woken.set_exception(TimeoutError())


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
