"""The thread behind the store: in order, once, and never waited for by the loop."""

from __future__ import annotations

import _thread
import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from mxpolicy.state.worker import TOGETHER, Worker, WorkerError, result_of

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN = 0.2

W = TypeVar("W")


def one_by_one(works: list[Callable[[], object]]) -> list[object]:
    return [result_of(work) for work in works]


def stillborn(run: Callable[[], None], arguments: tuple[()]) -> None:
    """Start a thread that ends before its first line, as for a lack of memory."""


def refused(run: Callable[[], None], arguments: tuple[()]) -> None:
    raise RuntimeError("can't start new thread")


def no_memory(run: Callable[[], None], arguments: tuple[()]) -> None:
    raise MemoryError


@pytest.mark.parametrize("start", [stillborn, refused, no_memory])
async def test_thread_that_does_not_start_is_an_error_and_not_waited_for(
    start: Callable[[Callable[[], None], tuple[()]], None],
) -> None:
    worker = Worker(one_by_one, start, starts_within=WITHIN)
    for _ in range(2):
        async with asyncio.timeout(20 * WITHIN):
            with pytest.raises(WorkerError):
                await do(worker, lambda: 1)


async def test_thread_that_starts_late_is_waited_for() -> None:
    begin = threading.Event()

    def late(run: Callable[[], None], arguments: tuple[()]) -> None:
        def wait_and_run() -> None:
            begin.wait()
            run()

        _thread.start_new_thread(wait_and_run, ())

    worker = Worker(one_by_one, late)
    answer = asyncio.create_task(do(worker, lambda: 1))
    await asyncio.sleep(0)
    begin.set()
    assert await answer == 1
    worker.end()


