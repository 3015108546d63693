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
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import JOURNAL, StoreBusy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from typing import Self

    from mxpolicy.state.store import Store, Stored

__all__ = ["BOUND", "Allowance", "FallbackStore"]

# Seconds. A healthy disk needs one thousandth; the whole price of a dead one.
BOUND = 1.0
# Seconds after which as much may be waited for again: a process may live long.
RENEWED = 60.0
# Seconds that a wait may last without being counted: a busy processor's, no disk's.
FREE = 0.05

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

    async def ask(
        self,
        operation: Callable[[Store], Awaitable[T]],
        undone: T,
        patience: float | None,
    ) -> T:
        store = self.store
        if store is None:
            return await operation(self._memory)
        try:
            if patience is not None:
                async with asyncio.timeout(patience):
                    return await _until_done(store, operation)
            return await self._ask_within_allowance(store, operation)
        except StoreBusy:
            return undone
        except TimeoutError:
            self._tell("no answer from the store in time: it is asked again later")
            return undone
        except StoreError as error:
            self._leave(store, str(error))
        return await operation(self._memory)

    async def _ask_within_allowance(
        self, store: Store, operation: Callable[[Store], Awaitable[T]]
    ) -> T:
        clock = asyncio.get_running_loop().time
        seconds = self._allowance.begin(clock())
        try:
            async with asyncio.timeout(seconds):
                return await operation(store)
        finally:
            self._allowance.end(clock())

    def _leave(self, store: Store, why: str) -> None:
        if self.store is store:  # of several who wait, one tells
            self.store = None
            self._tell(f"nothing outlives this process: {why}")


async def _until_done(store: Store, operation: Callable[[Store], Awaitable[T]]) -> T:
    while True:
        try:
            return await operation(store)
        except StoreBusy:
            await asyncio.sleep(_RETRY)


class FallbackStore:
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

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`; None when nobody can tell."""
        return await self._ask(key, lambda store: store.get(key), None)

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        """See `Store.get_many`; nothing when nobody can tell."""
        if not keys:
            return {}
        one = next(iter(keys))
        return await self._ask(one, lambda store: store.get_many(keys), {})

    async def put(
        self,
        key: str,
        value: bytes,
        expires: float,
        *,
        weight: int | None = None,
        durable: bool = False,
    ) -> None:
        """See `Store.put`."""
        await self._ask(
            key,
            lambda store: store.put(
                key, value, expires, weight=weight, durable=durable
            ),
            None,
        )

    async def add(
        self, key: str, value: bytes, expires: float, *, weight: int | None = None
    ) -> bool:
        """See `Store.add`; False when nobody can tell."""
        return await self._ask(
            key, lambda store: store.add(key, value, expires, weight=weight), False
        )

    async def replace(
        self,
        key: str,
        old: bytes,
        new: bytes,
        expires: float,
        *,
        weight: int | None = None,
    ) -> bool:
        """See `Store.replace`; False when nobody can tell."""
        return await self._ask(
            key,
            lambda store: store.replace(key, old, new, expires, weight=weight),
            False,
        )

    async def delete(self, key: str) -> bool:
        """See `Store.delete`; False when nobody can tell."""
        return await self._ask(key, lambda store: store.delete(key), False)

    async def count(self, key: str, n: int, expires: float) -> int:
        """See `Store.count`; *n* when nobody can tell."""
        return await self._ask(key, lambda store: store.count(key, n, expires), n)

    async def scan(self, prefix: str) -> list[Stored]:
        """See `Store.scan`; nothing when nobody can tell."""
        return await self._ask(prefix, lambda store: store.scan(prefix), [])

    async def close(self) -> None:
        """See `Store.close`."""
        await self._ask("", lambda store: store.close(), None)

    async def _ask(
        self, key: str, operation: Callable[[Store], Awaitable[T]], undone: T
    ) -> T:
        source = self._journal if key.startswith(JOURNAL) else self._rest
        return await source.ask(operation, undone, self._patience)


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    told = set()

    def tell_once(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    return tell_once
