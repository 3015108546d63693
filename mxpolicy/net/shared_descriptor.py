"""Reads a message from a descriptor that another process gave us, and still shares.

It may be a pipe or a regular file. The other process sees every flag and offset that we
change. So O_NONBLOCK is never set (the event loop's own readers may do so), and a file is
read without moving its offset. What we read from a pipe is gone for all: the other side
must have promised to read nothing.

A pipe is read by preadv2(2) with RWF_NOWAIT. Before Linux 6.4 pipes do not know that, nor
do named ones later: there the bytes are moved to a pipe of our own, by splice(2). Both
return at once. Whether there is anything to read is asked of an epoll(7) of our own, of
which the event loop knows only that it is readable.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.errors import LocalTrouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["SharedDescriptors"]

_CHUNK = 65536
# Short reads from one pipe in one turn of the event loop.
_IN_ONE_TURN = 8


class SharedDescriptors:
    """Reads any number of them, in one event loop."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def chunks(self, descriptor: int) -> AsyncIterator[bytes]:
        """Yield what can be read from *descriptor*, to its end. It stays open.

        That the end was reached does not prove that the writer was done.

        Raises:
            LocalTrouble: It is neither a pipe nor a regular file that can be read, or
                the machine has no thread left to read a file.
        """
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISFIFO(mode):
                reading = self._pipe_chunks(descriptor)
            elif stat.S_ISREG(mode):
                reading = _file_chunks(descriptor)
            else:
                raise LocalTrouble("the message is neither in a pipe nor in a file")
            async for data in reading:
                yield data
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise LocalTrouble(f"cannot read the message: {reason}") from error

    async def _pipe_chunks(self, descriptor: int) -> AsyncIterator[bytes]:
        pipe = _Pipe(descriptor)
        try:
            reads = 0
            while True:
                try:
                    data = pipe.read()
                except BlockingIOError:
                    await self._readable(descriptor)
                    continue
                if not data:
                    return
                yield data
                reads += 1
                # One fast writer is not alone here. But a small message is read to its
                # end in one turn.
                if len(data) == _CHUNK or reads % _IN_ONE_TURN == 0:
                    await asyncio.sleep(0)
        finally:
            pipe.close()

    async def _readable(self, descriptor: int) -> None:
        """Wait until there is something to read, or the end."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.add_reader(self._epoll.fileno(), self._wake)
        ready = self._waiting[descriptor] = loop.create_future()
        self._epoll.register(descriptor, select.EPOLLIN)
        try:
            await ready
        finally:
            # Before it is closed: epoll(7) would go on as long as anyone has it open.
            self._epoll.unregister(descriptor)
            del self._waiting[descriptor]
            if not self._waiting:
                loop.remove_reader(self._epoll.fileno())

    def _wake(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            ready = self._waiting[descriptor]
            if not ready.done():
                ready.set_result(None)


class _Pipe:
    """One pipe, read without blocking though it may be in blocking mode."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray(_CHUNK)
        # A pipe of our own, once it is needed: the ends to read and to write.
        self._own: tuple[int, int] | None = None

    def read(self) -> bytes:
        """Return some bytes, none at the end; raise BlockingIOError where it would wait."""
        if self._own is None:
            try:
                count = os.preadv(self._descriptor, [self._buffer], -1, os.RWF_NOWAIT)
                return bytes(memoryview(self._buffer)[:count])
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
            self._own = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        here, there = self._own
        count = os.splice(self._descriptor, there, _CHUNK, flags=os.SPLICE_F_NONBLOCK)
        return os.read(here, count) if count else b""

    def close(self) -> None:
        """Close what is ours."""
        for one in self._own or ():
            with suppress(OSError):
                os.close(one)


async def _file_chunks(descriptor: int) -> AsyncIterator[bytes]:
    """Read from the offset found; in a thread, since a file may be on a slow disk."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    while data := await _read_at(descriptor, position):
        position += len(data)
        yield data


async def _read_at(descriptor: int, position: int) -> bytes:
    try:
        reading = asyncio.get_running_loop().run_in_executor(
            None, os.pread, descriptor, _CHUNK, position
        )
    except RuntimeError as error:  # the machine has no thread left
        raise LocalTrouble(f"cannot read the message: {error}") from error
    return await reading
