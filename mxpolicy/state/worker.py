"""A thread that does one job after the other, for an event loop that never waits for it.

Jobs that wait at the same time are done together. A store makes one transaction of them,
and the event loop is woken once for all their answers. The thread is woken once for all
jobs of one turn of the event loop.

`threading.Thread.start` waits until the new thread says that it runs. A thread that dies
before, for lack of memory, never says so: the event loop would wait for ever. So the
thread is started by the function below it, which does not wait. Whether it runs is
checked only when an answer is late.

Jobs are done once, in the order in which they were given. A job that has begun is
finished. One that has not begun is not done any more when it is given up (a timeout, a
cancellation).
"""

from __future__ import annotations

import _thread
import asyncio
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mxpolicy.state.store import Submitted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "MAY_WAIT",
    "STARTS_WITHIN",
    "TOGETHER",
    "Job",
    "Worker",
    "WorkerError",
    "result_of",
]

# Seconds. A machine with two hundred busy processes needs less.
STARTS_WITHIN = 5.0

# Jobs that are done together at most: some milliseconds of work. The first of them waits
# for the last.
TOGETHER = 256

# Seconds for which a job may wait for others, where nothing waits for its answer.
MAY_WAIT = 0.01

# Bytes. SQLite needs a tenth of it. The usual eight MiB may be more than the process
# may have (RLIMIT_AS).
STACK = 1024 * 1024

# When there is no memory for an answer: how often it is given again, and the seconds in
# between. The event loop may free some.
_TELLS = 100
_TELL_AGAIN = 0.05

T = TypeVar("T")
W = TypeVar("W")


class WorkerError(Exception):
    """The thread cannot be started; nothing was done."""


class Worker(Generic[W]):
    """One thread, started with its first job.

    Args:
        do_all: Does jobs that wait at the same time, in the thread. Returns what comes
            of each, in their order: a result, or the exception that it raised.
        start: Starts a thread without waiting for it, as `_thread.start_new_thread`;
            may raise RuntimeError or MemoryError.
        starts_within: Seconds after which a thread that does not run is given up.

    Attributes:
        has_thread: A thread was started; it may not run yet.
    """

    def __init__(
        self,
        do_all: Callable[[list[W]], list[Any]],
        start: Callable[[Callable[[], None], tuple[()]], object] | None = None,
        starts_within: float = STARTS_WITHIN,
    ) -> None:
        self._do_all = do_all
        self._start_thread = start or _start_with_small_stack
        self._starts_within = starts_within
        self._gathered: list[Job[W]] = []  # for the thread, in their order
        self._due_in: asyncio.AbstractEventLoop | None = None  # in its next turn
        self._due_later: asyncio.TimerHandle | None = None
        self._jobs: SimpleQueue[Job[W] | None] = SimpleQueue()
        self.has_thread = False
        self._runs = False
        self._runs_until = 0.0  # or has died; on the loop's clock

    def submit(
        self, work: W, told: Callable[[Any], None], *, may_wait: bool = False
    ) -> Job[W]:
        """Have *work* done, and return its job.

        Args:
            work: What `do_all` takes.
            told: Called in the event loop, once, unless the job is given up. Takes what
                `do_all` returned for it: a result or an exception. That is a
                `WorkerError` when the thread does not run.
            may_wait: It may be done with what is given next, up to `MAY_WAIT` later.

        Raises:
            WorkerError: The thread cannot be started.
        """
        loop = asyncio.get_running_loop()
        self._start(loop.time())
        job = Job(work, told, loop)
        self._gathered.append(job)
        if not may_wait and self._due_in is not loop:
            self._due_in = loop
            loop.call_soon(self._hand_over)
        elif may_wait and self._due_later is None:
            self._due_later = loop.call_later(MAY_WAIT, self._hand_over)
        if not self._runs:
            loop.call_at(self._runs_until, self._check, job)
        return job

    def end(self) -> None:
        """Let the thread end after what it was given; another call starts a new one."""
        if self.has_thread:
            self._hand_over()
            self._jobs.put(None)
            self.has_thread = self._runs = False

    def _hand_over(self) -> None:
        """Give the thread what was gathered: it wakes up once for all of it."""
        if self._due_later is not None:
            self._due_later.cancel()
        self._due_in = self._due_later = None
        gathered, self._gathered = self._gathered, []
        for job in gathered:
            self._jobs.put(job)

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

    def _check(self, job: Job[W]) -> None:
        if not self._runs and job.take():
            job.tell(WorkerError("its thread does not start"))

    # -- in the thread --------------------------------------------------------------

    def _run(self) -> None:
        self._runs = True
        ends = False
        while not ends:
            with suppress(MemoryError):
                ends = self._run_once()

    def _run_once(self) -> bool:
        """Do what waits; return whether that was all for this thread."""
        jobs, ends = self._waiting()
        jobs = [job for job in jobs if job.take()]
        if jobs:
            try:
                results = self._do_all([job.work for job in jobs])
            except BaseException as error:
                results = [error] * len(jobs)
            _tell_all(jobs, results)
        return ends

    def _waiting(self) -> tuple[list[Job[W]], bool]:
        """Wait for a job. Return all that wait, and whether the end comes after them."""
        jobs: list[Job[W]] = []
        with suppress(Empty):
            while len(jobs) < TOGETHER:
                job = self._jobs.get(block=not jobs)
                if job is None:
                    return jobs, True
                jobs.append(job)
        return jobs, False


