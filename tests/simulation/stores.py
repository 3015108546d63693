"""The state file of a world, and what one process gets to see of it.

The file is a `MemoryStore`; a `View` of it is late, busy, broken or forgetful as the
world has it, and ends with its process.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import Store, StoreBusy
from mxpolicy.state.submitted import ToldByTask
from tests.simulation.world import Storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mxpolicy.state.store import Operation, Submitted
    from tests.simulation.process import Process

__all__ = ["File", "View"]

T = TypeVar("T")

# Rows of a full store.
FEW_ROWS = 12
# Of all operations, those that are late; seconds.
OFTEN, LATE = 0.1, (0.5, 4.0)
# Seconds after which the trouble of a store begins, and how long it lasts.
BEGINS, LASTS = (0.0, 400.0), (5.0, 300.0)


class File:
    """What all processes have in common.

    Args:
        storage: How it does.
        seed: What goes wrong, and when.
        utc: Seconds.
    """

    def __init__(self, storage: Storage, seed: int, utc: Callable[[], float]) -> None:
        self.storage = storage
        self.rng = Random(seed)
        self.utc = utc
        rows = FEW_ROWS if storage is Storage.FULL else 100_000
        self.memory = MemoryStore(utc, rows)
        begins = utc() + self.rng.uniform(*BEGINS)
        self.trouble = begins, begins + self.rng.uniform(*LASTS)

    def delay(self) -> float:
        """Return how long the next operation takes; raise `StoreError` if it fails."""
        began, ended = self.trouble
        now = self.utc()
        is_in_trouble = began <= now < ended
        match self.storage:
            case Storage.SLOW if self.rng.random() < OFTEN:
                return self.rng.uniform(*LATE)
            case Storage.HANGING if is_in_trouble:
                return ended - now
            case Storage.BREAKING if is_in_trouble:
                raise StoreError("disk I/O error")
            case Storage.LOSING if is_in_trouble:
                for row in self.memory.rows.scan(""):
                    if self.rng.random() < OFTEN:
                        self.memory.rows.delete(row.key, None)
        return 0.0005


class View(Store):
    """Does one thing after the other, some of them late, some not at all.

    What it was told is done, also when nobody waits for it any more: so a thread does
    it that writes a file. See `mxpolicy.state.store.Store`.
    """

    def __init__(self, file: File, process: Process) -> None:
        self._file = file
        self._process = process
        self._free_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def do(self, operation: Operation[T]) -> T:
        self._process.operate()
        loop = asyncio.get_running_loop()
        delay = self._file.delay()
        if self._file.storage is Storage.WELL:
            await asyncio.sleep(delay)
            self._process.check()
            return await self._file.memory.do(operation)
        is_late = self._file.storage is Storage.SLOW and delay >= LATE[0]
        if is_late and self._file.rng.random() < 0.5:
            await asyncio.sleep(LATE[0])
            raise StoreBusy("locked")
        self._free_at = max(self._free_at, loop.time()) + delay
        task = loop.create_task(self._do_at(self._free_at, operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    def submit(
        self, operation: Operation[T], told: Callable[[T | BaseException], None]
    ) -> Submitted:
        return ToldByTask(self.do(operation), told)

    async def _do_at(self, at: float, operation: Operation[T]) -> T:
        await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
        self._process.check()
        return await self._file.memory.do(operation)
