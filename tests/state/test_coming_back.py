"""A store that is left and comes back: what serves meanwhile, and what is written then."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

import pytest

from mxpolicy.errors import StoreError
from mxpolicy.state.fallback import FIRST_LOOK, LAST_LOOK, FallbackStore
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.sqlite import SqliteStore, journal_file
from mxpolicy.state.store import HEAVY
from tests.helpers.fast_loop import run_fast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from mxpolicy.state.store import Operation, Stored

T = TypeVar("T")

FAR = time.time() + 86400


class Failing(MemoryStore):
    """Fails while it *is_broken*; notes what it was asked, but for the probe."""

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = True
        self.asked: list[str] = []
        self.probed: list[float] = []

    async def do(self, operation: Operation[T]) -> T:
        if operation.key.endswith("probe"):
            self.probed.append(asyncio.get_running_loop().time())
        else:
            self.asked.append(f"{operation.name} {operation.key}")
        if self.is_broken:
            raise StoreError("no disk")
        return await super().do(operation)


def newer(ours: Stored, there: Stored | None) -> bool:
    """As with real rows: some are about that time only, of others the newer counts."""
    if ours.key.startswith("lease"):
        return False
    return there is None or ours.expires > there.expires


class Site:
    """A store that fails, and what is told."""

    def __init__(self) -> None:
        self.real = Failing()
        self.told: list[str] = []
        self.store = FallbackStore(self.real, self.told.append, prevails=newer)


def play(work: Callable[[Site], Awaitable[None]]) -> None:
    async def run() -> None:
        await work(Site())

    run_fast(run())


def test_memory_serves_until_the_store_is_back() -> None:
    async def work(site: Site) -> None:
        await site.store.put("a", b"1", FAR)
        assert site.store.is_memory_only
        await site.store.put("lease b", b"ours", FAR)
        assert await site.store.get("a") == b"1"
        site.real.is_broken = False
        await asyncio.sleep(2 * FIRST_LOOK)
        assert not site.store.is_memory_only
        assert await site.store.get("a") == b"1"
        assert await site.real.get("a") == b"1"
        assert await site.store.get("lease b") is None
        assert site.told == [
            "nothing outlives this process: no disk",
            "what is remembered outlives this process again",
        ]

    play(work)


def test_store_is_looked_for_less_and_less_often() -> None:
    async def work(site: Site) -> None:
        await site.store.get("a")
        await asyncio.sleep(1000)
        times = site.real.probed
        pauses = [b - a for a, b in itertools.pairwise(times)]
        assert pauses[:5] == pytest.approx([2, 4, 8, 16, 32], abs=0.01)
        assert set(map(round, pauses[5:])) == {LAST_LOOK}
        assert len(times) < 25
        # Nothing but the probe has touched it, and it is told once.
        await site.store.put("a", b"1", FAR)
        assert site.real.asked == ["get_many a"]
        assert len(site.told) == 1

    play(work)


def test_one_that_fails_again_and_again_is_not_looked_for_each_second() -> None:
    async def work(site: Site) -> None:
        for _ in range(20):
            site.real.is_broken = True
            await site.store.get("a")
            site.real.is_broken = False
            while site.store.is_memory_only:  # noqa: ASYNC110 - time is moved
                await asyncio.sleep(0.1)
        assert len(site.real.probed) == 20
        last = site.real.probed[-1] - site.real.probed[-2]
        assert last == pytest.approx(LAST_LOOK, abs=0.2)
        await asyncio.sleep(2 * LAST_LOOK)  # it has done well for long
        site.real.is_broken = True
        before = asyncio.get_running_loop().time()
        await site.store.get("a")
        site.real.is_broken = False
        await asyncio.sleep(LAST_LOOK)
        assert site.real.probed[-1] - before == pytest.approx(FIRST_LOOK, abs=0.01)

    play(work)


def test_what_was_learned_is_written_before_anything_is_read() -> None:
    async def work(site: Site) -> None:
        for key in ("older", "newer"):
            site.real.rows.put(key, b"theirs", FAR, None, False)
        await site.store.put("older", b"ours", FAR - 900)
        await site.store.put("newer", b"ours", FAR + 900)
        await site.store.put("other", b"ours", FAR, weight=HEAVY)
        site.real.is_broken = False
        site.real.asked.clear()
        for _ in range(2000):
            assert await site.store.get("newer") == b"ours"
            await asyncio.sleep(0.001)
        reads = [one.startswith("get_many") for one in site.real.asked]
        assert reads == sorted(reads)  # what is replayed, then the reads
        assert True in reads
        assert False in reads
        found = {row.key: row for row in site.real.rows.scan("")}
        assert found["older"].value == b"theirs"
        assert found["newer"].value == found["other"].value == b"ours"
        assert found["other"].weight == HEAVY

    play(work)


def test_what_is_learned_during_the_replay_is_replayed_too() -> None:
    class Slow(Failing):
        """Someone writes whenever something is written here."""

        writes = 0

        async def do(self, operation: Operation[T]) -> T:
            if (
                not self.is_broken
                and operation.name == "replace_all"
                and self.writes < 5
            ):
                self.writes += 1
                await self.other.put(f"late {self.writes}", b"2", FAR)
                await self.other.put("a", b"%d" % self.writes, FAR + self.writes)
            return await super().do(operation)

        other: FallbackStore

    async def work() -> None:
        real = Slow()
        real.other = store = FallbackStore(real, print, prevails=newer)
        await store.put("a", b"0", FAR)
        real.is_broken = False
        await asyncio.sleep(2)
        assert not store.is_memory_only
        assert len(await real.scan("late ")) == 5
        assert await real.get("a") == b"5"

    run_fast(work())


def test_store_that_breaks_again_during_the_replay_gets_all_of_it_later() -> None:
    class Brittle(Failing):
        left = 3

        async def do(self, operation: Operation[T]) -> T:
            if operation.name == "replace_all" and not self.is_broken:
                self.left -= 1
                self.is_broken = self.left == 0
            return await super().do(operation)

    async def work() -> None:
        real = Brittle()
        store = FallbackStore(real, lambda text: None, prevails=newer)
        for number in range(9):
            await store.put(f"{number}", b"1", FAR)
        real.is_broken = False
        await asyncio.sleep(1.5)
        assert store.is_memory_only
        assert len(real.rows.scan("")) < 9
        real.is_broken = False
        await asyncio.sleep(2)
        assert not store.is_memory_only
        assert len(await real.scan("")) == 10  # with the probe

    run_fast(work())


def test_second_absence_begins_with_an_empty_memory_and_is_told() -> None:
    async def work(site: Site) -> None:
        await site.store.put("a", b"1", FAR)
        site.real.is_broken = False
        await asyncio.sleep(2)
        await site.store.put("a", b"2", FAR - 9)  # a later word, that ends earlier
        site.real.is_broken = True
        assert await site.store.get("a") is None
        site.real.is_broken = False
        await asyncio.sleep(70)
        assert await site.store.get("a") == b"2"
        assert site.told.count("nothing outlives this process: no disk") == 2

    play(work)


# -- files -------------------------------------------------------------------------


class Timers:
    """What would be called later is called when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def call_later(self, seconds: float, work: Callable[[], None]) -> asyncio.Handle:
        self.waiting.append(work)
        return asyncio.get_running_loop().call_later(1e6, work)

    def fire(self) -> None:
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()


