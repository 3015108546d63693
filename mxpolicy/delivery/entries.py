"""The journal's entries of one message, as the store has them and as we know them.

`mxpolicy.delivery.claims` and `mxpolicy.delivery.outcome_notes` share them. Each recipient
has an entry of its own (`mxpolicy.delivery.journal`). It is replaced only if it is still
the one that we know (`mxpolicy.delivery.known_entry`). So two deliveries of one message
notice each other.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

from mxpolicy.delivery.journal import (
    Entry,
    EntryState,
    Past,
    left_by,
    past_entry,
    waiting_entry,
)
from mxpolicy.delivery.known_entry import KnownEntry
from mxpolicy.delivery.patience import ANSWER, ANSWER_AFTER_DOT, after_dot, before_dot
from mxpolicy.outcome import Delivered
from mxpolicy.state.store import HEAVY, JOURNAL, LIGHT, Operation, Replacement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.known_entry import Meaning
    from mxpolicy.delivery.owner import Owner
    from mxpolicy.delivery.patience import Patience
    from mxpolicy.outcome import Outcome

__all__ = ["KEPT", "KEPT_IN_PART", "Entries"]

# Seconds. A message that every recipient has comes back only if our answer was lost.
# Postfix and Exim then ask again within hours.
KEPT = 24 * 3600.0
# One that was deferred or refused for others comes back as long as the mail server keeps
# it: five days by default (maximal_queue_lifetime; Exim's usual retry rule gives up after
# four). The mail server may have made a deferral of the refusal.
KEPT_IN_PART = 7 * 24 * 3600.0

# Seconds that a claim holds past the deadline: to write what became of it.
_SLACK = 60.0


class Entries:
    """The entries of one message.

    Args:
        context: What all messages share.
        keys: By a recipient's number, from `journal.entry_key`; may be filled in later.
            A recipient that has none is delivered to without a journal.
        owner: The delivery.
        deadline: Seconds from now until we are done.
    """

    def __init__(
        self, context: Context, keys: Mapping[int, str], owner: Owner, deadline: float
    ) -> None:
        self._utc = context.utc
        self._calls = context.calls
        self._store = context.store
        self._is_durable = context.options.journal.durable
        self._late_reply = context.options.transaction.late_reply
        self._keys = keys
        self._me = owner
        self._until = context.utc() + deadline + _SLACK  # the end of our claims
        self._known = defaultdict[int, KnownEntry](lambda: KnownEntry(owner))
        self._before_dot = before_dot(deadline)
        self._after_dot = after_dot()
        # For what is written of outcomes: longer after a dot.
        self._at_end = self._before_dot

    def __contains__(self, number: int) -> bool:
        """Return whether the recipient has an entry, or is to have one."""
        return number in self._keys

    def __iter__(self) -> Iterator[int]:
        """Yield the recipients that have."""
        return iter(self._keys)

    def has_memory(self) -> bool:
        """Return whether what is noted now is known to the next attempt."""
        return self._store.is_kept(JOURNAL)

    def earlier(self, number: int) -> bytes | None:
        """Return the entry that another delivery has settled; None where none has."""
        entry = self._known[number]
        return entry.value if entry.known == "settled" else None

    # -- claims ---------------------------------------------------------------

    @property
    def are_claimed_here(self) -> bool:
        """Whether claims are kept in the memory of this process."""
        return self._calls.keeps_claims

    def claim_here(self, number: int) -> bool:
        """Return whether no other delivery of this process has the recipient.

        Then none gets it before it is released.
        """
        if number not in self._keys:
            return True
        key = self._keys[number]
        return self._calls.claim(key, self._me, self._until, self._utc())

    def release(self, number: int) -> None:
        """Let another delivery of this process have the recipient."""
        if number in self._keys:
            self._calls.release(self._keys[number], self._me)

    def release_all(self) -> None:
        """The same for all recipients."""
        self._calls.release_all(self._me)

    async def look(self, number: int) -> tuple[Meaning, bytes | None]:
        """Return what the entry means to us, and the entry as the store has it."""
        value = await self._get(self._before_dot, number)
        return self._known[number].read(value, self._utc(), self._calls.lives), value

    async def take(self, numbers: Collection[int]) -> dict[int, Meaning]:
        """Return what each entry means to us. One that is free is ours to replace."""
        keys = [self._keys[number] for number in numbers]
        rows = await self._before_dot.ask(
            self._store, lambda store: store.get_many(keys)
        )
        found, now = dict[int, "Meaning"](), self._utc()
        for number in numbers:
            entry, value = self._known[number], rows.get(self._keys[number])
            found[number] = entry.read(value, now, self._calls.lives)
            if value is not None and isinstance(found[number], Past):
                entry.left(value)
        return found

    async def claim(self, number: int, there: bytes | None, past: Past) -> bool:
        """Write a claim in the place of *there*; return False also without an answer."""
        mine = Entry(EntryState.CLAIMED, self._me, self._until, past=past).encode()
        return await self._write(self._before_dot, number, there, mine)

    async def goes_on(self) -> bool:
        """Wait a moment, and return whether another try is worth it."""
        return await self._before_dot.goes_on()

    # -- the dot --------------------------------------------------------------

    def dots(self, relay: str, pasts: Mapping[int, Past]) -> dict[int, bytes]:
        """Return the notes that *relay* is about to see the final dot.

        Args:
            relay: A candidate's key as text.
            pasts: Of the recipients. Those that have no entry are left out.
        """
        now = self._utc()
        of_key: dict[str, bytes] = {}
        notes = {}
        for number, past in pasts.items():
            if number in self._keys:
                state = EntryState.DOT_SENT
                entry = Entry(state, self._me, self._until, relay, past=past)
                # One that is named twice has one entry.
                one = of_key.setdefault(self._keys[number], entry.encode())
                notes[number] = one
                self._known[number].dot_at = now
        return notes

    def held(self, numbers: Iterable[int]) -> dict[int, bytes | None]:
        """Return the entries that the store has, as far as we know."""
        return {number: self._known[number].value for number in numbers}

    async def write_dots(
        self, there: Mapping[int, bytes | None], notes: Mapping[int, bytes]
    ) -> bool:
        """Write *notes* in the place of *there*, all or none; return whether it is done."""
        rows, durable = self._rows(there, notes), self._is_durable
        for number in notes:
            self._known[number].take("write")
        done = await self._before_dot.ask(
            self._store, lambda store: store.replace_all(rows, durable=durable)
        )
        if all(done):
            self.are_written(notes)
        return all(done)

    def record_dots(
        self,
        notes: Mapping[int, bytes],
        told: Callable[[list[bool] | BaseException], None],
    ) -> None:
        """Begin to write *notes* where there is nothing; see `Store.submit_replace`.

        The dot is sent only if all are written.
        """
        for number in notes:
            self._known[number].take("record")

        def answered(done: list[bool] | BaseException) -> None:
            if not isinstance(done, BaseException) and all(done):
                for number in notes:
                    self._known[number].take("recorded")
                self.are_written(notes)
                self.dot_may_be_out()
            told(done)

        self._store.patient(ANSWER).submit_replace(
            self._rows({}, notes), answered, durable=self._is_durable
        )

    def are_written(self, notes: Mapping[int, bytes]) -> None:
        """The store has *notes*."""
        for number, note in notes.items():
            self._known[number].value = note

    def dot_may_be_out(self) -> None:
        """Wait for the store as long as is right after a dot, from now on."""
        self._at_end = self._after_dot

    def _rows(
        self, there: Mapping[int, bytes | None], notes: Mapping[int, bytes]
    ) -> list[Replacement]:
        """Return what is to be written, each key once: a second row would find the first."""
        expires = self._utc() + KEPT_IN_PART
        rows = {
            key: Replacement(key, there.get(number), note, expires, HEAVY)
            for number, note in notes.items()
            for key in (self._keys[number],)
        }
        return [*rows.values()]

    # -- what became of it ----------------------------------------------------

    def late_replies_follow(self) -> None:
        """Wait for the store anew: the call of before has its answer."""
        self._at_end = after_dot()

    async def leave(
        self,
        number: int,
        outcome: Outcome,
        past: Past,
        *,
        awaits: str = "",
        kept: float = KEPT,
        durable: bool = False,
    ) -> None:
        """Leave to the next attempt what it is to know.

        That a host has the message is the truth and replaces whatever is written there.
        All else replaces only our own entry. An outcome of before stays as it was.

        Args:
            number: Of the recipient.
            outcome: What became of it.
            past: What it has left behind, for a deferral.
            awaits: The relay that may still answer the dot, if one may.
            kept: Of a delivery: seconds.
            durable: Of a delivery: see `Store.put`.
        """
        value = self._left(number, outcome, past, awaits)
        if value is None:
            await self.drop(number)
        elif isinstance(outcome, Delivered):
            await self._put(number, value, kept, durable=durable)
        else:
            await self._put_in_place(number, value)

    def leave_later(
        self,
        number: int,
        outcome: Delivered,
        past: Past,
        told: Callable[[BaseException | None], None],
        *,
        may_wait: bool,
    ) -> None:
        """Begin to do the same, for a message that all have; see `Store.submit`."""
        key, value = self._keys[number], self._left(number, outcome, past)
        row = key, value, self._utc() + KEPT, LIGHT, False
        self._store.patient(ANSWER_AFTER_DOT).submit(
            Operation("put", key, row, None, may_wait), told
        )

    def _left(
        self, number: int, outcome: Outcome, past: Past, awaits: str = ""
    ) -> bytes | None:
        earlier = self.earlier(number)
        if earlier is not None:
            return earlier
        if awaits:
            dot_at = time.gmtime(self._known[number].dot_at)
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", dot_at)
            until = self._until + self._late_reply
            return waiting_entry(awaits, since, self._me, until, past).encode()
        entry = left_by(outcome, past)
        return entry.encode() if entry is not None else None

    async def leave_past(self, number: int, past: Past) -> None:
        """Leave only *past*, of a refusal that is not kept; nothing where that is nothing."""
        entry = past_entry(past)
        if entry is None or self.earlier(number) is not None:
            await self.drop(number)
        else:
            await self._put_in_place(number, entry.encode())

    async def drop(self, number: int) -> None:
        """Delete our entry; another process's entry stays."""
        patience, entry = self._at_end, self._known[number]
        if entry.known == "nothing":
            return
        there = await self._get(patience, number)
        if there is not None and entry.is_ours(there):
            key = self._keys[number]
            await patience.ask(self._store, lambda store: store.delete(key))
        entry.value = None
        entry.take("dropped")

    async def _put(
        self, number: int, value: bytes, kept: float, *, durable: bool
    ) -> None:
        key, expires = self._keys[number], self._utc() + kept
        # The entry of a message that all recipients have is missed least.
        weight = LIGHT if kept == KEPT else HEAVY
        await self._at_end.ask(
            self._store,
            lambda store: store.put(
                key, value, expires, weight=weight, durable=durable
            ),
        )

    async def _put_in_place(self, number: int, value: bytes) -> None:
        patience, entry = self._at_end, self._known[number]
        there = entry.value
        while not await self._write(patience, number, there, value):
            there = await self._get(patience, number)
            if there == value or not entry.is_ours(there):
                break
            if not await patience.goes_on():
                break

    async def _get(self, patience: Patience, number: int) -> bytes | None:
        key = self._keys[number]
        return await patience.ask(self._store, lambda store: store.get(key))

    async def _write(
        self, patience: Patience, number: int, old: bytes | None, new: bytes
    ) -> bool:
        """Replace *old* by *new*; return False also when the store does not answer."""
        row = self._keys[number], old, new, self._utc() + KEPT_IN_PART, HEAVY
        entry = self._known[number]
        entry.take("write")
        done = await patience.ask(self._store, lambda store: store.replace(*row))
        if done:
            entry.value = new
        return done
