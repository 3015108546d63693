"""One SQLite file as it is at every moment: it may come, go and be replaced.

`FileConnection.do` makes the file if need be, opens it, and opens it again when another
file has its name. Each time it is examined (`mxpolicy.state.trust`,
`mxpolicy.state.schema`). The library's errors become ours.

A new file is made whole under another name and then linked to its own: no process ever
opens half a file. A process that only reads makes nothing, not even what SQLite has
beside a file. What is done with the rows is `mxpolicy.state.sqlite_file`.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state import schema
from mxpolicy.state.store import StoreAbsent, StoreBusy
from mxpolicy.state.trust import Trust, examine, files, may_group_write

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator

__all__ = ["FileConnection", "Terms"]

# Seconds that the library waits for another process's lock.
BUSY = 0.5

# Pages of the write-ahead log after which they are written into the file, which takes two
# fsyncs. Few, because the first process that opens the file reads the log. While a process
# stays, it has the file open, and no other one is the first.
CHECKPOINT, CHECKPOINT_OF_DAEMON = 100, 1000
# Bytes that the log keeps when it has been written into the file.
LOG_SIZE = 4 * 1024 * 1024

# How a file is read, so that the library makes nothing beside it. Without a write-ahead
# log no process writes, and what is in the file is all. A log without its index belongs
# to a process that has the file alone, or had it (https://sqlite.org/walformat.html).
_WITHOUT_LOG, _WITH_LOG = "mode=ro&immutable=1", "mode=ro&readonly_shm=1"
_NO_WAY = ""

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


class FileConnection:
    """The library's connection to a file, opened when it is needed."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._path = terms.path
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[object, ...] | None = None  # of the file that is open

    def close(self) -> None:
        """Let go of the file; `do` opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Do *operation* with the open file.

        Raises:
            StoreBusy: Another process has the file.
            StoreAbsent: There is none, and none is to be made; see `Terms`.
            StoreError: Anything else. The next call opens the file again.
        """
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
        way = self._identity[-1]
        if way is _NO_WAY:
            raise StoreBusy(f"{self._path}: another process has it alone")
        return str(way)

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


def _identity(path: str, *, with_log: bool) -> tuple[object, ...] | None:
    """Return which file this is; None when there is no file.

    Args:
        path: Of the file.
        with_log: Add how it can be read, last. Without a log, time and size show a
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
        return *which, found.st_mtime_ns, found.st_size, _WITHOUT_LOG
    return *which, _WITH_LOG if os.path.exists(path + "-shm") else _NO_WAY


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