async def test_answers_and_errors_come_back() -> None:
    worker = Worker(one_by_one)
    assert await do(worker, lambda: threading.get_ident()) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await do(worker, lambda: 1 // 0)
    with pytest.raises(MemoryError):
        await do(worker, _raise_memory_error)
    assert await do(worker, lambda: 3) == 3
    worker.end()


def _raise_memory_error() -> None:
    raise MemoryError


async def test_what_is_slow_is_done_once_and_before_what_was_given_later() -> None:
    worker = Worker(one_by_one)
    done: list[str] = []
    begun, goes_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        goes_on.wait()
        done.append("slow")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(WITHIN):
            await do(worker, slow)
    assert begun.is_set()
    # Not begun when nobody waits for it any more: it is never done.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(WITHIN):
            await do(worker, lambda: done.append("given up"))
    later = [
        asyncio.create_task(do(worker, lambda: done.append("second"))),
        asyncio.create_task(do(worker, lambda: done.append("third"))),
    ]
    await to_thread()
    goes_on.set()
    await asyncio.gather(*later)
    assert done == ["slow", "second", "third"]
    worker.end()


async def test_answer_for_which_there_is_no_memory_is_given_later() -> None:
    loop = asyncio.get_running_loop()
    real = loop.call_soon_threadsafe
    refusals = [MemoryError, MemoryError]

    def call(*arguments: object) -> object:
        if refusals:
            raise refusals.pop()
        return real(*arguments)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = call  # type: ignore[assignment, method-assign]
    worker = Worker(one_by_one)
    assert await do(worker, lambda: 1) == 1
    assert not refusals
    worker.end()


async def do(worker: Worker[W], work: W) -> Any:
    """Return what comes of *work*; whoever stops waiting for it gives it up."""
    answer = asyncio.get_running_loop().create_future()

    def tell(result: object) -> None:
        if isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    job = worker.submit(work, tell)
    try:
        return await answer
    finally:
        job.give_up()


async def to_thread() -> None:
    """Let the jobs of tasks that have just begun come to the thread."""
    for _ in range(3):
        await asyncio.sleep(0)


class Gate(list[list[object]]):
    """Does what waits together, as it is let; notes each time what that was."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def do_all(self, works: list[int]) -> list[object]:
        self.begun.set()
        self.goes_on.wait()
        self.append(list(works))
        return [ValueError(work) if work < 0 else -work for work in works]


async def test_jobs_that_wait_are_done_together_and_told_at_once() -> None:
    loop = asyncio.get_running_loop()
    gate, told, wakes = Gate(), list[object](), list[object]()
    real = loop.call_soon_threadsafe

    def call(*arguments: object) -> object:
        wakes.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = call  # type: ignore[assignment, method-assign]
    worker = Worker(gate.do_all)
    first = asyncio.create_task(do(worker, 1))
    await to_thread()
    gate.begun.wait()
    given_up = worker.submit(2, told.append)
    worker.submit(3, told.append)
    worker.submit(-4, told.append)
    last = asyncio.create_task(do(worker, -5))
    given_up.give_up()
    await to_thread()
    gate.goes_on.set()
    assert await first == -1
    with pytest.raises(ValueError, match="-5"):
        await last
    assert gate == [[1], [3, -4, -5]]
    assert told[0] == -3
    assert isinstance(told[1], ValueError)
    assert len(told) == len(wakes) == 2
    worker.end()


async def test_one_that_cannot_be_told_does_not_keep_the_answers_of_others() -> None:
    loop = asyncio.get_running_loop()
    gate, trouble = Gate(), list[dict[str, object]]()
    loop.set_exception_handler(lambda _, what: trouble.append(what))
    worker = Worker(gate.do_all)
    worker.submit(1, lambda _: None)
    await to_thread()
    gate.begun.wait()

    def fail(_: object) -> None:
        raise ZeroDivisionError

    worker.submit(2, fail)
    last = asyncio.create_task(do(worker, 3))
    await to_thread()
    gate.goes_on.set()
    assert await last == -3
    assert [type(one["exception"]) for one in trouble] == [ZeroDivisionError]
    worker.end()


async def test_a_long_queue_is_done_in_parts() -> None:
    gate = Gate()
    worker = Worker(gate.do_all)
    first = asyncio.create_task(do(worker, 0))
    await to_thread()
    gate.begun.wait()
    others = [asyncio.create_task(do(worker, one)) for one in range(2 * TOGETHER)]
    await to_thread()
    gate.goes_on.set()
    await asyncio.gather(first, *others)
    assert [len(works) for works in gate] == [1, TOGETHER, TOGETHER]
    worker.end()


async def test_submitted_job_is_told_that_its_thread_does_not_start() -> None:
    worker = Worker(one_by_one, stillborn, starts_within=WITHIN)
    told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    worker.submit(lambda: 1, told.set_result)
    async with asyncio.timeout(20 * WITHIN):
        assert isinstance(await told, WorkerError)


async def test_jobs_of_one_turn_of_the_event_loop_wake_the_thread_once() -> None:
    gate = Gate()
    gate.goes_on.set()
    worker = Worker(gate.do_all)
    assert await do(worker, 1) == -1  # it runs, and waits
    given_up = worker.submit(2, lambda _: None)
    others = asyncio.gather(*(do(worker, one) for one in (3, 4)))
    given_up.give_up()
    assert await others == [-3, -4]
    assert gate == [[1], [3, 4]]
    worker.end()


async def test_what_is_given_last_is_done_before_the_end() -> None:
    gate = Gate()
    gate.goes_on.set()
    worker = Worker(gate.do_all)
    told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    worker.submit(1, told.set_result)
    worker.end()
    assert await told == -1


async def test_job_that_may_wait_is_done_with_the_next_one_or_soon() -> None:
    gate = Gate()
    gate.goes_on.set()
    worker = Worker(gate.do_all)
    assert await do(worker, 1) == -1  # it runs, and waits
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    worker.submit(2, first.set_result, may_wait=True)
    await to_thread()
    assert await do(worker, 3) == -3
    assert first.result() == -2
    worker.submit(4, second.set_result, may_wait=True)
    assert await second == -4
    assert gate == [[1], [2, 3], [4]]
    worker.end()
