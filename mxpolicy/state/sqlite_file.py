"""One SQLite file with its rows, as the one thread that uses it sees it.

It is made whole under another name and then linked to its own: no process ever opens
half a file. Operations that wait together share a transaction. It is bounded: once in so many writes a few expired rows go, and rows of the
least weight when the file is too large. Each such step finds its rows by the index, so
that it costs the same in a file of a million rows.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import closing, contextmanager, suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state import schema
from mxpolicy.state.store import (
    WEIGHTS,
    Replacement,
    StoreAbsent,
    StoreBusy,
    Stored,
)
from mxpolicy.state.trust import Trust, examine, files, may_group_write
from mxpolicy.state.worker import result_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterator, Sequence

    from mxpolicy.state.store import Operation

__all__ = ["File", "Terms"]

# Seconds that the library waits for another process's lock.
BUSY = 0.5

# Pages of the write-ahead log after which they are written into the file, which takes two
# fsyncs. Few, because the first process that opens the file reads the log. While a process
# stays, it has the file open, and no other one is the first.
CHECKPOINT, CHECKPOINT_OF_DAEMON = 100, 1000
# Bytes that the log keeps when it has been written into the file.
LOG_SIZE = 4 * 1024 * 1024

# The first write of a connection, and then one in so many, looks after the file. It
# removes `STEP` rows of each kind: more than were added in between.
WRITES_BETWEEN_CARE = 64
STEP = 256

T = TypeVar("T")


class Terms(NamedTuple):
    """How a file is used.

    Attributes:
        path: Of the file.
        max_bytes: Its size limit, without its log.
        clock: UTC seconds.
        create: Make it where it does not exist.
        read_only: Change nothing and make nothing, not even what SQLite has beside it.
        trust: What is asked of its owner and mode.
        stays: The process is a daemon, which keeps the file open.
    """

    path: str
    max_bytes: int
    clock: Callable[[], float]
    create: bool
    read_only: bool
    trust: Trust
    stays: bool = False


class File:
    """A file as it is at every moment: it may come, go and be replaced.

    Methods and arguments are those of `Store`; see `Operation`. Each of them may wait,
    and may raise `StoreError`; then the next one opens the file again.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._path = terms.path
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[object, ...] | None = None
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

    def replace(
        self,
        key: str,
        old: bytes | None,
        new: bytes,
        expires: float,
        weight: int | None,
    ) -> bool:
        rows = (Replacement(key, old, new, expires, weight),)
        return self.replace_all(rows, durable=False)[0]

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

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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

    # -- the library ----------------------------------------------------------------

    def _do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Do *operation* with the open file; turn the library's errors into ours."""
        if self._shared is not None:
            return operation(self._shared)
        try:
            import sqlite3  # only when there is a file to open
        except ImportError as error:  # some systems leave this part of Python out
            raise StoreError(f"no SQLite: {error}") from error
        try:
            if self._connection is not None and self._identity != self._identity_now():
                self.close()
            if self._connection is None:
                self._connection = self._open()
            return operation(self._connection)
        except StoreBusy:
            raise
        except StoreError:
            self.close()
            raise
        except (sqlite3.Error, OSError, ValueError, TypeError, MemoryError) as error:
            why = getattr(error, "strerror", None) or str(error) or "out of memory"
            # The low byte; the others say which kind of it.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreBusy(f"{self._path}: {why}") from error
            self.close()
            raise StoreError(f"{self._path}: {why}") from error

    def _identity_now(self) -> tuple[object, ...] | None:
        return _identity(self._path, with_log=self._terms.read_only)

    def _open(self) -> sqlite3.Connection:
        way = self._way_to_read() if self._terms.read_only else self._way_to_write()
        db = _connect(self._path, way)
        try:
            self._check(db)
            self._examine()
        except BaseException:
            db.close()
            raise
        return db

    def _way_to_write(self) -> str:
        """Make the file if need be; return how it is opened."""
        self._examine()
        if not os.path.exists(self._path):
            if not self._terms.create:
                raise StoreAbsent(f"{self._path}: no such file")
            self._make()
        # Before it is opened: a file that replaces it in between is seen the next time.
        self._identity = self._identity_now()
        # Asked first: of a file that it may not write the library tells only later.
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise StoreError(f"{self._path}: may not be read and written")
        return "mode=rw"

    def _way_to_read(self) -> str:
        """Return how the file is opened, so that the library makes nothing beside it."""
        self._identity = self._identity_now()
        if os.path.lexists(self._path):
            self._examine()
        if self._identity is None:
            raise StoreAbsent(f"{self._path}: no such file")
        if not os.access(self._path, os.R_OK):
            raise StoreError(f"{self._path}: may not be read")
        match self._identity[-1]:
            case _Log.NONE:
                return "mode=ro&immutable=1"
            case _Log.SHARED:
                return "mode=ro&readonly_shm=1"
            case _:
                raise StoreBusy(f"{self._path}: another process has it alone")

    def _check(self, db: sqlite3.Connection) -> None:
        try:
            schema.check(db, self._path)
        except schema.OtherVersion as error:
            if self._terms.read_only:
                raise StoreAbsent(str(error)) from error
            schema.renew(db)
            schema.check(db, self._path)
        if not self._terms.read_only:
            db.execute("PRAGMA secure_delete = OFF")
            db.execute("PRAGMA synchronous = NORMAL")
            pages = CHECKPOINT_OF_DAEMON if self._terms.stays else CHECKPOINT
            db.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            db.execute(f"PRAGMA journal_size_limit = {LOG_SIZE}")

    def _examine(self) -> None:
        examine(self._path, self._terms.trust, os.geteuid())

    def _make(self) -> None:
        """Make an empty file, unless another process does so at the same time."""
        temporary = f"{self._path}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            _make_private(temporary)
            with closing(_connect(temporary, "mode=rw")) as db:
                schema.create(db)
            with _locked(os.path.dirname(self._path) or "."):
                if not os.path.lexists(self._path):
                    # The log of a file that was deleted would be read as ours.
                    _remove(files(self._path)[1:])
                    os.link(temporary, self._path)
        finally:
            _remove(files(temporary))


