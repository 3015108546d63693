"""The store for a process that changes nothing: it never fails, and is never waited for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from mxpolicy.state.store import Store, StoreAbsent, StoreBusy
from mxpolicy.state.submitted import ToldByTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.state.store import Operation, Submitted

__all__ = ["READING_BOUND", "ReadingStore"]

# Seconds that a process which only reads waits for one answer. Short, since it waits for
# DNS too.
READING_BOUND = 0.5

T = TypeVar("T")


class ReadingStore(Store):
    """For a process that only reads, and may live long; no method raises or writes.

    While the store is absent or broken, nothing is remembered. An answer may take
    `READING_BOUND` seconds. While a late one is outstanding, nothing else is asked.

    Args:
        store: The real one.
        tell: Takes one line, once, when what is remembered cannot be read.
    """

    def __init__(self, store: Store, tell: Callable[[str], None]) -> None:
        self._store = store
        self._tell = tell
        self._has_told = False
        self._late: asyncio.Future[Any] | None = None

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`; `Operation.undone` when it writes, or there is no answer."""
        hangs = self._late is not None and not self._late.done()
        if hangs or not operation.is_read:
            return operation.undone
        question = asyncio.ensure_future(self._answer(operation))
        await asyncio.wait([question], timeout=READING_BOUND)
        if question.done():
            return question.result()
        self._cannot_read(f"no answer from the disk within {READING_BOUND:g}s")
        if self._late is None or self._late.done():
            self._late = question  # its answer shows that the disk is back
        else:
            question.cancel()
        return operation.undone

    def submit(
        self, operation: Operation[T], told: Callable[[T | BaseException], None]
    ) -> Submitted:
        """See `Store.submit`."""
        return ToldByTask(self.do(operation), told)

    async def _answer(self, operation: Operation[T]) -> T:
        try:
            return await self._store.do(operation)
        except (StoreAbsent, StoreBusy):
            pass  # nothing is remembered yet, or it cannot be read now
        except Exception as error:
            # Also when there is no thread, or no module, to be had.
            self._cannot_read(str(error) or type(error).__name__)
        return operation.undone

    def _cannot_read(self, why: str) -> None:
        if not self._has_told:
            self._has_told = True
            self._tell(f"what is remembered cannot be read: {why}")
