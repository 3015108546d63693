"""The records of hosts: what this process knows of them, and what is to be written.

A change is a pure function from a record to the next one.

1. It is applied to the record that was read last. If that makes no news of the host, the
   store is not asked (`mxpolicy.routing.host_record`). So it is with nearly every message
   to a healthy host.
2. Changes with news are collected. One task reads their records together, makes the
   changes, and replaces each record if it is still the one that was read.
3. Changes that come meanwhile are the next round. This process sees them before they are
   written (`HostRecords.seen`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.host_record import KEPT, NEWS_EVERY, decode, encode, is_news

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mxpolicy.routing.host_record import HostRecord
    from mxpolicy.state.store import Store

    After = Callable[[HostRecord], HostRecord]
    Tell = Callable[[Exception], None]

__all__ = ["MAX_KNOWN", "MAX_WAITING", "HostRecords"]

# Seconds for which the record that was read last stands for the one in the store. A
# message reads those of its candidates when it begins.
FRESH = NEWS_EVERY

# Records that are known, some 400 bytes each; all are forgotten when there are more.
MAX_KNOWN = 10_000
# Changes that wait for a slow store; no more are taken. What was not learned from one
# message is learned from the next.
MAX_WAITING = 10_000
# Records that are read and written together.
_ROUND = 256
# Rounds for a record that other processes change at the same time.
_TRIES = 4


class _Known(NamedTuple):
    record: HostRecord
    at: float  # UTC seconds


class _Change(NamedTuple):
    after: After
    tell: Tell
    ended: Callable[[], None]
    tries: int = _TRIES


class HostRecords:
    """The records that an engine reads and changes.

    Args:
        store: Where they are kept; no method of it may raise (`FallbackStore`).
        utc: Seconds, as `time.time`.

    Attributes:
        failed: Told the key when a failure was written.
    """

    def __init__(self, store: Store, utc: Callable[[], float]) -> None:
        self._store = store
        self._utc = utc
        self.failed: Callable[[str], None] = lambda key: None
        self._known: dict[str, _Known] = {}
        self._waiting: dict[str, list[_Change]] = {}
        self._being_written: dict[str, list[_Change]] = {}
        self._number = 0  # of changes that wait
        self._task: asyncio.Task[None] | None = None

    def seen(self, key: str, value: bytes | None) -> HostRecord:
        """Return the record of *key*, with the changes that are not written yet.

        Args:
            key: Its key.
            value: What was read just now.
        """
        record = decode(value)
        self._know(key, record)
        for changes in (self._being_written, self._waiting):
            for change in changes.get(key, ()):
                record = _changed(record, change)
        return record

    def change(
        self, key: str, after: After, tell: Tell, ended: Callable[[], None]
    ) -> bool:
        """Change the record by *after*; return whether there is anything to write.

        Args:
            key: Its key.
            after: Makes the next record of the one that is there. It is called again
                where that has changed, and may be called for nothing.
            tell: Given what it raises, or what a bug in writing raises.
            ended: Called when it is written, or given up: the store does not answer.
        """
        if self._is_no_news(key, after) or self._number >= MAX_WAITING:
            return False
        self._waiting.setdefault(key, []).append(_Change(after, tell, ended))
        self._number += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_all())
        return True

    def _is_no_news(self, key: str, after: After) -> bool:
        known = self._known.get(key)
        if known is None or not 0 <= self._utc() - known.at < FRESH:
            return False
        if key in self._waiting or key in self._being_written:
            return False
        try:
            return not is_news(known.record, after(known.record))
        except Exception:
            return False  # told when it is to be written

    def _know(self, key: str, record: HostRecord) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = _Known(record, self._utc())

    async def _write_all(self) -> None:
        while self._waiting:
            keys = list(self._waiting)[:_ROUND]
            taken = {key: self._waiting.pop(key) for key in keys}
            self._number -= sum(map(len, taken.values()))
            self._being_written = taken
            failed = await self._write(taken)
            self._being_written = {}
            for key, changes in taken.items():
                self._end(key, changes, key in failed)

    async def _write(self, taken: Mapping[str, list[_Change]]) -> list[str]:
        """Read all records, and write those that are news, in one transaction.

        Returns the keys of records that another process has changed meanwhile, or for
        which there is no answer.
        """
        try:
            rows = await self._store.get_many(list(taken))
            news = {}
            for key, changes in taken.items():
                before = record = decode(rows.get(key))
                for change in changes:
                    record = _changed(record, change, tells=True)
                self._know(key, before)
                if is_news(before, record):
                    news[key] = record
            done = await asyncio.gather(
                *(self._replace(key, rows.get(key), one) for key, one in news.items())
            )
        except Exception as error:
            next(iter(taken.values()))[0].tell(error)
            return []
        return [key for key, is_done in zip(news, done, strict=True) if not is_done]

    async def _replace(self, key: str, old: bytes | None, record: HostRecord) -> bool:
        expires = self._utc() + KEPT
        if not await self._store.replace(key, old, encode(record), expires):
            return False
        self._know(key, record)
        if record.verdict is not None:
            self.failed(key)
        return True

    def _end(self, key: str, changes: list[_Change], has_failed: bool) -> None:
        """Have *changes* made again where they have failed; else they have ended."""
        again = []
        for change in changes:
            if has_failed and change.tries > 1:
                again.append(change._replace(tries=change.tries - 1))
            else:
                change.ended()
        if again:
            self._waiting[key] = again + self._waiting.get(key, [])
            self._number += len(again)


def _changed(record: HostRecord, change: _Change, *, tells: bool = False) -> HostRecord:
    try:
        return change.after(record)
    except Exception as error:
        if tells:
            change.tell(error)
        return record