def _connect(path: str, how: str) -> sqlite3.Connection:
    import sqlite3

    db = sqlite3.connect(
        f"file:{_escaped(path)}?{how}",
        uri=True,
        timeout=BUSY,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        schema.guard(db)
    except BaseException:
        db.close()
        raise
    return db


def _escaped(path: str) -> str:
    """Return *path* as a URI has it (https://sqlite.org/uri.html)."""
    return "".join(f"%{ord(one):02x}" if one in "%?#" else one for one in path)


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


class _Log(Enum):
    """Whether there is a write-ahead log beside a file (https://sqlite.org/walformat.html)."""

    NONE = "none: no process writes, and what is in the file is all"
    SHARED = "with its index"
    ALONE = "without: one process has it, or had it"


def _identity(path: str, *, with_log: bool) -> tuple[object, ...] | None:
    """Return which file this is; None when there is no file.

    Args:
        path: Of the file.
        with_log: Add its state, the `_Log` last. Without a log, time and size show a
            change.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    which = found.st_dev, found.st_ino
    if not with_log:
        return which
    if not os.path.exists(path + "-wal"):
        return *which, found.st_mtime_ns, found.st_size, _Log.NONE
    return *which, _Log.SHARED if os.path.exists(path + "-shm") else _Log.ALONE


def _make_private(path: str) -> None:
    """Make an empty file for our user and, where that is its own, for our group.

    The file tells which hosts and domains get mail from here.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o660)
    try:
        made = os.fstat(descriptor)
        if not may_group_write(made, made.st_uid):
            os.fchmod(descriptor, made.st_mode & 0o640)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Wait until no other process of ours makes a file in *directory*."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove(paths: list[str]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _text(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None
