"""Whose files are believed: what a stranger may have written is not used."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import stat
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from mxpolicy.errors import StoreError
from mxpolicy.state.opening import inspect, open_store, open_to_read
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.state.store import StoreDistrusted
from mxpolicy.state.trust import Trust, examine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAR = time.time() + 86400
STRANGER, OTHER_GROUP = 54321, 54322

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to chown")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state file with one row each for hosts and journal, and its log beside it."""
    made, own = tmp_path / "made", tmp_path / "own"
    made.mkdir(mode=0o750)

    async def fill() -> None:
        store = SqliteStore(str(made / "state.sqlite3"))
        await store.put("host a", b"1", FAR)
        await store.put("journal/a", b"1", FAR)
        # A process that ends leaves the logs behind.
        shutil.copytree(made, own)
        await store.close()

    asyncio.run(fill())
    return own / "state.sqlite3"


def listing(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return owner, mode, size and content of all that is there, but for locks."""
    found = {}
    for one in directory.iterdir():
        status = one.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode) and not one.name.endswith("-shm"):
            content = one.read_bytes()
        found[one.name] = (status.st_uid, status.st_mode, status.st_size, content)
    return found


async def used(path: Path) -> tuple[list[bool], list[str]]:
    """Return whether a delivery uses the two files, and what it says."""
    told: list[str] = []
    store = open_store(str(path), told.append)
    found = [await store.get(key) == b"1" for key in ("host a", "journal/a")]
    await store.put("host b", b"2", FAR)
    await store.replace("journal/b", None, b"2", FAR)
    assert await store.get("host b") == await store.get("journal/b") == b"2"
    await store.close()
    return found, told


def is_of(name: str, file: str) -> bool:
    """Return whether *name* is *file*, or beside it, or the directory of all."""
    return not name or name.startswith(file)


# -- directories and files ---------------------------------------------------------


def of_stranger(path: Path) -> None:
    os.chown(path, STRANGER, -1)


def of_other_group(path: Path) -> None:
    os.chown(path, -1, OTHER_GROUP)
    os.chmod(path, path.stat().st_mode | 0o020)


def for_everybody(path: Path) -> None:
    os.chmod(path, path.stat().st_mode | 0o002)


def sticky(path: Path) -> None:
    os.chmod(path, 0o1777)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def listener(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


FILES = ["state.sqlite3", "state.sqlite3-wal", "state.sqlite3-shm", "journal.sqlite3"]


@root_only
@pytest.mark.parametrize("name", ["", *FILES, "journal.sqlite3-wal"])
@pytest.mark.parametrize("spoil", [of_stranger, of_other_group, for_everybody])
async def test_what_a_stranger_may_write_is_not_used(
    path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoilt = path.parent / name
    spoil(spoilt)
    before = listing(path.parent)
    found, told = await used(path)
    assert found == [not is_of(name, file) for file in ("state", "journal")]
    assert len(told) == 1
    assert str(spoilt) in told[0]
    assert "(mend it: " in told[0]
    with pytest.raises(StoreDistrusted) as caught:
        inspect(str(path), os.geteuid())
    assert str(caught.value) in told[0]
    after = listing(path.parent)
    for one, what in before.items():
        if is_of(name, one.split(".")[0]):
            assert after[one] == what


@root_only
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("spoil", [linked, dangling, fifo, device, listener])
async def test_what_is_no_regular_file_is_not_opened(
    path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(path.parent / name)
    async with asyncio.timeout(10):
        found, told = await used(path)
    assert found == ["journal" in name, "state" in name]
    assert "is no regular file" in told[0]
    # Nor by who only reads, whoever has written it.
    said: list[str] = []
    store = open_to_read(str(path), said.append)
    async with asyncio.timeout(10):
        assert await store.get("host a") == (b"1" if "journal" in name else None)
        assert await store.get("journal/a") == (None if "journal" in name else b"1")
    assert len(said) == 1


async def test_sticky_directory_of_everybody_is_not_used(path: Path) -> None:
    sticky(path.parent)
    found, told = await used(path)
    assert found == [False, False]
    assert told == [
        f"nothing outlives this process: {path.parent} may be written by everybody"
        f" (mend it: chmod o-w {path.parent})"
    ]


async def test_mended_files_are_used_again(path: Path) -> None:
    os.chmod(path.parent, 0o777)
    os.chmod(path, 0o666)
    for _ in range(2):
        with pytest.raises(StoreDistrusted) as caught:
            inspect(str(path), os.geteuid())
        os.system(caught.value.mend)  # noqa: ASYNC221
    inspect(str(path), os.geteuid())
    assert await used(path) == ([False, True], [])  # it begins anew


@root_only
@pytest.mark.parametrize(
    ("owner", "group", "mode"),
    [
        pytest.param(0, 0, 0o770, id="own_group"),
        pytest.param(0, 65534, 0o770, id="group_of_the_user"),
        pytest.param(65534, 65534, 0o750, id="own"),
        pytest.param(65534, OTHER_GROUP, 0o755, id="other_group_reads"),
    ],
)
def test_owner_root_and_own_group_may_write(
    tmp_path: Path, owner: int, group: int, mode: int
) -> None:
    file = tmp_path / "state.sqlite3"
    file.touch(0o640)
    for one in (tmp_path, file):
        os.chown(one, owner, group)
    os.chmod(tmp_path, mode)
    examine(str(file), Trust.OURS, 65534)  # nobody, whose group is nogroup


@root_only
def test_link_to_the_directory_counts_by_its_owner(path: Path) -> None:
    link = path.parent.parent / "link"
    link.symlink_to(path.parent)
    examine(str(link / path.name), Trust.OURS, os.geteuid())
    os.lchown(link, STRANGER, -1)
    with pytest.raises(StoreDistrusted, match="belongs to 54321"):
        examine(str(link / path.name), Trust.OURS, os.geteuid())


def test_access_control_list_that_lets_others_write_is_seen(path: Path) -> None:
    entries = ((0x01, 7, -1), (0x02, 7, STRANGER), (0x04, 7, -1), (0x10, 7, -1))
    value = (2).to_bytes(4, "little")
    for tag, permissions, who in (*entries, (0x20, 0, -1)):
        value += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
        value += (who & 0xFFFFFFFF).to_bytes(4, "little")
    try:
        os.setxattr(path.parent, "system.posix_acl_access", value)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    with pytest.raises(StoreDistrusted, match="access control list"):
        examine(str(path), Trust.OURS, os.geteuid())


def test_new_file_is_not_for_a_group_that_is_not_our_own(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, -1, OTHER_GROUP)
        os.chmod(tmp_path, 0o2750)  # new files get the directory's group
    before = os.umask(0)
    try:
        asyncio.run(_put(tmp_path / "state"))
    finally:
        os.umask(before)
    mode = stat.S_IMODE((tmp_path / "state").stat().st_mode)
    assert mode == (0o640 if os.geteuid() == 0 else 0o660)
    examine(str(tmp_path / "state"), Trust.OURS, os.geteuid())


async def _put(path: Path) -> None:
    store = SqliteStore(str(path))
    await store.put("a", b"1", FAR)
    await store.close()


# -- what is in it --------------------------------------------------------------------


def _sql(*statements: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    return spoil


_SCHEMA_OF = "UPDATE sqlite_master SET sql = replace(sql, {}, {}) WHERE name = 'rows'"
HOSTILE = {
    "trigger": _sql(
        "CREATE TRIGGER t AFTER INSERT ON rows BEGIN"
        " UPDATE rows SET value = x'00' WHERE key = NEW.key; END"
    ),
    "trigger_on_update": _sql(
        "CREATE TRIGGER t BEFORE UPDATE ON rows BEGIN SELECT RAISE(IGNORE); END"
    ),
    "view_in_its_place": _sql(
        "ALTER TABLE rows RENAME TO other",
        "CREATE VIEW rows AS SELECT key, x'00' AS value, expires, weight FROM other",
    ),
    "view_beside": _sql("CREATE VIEW v AS SELECT 1"),
    "trigger_on_another": _sql(
        "CREATE TABLE o (x)",
        "CREATE TRIGGER t AFTER INSERT ON o BEGIN DELETE FROM rows; END",
    ),
    "generated_column": _sql(
        "ALTER TABLE rows ADD COLUMN g AS (abs(-9223372036854775808))"
    ),
    "more_columns": _sql("ALTER TABLE rows ADD COLUMN more"),
    "other_columns": _sql("DROP TABLE rows", "CREATE TABLE rows (key, value)"),
    "index": _sql("CREATE UNIQUE INDEX i ON rows (value)"),
    "no_index": _sql("DROP INDEX rows_by_weight"),
    "partial_index": _sql(
        "DROP INDEX rows_by_weight",
        "CREATE INDEX rows_by_weight ON rows (weight) WHERE weight > 2",
    ),
    "collation": _sql(
        "PRAGMA writable_schema = ON",
        _SCHEMA_OF.format("'TEXT'", "'TEXT COLLATE NOCASE'"),
    ),
    "check": _sql(
        "PRAGMA writable_schema = ON",
        _SCHEMA_OF.format("'BLOB NOT NULL'", "'BLOB NOT NULL CHECK (0)'"),
    ),
    "conflict": _sql(
        "PRAGMA writable_schema = ON",
        _SCHEMA_OF.format("'PRIMARY KEY'", "'PRIMARY KEY ON CONFLICT IGNORE'"),
    ),
}


@pytest.mark.parametrize("name", ["state.sqlite3", "journal.sqlite3"])
@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE)
async def test_file_whose_schema_is_not_ours_is_used_by_no_one(
    path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(path.parent / name)
    key = "host a" if name.startswith("state") else "journal/a"
    told: list[str] = []
    store = open_store(str(path), told.append)
    assert await store.get(key) is None
    await store.put(key, b"new", FAR)
    assert await store.get(key) == b"new"
    assert len(told) == 1
    assert f"{path.parent / name}" in told[0]
    assert f"rm -f {path.parent / name} " in told[0]
    # The other file is as good as before.
    other = "journal/a" if name.startswith("state") else "host a"
    assert await store.get(other) == b"1"
    with pytest.raises(StoreError):
        inspect(str(path), os.geteuid())
    said: list[str] = []
    reads = open_to_read(str(path), said.append)
    assert await reads.get(key) is None
    assert len(said) == 1


async def test_tables_that_are_not_ours_are_ignored(path: Path) -> None:
    _sql(
        "CREATE TABLE o (x REFERENCES rows (key) ON DELETE RESTRICT)",
        "INSERT INTO o VALUES ('host a')",
        "ANALYZE",
    )(path)
    assert await used(path) == ([True, True], [])


async def test_writer_of_a_hostile_file_changes_nothing_in_it(path: Path) -> None:
    HOSTILE["trigger"](path)
    with closing(sqlite3.connect(path)) as db:
        before = db.execute("SELECT * FROM rows").fetchall()
    await used(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM rows").fetchall() == before


# -- who only reads ---------------------------------------------------------------------


@root_only
@pytest.mark.parametrize("closed", [True, False], ids=["no_log", "log"])
async def test_reader_takes_any_owner_and_leaves_everything_as_it_was(
    path: Path, closed: bool
) -> None:
    if closed:
        store = SqliteStore(str(path))
        await store.get("host a")
        await store.get("journal/a")
        await store.close()
    for one in (path.parent, *path.parent.iterdir()):
        os.chown(one, STRANGER, OTHER_GROUP)
    before = listing(path.parent)
    assert closed == (f"{path.name}-wal" not in before)
    told: list[str] = []
    reads = open_to_read(str(path), told.append)
    assert await reads.get("host a") == b"1"
    assert [one.key for one in await reads.scan("host ")] == ["host a"]
    assert await open_to_read(str(path), told.append, acts=True).get("host a") == b"1"
    assert listing(path.parent) == before
    assert told == []
    with pytest.raises(StoreDistrusted):
        inspect(str(path), os.geteuid())
    assert listing(path.parent) == before


async def test_reader_whose_answer_mail_depends_on_takes_no_shared_file(
    path: Path,
) -> None:
    os.chmod(path.parent, 0o777)
    told: list[str] = []
    assert await open_to_read(str(path), told.append).get("host a") == b"1"
    assert told == []
    assert await open_to_read(str(path), told.append, acts=True).get("host a") is None
    assert "may be written by everybody" in told[0]
