"""The journal at work: claims before a delivery, what was settled as it goes.

The shell of `mxpolicy.delivery.journal`, which says what an entry means. A `Claims`
is one call of the engine: its recipients, by index, each with an entry of its own.

Nothing here makes a delivery fail. What cannot be read or written is not there, and
the message goes out as it would from a mail server without a journal. There is one
exception: a delivery that finds its message taken over by another process does not
send the final dot.

A disk may be slow, and only the journal prevents a second copy. So it is asked again,
for longer after a final dot than before (`_Patience`); only then it counts as away.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

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
from mxpolicy.delivery.writer import Writer
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Deferred, Delivered
from mxpolicy.state.store import HEAVY, LIGHT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from mxpolicy.delivery.journal import Owner, Past
    from mxpolicy.outcome import Outcome
    from mxpolicy.state.store import Store

T = TypeVar("T")

__all__ = ["KEPT", "KEPT_IN_PART", "Claim", "Claims", "TakenOver"]

# Seconds. A message that every recipient has is asked for again only if our answer was
# lost: Postfix and Exim come back within hours.
KEPT = 24 * 3600.0
# One that was deferred or refused for others comes back as long as the mail server keeps
# it, which may have made a deferral of the refusal: five days by default
# (maximal_queue_lifetime; Exim's usual retry rule gives up after four).
KEPT_IN_PART = 7 * 24 * 3600.0

# Seconds past the deadline that a claim is good for: to say what became of it.
_SLACK = 60.0
# Seconds between two looks at what another process is doing.
_LOOK_AGAIN = 0.25

# Seconds that one visit to the store is worth before a final dot, and once there was
# one: nothing else can prevent a second copy then.
_VISIT, _VISIT_AFTER_DOT = 10.0, 60.0
# The same for all visits of a call, which has a deadline.
_ALL, _ALL_AFTER_DOT = 30.0, 60.0
# What a visit is worth while the last one has had no answer.
_HARDLY = 1.0
# Seconds until the next try when somebody else has changed what we were to change.
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
        tell: Given what goes wrong in the background: a bug of ours.
        utc: Seconds since the epoch.
        owner: Returns which process we are.
        lives: Whether the process of an entry may still be at work.
    """

    def __init__(
        self,
        store: Store,
        keys: Mapping[int, str],
        deadline: float,
        tell: Callable[[Exception], None],
        utc: Callable[[], float] = time.time,
        *,
        owner: Callable[[], Owner] = myself,
        lives: Callable[[Owner], bool] = is_alive,
    ) -> None:
        self._store = store
        self._keys = keys
        self._utc = utc
        self._until = utc() + deadline + _SLACK
        self._make_owner = owner
        self._lives = lives
        self._me: Owner | None = None
        self._before_dot = _Patience(_VISIT, min(_ALL, deadline / 3))
        self._after_dot = _Patience(_VISIT_AFTER_DOT, _ALL_AFTER_DOT)
        self._at_end = self._before_dot
        self._held: dict[int, bytes] = {}  # what we have written last
        self._past: dict[int, Past] = {}
        self._settled: dict[int, Entry] = {}
        self._earlier: set[int] = set()  # of those, the ones that were so before
        self._writer = Writer(tell)

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
        """Return {relay: how often it may have got the message already}."""
        return self._past.get(index, NO_PAST).doubts

    def has_memory(self) -> bool:
        """Return False when what is noted is lost with this process."""
        return not self._store.is_memory_only

    def waits(self, index: int) -> Mapping[tuple[str, str], float]:
        """Return what earlier attempts waited for in vain; see `journal.Past.waits`."""
        return self._past.get(index, NO_PAST).waits

    def note_doubt(self, indices: Iterable[int], relay: str) -> None:
        """*relay* saw the final dot for these recipients, and has not answered it.

        It is written with what is written next for each of them.
        """
        for index in indices:
            self._past[index] = self._past.get(index, NO_PAST).doubted(relay)

    def note_wait(
        self, indices: Iterable[int], relay: str, awaited: str, seconds: float
    ) -> None:
        """*relay* was waited for in vain, for so many *seconds* more.

        The words are as in `journal.Past.waits`. It is written with what is written next
        for each recipient, if that is deferred.
        """
        for index in indices:
            past = self._past.get(index, NO_PAST)
            self._past[index] = past.waited(relay, awaited, seconds)

    async def _claim_one(self, index: int) -> Claimed | Busy | Settled:
        if index not in self._keys:
            return Claimed()
        while True:
            said, there = await self._look(index)
            if not isinstance(said, Claimed):
                return said
            self._past[index] = said.past
            mine = self._entry(State.CLAIMED, index).encode()
            if await self._change(self._before_dot, index, there, mine):
                return said
            if not await self._before_dot.goes_on():
                return said  # the store does not tell: as if there were none

    async def _look(self, index: int) -> tuple[Claimed | Busy | Settled, bytes | None]:
        """Return what is there, and what it means."""
        value = await self._get(self._before_dot, index)
        entry = Entry.decode(value) if value is not None else None
        alive = entry is not None and self._lives(entry.owner)
        said = judge(entry, self._owner(), self._utc(), alive=alive)
        if value is not None and entry is not None and isinstance(said, Settled):
            self._settled[index], self._held[index] = entry, value
            self._earlier.add(index)
        return said, value

    def _entry(self, state: State, index: int, relay: str = "") -> Entry:
        past = self._past.get(index, NO_PAST)
        return Entry(state, self._owner(), self._until, relay, past=past)

    def _owner(self) -> Owner:
        if self._me is None:
            self._me = self._make_owner()
        return self._me

    # -- while it goes on ---------------------------------------------------

    async def dot_is_next(self, relay: str, indices: Iterable[int]) -> None:
        """Write that *relay* is about to see the final dot.

        Raises:
            TakenOver: Our claim had run out, and another process has made one.
        """
        for index in indices:
            if index in self._keys:
                await self._write_dot(relay, index)
        self._at_end = self._after_dot

    async def _write_dot(self, relay: str, index: int) -> None:
        entry = self._entry(State.DOT_SENT, index, relay).encode()
        there = self._held.get(index)
        while not await self._change(self._before_dot, index, there, entry):
            said, there = await self._look(index)
            if there == entry:
                break  # written all the same, and nobody could tell
            if not isinstance(said, Claimed):
                raise TakenOver("another process has taken the message over")
            if not await self._before_dot.goes_on():
                break

    def settled(self, index: int, outcome: Outcome) -> None:
        """Begin to write what became of a recipient; see `finish`."""
        if index not in self._keys or index in self._settled:
            return
        entry = settled_entry(outcome)
        if entry is None:
            self._writer.do_later(lambda: self._let_go(index))
            return
        self._settled[index] = entry
        if entry.state is State.DELIVERED:
            self._writer.do_later(lambda: self._keep(index, KEPT))

    async def _keep(self, index: int, kept: float, *, durable: bool = False) -> None:
        """Write that a recipient has it: the truth, whoever has written there."""
        key, value = self._keys[index], self._settled[index].encode()
        expires = self._utc() + kept
        # Of all rows, those of who has it whole are missed least.
        weight = LIGHT if kept == KEPT else HEAVY
        await self._at_end.ask(
            self._store,
            lambda store: store.put(
                key, value, expires, weight=weight, durable=durable
            ),
        )

    async def _let_go(self, index: int) -> None:
        """Leave the recipient to the next attempt, which is told what this one has met."""
        entry = deferred_entry(self._past.get(index, NO_PAST))
        if entry is not None:
            await self._put_in_place(index, entry)
        else:
            await self._drop(index)

    async def _put_in_place(self, index: int, entry: Entry) -> None:
        """Write *entry* in the place of what is ours; what is another's stays."""
        patience, value = self._at_end, entry.encode()
        there = self._held.get(index)
        while not await self._change(patience, index, there, value):
            there = await self._get(patience, index)
            if there == value or not self._is_ours(index, there):
                break
            if not await patience.goes_on():
                break

    async def _drop(self, index: int) -> None:
        """Forget what is ours; what is another's stays."""
        patience, key = self._at_end, self._keys[index]
        there = await self._get(patience, index)
        if there is not None and self._is_ours(index, there):
            await patience.ask(self._store, lambda store: store.delete(key))
        self._held.pop(index, None)

    def _is_ours(self, index: int, value: bytes | None) -> bool:
        """Whether we may write there: a write of ours may have come late."""
        if value is None or value == self._held.get(index):
            return True
        entry = Entry.decode(value)
        return entry is None or entry.owner == self._owner()

    async def _get(self, patience: _Patience, index: int) -> bytes | None:
        key = self._keys[index]
        return await patience.ask(self._store, lambda store: store.get(key))

    async def _change(
        self, patience: _Patience, index: int, old: bytes | None, new: bytes
    ) -> bool:
        """Put *new* in the place of *old*; False too when nobody can tell."""
        key, expires = self._keys[index], self._utc() + KEPT_IN_PART

        async def change(store: Store) -> bool:
            if old is None:
                return await store.add(key, new, expires, weight=HEAVY)
            return await store.replace(key, old, new, expires, weight=HEAVY)

        done = await patience.ask(self._store, change)
        if done:
            self._held[index] = new
        return done

    # -- the end --------------------------------------------------------------

    async def finish(self, outcomes: Iterable[Outcome]) -> None:
        """Wait for what is to be written.

        A refusal is kept only while others are deferred. When all is said, the mail
        server may have made a deferral of it, and then the host is to be asked again;
        but nobody gets the message twice for that.

        Args:
            outcomes: Of all recipients. Where not all have the message, what was
                settled must outlive all that the mail server will try, and a loss
                of power.
        """
        await self._writer.wait()
        everybody = list(outcomes)
        is_deferred = any(isinstance(one, Deferred) for one in everybody)
        for index, entry in self._settled.items():
            if entry.state is State.REFUSED:
                await (
                    self._put_in_place(index, entry)
                    if is_deferred
                    else self._drop(index)
                )
        delivered = [
            index
            for index, entry in self._settled.items()
            if entry.state is State.DELIVERED
        ]
        if all(isinstance(one, Delivered) for one in everybody):
            for index in self._earlier.intersection(delivered):
                await self._keep(index, KEPT)
            return
        for index in delivered:
            # What is durable takes with it all that was written before.
            await self._keep(index, KEPT_IN_PART, durable=index == delivered[-1])


class _Patience:
    """How long a call waits for its store: for one visit, and for all of them.

    Args:
        visit: Seconds for one visit, while the last one had an answer in its time.
        left: Seconds for all.
    """

    def __init__(self, visit: float, left: float) -> None:
        self._visit = visit
        self._left = left
        self._was_answered = True

    async def ask(self, store: Store, question: Callable[[Store], Awaitable[T]]) -> T:
        clock = asyncio.get_running_loop().time
        worth = self._visit if self._was_answered else _HARDLY
        began, worth = clock(), min(worth, self._left)
        try:
            return await question(store.patient(worth))
        finally:
            spent = clock() - began
            self._was_answered = spent < worth
            self._left = max(0.0, self._left - spent)

    async def goes_on(self) -> bool:
        """Wait a moment, and return True; False when the store does not tell."""
        if self._was_answered:
            await asyncio.sleep(_RETRY)
        return self._was_answered
