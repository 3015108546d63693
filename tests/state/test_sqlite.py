"""The SQLite store: many processes, bad files, bounds."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from mxpolicy.errors import StoreError
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.opening import open_store, state_file
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.state.store import HEAVY, JOURNAL, StoreBusy
from mxpolicy.state.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAR = time.time() + 86400
PROCESSES = 100

# What one short process does: it writes, tries to be the one that has the lease, and
# leaves as mxpolicy pipe does.
WORK = """
import asyncio, os, sys
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.state.store import JOURNAL, StoreBusy

async def insist(question):
    while True:
        try:
            return await question()
        except StoreBusy:  # a slow machine: it was not done, and may be tried again
            pass

async def work():
    store, end = SqliteStore(sys.argv[1]), float(sys.argv[2])
    number = os.getpid()
    for n in range(3):
        await insist(lambda: store.put(f"n {number} {n}", b"", end))
    await insist(lambda: store.put(f"process {number}", b"", end))
    has = await insist(lambda: store.replace("lease", None, b"%d" % number, end))
    sys.stdout.write(f"{has:d}")
    sys.stdout.flush()

asyncio.run(work())
os._exit(0)
"""


def test_hundred_processes_write_at_once_and_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    command = [sys.executable, "-c", WORK, path, str(FAR)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(PROCESSES)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert not [err for _, err in said if err]
    assert sorted(out for out, _ in said) == [b"0"] * (PROCESSES - 1) + [b"1"]

    async def look() -> tuple[int, int]:
        store = SqliteStore(path, create=False)
        found = len(await store.scan("n ")), len(await store.scan("process "))
        await store.close()
        return found

    assert asyncio.run(look()) == (3 * PROCESSES, PROCESSES)
    assert os.listdir(tmp_path) == ["state"]


async def test_file_is_for_us_and_our_group_and_outlives_us(tmp_path: Path) -> None:
    path = tmp_path / "state"
    before = os.umask(0)
    try:
        store = SqliteStore(str(path))
        await store.put("a", b"one", FAR)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    await store.close()
    again = SqliteStore(str(path), create=False)
    assert await again.get("a") == b"one"
    await again.close()


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def cut(path: Path) -> None:
    asyncio.run(_filled(path, 300))
    data = path.read_bytes()
    # The header and the schema stand; what they point at does not.
    path.write_bytes(data[:8192] + os.urandom(len(data) - 8192))


def empty(path: Path) -> None:
    path.touch()


def directory(path: Path) -> None:
    path.mkdir()


def of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE rows (key)")


def of_the_future(path: Path) -> None:
    asyncio.run(_filled(path, 1))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")


def without_its_table(path: Path) -> None:
    asyncio.run(_filled(path, 1))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TABLE rows")


async def _filled(path: Path, rows: int) -> None:
    store = SqliteStore(str(path))
    for number in range(rows):
        await store.put(f"row {number}", b"x" * 100, FAR)
    await store.close()


@pytest.mark.parametrize(
    "spoil",
    [
        garbage,
        cut,
        empty,
        directory,
        of_another_program,
        of_the_future,
        without_its_table,
    ],
)
def test_bad_file_means_memory_only_and_one_line(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "state"
    spoil(path)
    before = None if path.is_dir() else path.read_bytes()
    told: list[str] = []

    async def use() -> None:
        store = open_store(str(path), told.append)
        for number in range(200):
            await store.put(f"new {number}", b"value", FAR)
            await store.get(f"row {number}")
        assert store.is_memory_only
        assert await store.get("new 199") == b"value"
        await store.close()

    asyncio.run(use())
    assert len(told) == 1
    assert str(path) in told[0]
    if spoil is not cut:
        assert before is None or path.read_bytes() == before


def test_missing_directory_means_memory_only_and_no_import(tmp_path: Path) -> None:
    told: list[str] = []
    store = open_store(str(tmp_path / "no" / "state"), told.append)
    assert store.is_memory_only
    assert told == [
        f"nothing outlives this process: {tmp_path}/no: No such file or directory"
    ]
    script = (
        "import sys; from mxpolicy.state.opening import open_store;"
        f"open_store('{tmp_path}/no/state', print);"
        "print('_sqlite3' in sys.modules or 'mxpolicy.state.sqlite' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("False\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
@pytest.mark.parametrize("mode", [0o440, 0o000], ids=["read-only", "no"])
def test_file_that_may_not_be_written_means_memory_only(
    mode: int, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    asyncio.run(_filled(path, 1))
    os.chmod(path, mode)
    # Another user may not look into pytest's own directories above tmp_path.
    for parent in path.parents[:3]:
        os.chmod(parent, 0o755)
    script = (
        "import asyncio, os, sqlite3, mxpolicy.state.sqlite\n"
        "from mxpolicy.state.opening import open_store\n"
        "async def main():\n"
        f"    store = open_store({str(path)!r}, print)\n"
        "    await store.put('a', b'', 9e9)\n"
        "    print(store.is_memory_only)\n"
        "os.setuid(65534)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("True\n"), done
    assert done.stdout.count("nothing outlives this process") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_root_makes_no_file_in_another_users_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    told: list[str] = []
    store = open_store(str(tmp_path / "state"), told.append)
    await store.put("a", b"", FAR)
    assert os.listdir(tmp_path) == []
    assert told == [
        f"nothing outlives this process: {tmp_path} belongs to nobody, not to root"
        " (mend it: setpriv --reuid=nobody --regid=65534 --init-groups"
        f" {sys.prefix}/bin/mxpolicy serve)"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_files_that_root_adds_belong_to_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await _filled(path, 1)
    os.chown(tmp_path, 65534, 65534)
    os.chown(path, 65534, 65534)
    store = SqliteStore(str(path), create=False, trust=Trust.READ)
    await store.put("b", b"", FAR)
    owners = {entry.name: entry.stat().st_uid for entry in os.scandir(tmp_path)}
    assert owners == {"state": 65534, "state-wal": 65534, "state-shm": 65534}
    await store.close()


async def test_file_is_not_made_by_who_only_looks(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "state"), create=False)
    with pytest.raises(StoreError, match="no such file"):
        await store.scan("")
    await store.close()
    assert os.listdir(tmp_path) == []


async def test_file_does_not_grow_and_what_was_seen_once_goes_first(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state"
    limit = 400_000
    store = SqliteStore(str(path), max_bytes=limit)
    for _ in range(2):
        await asyncio.gather(
            *(store.put(f"known {n}", b"x" * 100, FAR) for n in range(100))
        )
    for block in range(20):
        await asyncio.gather(
            *(store.put(f"{block} {n}", b"x" * 100, FAR) for n in range(500))
        )
    known = await store.scan("known ")
    everything = await store.scan("")
    assert len(known) == 100
    assert 500 < len(everything) < 4000
    await store.close()
    assert path.stat().st_size < 1.2 * limit


async def test_expired_rows_are_removed_by_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "state"
    now = time.time()
    store = SqliteStore(str(path))
    for number in range(100):
        await store.put(f"old {number}", b"", now - 1)
    await store.close()
    store = SqliteStore(str(path))
    await store.put("new", b"", FAR)
    await store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM rows").fetchone() == (1,)


async def test_full_disk_means_memory_only(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await _filled(path, 100)
    with closing(sqlite3.connect(path)) as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    told: list[str] = []
    real = SqliteStore(str(path))
    await real.get("row 1")
    # The library's own limit is the same error as a disk's.
    limit = f"PRAGMA max_page_count = {pages}"
    real._file._connection.do(lambda db: db.execute(limit))
    store = FallbackStore(real, told.append)
    for number in range(500):
        await store.put(f"new {number}", b"x" * 1000, FAR)
    assert store.is_memory_only
    assert "full" in told[0]
    assert await store.get("new 499") is not None


async def test_lock_that_is_held_delays_for_a_short_time_only(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await _filled(path, 1)
    store = SqliteStore(str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert await store.get("row 0") is not None  # readers do not wait
        with pytest.raises(StoreBusy):
            await store.put("a", b"", FAR)
        told: list[str] = []
        careful = FallbackStore(store, told.append)
        await careful.put("a", b"", FAR)
        assert not await careful.replace("lease", None, b"", FAR)
        assert time.monotonic() - began < 30
        other.execute("ROLLBACK")
    assert not told
    assert await careful.replace("lease", None, b"", FAR)
    await careful.close()


async def test_memory_forgets_what_was_written_once_first() -> None:
    store = MemoryStore(max_rows=100)
    for _ in range(2):
        for number in range(10):
            await store.put(f"known {number}", b"", FAR)
    for number in range(1000):
        await store.put(f"{number}", b"", FAR)
    assert len(await store.scan("")) <= 100
    assert len(await store.scan("known ")) == 10


@pytest.mark.parametrize("bound", [{"max_rows": 100}, {"max_bytes": 1000}])
async def test_memory_keeps_journal_and_hosts_apart(bound: dict[str, int]) -> None:
    store = MemoryStore(**bound)  # type: ignore[arg-type]
    for number in range(5):
        await store.put(f"host {number}", b"", FAR)
    for number in range(1000):
        await store.put(f"{JOURNAL}{number:4}", bytes(10), FAR, weight=HEAVY)
    assert len(await store.scan("host ")) == 5
    kept = await store.scan(JOURNAL)
    size = sum(len(one.key) + len(one.value) for one in kept)
    assert len(kept) <= bound.get("max_rows", 100)
    assert size <= bound.get("max_bytes", size)
    assert len(kept) >= 30
    # Written anew, a row takes no more room.
    for _ in range(1000):
        await store.put("host 1", bytes(10), FAR)
    assert len(await store.scan("host ")) == 5


def test_state_file_is_where_the_operator_or_systemd_says() -> None:
    given = {"STATE_DIRECTORY": "/var/lib/one:/var/lib/two"}
    assert state_file("/x", given) == "/x/state.sqlite3"
    assert state_file("", given) == "/var/lib/one/state.sqlite3"
    assert state_file("", {}) == "/var/lib/mxpolicy/state.sqlite3"


@pytest.mark.parametrize(
    "without",
    ["import sys; sys.modules['sqlite3'] = None", "_thread.start_new_thread = no"],
)
def test_without_a_thread_or_the_library_nothing_outlives_us(
    tmp_path: Path, without: str
) -> None:
    code = f"""
