"""A store that is never away: when the real one fails, this process's memory serves.

Mail does not wait for what is remembered. Whatever the store does, every call
returns within `BOUND` seconds, and none raises.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import StoreBusy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mxpolicy.state.store import Store, Stored

__all__ = ["BOUND", "FallbackStore"]

# Seconds. A healthy disk needs one thousandth; the whole price of a dead one.
BOUND = 1.0

T = TypeVar("T")


class FallbackStore:
    """See `mxpolicy.state.store.Store`; no method raises for the store's troubles.

    A store that is busy is asked again the next time, and that one operation is
    taken for not done. One that fails or does not answer is left for good.

    Args:
        store: The real one; None when there is none from the start.
        tell: Given one line when the store is left.
        memory: What takes over.
    """

    def __init__(
        self,
        store: Store | None,
        tell: Callable[[str], None],
        memory: MemoryStore | None = None,
    ) -> None:
        self._store = store
        self._tell = tell
        self._memory = memory or MemoryStore()

    @property
    def is_memory_only(self) -> bool:
        """Whether nothing outlives this process."""
        return self._store is None

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        return await self._ask(lambda store: store.get(key), None)

    async def put(
        self, key: str, value: bytes, expires: float, *, durable: bool = False
    ) -> None:
        """See `Store.put`."""
        await self._ask(
            lambda store: store.put(key, value, expires, durable=durable), None
        )

    async def add(self, key: str, value: bytes, expires: float) -> bool:
        """See `Store.add`; False when nobody can tell."""
        return await self._ask(lambda store: store.add(key, value, expires), False)

    async def replace(self, key: str, old: bytes, new: bytes, expires: float) -> bool:
        """See `Store.replace`; False when nobody can tell."""
        return await self._ask(
            lambda store: store.replace(key, old, new, expires), False
        )

    async def delete(self, key: str) -> bool:
        """See `Store.delete`."""
        return await self._ask(lambda store: store.delete(key), False)

    async def count(self, key: str, n: int, expires: float) -> int:
        """See `Store.count`; *n* when nobody can tell."""
        return await self._ask(lambda store: store.count(key, n, expires), n)

    async def scan(self, prefix: str) -> list[Stored]:
        """See `Store.scan`."""
        return await self._ask(lambda store: store.scan(prefix), [])

    async def close(self) -> None:
        """See `Store.close`."""
        await self._ask(lambda store: store.close(), None)

    async def _ask(self, operation: Callable[[Store], Awaitable[T]], undone: T) -> T:
        store = self._store
        if store is not None:
            try:
                async with asyncio.timeout(BOUND):
                    return await operation(store)
            except StoreBusy:
                return undone
            except TimeoutError:
                self._leave(store, f"no answer from the store within {BOUND:g}s")
            except StoreError as error:
                self._leave(store, str(error))
        return await operation(self._memory)

    def _leave(self, store: Store, why: str) -> None:
        if self._store is store:  # of several who wait, one tells
            self._store = None
            self._tell(f"nothing outlives this process: {why}")
