"""Answers of this process, as long as their TTL allows.

Failures are kept for a short while too (RFC 9520 §3.2): a thousand messages for
a domain whose name servers are away must not ask a thousand times. Time is an
argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.routing.mx import Lookup, LookupStatus

if TYPE_CHECKING:
    from typing import TypeAlias

    Key: TypeAlias = tuple[str, str]

__all__ = ["Cache"]

# RFC 9520 §3.2: at least 1 second, at most 5 minutes, growing.
FIRST_FAILURE = 5.0
LONGEST_FAILURE = 30.0

MAX_ENTRIES = 10_000

# Records of all entries together; a stranger's zone may have thousands for one name.
MAX_RECORDS = 100_000


class Cache:
    """(name, type) -> `Lookup`, bounded, the oldest entry leaving first."""

    def __init__(
        self, max_entries: int = MAX_ENTRIES, max_records: int = MAX_RECORDS
    ) -> None:
        self._entries: dict[Key, tuple[Lookup, float, float]] = {}
        self._max_entries = max_entries
        self._max_records = max_records
        self._records = 0

    def get(self, name: str, rdtype: str, now: float) -> Lookup | None:
        """Return the answer if it may still be used at *now*, its TTL what is left."""
        entry = self._entries.get((name, rdtype))
        if entry is None or entry[1] <= now:
            return None
        return entry[0]._replace(ttl=entry[1] - now)

    def put(self, lookup: Lookup, now: float) -> None:
        """Keep *lookup*, learned at *now* (seconds, monotonic)."""
        key = (lookup.name, lookup.rdtype)
        kept = self._kept_for(key, lookup)
        # Taken out first, so that a renewed entry counts as new.
        self._drop(key)
        if kept <= 0:
            return
        self._entries[key] = (lookup, now + kept, kept)
        self._records += len(lookup.records)
        while (
            len(self._entries) > self._max_entries or self._records > self._max_records
        ):
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._records -= len(entry[0].records)

    def _kept_for(self, key: Key, lookup: Lookup) -> float:
        if lookup.status is not LookupStatus.FAILED:
            return lookup.ttl
        # An expired failure stays in the table until something replaces it, so
        # that the next one in a row is kept twice as long.
        last = self._entries.get(key)
        if last is None or last[0].status is not LookupStatus.FAILED:
            return FIRST_FAILURE
        return min(LONGEST_FAILURE, 2 * last[2])
