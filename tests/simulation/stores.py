"""A store that is slow, busy or gone, as one process sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.state.store import StoreBusy
from tests.simulation.world import Storage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from random import Random
    from typing import Any, Self

    from mxpolicy.state.memory import MemoryStore
    from mxpolicy.state.store import Stored

__all__ = ["SlowStore"]

T = TypeVar("T")


class SlowStore:
    """Does one thing after the other, some of them late, some not at all.

    What it was told is done, also when nobody waits for it any more: so a thread does
    it that writes a file. See `mxpolicy.state.store.Store`.
    """

    def __init__(self, store: MemoryStore, storage: Storage, rng: Random) -> None:
        self._store = store
        self._is_slow = storage is Storage.SLOW
        self._rng = rng
        self._free_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()

    def patient(self, seconds: float) -> Self:
        return self

    async def get(self, key: str) -> bytes | None:
        return await self._do(lambda: self._store.get(key))

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        return await self._do(lambda: self._store.get_many(keys))

    async def put(self, key: str, value: bytes, expires: float, **more: Any) -> None:
        await self._do(lambda: self._store.put(key, value, expires, **more))

    async def add(self, key: str, value: bytes, expires: float, **more: Any) -> bool:
        return await self._do(lambda: self._store.add(key, value, expires, **more))

    async def replace(
        self, key: str, old: bytes, new: bytes, expires: float, **more: Any
    ) -> bool:
        return await self._do(
            lambda: self._store.replace(key, old, new, expires, **more)
        )

    async def delete(self, key: str) -> bool:
        return await self._do(lambda: self._store.delete(key))

    async def count(self, key: str, n: int, expires: float) -> int:
        return await self._do(lambda: self._store.count(key, n, expires))

    async def scan(self, prefix: str) -> list[Stored]:
        return await self._do(lambda: self._store.scan(prefix))

    async def close(self) -> None:
        pass

    async def _do(self, operation: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        delay = 0.0005
        if self._is_slow and self._rng.random() < 0.1:
            delay = self._rng.uniform(0.5, 4.0)
            if self._rng.random() < 0.5:
                await asyncio.sleep(0.5)
                raise StoreBusy("locked")
        self._free_at = max(self._free_at, loop.time()) + delay
        task = loop.create_task(self._do_at(self._free_at, operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _do_at(self, at: float, operation: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
        return await operation()
