"""`mxpolicy.delivery.entries` over a store: what each verb writes, and what it leaves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.entries import KEPT, KEPT_IN_PART, Entries
from mxpolicy.delivery.journal import NO_PAST, Entry, EntryState, Past, outcome_entry
from mxpolicy.delivery.owner import Calls, myself
from mxpolicy.options import Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.state.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mxpolicy.outcome import Outcome
    from mxpolicy.state.store import Operation

HOST = "mx1.example[192.0.2.1]:25"
TAKEN = Delivered(EnhancedStatus(2, 0, 0), "250 2.0.0 Ok", Reply(250, ("Ok",)), HOST)
REFUSED = Bounced(EnhancedStatus(5, 1, 1), "550 5.1.1 Who?", None, HOST)
LATER = Deferred(EnhancedStatus(4, 2, 2), "452 4.2.2 Full", None, HOST)
VALUE = outcome_entry(TAKEN).encode()
KEYS = {0: "journal/a", 1: "journal/b"}
TWICE = {0: "journal/a", 1: "journal/a"}  # a recipient that is named twice
PASTS = {0: NO_PAST, 1: NO_PAST}


class Visited(MemoryStore):
    """Counts what is asked of it; the clock stands."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.visits: list[str] = []
        self.say: Callable[[], object] = list
        super().__init__(lambda: self.now)

    async def do(self, operation: Operation[Any]) -> Any:
        self.visits.append(operation.name)
        return await super().do(operation)


class Site:
    """A store, the entries of one delivery, and those of another process."""

    def __init__(
        self, keys: Mapping[int, str] = KEYS, store: Visited | None = None
    ) -> None:
        self.store = store or Visited()
        self.calls = Calls()
        self.entries = self.of_delivery(keys)
        self.others = myself()._replace(pid=1, call="other")

    def of_delivery(self, keys: Mapping[int, str] = KEYS) -> Entries:
        utc = lambda: self.store.now  # noqa: E731 - a clock
        context = Context(Options(), store=self.store, utc=utc, calls=self.calls)
        return Entries(context, keys, self.calls.begin(), 900.0)

    async def put(self, number: int, state: EntryState, past: Past = NO_PAST) -> bytes:
        """Write what another process has; return it."""
        entry = Entry(state, self.others, self.store.now + 900, HOST, past=past)
        value = entry.encode()
        await self.store.put(KEYS[number], value, self.store.now + 900)
        self.store.visits.clear()
        return value

    async def state(self, number: int) -> EntryState | None:
        value = await self.store.get(KEYS[number])
        entry = Entry.decode(value) if value else None
        return entry.state if entry else None


async def test_claim_is_written_only_where_nothing_else_is() -> None:
    site = Site()
    theirs = await site.put(1, EntryState.CLAIMED)
    assert await site.entries.claim(0, None, NO_PAST)
    assert not await site.entries.claim(1, None, NO_PAST)
    assert await site.state(0) is EntryState.CLAIMED
    assert await site.store.get(KEYS[1]) == theirs


async def test_what_is_free_is_taken_with_its_past_in_one_visit() -> None:
    site = Site()
    past = NO_PAST.doubted(HOST)
    left = Entry(EntryState.DEFERRED, site.others, 0.0, past=past).encode()
    await site.store.put(KEYS[0], left, site.store.now + 900)
    site.store.visits.clear()
    assert await site.entries.take([0, 1]) == {0: past, 1: NO_PAST}
    assert site.store.visits == ["get_many"]
    assert site.entries.held([0, 1]) == {0: left, 1: None}


async def test_outcome_of_another_delivery_is_known_from_then_on() -> None:
    site = Site()
    await site.store.put(KEYS[0], VALUE, site.store.now + 900)
    assert site.entries.earlier(0) is None
    found, there = await site.entries.look(0)
    assert isinstance(found, Delivered)
    assert there == site.entries.earlier(0) == VALUE
    assert site.entries.earlier(1) is None


# -- the dot ------------------------------------------------------------------------


async def test_dots_are_written_all_or_none() -> None:
    site = Site()
    await site.put(1, EntryState.CLAIMED)
    notes = site.entries.dots(HOST, PASTS)
    assert not await site.entries.write_dots(site.entries.held(notes), notes)
    assert await site.state(0) is None
    assert await site.state(1) is EntryState.CLAIMED


@pytest.mark.parametrize("pasts", [PASTS, {0: NO_PAST.doubted(HOST), 1: NO_PAST}])
async def test_recipient_that_is_named_twice_has_one_row(
    pasts: Mapping[int, Past],
) -> None:
    site = Site(TWICE)
    notes = site.entries.dots(HOST, pasts)
    assert notes[0] == notes[1]
    assert await site.entries.write_dots(site.entries.held(notes), notes)
    assert site.entries.held([0, 1]) == notes
    assert await site.state(0) is EntryState.DOT_SENT


async def test_recipient_without_a_key_has_no_dot_and_no_claim() -> None:
    site = Site({0: KEYS[0]})
    assert [*site.entries.dots(HOST, PASTS)] == [*site.entries] == [0]
    assert 1 not in site.entries
    assert site.entries.claim_here(1)
    site.entries.release(1)


