"""A store of which one visit takes long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.state.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

__all__ = ["SlowOnce"]

T = TypeVar("T")


class SlowOnce(MemoryStore):
    """One visit takes long, and so do those behind it, as with one thread.

    Args:
        how: ``done late``, or ``told late``: then it is done at once.
        at: Which visit, from 0.
        seconds: How long.
        clock: UTC seconds.

    Attributes:
        visits: How many there were.
        at: As given; may be changed.
    """

    def __init__(
        self,
        how: str,
        at: int,
        seconds: float,
        clock: Callable[[], float] = lambda: 1_000_000.0,
    ) -> None:
        super().__init__(clock)
        self.visits = 0
        self.at = at
        self._how = how
        self._seconds = seconds
        self._until = 0.0

    async def _visit(self, work: Awaitable[T]) -> T:
        number, self.visits = self.visits, self.visits + 1
        clock = asyncio.get_running_loop().time
        if number == self.at:
            self._until = clock() + self._seconds
        # What was begun is done whatever becomes of whoever waits, as by a thread.
        return await asyncio.shield(asyncio.ensure_future(self._late(work)))

    async def _late(self, work: Awaitable[T]) -> T:
        wait = max(0.0, self._until - asyncio.get_running_loop().time())
        if self._how == "done late":
            await asyncio.sleep(wait)
            return await work
        done = await work
        await asyncio.sleep(wait)
        return done

    async def get(self, key: str) -> bytes | None:
        return await self._visit(super().get(key))

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        return await self._visit(super().get_many(keys))

    async def put(
        self,
        key: str,
        value: bytes,
        expires: float,
        *,
        weight: int | None = None,
        durable: bool = False,
    ) -> None:
        await self._visit(super().put(key, value, expires, weight=weight))

    async def add(
        self, key: str, value: bytes, expires: float, *, weight: int | None = None
    ) -> bool:
        return await self._visit(super().add(key, value, expires, weight=weight))

    async def replace(
        self,
        key: str,
        old: bytes,
        new: bytes,
        expires: float,
        *,
        weight: int | None = None,
    ) -> bool:
        return await self._visit(super().replace(key, old, new, expires, weight=weight))

    async def delete(self, key: str) -> bool:
        return await self._visit(super().delete(key))
