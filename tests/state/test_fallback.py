"""A store that is slow, busy or broken: what it costs, and that it is asked again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from mxpolicy.errors import StoreError
from mxpolicy.state.fallback import (
    BOUND,
    FREE,
    QUIET,
    RENEWED,
    Allowance,
    FallbackStore,
)
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import Replacement, StoreBusy
from tests.helpers.fast_loop import run_fast

if TYPE_CHECKING:
    from mxpolicy.state.store import Operation

FAR = 2e9

T = TypeVar("T")


class Disk(MemoryStore):
    """A disk whose operations take *seconds* each, one after the other.

    As with the thread of the real one, what has begun is done though nobody waits.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(lambda: 0.0)
        self.seconds = seconds
        self._turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[Any]] = []

    async def do(self, operation: Operation[T]) -> T:
        async def in_turn() -> T:
            async with self._turn:
                await asyncio.sleep(self.seconds)
                return operation.on(self.rows)

        task = asyncio.create_task(in_turn())
        self._tasks.append(task)
        return await asyncio.shield(task)


class Failing(MemoryStore):
    """Raises *error* for the first *times* that something is read."""

    def __init__(self, error: type[StoreError], times: int) -> None:
        super().__init__(lambda: 0.0)
        self._error = error
        self.times = times

    async def do(self, operation: Operation[T]) -> T:
        if operation.is_read and self.times > 0:
            self.times -= 1
            raise self._error("no")
        return await super().do(operation)


@pytest.mark.parametrize("seconds", [0.9, 3600.0], ids=["slow", "hangs"])
def test_store_that_does_not_answer_costs_all_questions_a_second(
    seconds: float,
) -> None:
    told: list[str] = []

    async def ask() -> None:
        store = FallbackStore(Disk(seconds), told.append)
        await asyncio.gather(*(store.get(f"{n}") for n in range(10)))
        for number in range(20):
            await store.get(f"{number}")
        assert not store.is_memory_only

    _, took = run_fast(ask())
    assert took < 1.3 * BOUND
    assert len(told) == 1
    assert told[0].startswith("no answer from the store in time: ")


def test_trouble_that_comes_back_after_a_quiet_hour_is_told_again() -> None:
    told: list[str] = []

    async def work() -> None:
        disk = Disk()
        store = FallbackStore(disk, told.append)
        for pause in (60.0, QUIET - 60, QUIET + 60):
            disk.seconds = 2.0
            await store.get("a")
            disk.seconds = 0.0
            await asyncio.sleep(pause)
        assert len(told) == 1
        disk.seconds = 2.0
        await store.get("a")
        assert len(told) == 2

    run_fast(work())


def test_one_write_of_more_than_a_second_does_not_make_the_store_go_away() -> None:
    told: list[str] = []

    async def work() -> None:
        disk = Disk(1.5)
        store = FallbackStore(disk, told.append)
        assert not await store.replace("journal/a", None, b"1", FAR)  # nobody can tell
        # The one who needs to know waits, and finds what was done meanwhile.
        assert await store.patient(10).get("journal/a") == b"1"
        disk.seconds = 0.0
        assert not store.is_memory_only
        assert await store.patient(10).replace("journal/a", b"1", b"2", FAR)

    _, took = run_fast(work())
    assert 3 <= took < 3.1
    assert len(told) == 1


@pytest.mark.parametrize(
    ("patience", "answer"), [(0.0, None), (4.0, None), (6.0, b"1")]
)
def test_patience_is_what_a_question_may_take(
    patience: float, answer: bytes | None
) -> None:
    async def work() -> None:
        disk = Disk(5.0)
        disk.rows.put("a", b"1", FAR, None, False)
        store = FallbackStore(disk, print)
        assert await store.patient(patience).get("a") == answer

    _, took = run_fast(work())
    assert took == pytest.approx(min(patience, 5.0), abs=0.01)


def test_busy_store_is_asked_again_by_who_is_patient() -> None:
    async def work() -> None:
        busy = Failing(StoreBusy, 20)
        await busy.put("a", b"1", FAR)
        store = FallbackStore(busy, print)
        assert await store.get("a") is None
        assert await store.patient(10).get("a") == b"1"

    _, took = run_fast(work())
    assert 1 < took < 3


def test_broken_store_is_left_at_once_also_by_who_is_patient() -> None:
    told: list[str] = []

    async def work() -> None:
        broken = Failing(StoreError, 1)
        store = FallbackStore(broken, told.append)
        patient = store.patient(10)
        assert await patient.get("a") is None
        assert store.is_memory_only
        assert not patient.is_kept("a")
        assert patient.is_kept("journal/a")
        await patient.put("a", b"1", FAR)
        assert await store.get("a") == b"1"

    _, took = run_fast(work())
    assert took < 0.1
    assert told == ["nothing outlives this process: no"]