class Process:
    """A long-lived process with its files, and others beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self.timers = Timers()
        self.real = SqliteStore(str(path))
        self.store = FallbackStore(
            self.real,
            self.told.append,
            prevails=newer,
            call_later=self.timers.call_later,
        )

    async def is_back(self) -> None:
        """Let it look, until it has found its files again."""
        async with asyncio.timeout(20):
            while self.store.is_memory_only:
                self.timers.fire()
                await asyncio.sleep(0.01)

    async def others_see(self, key: str) -> bytes | None:
        other = SqliteStore(str(self.path), create=False)
        try:
            return await other.get(key)
        finally:
            await other.close()


def delete_all(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def vanish(path: Path) -> None:
    shutil.rmtree(path.parent)


def become_a_directory(path: Path) -> None:
    delete_all(path.parent)
    for name in (str(path), journal_file(str(path))):
        os.mkdir(name)


def become_garbage(path: Path) -> None:
    delete_all(path.parent)
    path.write_bytes(os.urandom(9000))
    shutil.copy(path, journal_file(str(path)))


@pytest.mark.parametrize("spoil", [vanish, become_a_directory, become_garbage])
async def test_files_that_are_spoilt_and_come_back(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "state" / "state.sqlite3"
    path.parent.mkdir()
    one = Process(path)
    for key in ("a", "journal/a"):
        await one.store.put(key, b"1", FAR)
    assert not one.store.is_memory_only
    spoil(path)
    for key in ("a", "journal/a"):
        assert await one.store.get(key) is None
        await one.store.put(key, b"2", FAR)
    assert one.store.is_memory_only
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    await one.is_back()
    for key in ("a", "journal/a"):
        assert await one.store.get(key) == b"2"
        assert await one.others_see(key) == b"2"
    left, back = one.told[:2], sorted(one.told[2:])
    assert all(text.startswith("nothing outlives this process: ") for text in left)
    assert back == [
        "the journal outlives this process again",
        "what is remembered outlives this process again",
    ]
    await one.store.close()


async def test_file_that_others_delete_is_not_written_into_any_more(
    tmp_path: Path,
) -> None:
    """What is at the path counts: two processes with two files would send twice."""
    one = Process(tmp_path / "state.sqlite3")
    await one.store.put("journal/a", b"1", FAR)
    delete_all(tmp_path)
    assert await one.store.get("journal/a") is None
    assert await one.store.replace("journal/a", None, b"2", FAR)
    assert await one.others_see("journal/a") == b"2"
    assert not one.told
    await one.store.close()


async def test_file_that_is_locked_is_not_left(tmp_path: Path) -> None:
    one = Process(tmp_path / "state.sqlite3")
    await one.store.put("a", b"1", FAR)
    with closing(sqlite3.connect(one.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await one.store.get("a") == b"1"
        assert not await one.store.replace("a", b"1", b"2", FAR)
        other.execute("ROLLBACK")
    assert await one.store.replace("a", b"1", b"2", FAR)
    assert not one.told
    await one.store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_file_that_is_read_only_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    asyncio.run(SqliteStore(str(path)).put("old", b"", FAR))
    os.chown(tmp_path, 65534, 65534)
    for file in tmp_path.iterdir():
        os.chown(file, 65534, 65534)
    path.chmod(0o440)
    for parent in path.parents[:4]:
        parent.chmod(parent.stat().st_mode | 0o055)
    script = (
        "import asyncio, os, sys, time, sqlite3, mxpolicy.state.sqlite\n"
        "from mxpolicy.state.fallback import FallbackStore\n"
        "from mxpolicy.state.sqlite import SqliteStore\n"
        "path = sys.argv[1]\n"
        "def call_later(seconds, work):\n"
        "    os.chmod(path, 0o640)\n"
        "    return asyncio.get_running_loop().call_soon(work)\n"
        "async def main():\n"
        "    newer = lambda ours, there: True\n"
        "    real = SqliteStore(path)\n"
        "    store = FallbackStore(\n"
        "        real, print, prevails=newer, call_later=call_later)\n"
        "    await store.put('a', b'1', time.time() + 900)\n"
        "    print(store.is_memory_only)\n"
        "    while store.is_memory_only:\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(await real.get('a'))\n"
        "os.setgid(65534)\n"
        "os.setuid(65534)\n"
        "asyncio.run(asyncio.wait_for(main(), 20))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[1:] == [
        "True",
        "what is remembered outlives this process again",
        "b'1'",
    ], done
