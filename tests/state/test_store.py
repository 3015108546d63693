"""The contract of `mxpolicy.state.store.Store`, held by every implementation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.sqlite import SqliteStore

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


@pytest.fixture(params=["memory", "sqlite", "fallback", "fallen back"])
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
    assert await store.add("lease", b"ours", NOW + 30)
    assert not await store.add("lease", b"theirs", NOW + 90)
    assert await store.get("lease") == b"ours"
    clock.now = NOW + 30
    assert await store.add("lease", b"theirs", NOW + 90)
    assert await store.get("lease") == b"theirs"


async def test_one_of_many_who_add_is_told_so(store: Store) -> None:
    added = await asyncio.gather(
        *(store.add("lease", b"%d" % number, NOW + 30) for number in range(50))
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
