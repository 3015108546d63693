"""The journal at work: claims before a delivery, what was settled as it goes.

The shell of `mxpolicy.delivery.journal`, which says what an entry means. A `Claims`
is one call of the engine: its recipients, by place, each with an entry of its own.

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
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.delivery.journal import (
    Busy,
    Claimed,
    Entry,
    EntryState,
    Settled,
    deferred_entry,
    is_alive,
    judge,
    myself,
    settled_entry,
)
from mxpolicy.delivery.settlement import RecipientState
from mxpolicy.delivery.writer import Writer
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Bounced, Delivered
from mxpolicy.state.store import HEAVY, LIGHT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from mxpolicy.delivery.journal import Owner, Past
    from mxpolicy.delivery.settlement import Recipient, Settlement
    from mxpolicy.state.store import Store

T = TypeVar("T")

__all__ = ["KEPT", "KEPT_IN_PART", "Claims", "TakenOver"]

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


class Claims:
    """The journal's entries of one message.

    Args:
        store: Never raises; see `mxpolicy.state.fallback`.
        settlement: The message's recipients; told what the journal knows of them.
        keys: By a recipient's place, from `journal.entry_key`. A recipient without
            one is delivered to without a journal.
        deadline: Seconds from now until we are done.
        tell: Given what goes wrong in the background: a bug of ours.
        utc: Seconds since the epoch.
        owner: Returns which process we are.
        lives: Whether the process of an entry may still be at work.
    """

    def __init__(
        self,
        store: Store,
        settlement: Settlement,
        keys: Mapping[int, str],
        deadline: float,
        tell: Callable[[Exception], None],
        utc: Callable[[], float] = time.time,
        *,
        owner: Callable[[], Owner] = myself,
        lives: Callable[[Owner], bool] = is_alive,
    ) -> None:
        self._store = store
        self._settlement = settlement
        self._keys = keys
        self._utc = utc
        self._until = utc() + deadline + _SLACK
        self._make_owner = owner
        self._lives = lives
        self._me: Owner | None = None
        self._before_dot = _Patience(_VISIT, min(_ALL, deadline / 3))
        self._after_dot = _Patience(_VISIT_AFTER_DOT, _ALL_AFTER_DOT)
        self._at_end = self._before_dot
        self._held: dict[int, bytes] = {}  # what we have read or written last
        self._earlier: set[int] = set()  # settled by an earlier delivery
        self._writer = Writer(tell)

    def has_memory(self) -> bool:
        """Return False when what is noted is lost with this process."""
        return not self._store.is_memory_only

    # -- before the delivery ------------------------------------------------

    async def claim(self, places: Iterable[int]) -> None:
        """Claim what no process has, and tell the settlement how each of them stands."""
        for place in places:
            match await self._claim_one(place):
                case Claimed(past):
                    self._settlement.claimed(place, past)
                case Settled(outcome):
                    self._settlement.settle(place, outcome)
                case Busy():
                    self._settlement.busy(place)

    async def claim_later(self, places: Iterable[int], seconds: float) -> None:
        """Claim what others are busy with, waiting *seconds* for them at most.

        Returns as soon as one of *places* is ours, or no other process has any.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        busy = list(places)
        while busy and loop.time() < end:
            await asyncio.sleep(min(_LOOK_AGAIN, max(0.0, end - loop.time())))
            await self.claim(busy)
            if self._settlement.open(busy):
                break
            busy = self._settlement.elsewhere(busy)

    async def _claim_one(self, place: int) -> Claimed | Busy | Settled:
        if place not in self._keys:
            return Claimed()
        while True:
            said, there = await self._look(place)
            if not isinstance(said, Claimed):
                return said
            mine = self._entry(EntryState.CLAIMED, said.past).encode()
            if await self._change(self._before_dot, place, there, mine):
                return said
            if not await self._before_dot.goes_on():
                return said  # the store does not tell: as if there were none

    async def _look(self, place: int) -> tuple[Claimed | Busy | Settled, bytes | None]:
        """Return what is there, and what it means."""
        value = await self._get(self._before_dot, place)
        entry = Entry.decode(value) if value is not None else None
        alive = entry is not None and self._lives(entry.owner)
        said = judge(entry, self._owner(), self._utc(), alive=alive)
        if value is not None and isinstance(said, Settled):
            self._held[place] = value
            self._earlier.add(place)
        return said, value

    def _entry(self, state: EntryState, past: Past, relay: str = "") -> Entry:
        return Entry(state, self._owner(), self._until, relay, past=past)

    def _owner(self) -> Owner:
        if self._me is None:
            self._me = self._make_owner()
        return self._me

    # -- while it goes on ---------------------------------------------------

    async def dot_is_next(self, relay: str, places: Iterable[int]) -> None:
        """Write that *relay* is about to see the final dot.

        Raises:
            TakenOver: Our claim had run out, and another process has made one.
        """
        for place in places:
            if place in self._keys:
                await self._write_dot(relay, place)
        self._at_end = self._after_dot

    async def _write_dot(self, relay: str, place: int) -> None:
        past = self._settlement[place].past
        entry = self._entry(EntryState.DOT_SENT, past, relay).encode()
        there = self._held.get(place)
        while not await self._change(self._before_dot, place, there, entry):
            said, there = await self._look(place)
            if there == entry:
                break  # written all the same, and nobody could tell
            if not isinstance(said, Claimed):
                raise TakenOver("another process has taken the message over")
            if not await self._before_dot.goes_on():
                break

    def settled(self, recipient: Recipient) -> None:
        """Begin to write what became of *recipient*; see `finish`."""
        if recipient.place not in self._keys or recipient.place in self._earlier:
            return
        if recipient.state is RecipientState.DELIVERED:
            self._writer.do_later(lambda: self._keep(recipient, KEPT))
        elif recipient.state is RecipientState.DEFERRED:
            self._writer.do_later(lambda: self._let_go(recipient))

    async def _keep(
        self, recipient: Recipient, kept: float, *, durable: bool = False
    ) -> None:
        """Write that *recipient* has it: the truth, whatever is written there."""
        key, value = self._keys[recipient.place], self._value(recipient)
        expires = self._utc() + kept
        # An entry of a message that all recipients have is missed least.
        weight = LIGHT if kept == KEPT else HEAVY
        await self._at_end.ask(
            self._store,
            lambda store: store.put(
                key, value, expires, weight=weight, durable=durable
            ),
        )

    def _value(self, recipient: Recipient) -> bytes:
        """Return what is kept of a recipient that has the message or was refused."""
        if recipient.place in self._earlier:
            return self._held[recipient.place]
        assert isinstance(recipient.outcome, Delivered | Bounced)
        return settled_entry(recipient.outcome).encode()

    async def _let_go(self, recipient: Recipient) -> None:
        """Leave *recipient* to the next attempt, with what this one has met."""
        entry = deferred_entry(recipient.past)
        if entry is not None:
            await self._put_in_place(recipient.place, entry.encode())
        else:
            await self._drop(recipient.place)

    async def _put_in_place(self, place: int, value: bytes) -> None:
        """Write *value* in the place of what is ours; what is another's stays."""
        patience = self._at_end
        there = self._held.get(place)
        while not await self._change(patience, place, there, value):
            there = await self._get(patience, place)
            if there == value or not self._is_ours(place, there):
                break
            if not await patience.goes_on():
                break

    async def _drop(self, place: int) -> None:
        """Forget what is ours; what is another's stays."""
        patience, key = self._at_end, self._keys[place]
        there = await self._get(patience, place)
        if there is not None and self._is_ours(place, there):
            await patience.ask(self._store, lambda store: store.delete(key))
        self._held.pop(place, None)

    def _is_ours(self, place: int, value: bytes | None) -> bool:
        """Whether we may write there: a write of ours may have come late."""
        if value is None or value == self._held.get(place):
            return True
        entry = Entry.decode(value)
        return entry is None or entry.owner == self._owner()

    async def _get(self, patience: _Patience, place: int) -> bytes | None:
        key = self._keys[place]
        return await patience.ask(self._store, lambda store: store.get(key))

    async def _change(
        self, patience: _Patience, place: int, old: bytes | None, new: bytes
    ) -> bool:
        """Put *new* in the place of *old*; False too when the store gives no answer."""
        row = self._keys[place], old, new, self._utc() + KEPT_IN_PART, HEAVY
        done = await patience.ask(self._store, lambda store: store.replace(*row))
        if done:
            self._held[place] = new
        return done

    # -- the end --------------------------------------------------------------

    async def finish(self) -> None:
        """Wait for what is to be written; call it when all recipients are settled.

        A refusal is kept only while others are deferred. When all is said, the mail
        server may have made a deferral of it, and then the host is to be asked again.

        Where not all have the message, an entry must outlive all that the mail server
        will try, and a loss of power.
        """
        await self._writer.wait()
        states = [recipient.state for recipient in self._settlement]
        known = [self._settlement[place] for place in self._keys]
        for recipient in known:
            if recipient.state is RecipientState.BOUNCED:
                await self._keep_refusal(recipient, RecipientState.DEFERRED in states)
        delivered = [one for one in known if one.state is RecipientState.DELIVERED]
        if all(state is RecipientState.DELIVERED for state in states):
            for recipient in delivered:
                if recipient.place in self._earlier:
                    await self._keep(recipient, KEPT)
            return
        for recipient in delivered:
            # What is durable takes with it all that was written before.
            durable = recipient is delivered[-1]
            await self._keep(recipient, KEPT_IN_PART, durable=durable)

    async def _keep_refusal(self, recipient: Recipient, is_deferred: bool) -> None:
        if is_deferred:
            await self._put_in_place(recipient.place, self._value(recipient))
        else:
            await self._drop(recipient.place)


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
