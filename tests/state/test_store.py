"""The contract of `mxpolicy.state.store.Store`, held by every implementation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.state.store import HEAVY, Replacement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mxpolicy.state.store import Store

NOW = 1_800_000_000.0


class Clock:
    """UTC, moved by the test."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "daemon", "fallback", "fallen back"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[Store]:
    made: Store
    file = SqliteStore(str(tmp_path / "state"), clock=clock)
    told: list[str] = []
    match request.param:
        case "memory":
            made = MemoryStore(clock)
        case "sqlite":
            made = file
        case "daemon":
            made = SqliteStore(str(tmp_path / "state"), clock=clock, stays=True)
        case "fallback":
            made = FallbackStore(file, told.append)
        case _:
            away = SqliteStore(str(tmp_path / "no" / "state"))
            made = FallbackStore(away, told.append, MemoryStore(clock))
    yield made
    await made.close()
    assert len(told) == (request.param == "fallen back")


async def test_value_is_what_was_put_last(store: Store) -> None:
    assert await store.get("a") is None
    await store.put("a", b"\0one\xff", NOW + 60)
    await store.put("b", b"other", NOW + 60)
    assert await store.get("a") == b"\0one\xff"
    await store.put("a", b"two", NOW + 60, durable=True)
    assert await store.get("a") == b"two"
    assert await store.get("b") == b"other"


async def test_many_are_had_by_one_visit(store: Store, clock: Clock) -> None:
    for key in ("a", "b", "c"):
        await store.put(key, key.encode(), NOW + 60)
    await store.put("short", b"1", NOW + 30)
    clock.now = NOW + 30
    assert await store.get_many(["b", "none", "a", "b", "short"]) == {
        "a": b"a",
        "b": b"b",
    }
    assert await store.get_many([]) == {}


async def test_row_is_gone_when_it_expires(store: Store, clock: Clock) -> None:
    await store.put("a", b"one", NOW + 60)
    clock.now = NOW + 59.9
    assert await store.get("a") == b"one"
    clock.now = NOW + 60
    assert await store.get("a") is None
    assert not await store.replace("a", b"one", b"two", NOW + 600)
    assert not await store.scan("a")
    await store.put("a", b"three", NOW + 600)
    assert await store.get("a") == b"three"


async def test_add_keeps_the_first_until_it_expires(store: Store, clock: Clock) -> None:
    assert await store.replace("lease", None, b"ours", NOW + 30)
    assert not await store.replace("lease", None, b"theirs", NOW + 90)
    assert await store.get("lease") == b"ours"
    clock.now = NOW + 30
    assert await store.replace("lease", None, b"theirs", NOW + 90)
    assert await store.get("lease") == b"theirs"


async def test_one_of_many_who_add_is_told_so(store: Store) -> None:
    added = await asyncio.gather(
        *(
            store.replace("lease", None, b"%d" % number, NOW + 30)
            for number in range(50)
        )
    )
    assert sum(added) == 1


async def test_replace_needs_what_is_there(store: Store) -> None:
    assert not await store.replace("a", b"", b"new", NOW + 60)
    await store.put("a", b"one", NOW + 60)
    assert not await store.replace("a", b"other", b"new", NOW + 60)
    assert await store.replace("a", b"one", b"two", NOW + 60)
    assert not await store.replace("a", b"one", b"three", NOW + 60)
    assert await store.get("a") == b"two"


async def test_delete_says_whether_there_was_anything(store: Store) -> None:
    await store.put("a", b"one", NOW + 60)
    assert await store.delete("a")
    assert not await store.delete("a")
    assert await store.get("a") is None


async def test_delete_of_what_was_seen_leaves_what_came_later(store: Store) -> None:
    assert not await store.delete("a", b"one")
    await store.put("a", b"two", NOW + 60)
    assert not await store.delete("a", b"one")
    assert await store.get("a") == b"two"
    assert await store.delete("a", b"two")
    assert await store.get("a") is None


async def test_row_that_has_expired_is_not_what_was_seen(
    store: Store, clock: Clock
) -> None:
    await store.put("a", b"one", NOW + 60)
    clock.now = NOW + 60
    assert not await store.delete("a", b"one")


async def test_scan_gives_the_rows_of_a_prefix_by_key(store: Store) -> None:
    for key in ("h b", "h a", "h", "i a", "h a\N{EURO SIGN}", "g"):
        await store.put(key, key.encode(), NOW + 60)
    rows = await store.scan("h ")
    assert [row.key for row in rows] == ["h a", "h a\N{EURO SIGN}", "h b"]
    assert rows[0].value == b"h a"
    assert rows[0].expires == NOW + 60
    assert len(await store.scan("")) == 6


async def submitted(store: Store, *rows: Replacement) -> list[bool] | BaseException:
    """Replace *rows* without a coroutine, and return what is told of it."""
    told = asyncio.get_running_loop().create_future()
    store.submit_replace(rows, told.set_result)
    assert not told.done()
    return await told  # type: ignore[no-any-return]


async def test_all_rows_are_replaced_or_none(store: Store) -> None:
    new = Replacement("a", None, b"one", NOW + 60, HEAVY)
    assert await store.replace_all([new]) == [True]
    other = Replacement("b", None, b"two", NOW + 60)
    assert await store.replace_all([other, new], durable=True) == [True, False]
    assert await store.get_many(["a", "b"]) == {"a": b"one"}
    both = [other, new._replace(old=b"one", new=b"three")]
    assert await store.replace_all(both, durable=True) == [True, True]
    assert await store.get_many(["a", "b"]) == {"a": b"three", "b": b"two"}


async def test_rows_are_replaced_without_a_coroutine(store: Store) -> None:
    new = Replacement("journal/a", None, b"one", NOW + 60, HEAVY)
    other = Replacement("journal/b", None, b"two", NOW + 60)
    assert await submitted(store, new) == [True]
    assert await submitted(store, new, other) == [False, True]
    assert await store.get("journal/b") is None
    assert await submitted(store, new._replace(old=b"one"), other) == [True, True]
    assert await store.get("journal/b") == b"two"


async def test_nothing_is_told_of_what_was_given_up(store: Store) -> None:
    told: list[object] = []
    row = Replacement("a", None, b"one", NOW + 60)
    store.submit_replace([row], told.append).give_up()
    for _ in range(3):  # operations are done in turn
        await store.get("a")
    assert told == []


async def test_of_many_submitted_at_once_one_wins(store: Store) -> None:
    rows = [Replacement("a", None, b"%d" % n, NOW + 60) for n in range(50)]
    told = await asyncio.gather(*(submitted(store, row) for row in rows))
    assert sum(one == [True] for one in told) == 1
    assert await store.get("a") == b"%d" % told.index([True])


async def test_what_is_asked_together_is_answered_in_order(store: Store) -> None:
    asked = [
        store.get("a"),
        store.put("a", b"1", NOW + 60),
        store.get("a"),
        store.delete("a"),
        store.put("b", b"2", NOW + 60, durable=True),
        store.scan("b"),
    ]
    done = await asyncio.gather(*(asyncio.ensure_future(one) for one in asked))
    assert done[:5] == [None, None, b"1", True, None]
    assert [row.key for row in done[5]] == ["b"]  # type: ignore[union-attr]
