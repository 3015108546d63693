"""The store in an SQLite file: one for all processes of a machine, without a server.

Write-ahead logging lets readers go on while somebody writes, and a commit costs
no fsync; one of several hundred processes waits for the others some milliseconds.
All calls of the library are made by one thread of their own (`mxpolicy.state.worker`),
so that a disk that hangs makes nobody wait but this thread (`mxpolicy.state.fallback`
sets the bound).

The file is made whole under another name and then linked to its own: nobody ever
opens half a file. Root makes none in another user's directory, for that user's
mail could not be remembered in it any more. It does not grow beyond its bound:
rows that have expired go first, then those that were written once.
"""

from __future__ import annotations

import os
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.store import StoreAbsent, StoreBusy, Stored
from mxpolicy.state.worker import Worker, WorkerError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from typing import Self

__all__ = ["MAX_BYTES", "SqliteStore"]

# 100,000 rows of ours.
MAX_BYTES = 32 * 1024 * 1024

# "mxpo": file(1) and we know the file by it (PRAGMA application_id).
APPLICATION = 0x6D78706F
SCHEMA = 1

# Seconds that the library waits for another process's lock.
BUSY = 0.5

# Pages of the write-ahead log, after which they are written into the file. Few,
# because whoever opens the file when nobody else has it open reads the log.
CHECKPOINT = 100

# One in so many writes of a connection looks after the file, the first among them.
WRITES_BETWEEN_CARE = 64
# Expired rows removed each time: more than a process adds in between.
PURGED_AT_ONCE = 2 * WRITES_BETWEEN_CARE

_TABLE = """
CREATE TABLE rows (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    expires REAL NOT NULL,
    seen INTEGER NOT NULL DEFAULT 1
) WITHOUT ROWID
"""
_INDEX = "CREATE INDEX rows_by_expiry ON rows (expires)"

_PUT = """
INSERT INTO rows (key, value, expires) VALUES (:key, :value, :expires)
ON CONFLICT (key) DO UPDATE
SET value = excluded.value, expires = excluded.expires, seen = seen + 1
"""
_ADD = f"{_PUT} WHERE rows.expires <= :now"
_REPLACE = """
UPDATE rows SET value = :new, expires = :expires, seen = seen + 1
WHERE key = :key AND value = :old AND expires > :now
"""
_PURGE = """
DELETE FROM rows WHERE key IN
(SELECT key FROM rows WHERE expires <= ? ORDER BY expires LIMIT ?)
"""
_EVICT = """
DELETE FROM rows WHERE key IN
(SELECT key FROM rows ORDER BY seen > 1, expires LIMIT ?)
"""

T = TypeVar("T")


