"""A thread that does one thing after the other, for an event loop that never waits for it.

`threading.Thread.start` waits until the new thread says that it runs. One that dies
before, of a lack of memory, never says so, and the event loop would wait for ever. So
the thread is started by the function below it, which does not wait; whether it runs is
looked at only when an answer is late.

What is given is done in the order in which it was given, and once. Whoever stops
waiting (a timeout, a cancelled task) before it has begun has undone it; what has
begun is finished.
"""

from __future__ import annotations

import _thread
import asyncio
import time
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["STARTS_WITHIN", "Worker", "WorkerError"]

# Seconds. A machine with two hundred busy processes needs less.
STARTS_WITHIN = 5.0

# Bytes. SQLite needs a tenth of it; eight MiB, as is usual, may be more than the process
# is allowed (RLIMIT_AS).
STACK = 1024 * 1024

# How often, and in which steps of seconds, an answer for which there is no memory is
# tried to be given: the event loop may free some.
_TELLS = 100
_TELL_AGAIN = 0.05

T = TypeVar("T")


class WorkerError(Exception):
    """There is no thread to be had; nothing was done."""


class Worker:
    """One thread, started with the first thing to do.

    Args:
        start: Starts a thread without waiting for it, as `_thread.start_new_thread`;
            may raise RuntimeError or MemoryError.
        starts_within: Seconds after which a thread that does not run is given up.

    Attributes:
        has_thread: One was started; it may not run yet.
    """

    def __init__(
        self,
        start: Callable[[Callable[[], None], tuple[()]], object] | None = None,
        starts_within: float = STARTS_WITHIN,
    ) -> None:
        self._start_thread = start or _start_with_small_stack
        self._starts_within = starts_within
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self.has_thread = False
        self._runs = False
        self._runs_until = 0.0  # or has died; on the loop's clock

    async def do(self, operation: Callable[[], T]) -> T:
        """Return what *operation* does, or raise what it does, in the thread.

        Raises:
            WorkerError: There is no thread to be had.
        """
        loop = asyncio.get_running_loop()
        self._start(loop.time())
        job = _Job(operation, loop)
        self._jobs.put(job)
        try:
            if not self._runs:
                left = self._runs_until - loop.time()
                await asyncio.wait([job.answer], timeout=max(0.0, left))
                if not self._runs:
                    raise WorkerError("its thread does not start")
            return await job.answer
        finally:
            job.give_up()

    def end(self) -> None:
        """Let the thread end after what it was given; another call starts a new one."""
        if self.has_thread:
            self._jobs.put(None)
            self.has_thread = self._runs = False

    def _start(self, now: float) -> None:
        if self.has_thread:
            return
        self._runs_until = now + self._starts_within
        try:
            # Nothing waits for its end: a disk that hangs must not keep the process.
            self._start_thread(self._run, ())
        except (RuntimeError, MemoryError) as error:
            raise WorkerError(str(error) or "no memory for a thread") from error
        self.has_thread = True

    def _run(self) -> None:
        self._runs = True
        while True:
            with suppress(MemoryError):
                job = self._jobs.get()
                if job is None:
                    return
                if job.take():
                    job.run()


def _start_with_small_stack(run: Callable[[], None], arguments: tuple[()]) -> object:
    before = _thread.stack_size(STACK)  # of all threads that are started after it
    try:
        return _thread.start_new_thread(run, arguments)
    finally:
        _thread.stack_size(before)


class _Job(Generic[T]):
    """What is to be done; begun by the thread, or given up, whichever is first."""

    def __init__(
        self, operation: Callable[[], T], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.answer: asyncio.Future[T] = loop.create_future()
        self._operation = operation
        self._loop = loop
        self._taken = _thread.allocate_lock()

    def take(self) -> bool:
        """Return True to the first that asks: the thread, or the task that stops waiting."""
        return self._taken.acquire(blocking=False)

    def give_up(self) -> None:
        """Wait no more; it is not done at all, unless it has been begun."""
        self.take()
        self.answer.cancel()

    def run(self) -> None:
        """Do it and tell, in the thread."""
        try:
            result = self._operation()
        except BaseException as error:
            self._tell(self._fail, error)
        else:
            self._tell(self._succeed, result)

    def _tell(self, settle: Callable[..., None], what: object) -> None:
        for _ in range(_TELLS):
            try:
                self._loop.call_soon_threadsafe(settle, what)
            except RuntimeError:
                return  # the loop is closed: nothing waits
            except MemoryError:
                time.sleep(_TELL_AGAIN)
            else:
                return

    def _succeed(self, result: T) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
