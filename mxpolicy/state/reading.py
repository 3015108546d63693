"""A store that is only read, by a process that may live long.

What `mxpolicy policy` and `mxpolicy route` know of hosts is what deliveries have
written, at the moment of asking. They change nothing, take no lease and make no
file. A file that is not there, or cannot be used, means that nothing is remembered,
for as long as it is so; it is told once.

Nobody waits for a disk: a question has its answer within `BOUND` seconds, and
none is asked while an earlier one has been waited for so long.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from mxpolicy.state.store import StoreAbsent, StoreBusy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Self

    from mxpolicy.state.store import Stored

__all__ = ["BOUND", "Readable", "ReadingStore"]

# Seconds. Short, for who asks waits for DNS too; a healthy disk needs a thousandth.
BOUND = 0.5


class Readable(Protocol):
    """What is read: `mxpolicy.state.sqlite.SqliteStore`."""

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        """See `mxpolicy.state.store.Store.get_many`."""
        ...

    async def scan(self, prefix: str) -> list[Stored]:
        """See `mxpolicy.state.store.Store.scan`."""
        ...

    async def close(self) -> None:
        """See `mxpolicy.state.store.Store.close`."""
        ...


class ReadingStore:
    """See `mxpolicy.state.store.Store`; no method raises, and none writes.

    Questions that are asked in one round of the event loop go to the file together.

    Args:
        store: The real one; None when there is none.
        tell: Given one line when what is remembered cannot be read, once.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        store: Readable | None,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._tell = tell
        self._clock = clock
        self._has_told = False
        self._asked: list[tuple[str, asyncio.Future[bytes | None]]] = []
        self._under_way: asyncio.Task[None] | None = None
        self._began = 0.0

    def patient(self, seconds: float) -> Self:
        """See `Store.patient`; nothing that is read here is worth it."""
        return self

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`; None when nobody can tell."""
        if self._store is None or self._hangs:
            return None
        future: asyncio.Future[bytes | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._asked.append((key, future))
        if self._under_way is None:
            self._began = self._clock()
            self._under_way = asyncio.create_task(self._read(self._store))
        try:
            async with asyncio.timeout(BOUND):
                return await future
        except TimeoutError:
            self._tell_once(f"no answer from the disk within {BOUND:g}s")
            return None

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        """See `Store.get_many`; nothing when nobody can tell."""
        values = await asyncio.gather(*(self.get(key) for key in keys))
        found = zip(keys, values, strict=True)
        return {key: value for key, value in found if value is not None}

    @property
    def _hangs(self) -> bool:
        return self._under_way is not None and self._clock() - self._began >= BOUND

    async def _read(self, store: Readable) -> None:
        """Get answers until nobody waits for one."""
        try:
            while asked := [one for one in self._asked if not one[1].done()]:
                self._asked = []
                self._began = self._clock()
                values = await self._values(store, [key for key, _ in asked])
                for key, future in asked:
                    if not future.done():
                        future.set_result(values.get(key))
        finally:
            self._asked = [one for one in self._asked if not one[1].done()]
            self._under_way = None

    async def _values(
        self, store: Readable, keys: Sequence[str]
    ) -> Mapping[str, bytes]:
        try:
            values = await store.get_many(keys)
        except (StoreAbsent, StoreBusy):
            return {}  # nothing is remembered yet, or not to be had now
        except Exception as error:
            # Whatever it is, a thread or a module that cannot be had, too.
            self._tell_once(str(error) or type(error).__name__)
            return {}
        # A file that somebody has repaired may hold anything.
        return {key: one for key, one in values.items() if isinstance(one, bytes)}

    def _tell_once(self, why: str) -> None:
        if not self._has_told:
            self._has_told = True
            self._tell(f"what is remembered cannot be read: {why}")

    # -- nothing is written -------------------------------------------------------

    async def put(
        self,
        key: str,
        value: bytes,
        expires: float,
        *,
        weight: int | None = None,
        durable: bool = False,
    ) -> None:
        """Do nothing."""

    async def add(
        self, key: str, value: bytes, expires: float, *, weight: int | None = None
    ) -> bool:
        """Return False: it was not done."""
        return False

    async def replace(
        self,
        key: str,
        old: bytes,
        new: bytes,
        expires: float,
        *,
        weight: int | None = None,
    ) -> bool:
        """Return False: it was not done."""
        return False

    async def delete(self, key: str) -> bool:
        """Return False: it was not done."""
        return False

    async def count(self, key: str, n: int, expires: float) -> int:
        """Return *n*: nobody can tell."""
        return n

    async def scan(self, prefix: str) -> list[Stored]:
        """See `Store.scan`; nothing when nobody can tell."""
        if self._store is None or self._hangs:
            return []
        try:
            async with asyncio.timeout(BOUND):
                return await self._store.scan(prefix)
        except (StoreAbsent, StoreBusy):
            return []
        except Exception as error:
            self._tell_once(str(error) or type(error).__name__)
            return []

    async def close(self) -> None:
        """Nothing is held that a process's end does not give back."""
