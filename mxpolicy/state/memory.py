"""The store in this process's memory: for tests, and when there is no other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.state.store import LIGHT, MEDIUM, Store, Stored, is_of_journal
from mxpolicy.state.submitted import ToldByTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mxpolicy.state.store import Operation, Replacement, Submitted

__all__ = ["MemoryStore"]

T = TypeVar("T")

# Rows of the journal, and as many others: neither takes the other's room. 100,000 hosts
# take 40 MiB; no site's mail goes to more at a time.
MAX_ROWS = 100_000

# Bytes of the keys and values of each of the two. An entry of the journal may be long.
MAX_BYTES = 32 * 1024 * 1024


class MemoryStore(Store):
    """See `mxpolicy.state.store.Store`; it never waits, and nothing in it is durable.

    Args:
        clock: UTC seconds.
        max_rows: When there are more of the journal, or more others, some of them go:
            first the expired rows, then the light ones, and of those the ones that
            expire first.
        max_bytes: The same, of their keys and values.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.rows = MemoryRows(clock, max_rows, max_bytes)

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`."""
        return operation.on(self.rows)

    def submit(
        self, operation: Operation[T], told: Callable[[T | BaseException], None]
    ) -> Submitted:
        """See `Store.submit`."""
        return ToldByTask(self.do(operation), told)


class MemoryRows:
    """The rows. Methods and arguments are those of `Store`; see `Operation`."""

    def __init__(
        self, clock: Callable[[], float], max_rows: int, max_bytes: int
    ) -> None:
        self._clock = clock
        self._journal = _Part(clock, max_rows, max_bytes)
        self._rest = _Part(clock, max_rows, max_bytes)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        return {key: row.value for key in keys if (row := self._live(key))}

    def put(
        self, key: str, value: bytes, expires: float, weight: int | None, durable: bool
    ) -> None:
        part = self._part(key)
        weight = weight or (MEDIUM if key in part.rows else LIGHT)
        part.put(Stored(key, value, expires, weight))

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
        self._part(key).drop(row)
        return True

    def scan(self, prefix: str) -> list[Stored]:
        return [
            row
            for key in sorted([*self._journal.rows, *self._rest.rows])
            if key.startswith(prefix) and (row := self._live(key))
        ]

    def _part(self, key: str) -> _Part:
        return self._journal if is_of_journal(key) else self._rest

    def _live(self, key: str) -> Stored | None:
        row = self._part(key).rows.get(key)
        return row if row is not None and row.expires > self._clock() else None


class _Part:
    """Rows that have a bound of their own; see `MemoryStore`."""

    def __init__(
        self, clock: Callable[[], float], max_rows: int, max_bytes: int
    ) -> None:
        self._clock = clock
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._bytes = 0
        self.rows: dict[str, Stored] = {}

    def put(self, row: Stored) -> None:
        if (before := self.rows.get(row.key)) is not None:
            self.drop(before)
        most = self._max_bytes - _size(row)
        if len(self.rows) >= self._max_rows or self._bytes > most:
            self._make_room(most)
        self.rows[row.key] = row
        self._bytes += _size(row)

    def drop(self, row: Stored) -> None:
        del self.rows[row.key]
        self._bytes -= _size(row)

    def _make_room(self, most: int) -> None:
        """Remove a tenth of the rows, and more until they have *most* bytes."""

        def order(row: Stored) -> tuple[bool, int | None, float]:
            return row.expires > now, row.weight, row.expires

        now = self._clock()
        left = len(self.rows) - max(1, len(self.rows) // 10)
        for row in sorted(self.rows.values(), key=order):
            if len(self.rows) <= left and self._bytes <= most:
                break
            self.drop(row)


def _size(row: Stored) -> int:
    return len(row.key) + len(row.value)