class Job(Submitted, Generic[W]):
    """One job; the thread begins it, or it is given up, whichever is first.

    Attributes:
        work: What is to be done.
        loop: Where its answer is told.
    """

    __slots__ = ("_taken", "_told", "loop", "work")

    def __init__(
        self, work: W, told: Callable[[Any], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.work = work
        self.loop = loop
        self._told: Callable[[Any], None] | None = told
        self._taken = _thread.allocate_lock()

    def take(self) -> bool:
        """Return True to the first caller: the thread, or what gives the job up."""
        return self._taken.acquire(blocking=False)

    def give_up(self) -> None:
        """Stop waiting: nothing is told. It is not done, unless it has begun."""
        self._told = None
        self.take()

    def tell(self, result: Any) -> None:
        """Tell *result*, once, unless the job was given up; call it in the event loop."""
        if self._told is not None:
            told, self._told = self._told, None
            told(result)


def result_of(work: Callable[[], T]) -> T | BaseException:
    """Return what *work* returns, or the exception that it raises."""
    try:
        return work()
    except BaseException as error:
        return error


def _tell_all(jobs: list[Job[W]], results: list[Any]) -> None:
    """Wake each event loop once, for all answers to its jobs."""
    for loop in {job.loop for job in jobs}:
        answers = [
            (job, result)
            for job, result in zip(jobs, results, strict=True)
            if job.loop is loop
        ]
        for _ in range(_TELLS):
            try:
                loop.call_soon_threadsafe(_tell_each, loop, answers)
            except RuntimeError:
                break  # the loop is closed: nothing waits
            except MemoryError:
                time.sleep(_TELL_AGAIN)
            else:
                break


def _tell_each(
    loop: asyncio.AbstractEventLoop, answers: Iterable[tuple[Job[W], Any]]
) -> None:
    for job, result in answers:
        try:
            job.tell(result)
        except Exception as error:  # of one: the others wait for their answers, too
            loop.call_exception_handler(
                {"message": "an answer of the store was not taken", "exception": error}
            )


def _start_with_small_stack(run: Callable[[], None], arguments: tuple[()]) -> object:
    before = _thread.stack_size(STACK)  # of all threads that are started after it
    try:
        return _thread.start_new_thread(run, arguments)
    finally:
        _thread.stack_size(before)
