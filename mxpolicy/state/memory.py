"""The store in this process's memory: for tests, and when there is no other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.state.store import LIGHT, MEDIUM, Store, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mxpolicy.state.store import Operation

__all__ = ["MemoryStore"]

T = TypeVar("T")

# A hundred thousand hosts take some 60 MiB; no site's mail goes to more at a time.
MAX_ROWS = 100_000


class _Row:
    __slots__ = ("expires", "value", "weight")

    def __init__(self, value: bytes, expires: float, weight: int) -> None:
        self.value = value
        self.expires = expires
        self.weight = weight


class MemoryStore(Store):
    """See `mxpolicy.state.store.Store`; it never waits, and nothing in it is durable.

    Args:
        clock: UTC seconds.
        max_rows: When there are more, expired ones go, then the light ones, then those
            that expire next.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, max_rows: int = MAX_ROWS
    ) -> None:
        self.rows = MemoryRows(clock, max_rows)

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`."""
        return operation.on(self.rows)


class MemoryRows:
    """The rows. Methods and arguments are those of `Store`; see `Operation`."""

    def __init__(self, clock: Callable[[], float], max_rows: int) -> None:
        self._clock = clock
        self._max_rows = max_rows
        self._rows: dict[str, _Row] = {}

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        return {key: row.value for key in keys if (row := self._live(key))}

    def put(
        self, key: str, value: bytes, expires: float, weight: int | None, durable: bool
    ) -> None:
        self._write(key, value, expires, weight)

    def add(self, key: str, value: bytes, expires: float, weight: int | None) -> bool:
        if self._live(key):
            return False
        self._write(key, value, expires, weight)
        return True

    def replace(
        self, key: str, old: bytes, new: bytes, expires: float, weight: int | None
    ) -> bool:
        row = self._live(key)
        if row is None or row.value != old:
            return False
        self._write(key, new, expires, weight)
        return True

    def delete(self, key: str) -> bool:
        had = self._live(key) is not None
        self._rows.pop(key, None)
        return had

    def count(self, key: str, n: int, expires: float) -> int:
        row = self._live(key)
        if row is not None:
            n, expires = int(row.value) + n, row.expires
        self._write(key, b"%d" % n, expires, None)
        return n

    def scan(self, prefix: str) -> list[Stored]:
        return [
            Stored(key, row.value, row.expires, row.weight)
            for key in sorted(self._rows)
            if key.startswith(prefix) and (row := self._live(key))
        ]

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
