"""`mxpolicy.delivery.outcome_notes`: what is in the store for each outcome, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.entries import KEPT, KEPT_IN_PART, Entries
from mxpolicy.delivery.journal import NO_PAST, Entry, EntryState, outcome_entry
from mxpolicy.delivery.outcome_notes import OutcomeNotes
from mxpolicy.delivery.owner import Calls
from mxpolicy.delivery.settlement import Settlement
from mxpolicy.errors import StoreError
from mxpolicy.options import Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.state.memory import MemoryStore
from tests.helpers.failing_store import FailingStore

if TYPE_CHECKING:
    from mxpolicy.outcome import Outcome

HOST = "mx1.example[192.0.2.1]:25"
OK = Reply(250, ("2.0.0 Ok",))
REFUSED = Bounced(EnhancedStatus(5, 1, 1), "550 5.1.1 Who?", None, HOST)
LATER = Deferred(EnhancedStatus(4, 2, 2), "452 4.2.2 Full", None, HOST)
EARLIER = Delivered(EnhancedStatus(2, 0, 0), "250 2.0.0 Ok", OK, HOST)
KEYS = ["journal/0", "journal/1"]


class Delivery:
    """Two recipients of one message, claimed in memory."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.now = 1_000_000.0
        self.store = store or MemoryStore(lambda: self.now)
        self.told: list[Exception] = []
        self.settlement = Settlement(
            ["ann@example.com", "bob@example.com"], lambda one: self.notes.note(one)
        )
        self.calls = Calls(keeps_claims=True)
        context = Context(
            Options(), store=self.store, utc=lambda: self.now, calls=self.calls
        )
        keys = dict(enumerate(KEYS))
        self.entries = Entries(context, keys, self.calls.begin(), 900.0)
        self.notes = OutcomeNotes(self.entries, self.settlement, self.told.append)
        for number in keys:
            assert self.entries.claim_here(number)

    async def dot(self, *numbers: int) -> None:
        """The dot leaves for *numbers*."""
        for number in numbers:
            self.settlement.claimed(number)
        self.settlement.accepted(numbers)
        self.settlement.dot_sent(numbers, HOST)
        notes = self.entries.dots(HOST, dict.fromkeys(numbers, NO_PAST))
        assert await self.entries.write_dots(self.entries.held(notes), notes)

    async def taken(self, number: int) -> None:
        """It is delivered to *number*."""
        await self.dot(number)
        self.settlement.taken([number], OK)
        self.settlement.settle(number, self.settlement.delivered(number))

    async def settled(self, number: int, outcome: Outcome | None) -> None:
        """*outcome* is that of *number*; None is a delivery."""
        if outcome is None:
            await self.taken(number)
        else:
            await self.dot(number)
            self.settlement.released([number])
            self.settlement.settle(number, outcome)

    async def states(self) -> list[EntryState | None]:
        rows = await self.store.get_many(KEYS)
        found = [Entry.decode(rows[key]) if key in rows else None for key in KEYS]
        return [entry.state if entry else None for entry in found]

    def may_be_claimed(self, number: int) -> bool:
        """Return whether another delivery of this process may have it."""
        return self.calls.claim(
            KEYS[number], self.calls.begin(), self.now + 1, self.now
        )


DELIVERED, KEPT_REFUSAL = EntryState.DELIVERED, EntryState.REFUSED


@pytest.mark.parametrize(
    ("outcomes", "states"),
    [
        pytest.param((None, None), [DELIVERED, DELIVERED], id="all have it"),
        pytest.param((None, LATER), [DELIVERED, None], id="one is put off"),
        pytest.param((None, REFUSED), [DELIVERED, None], id="one is refused"),
        pytest.param((REFUSED, LATER), [KEPT_REFUSAL, None], id="asked for again"),
        pytest.param((REFUSED, REFUSED), [None, None], id="nothing is left"),
        pytest.param((LATER, LATER), [None, None], id="nothing to remember"),
    ],
)
async def test_what_is_left_when_all_is_said(
    outcomes: tuple[Outcome | None, Outcome | None], states: list[EntryState | None]
) -> None:
    delivery = Delivery()
    for number, outcome in enumerate(outcomes):
        await delivery.settled(number, outcome)
    await delivery.notes.finish()
    assert await delivery.states() == states
    assert delivery.told == []
    assert all(delivery.may_be_claimed(number) for number in (0, 1))


@pytest.mark.parametrize(
    ("other", "kept"),
    [(None, KEPT), (LATER, KEPT_IN_PART), (REFUSED, KEPT_IN_PART)],
)
async def test_delivery_is_kept_for_as_long_as_it_may_be_asked_for(
    other: Outcome | None, kept: float
) -> None:
    delivery = Delivery()
    await delivery.settled(0, None)
    await delivery.settled(1, other)
    await delivery.notes.finish()
    delivery.now += kept - 1
    assert (await delivery.states())[0] is DELIVERED
    delivery.now += 1
    assert (await delivery.states())[0] is None


