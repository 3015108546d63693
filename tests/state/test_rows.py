"""Rows that no store has written, and how many rows there may be."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.leases import Leases
from mxpolicy.state import schema
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.opening import open_to_read
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.state.sqlite_file import STEP
from mxpolicy.state.store import HEAVY, LIGHT, MEDIUM, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FAR = time.time() + 86400
FILES = {"host a": "state.sqlite3", "journal/a": "journal.sqlite3"}


def sql(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Do it with the file, without the table's own rules; return the last one's rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        text = "UPDATE sqlite_master SET sql = replace(sql, {}, {})"
        db.execute(text.format("' NOT NULL'", "' /*NN*/'"))
        db.execute("PRAGMA writable_schema = RESET")
        found: list[tuple[object, ...]] = []
        for statement in statements:
            found = db.execute(statement).fetchall()
        db.execute("PRAGMA writable_schema = ON")
        db.execute(text.format("' /*NN*/'", "' NOT NULL'"))
    return found


async def made(path: Path) -> None:
    store = SqliteStore(str(path / "state.sqlite3"))
    for key in FILES:
        await store.put(key, b"1", FAR)
    await store.close()


DAMAGE = {
    "null": "value = NULL",
    "integer": "value = 5",
    "real": "value = 5.5",
    "text": "value = 'text'",
    "text_of_bad_utf_8": "value = CAST(x'ff00c0' AS TEXT)",
    "huge": "value = zeroblob(5000000)",
    "end_is_text": "expires = 'later'",
    "end_is_bad_text": "expires = CAST(x'ff' AS TEXT)",
    "end_is_blob": "expires = x'ffff'",
    "end_is_null": "expires = NULL",
    "end_is_infinite": "expires = 9e999",
    "end_is_beyond_all": "expires = 1e300",
    "end_is_not_a_number": "expires = 9e999 - 9e999",
    "key_is_bad_utf_8": "key = CAST(CAST(key AS BLOB) || x'ff' AS TEXT)",
    "key_is_blob": "key = CAST(key AS BLOB)",
    "all": "value = NULL, expires = NULL, weight = NULL",
    "weight_is_null": "weight = NULL, value = 7",
    "weight_is_text": "weight = 'heavy', value = 7",
}


async def overwrite_by_put(store: Store, key: str) -> None:
    await store.put(key, b"2", FAR)


async def overwrite_by_add(store: Store, key: str) -> None:
    assert await store.replace(key, None, b"2", FAR)


@pytest.mark.parametrize("key", FILES)
@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("overwrite", [overwrite_by_put, overwrite_by_add])
async def test_row_of_the_wrong_type_is_none_and_is_overwritten(
    tmp_path: Path,
    key: str,
    change: str,
    overwrite: Callable[[Store, str], object],
) -> None:
    await made(tmp_path)
    sql(tmp_path / FILES[key], f"UPDATE rows SET {change}")
    told: list[str] = []
    path = str(tmp_path / "state.sqlite3")
    reads = open_to_read(path, told.append)
    assert await reads.get(key) is None
    assert await reads.scan(key[:2]) == []
    store = FallbackStore(SqliteStore(path), told.append).patient(60)
    assert await store.get(key) is None
    assert await store.scan(key[:2]) == []
    assert not await store.replace(key, b"1", b"2", FAR)
    await overwrite(store, key)  # type: ignore[misc]
    assert await store.get(key) == b"2"
    assert [one.key for one in await store.scan(key)] == [key]
    assert await store.replace(key, b"2", b"3", FAR)
    assert await store.get(key) == b"3"
    await store.close()
    assert told == []


async def test_one_damaged_row_does_not_hide_the_others(tmp_path: Path) -> None:
    await made(tmp_path)
    file = tmp_path / "state.sqlite3"
    sql(file, "INSERT INTO rows VALUES (CAST(x'686f7374ff' AS TEXT), x'31', 9e9, 1)")
    sql(file, "INSERT INTO rows VALUES ('host b', 5, 9e9, 1)")
    store = SqliteStore(str(file))
    assert [one.key for one in await store.scan("host")] == ["host a"]
    await store.close()


# -- bounds --------------------------------------------------------------------------


def fill(file: Path, rows: Iterable[tuple[str, float, int]]) -> None:
    """Put rows there as (key, end, weight), past all care."""
    with closing(sqlite3.connect(file)) as db:
        values = ((key, b"x" * 100, end, weight) for key, end, weight in rows)
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", values)
        db.commit()


def keys(file: Path) -> set[str]:
    return {str(key) for (key,) in sql(file, "SELECT key FROM rows")}


async def write(directory: Path, times: int, **bounds: int) -> None:
    """Do as so many deliveries do: a process each, with a few writes."""
    for number in range(times):
        store = SqliteStore(str(directory / "state.sqlite3"), **bounds)  # type: ignore[arg-type]
        await store.put(f"host {number % 3}", b"1", FAR)
        await store.put(f"journal/{number}", b"1", FAR, weight=LIGHT)
        await store.close()


async def test_rows_go_by_weight_and_then_by_their_end(tmp_path: Path) -> None:
    await made(tmp_path)
    kinds = {"light": LIGHT, "medium": MEDIUM, "heavy": HEAVY}
    for name, weight in kinds.items():
        # What is heavy ends first: its end alone must not decide.
        rows = [
            (f"journal/{name} {n:04}", FAR - weight * 5000 + n, weight)
            for n in range(1000)
        ]
        fill(tmp_path / "journal.sqlite3", rows)
    await write(tmp_path, 3, max_journal_bytes=1)
    left = keys(tmp_path / "journal.sqlite3")
    gone = {f"journal/light {n:04}" for n in range(1000)} - left
    assert gone == {f"journal/light {n:04}" for n in range(3 * STEP)}
    await write(tmp_path, 4, max_journal_bytes=1)
    left = keys(tmp_path / "journal.sqlite3")
    assert not [key for key in left if "light" in key]
    assert len([key for key in left if "medium" in key]) == 2000 - 7 * STEP + 7
    assert len([key for key in left if "heavy" in key]) == 1000


async def test_lease_outlives_a_full_store(tmp_path: Path) -> None:
    await made(tmp_path)
    fill(tmp_path / "state.sqlite3", ((f"host x{n}", FAR, LIGHT) for n in range(2000)))
    store = SqliteStore(str(tmp_path / "state.sqlite3"))
    leases = Leases(store, time.time)
    assert await leases.take("host x1")
    await write(tmp_path, 5, max_bytes=1)
    assert not await leases.take("host x1")
    await store.close()


async def test_journal_and_hosts_do_not_take_each_others_room(tmp_path: Path) -> None:
    await made(tmp_path)
    fill(tmp_path / "journal.sqlite3", ((f"journal/{n}", FAR, 1) for n in range(5000)))
    fill(tmp_path / "state.sqlite3", ((f"host x{n}", FAR, 1) for n in range(500)))
    await write(tmp_path, 30, max_journal_bytes=300_000)
    assert len(keys(tmp_path / "state.sqlite3")) == 504
    assert 500 < len(keys(tmp_path / "journal.sqlite3")) < 2000
    fill(tmp_path / "state.sqlite3", ((f"host y{n}", FAR, 1) for n in range(5000)))
    before = len(keys(tmp_path / "journal.sqlite3"))
    await write(tmp_path, 30, max_bytes=300_000)
    assert len(keys(tmp_path / "state.sqlite3")) < 2000
    assert len(keys(tmp_path / "journal.sqlite3")) >= before


async def test_what_has_expired_goes_first_whatever_its_weight(tmp_path: Path) -> None:
    await made(tmp_path)
    past = time.time() - 1
    for weight in (LIGHT, MEDIUM, HEAVY):
        fill(
            tmp_path / "state.sqlite3",
            ((f"old {weight} {n}", past - n, weight) for n in range(STEP)),
        )
    fill(tmp_path / "state.sqlite3", ((f"host x{n}", FAR, LIGHT) for n in range(500)))
    await write(tmp_path, 1)
    assert not [key for key in keys(tmp_path / "state.sqlite3") if "old" in key]
    assert len(keys(tmp_path / "state.sqlite3")) == 502


def _steps(file: Path, statement: str, row: dict[str, object]) -> int:
    """Return how many thousand steps of SQLite's machine a statement takes."""
    count = 0

    def one() -> int:
        nonlocal count
        count += 1
        return 0

    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.set_progress_handler(one, 100)
        db.execute(statement, row).fetchall()
        db.set_progress_handler(None, 0)
        db.execute("ROLLBACK")
    return count


