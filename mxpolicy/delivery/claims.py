"""The journal of one message: claims before the delivery, outcomes as they come.

The shell of `mxpolicy.delivery.journal`, which says what an entry means. Each recipient
has an entry of its own.

A process that delivers many messages keeps its claims in memory (`Calls.claim`). It reads
the entries of its recipients once, and writes the first one before the final dot. A
process for one message writes its claims to the store, where others see them. Two
deliveries of one message may so be under way, one in each. The note before the dot
replaces only the entry that was read: one of them gets it written, and the other one
sends no dot.

Nothing here makes a delivery fail. Where an entry cannot be read or written, the message
goes out as it would without a journal. One exception: a delivery that finds its message
taken over by another process does not send the final dot.

A disk may be slow, and only the journal prevents a second copy. So it is asked again,
after a final dot for longer than before it (`_Patience`). Then it counts as away.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.delivery import trouble
from mxpolicy.delivery.journal import (
    NO_PAST,
    Entry,
    EntryState,
    Past,
    deferred_entry,
    meaning,
    outcome_entry,
    waiting_entry,
)
from mxpolicy.delivery.settlement import RecipientState
from mxpolicy.delivery.writer import Writer
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.state.store import HEAVY, JOURNAL, LIGHT, Operation, Replacement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.owner import Owner
    from mxpolicy.delivery.settlement import Recipient, Settlement
    from mxpolicy.outcome import Outcome
    from mxpolicy.state.store import Store

T = TypeVar("T")

__all__ = ["KEPT", "KEPT_IN_PART", "Claims", "TakenOver"]

# Seconds. A message that every recipient has comes back only if our answer was lost.
# Postfix and Exim then ask again within hours.
KEPT = 24 * 3600.0
# One that was deferred or refused for others comes back as long as the mail server keeps
# it: five days by default (maximal_queue_lifetime; Exim's usual retry rule gives up after
# four). The mail server may have made a deferral of the refusal.
KEPT_IN_PART = 7 * 24 * 3600.0

# Told to the mail server as a deferral.
_PUT_OFF = frozenset({RecipientState.DEFERRED, RecipientState.WAITING})

# A refusal is noted in the end; see `Claims.finish`.
_NOTED_AT_ONCE = _PUT_OFF | {RecipientState.DELIVERED}

# Seconds that a claim holds past the deadline: to write what became of it.
_SLACK = 60.0
# Seconds between two looks at what another process is doing.
_LOOK_AGAIN = 0.25

# Seconds for one answer of the store, before a final dot and after one. After it, only
# the journal can prevent a second copy.
_ANSWER, _ANSWER_AFTER_DOT = 10.0, 60.0
# The same for all answers of one call, which has a deadline.
_ALL, _ALL_AFTER_DOT = 30.0, 60.0
# The same for one answer while the last one did not come.
_HARDLY = 1.0
# Seconds until the next try when another process has changed what we were to change.
_RETRY = 0.1


class TakenOver(LocalTrouble):
    """Another process has the message; the final dot was not sent."""


class Claims:
    """The journal's entries of one message.

    Args:
        context: What all messages share.
        settlement: The message's recipients; told what the journal knows of them.
        keys: By a recipient's number, from `journal.entry_key`. A recipient that has
            none is delivered to without a journal.
        owner: The delivery. It is under way until `finish` has returned, and `finish_late`
            for all who wait.
        deadline: Seconds from now until we are done.
        tell: Given what goes wrong in the background: a bug of ours.
    """

    def __init__(
        self,
        context: Context,
        settlement: Settlement,
        keys: Mapping[int, str],
        owner: Owner,
        deadline: float,
        tell: Callable[[Exception], None],
    ) -> None:
        self._context = context
        self._store = context.store
        self._calls = context.calls
        self._settlement = settlement
        self._keys = keys
        self._until = context.utc() + deadline + _SLACK
        self._me = owner
        self._before_dot = _Patience(_ANSWER, min(_ALL, deadline / 3))
        self._after_dot = _Patience(_ANSWER_AFTER_DOT, _ALL_AFTER_DOT)
        self._at_end = self._before_dot
        self._held: dict[int, bytes] = {}  # what we have read or written last
        self._noted: set[int] = set()  # of these we have written an entry, perhaps
        self._dots: dict[int, float] = {}  # when the last dot was noted, UTC
        self._earlier: set[int] = set()  # recipients with an outcome of before
        # By recipient: a dot that is perhaps recorded, and was not sent.
        self._unsent: dict[int, bytes] = {}
        self._tell = tell
        self._are_all_taken = False
        self._unwritten = 0  # recipients that have it, and the store does not know yet
        self._when_written: list[Callable[[], None]] = []
        self._writer = Writer(tell)

    def has_memory(self) -> bool:
        """Return whether what is noted now is known to the next attempt."""
        return self._store.is_kept(JOURNAL)

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
        if number not in self._keys:
            return False
        mine = self._entry(EntryState.CLAIMED, NO_PAST).encode()
        return await self._change(self._before_dot, number, None, mine)

    async def _claim_in_memory(self, numbers: Iterable[int]) -> None:
        """Claim for this process only, and read once what the store has of all."""
        ours = {number: self._claim_here(number) for number in numbers}
        keys = [
            self._keys[number]
            for number, is_ours in ours.items()
            if is_ours and number in self._keys
        ]
        rows = await self._before_dot.ask(
            self._store, lambda store: store.get_many(keys)
        )
        for number, is_ours in ours.items():
            value = rows.get(self._keys.get(number, ""))
            self._be_told(number, self._take(number, value) if is_ours else None)

    def _claim_here(self, number: int) -> bool:
        """Return whether no other delivery of this process has the recipient."""
        if number not in self._keys:
            return True
        now = self._context.utc()
        return self._calls.claim(self._keys[number], self._me, self._until, now)

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
        if number not in self._keys:
            return NO_PAST
        if self._calls.keeps_claims:
            if not self._claim_here(number):
                return None
            return self._take(number, await self._get(self._before_dot, number))
        while True:
            found, there = await self._look(number)
            if not isinstance(found, Past):
                return found
            mine = self._entry(EntryState.CLAIMED, found).encode()
            if await self._change(self._before_dot, number, there, mine):
                return found
            if not await self._before_dot.goes_on():
                return found  # the store does not answer: as if there were none

    def _take(self, number: int, value: bytes | None) -> Past | Outcome | None:
        """Return what the entry means. The claim is kept where we may deliver."""
        found = self._meaning(number, value)
        if not isinstance(found, Past):
            self._release(number)
        elif value is not None:
            self._held[number] = value  # the note before the dot is to replace it
        return found

    async def _look(self, number: int) -> tuple[Past | Outcome | None, bytes | None]:
        """Return what the entry means, and the entry as the store has it."""
        value = await self._get(self._before_dot, number)
        return self._meaning(number, value), value

    def _meaning(self, number: int, value: bytes | None) -> Past | Outcome | None:
        if value is not None and value == self._unsent.get(number):
            return NO_PAST
        entry = Entry.decode(value) if value is not None else None
        alive = entry is not None and self._calls.lives(entry.owner)
        found = meaning(entry, self._me, self._context.utc(), alive=alive)
        if value is not None and isinstance(found, Delivered | Bounced | Deferred):
            self._held[number] = value
            self._earlier.add(number)
        return found

    def _entry(self, state: EntryState, past: Past, relay: str = "") -> Entry:
        return Entry(state, self._me, self._until, relay, past=past)

    # -- while it goes on ---------------------------------------------------

    async def dot_is_next(self, relay: str, numbers: Iterable[int]) -> None:
        """Write that *relay* is about to see the final dot.

        Each entry is replaced only if it is still the one that we know. So of several
        deliveries of one message, one sends its dot. All are replaced, or none.

        Raises:
            TakenOver: Another delivery has the message, or has delivered it.
        """
        now = self._context.utc()
        entries: dict[int, bytes] = {}
        of_key: dict[str, bytes] = {}
        for number in numbers:
            if number in self._keys:
                past = self._settlement[number].past
                entry = self._entry(EntryState.DOT_SENT, past, relay)
                # One that is named twice has one entry.
                one = of_key.setdefault(self._keys[number], entry.encode())
                entries[number] = one
                self._dots[number] = now
        known = {number: self._held.get(number) for number in entries}
        while entries and not await self._write_dots(known, entries):
            known = await self._what_is_there(known, entries)
            if known == entries:
                self._held.update(entries)
                break  # written, though the store had not said so
            if not await self._before_dot.goes_on():
                break
        self._at_end = self._after_dot

    async def _write_dots(
        self, known: Mapping[int, bytes | None], entries: Mapping[int, bytes]
    ) -> bool:
        rows = self._replacements(known, entries)
        self._noted.update(entries)
        durable = self._context.options.journal.durable
        done = await self._before_dot.ask(
            self._store, lambda store: store.replace_all(rows, durable=durable)
        )
        if all(done):
            self._held.update(entries)
        return all(done)

    def _replacements(
        self, known: Mapping[int, bytes | None], entries: Mapping[int, bytes]
    ) -> list[Replacement]:
        """Return what is to be written: *known* by *entries*, each key once.

        A recipient that is named twice has one key. Its second row would find the first.
        """
        expires = self._context.utc() + KEPT_IN_PART
        rows = {
            key: Replacement(key, known.get(number), entry, expires, HEAVY)
            for number, entry in entries.items()
            for key in (self._keys[number],)
        }
        return [*rows.values()]

    async def _what_is_there(
        self, known: Mapping[int, bytes | None], entries: Mapping[int, bytes]
    ) -> dict[int, bytes | None]:
        """Return the entries that are there, where *entries* are to be.

        Raises:
            TakenOver: One of them says that another delivery has the message.
        """
        there = dict(known)
        for number, entry in entries.items():
            found, there[number] = await self._look(number)
            if there[number] != entry and not isinstance(found, Past):
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
        entry = self._entry(EntryState.DOT_SENT, NO_PAST, relay).encode()
        self._unsent = {one: entry for one in numbers if one in self._keys}
        if not self._unsent:
            told(True)
            return

        now = self._context.utc()
        rows = self._replacements({}, self._unsent)
        self._noted.update(self._unsent)

        def answered(done: list[bool] | BaseException) -> None:
            is_recorded = not isinstance(done, BaseException) and all(done)
            if is_recorded:
                self._held.update(self._unsent)
                self._dots.update(dict.fromkeys(self._unsent, now))
                self._unsent = {}
                self._at_end = self._after_dot
            elif isinstance(done, Exception):
                self._tell(done)
            told(is_recorded)

        durable = self._context.options.journal.durable
        self._store.patient(_ANSWER).submit_replace(rows, answered, durable=durable)

    def note_outcome(self, recipient: Recipient) -> None:
        """Begin to write what became of *recipient*; see `finish`."""
        if recipient.number not in self._keys or recipient.number in self._earlier:
            return
        if self._are_all_taken:
            self._keep_later(recipient)
        elif recipient.state in _NOTED_AT_ONCE:
            self._writer.do_later(lambda: self._note(recipient))

    def _keep_later(self, recipient: Recipient) -> None:
        """Begin to write that *recipient* has it, without a task."""
        key, expires = self._keys[recipient.number], self._context.utc() + KEPT
        row = key, self._value(recipient), expires, LIGHT, False
        self._unwritten += 1
        self._store.patient(_ANSWER_AFTER_DOT).submit(
            Operation("put", key, row, None), partial(self._wrote, recipient.number)
        )

    def _wrote(self, number: int, answer: BaseException | None) -> None:
        self._release(number)
        self._unwritten -= 1
        if isinstance(answer, Exception):
            self._tell(answer)
        if not self._unwritten:
            for told in self._when_written:
                told()
            self._when_written.clear()

    def all_are_taken(self) -> None:
        """One host has the message for all recipients: `when_written` is for `finish`."""
        self._are_all_taken = True

    def when_written(self, told: Callable[[], None]) -> None:
        """Call *told* when that is written for all, perhaps at once."""
        if self._unwritten:
            self._when_written.append(told)
        else:
            told()

    async def _note(self, recipient: Recipient) -> None:
        """Write what became of *recipient*, then let another delivery have it."""
        try:
            if recipient.state is RecipientState.DELIVERED:
                await self._keep(recipient, KEPT)
            elif recipient.state is RecipientState.WAITING:
                await self._listen(recipient)
            else:
                await self._let_go(recipient)
        finally:
            self._release(recipient.number)

    def _release(self, number: int) -> None:
        if number in self._keys:
            self._calls.release(self._keys[number], self._me)

    async def _keep(
        self, recipient: Recipient, kept: float, *, durable: bool = False
    ) -> None:
        """Write that *recipient* has it: the truth, whatever is written there."""
        key, value = self._keys[recipient.number], self._value(recipient)
        expires = self._context.utc() + kept
        # The entry of a message that all recipients have is missed least.
        weight = LIGHT if kept == KEPT else HEAVY
        await self._at_end.ask(
            self._store,
            lambda store: store.put(
                key, value, expires, weight=weight, durable=durable
            ),
        )

    def _value(self, recipient: Recipient) -> bytes:
        """Return what is kept of a recipient that has the message or was refused."""
        if recipient.number in self._earlier:
            return self._held[recipient.number]
        if recipient.state is RecipientState.TAKEN_LATE:
            outcome = self._settlement.delivered(recipient.number)
            return outcome_entry(outcome).encode()
        assert isinstance(recipient.outcome, Delivered | Bounced)
        return outcome_entry(recipient.outcome).encode()

    async def _listen(self, recipient: Recipient) -> None:
        """Say that the reply to *recipient*'s dot is still listened to."""
        number, late = recipient.number, self._context.options.transaction.late_reply
        since = time.gmtime(self._dots[number])
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", since)
        outcome = trouble.awaited(recipient.relay, when)
        entry = waiting_entry(outcome, self._me, self._until + late, recipient.past)
        await self._put_in_place(number, entry.encode())

    async def _let_go(self, recipient: Recipient) -> None:
        """Leave *recipient* to the next attempt, and keep its past."""
        entry = deferred_entry(recipient.past)
        if entry is not None:
            await self._put_in_place(recipient.number, entry.encode())
        else:
            await self._drop(recipient.number)

    async def _put_in_place(self, number: int, value: bytes) -> None:
        """Replace our entry by *value*; another process's entry stays."""
        patience = self._at_end
        there = self._held.get(number)
        while not await self._change(patience, number, there, value):
            there = await self._get(patience, number)
            if there == value or not self._is_ours(number, there):
                break
            if not await patience.goes_on():
                break

    async def _drop(self, number: int) -> None:
        """Delete our entry; another process's entry stays."""
        if number not in self._noted and number not in self._held:
            return
        patience, key = self._at_end, self._keys[number]
        there = await self._get(patience, number)
        if there is not None and self._is_ours(number, there):
            await patience.ask(self._store, lambda store: store.delete(key))
        self._held.pop(number, None)

    def _is_ours(self, number: int, value: bytes | None) -> bool:
        """Return whether *value* is our entry, or none.

        It may be one that we wrote and that came late.
        """
        if value is None or value == self._held.get(number):
            return True
        entry = Entry.decode(value)
        return entry is None or entry.owner == self._me

    async def _get(self, patience: _Patience, number: int) -> bytes | None:
        key = self._keys[number]
        return await patience.ask(self._store, lambda store: store.get(key))

    async def _change(
        self, patience: _Patience, number: int, old: bytes | None, new: bytes
    ) -> bool:
        """Replace *old* by *new*; return False also when the store does not answer."""
        row = self._keys[number], old, new, self._context.utc() + KEPT_IN_PART, HEAVY
        self._noted.add(number)
        done = await patience.ask(self._store, lambda store: store.replace(*row))
        if done:
            self._held[number] = new
        return done

    # -- the end --------------------------------------------------------------

    async def finish(self) -> None:
        """Wait for what is to be written; call it when all recipients are settled.

        A refusal is kept only while others are deferred. Without others the mail server
        may have made a deferral of it. Then the host is to be asked again.

        Where some do not have the message, the entries must outlive all retries of the
        mail server, and a loss of power.
        """
        try:
            await self._finish()
        finally:
            self._calls.release_all(self._me)

    async def _finish(self) -> None:
        await self._writer.wait()
        written = asyncio.Event()
        self.when_written(written.set)
        await written.wait()
        states = [recipient.state for recipient in self._settlement]
        known = [self._settlement[number] for number in self._keys]
        for recipient in known:
            if recipient.state is RecipientState.BOUNCED:
                if not _PUT_OFF.isdisjoint(states):
                    await self._put_in_place(recipient.number, self._value(recipient))
                else:
                    await self._drop(recipient.number)
        delivered = [one for one in known if one.state is RecipientState.DELIVERED]
        if all(state is RecipientState.DELIVERED for state in states):
            for recipient in delivered:
                if recipient.number in self._earlier:
                    await self._keep(recipient, KEPT)
            return
        for recipient in delivered:
            # A durable write makes all earlier writes durable.
            durable = recipient is delivered[-1]
            await self._keep(recipient, KEPT_IN_PART, durable=durable)

    async def finish_late(self, numbers: Iterable[int]) -> None:
        """Write what became of recipients that have waited; `finish` has returned.

        The next attempt may come in days: a loss of power must not undo a late 250.
        """
        self._at_end = _Patience(_ANSWER_AFTER_DOT, _ALL_AFTER_DOT)
        for number in numbers:
            recipient = self._settlement[number]
            if recipient.state is RecipientState.TAKEN_LATE:
                await self._keep(recipient, KEPT_IN_PART, durable=True)
            else:
                await self._let_go(recipient)


class _Patience:
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
