"""A store of which one visit takes long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.state.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.state.store import Operation

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

    async def do(self, operation: Operation[T]) -> T:
        number, self.visits = self.visits, self.visits + 1
        clock = asyncio.get_running_loop().time
        if number == self.at:
            self._until = clock() + self._seconds
        # What was begun is done whatever becomes of whoever waits, as by a thread.
        return await asyncio.shield(asyncio.ensure_future(self._late(operation)))

    async def _late(self, operation: Operation[T]) -> T:
        wait = max(0.0, self._until - asyncio.get_running_loop().time())
        if self._how == "done late":
            await asyncio.sleep(wait)
            return await super().do(operation)
        done = await super().do(operation)
        await asyncio.sleep(wait)
        return done
