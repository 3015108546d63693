"""`mxpolicy.delivery.host_records`: what is asked of the store, and what is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from mxpolicy.delivery.host_records import FRESH, MAX_WAITING, HostRecords
from mxpolicy.routing.candidate import Verdict
from mxpolicy.routing.host_record import KEPT, NOTHING, HostRecord, decode, encode
from mxpolicy.routing.reachability import after_ready
from mxpolicy.state.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.state.store import Operation

T = TypeVar("T")

START = 1_800_000_000.0
HEALTHY = HostRecord(last_ready=START, connect_time=0.01, greeting_latency=0.2)
FAILED = HostRecord(Verdict.REFUSED, full=True, since=START, pause=60.0)


class Gated(MemoryStore):
    """Notes each operation, and does it when it is let."""

    def __init__(self) -> None:
        super().__init__(lambda: START)
        self.asked: list[str] = []
        self.lets = asyncio.Event()
        self.lets.set()

    async def do(self, operation: Operation[T]) -> T:
        self.asked.append(operation.name)
        await self.lets.wait()
        await asyncio.sleep(0)
        return operation.on(self.rows)

    def record(self, key: str) -> HostRecord:
        return decode(self.rows.get_many([key]).get(key))

    def have(self, key: str, record: HostRecord) -> bytes:
        self.rows.put(key, encode(record), START + KEPT, None, False)
        return encode(record)


class Place:
    """Records over a store; a delivery that changes some."""

    def __init__(self) -> None:
        self.now = START
        self.store = Gated()
        self.records = HostRecords(self.store, lambda: self.now)
        self.failed: list[str] = []
        self.records.failed = self.failed.append
        self.told: list[Exception] = []
        self._ended: asyncio.Queue[None] = asyncio.Queue()

    def change(self, key: str, after: Callable[[HostRecord], HostRecord]) -> bool:
        return self.records.change(key, after, self.told.append, self.end)

    def end(self) -> None:
        self._ended.put_nowait(None)

    async def end_of(self, number: int) -> None:
        """Return when so many changes more have ended."""
        for _ in range(number):
            await self._ended.get()


def ready(now: float, greeting: float = 0.2) -> Callable[[HostRecord], HostRecord]:
    return lambda record: after_ready(record, now, 0.01, greeting)


async def test_store_is_not_asked_where_there_is_no_news() -> None:
    place = Place()
    place.records.seen("host a", place.store.have("host a", HEALTHY))
    for later in (1, 2, 29):
        assert not place.change("host a", ready(START + later, 0.2 + later / 10))
    assert place.store.asked == []
    # What was read is too old to speak for the store.
    place.now = START + FRESH
    assert place.change("host a", ready(START + 5))
    await place.end_of(1)
    assert place.store.asked == ["get_many"]
    assert not place.change("host a", ready(START + 6))


async def test_news_is_written_together_and_failures_are_told() -> None:
    place = Place()
    place.records.seen("host a", None)
    assert place.change("host a", ready(START))
    assert place.change("host b", lambda record: FAILED)
    assert place.change("host a", lambda one: one._replace(small_segments=START))
    await place.end_of(3)
    assert place.store.asked == ["get_many", "replace_all", "replace_all"]
    assert place.store.record("host a") == HEALTHY._replace(small_segments=START)
    assert place.store.record("host b") == FAILED
    assert place.failed == ["host b"]


async def test_changes_during_a_write_are_one_more_round() -> None:
    place = Place()
    place.store.lets.clear()
    for number in range(20):
        assert place.change("host a", ready(START + number * 40))
        await asyncio.sleep(0)
    place.store.lets.set()
    await place.end_of(20)
    assert place.store.asked == ["get_many", "replace_all"] * 2
    assert place.store.record("host a").last_ready == START + 19 * 40


async def test_change_is_seen_before_it_is_written() -> None:
    place = Place()
    place.store.lets.clear()
    value = place.store.have("host a", HEALTHY)
    assert place.change("host a", lambda record: FAILED)
    await asyncio.sleep(0)
    assert place.change("host a", lambda one: one._replace(name="mx.example.com"))
    assert place.records.seen("host a", value) == FAILED._replace(name="mx.example.com")
    place.store.lets.set()
    await place.end_of(2)


async def test_verdict_that_another_process_has_written_meanwhile_is_cleared() -> None:
    place = Place()
    place.records.seen("host a", None)
    place.store.lets.clear()
    assert place.change("host a", ready(START))
    await asyncio.sleep(0)
    place.store.lets.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    place.store.have("host a", FAILED)  # after it was read, before it is replaced
    await place.end_of(1)
    assert place.store.record("host a").verdict is None
    assert place.store.record("host a").last_ready == START
    assert len(place.store.asked) == 4


async def test_store_that_gives_no_answer_is_not_asked_for_ever() -> None:
    place = Place()

    class Silent(Gated):
        async def do(self, operation: Operation[T]) -> T:
            self.asked.append(operation.name)
            return operation.undone

    silent = Silent()
    records = HostRecords(silent, lambda: START)
    records.change("host a", ready(START), place.told.append, place.end)
    await place.end_of(1)
    assert silent.asked == ["get_many", "replace_all"] * 4
    assert place.told == []


async def test_no_more_wait_for_a_slow_store_than_there_is_room_for() -> None:
    place = Place()
    place.store.lets.clear()
    taken = sum(place.change(f"host {n}", ready(START)) for n in range(MAX_WAITING + 9))
    assert taken == MAX_WAITING
    place.store.lets.set()
    await place.end_of(taken)
    assert place.change("host more", ready(START))
    await place.end_of(1)


@pytest.mark.parametrize("is_known", [True, False])
async def test_bug_in_a_change_is_told_and_harms_no_other(is_known: bool) -> None:
    place = Place()
    if is_known:
        place.records.seen("host a", None)
    assert place.change("host a", lambda record: 1 // 0)  # type: ignore[arg-type, return-value]
    assert place.change("host a", ready(START))
    assert place.change("host b", ready(START))
    await place.end_of(3)
    assert [type(one) for one in place.told] == [ZeroDivisionError]
    assert place.store.record("host a") == place.store.record("host b") == HEALTHY
    assert place.store.record("host c") == NOTHING
