"""Answers of this process, as long as their TTL allows.

Failures are kept for a short while too (RFC 9520 §3.2). So a thousand messages for a
domain whose name servers are away do not ask a thousand times. A failure answers only
questions that would not have waited longer than the one that failed. Time is an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.mx import Lookup, LookupStatus

if TYPE_CHECKING:
    from typing import TypeAlias

    Key: TypeAlias = tuple[str, str]

__all__ = ["Cache"]

# RFC 9520 §3.2: at least 1 second, at most 5 minutes, growing.
FIRST_FAILURE = 5.0
LONGEST_FAILURE = 30.0

MAX_ENTRIES = 10_000

# Records of all entries together; a zone may have thousands for one name.
MAX_RECORDS = 100_000


class _Entry(NamedTuple):
    """An answer, until when it holds, how long that is, and how long it was waited for."""

    lookup: Lookup
    until: float
    kept: float
    patience: float

    @property
    def is_failure(self) -> bool:
        return self.lookup.status is LookupStatus.FAILED


class Cache:
    """(name, type) -> `Lookup`, bounded, the oldest entry leaving first."""

    def __init__(
        self, max_entries: int = MAX_ENTRIES, max_records: int = MAX_RECORDS
    ) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._max_entries = max_entries
        self._max_records = max_records
        self._records = 0

    def get(
        self, name: str, rdtype: str, now: float, patience: float = 0.0
    ) -> Lookup | None:
        """Return the answer if it may still be used at *now*, its TTL what is left.

        Args:
            patience: Seconds that the question would be waited for.
        """
        entry = self._entries.get((name, rdtype))
        if entry is None or entry.until <= now:
            return None
        if entry.is_failure and entry.patience < patience:
            return None
        return entry.lookup._replace(ttl=entry.until - now)

    def put(self, lookup: Lookup, now: float, patience: float = 0.0) -> Lookup:
        """Keep *lookup*, learned at *now* (seconds, monotonic) within *patience*.

        Returns what is kept, its TTL the seconds for which it is: also of a failure.
        """
        key = (lookup.name, lookup.rdtype)
        if lookup.status is LookupStatus.FAILED and (
            known := self.get(*key, now, patience)
        ):
            return known  # an equal question that waits longer was answered meanwhile
        kept = self._kept_for(key, lookup)
        # Removed first, so that a renewed entry counts as new.
        self._drop(key)
        if kept <= 0:
            return lookup
        self._entries[key] = _Entry(lookup, now + kept, kept, patience)
        self._records += len(lookup.records)
        while (
            len(self._entries) > self._max_entries or self._records > self._max_records
        ):
            self._drop(next(iter(self._entries)))
        return lookup if kept == lookup.ttl else lookup._replace(ttl=kept)

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._records -= len(entry.lookup.records)

    def _kept_for(self, key: Key, lookup: Lookup) -> float:
        if lookup.status is not LookupStatus.FAILED:
            return lookup.ttl
        # An expired failure stays in the table until it is replaced. So the next one
        # in a row is kept twice as long.
        last = self._entries.get(key)
        if last is None or not last.is_failure:
            return FIRST_FAILURE
        return min(LONGEST_FAILURE, 2 * last.kept)
