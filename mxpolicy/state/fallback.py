"""A store that is never away: when the real one fails, this process's memory serves.

Mail does not wait for what is only of use. Whatever the store does, no method raises,
and a process waits for all of its questions together `BOUND` seconds (as much again
within `RENEWED`). A question on which a second copy or a bounce may depend is asked of
`FallbackStore.patient`, and has a time of its own.

An operation that had no answer in time counts as perhaps done. The store is asked
again the next time. It does one thing after the other, so a later read shows what came
of it. Only a store that says it is broken is left for good.
"""

from __future__ import annotations

import asyncio
import copy
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import JOURNAL, Store, StoreAbsent, StoreBusy

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from mxpolicy.state.store import Operation

__all__ = ["BOUND", "READING_BOUND", "Allowance", "FallbackStore", "ReadingStore"]

# Seconds. A healthy disk needs one thousandth; the whole price of a dead one.
BOUND = 1.0
# Seconds after which as much may be waited for again: a process may live long.
RENEWED = 60.0
# Seconds that a wait may last without being counted: a busy processor's, no disk's.
FREE = 0.05

# Seconds that a process which only looks waits for one answer. Short, since it waits for
# DNS too.
READING_BOUND = 0.5

# Seconds between two tries of who is patient with a store that others keep busy.
_RETRY = 0.1

T = TypeVar("T")


class Allowance:
    """The time that may be spent on waiting, in all: `BOUND`, renewed within `RENEWED`.

    Who wait at the same time spend it together. Times are seconds, monotonic.
    """

    def __init__(self) -> None:
        self._left = BOUND
        self._waiting = 0
        self._since = 0.0  # when the first of those who wait began; or the last ended

    def begin(self, now: float) -> float:
        """Return how long a wait that begins now may last."""
        if not self._waiting:
            renewed = (now - self._since) * BOUND / RENEWED if self._since else 0.0
            self._left = min(BOUND, self._left + renewed)
            self._since = now
        self._waiting += 1
        left = self._left - self._counted(now)
        return left + FREE if left > 0 else 0.0

    def end(self, now: float) -> None:
        """Count a wait that ends now."""
        self._waiting -= 1
        if not self._waiting:
            self._left = max(0.0, self._left - self._counted(now))
            self._since = now

    def _counted(self, now: float) -> float:
        return max(0.0, now - self._since - FREE)


class _Source:
    """The real store while it serves, then memory."""

    def __init__(
        self,
        store: Store | None,
        tell: Callable[[str], None],
        memory: MemoryStore,
        allowance: Allowance,
    ) -> None:
        self.store = store
        self._tell = tell
        self._memory = memory
        self._allowance = allowance

    async def do(self, operation: Operation[T], patience: float | None) -> T:
        store = self.store
        if store is None:
            return await self._memory.do(operation)
        try:
            if patience is not None:
                async with asyncio.timeout(patience):
                    return await _until_done(store, operation)
            return await self._do_within_allowance(store, operation)
        except StoreBusy:
            return operation.undone
        except TimeoutError:
            self._tell("no answer from the store in time: it is asked again later")
            return operation.undone
        except StoreError as error:
            self._leave(store, str(error))
        return await self._memory.do(operation)

    async def _do_within_allowance(self, store: Store, operation: Operation[T]) -> T:
        clock = asyncio.get_running_loop().time
        seconds = self._allowance.begin(clock())
        try:
            async with asyncio.timeout(seconds):
                return await store.do(operation)
        finally:
            self._allowance.end(clock())

    def _leave(self, store: Store, why: str) -> None:
        if self.store is store:  # of several who wait, one tells
            self.store = None
            self._tell(f"nothing outlives this process: {why}")


async def _until_done(store: Store, operation: Operation[T]) -> T:
    while True:
        try:
            return await store.do(operation)
        except StoreBusy:
            await asyncio.sleep(_RETRY)


class FallbackStore(Store):
    """See `mxpolicy.state.store.Store`; no method raises for the store's troubles.

    Where a method says "nobody can tell", others kept the store busy, or it did not
    answer in time. The journal and the rest are left separately: a file of hosts that
    is damaged takes nothing from the journal in its own.

    Args:
        store: The real one; None when there is none from the start.
        tell: Given one line when the store is left, and one when it is late; never the
            same line twice.
        memory: What takes over.
    """

    def __init__(
        self,
        store: Store | None,
        tell: Callable[[str], None],
        memory: MemoryStore | None = None,
    ) -> None:
        once, memory, allowance = _once(tell), memory or MemoryStore(), Allowance()
        self._rest = _Source(store, once, memory, allowance)
        self._journal = _Source(store, once, memory, allowance)
        self._patience: float | None = None

    @property
    def is_memory_only(self) -> bool:
        """Whether something that should outlive this process does not."""
        return self._rest.store is None or self._journal.store is None

    def patient(self, seconds: float) -> Self:
        """See `Store.patient`."""
        other = copy.copy(self)
        other._patience = max(0.0, seconds)
        return other

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`; `Operation.undone` when nobody can tell."""
        is_of_journal = operation.key.startswith(JOURNAL)
        source = self._journal if is_of_journal else self._rest
        return await source.do(operation, self._patience)

    async def close(self) -> None:
        """See `Store.close`."""
        if self._rest.store is not None:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(BOUND):
                    await self._rest.store.close()


class ReadingStore(Store):
    """For a process that only looks, and may live long; no method raises or writes.

    A store that is not there, or cannot be used, means that nothing is remembered, for
    as long as it is so. An answer is waited for `READING_BOUND` seconds. While one that
    was waited for in vain is still outstanding, no other question is asked.

    Args:
        store: The real one.
        tell: Given one line when what is remembered cannot be read, once.
    """

    def __init__(self, store: Store, tell: Callable[[str], None]) -> None:
        self._store = store
        self._tell = tell
        self._has_told = False
        self._late: asyncio.Future[Any] | None = None

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`; `Operation.undone` when it writes, or nobody can tell."""
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

    async def _answer(self, operation: Operation[T]) -> T:
        try:
            return await self._store.do(operation)
        except (StoreAbsent, StoreBusy):
            pass  # nothing is remembered yet, or not to be had now
        except Exception as error:
            # Whatever it is, a thread or a module that cannot be had, too.
            self._cannot_read(str(error) or type(error).__name__)
        return operation.undone

    def _cannot_read(self, why: str) -> None:
        if not self._has_told:
            self._has_told = True
            self._tell(f"what is remembered cannot be read: {why}")


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    told = set()

    def tell_once(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    return tell_once
