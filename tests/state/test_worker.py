"""The thread behind the store: in order, once, and never waited for by the loop."""

from __future__ import annotations

import _thread
import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from mxpolicy.state.worker import Worker, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN = 0.2


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
    worker = Worker(start, starts_within=WITHIN)
    for _ in range(2):
        async with asyncio.timeout(20 * WITHIN):
            with pytest.raises(WorkerError):
                await worker.do(lambda: 1)


async def test_thread_that_starts_late_is_waited_for() -> None:
    begin = threading.Event()

    def late(run: Callable[[], None], arguments: tuple[()]) -> None:
        def wait_and_run() -> None:
            begin.wait()
            run()

        _thread.start_new_thread(wait_and_run, ())

    worker = Worker(late)
    answer = asyncio.create_task(worker.do(lambda: 1))
    await asyncio.sleep(0)
    begin.set()
    assert await answer == 1
    worker.end()


async def test_answers_and_errors_come_back() -> None:
    worker = Worker()
    assert await worker.do(lambda: threading.get_ident()) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await worker.do(lambda: 1 // 0)
    with pytest.raises(MemoryError):
        await worker.do(_raise_memory_error)
    assert await worker.do(lambda: 3) == 3
    worker.end()


def _raise_memory_error() -> None:
    raise MemoryError


async def test_what_is_slow_is_done_once_and_before_what_was_given_later() -> None:
    worker = Worker()
    done: list[str] = []
    begun, goes_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        goes_on.wait()
        done.append("slow")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(WITHIN):
            await worker.do(slow)
    assert begun.is_set()
    # Not begun when nobody waits for it any more: it is never done.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(WITHIN):
            await worker.do(lambda: done.append("given up"))
    later = [
        asyncio.create_task(worker.do(lambda: done.append("second"))),
        asyncio.create_task(worker.do(lambda: done.append("third"))),
    ]
    await asyncio.sleep(0)
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
    worker = Worker()
    assert await worker.do(lambda: 1) == 1
    assert not refusals
    worker.end()
