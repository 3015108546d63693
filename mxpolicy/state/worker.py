"""A thread that does one job after the other, for an event loop that never waits for it.

`threading.Thread.start` waits until the new thread says that it runs. A thread that dies
before, for lack of memory, never says so: the event loop would wait for ever. So the
thread is started by the function below it, which does not wait. Whether it runs is
checked only when an answer is late.

Jobs are done once, in the order in which they were given. A job that has begun is
finished. One that has not begun is not done any more when its task stops waiting (a
timeout, a cancellation).
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

# Bytes. SQLite needs a tenth of it. The usual eight MiB may be more than the process
# may have (RLIMIT_AS).
STACK = 1024 * 1024

# When there is no memory for an answer: how often it is given again, and the seconds in
# between. The event loop may free some.
_TELLS = 100
_TELL_AGAIN = 0.05

T = TypeVar("T")


class WorkerError(Exception):
    """The thread cannot be started; nothing was done."""


class Worker:
    """One thread, started with its first job.

    Args:
        start: Starts a thread without waiting for it, as `_thread.start_new_thread`;
            may raise RuntimeError or MemoryError.
        starts_within: Seconds after which a thread that does not run is given up.

    Attributes:
        has_thread: A thread was started; it may not run yet.
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
            WorkerError: The thread cannot be started.
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
            # The process ends without it: a disk that hangs must not keep it.
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
    """One job; the thread begins it, or the task gives it up, whichever is first."""

    def __init__(
        self, operation: Callable[[], T], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.answer: asyncio.Future[T] = loop.create_future()
        self._operation = operation
        self._loop = loop
        self._taken = _thread.allocate_lock()

    def take(self) -> bool:
        """Return True to the first caller: the thread, or the task that stops waiting."""
        return self._taken.acquire(blocking=False)

    def give_up(self) -> None:
        """Stop waiting. The job is not done, unless it has begun."""
        self.take()
        self.answer.cancel()

    def run(self) -> None:
        """Do it, and give its answer to the event loop; called in the thread."""
        try:
            result = self._operation()
        except BaseException as error:
            self._tell(self.answer.set_exception, error)
        else:
            self._tell(self.answer.set_result, result)

    def _tell(self, answer: Callable[[Any], None], what: object) -> None:
        for _ in range(_TELLS):
            try:
                self._loop.call_soon_threadsafe(self._answer, answer, what)
            except RuntimeError:
                return  # the loop is closed: nothing waits
            except MemoryError:
                time.sleep(_TELL_AGAIN)
            else:
                return

    def _answer(self, answer: Callable[[Any], None], what: object) -> None:
        if not self.answer.done():
            answer(what)
