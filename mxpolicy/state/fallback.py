"""A store that is never away: while the real one fails, this process's memory serves.

Mail does not wait for what is only of use. Whatever the store does, no method raises,
and a process waits for all of its questions together `BOUND` seconds (as much again
within `RENEWED`). A question on which a second copy or a bounce may depend is asked of
`FallbackStore.patient`, and has a time of its own.

An operation that had no answer in time counts as perhaps done. The store is asked
again the next time. It does one thing after the other, so a later read shows what came
of it.

A store that says it is broken is left, and told. One task looks for it, after
`FIRST_LOOK` seconds and then less and less often. When it takes a row again, what was
learned meanwhile is written there, before anything is read from it.
"""

from __future__ import annotations

import asyncio
import copy
import time
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.change import New, compare_and_set
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import (
    JOURNAL,
    Store,
    StoreAbsent,
    StoreBusy,
    is_of_journal,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from mxpolicy.state.store import Operation, Stored

    CallLater = Callable[[float, Callable[[], None]], asyncio.Handle]
    Prevails = Callable[[Stored, Stored | None], bool]

__all__ = [
    "BOUND",
    "READING_BOUND",
    "Allowance",
    "FallbackStore",
    "ReadingStore",
    "never",
]

# Seconds. A healthy disk needs one thousandth; the whole price of a dead one.
BOUND = 1.0
# Seconds after which as much may be waited for again: a process may live long.
RENEWED = 60.0
# Seconds that a wait may last without being counted: a busy processor's, no disk's.
FREE = 0.05

# Seconds that a process which only looks waits for one answer. Short, since it waits for
# DNS too.
READING_BOUND = 0.5

# Seconds until a store that was left is looked for, twice as many each time, and at most.
FIRST_LOOK, LAST_LOOK = 1.0, 60.0

# Seconds between two tries of a patient question, while others keep the store busy.
_RETRY = 0.1

T = TypeVar("T")


class Allowance:
    """The time that may be spent on waiting, in all: `BOUND`, renewed within `RENEWED`.

    Waits at the same time are counted as one. Times are seconds, monotonic.
    """

    def __init__(self) -> None:
        self._left = BOUND
        self._waiting = 0
        self._since = 0.0  # when the first of these waits began; or the last ended

    def begin(self, now: float) -> float:
        """Return how long a wait that begins now may last."""
        if not self._waiting:
            renewed = (now - self._since) * BOUND / RENEWED if self._since else 0.0
            self._left = min(BOUND, self._left + renewed)
            self._since = now
        self._waiting += 1
        left = self._left - self._counted(now)
        return left + FREE if left > 0 else 0.0

    def end(self, now: float) -> None:
        """Count a wait that ends now."""
        self._waiting -= 1
        if not self._waiting:
            self._left = max(0.0, self._left - self._counted(now))
            self._since = now

    def _counted(self, now: float) -> float:
        return max(0.0, now - self._since - FREE)


class _Room:
    """A part of the store that is left, and comes back, by itself.

    Attributes:
        has: Tells its keys.
        is_left: Memory serves in its place.
        pause: Seconds until it is looked for, when it is left.
        back_at: When it came back, on the loop's clock.
        search: Looks for it, or will.
    """

    def __init__(self, name: str, has: Callable[[str], bool], *, is_left: bool) -> None:
        self.name = name
        self.has = has
        self.is_left = is_left
        self.pause = FIRST_LOOK
        self.back_at = -inf
        self.search: asyncio.Handle | asyncio.Task[None] | None = None


def never(ours: Stored, there: Stored | None) -> bool:
    """Return False: no row is written into a store that is back."""
    return False


class FallbackStore(Store):
    """See `mxpolicy.state.store.Store`; no method raises for the store's troubles.

    A store that others keep busy, or that does not answer in time, gives no answer: then
    a method returns `Operation.undone`. The journal and the rest are left separately: a file of hosts that
    is damaged takes nothing from the journal in its own.

    Args:
        store: The real one; None when there is none from the start.
        tell: Given one line when the store is left, when it is back, and when it is
            late; never the same line twice while nothing has come back.
        memory: What takes over.
        prevails: Whether a row of the memory, the first, is written into a store that is
            back, given what is there. By default none is.
        call_later: As the event loop's; by default that.
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
        self._told: set[str] = set()
        self._memory = memory or MemoryStore()
        self._prevails = prevails
        self._call_later = call_later
        self._allowance = Allowance()
        self._patience: float | None = None
        self._rooms = (
            _Room(JOURNAL, is_of_journal, is_left=store is None),
            _Room("", lambda key: not is_of_journal(key), is_left=store is None),
        )

    @property
    def is_memory_only(self) -> bool:
        """See `Store.is_memory_only`."""
        return any(room.is_left for room in self._rooms)

    def patient(self, seconds: float) -> Self:
        """See `Store.patient`."""
        other = copy.copy(self)
        other._patience = max(0.0, seconds)
        return other

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`; `Operation.undone` when there is no answer."""
        room = self._rooms[0 if is_of_journal(operation.key) else 1]
        if room.is_left or self._store is None:
            return await self._memory.do(operation)
        try:
            if self._patience is not None:
                async with asyncio.timeout(self._patience):
                    return await _until_done(self._store, operation)
            return await self._do_within_allowance(self._store, operation)
        except StoreBusy:
            return operation.undone
        except TimeoutError:
            self._tell("no answer from the store in time: it is asked again later")
            return operation.undone
        except StoreError as error:
            self._leave(room, self._store, str(error))
        return await self._memory.do(operation)

    async def close(self) -> None:
        """See `Store.close`."""
        for room in self._rooms:
            if room.search is not None:
                room.search.cancel()
        if self._store is not None:
            with suppress(StoreError, TimeoutError):
                await _do_soon(self._store.close())

    async def _do_within_allowance(self, store: Store, operation: Operation[T]) -> T:
        clock = asyncio.get_running_loop().time
        seconds = self._allowance.begin(clock())
        try:
            async with asyncio.timeout(seconds):
                return await store.do(operation)
        finally:
            self._allowance.end(clock())

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell_all(text)

    # -- leaving, and coming back ---------------------------------------------------

    def _leave(self, room: _Room, store: Store, why: str) -> None:
        if room.is_left:
            return  # another question found it out before
        room.is_left = True
        self._tell(f"nothing outlives this process: {why}")
        # One that fails again and again is not looked for each second.
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
            self._memory.rows.delete(key)
        room.is_left = False
        room.back_at = asyncio.get_running_loop().time()
        self._told.clear()
        what = "the journal" if room.name else "what is remembered"
        self._tell(f"{what} outlives this process again")

    async def _replay(self, room: _Room, store: Store) -> set[str]:
        """Write what was learned meanwhile; return the keys of all rows in memory.

        What is learned during the replay belongs to it.
        """
        seen: dict[str, bytes] = {}
        while rows := [
            row
            for row in self._memory.rows.scan("")
            if room.has(row.key) and seen.get(row.key) != row.value
        ]:
            for row in rows:
                found = await _do_soon(store.scan(row.key))
                there = next((one for one in found if one.key == row.key), None)
                old = there.value if there else None
                new = New(row.value, row.expires, row.weight)
                if not self._prevails(row, there) or await _do_soon(
                    compare_and_set(store, row.key, old, new)
                ):
                    seen[row.key] = row.value
        return set(seen)


async def _do_soon(work: Awaitable[T]) -> T:
    async with asyncio.timeout(BOUND):
        return await work


async def _until_done(store: Store, operation: Operation[T]) -> T:
    while True:
        try:
            return await store.do(operation)
        except StoreBusy:
            await asyncio.sleep(_RETRY)


class ReadingStore(Store):
    """For a process that only looks, and may live long; no method raises or writes.

    A store that is not there, or cannot be used, means that nothing is remembered, for
    as long as it is so. An answer is waited for `READING_BOUND` seconds. While one that
    was waited for in vain is still outstanding, no other question is asked.

    Args:
        store: The real one.
        tell: Given one line when what is remembered cannot be read, once.
    """

    def __init__(self, store: Store, tell: Callable[[str], None]) -> None:
        self._store = store
        self._tell = tell
        self._has_told = False
        self._late: asyncio.Future[Any] | None = None

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`; `Operation.undone` when it writes, or there is no answer."""
        hangs = self._late is not None and not self._late.done()
        if hangs or not operation.is_read:
            return operation.undone
        question = asyncio.ensure_future(self._answer(operation))
        await asyncio.wait([question], timeout=READING_BOUND)
        if question.done():
            return question.result()
        self._cannot_read(f"no answer from the disk within {READING_BOUND:g}s")
        if self._late is None or self._late.done():
            self._late = question  # its answer shows that the disk is back
        else:
            question.cancel()
        return operation.undone

    async def _answer(self, operation: Operation[T]) -> T:
        try:
            return await self._store.do(operation)
        except (StoreAbsent, StoreBusy):
            pass  # nothing is remembered yet, or not to be had now
        except Exception as error:
            # Whatever it is, a thread or a module that cannot be had, too.
            self._cannot_read(str(error) or type(error).__name__)
        return operation.undone

    def _cannot_read(self, why: str) -> None:
        if not self._has_told:
            self._has_told = True
            self._tell(f"what is remembered cannot be read: {why}")
