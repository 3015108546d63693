"""A file without a name for mail data, written and read without blocking the loop.

A thread writes. What the page cache has is read at once, and the rest by a thread, too.
The file is gone when it is closed or the process dies, however it dies.

It lies in the first of these directories that takes it: ``$TMPDIR``, ``/var/tmp``, the
first of ``$STATE_DIRECTORY`` (systemd.exec(5): a unit may have no other place on a disk),
``/tmp``. It is not in ``/run``, which is memory.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.errors import LocalTrouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SpoolFile", "open_unnamed"]

T = TypeVar("T")

# Of one write: half of IOV_MAX.
_MOST_PIECES = 512


class SpoolFile:
    """Mail data on a disk; opened by the first `write`.

    Args:
        opens: Opens the file; in a thread.
        writes: As `os.writev`; in a thread.

    Attributes:
        size: Bytes that were written.
    """

    def __init__(
        self,
        opens: Callable[[], int] | None = None,
        writes: Callable[[int, Sequence[memoryview]], int] = os.writev,
    ) -> None:
        self.size = 0
        self._opens = opens or open_unnamed
        self._writes = writes
        self._descriptor = -1
        self._jobs = 0  # of threads that may use the descriptor
        self._is_closed = False

    def write(self, pieces: Sequence[bytearray]) -> asyncio.Future[int]:
        """Begin to append *pieces*, and return the future of their length.

        Wait for one before the next. The future raises LocalTrouble where the disk is
        full, or there is no directory for the file. Then *pieces* do not count.

        Raises:
            LocalTrouble: The file is closed, or the machine has no thread left.
        """
        return self._in_thread(partial(self._append, pieces))

    def _append(self, pieces: Sequence[bytearray]) -> int:
        if self._descriptor < 0:
            self._descriptor = self._opens()
        if os.lseek(self._descriptor, 0, os.SEEK_CUR) != self.size:
            os.lseek(self._descriptor, self.size, os.SEEK_SET)  # a write has failed
        # Each call has the loop's thread give way, so many pieces go in one.
        views = [memoryview(piece) for piece in pieces]
        while views:
            count = self._writes(self._descriptor, views[:_MOST_PIECES])
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]
        count = sum(map(len, pieces))
        self.size += count
        return count

    async def read(self, position: int, size: int) -> bytes:
        """Return 1 to *size* of the bytes from *position*.

        Raises:
            LocalTrouble: The file cannot be read, or is shorter than it was.
        """
        size = min(size, self.size - position)
        data = self._read_cached(position, size)
        if data is None:
            # A thread cannot be cancelled.
            data = await asyncio.shield(
                self._in_thread(lambda: os.pread(self._descriptor, size, position))
            )
        if not data:
            raise LocalTrouble("the spooled message has become shorter")
        return data

    def _read_cached(self, position: int, size: int) -> bytes | None:
        """Return what can be read without waiting for the disk; None is nothing.

        Not every file system can tell (EOPNOTSUPP).
        """
        if self._is_closed:
            raise LocalTrouble("the spooled message was closed")
        if not hasattr(os, "RWF_NOWAIT"):
            return None
        buffer = bytearray(size)
        try:
            count = os.preadv(self._descriptor, [buffer], position, os.RWF_NOWAIT)
        except OSError:  # a thread asks again, and has the error if it stays
            return None
        return bytes(buffer[:count])

    def _in_thread(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Do *job* in a thread; the file stays open until it is done."""
        if self._is_closed:
            raise LocalTrouble("the spooled message was closed")

        def translated() -> T:
            try:
                return job()
            except OSError as error:  # ENOSPC, EFBIG (Python ignores SIGXFSZ), ...
                raise _trouble(error) from error
            except MemoryError as error:
                raise LocalTrouble("no memory for the message") from error

        try:
            future = asyncio.get_running_loop().run_in_executor(None, translated)
        except RuntimeError as error:  # the machine has no thread left
            raise LocalTrouble(f"cannot spool the message: {error}") from error
        self._jobs += 1
        future.add_done_callback(self._job_is_done)
        return future

    def _job_is_done(self, future: asyncio.Future[T]) -> None:
        if not future.cancelled():
            future.exception()  # the caller may have gone; else the loop would log it
        self._jobs -= 1
        self._close_when_idle()

    def close(self) -> None:
        """Give the file back, as soon as no thread uses it; may be called twice."""
        self._is_closed = True
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._is_closed and not self._jobs and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_unnamed() -> int:
    """Open a file without a name, in the first directory that allows it.

    tempfile would do it too, but it imports ten more modules.

    Raises:
        OSError: No directory does; why the first one does not.
    """
    error: OSError | None = None
    for directory in _directories():
        try:
            return _open_unnamed_in(directory)
        except OSError as failure:
            error = error or failure
    assert error is not None
    raise error


def _directories() -> list[str]:
    state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    places = os.environ.get("TMPDIR"), "/var/tmp", state, "/tmp"  # noqa: S108
    return [place for place in places if place]


def _open_unnamed_in(directory: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    if hasattr(os, "O_TMPFILE"):
        # Not every file system has it (overlayfs before Linux 6.3, NFS).
        with suppress(OSError):
            return os.open(directory, flags | os.O_TMPFILE, 0o600)
    name = f"{directory}/mxpolicy-{os.getpid()}-{os.urandom(8).hex()}"
    descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    os.unlink(name)
    return descriptor


def _trouble(error: OSError) -> LocalTrouble:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return LocalTrouble(f"cannot spool the message: {reason}")
