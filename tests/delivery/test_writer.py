"""Writes in the background: in order, to the end, whatever one of them does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Notes:
    """What was done, and what was told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.told: list[str] = []
        self.writer = Writer(lambda error: self.told.append(str(error)))

    def job(
        self, name: str, waits_for: asyncio.Event | None = None
    ) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            if waits_for is not None:
                await waits_for.wait()
            if name.startswith("bad"):
                raise RuntimeError(name)
            self.done.append(name)

        return work


async def test_jobs_are_done_in_order_and_waited_for() -> None:
    notes, goes_on = Notes(), asyncio.Event()
    notes.writer.do_later(notes.job("a", goes_on))
    notes.writer.do_later(notes.job("b"))
    waiting = asyncio.create_task(notes.writer.wait())
    await asyncio.sleep(0)
    assert not notes.done
    goes_on.set()
    await waiting
    assert notes.done == ["a", "b"]
    notes.writer.do_later(notes.job("c"))  # a later one begins anew
    await notes.writer.wait()
    assert notes.done == ["a", "b", "c"]


async def test_job_that_fails_is_told_and_the_others_are_done() -> None:
    notes = Notes()
    for name in ("bad 1", "a", "bad 2", "b"):
        notes.writer.do_later(notes.job(name))
    await notes.writer.wait()
    assert notes.done == ["a", "b"]
    assert notes.told == ["bad 1", "bad 2"]


async def test_job_that_makes_another_is_waited_for_with_it() -> None:
    notes = Notes()

    async def two() -> None:
        notes.writer.do_later(notes.job("second"))
        notes.done.append("first")

    notes.writer.do_later(two)
    await notes.writer.wait()
    assert notes.done == ["first", "second"]


async def test_jobs_go_on_when_the_waiter_is_cancelled() -> None:
    notes, goes_on = Notes(), asyncio.Event()
    notes.writer.do_later(notes.job("a", goes_on))
    waiting = asyncio.create_task(notes.writer.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    goes_on.set()
    await notes.writer.wait()
    assert notes.done == ["a"]


async def test_nothing_to_do_is_not_waited_for() -> None:
    await Notes().writer.wait()


async def test_task_that_is_cancelled_before_it_begins_is_not_waited_for() -> None:
    notes = Notes()
    others = asyncio.all_tasks()
    notes.writer.do_later(notes.job("a"))
    (task,) = asyncio.all_tasks() - others
    task.cancel()
    await asyncio.sleep(0)
    assert task.done()
    await asyncio.wait_for(notes.writer.wait(), 1)
    notes.writer.do_later(notes.job("b"))
    await notes.writer.wait()
    assert notes.done == ["a", "b"]