@pytest.mark.parametrize(
    "statement",
    [schema.GET, schema.PUT, schema.ADD, schema.REPLACE, schema.PURGE, schema.EVICT],
)
async def test_no_step_costs_more_in_a_large_file(
    tmp_path: Path, statement: str
) -> None:
    await made(tmp_path)
    file = tmp_path / "state.sqlite3"
    row: dict[str, object] = {
        "key": "host n",
        "value": b"2",
        "old": b"1",
        "now": FAR + 5000,
    }
    row |= {"expires": FAR + 9000, "weight": LIGHT, "step": STEP}
    fill(file, ((f"host s{n}", FAR - 10 + n, LIGHT) for n in range(STEP)))
    small = _steps(file, statement, row)
    fill(file, ((f"host l{n}", FAR - 10 - n, 1 + n % 3) for n in range(30_000)))
    assert _steps(file, statement, row) <= 2 * small + 20


def _deliver(path: str) -> None:
    asyncio.run(write(Path(path), 5, max_bytes=1))


async def test_processes_that_evict_at_the_same_time_lose_nothing_else(
    tmp_path: Path,
) -> None:
    await made(tmp_path)
    fill(tmp_path / "state.sqlite3", ((f"host x{n}", FAR, LIGHT) for n in range(9000)))
    fill(tmp_path / "journal.sqlite3", ((f"journal/x{n}", FAR, 3) for n in range(9000)))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        await asyncio.to_thread(pool.map, _deliver, [str(tmp_path)] * 4)
    left = keys(tmp_path / "state.sqlite3")
    # Twenty deliveries, and each was let in once.
    assert 9000 - 20 * STEP <= len(left) <= 9000 - 10 * STEP
    assert len(keys(tmp_path / "journal.sqlite3")) == 9000 + 1 + 5


async def test_file_of_the_earlier_version_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "state.sqlite3"
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA application_id = {schema.APPLICATION}")
        db.execute("PRAGMA user_version = 1")
        db.execute(
            "CREATE TABLE rows (key TEXT PRIMARY KEY, value BLOB NOT NULL,"
            " expires REAL NOT NULL, seen INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID"
        )
        db.execute("CREATE INDEX rows_by_expiry ON rows (expires)")
        db.execute("INSERT INTO rows VALUES ('host a', x'31', 9e9, 17)")
        told: list[str] = []
        assert await open_to_read(str(file), told.append).get("host a") is None
        stores = [FallbackStore(SqliteStore(str(file)), told.append) for _ in range(4)]
        await asyncio.gather(*(one.put("host b", b"2", FAR) for one in stores))
        assert [await one.get("host a") for one in stores] == [None] * 4
        assert [await one.get("host b") for one in stores] == [b"2"] * 4
        assert told == []
        for one in stores:
            await one.close()
    assert os.listdir(tmp_path) == ["state.sqlite3"]
