"""The journal at work: claims before a delivery, what was settled as it goes.

The shell of `mxpolicy.delivery.journal`, which says what an entry means. A `Claims`
is one call of the engine: its recipients, by index, each with an entry of its own.

Nothing here makes a delivery fail. What cannot be read or written is not there, and
the message goes out as it would from a mail server without a journal. The one
exception is meant: whoever finds that another process has taken a message over does
not send the final dot.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.journal import (
    NO_PAST,
    Busy,
    Claimed,
    Entry,
    Settled,
    State,
    deferred_entry,
    is_alive,
    judge,
    myself,
    settled_entry,
)
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Deferred

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from mxpolicy.delivery.journal import Owner, Past
    from mxpolicy.outcome import Outcome
    from mxpolicy.state.store import Store

__all__ = ["KEPT", "KEPT_IN_PART", "Claim", "Claims", "TakenOver"]

# Seconds. A message of which every recipient is settled is asked for again only if our
# answer was lost: Postfix and Exim come back within hours.
KEPT = 24 * 3600.0
# One that is deferred for others comes back as long as the mail server keeps it: five
# days by default (maximal_queue_lifetime; Exim's usual retry rule gives up after four).
KEPT_IN_PART = 7 * 24 * 3600.0

# Seconds past the deadline that a claim is good for: to say what became of it.
_SLACK = 60.0
# Seconds between two looks at what another process is doing.
_LOOK_AGAIN = 0.25
# Seconds for a store that is busy, in the whole call: a copy may depend on it.
_PATIENCE = 10.0
_RETRY = 0.1


class TakenOver(LocalTrouble):
    """Another process has the message; the final dot was not sent."""


class Claim(NamedTuple):
    """What became of asking for some recipients.

    Attributes:
        ours: To be delivered by us.
        settled: Earlier, with the outcome of that time.
        busy: Another process is at it.
    """

    ours: list[int]
    settled: dict[int, Outcome]
    busy: list[int]


class Claims:
    """What one delivery has claimed.

    Args:
        store: Never raises; see `mxpolicy.state.fallback`.
        keys: By recipient index, from `journal.entry_key`. Whoever has none is
            delivered without a journal.
        deadline: Seconds from now until we are done.
        utc: Seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        keys: Mapping[int, str],
        deadline: float,
        utc: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._keys = keys
        self._utc = utc
        self._until = utc() + deadline + _SLACK
        self._me: Owner | None = None
        self._patient_until: float | None = None  # on the loop's clock
        self._held: dict[int, bytes] = {}  # what we have written last
        self._past: dict[int, Past] = {}
        self._settled: dict[int, Entry] = {}
        self._queue: deque[Callable[[], Awaitable[None]]] = deque()
        self._writer: asyncio.Task[None] | None = None

    # -- before the delivery ------------------------------------------------

    async def claim(self, indices: Iterable[int]) -> Claim:
        """Claim what nobody has."""
        claim = Claim([], {}, [])
        for index in indices:
            match await self._claim_one(index):
                case Claimed():
                    claim.ours.append(index)
                case Settled(outcome):
                    claim.settled[index] = outcome
                case Busy():
                    claim.busy.append(index)
        return claim

    async def claim_later(self, indices: Iterable[int], seconds: float) -> Claim:
        """Claim what others are busy with, waiting *seconds* for them at most.

        Returns as soon as one is ours, or all are settled; ``busy`` are the others.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        claim = Claim([], {}, list(indices))
        while claim.busy and not claim.ours and loop.time() < end:
            await asyncio.sleep(min(_LOOK_AGAIN, max(0.0, end - loop.time())))
            again = await self.claim(claim.busy)
            claim = Claim(again.ours, claim.settled | again.settled, again.busy)
        return claim

    # -- what earlier attempts have left behind, and this one adds ----------------

    def doubts(self, index: int) -> Mapping[str, int]:
        """Return {host name: how often it may have got the message already}."""
        return self._past.get(index, NO_PAST).doubts

    def waits(self, index: int) -> Mapping[tuple[str, str], float]:
        """Return {(host name, phase): seconds for which it was waited for in vain}."""
        return self._past.get(index, NO_PAST).waits

    def note_doubt(self, indices: Iterable[int], host: str) -> None:
        """*host* saw the final dot for these recipients, and has not answered it.

        It is written with what is written next for each of them.
        """
        for index in indices:
            self._past[index] = self._past.get(index, NO_PAST).doubted(host)

    def note_wait(
        self, indices: Iterable[int], host: str, phase: str, seconds: float
    ) -> None:
        """*host* was waited for in vain, for so many *seconds* more in this *phase*.

        Kept for whoever is deferred; `note_doubt` says when.
        """
        for index in indices:
            past = self._past.get(index, NO_PAST)
            self._past[index] = past.waited(host, phase, seconds)

    async def _claim_one(self, index: int) -> Claimed | Busy | Settled:
        if index not in self._keys:
            return Claimed()
        key = self._keys[index]
        while True:
            said, found = await self._look(key)
            if isinstance(said, Settled) and found is not None and found.entry:
                self._settled[index] = found.entry
            if not isinstance(said, Claimed):
                return said
            self._past[index] = said.past
            mine = self._entry(State.CLAIMED, index).encode()
            if await self._change(key, found.value if found else None, mine):
                self._held[index] = mine
                return said
            if not await self._is_patient():
                return said  # the store does not tell: as if there were none

    async def _look(self, key: str) -> tuple[Claimed | Busy | Settled, _Found | None]:
        value = await self._store.get(key)
        if value is None:
            return Claimed(), None
        entry = Entry.decode(value)
        alive = entry is not None and is_alive(entry.owner)
        said = judge(entry, self._owner(), self._utc(), alive=alive)
        return said, _Found(value, entry)

    def _entry(self, state: State, index: int, relay: str = "") -> Entry:
        past = self._past.get(index, NO_PAST)
        return Entry(state, self._owner(), self._until, relay, past=past)

    def _owner(self) -> Owner:
        if self._me is None:
            self._me = myself()
        return self._me

    # -- while it goes on ---------------------------------------------------

    async def dot_is_next(self, relay: str, indices: Iterable[int]) -> None:
        """Write that *relay* is about to see the final dot.

        Raises:
            TakenOver: Our claim had run out, and another process has made one.
        """
        for index in indices:
            if index not in self._keys:
                continue
            key = self._keys[index]
            entry = self._entry(State.DOT_SENT, index, relay).encode()
            if not await self._change(key, self._held.get(index), entry):
                said, found = await self._look(key)
                if not isinstance(said, Claimed):
                    raise TakenOver("another process has taken the message over")
                await self._change(key, found.value if found else None, entry)
            self._held[index] = entry

    def settled(self, index: int, outcome: Outcome) -> None:
        """Begin to write what became of a recipient; see `finish`."""
        if index not in self._keys or index in self._settled:
            return
        entry = settled_entry(outcome)
        if entry is not None:
            self._settled[index] = entry
            self._do_later(lambda: self._keep(index, entry))
            return
        self._do_later(lambda: self._let_go(index))

    async def _keep(self, index: int, entry: Entry) -> None:
        """Write the end of it, and not give up easily: a copy may depend on it."""
        key, value = self._keys[index], entry.encode()
        there = self._held.get(index)
        while not await self._change(key, there, value):
            there = await self._store.get(key)
            if there == value or (there and entry.state is not State.DELIVERED):
                break  # somebody else's, and a delivery is the only truth for all
            if not await self._is_patient():
                break
        self._held[index] = value

    async def _let_go(self, index: int) -> None:
        """Leave it to whoever comes next, who is told of what this attempt has met."""
        key, held = self._keys[index], self._held.pop(index, None)
        entry = deferred_entry(self._past.get(index, NO_PAST))
        if entry is not None:
            await self._change(key, held, entry.encode(), KEPT_IN_PART)
        elif held is not None and await self._store.get(key) == held:
            await self._store.delete(key)

    async def _change(
        self, key: str, old: bytes | None, new: bytes, kept: float = KEPT
    ) -> bool:
        expires = self._utc() + kept
        if old is None:
            return await self._store.add(key, new, expires)
        return await self._store.replace(key, old, new, expires)

    async def _is_patient(self) -> bool:
        """Wait a moment; False when a busy store has had all the time it gets."""
        now = asyncio.get_running_loop().time()
        if self._patient_until is None:
            self._patient_until = now + _PATIENCE
        await asyncio.sleep(_RETRY)
        return now < self._patient_until

    # -- the end --------------------------------------------------------------

    async def finish(self, outcomes: Iterable[Outcome]) -> None:
        """Wait for what is to be written.

        Args:
            outcomes: Of all recipients. Where some are deferred and others are not,
                what was settled must outlive all that the mail server will try,
                and a loss of power.
        """
        while writer := self._writer:
            await writer
        if not any(isinstance(one, Deferred) for one in outcomes):
            return
        last = next(reversed(self._settled), None)
        for index, entry in self._settled.items():
            expires = self._utc() + KEPT_IN_PART
            # What is durable takes with it all that was written before.
            await self._store.put(
                self._keys[index], entry.encode(), expires, durable=index == last
            )

    def _do_later(self, work: Callable[[], Awaitable[None]]) -> None:
        self._queue.append(work)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._queue:
                await self._queue.popleft()()
        finally:
            self._writer = None


class _Found(NamedTuple):
    value: bytes
    entry: Entry | None
