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

from mxpolicy.delivery.journal import NO_PAST, Past
from mxpolicy.delivery.settlement import RecipientState
from mxpolicy.errors import LocalTrouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mxpolicy.delivery.entries import Entries
    from mxpolicy.delivery.known_entry import Meaning
    from mxpolicy.delivery.settlement import Settlement

__all__ = ["Claims", "TakenOver"]

# Seconds between two looks at what another process is doing.
_LOOK_AGAIN = 0.25


class TakenOver(LocalTrouble):
    """Another process has the message; the final dot was not sent."""


class Claims:
    """The claims of one message, and its notes before the dot.

    Args:
        entries: The journal's entries of the message. Other deliveries wait for their
            owner until the outcomes are written, late ones included.
        settlement: The message's recipients; told what the journal knows of them.
        tell: Given what goes wrong in the background: a bug of ours.
    """

    def __init__(
        self,
        entries: Entries,
        settlement: Settlement,
        tell: Callable[[Exception], None],
    ) -> None:
        self._entries = entries
        self._settlement = settlement
        self._tell = tell

    def has_memory(self) -> bool:
        """Return whether what is noted now is known to the next attempt."""
        return self._entries.has_memory()

    # -- before the delivery ------------------------------------------------

    async def claim(self, numbers: Iterable[int]) -> None:
        """Claim what no process has, and tell the settlement the state of each."""
        if self._entries.are_claimed_here:
            await self._claim_in_memory(numbers)
            return
        for number in numbers:
            # Nearly none has an entry. This needs no look before it, as the store writes
            # only where there is none.
            if number in self._entries and await self._entries.claim(
                number, None, NO_PAST
            ):
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

    def claim_at_once(self, numbers: Iterable[int]) -> bool:
        """Return whether no other delivery of this process has any of *numbers*.

        Then none gets them before this one has ended. What other processes do, and what
        was before, shows when the dot is recorded.
        """
        return all(self._entries.claim_here(number) for number in numbers)

    async def _claim_known(self, number: int) -> None:
        if self._entries.are_claimed_here:
            await self._claim_in_memory([number])
        elif number in self._entries:
            self._be_told(number, await self._claim_in_store(number))
        else:
            self._settlement.claimed(number, NO_PAST)

    async def _claim_in_store(self, number: int) -> Meaning:
        while True:
            found, there = await self._entries.look(number)
            if (
                not isinstance(found, Past)
                or await self._entries.claim(number, there, found)
                or not await self._entries.goes_on()
            ):
                # Where the store does not answer, it is as if there were none.
                return found

    async def _claim_in_memory(self, numbers: Iterable[int]) -> None:
        """Claim for this process only, and read once what the store has of all."""
        ours = {number: self._entries.claim_here(number) for number in numbers}
        known = [
            one for one, is_ours in ours.items() if is_ours and one in self._entries
        ]
        found = await self._entries.take(known)
        for number, is_ours in ours.items():
            what = found.get(number, NO_PAST) if is_ours else None
            if is_ours and not isinstance(what, Past):
                self._entries.release(number)
            self._be_told(number, what)

    def _be_told(self, number: int, found: Meaning) -> None:
        """Tell the settlement what `journal.meaning` says of a recipient."""
        match found:
            case Past() as past:
                self._settlement.claimed(number, past)
            case None:
                self._settlement.busy(number)
            case outcome:
                self._settlement.settle(number, outcome)

    # -- before the dot -------------------------------------------------------

    async def dot_is_next(self, relay: str, numbers: Iterable[int]) -> None:
        """Write that *relay* is about to see the final dot.

        Each entry is replaced only if it is still the one that we know. So of several
        deliveries of one message, one sends its dot. All are replaced, or none.

        Raises:
            TakenOver: Another delivery has the message, or has delivered it.
        """
        pasts = {number: self._settlement[number].past for number in numbers}
        notes = self._entries.dots(relay, pasts)
        there = self._entries.held(notes)
        while notes and not await self._entries.write_dots(there, notes):
            there = await self._what_is_there(notes)
            if there == notes:
                self._entries.are_written(notes)
                break  # though the store had not said so
            if not await self._entries.goes_on():
                break
        self._entries.dot_may_be_out()

    async def _what_is_there(
        self, notes: Mapping[int, bytes]
    ) -> dict[int, bytes | None]:
        """Return the entries that are there, where *notes* are to be.

        Raises:
            TakenOver: One of them says that another delivery has the message.
        """
        there = {}
        for number, note in notes.items():
            found, there[number] = await self._entries.look(number)
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
        notes = self._entries.dots(relay, dict.fromkeys(numbers, NO_PAST))
        if not notes:
            told(True)
            return

        def answered(done: list[bool] | BaseException) -> None:
            is_recorded = not isinstance(done, BaseException) and all(done)
            if isinstance(done, Exception):
                self._tell(done)
            told(is_recorded)

        self._entries.record_dots(notes, answered)