class SqliteStore:
    """See `mxpolicy.state.store.Store`. Nothing is opened before the first call.

    Args:
        path: The file.
        create: Make it where it does not exist; else that is a `StoreError`.
        read_only: Change nothing, and go along when the file is replaced.
        clock: UTC seconds.
        max_bytes: What the file may take, its log aside.
    """

    def __init__(
        self,
        path: str,
        *,
        create: bool = True,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if read_only:
            self._file: _File = _FileToRead(path, False, clock, max_bytes)
        else:
            self._file = _File(path, create, clock, max_bytes)
        self._path = path
        self._worker = Worker()

    def patient(self, seconds: float) -> Self:
        """See `Store.patient`: whoever calls this one bounds the time."""
        return self

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        return await self._call(lambda: self._file.get(key))

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what `get` would for each of *keys*, by one visit to the file."""
        return await self._call(lambda: [self._file.get(key) for key in keys])

    async def put(
        self, key: str, value: bytes, expires: float, *, durable: bool = False
    ) -> None:
        """See `Store.put`."""
        await self._call(lambda: self._file.put(key, value, expires, durable))

    async def add(self, key: str, value: bytes, expires: float) -> bool:
        """See `Store.add`."""
        return await self._call(lambda: self._file.add(key, value, expires))

    async def replace(self, key: str, old: bytes, new: bytes, expires: float) -> bool:
        """See `Store.replace`."""
        return await self._call(lambda: self._file.replace(key, old, new, expires))

    async def delete(self, key: str) -> bool:
        """See `Store.delete`."""
        return await self._call(lambda: self._file.delete(key))

    async def count(self, key: str, n: int, expires: float) -> int:
        """See `Store.count`."""
        return await self._call(lambda: self._file.count(key, n, expires))

    async def scan(self, prefix: str) -> list[Stored]:
        """See `Store.scan`."""
        return await self._call(lambda: self._file.scan(prefix))

    async def close(self) -> None:
        """See `Store.close`. A process that just ends needs not call it."""
        if self._worker.has_thread:
            await self._call(self._file.close)
            self._worker.end()

    async def _call(self, operation: Callable[[], T]) -> T:
        try:
            return await self._worker.do(operation)
        except WorkerError as error:  # the user may have no more, or no memory
            raise StoreError(f"{self._path}: {error}") from error


class _File:
    """The file, as its one thread sees it. Every method may wait, and raises `StoreError`."""

    def __init__(
        self, path: str, create: bool, clock: Callable[[], float], max_bytes: int
    ) -> None:
        self._path = path
        self._create = create
        self._clock = clock
        self._max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self._writes = 0

    def get(self, key: str) -> bytes | None:
        sql = "SELECT value FROM rows WHERE key = ? AND expires > ?"
        rows = self._do(lambda db: db.execute(sql, (key, self._clock())).fetchall())
        return rows[0][0] if rows else None

    def scan(self, prefix: str) -> list[Stored]:
        sql = (
            "SELECT key, value, expires FROM rows"
            " WHERE key >= ? AND key < ? AND expires > ? ORDER BY key"
        )
        last = prefix + "\U0010ffff"
        rows = self._do(
            lambda db: db.execute(sql, (prefix, last, self._clock())).fetchall()
        )
        return [Stored(*row) for row in rows]

    def put(self, key: str, value: bytes, expires: float, durable: bool) -> None:
        row = {"key": key, "value": value, "expires": expires}
        self._write(_PUT, row, durable)

    def add(self, key: str, value: bytes, expires: float) -> bool:
        row = {"key": key, "value": value, "expires": expires}
        return self._write(_ADD, {**row, "now": self._clock()}) == 1

    def replace(self, key: str, old: bytes, new: bytes, expires: float) -> bool:
        row = {"key": key, "old": old, "new": new, "expires": expires}
        return self._write(_REPLACE, {**row, "now": self._clock()}) == 1

    def delete(self, key: str) -> bool:
        return self._write("DELETE FROM rows WHERE key = :key", {"key": key}) == 1

    def count(self, key: str, n: int, expires: float) -> int:
        def add(db: sqlite3.Connection) -> int:
            # RETURNING is not in the SQLite of every system that we run on.
            db.execute("BEGIN IMMEDIATE")
            with closing(_Transaction(db)) as transaction:
                sql = "SELECT value, expires FROM rows WHERE key = ? AND expires > ?"
                found = db.execute(sql, (key, self._clock())).fetchone()
                total = n + (int(found[0]) if found else 0)
                end = found[1] if found else expires
                row = {"key": key, "value": b"%d" % total, "expires": end}
                db.execute(_PUT, row)
                transaction.commit()
            return total

        return self._do(add)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _write(self, sql: str, row: dict[str, object], durable: bool = False) -> int:
        def write(db: sqlite3.Connection) -> int:
            if durable:
                db.execute("PRAGMA synchronous = FULL")
            try:
                changed = db.execute(sql, row).rowcount
            finally:
                if durable:
                    db.execute("PRAGMA synchronous = NORMAL")
            if self._writes % WRITES_BETWEEN_CARE == 0:
                self._take_care(db)
            self._writes += 1
            return changed

        return self._do(write)

    def _take_care(self, db: sqlite3.Connection) -> None:
        """Remove what has expired; if the file is too large all the same, a tenth."""
        db.execute(_PURGE, (self._clock(), PURGED_AT_ONCE))
        (pages,), (free,), (size,) = (
            db.execute(f"PRAGMA {name}").fetchone()
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size <= self._max_bytes:
            return
        (rows,) = db.execute("SELECT count(*) FROM rows").fetchone()
        db.execute(_EVICT, (rows // 10 + 1,))

    def _do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Do *operation* with the open file, and make the library's errors ours."""
        try:
            import sqlite3  # only where there is a file to be opened
        except ImportError as error:  # a part of Python that some systems leave out
            raise StoreError(f"{self._path}: {error}") from error
        try:
            if self._connection is None:
                self._connection = self._open()
            return operation(self._connection)
        except sqlite3.Error as error:
            # The low byte; the others say which kind of it.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            text = f"{self._path}: {error}"
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreBusy(text) from error
            raise StoreError(text) from error
        except MemoryError as error:
            raise StoreError(f"{self._path}: out of memory") from error
        except (OSError, ValueError, TypeError) as error:
            # The last two: rows in which is what we never wrote.
            why = getattr(error, "strerror", None) or str(error)
            raise StoreError(f"{self._path}: {why}") from error

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        if not os.path.exists(self._path):
            if not self._create:
                raise StoreAbsent(f"{self._path}: no such file")
            self._make()
        # Asked first: for a file that may only be read the library says so later.
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise StoreError(f"{self._path}: may not be read and written")
        db = sqlite3.connect(
            self._path, timeout=BUSY, isolation_level=None, check_same_thread=False
        )
        try:
            _check(db, self._path)
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
            db.execute(f"PRAGMA journal_size_limit = {self._max_bytes}")
        except BaseException:
            db.close()
            raise
        return db

    def _make(self) -> None:
        """Make an empty file, unless somebody else does so at the same time."""
        import sqlite3

        directory = os.path.dirname(self._path) or "."
        if os.geteuid() == 0 != os.stat(directory).st_uid:
            raise StoreError(f"{self._path}: not made by root for another user")
        temporary = f"{self._path}.{os.getpid()}"
        # Only we and our group: it tells with whom mail is exchanged.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o660))
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {SCHEMA}")
                db.execute(_TABLE)
                db.execute(_INDEX)
            with suppress(FileExistsError):
                os.link(temporary, self._path)
        finally:
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(temporary + suffix)


class _FileToRead(_File):
    """The file as it is at every moment: it may come, go and be replaced.

    The library may add a log and an index of it beside the file, as it does for
    whoever opens it; as root it gives them to the file's owner.
    """

    _identity: tuple[int, int] | None = None

    def _do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is not None and _identity(self._path) != self._identity:
            self.close()
        try:
            return super()._do(operation)
        except StoreBusy:
            raise
        except StoreError:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        # Before it is opened: what replaces it in between is seen the next time.
        self._identity = _identity(self._path)
        if self._identity is None:
            raise StoreAbsent(f"{self._path}: no such file")
        if not os.access(self._path, os.R_OK):
            raise StoreError(f"{self._path}: may not be read")
        db = sqlite3.connect(
            f"file:{_escaped(self._path)}?mode=ro",
            uri=True,
            timeout=BUSY,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _check(db, self._path)
        except BaseException:
            db.close()
            raise
        return db


def _identity(path: str) -> tuple[int, int] | None:
    """Return which file this is, None for none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _escaped(path: str) -> str:
    """Return *path* as a URI has it (https://sqlite.org/uri.html)."""
    return "".join(f"%{ord(one):02x}" if one in "%?#" else one for one in path)


def _check(db: sqlite3.Connection, path: str) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise StoreError(f"{path}: not a state file of mxpolicy")
    if schema != SCHEMA:
        raise StoreError(f"{path}: made by another version of mxpolicy")


class _Transaction:
    """Rolled back when it is closed without having been committed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def close(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