@pytest.mark.parametrize("is_there", [False, True])
async def test_dots_are_recorded_where_there_is_nothing(is_there: bool) -> None:
    site = Site()
    if is_there:
        await site.put(1, EntryState.CLAIMED)
    answer = asyncio.get_running_loop().create_future()
    notes = site.entries.dots(HOST, PASTS)
    site.entries.record_dots(notes, answer.set_result)
    assert all(await answer) is not is_there
    held = site.entries.held([0, 1])
    assert held == ({0: None, 1: None} if is_there else notes)


class Mute(Visited):
    """Does what is submitted, and says so later."""

    def submit(self, operation: Operation[Any], told: Callable[[Any], None]) -> Any:
        done = operation.on(self.rows)
        self.say = lambda: told(done)


async def test_dot_that_was_not_sent_is_no_doubt() -> None:
    """The store may have written it, and not said so."""
    site = Site(store=Mute())
    answers: list[object] = []
    site.entries.record_dots(site.entries.dots(HOST, {0: NO_PAST}), answers.append)
    assert await site.state(0) is EntryState.DOT_SENT
    assert (await site.entries.take([0])) == {0: NO_PAST}
    site.store.say()
    assert answers == [[True]]
    assert (await site.entries.take([0])) == {0: NO_PAST.cut_off(HOST)}


# -- what became of it ----------------------------------------------------------------


@pytest.mark.parametrize("state", EntryState)
async def test_truth_replaces_whatever_is_there(state: EntryState) -> None:
    site = Site()
    await site.put(0, state)
    await site.entries.leave(0, TAKEN, NO_PAST)
    assert await site.store.get(KEYS[0]) == VALUE


@pytest.mark.parametrize("kept", [KEPT, KEPT_IN_PART])
async def test_entry_is_kept_as_long_as_was_said(kept: float) -> None:
    site = Site()
    await site.entries.leave(0, TAKEN, NO_PAST, kept=kept)
    site.store.now += kept - 1
    assert await site.store.get(KEYS[0]) == VALUE
    site.store.now += 1
    assert await site.store.get(KEYS[0]) is None


async def test_what_is_put_later_is_told_once_it_is_there() -> None:
    site = Site()
    answer = asyncio.get_running_loop().create_future()
    site.entries.leave_later(0, TAKEN, NO_PAST, answer.set_result, may_wait=True)
    assert await answer is None
    site.store.now += KEPT - 1
    assert await site.store.get(KEYS[0]) == VALUE


@pytest.mark.parametrize("verb", ["leave", "await", "drop"])
async def test_all_else_leaves_the_entry_of_another_process(verb: str) -> None:
    site = Site()
    assert await site.entries.claim(0, None, NO_PAST)
    theirs = await site.put(0, EntryState.CLAIMED)
    match verb:
        case "leave":
            await site.entries.leave(0, REFUSED, NO_PAST)
        case "await":
            await site.entries.leave(0, LATER, NO_PAST, awaits=HOST)
        case _:
            await site.entries.drop(0)
    assert await site.store.get(KEYS[0]) == theirs


async def test_what_another_delivery_of_us_has_left_is_replaced() -> None:
    site = Site()
    await site.put(0, EntryState.DEFERRED, NO_PAST.doubted(HOST))
    await site.entries.take([0])
    await site.entries.leave(0, REFUSED, NO_PAST)
    assert await site.state(0) is EntryState.REFUSED


@pytest.mark.parametrize(
    "outcome", [TAKEN, REFUSED, LATER], ids=["taken", "refused", "put off"]
)
async def test_outcome_of_another_delivery_stays(outcome: Outcome) -> None:
    site = Site()
    await site.store.put(KEYS[0], VALUE, site.store.now + 900)
    await site.entries.look(0)
    await site.entries.leave(0, outcome, NO_PAST.doubted(HOST))
    assert await site.store.get(KEYS[0]) == VALUE


async def test_awaited_reply_is_told_of_with_the_time_of_its_dot() -> None:
    site = Site()
    notes = site.entries.dots(HOST, {0: NO_PAST})
    assert await site.entries.write_dots(site.entries.held(notes), notes)
    site.store.now += 600
    await site.entries.leave(0, LATER, NO_PAST.doubted(HOST), awaits=HOST)
    value = await site.store.get(KEYS[0])
    entry = Entry.decode(value) if value else None
    assert entry is not None
    assert entry.state is EntryState.WAITING
    assert "1970-01-12T13:46:40Z" in entry.text


async def test_drop_deletes_what_is_ours_and_asks_only_where_there_may_be_some() -> (
    None
):
    site = Site()
    await site.entries.drop(0)
    assert site.store.visits == []
    assert await site.entries.claim(0, None, NO_PAST)
    await site.entries.drop(0)
    assert await site.state(0) is None
    assert site.entries.held([0]) == {0: None}


async def test_claims_of_this_process_end_with_a_release() -> None:
    site = Site()
    second = site.of_delivery()
    assert site.entries.claim_here(0)
    assert site.entries.claim_here(1)
    assert not second.claim_here(0)
    site.entries.release(0)
    assert second.claim_here(0)
    assert not second.claim_here(1)
    site.entries.release_all()
    assert second.claim_here(1)
