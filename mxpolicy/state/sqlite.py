"""The store in two SQLite files: for all processes of a machine, without a server.

Write-ahead logging lets readers go on while another process writes. Only a commit that
must be durable costs an fsync. Operations that wait at the same time share a
transaction, one in each file. Among several hundred processes, one waits some
milliseconds for the others. One thread makes all calls of the library
(`mxpolicy.state.worker`), in a daemon one for each file. So a disk that hangs holds up
only that thread, and `mxpolicy.state.fallback` limits the wait for an answer.

The journal (`mxpolicy.state.store.JOURNAL`) has a file and a bound of its own, so that
neither file takes the other's room. The first operation on a file opens it, or makes
it; see `mxpolicy.state.sqlite_file`.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.sqlite_connection import Terms
from mxpolicy.state.sqlite_file import File
from mxpolicy.state.store import JOURNAL, Operation, is_of_journal
from mxpolicy.state.submitted import SubmittingStore, ToldSoon
from mxpolicy.state.trust import Trust
from mxpolicy.state.worker import Worker, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.state.store import Submitted

__all__ = ["MAX_BYTES", "MAX_JOURNAL_BYTES", "SqliteStore", "journal_file"]

# 100,000 hosts.
MAX_BYTES = 32 * 1024 * 1024
# 300,000 recipients: three a second for a day, for which each is kept.
MAX_JOURNAL_BYTES = 128 * 1024 * 1024

# The name of what closes both files.
_CLOSE = "close"

T = TypeVar("T")


def journal_file(path: str) -> str:
    """Return the path of the journal's file, which is beside *path*."""
    return os.path.join(os.path.dirname(path), "journal.sqlite3")


class SqliteStore(SubmittingStore):
    """See `mxpolicy.state.store.Store`. Nothing is opened before the first call.

    Args:
        path: The file; the journal's is beside it.
        create: Make a missing file; else it is a `StoreError`.
        read_only: Change nothing and make nothing.
        trust: What is asked of the files' owner and mode.
        clock: UTC seconds.
        max_bytes: Size limit of the file, without its log.
        max_journal_bytes: The same of the journal's.
        stays: See `Terms`. Then each file has a thread of its own.
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
        stays: bool = False,
    ) -> None:
        terms = Terms(path, max_bytes, clock, create, read_only, trust, stays)
        self._file = File(terms)
        self._journal = File(
            terms._replace(path=journal_file(path), max_bytes=max_journal_bytes)
        )
        self._path = path
        self._worker = self._journal_worker = Worker(self._do_all)
        if stays:
            # What is remembered of hosts does not wait for a durable commit.
            self._journal_worker = Worker(self._do_all)

    def submit(
        self, operation: Operation[T], told: Callable[[T | BaseException], None]
    ) -> Submitted:
        """See `Store.submit`."""

        def tell(result: T | BaseException) -> None:
            if isinstance(result, WorkerError):
                result = self._without_thread(result)
            told(result)

        try:
            worker = self._worker_of(operation)
            return worker.submit(operation, tell, may_wait=operation.may_wait)
        except WorkerError as error:
            return ToldSoon(self._without_thread(error), told)

    async def close(self) -> None:
        """See `Store.close`. A process that ends need not call it."""
        for key in ("", JOURNAL):
            operation = Operation(_CLOSE, key, (), None)
            if self._worker_of(operation).has_thread:
                await self.do(operation)
        self._worker.end()
        self._journal_worker.end()

    def _worker_of(self, operation: Operation[Any]) -> Worker[Operation[Any]]:
        return self._journal_worker if is_of_journal(operation.key) else self._worker

    def _file_of(self, operation: Operation[Any]) -> File:
        return self._journal if is_of_journal(operation.key) else self._file

    def _do_all(self, operations: list[Operation[Any]]) -> list[Any]:
        """Do *operations*, those of each file together; called in the thread."""
        results: list[Any] = [None] * len(operations)
        files: dict[File, list[int]] = {}
        for number, one in enumerate(operations):
            if one.name == _CLOSE:
                self._file_of(one).close()
            else:
                files.setdefault(self._file_of(one), []).append(number)
        for file, numbers in files.items():
            done = file.do_all([operations[number] for number in numbers])
            for number, result in zip(numbers, done, strict=True):
                results[number] = result
        return results

    def _without_thread(self, error: Exception) -> StoreError:
        # No memory, or the user's limit of threads.
        return StoreError(f"{self._path}: {error}")
