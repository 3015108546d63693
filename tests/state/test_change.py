"""Compare-and-set: no change is lost, and what was not done is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from mxpolicy.state.change import TRIES, New, change
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.state.store import HEAVY, StoreBusy
from tests.helpers.fast_loop import run_fast
from tests.helpers.slow_store import SlowOnce

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mxpolicy.state.store import Operation, Store

T = TypeVar("T")

FAR = 2e9


class Interleaved(MemoryStore):
    """Lets another writer go on after each read."""

    async def get(self, key: str) -> bytes | None:
        value = await super().get(key)
        await asyncio.sleep(0)
        return value


@pytest.fixture(params=["memory", "sqlite"])
async def stores(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Store, Store]]:
    """The same rows, as two processes see them."""
    if request.param == "memory":
        store = Interleaved()
        yield store, store
        return
    one, other = (SqliteStore(str(tmp_path / "state")) for _ in range(2))
    yield one, other
    await one.close()
    await other.close()


def one_more(value: bytes | None) -> New:
    return New(b"%d" % (int(value or b"0") + 1), FAR)


async def test_no_change_of_many_writers_is_lost(stores: tuple[Store, Store]) -> None:
    writers = 20
    came = await asyncio.gather(
        *(change(stores[n % 2], "n", one_more, tries=writers) for n in range(writers))
    )
    assert all(one.is_ours for one in came)
    assert sorted(int(one.value or b"0") for one in came) == list(range(1, writers + 1))
    assert await stores[0].get("n") == b"%d" % writers


async def test_change_is_done_or_told_not_to_be(stores: tuple[Store, Store]) -> None:
    came = await asyncio.gather(
        *(change(stores[n % 2], "n", one_more) for n in range(20))
    )
    done = [one for one in came if one.is_ours]
    assert await stores[0].get("n") == b"%d" % len(done)


async def test_one_of_many_who_make_a_row_is_told_so(
    stores: tuple[Store, Store],
) -> None:
    def lease(value: bytes | None) -> New | None:
        return New(b"same", FAR) if value is None else None

    came = await asyncio.gather(
        *(change(stores[n % 2], "lease", lease) for n in range(20))
    )
    assert sum(one.is_ours for one in came) == 1
    assert {one.value for one in came} == {b"same"}


async def test_step_that_has_nothing_to_say_leaves_the_row() -> None:
    store = MemoryStore()
    assert await change(store, "a", lambda _: None) == (False, None)
    await store.put("a", b"1", FAR)
    assert await change(store, "a", lambda _: None) == (False, b"1")


async def test_row_that_changes_each_time_is_given_up() -> None:
    store = MemoryStore()
    reads = 0

    def overtaken(value: bytes | None) -> New:
        nonlocal reads
        reads += 1
        rows = store.rows
        rows.delete("a", None) if value else rows.put("a", b"1", FAR, None, False)
        return New(b"ours", FAR)

    assert not (await change(store, "a", overtaken)).is_ours
    assert reads == TRIES


async def test_set_needs_what_was_there() -> None:
    store = MemoryStore()
    assert not await store.replace("a", b"1", b"2", FAR)
    assert await store.replace("a", None, b"1", FAR, HEAVY)
    assert not await store.replace("a", None, b"2", FAR)
    assert await store.replace("a", b"1", b"2", FAR)
    assert await store.get("a") == b"2"


@pytest.mark.parametrize("how", ["done late", "told late"])
def test_write_without_an_answer_is_found_when_it_was_done(how: str) -> None:
    async def work() -> None:
        store = FallbackStore(SlowOnce(how, 1, 5.0), lambda text: None).patient(4.0)

        def once(value: bytes | None) -> New | None:
            return New(b"ours", FAR) if value is None else None

        assert await change(store, "a", once) == (False, b"ours")

    run_fast(work())


def test_store_that_gives_no_answer_is_not_asked_for_ever() -> None:
    class Busy(MemoryStore):
        async def do(self, operation: Operation[T]) -> T:
            if operation.is_read:
                return await super().do(operation)
            raise StoreBusy("no")

    async def work() -> None:
        store = FallbackStore(Busy(), lambda text: None)
        assert await change(store, "a", one_more) == (False, None)

    run_fast(work())
