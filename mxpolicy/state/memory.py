"""The store in this process's memory: for tests, and when there is no other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mxpolicy.state.store import LIGHT, MEDIUM, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Self

__all__ = ["MemoryStore"]

# A hundred thousand hosts take some 60 MiB; nobody's mail goes to more at a time.
MAX_ROWS = 100_000


class _Row:
    __slots__ = ("expires", "value", "weight")

    def __init__(self, value: bytes, expires: float, weight: int) -> None:
        self.value = value
        self.expires = expires
        self.weight = weight


class MemoryStore:
    """See `mxpolicy.state.store.Store`.

    Args:
        clock: UTC seconds.
        max_rows: When there are more, expired ones go, then the light ones, then those
            that expire next.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, max_rows: int = MAX_ROWS
    ) -> None:
        self._clock = clock
        self._max_rows = max_rows
        self._rows: dict[str, _Row] = {}

    def patient(self, seconds: float) -> Self:
        """See `Store.patient`; this one answers at once."""
        return self

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        row = self._live(key)
        return row.value if row else None

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        """See `Store.get_many`."""
        return {key: row.value for key in keys if (row := self._live(key))}

    async def put(
        self,
        key: str,
        value: bytes,
        expires: float,
        *,
        weight: int | None = None,
        durable: bool = False,
    ) -> None:
        """See `Store.put`; nothing here is durable."""
        self._write(key, value, expires, weight)

    async def add(
        self, key: str, value: bytes, expires: float, *, weight: int | None = None
    ) -> bool:
        """See `Store.add`."""
        if self._live(key):
            return False
        self._write(key, value, expires, weight)
        return True

    async def replace(
        self,
        key: str,
        old: bytes,
        new: bytes,
        expires: float,
        *,
        weight: int | None = None,
    ) -> bool:
        """See `Store.replace`."""
        row = self._live(key)
        if row is None or row.value != old:
            return False
        self._write(key, new, expires, weight)
        return True

    async def delete(self, key: str) -> bool:
        """See `Store.delete`."""
        had = self._live(key) is not None
        self._rows.pop(key, None)
        return had

    async def count(self, key: str, n: int, expires: float) -> int:
        """See `Store.count`."""
        row = self._live(key)
        if row is None:
            self._write(key, b"%d" % n, expires, None)
            return n
        total = int(row.value) + n
        self._write(key, b"%d" % total, row.expires, None)
        return total

    async def scan(self, prefix: str) -> list[Stored]:
        """See `Store.scan`."""
        return [
            Stored(key, row.value, row.expires)
            for key in sorted(self._rows)
            if key.startswith(prefix) and (row := self._live(key))
        ]

    async def close(self) -> None:
        """See `Store.close`."""

    def _live(self, key: str) -> _Row | None:
        row = self._rows.get(key)
        return row if row is not None and row.expires > self._clock() else None

    def _write(
        self, key: str, value: bytes, expires: float, weight: int | None
    ) -> None:
        row = self._rows.get(key)
        if row is not None:
            row.value, row.expires, row.weight = value, expires, weight or MEDIUM
            return
        if len(self._rows) >= self._max_rows:
            self._make_room()
        self._rows[key] = _Row(value, expires, weight or LIGHT)

    def _make_room(self) -> None:
        now = self._clock()
        order = sorted(
            self._rows,
            key=lambda key: (
                (row := self._rows[key]).expires > now,
                row.weight,
                row.expires,
            ),
        )
        for key in order[: max(1, len(order) // 10)]:
            del self._rows[key]
