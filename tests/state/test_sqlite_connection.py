"""One file and the library's connection to it: it comes, goes and is replaced."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from mxpolicy.errors import StoreError
from mxpolicy.state import schema
from mxpolicy.state.sqlite_connection import (
    CHECKPOINT,
    CHECKPOINT_OF_DAEMON,
    FileConnection,
    Terms,
)
from mxpolicy.state.store import StoreAbsent, StoreBusy, StoreDistrusted
from mxpolicy.state.trust import Trust, files

if TYPE_CHECKING:
    from pathlib import Path

TERMS = Terms("", 1 << 20, lambda: 0.0, True, False, Trust.OURS)
# What root may do is no fault that it could meet.
no_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.sqlite3")


def connection(path: str, **terms: Any) -> FileConnection:
    return FileConnection(TERMS._replace(path=path, **terms))


def reading(path: str) -> FileConnection:
    return connection(path, create=False, read_only=True, trust=Trust.READ)


def put(db: sqlite3.Connection, key: str = "a") -> None:
    row = {"key": key, "value": b"1", "expires": 9e9, "weight": 1}
    db.execute(schema.PUT, row)


def keys(db: sqlite3.Connection) -> list[str]:
    return [key for (key,) in db.execute("SELECT key FROM rows ORDER BY key")]


def pragma(name: str) -> Any:
    return lambda db: db.execute(f"PRAGMA {name}").fetchone()[0]


def beside(path: str) -> set[str]:
    return {name for name in files(path) if os.path.lexists(name)}


# -- made, opened, let go of -----------------------------------------------------------


def test_file_is_made_at_the_first_use_and_whole(path: str) -> None:
    ours = connection(path)
    assert not os.path.exists(path)
    ours.do(put)
    assert ours.do(keys) == ["a"]
    with closing(sqlite3.connect(path)) as db:
        assert pragma("application_id")(db) == schema.APPLICATION
        assert pragma("user_version")(db) == schema.VERSION
    ours.close()
    # Nothing is left of the name under which it was made.
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    assert ours.do(keys) == ["a"]
    ours.close()


@pytest.mark.parametrize("name", ["a b", "per%20cent", "what?", "a#b", "mxé", "%"])
def test_any_name_of_a_file_will_do(name: str, tmp_path: Path) -> None:
    ours = connection(str(tmp_path / name))
    ours.do(put)
    ours.close()
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("umask", "mode"), [(0o022, 0o640), (0o002, 0o660), (0o077, 0o600)]
)
def test_file_is_for_its_owner_and_its_own_group(
    umask: int, mode: int, path: str
) -> None:
    before = os.umask(umask)
    try:
        connection(path).do(put)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_several_that_make_it_at_once_make_one(path: str) -> None:
    barrier = threading.Barrier(4)
    failed: list[BaseException] = []

    def use(number: int) -> None:
        ours = connection(path)
        barrier.wait()
        try:
            ours.do(lambda db: put(db, f"{number}"))
        except BaseException as error:
            failed.append(error)
        ours.close()

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert connection(path).do(keys) == ["0", "1", "2", "3"]


def test_log_of_a_file_that_was_deleted_is_not_read_as_ours(path: str) -> None:
    before = connection(path)
    before.do(put)
    log = f"{path}-wal"
    assert os.path.getsize(log)
    os.unlink(path)
    ours = connection(path)
    assert ours.do(keys) == []


@pytest.mark.parametrize(
    ("stays", "pages"), [(False, CHECKPOINT), (True, CHECKPOINT_OF_DAEMON)]
)
def test_log_is_written_into_the_file_after_so_many_pages(
    stays: bool, pages: int, path: str
) -> None:
    ours = connection(path, stays=stays)
    assert ours.do(pragma("wal_autocheckpoint")) == pages
    assert ours.do(pragma("synchronous")) == 1  # NORMAL
    assert ours.do(pragma("trusted_schema")) == 0


# -- replaced meanwhile ----------------------------------------------------------------


@pytest.mark.parametrize("is_replaced", [True, False])
def test_another_file_of_its_name_is_opened(is_replaced: bool, path: str) -> None:
    ours = connection(path)
    ours.do(put)
    for name in files(path):
        if os.path.exists(name):
            os.unlink(name)
    if is_replaced:
        with closing_of(connection(f"{path}.other")) as another:
            another.do(lambda db: put(db, "b"))
        os.rename(f"{path}.other", path)
    assert ours.do(keys) == (["b"] if is_replaced else [])
    ours.do(lambda db: put(db, "c"))
    with closing(sqlite3.connect(path)) as db:
        assert "c" in keys(db)


def closing_of(ours: FileConnection) -> closing[FileConnection]:
    return closing(ours)


# -- what is wrong ---------------------------------------------------------------------


def test_missing_file_that_is_not_to_be_made_is_absent(path: str) -> None:
    for ours in (connection(path, create=False), reading(path)):
        with pytest.raises(StoreAbsent, match=r"state\.sqlite3: no such file"):
            ours.do(keys)
    assert beside(path) == set()


def test_lock_of_another_is_busy_and_the_connection_stays(path: str) -> None:
    ours = connection(path)
    ours.do(put)
    with closing(sqlite3.connect(path)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match=r"state\.sqlite3: database is locked"):
            ours.do(put)
        assert ours.do(keys) == ["a"]  # a reader waits for no writer
        db.execute("ROLLBACK")
    ours.do(lambda one: put(one, "b"))
    assert ours.do(keys) == ["a", "b"]


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.DatabaseError("database disk image is malformed"),
        OSError(28, "No space left on device"),
        ValueError("embedded null character"),
        TypeError("no such type"),
        MemoryError(),
        StoreError("ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_after_any_other_failure_the_file_is_opened_again(
    error: Exception, path: str
) -> None:
    ours = connection(path)
    ours.do(put)
    used: list[sqlite3.Connection] = []

    def fail(db: sqlite3.Connection) -> None:
        used.append(db)
        raise error

    with pytest.raises(StoreError) as raised:
        ours.do(fail)
    if not isinstance(error, StoreError):
        assert str(raised.value).startswith(f"{path}: ")
        assert raised.value.__cause__ is error
        assert str(raised.value) != f"{path}: "
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        used[0].execute("SELECT 1")
    assert ours.do(keys) == ["a"]


@pytest.mark.parametrize(
    ("text", "why"),
    [(b"no database" * 100, "not a database"), (b"", "not a state file of mxpolicy")],
    ids=["another", "empty"],
)
def test_file_of_another_kind_is_refused_and_not_touched(
    text: bytes, why: str, path: str
) -> None:
    with open(path, "wb") as file:
        file.write(text)
    os.chmod(path, 0o600)
    with pytest.raises(StoreError, match=why):
        connection(path).do(keys)
    with open(path, "rb") as file:
        assert file.read() == text


def test_file_that_others_may_write_is_not_opened(path: str) -> None:
    connection(path).do(put)
    os.chmod(path, 0o666)
    with pytest.raises(StoreDistrusted, match="may be written by everybody"):
        connection(path).do(keys)
    assert reading(path).do(keys) == ["a"]


@no_root
def test_file_that_may_not_be_written_is_told_before_the_first_write(path: str) -> None:
    connection(path).do(put)
    os.chmod(path, 0o400)
    with pytest.raises(StoreError, match="may not be read and written"):
        connection(path).do(keys)


def test_earlier_version_is_emptied_by_a_writer_and_absent_for_a_reader(
    path: str,
) -> None:
    with closing_of(connection(path)) as ours:
        ours.do(put)
        ours.do(lambda db: db.execute(f"PRAGMA user_version = {schema.VERSION - 1}"))
    with pytest.raises(StoreAbsent, match="made by an earlier version"):
        reading(path).do(keys)
    assert connection(path).do(keys) == []
    assert reading(path).do(keys) == []


# -- read by a process that makes nothing ------------------------------------------------


def test_reader_makes_nothing_beside_a_file_without_log(path: str) -> None:
    with closing_of(connection(path)) as ours:
        ours.do(put)
    assert beside(path) == {path}
    theirs = reading(path)
    assert theirs.do(keys) == ["a"]
    assert beside(path) == {path}
    with pytest.raises(StoreError, match="readonly"):
        theirs.do(lambda db: put(db, "b"))


def test_reader_sees_what_a_writer_adds(path: str) -> None:
    ours, theirs = connection(path), reading(path)
    ours.do(put)
    assert theirs.do(keys) == ["a"]
    ours.do(lambda db: put(db, "b"))
    assert theirs.do(keys) == ["a", "b"]
    ours.close()
    assert theirs.do(keys) == ["a", "b"]


def test_log_without_its_index_is_another_process_s_alone(path: str) -> None:
    ours = connection(path)
    ours.do(put)
    for name in (path, f"{path}-wal"):
        shutil.copy(name, name.replace("state", "copy"))
    with pytest.raises(StoreBusy, match="another process has it alone"):
        reading(path.replace("state", "copy")).do(keys)
