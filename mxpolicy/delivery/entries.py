"""The journal's entries of one message, as the store has them and as we know them.

`mxpolicy.delivery.claims` and `mxpolicy.delivery.outcome_notes` share them. Each recipient
has an entry of its own (`mxpolicy.delivery.journal`). An entry is replaced only if it is
still the one that we know, so that two deliveries of one message notice each other.

A disk may be slow, and only the journal prevents a second copy. So the store is asked
again, after a final dot for longer than before it (`Patience`). Then it counts as away.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.delivery.journal import Entry, EntryState
from mxpolicy.state.store import HEAVY, JOURNAL, Replacement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.journal import Past
    from mxpolicy.delivery.owner import Owner
    from mxpolicy.state.store import Store

__all__ = ["ANSWER", "ANSWER_AFTER_DOT", "KEPT", "KEPT_IN_PART", "Entries"]

# Seconds. A message that every recipient has comes back only if our answer was lost.
# Postfix and Exim then ask again within hours.
KEPT = 24 * 3600.0
# One that was deferred or refused for others comes back as long as the mail server keeps
# it: five days by default (maximal_queue_lifetime; Exim's usual retry rule gives up after
# four). The mail server may have made a deferral of the refusal.
KEPT_IN_PART = 7 * 24 * 3600.0

# Seconds for one answer of the store, before a final dot and after one. After it, only
# the journal can prevent a second copy.
ANSWER, ANSWER_AFTER_DOT = 10.0, 60.0
# The same for all answers of one call, which has a deadline.
_ALL, _ALL_AFTER_DOT = 30.0, 60.0
# The same for one answer while the last one did not come.
_HARDLY = 1.0
# Seconds until the next try when another process has changed what we were to change.
_RETRY = 0.1

# Seconds that a claim holds past the deadline: to write what became of it.
_SLACK = 60.0

T = TypeVar("T")


class Entries:
    """The entries of one message.

    Args:
        context: What all messages share.
        keys: By a recipient's number, from `journal.entry_key`; may be filled in later.
            A recipient that has none is delivered to without a journal.
        owner: The delivery.
        deadline: Seconds from now until we are done.

    Attributes:
        store, keys: As given.
        me: The owner.
        until: When our claims end, UTC.
        held: By recipient: what we have read or written last.
        noted: Recipients for which we have written an entry, perhaps.
        earlier: Recipients with an outcome of an earlier delivery.
        dots: By recipient: when the last dot was noted, UTC.
        before_dot: How long the store is waited for until a dot may be out.
        at_end: The same for what is written of outcomes; longer after a dot.
    """

    def __init__(
        self, context: Context, keys: Mapping[int, str], owner: Owner, deadline: float
    ) -> None:
        self._utc = context.utc
        self._calls = context.calls
        self.store = context.store
        self.keys = keys
        self.me = owner
        self.until = context.utc() + deadline + _SLACK
        self.held: dict[int, bytes] = {}
        self.noted: set[int] = set()
        self.earlier: set[int] = set()
        self.dots: dict[int, float] = {}
        self.before_dot = Patience(ANSWER, min(_ALL, deadline / 3))
        self._after_dot = _after_dot()
        self.at_end = self.before_dot

    def has_memory(self) -> bool:
        """Return whether what is noted now is known to the next attempt."""
        return self.store.is_kept(JOURNAL)

    def dot_may_be_out(self) -> None:
        """Wait for the store as long as is right after a dot, from now on."""
        self.at_end = self._after_dot

    def late_replies_follow(self) -> None:
        """Wait for the store anew: the call of before has its answer."""
        self.at_end = _after_dot()

    def new(self, state: EntryState, past: Past, relay: str = "") -> Entry:
        """Return an entry of ours."""
        return Entry(state, self.me, self.until, relay, past=past)

    def replacements(
        self, known: Mapping[int, bytes | None], entries: Mapping[int, bytes]
    ) -> list[Replacement]:
        """Return what is to be written: *known* by *entries*, each key once.

        A recipient that is named twice has one key. Its second row would find the first.
        """
        expires = self._utc() + KEPT_IN_PART
        rows = {
            key: Replacement(key, known.get(number), entry, expires, HEAVY)
            for number, entry in entries.items()
            for key in (self.keys[number],)
        }
        return [*rows.values()]

    def release(self, number: int) -> None:
        """Let another delivery of this process have the recipient."""
        if number in self.keys:
            self._calls.release(self.keys[number], self.me)

    async def get(self, patience: Patience, number: int) -> bytes | None:
        """Return the entry as the store has it."""
        key = self.keys[number]
        return await patience.ask(self.store, lambda store: store.get(key))

    async def change(
        self, patience: Patience, number: int, old: bytes | None, new: bytes
    ) -> bool:
        """Replace *old* by *new*; return False also when the store does not answer."""
        row = self.keys[number], old, new, self._utc() + KEPT_IN_PART, HEAVY
        self.noted.add(number)
        done = await patience.ask(self.store, lambda store: store.replace(*row))
        if done:
            self.held[number] = new
        return done

    async def put_in_place(self, number: int, value: bytes) -> None:
        """Replace our entry by *value*; another process's entry stays."""
        patience = self.at_end
        there = self.held.get(number)
        while not await self.change(patience, number, there, value):
            there = await self.get(patience, number)
            if there == value or not self._is_ours(number, there):
                break
            if not await patience.goes_on():
                break

    async def drop(self, number: int) -> None:
        """Delete our entry; another process's entry stays."""
        if number not in self.noted and number not in self.held:
            return
        patience, key = self.at_end, self.keys[number]
        there = await self.get(patience, number)
        if there is not None and self._is_ours(number, there):
            await patience.ask(self.store, lambda store: store.delete(key))
        self.held.pop(number, None)

    def _is_ours(self, number: int, value: bytes | None) -> bool:
        """Return whether *value* is our entry, or none.

        It may be one that we wrote and that came late.
        """
        if value is None or value == self.held.get(number):
            return True
        entry = Entry.decode(value)
        return entry is None or entry.owner == self.me


class Patience:
    """How long a call waits for its store: for one answer, and for all of them.

    Args:
        answer: Seconds for one, while the last one came in its time.
        left: Seconds for all.
    """

    def __init__(self, answer: float, left: float) -> None:
        self._answer = answer
        self._left = left
        self._was_answered = True

    async def ask(self, store: Store, question: Callable[[Store], Awaitable[T]]) -> T:
        """Return what *question* to *store* returns; see `Store.patient`."""
        clock = asyncio.get_running_loop().time
        seconds = self._answer if self._was_answered else _HARDLY
        began, seconds = clock(), min(seconds, self._left)
        try:
            return await question(store.patient(seconds))
        finally:
            spent = clock() - began
            self._was_answered = spent < seconds
            self._left = max(0.0, self._left - spent)

    async def goes_on(self) -> bool:
        """Wait a moment and return True; return False when the store does not answer."""
        if self._was_answered:
            await asyncio.sleep(_RETRY)
        return self._was_answered


def _after_dot() -> Patience:
    return Patience(ANSWER_AFTER_DOT, _ALL_AFTER_DOT)
