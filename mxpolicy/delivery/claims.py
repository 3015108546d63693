"""Whose a recipient is: claims before the delivery, and the note before the final dot.

`mxpolicy.delivery.journal` says what an entry means, and
`mxpolicy.delivery.outcome_notes` notes what comes of it all.

1. Each recipient is claimed (`Claims.claim`). A process for one message writes its claims
   to the store, where others see them. A process that delivers many keeps them in memory
   (`Calls.claim`), and reads what the store has.
2. What the entry says is told to the `Settlement`: an outcome of before, another delivery
   that is under way, or the past of a recipient that is ours.
3. Right before the final dot a note replaces the entry (`Claims.dot_is_next`).

Two deliveries of one message may be under way, each in a process of its own. The note
replaces only the entry that was read: one of them gets it written, and the other one
sends no dot.

Nothing here makes a delivery fail. Where an entry cannot be read or written, the message
goes out as it would without a journal. One exception: a delivery that finds its message
taken over by another process does not send the final dot.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mxpolicy.delivery.entries import ANSWER
from mxpolicy.delivery.journal import NO_PAST, Entry, EntryState, Past, meaning
from mxpolicy.delivery.settlement import RecipientState
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Bounced, Deferred, Delivered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.entries import Entries
    from mxpolicy.delivery.settlement import Settlement
    from mxpolicy.outcome import Outcome

__all__ = ["Claims", "TakenOver"]

# Seconds between two looks at what another process is doing.
_LOOK_AGAIN = 0.25


class TakenOver(LocalTrouble):
    """Another process has the message; the final dot was not sent."""


class Claims:
    """The claims of one message, and its notes before the dot.

    Args:
        context: What all messages share.
        entries: The journal's entries of the message. Other deliveries wait for their
            owner until the outcomes are written, late ones included.
        settlement: The message's recipients; told what the journal knows of them.
        tell: Given what goes wrong in the background: a bug of ours.
    """

    def __init__(
        self,
        context: Context,
        entries: Entries,
        settlement: Settlement,
        tell: Callable[[Exception], None],
    ) -> None:
        self._context = context
        self._calls = context.calls
        self._entries = entries
        self._patience = entries.before_dot
        self._settlement = settlement
        self._tell = tell
        # By recipient: a dot that is perhaps recorded, and was not sent.
        self._unsent: dict[int, bytes] = {}

    def has_memory(self) -> bool:
        """Return whether what is noted now is known to the next attempt."""
        return self._entries.has_memory()

    # -- before the delivery ------------------------------------------------

    async def claim(self, numbers: Iterable[int]) -> None:
        """Claim what no process has, and tell the settlement the state of each."""
        if self._calls.keeps_claims:
            await self._claim_in_memory(numbers)
            return
        for number in numbers:
            if await self._claim_new(number):
                self._settlement.claimed(number, NO_PAST)
            else:
                await self._claim_known(number)

    async def claim_later(self, numbers: Iterable[int], seconds: float) -> None:
        """Claim what others are busy with, waiting *seconds* for them at most.

        Returns as soon as one of *numbers* is ours, or no other process has any.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        busy = list(numbers)
        while busy and loop.time() < end:
            await asyncio.sleep(min(_LOOK_AGAIN, max(0.0, end - loop.time())))
            for number in busy:
                await self._claim_known(number)
            if self._settlement.those(RecipientState.OPEN, busy):
                break
            busy = self._settlement.those(RecipientState.ELSEWHERE, busy)

    async def _claim_new(self, number: int) -> bool:
        """Claim a recipient that has no entry, as nearly all; return whether it is done.

        This needs no look before it. The store writes only where there is no entry.
        """
        if number not in self._entries.keys:
            return False
        mine = self._entries.new(EntryState.CLAIMED, NO_PAST).encode()
        return await self._entries.change(self._patience, number, None, mine)

    async def _claim_in_memory(self, numbers: Iterable[int]) -> None:
        """Claim for this process only, and read once what the store has of all."""
        ours = {number: self._claim_here(number) for number in numbers}
        keys = [
            self._entries.keys[number]
            for number, is_ours in ours.items()
            if is_ours and number in self._entries.keys
        ]
        rows = await self._patience.ask(
            self._entries.store, lambda store: store.get_many(keys)
        )
        for number, is_ours in ours.items():
            value = rows.get(self._entries.keys.get(number, ""))
            self._be_told(number, self._take(number, value) if is_ours else None)

    def _claim_here(self, number: int) -> bool:
        """Return whether no other delivery of this process has the recipient."""
        if number not in self._entries.keys:
            return True
        now = self._context.utc()
        return self._calls.claim(
            self._entries.keys[number], self._entries.me, self._entries.until, now
        )

    def claim_at_once(self, numbers: Iterable[int]) -> bool:
        """Return whether no other delivery of this process has any of *numbers*.

        Then none gets them before this one has ended. What other processes do, and what
        was before, shows when the dot is recorded.
        """
        return all(self._claim_here(number) for number in numbers)

    async def _claim_known(self, number: int) -> None:
        self._be_told(number, await self._claim_one(number))

    def _be_told(self, number: int, found: Past | Outcome | None) -> None:
        """Tell the settlement what `journal.meaning` says of a recipient."""
        match found:
            case Past() as past:
                self._settlement.claimed(number, past)
            case None:
                self._settlement.busy(number)
            case outcome:
                self._settlement.settle(number, outcome)

    async def _claim_one(self, number: int) -> Past | Outcome | None:
        """Return what `journal.meaning` does."""
        if number not in self._entries.keys:
            return NO_PAST
        if self._calls.keeps_claims:
            if not self._claim_here(number):
                return None
            return self._take(number, await self._entries.get(self._patience, number))
        while True:
            found, there = await self._look(number)
            if not isinstance(found, Past):
                return found
            mine = self._entries.new(EntryState.CLAIMED, found).encode()
            if await self._entries.change(self._patience, number, there, mine):
                return found
            if not await self._patience.goes_on():
                return found  # the store does not answer: as if there were none

    def _take(self, number: int, value: bytes | None) -> Past | Outcome | None:
        """Return what the entry means. The claim is kept where we may deliver."""
        found = self._meaning(number, value)
        if not isinstance(found, Past):
            self._entries.release(number)
        elif value is not None:
            self._entries.held[number] = (
                value  # the note before the dot is to replace it
            )
        return found

    async def _look(self, number: int) -> tuple[Past | Outcome | None, bytes | None]:
        """Return what the entry means, and the entry as the store has it."""
        value = await self._entries.get(self._patience, number)
        return self._meaning(number, value), value

    def _meaning(self, number: int, value: bytes | None) -> Past | Outcome | None:
        if value is not None and value == self._unsent.get(number):
            return NO_PAST
        entry = Entry.decode(value) if value is not None else None
        alive = entry is not None and self._calls.lives(entry.owner)
        found = meaning(entry, self._entries.me, self._context.utc(), alive=alive)
        if value is not None and isinstance(found, Delivered | Bounced | Deferred):
            self._entries.held[number] = value
            self._entries.earlier.add(number)
        return found

    # -- before the dot -------------------------------------------------------

    async def dot_is_next(self, relay: str, numbers: Iterable[int]) -> None:
        """Write that *relay* is about to see the final dot.

        Each entry is replaced only if it is still the one that we know. So of several
        deliveries of one message, one sends its dot. All are replaced, or none.

        Raises:
            TakenOver: Another delivery has the message, or has delivered it.
        """
        now = self._context.utc()
        notes: dict[int, bytes] = {}
        of_key: dict[str, bytes] = {}
        for number in numbers:
            if number in self._entries.keys:
                past = self._settlement[number].past
                entry = self._entries.new(EntryState.DOT_SENT, past, relay)
                # One that is named twice has one entry.
                one = of_key.setdefault(self._entries.keys[number], entry.encode())
                notes[number] = one
                self._entries.dots[number] = now
        known = {number: self._entries.held.get(number) for number in notes}
        while notes and not await self._write_dots(known, notes):
            known = await self._what_is_there(known, notes)
            if known == notes:
                self._entries.held.update(notes)
                break  # written, though the store had not said so
            if not await self._patience.goes_on():
                break
        self._entries.dot_may_be_out()

    async def _write_dots(
        self, known: Mapping[int, bytes | None], notes: Mapping[int, bytes]
    ) -> bool:
        rows = self._entries.replacements(known, notes)
        self._entries.noted.update(notes)
        durable = self._context.options.journal.durable
        done = await self._patience.ask(
            self._entries.store, lambda store: store.replace_all(rows, durable=durable)
        )
        if all(done):
            self._entries.held.update(notes)
        return all(done)

    async def _what_is_there(
        self, known: Mapping[int, bytes | None], notes: Mapping[int, bytes]
    ) -> dict[int, bytes | None]:
        """Return the entries that are there, where *notes* are to be.

        Raises:
            TakenOver: One of them says that another delivery has the message.
        """
        there = dict(known)
        for number, note in notes.items():
            found, there[number] = await self._look(number)
            if there[number] != note and not isinstance(found, Past):
                raise TakenOver("another process has taken the message over")
        return there

    def record_dot(
        self, relay: str, numbers: Sequence[int], told: Callable[[bool], None]
    ) -> None:
        """Begin to write the same where nothing is claimed: the entries are new.

        Args:
            relay: See `dot_is_next`.
            numbers: All of them.
            told: Called once, perhaps at once: whether all entries are written, and
                ours. If not, nothing must be sent. `claim` finds out what is so.
        """
        entry = self._entries.new(EntryState.DOT_SENT, NO_PAST, relay).encode()
        self._unsent = {one: entry for one in numbers if one in self._entries.keys}
        if not self._unsent:
            told(True)
            return

        now = self._context.utc()
        rows = self._entries.replacements({}, self._unsent)
        self._entries.noted.update(self._unsent)

        def answered(done: list[bool] | BaseException) -> None:
            is_recorded = not isinstance(done, BaseException) and all(done)
            if is_recorded:
                self._entries.held.update(self._unsent)
                self._entries.dots.update(dict.fromkeys(self._unsent, now))
                self._unsent = {}
                self._entries.dot_may_be_out()
            elif isinstance(done, Exception):
                self._tell(done)
            told(is_recorded)

        durable = self._context.options.journal.durable
        self._entries.store.patient(ANSWER).submit_replace(
            rows, answered, durable=durable
        )
