"""A store that never fails: while the real one does, this process's memory serves.

Mail does not wait for an aid. No method raises, whatever the real store does. A process
waits `BOUND` seconds for all of its operations together, and as much again within
`RENEWED`. An operation on which a second copy or a bounce may depend goes through
`FallbackStore.patient`, and has a time of its own.

An operation without an answer in time was perhaps done. The store does one operation
after the other, so a later read shows what came of it.

A broken store is *left*: memory serves in its place, and one line says so. One task
looks for it, after `FIRST_LOOK` seconds and then less often. Once it takes a row again,
what was learned meanwhile is written there, and then it is read again.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from copy import copy
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import (
    JOURNAL,
    Store,
    StoreBusy,
    Submitted,
    is_of_journal,
)
from mxpolicy.state.submitted import SubmittingStore, ToldSoon

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mxpolicy.state.store import Operation, Stored

    CallLater = Callable[[float, Callable[[], None]], asyncio.Handle]
    Prevails = Callable[[Stored, Stored | None], bool]

__all__ = [
    "BOUND",
    "Allowance",
    "FallbackStore",
    "never",
]

# Seconds: the whole price of a dead disk. A healthy one needs a thousandth of it.
BOUND = 1.0
# Seconds after which as much may be waited for again: a process may live long.
RENEWED = 60.0
# Seconds without an answer that do not count: a busy processor takes them, not the disk.
FREE = 0.05

# Seconds until the first look for a store that was left. Each next one is twice as many.
FIRST_LOOK, LAST_LOOK = 1.0, 60.0

# Seconds without the same trouble after which it is told again: a process may live for
# months.
QUIET = 3600.0

# Seconds between two tries of a patient operation, while the store is busy.
_RETRY = 0.1

T = TypeVar("T")


class Allowance:
    """The time to spend on waiting: `BOUND` in all, renewed within `RENEWED`.

    Waits at the same time count as one. While many wait, each answer shows that the disk
    works, and only the time since the last one counts. Times are seconds, monotonic.
    """

    def __init__(self) -> None:
        self._left = BOUND
        self._waiting = 0
        self._since = (
            0.0  # when a wait ended last, or the first of the present ones began
        )

    def begin(self, now: float) -> float:
        """Return how long a wait that begins now may last."""
        if not self._waiting:
            self._count(now)
        self._waiting += 1
        left = self._left - self._slow(now)
        return left + FREE if left > 0 else 0.0

    def end(self, now: float) -> None:
        """Count a wait that ends now."""
        self._count(now)
        self._waiting -= 1

    def _count(self, now: float) -> None:
        slow = self._slow(now)
        renewed = 0.0 if slow else (now - self._since) * BOUND / RENEWED
        self._left = min(BOUND, max(0.0, self._left - slow) + renewed)
        self._since = now

    def _slow(self, now: float) -> float:
        return max(0.0, now - self._since - FREE) if self._waiting else 0.0


class _Room:
    """A part of the store that is left, and comes back, apart from the other.

    Attributes:
        name: What its keys begin with; empty for the rest, which is not the journal.
        is_left: Memory serves in its place.
        pause: Seconds until the next look for it, while it is left.
        back_at: When it came back, on the loop's clock.
        search: The next look for it, or the present one.
    """

    def __init__(self, name: str, *, is_left: bool) -> None:
        self.name = name
        self.is_left = is_left
        self.pause = FIRST_LOOK
        self.back_at = -inf
        self.search: asyncio.Handle | asyncio.Task[None] | None = None


def never(ours: Stored, there: Stored | None) -> bool:
    """Return False: no row is written into a store that is back."""
    return False


class FallbackStore(SubmittingStore):
    """See `mxpolicy.state.store.Store`; no method raises for the store's troubles.

    A method returns `Operation.undone` when the store is busy, or late. The journal and
    the rest are left separately: a damaged file of hosts does not harm the journal.

    Args:
        store: The real one; None when there is none from the start.
        tell: Takes one line when the store is left, when it is back, and when it is
            late. A line is not told again until it is back, or it was not due for
            `QUIET` seconds.
        memory: What takes over.
        prevails: Given a row of the memory, and the row in the store that is back, says
            whether the first replaces the second. By default none does.
        call_later: As the event loop's; by default that.

    Attributes:
        patience: Seconds for each operation (`patient`); None for the allowance.
        allowance: The time for all operations without patience.
    """

    def __init__(
        self,
        store: Store | None,
        tell: Callable[[str], None],
        memory: MemoryStore | None = None,
        *,
        prevails: Prevails = never,
        call_later: CallLater | None = None,
    ) -> None:
        self._store = store
        self._tell_all = tell
        self._last_due: dict[str, float] = {}  # each line, on the loop's clock
        self._memory = memory or MemoryStore()
        self._prevails = prevails
        self._call_later = call_later
        self.patience: float | None = None
        self.allowance = Allowance()
        self._journal = _Room(JOURNAL, is_left=store is None)
        self._rest = _Room("", is_left=store is None)

    @property
    def is_memory_only(self) -> bool:
        """Whether anything that should outlive this process does not now."""
        return self._journal.is_left or self._rest.is_left

    def is_kept(self, key: str) -> bool:
        """See `Store.is_kept`."""
        return not self._room_of(key).is_left

    def patient(self, seconds: float) -> Store:
        """See `Store.patient`."""
        other = copy(self)
        other.patience = max(0.0, seconds)
        return other

    def submit(
        self, operation: Operation[T], told: Callable[[T | BaseException], None]
    ) -> Submitted:
        """See `Store.submit`; `Operation.undone` is told when there is no answer.

        Args:
            operation: What is to be done.
            told: Never takes a `StoreError`.
        """
        room = self._room_of(operation.key)
        if room.is_left or self._store is None:
            return ToldSoon(self.by_memory(operation), told)
        return _Pending(self, self._store, room, operation, told)

    def by_memory(self, operation: Operation[T]) -> T:
        """Do *operation* in the memory that serves in the store's place."""
        return operation.on(self._memory.rows)

    def _room_of(self, key: str) -> _Room:
        return self._journal if is_of_journal(key) else self._rest

    async def close(self) -> None:
        """See `Store.close`."""
        for room in (self._journal, self._rest):
            if room.search is not None:
                room.search.cancel()
        if self._store is not None:
            with suppress(StoreError, TimeoutError):
                await _do_soon(self._store.close())

    def tell(self, text: str) -> None:
        """Tell *text*, unless it was told not long ago."""
        now = asyncio.get_running_loop().time()
        last = self._last_due.get(text, -inf)
        self._last_due[text] = now
        if now - last > QUIET:
            self._tell_all(text)

    # -- leaving, and coming back ---------------------------------------------------

    def leave(self, room: _Room, store: Store, why: str) -> None:
        """Let memory serve in place of *room*, and look for *store*."""
        if room.is_left:
            return  # another operation was faster to notice
        room.is_left = True
        self.tell(f"nothing outlives this process: {why}")
        # After a short return, the pauses go on growing.
        if asyncio.get_running_loop().time() - room.back_at > LAST_LOOK:
            room.pause = FIRST_LOOK
        self._look_later(room, store)

    def _look_later(self, room: _Room, store: Store) -> None:
        def look() -> None:
            room.search = asyncio.create_task(self._look_for(room, store))

        call_later = self._call_later or asyncio.get_running_loop().call_later
        room.search = call_later(room.pause, look)
        room.pause = min(2 * room.pause, LAST_LOOK)

    async def _look_for(self, room: _Room, store: Store) -> None:
        """Use *store* again if it takes a row; else look later."""
        try:
            soon = time.time() + LAST_LOOK
            await _do_soon(store.put(f"{room.name}probe", b"", soon))
            replayed = await self._replay(room, store)
        except (StoreError, TimeoutError):
            self._look_later(room, store)
            return
        for key in replayed:
            self._memory.rows.delete(key, None)
        room.is_left = False
        room.back_at = asyncio.get_running_loop().time()
        self._last_due.clear()
        what = "the journal" if room.name else "what is remembered"
        self.tell(f"{what} outlives this process again")

    async def _replay(self, room: _Room, store: Store) -> set[str]:
        """Write what was learned meanwhile; return the keys of all rows in memory.

        Rows learned during the replay are replayed too.
        """
        seen: dict[str, bytes] = {}
        while rows := [
            row
            for row in self._memory.rows.scan("")
            if self._room_of(row.key) is room and seen.get(row.key) != row.value
        ]:
            for row in rows:
                found = await _do_soon(store.scan(row.key))
                there = next((one for one in found if one.key == row.key), None)
                old = there.value if there else None
                new = row.value, row.expires, row.weight
                if not self._prevails(row, there) or await _do_soon(
                    store.replace(row.key, old, *new)
                ):
                    seen[row.key] = row.value
        return set(seen)