def test_allowance_is_spent_together_and_renewed() -> None:
    allowance = Allowance()
    assert allowance.begin(100.0) == BOUND + FREE
    assert allowance.begin(100.6) == pytest.approx(BOUND - 0.6 + 2 * FREE)
    allowance.end(100.6 + FREE)
    allowance.end(100.6 + FREE)
    assert allowance.begin(100.7) == pytest.approx(0.4 + FREE, abs=0.01)
    assert allowance.begin(102.0) == 0.0
    allowance.end(102.0)
    allowance.end(102.0)
    assert allowance.begin(102.0) == 0.0
    allowance.end(102.0)
    half = allowance.begin(102.0 + RENEWED / 2)
    assert half == pytest.approx(BOUND / 2 + FREE)
    allowance.end(102.0 + RENEWED / 2)
    assert allowance.begin(102.0 + 5 * RENEWED) == BOUND + FREE


def test_disk_that_answers_many_who_wait_all_the_time_is_not_slow() -> None:
    """A busy process: each waits for 19 others, and there is always one that waits."""
    allowance = Allowance()
    for number in range(10_000):
        now = 100.0 + number / 600
        assert allowance.begin(now) == BOUND + FREE
        if number >= 20:
            allowance.end(now)
    now += 0.5  # no answer in all that time
    assert allowance.begin(now) == pytest.approx(BOUND - 0.5 + 2 * FREE)


def test_what_a_healthy_disk_takes_is_not_counted() -> None:
    allowance = Allowance()
    for number in range(1000):
        assert allowance.begin(100.0 + number) == BOUND + FREE
        allowance.end(100.0 + number + FREE)


ROW = Replacement("journal/a", None, b"1", FAR)


@pytest.mark.parametrize(("patience", "answer"), [(4.0, [False]), (6.0, [True])])
def test_submitted_operation_has_its_patience(
    patience: float, answer: list[bool]
) -> None:
    lines: list[str] = []

    async def work() -> None:
        told = asyncio.get_running_loop().create_future()
        store = FallbackStore(Disk(5.0), lines.append)
        store.patient(patience).submit_replace([ROW], told.set_result)
        assert await told == answer
        # Perhaps done, and a later look shows it.
        assert await store.patient(10).get(ROW.key) == ROW.new

    run_fast(work())
    assert len(lines) == (answer == [False])


def test_submitted_operation_without_patience_has_what_all_have() -> None:
    async def work() -> None:
        store = FallbackStore(Disk(3600.0), lambda line: None)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(3):
            told = loop.create_future()
            store.submit_replace([ROW], told.set_result)
            assert await told == [False]
        assert loop.time() - began == pytest.approx(1, abs=0.1)

    run_fast(work())


class Unwilling(Failing):
    """Raises for what writes, too."""

    async def do(self, operation: Operation[T]) -> T:
        if self.times > 0:
            self.times -= 1
            raise self._error("no")
        return await super().do(operation)


def test_submitted_operation_is_given_again_to_a_busy_store() -> None:
    async def work() -> None:
        busy = Unwilling(StoreBusy, 20)
        store = FallbackStore(busy, print)
        hurried = asyncio.get_running_loop().create_future()
        store.submit_replace([ROW], hurried.set_result)
        assert await hurried == [False]
        told = asyncio.get_running_loop().create_future()
        store.patient(10).submit_replace([ROW], told.set_result)
        assert await told == [True]
        assert not store.is_memory_only

    _, took = run_fast(work())
    assert 1 < took < 3


def test_submitted_operation_is_done_in_memory_when_the_store_is_broken() -> None:
    async def work() -> None:
        broken = Unwilling(StoreError, 1)
        store = FallbackStore(broken, print)
        for answer in ([True], [False]):
            told = asyncio.get_running_loop().create_future()
            store.patient(10).submit_replace([ROW], told.set_result)
            assert await told == answer
        assert not store.is_kept(ROW.key)
        assert broken.rows.get_many([ROW.key]) == {}
        await store.close()

    _, took = run_fast(work())
    assert took < 0.1


def test_submitted_operation_that_is_given_up_takes_nothing_of_the_allowance() -> None:
    async def work() -> None:
        store = FallbackStore(Disk(3600.0), print)
        told: list[object] = []
        waiting = store.submit_replace([ROW], told.append)
        waiting.give_up()
        waiting.give_up()
        await asyncio.sleep(30)
        assert told == []
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await store.get("a") is None
        assert loop.time() - began == pytest.approx(1, abs=0.1)

    run_fast(work())
