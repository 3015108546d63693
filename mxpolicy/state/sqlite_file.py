"""The rows of one SQLite file, as the one thread that uses it reads and writes them.

Operations that wait together share a transaction. The file is bounded: once in so many
writes a few expired rows go, and rows of the least weight when the file is too large.
Each such step finds its rows by the index, so that it costs the same in a file of a
million rows. How the file is made and opened is `mxpolicy.state.sqlite_connection`.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state import schema
from mxpolicy.state.sqlite_connection import FileConnection
from mxpolicy.state.store import WEIGHTS, StoreBusy, Stored
from mxpolicy.state.worker import result_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterator, Sequence

    from mxpolicy.state.sqlite_connection import Terms
    from mxpolicy.state.store import Operation, Replacement

__all__ = ["File"]

# The first write of a connection, and then one in so many, looks after the file. It
# removes `STEP` rows of each kind: more than were added in between.
WRITES_BETWEEN_CARE = 64
STEP = 256

T = TypeVar("T")


class File:
    """The rows of one file.

    Methods and arguments are those of `Store`; see `Operation`. Each of them may wait,
    and may raise `StoreError`; then the next one opens the file again.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._connection = FileConnection(terms)
        # Within the transaction of several operations, its connection.
        self._shared: sqlite3.Connection | None = None
        self._writes = 0
        self._care_at = 1

    def do_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Do *operations* in their order, and commit them together.

        Returns what comes of each: a result, or the exception that it raised. Where one
        fails, the transaction is rolled back and each is done by itself. So none harms
        the others. When this returns, all that was done is committed.
        """
        results = self._results(operations)
        if self._writes >= self._care_at:
            try:
                self._do(self._take_care)
            except StoreBusy:
                pass  # the rows are written: a busy file now is no failure
            except StoreError as error:
                results[-1] = error
            self._care_at = self._writes + WRITES_BETWEEN_CARE
        return results

    def _results(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        if len(operations) > 1:
            try:
                return self._do(partial(self._do_together, operations))
            except StoreBusy as busy:
                return [StoreBusy(str(busy)) for _ in operations]
            except Exception:  # noqa: S110 - the one that fails says so below
                pass
        return [result_of(partial(one.on, self)) for one in operations]

    def _do_together(
        self, operations: Sequence[Operation[Any]], db: sqlite3.Connection
    ) -> list[Any]:
        is_durable = any(one.is_durable for one in operations)
        writes = not all(one.is_read for one in operations)
        with _durable(db, is_durable), _transaction(db, writes=writes):
            self._shared = db
            try:
                return [one.on(self) for one in operations]
            finally:
                self._shared = None

    def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        now = self._terms.clock()

        def get(db: sqlite3.Connection) -> dict[str, bytes]:
            rows = [{"key": key, "now": now} for key in keys]
            found = [db.execute(schema.GET, row).fetchone() for row in rows]
            return dict(row for row in found if row is not None)

        def get_together(db: sqlite3.Connection) -> dict[str, bytes]:
            if self._shared is not None or len(keys) == 1:
                return get(db)
            # Without it, each statement would take the file's lock and give it back.
            with _transaction(db, writes=False):
                return get(db)

        return self._do(get_together)

    def scan(self, prefix: str) -> list[Stored]:
        last = prefix + "\U0010ffff"
        row = {"first": prefix, "last": last, "now": self._terms.clock()}
        rows = self._do(lambda db: db.execute(schema.SCAN, row).fetchall())
        found = ((_text(key), value, expires) for key, value, expires in rows)
        return [Stored(key, *rest) for key, *rest in found if key is not None]

    def put(
        self, key: str, value: bytes, expires: float, weight: int | None, durable: bool
    ) -> None:
        row = {"key": key, "value": value, "expires": expires, "weight": weight}
        self._write(lambda db: db.execute(schema.PUT, row), durable)

    def replace_all(self, rows: Sequence[Replacement], durable: bool) -> list[bool]:
        now = self._terms.clock()

        def replace(db: sqlite3.Connection) -> list[bool]:
            return [_replace(db, row, now) for row in rows]

        def replace_all(db: sqlite3.Connection) -> list[bool]:
            if len(rows) == 1:
                return replace(db)
            with _undone_unless_all(db) as done:
                done += replace(db)
            return done

        return self._write(replace_all, durable)

    def delete(self, key: str, old: bytes | None) -> bool:
        row = {"key": key, "old": old, "now": self._terms.clock()}
        return self._write(lambda db: db.execute(schema.DELETE, row).rowcount) == 1

    def check_pages(self) -> None:
        """Read the whole file; raise `StoreError` where it is broken inside."""

        def check(db: sqlite3.Connection) -> None:
            said = db.execute("PRAGMA quick_check(1)").fetchone()
            if said != ("ok",):
                import sqlite3

                raise sqlite3.DatabaseError(" ".join(map(str, said or ())))

        self._do(check)

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        self._connection.close()

    def _do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Do *operation* within the transaction that there is, or by itself."""
        if self._shared is not None:
            return operation(self._shared)
        return self._connection.do(operation)

    # -- writing ------------------------------------------------------------------

    def _write(
        self, write: Callable[[sqlite3.Connection], T], durable: bool = False
    ) -> T:
        def durably(db: sqlite3.Connection) -> T:
            with _durable(db, durable and self._shared is None):
                return write(db)

        done = self._do(durably)
        self._writes += 1
        return done

    def _take_care(self, db: sqlite3.Connection) -> None:
        """Remove some expired rows and, from a file too large, some light ones."""
        now = self._terms.clock()
        with _transaction(db, writes=True):
            for weight in WEIGHTS:
                row = {"weight": weight, "now": now, "step": STEP}
                db.execute(schema.PURGE, row)
            if self._size(db) > self._terms.max_bytes:
                db.execute(schema.EVICT, {"step": STEP})

    def _size(self, db: sqlite3.Connection) -> int:
        (pages,), (free,), (size,) = (
            db.execute(f"PRAGMA {name}").fetchone()
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


@contextmanager
def _transaction(db: sqlite3.Connection, *, writes: bool) -> Iterator[None]:
    """Commit what is done within, or nothing of it."""
    db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _replace(db: sqlite3.Connection, row: Replacement, now: float) -> bool:
    values = {"key": row.key, "old": row.old, "value": row.new}
    times = {"expires": row.expires, "weight": row.weight, "now": now}
    sql = schema.ADD if row.old is None else schema.REPLACE
    return db.execute(sql, values | times).rowcount == 1


@contextmanager
def _undone_unless_all(db: sqlite3.Connection) -> Iterator[list[bool]]:
    """Undo what is done within unless the list is filled with True.

    It may be a part of a transaction (https://sqlite.org/lang_savepoint.html).
    """
    done: list[bool] = []
    db.execute("SAVEPOINT rows")
    try:
        yield done
    finally:
        if not (done and all(done)):
            db.execute("ROLLBACK TO rows")
        db.execute("RELEASE rows")


@contextmanager
def _durable(db: sqlite3.Connection, is_durable: bool) -> Iterator[None]:
    """Let the commit within survive a loss of power, where *is_durable*."""
    if is_durable:
        db.execute("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        if is_durable:
            db.execute("PRAGMA synchronous = NORMAL")


def _text(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None
