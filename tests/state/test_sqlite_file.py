"""Operations on one file that wait together: one transaction, and no harm to each other."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from mxpolicy.errors import StoreError
from mxpolicy.state.sqlite_connection import Terms
from mxpolicy.state.sqlite_file import WRITES_BETWEEN_CARE, File
from mxpolicy.state.store import Operation, Replacement, StoreBusy
from mxpolicy.state.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FAR = time.time() + 86400


def put(key: str, value: Any = b"1", *, durable: bool = False) -> Operation[None]:
    return Operation("put", key, (key, value, FAR, None, durable), None)


def get(*keys: str) -> Operation[dict[str, bytes]]:
    return Operation("get_many", keys[0], (keys,), {})


def replace(*keys: str, old: bytes | None = None) -> Operation[list[bool]]:
    rows = [Replacement(key, old, b"new", FAR) for key in keys]
    return Operation("replace_all", keys[0], (rows, False), [])


class Seen(list[int]):
    """How many rows another connection sees, at each moment that the time is asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def clock(self) -> float:
        if self._path.exists():
            with closing(sqlite3.connect(self._path)) as db:
                self.append(db.execute("SELECT count(*) FROM rows").fetchone()[0])
        return time.time()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., File]]:
    files = []

    def make(clock: Callable[[], float] = time.time) -> File:
        path = str(tmp_path / "state")
        files.append(File(Terms(path, 10**7, clock, True, False, Trust.OURS)))
        return files[-1]

    yield make
    for file in files:
        file.close()


def test_others_see_nothing_of_them_before_the_commit_and_then_all(
    made: Callable[..., File], tmp_path: Path
) -> None:
    seen = Seen(tmp_path / "state")
    file = made(seen.clock)
    file.do_all([put("a")])
    seen.clear()
    results = file.do_all(
        [replace("b"), get("b"), replace("b"), put("c", durable=True), get("c")]
    )
    assert results == [[True], {"b": b"new"}, [False], None, {"c": b"1"}]
    assert seen == [1, 1, 1, 1]
    seen.clock()
    assert seen[-1] == 3


@pytest.mark.parametrize("bad", [put("bad", object()), put("bad", 2**70)])
def test_one_that_fails_harms_no_other(
    made: Callable[..., File], bad: Operation[None]
) -> None:
    file = made()
    results = file.do_all([put("a"), replace("b"), bad, replace("b"), get("a", "bad")])
    assert isinstance(results.pop(2), Exception)
    assert results == [None, [True], [False], {"a": b"1"}]


def test_part_of_the_rows_is_undone_and_nothing_else(
    made: Callable[..., File],
) -> None:
    file = made()
    file.do_all([put("there")])
    results = file.do_all([put("a"), replace("b", "there"), replace("c")])
    assert results == [None, [True, False], [True]]
    keys = ("a", "b", "there", "c")
    assert file.do_all([get(*keys)]) == [{"a": b"1", "there": b"1", "c": b"new"}]


def test_all_are_busy_after_one_wait(made: Callable[..., File], tmp_path: Path) -> None:
    file = made()
    file.do_all([put("a")])
    with closing(sqlite3.connect(tmp_path / "state", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        results = file.do_all([put("b"), *(replace(f"c {n}") for n in range(20))])
        assert time.monotonic() - began < 5  # not half a second each
        assert {type(one) for one in results} == {StoreBusy}
        # What only reads does not wait for another process that writes.
        assert file.do_all([get("a"), get("b")]) == [{"a": b"1"}, {}]
    assert file.do_all([put("b"), get("b")]) == [None, {"b": b"1"}]


def test_each_is_told_that_the_file_is_broken(
    made: Callable[..., File], tmp_path: Path
) -> None:
    (tmp_path / "state").write_bytes(b"garbage" * 1000)
    results = made().do_all([put("a"), get("a"), replace("b")])
    assert [isinstance(one, StoreError) for one in results] == [True] * 3


def test_the_file_is_looked_after_once_in_so_many_writes(
    made: Callable[..., File], tmp_path: Path
) -> None:
    now = [time.time()]
    file = made(lambda: now[0])
    file.do_all([put("first")])
    short = [
        Operation("put", f"{n}", (f"{n}", b"", now[0] + 1, None, False), None)
        for n in range(WRITES_BETWEEN_CARE - 2)
    ]
    file.do_all(short)
    now[0] += 2
    with closing(sqlite3.connect(tmp_path / "state")) as db:
        count = "SELECT count(*) FROM rows"
        assert db.execute(count).fetchone() == (WRITES_BETWEEN_CARE - 1,)
        file.do_all([put("a"), put("b")])
        assert db.execute(count).fetchone() == (3,)
