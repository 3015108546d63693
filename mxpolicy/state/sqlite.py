"""The store in two SQLite files: for all processes of a machine, without a server.

Write-ahead logging lets readers go on while another process writes. Only a commit that
must be durable costs an fsync. Among several hundred processes, one waits some
milliseconds for the others. One thread makes all calls of the library
(`mxpolicy.state.worker`). So a disk that hangs holds up this thread only, and
`mxpolicy.state.fallback` limits the wait for an answer.

The journal (`mxpolicy.state.store.JOURNAL`) has a file and a bound of its own, so that
neither file takes the other's room. The first operation on a file opens it, or makes
it; see `mxpolicy.state.sqlite_file`.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.sqlite_file import File, Terms
from mxpolicy.state.store import Store, is_of_journal
from mxpolicy.state.trust import Trust
from mxpolicy.state.worker import Worker, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.state.store import Operation

__all__ = ["MAX_BYTES", "MAX_JOURNAL_BYTES", "SqliteStore", "journal_file"]

# 100,000 hosts.
MAX_BYTES = 32 * 1024 * 1024
# 300,000 recipients: three a second for a day, for which each is kept.
MAX_JOURNAL_BYTES = 128 * 1024 * 1024

T = TypeVar("T")


def journal_file(path: str) -> str:
    """Return the path of the journal's file, which is beside *path*."""
    return os.path.join(os.path.dirname(path), "journal.sqlite3")


class SqliteStore(Store):
    """See `mxpolicy.state.store.Store`. Nothing is opened before the first call.

    Args:
        path: The file; the journal's is beside it.
        create: Make a missing file; else it is a `StoreError`.
        read_only: Change nothing and make nothing.
        trust: What is asked of the files' owner and mode.
        clock: UTC seconds.
        max_bytes: Size limit of the file, without its log.
        max_journal_bytes: The same of the journal's.
    """

    def __init__(
        self,
        path: str,
        *,
        create: bool = True,
        read_only: bool = False,
        trust: Trust = Trust.OURS,
        clock: Callable[[], float] = time.time,
        max_bytes: int = MAX_BYTES,
        max_journal_bytes: int = MAX_JOURNAL_BYTES,
    ) -> None:
        terms = Terms(path, max_bytes, clock, create, read_only, trust)
        self._file = File(terms)
        self._journal = File(
            terms._replace(path=journal_file(path), max_bytes=max_journal_bytes)
        )
        self._path = path
        self._worker = Worker()

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`."""
        file = self._journal if is_of_journal(operation.key) else self._file
        return await self._call(lambda: operation.on(file))

    async def close(self) -> None:
        """See `Store.close`. A process that ends need not call it."""
        if self._worker.has_thread:
            await self._call(self._file.close)
            await self._call(self._journal.close)
            self._worker.end()

    async def _call(self, operation: Callable[[], T]) -> T:
        try:
            return await self._worker.do(operation)
        except WorkerError as error:  # no memory, or the user's limit of threads
            raise StoreError(f"{self._path}: {error}") from error