async def test_outcome_is_noted_as_it_comes_and_a_refusal_in_the_end() -> None:
    delivery = Delivery()
    await delivery.settled(0, None)
    await delivery.settled(1, REFUSED)
    for _ in range(10):
        await asyncio.sleep(0)
    assert await delivery.states() == [DELIVERED, EntryState.DOT_SENT]
    assert delivery.may_be_claimed(0)
    assert not delivery.may_be_claimed(1)
    await delivery.notes.finish()
    assert await delivery.states() == [DELIVERED, None]


async def test_refusal_that_is_not_kept_leaves_what_is_in_doubt() -> None:
    delivery = Delivery()
    for number in (0, 1):
        await delivery.dot(number)
        delivery.settlement.released([number])
    delivery.settlement[0].past = NO_PAST.doubted(HOST)
    for number in (0, 1):
        delivery.settlement.settle(number, REFUSED)
    await delivery.notes.finish()
    assert await delivery.states() == [EntryState.DEFERRED, None]
    again = Delivery(delivery.store)
    assert await again.entries.take([0, 1]) == {0: NO_PAST.doubted(HOST), 1: NO_PAST}


async def test_outcome_of_before_is_left_as_it_is() -> None:
    delivery = Delivery()
    value = outcome_entry(EARLIER).encode()
    await delivery.store.put(KEYS[0], value, delivery.now + KEPT)
    (row,) = await delivery.store.scan(KEYS[0])
    delivery.now += 1
    (found,) = (await delivery.entries.take([0])).values()
    assert isinstance(found, Delivered)
    delivery.settlement.settle(0, found)
    for _ in range(10):
        await asyncio.sleep(0)
    assert await delivery.store.scan(KEYS[0]) == [row]
    await delivery.settled(1, LATER)
    await delivery.notes.finish()
    delivery.now += KEPT_IN_PART - 1  # as long as the other one may come back
    assert await delivery.store.get(KEYS[0]) == value


async def test_late_250_is_noted_and_silence_is_a_doubt() -> None:
    delivery = Delivery()
    await delivery.dot(0, 1)
    for number in (0, 1):
        delivery.settlement.may_answer([number], HOST)
        late = LATER._replace(status=EnhancedStatus(4, 4, 2))
        assert delivery.settlement.doubted(number, late, True)
        delivery.settlement.settle(number, late)
    await delivery.notes.finish()
    assert await delivery.states() == [EntryState.WAITING] * 2
    await delivery.notes.finish_late(delivery.settlement.answered_late(HOST, OK))
    assert await delivery.states() == [DELIVERED] * 2

    silent = Delivery()
    await silent.dot(0)
    silent.settlement.may_answer([0], HOST)
    assert silent.settlement.doubted(0, LATER, True)
    silent.settlement.settle(0, LATER)
    await silent.settled(1, LATER)
    await silent.notes.finish()
    await silent.notes.finish_late(silent.settlement.answered_late(HOST, None))
    value = await silent.store.get(KEYS[0])
    entry = Entry.decode(value) if value else None
    assert entry is not None
    assert entry.past.doubts == {HOST: 1}


# -- all at once ------------------------------------------------------------------------


async def test_all_that_one_host_has_taken_is_written_without_a_task() -> None:
    delivery = Delivery()
    told: list[str] = []
    delivery.notes.when_written(lambda: told.append("before"))
    await delivery.dot(0, 1)
    delivery.notes.all_are_taken(may_wait=False)
    delivery.settlement.taken([0, 1], OK)
    for number in (0, 1):
        delivery.settlement.settle(number, delivery.settlement.delivered(number))
    delivery.notes.when_written(lambda: told.append("after"))
    assert told == ["before"]
    await delivery.notes.finish()
    assert told == ["before", "after"]
    assert await delivery.states() == [DELIVERED] * 2
    assert all(delivery.may_be_claimed(number) for number in (0, 1))


def _puts(at: int) -> Callable[[int, Any], bool]:
    """Return what lets the write number *at* of an outcome fail."""
    seen: list[str] = []

    def fails(_: int, operation: Any) -> bool:
        if operation.name == "put":
            seen.append(operation.key)
        return operation.name == "put" and len(seen) == at + 1

    return fails


@pytest.mark.parametrize("error", [StoreError("disk full"), ValueError("a bug")])
@pytest.mark.parametrize("at", [0, 1])
async def test_write_that_fails_is_told_and_holds_up_nothing(
    at: int, error: Exception
) -> None:
    delivery = Delivery(FailingStore(error, _puts(at)))
    await delivery.dot(0, 1)
    delivery.notes.all_are_taken(may_wait=True)
    delivery.settlement.taken([0, 1], OK)
    for number in (0, 1):
        delivery.settlement.settle(number, delivery.settlement.delivered(number))
    await delivery.notes.finish()
    assert delivery.told == [error]
    states: list[EntryState] = [DELIVERED, DELIVERED]
    states[at] = EntryState.DOT_SENT
    assert await delivery.states() == states
    assert all(delivery.may_be_claimed(number) for number in (0, 1))
