"""The store in this process's memory: for tests, and when there is no other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.state.store import LIGHT, MEDIUM, Store, Stored
from mxpolicy.state.submitted import Awaited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mxpolicy.state.store import Operation, Replacement, Submitted

__all__ = ["MemoryStore"]

T = TypeVar("T")

# 100,000 hosts take some 60 MiB; no site's mail goes to more at a time.
MAX_ROWS = 100_000


class MemoryStore(Store):
    """See `mxpolicy.state.store.Store`; it never waits, and nothing in it is durable.

    Args:
        clock: UTC seconds.
        max_rows: When there are more, some go: first the expired rows, then the light
            ones, and of those the ones that expire first.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, max_rows: int = MAX_ROWS
    ) -> None:
        self.rows = MemoryRows(clock, max_rows)

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`."""
        return operation.on(self.rows)

    def submit(
        self, operation: Operation[T], told: Callable[[T | BaseException], None]
    ) -> Submitted:
        """See `Store.submit`."""
        return Awaited(self.do(operation), told)


class MemoryRows:
    """The rows. Methods and arguments are those of `Store`; see `Operation`."""

    def __init__(self, clock: Callable[[], float], max_rows: int) -> None:
        self._clock = clock
        self._max_rows = max_rows
        self._rows: dict[str, Stored] = {}

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        return {key: row.value for key in keys if (row := self._live(key))}

    def put(
        self, key: str, value: bytes, expires: float, weight: int | None, durable: bool
    ) -> None:
        if key not in self._rows and len(self._rows) >= self._max_rows:
            self._make_room()
        weight = weight or (MEDIUM if key in self._rows else LIGHT)
        self._rows[key] = Stored(key, value, expires, weight)

    def replace(
        self,
        key: str,
        old: bytes | None,
        new: bytes,
        expires: float,
        weight: int | None,
    ) -> bool:
        row = self._live(key)
        if (row and row.value) != old:
            return False
        self.put(key, new, expires, weight, False)
        return True

    def replace_all(self, rows: Sequence[Replacement], durable: bool) -> list[bool]:
        found = [
            (row and row.value) == new.old
            for new in rows
            for row in (self._live(new.key),)
        ]
        if all(found):
            for new in rows:
                self.put(new.key, new.new, new.expires, new.weight, False)
        return found

    def delete(self, key: str, old: bytes | None) -> bool:
        row = self._live(key)
        if row is None or old not in (None, row.value):
            return False
        del self._rows[key]
        return True

    def scan(self, prefix: str) -> list[Stored]:
        return [
            row
            for key in sorted(self._rows)
            if key.startswith(prefix) and (row := self._live(key))
        ]

    def _live(self, key: str) -> Stored | None:
        row = self._rows.get(key)
        return row if row is not None and row.expires > self._clock() else None

    def _make_room(self) -> None:
        def order(row: Stored) -> tuple[bool, int | None, float]:
            return row.expires > now, row.weight, row.expires

        now = self._clock()
        rows = sorted(self._rows.values(), key=order)
        for row in rows[: max(1, len(rows) // 10)]:
            del self._rows[row.key]