import asyncio, _thread
from mxpolicy.state.opening import open_store
def no(*_): raise RuntimeError("can't start new thread")
{without}
async def use():
    store = open_store({str(tmp_path / "state")!r}, print)
    await store.put("a", b"1", 2e9)
    assert await store.get("a") == b"1"
    await store.close()
asyncio.run(use())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert "nothing outlives this process: " in done.stdout


@pytest.mark.parametrize("stays", [False, True], ids=["one_thread", "two"])
async def test_what_is_asked_of_both_files_together(
    tmp_path: Path, stays: bool
) -> None:
    store = SqliteStore(str(tmp_path / "state"), stays=stays)
    keys = [f"{room}{n}" for n in range(20) for room in ("", JOURNAL)]
    added = await asyncio.gather(
        *(store.replace(key, None, key.encode(), FAR) for key in keys)
    )
    assert all(added)
    found = await asyncio.gather(*(store.get(key) for key in keys))
    assert found == [key.encode() for key in keys]
    for name, own in ("state", ""), ("journal.sqlite3", JOURNAL):
        with closing(sqlite3.connect(tmp_path / name)) as db:
            rows = db.execute("SELECT key FROM rows").fetchall()
        assert sorted(key for (key,) in rows) == sorted(f"{own}{n}" for n in range(20))
    await store.close()


async def test_in_a_daemon_no_file_waits_for_the_other(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "state"), stays=True)
    await store.put("journal/a", b"1", FAR)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        busy = asyncio.create_task(store.replace("journal/b", None, b"2", FAR))
        await asyncio.sleep(0)
        assert await store.replace("b", None, b"2", FAR)
        assert not busy.done()
        with pytest.raises(StoreBusy):
            await busy
    await store.close()