class _Pending(Submitted):
    """An operation of a fallback store that the real one has been given.

    Args:
        fallback: The store that never fails.
        store: The real one.
        room: The part of it that has the row.
        operation: What is to be done.
        told: Takes the result.
    """

    __slots__ = (
        *("_at_store", "_fallback", "_loop", "_operation"),
        *("_room", "_store", "_timer", "_told"),
    )

    def __init__(
        self,
        fallback: FallbackStore,
        store: Store,
        room: _Room,
        operation: Operation[T],
        told: Callable[[T | BaseException], None],
    ) -> None:
        self._fallback = fallback
        self._store = store
        self._room = room
        self._operation: Operation[Any] = operation
        self._told: Callable[[Any], None] | None = told
        self._loop = asyncio.get_running_loop()
        seconds = fallback.patience
        if seconds is None:
            seconds = fallback.allowance.begin(self._loop.time())
        self._timer = self._loop.call_later(seconds, self._be_late)
        self._at_store: Submitted | asyncio.Handle
        self._ask()

    def give_up(self) -> None:
        if self._told is not None:
            self._end()

    def _ask(self) -> None:
        self._at_store = self._store.submit(self._operation, self._hear)

    def _hear(self, result: Any) -> None:
        if isinstance(result, StoreBusy) and self._fallback.patience is not None:
            self._at_store = self._loop.call_later(_RETRY, self._ask)
        elif isinstance(result, StoreBusy):
            self._end()(self._operation.undone)
        elif isinstance(result, StoreError):
            told = self._end()
            self._fallback.leave(self._room, self._store, str(result))
            told(self._fallback.by_memory(self._operation))
        else:
            self._end()(result)

    def _be_late(self) -> None:
        self._end()(self._operation.undone)
        self._fallback.tell("no answer from the store in time: it is asked again later")

    def _end(self) -> Callable[[Any], None]:
        """Stop waiting, and return what takes the result."""
        told, self._told = self._told, None
        assert told is not None, "it is told once"
        if self._fallback.patience is None:
            self._fallback.allowance.end(self._loop.time())
        self._timer.cancel()
        if isinstance(self._at_store, Submitted):
            self._at_store.give_up()
        else:
            self._at_store.cancel()
        return told


async def _do_soon(work: Awaitable[T]) -> T:
    async with asyncio.timeout(BOUND):
        return await work
