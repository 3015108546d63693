"""The store that is only read: it follows its file, and harms nobody."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.opening import open_to_read
from mxpolicy.state.reading import READING_BOUND as BOUND
from mxpolicy.state.reading import ReadingStore
from mxpolicy.state.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mxpolicy.state.store import Operation

T = TypeVar("T")

FAR = time.time() + 1e6


async def put(path: Path, key: str, value: bytes) -> None:
    """Write as a delivery does, in a process that then ends."""
    store = SqliteStore(str(path))
    await store.put(key, value, FAR)
    await store.close()


def contents(directory: Path) -> dict[str, bytes]:
    """Return what files there are, without the library's index of the log."""
    return {
        one.name: one.read_bytes()
        for one in directory.iterdir()
        if not one.name.endswith(("-shm", "-wal")) and one.is_file()
    }


def clear(directory: Path, keep: str = "") -> None:
    """Delete what is there."""
    for one in directory.iterdir():
        if one.name != keep:
            one.unlink()


@pytest.fixture
def told() -> list[str]:
    return []


async def test_what_others_write_meanwhile_is_seen(
    tmp_path: Path, told: list[str]
) -> None:
    path = tmp_path / "state"
    store = open_to_read(str(path), told.append)
    assert await store.get("a") is None  # there is no file yet
    await put(path, "a", b"1")
    assert await store.get("a") == b"1"
    await put(path, "a", b"2")
    assert await store.get("a") == b"2"
    assert [one.value for one in await store.scan("a")] == [b"2"]
    assert not told


async def test_nothing_is_written_and_nothing_made(
    tmp_path: Path, told: list[str]
) -> None:
    path = tmp_path / "state"
    store = open_to_read(str(path), told.append)

    async def write() -> list[object]:
        await store.put("a", b"x", FAR)
        return [
            await store.replace("b", None, b"x", FAR),
            await store.replace("a", b"1", b"x", FAR),
            await store.delete("a"),
        ]

    assert await write() == [False, False, False]
    assert await store.get("a") is None
    assert not os.listdir(tmp_path)
    await put(path, "a", b"1")
    before = contents(tmp_path)
    await write()
    assert await store.get("a") == b"1"
    assert await store.get("b") is None
    await store.close()
    assert contents(tmp_path) == before


async def test_file_that_is_deleted_and_comes_again_is_followed(
    tmp_path: Path, told: list[str]
) -> None:
    path = tmp_path / "state"
    store = open_to_read(str(path), told.append)
    await put(path, "a", b"1")
    assert await store.get("a") == b"1"
    clear(tmp_path)
    assert await store.get("a") is None
    await put(path, "a", b"2")
    assert await store.get("a") == b"2"
    # Another one in its place, as a backup that is put back.
    await put(tmp_path / "backup", "a", b"3")
    os.replace(tmp_path / "backup", path)
    assert await store.get("a") == b"3"
    shutil.rmtree(tmp_path)
    assert await store.get("a") is None
    assert not told


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def empty(path: Path) -> None:
    path.touch()


def directory(path: Path) -> None:
    path.mkdir()


def of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE rows (key)")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    "spoil", [garbage, empty, directory, of_another_program, a_loop]
)
async def test_bad_file_is_told_once_and_a_good_one_is_read_again(
    tmp_path: Path, told: list[str], spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "state"
    spoil(path)
    store = open_to_read(str(path), told.append)
    for _ in range(3):
        assert (
            await asyncio.gather(*(store.get(f"{n}") for n in range(5))) == [None] * 5
        )
    [text] = told
    assert text.startswith("what is remembered cannot be read: ")
    assert str(path) in text
    path.rmdir() if path.is_dir() else path.unlink()
    await put(path, "a", b"1")
    assert await store.get("a") == b"1"


async def test_file_that_is_spoilt_meanwhile_costs_what_it_holds_only(
    tmp_path: Path, told: list[str]
) -> None:
    path = tmp_path / "state"
    await put(path, "a", b"1")
    store = open_to_read(str(path), told.append)
    assert await store.get("a") == b"1"
    size = path.stat().st_size
    clear(tmp_path, keep="state")
    path.write_bytes(os.urandom(size))
    assert await store.get("b") is None
    assert len(told) <= 1
    path.unlink()
    await put(path, "a", b"2")
    assert await store.get("a") == b"2"


async def test_row_that_is_not_ours_is_none(tmp_path: Path, told: list[str]) -> None:
    path = tmp_path / "state"
    await put(path, "a", b"1")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE rows SET value = 'text'")
    assert await open_to_read(str(path), told.append).get("a") is None


async def test_lock_of_another_delays_for_a_short_time_only(
    tmp_path: Path, told: list[str]
) -> None:
    path = tmp_path / "state"
    await put(path, "a", b"1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        store = open_to_read(str(path), told.append)
        for _ in range(5):
            began = time.monotonic()
            found = await asyncio.gather(*(store.get("a") for _ in range(200)))
            assert set(found) == {None}
            assert time.monotonic() - began < 20 * BOUND  # and not 200
    await asyncio.sleep(2 * BOUND)  # the last one still waits for the lock
    assert await store.get("a") == b"1"
    assert len(told) <= 1


class Hanging(MemoryStore):
    """A disk that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.rows.put("a", b"1", FAR, None, False)
        self.asked: list[Operation[Any]] = []
        self.goes_on = asyncio.Event()

    async def do(self, operation: Operation[T]) -> T:
        self.asked.append(operation)
        await self.goes_on.wait()
        return operation.on(self.rows)


async def test_disk_that_hangs_is_waited_for_once_and_used_when_it_is_back(
    told: list[str],
) -> None:
    disk = Hanging()
    store = ReadingStore(disk, told.append)
    keys = [f"{n}" for n in range(9)]
    assert await store.get_many(keys) == {}
    assert len(disk.asked) == 1
    assert len(disk.asked[0].arguments[0]) == 9  # by one visit
    began = time.monotonic()
    for _ in range(100):
        assert await store.get("a") is None
    assert await store.scan("a") == []
    assert time.monotonic() - began < BOUND / 2
    assert len(told) == 1
    disk.goes_on.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await store.get("a") == b"1"
    assert await store.scan("a")


async def test_without_threads_nothing_is_remembered(told: list[str]) -> None:
    class NoThread(Hanging):
        async def do(self, operation: Operation[T]) -> T:
            raise RuntimeError("can't start new thread")

    store = ReadingStore(NoThread(), told.append)
    assert await store.get("a") is None
    assert await store.get("a") is None
    assert told == ["what is remembered cannot be read: can't start new thread"]
