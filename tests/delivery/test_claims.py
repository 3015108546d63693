"""The journal at work: several deliveries of one message, over one store."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest

from mxpolicy.delivery.claims import Claims, TakenOver
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.entries import KEPT, KEPT_IN_PART, Entries
from mxpolicy.delivery.journal import (
    NO_PAST,
    Entry,
    EntryState,
    Past,
    awaited,
    meaning,
    outcome_entry,
    waiting_entry,
)
from mxpolicy.delivery.outcome_notes import OutcomeNotes
from mxpolicy.delivery.owner import Calls, Owner, myself
from mxpolicy.delivery.settlement import RecipientState, Settlement
from mxpolicy.errors import StoreError
from mxpolicy.options import Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.state.store import StoreBusy
from tests.helpers.failing_store import FailingStore
from tests.helpers.slow_store import SlowOnce
from tests.helpers.socket_loop import run_with_sockets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping, Sequence

    from mxpolicy.outcome import Outcome
    from mxpolicy.state.store import Operation, Store

T = TypeVar("T")

HOST, OTHER = "mx1.example[192.0.2.1]:25", "mx2.example[192.0.2.2]:25"
TAKEN = Delivered(EnhancedStatus(2, 0, 0), "250 2.0.0 Ok", Reply(250, ("Ok",)), HOST)
REFUSED = Bounced(EnhancedStatus(5, 1, 1), "550 5.1.1 Who?", None, HOST)
LATER = Deferred(EnhancedStatus(4, 2, 2), "452 4.2.2 Full", None, HOST)
IN_DOUBT = Deferred(EnhancedStatus(4, 4, 2), "no answer", None, HOST, True)
KEYS = {0: "journal/a", 1: "journal/b", 2: "journal/c"}


def started(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (proc(5))."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])


class Site:
    """A store, and the deliveries that use it."""

    def __init__(
        self, store: Store | None = None, *, keeps_claims: bool = False
    ) -> None:
        self.now = 1_000_000.0
        self.told: list[str] = []
        self.calls = Calls(keeps_claims=keeps_claims)
        self.store = store or MemoryStore(self.utc)

    @property
    def claimed(self) -> EntryState | None:
        """What the store has of a recipient that is claimed."""
        return None if self.calls.keeps_claims else EntryState.CLAIMED

    def utc(self) -> float:
        return self.now

    def claims(
        self, deadline: float = 900.0, keys: Mapping[int, str] | None = None
    ) -> Call:
        return Call(self, deadline, KEYS if keys is None else keys)

    def tell(self, error: Exception) -> None:
        self.told.append(str(error))

    async def entry(self, index: int) -> Entry | None:
        value = await self.store.get(KEYS[index])
        return Entry.decode(value) if value is not None else None

    async def state(self, index: int) -> EntryState | None:
        entry = await self.entry(index)
        return entry.state if entry else None

    async def another(self, state: EntryState, relay: str = "", *, alive: bool) -> None:
        """Put the entry of another process for recipient 0."""
        parent = myself()._replace(pid=os.getppid(), call="other")
        owner = parent._replace(started=started(parent.pid) + (not alive))
        entry = Entry(state, owner, self.now + 900, relay)
        if state is EntryState.WAITING:
            past = NO_PAST.doubted(HOST)
            entry = waiting_entry(
                HOST, "1970-01-12T13:46:40Z", owner, entry.until, past
            )
        await self.store.put(KEYS[0], entry.encode(), self.now + KEPT)


class Claim(NamedTuple):
    """How the recipients stand that were asked for."""

    ours: list[int]
    settled: dict[int, Outcome]
    busy: list[int]


class Call:
    """One delivery: its claims, and the recipients that it has asked for."""

    def __init__(self, site: Site, deadline: float, keys: Mapping[int, str]) -> None:
        self._settlement = Settlement(
            ["bob@example.com"] * (max(KEYS) + 1),
            lambda one: self._notes.note(one),
        )
        self._keys = dict(keys)
        context = Context(Options(), store=site.store, utc=site.utc, calls=site.calls)
        self.owner = site.calls.begin()
        entries = Entries(context, self._keys, self.owner, deadline)
        shared = entries, self._settlement, site.tell
        self._claims, self._notes = Claims(*shared), OutcomeNotes(*shared)

    async def claim(self, numbers: Iterable[int]) -> Claim:
        asked = list(numbers)
        for number in set(self._keys).difference(asked):
            del self._keys[number]  # not of this call
        await self._claims.claim(asked)
        return self._stands(asked)

    async def claim_later(self, numbers: Iterable[int], seconds: float) -> Claim:
        asked = list(numbers)
        await self._claims.claim_later(asked, seconds)
        return self._stands(asked)

    def _stands(self, numbers: list[int]) -> Claim:
        known = {number: self._settlement[number].outcome for number in numbers}
        return Claim(
            self._settlement.those(RecipientState.OPEN, numbers),
            {number: one for number, one in known.items() if one is not None},
            [
                number
                for number in numbers
                if self._settlement[number].state
                in (RecipientState.ELSEWHERE, RecipientState.UNCLAIMED)
            ],
        )

    def past(self, number: int) -> Past:
        return self._settlement[number].past

    def doubts(self, number: int) -> Mapping[str, int]:
        return self._settlement[number].past.doubts

    def waits(self, number: int) -> Mapping[tuple[str, str], float]:
        return self._settlement[number].past.waits

    def note_doubt(self, numbers: Iterable[int], relay: str) -> None:
        for number in numbers:
            recipient = self._settlement[number]
            recipient.past = recipient.past.doubted(relay)

    def note_wait(
        self, numbers: Iterable[int], relay: str, awaited: str, seconds: float
    ) -> None:
        for number in numbers:
            recipient = self._settlement[number]
            recipient.past = recipient.past.waited(relay, awaited, seconds)

    async def record_dot(self, relay: str, numbers: Sequence[int]) -> bool:
        """Return whether all is written, before anything is claimed."""
        answer = asyncio.get_running_loop().create_future()
        self._claims.record_dot(relay, numbers, answer.set_result)
        return bool(await answer)

    async def dot_is_next(self, relay: str, numbers: Iterable[int]) -> None:
        await self._claims.dot_is_next(relay, numbers)

    def settled(self, number: int, outcome: Outcome) -> None:
        recipient = self._settlement[number]
        if recipient.outcome is None:
            is_taken = isinstance(outcome, Delivered)
            recipient.state = (
                RecipientState.TAKEN if is_taken else RecipientState.DOT_SENT
            )
            self._settlement.settle(number, outcome)

    def put_off(self, numbers: Iterable[int]) -> None:
        """Their dot is out, and was not answered in time; the host is listened to."""
        for number in numbers:
            recipient = self._settlement[number]
            recipient.state, recipient.relay = RecipientState.DOT_SENT, HOST
            self._settlement.may_answer([number], HOST)
            assert self._settlement.doubted(number, IN_DOUBT, True)
            self._settlement.settle(number, IN_DOUBT)

    async def hear_late(self, reply: Reply | None) -> None:
        await self._notes.finish_late(self._settlement.answered_late(HOST, reply))

    async def finish(self, outcomes: Iterable[Outcome]) -> None:
        """*outcomes* are all that there are: of these, and of recipients without a key."""
        others = [one for one in outcomes if not isinstance(one, Delivered)]
        for number in self._settlement.unsettled():
            self._keys.pop(number, None)
            self.settled(number, others[0] if others else TAKEN)
        await self._notes.finish()


Play = Callable[..., float]


@pytest.fixture(params=[False, True], ids=["stored", "in_memory"])
def play(request: pytest.FixtureRequest) -> Play:
    """Does some work at a site, and returns the seconds it took."""

    def play(
        work: Callable[[Site], Awaitable[None]], store: Store | None = None
    ) -> float:
        async def main() -> float:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await work(Site(store, keeps_claims=request.param))
            return loop.time() - began

        return run_with_sockets(main())

    return play


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (TAKEN, EntryState.DELIVERED),
        (REFUSED, None),
        (LATER, None),
        (IN_DOUBT, EntryState.DEFERRED),
    ],
)
@pytest.mark.parametrize("dot", [True, False])
def test_entry_goes_from_claim_over_the_dot_to_the_outcome(
    outcome: Outcome, state: EntryState | None, dot: bool, play: Play
) -> None:
    async def work(site: Site) -> None:
        claims = site.claims()
        assert await claims.claim([0]) == ([0], {}, [])
        assert await site.state(0) is site.claimed
        if dot:
            await claims.dot_is_next(HOST, [0])
            assert await site.state(0) is EntryState.DOT_SENT
        if outcome is IN_DOUBT:
            claims.note_doubt([0], HOST)
        claims.settled(0, outcome)
        await claims.finish([outcome])
        assert await site.state(0) is state

    play(work)


@pytest.mark.parametrize(
    ("reply", "state", "found"),
    [
        pytest.param(Reply(250, ("2.0.0 Ok",)), EntryState.DELIVERED, None, id="250"),
        pytest.param(Reply(554, ("Spam",)), EntryState.DEFERRED, ({}, 1), id="554"),
        pytest.param(Reply(451, ("No",)), EntryState.DEFERRED, ({}, 1), id="451"),
        pytest.param(None, EntryState.DEFERRED, ({HOST: 1}, 1), id="silence"),
    ],
)
def test_late_reply_decides_what_the_next_attempt_finds(
    reply: Reply | None,
    state: EntryState,
    found: tuple[Mapping[str, int], int] | None,
    play: Play,
) -> None:
    async def work(site: Site) -> None:
        first = site.claims()
        await first.claim([0, 1])
        await first.dot_is_next(HOST, [0, 1])
        site.now += 600
        first.put_off([0, 1])
        await first.finish([])
        for again in (site.claims(), site.claims()):  # by whomever, at once
            claim = await again.claim([0, 1])
            assert claim.ours == []
            assert claim.busy == []
            assert claim.settled == dict.fromkeys(
                (0, 1), awaited(HOST, "1970-01-12T13:46:40Z")
            )
            await again.finish(claim.settled.values())
            assert await site.state(0) is EntryState.WAITING
        site.now += 3600
        await first.hear_late(reply)
        assert [await site.state(one) for one in (0, 1)] == [state] * 2
        site.now += KEPT_IN_PART - 1
        last = site.claims()
        claim = await last.claim([0, 1])
        if found is None:
            assert {type(one) for one in claim.settled.values()} == {Delivered}
        else:
            assert claim.ours == [0, 1]
            past = last.past(0)
            assert (past.doubts, past.unanswered[HOST]) == found

    play(work)


def test_recipients_who_have_it_are_kept_for_days_beside_one_who_waits(
    play: Play,
) -> None:
    async def work(site: Site) -> None:
        first = site.claims()
        await first.claim([0, 1, 2])
        await first.dot_is_next(HOST, [0, 1])
        first.settled(1, TAKEN)
        first.settled(2, REFUSED)
        first.put_off([0])
        await first.finish([])
        await first.hear_late(Reply(250, ("2.0.0 Ok",)))
        site.now += KEPT_IN_PART - 1
        claim = await site.claims().claim([0, 1, 2])
        kinds = [type(claim.settled[one]) for one in (0, 1, 2)]
        assert kinds == [Delivered, Delivered, Bounced]

    play(work)


def test_wait_ends_for_others_with_its_process_and_with_its_time(play: Play) -> None:
    async def work(site: Site) -> None:
        await site.another(EntryState.WAITING, alive=False)
        dead = site.claims()
        assert (await dead.claim([0])).ours == [0]
        assert dead.doubts(0) == {HOST: 1}
        site.calls.end(dead.owner)
        await site.another(EntryState.WAITING, alive=True)
        assert (await site.claims().claim([0])).ours == []
        site.now += 900
        late = site.claims()
        assert (await late.claim([0])).ours == [0]
        assert late.doubts(0) == {HOST: 1}

    play(work)


def test_late_250_is_the_truth_though_another_process_has_claimed_it(
    play: Play,
) -> None:
    async def work(site: Site) -> None:
        first = site.claims()
        await first.claim([0])
        await first.dot_is_next(HOST, [0])
        first.put_off([0])
        await first.finish([])
        site.now += 30 * 3600  # a clock was wrong
        other = site.claims()
        assert (await other.claim([0])).ours == [0]
        await first.hear_late(Reply(250, ("2.0.0 Ok",)))
        assert await site.state(0) is EntryState.DELIVERED
        with pytest.raises(TakenOver):
            await other.dot_is_next(OTHER, [0])

    play(work)


def test_late_refusal_leaves_the_claim_of_another_process(play: Play) -> None:
    async def work(site: Site) -> None:
        first = site.claims()
        await first.claim([0])
        await first.dot_is_next(HOST, [0])
        first.put_off([0])
        await first.finish([])
        site.now += 30 * 3600
        other = site.claims()
        assert (await other.claim([0])).ours == [0]
        await first.hear_late(Reply(554, ("Spam",)))
        assert await site.state(0) is (site.claimed or EntryState.DEFERRED)
        await other.dot_is_next(OTHER, [0])

    play(work)


def test_settled_recipients_are_settled_for_whoever_comes_next(play: Play) -> None:
    async def work(site: Site) -> None:
        first = site.claims()
        await first.claim(KEYS)
        outcomes: list[Outcome] = [TAKEN, REFUSED, LATER]
        for index, outcome in enumerate(outcomes):
            first.settled(index, outcome)
        await first.finish(outcomes)
        for _ in range(3):  # however often the third is deferred
            again = site.claims()
            claim = await again.claim(KEYS)
            assert claim.ours == [2]
            assert claim.busy == []
            taken, refused = claim.settled[0], claim.settled[1]
            assert isinstance(taken, Delivered)
            assert taken.text == "250 2.0.0 Ok (delivered earlier)"
            assert refused == REFUSED
            again.settled(0, taken)
            again.settled(1, refused)
            again.settled(2, LATER)
            await again.finish([taken, refused, LATER])

    play(work)


def test_message_settled_in_part_is_remembered_as_long_as_it_may_come_back(
    play: Play,
) -> None:
    async def work(site: Site) -> None:
        whole, part = site.claims(), site.claims()
        await whole.claim([0])
        whole.settled(0, TAKEN)
        await whole.finish([TAKEN])
        await part.claim([1, 2])
        part.settled(1, TAKEN)
        part.settled(2, LATER)
        await part.finish([TAKEN, LATER])
        site.now += KEPT + 1
        assert await site.state(0) is None
        assert await site.state(1) is EntryState.DELIVERED
        again = site.claims()  # each retry adds the whole time
        claim = await again.claim([1, 2])
        again.settled(1, claim.settled[1])
        again.settled(2, LATER)
        await again.finish([claim.settled[1], LATER])
        site.now += KEPT_IN_PART - 1
        assert await site.state(1) is EntryState.DELIVERED
        site.now += 2
        assert await site.state(1) is None

    play(work)


@pytest.mark.parametrize(
    ("outcomes", "durable"),
    [
        ((TAKEN, TAKEN, LATER), [False, False, False, True]),
        ((TAKEN, TAKEN, REFUSED), [False, False, False, True]),
        ((TAKEN, TAKEN, TAKEN), [False, False, False]),
        ((LATER, REFUSED, REFUSED), []),
    ],
)
def test_loss_of_power_does_not_send_again_what_is_unsettled_for_others_only(
    outcomes: tuple[Outcome, ...], durable: list[bool], play: Play
) -> None:
    class Noting(MemoryStore):
        def __init__(self) -> None:
            super().__init__(lambda: 1_000_000.0)
            self.puts: list[bool] = []

        async def put(
            self,
            key: str,
            value: bytes,
            expires: float,
            *,
            weight: int | None = None,
            durable: bool = False,
        ) -> None:
            self.puts.append(durable)
            await super().put(key, value, expires, weight=weight, durable=durable)

    store = Noting()

    async def work(site: Site) -> None:
        claims = site.claims()
        await claims.claim(KEYS)
        for index, outcome in enumerate(outcomes):
            claims.settled(index, outcome)
        await claims.finish(outcomes)
        assert store.puts == durable

    play(work, store)


@pytest.mark.parametrize("others", [[], [TAKEN], [TAKEN, REFUSED]])
def test_refusal_is_forgotten_when_all_is_said_and_a_delivery_is_not(
    others: list[Outcome], play: Play
) -> None:
    # The mail server may have made a deferral of it, and mended the host meanwhile.
    outcomes = [REFUSED, *others]
    indices = range(len(outcomes))

    async def work(site: Site) -> None:
        first = site.claims()
        await first.claim(indices)
        for index in indices:
            first.settled(index, outcomes[index])
        await first.finish(outcomes)
        for _ in range(9):  # as long as the mail server keeps it
            site.now += KEPT - 1
            again = site.claims()
            claim = await again.claim(indices)
            assert claim.ours == [n for n in indices if outcomes[n] is REFUSED]
            assert list(claim.settled) == [n for n in indices if outcomes[n] is TAKEN]
            for index in indices:
                again.settled(index, claim.settled.get(index, REFUSED))
            await again.finish([claim.settled.get(n, REFUSED) for n in indices])

    play(work)


def test_refusal_is_told_again_until_the_last_recipient_is_settled(play: Play) -> None:
    async def work(site: Site) -> None:
        for last, known in ((LATER, []), (LATER, [0]), (TAKEN, [0]), (REFUSED, [])):
            claims = site.claims()
            claim = await claims.claim([0, 1])
            assert [n for n in claim.settled if n == 0] == known
            outcomes = [REFUSED, claim.settled.get(1, last)]
            for index, outcome in enumerate(outcomes):
                claims.settled(index, outcome)
            await claims.finish(outcomes)

    play(work)


def test_delivery_is_kept_as_long_as_it_is_asked_for(play: Play) -> None:
    async def work(site: Site) -> None:
        for asked in range(5):
            claims = site.claims()
            claim = await claims.claim([0])
            assert list(claim.settled) == [0] * bool(asked)
            claims.settled(0, claim.settled.get(0, TAKEN))
            await claims.finish([claim.settled.get(0, TAKEN)])
            site.now += KEPT - 1
        site.now += 2
        assert await site.state(0) is None

    play(work)


def test_recipient_of_another_delivery_is_waited_for_and_then_settled(
    play: Play,
) -> None:
    async def work(site: Site) -> None:
        first, second = site.claims(), site.claims()
        await first.claim([0, 1])
        assert await second.claim([0, 2]) == ([2], {}, [0])

        async def deliver() -> None:
            await asyncio.sleep(3)
            first.settled(0, TAKEN)

        delivery = asyncio.create_task(deliver())
        began = asyncio.get_running_loop().time()
        claim = await second.claim_later([0], 30)
        assert list(claim.settled) == [0]
        assert not claim.ours + claim.busy
        assert 3 <= asyncio.get_running_loop().time() - began < 4
        await delivery

    play(work)


def test_delivery_that_takes_too_long_is_left_to_itself(play: Play) -> None:
    async def work(site: Site) -> None:
        await site.another(EntryState.CLAIMED, alive=True)
        assert await site.claims().claim_later([0], 30) == ([], {}, [0])

    assert 30 <= play(work) < 31


def test_recipient_that_another_delivery_has_let_go_is_ours(play: Play) -> None:
    async def work(site: Site) -> None:
        first, second = site.claims(), site.claims()
        await first.claim([0])
        first.settled(0, LATER)
        assert await second.claim_later([0], 30) == ([0], {}, [])
        await first.finish([LATER])
        assert await site.state(0) is site.claimed

    play(work)


@pytest.mark.parametrize("state", [EntryState.CLAIMED, EntryState.DOT_SENT])
def test_entry_of_a_dead_process_is_ours_and_tells_who_may_have_it(
    state: EntryState, play: Play
) -> None:
    relay = HOST if state is EntryState.DOT_SENT else ""

    async def work(site: Site) -> None:
        await site.another(state, relay, alive=False)
        claims = site.claims()
        assert await claims.claim([0]) == ([0], {}, [])
        doubts = {HOST: 1} if relay else {}
        assert claims.doubts(0) == doubts
        # Killed now, the one after us is still told.
        entry = await site.entry(0)
        assert entry is not None
        found = meaning(entry, myself(), site.now, alive=False)
        assert isinstance(found, Past)
        assert found.doubts == doubts
        claims.settled(0, LATER)
        await claims.finish([LATER])
        assert site.claims().doubts(0) == {}
        next_one = site.claims()
        assert await next_one.claim([0]) == ([0], {}, [])
        assert next_one.doubts(0) == doubts

    play(work)


def test_doubts_and_waits_of_a_deferred_recipient_add_up_until_it_is_settled(
    play: Play,
) -> None:
    async def work(site: Site) -> None:
        for times in (1, 2, 3):
            claims = site.claims()
            assert await claims.claim([0, 1]) == ([0, 1], {}, [])
            assert claims.doubts(0) == ({HOST: times - 1} if times > 1 else {})
            await claims.dot_is_next(HOST, [0, 1])
            claims.note_wait([1], "mx2.example", "rcpt", 60.0)
            claims.note_doubt([0], HOST)
            claims.settled(0, IN_DOUBT)
            claims.settled(1, LATER)
            await claims.finish([IN_DOUBT, LATER])
            site.now += 5 * 24 * 3600  # a long retry interval
        claims = site.claims()
        await claims.claim([0, 1])
        assert claims.doubts(0) == {HOST: 3}
        assert claims.waits(0) == {}
        assert claims.doubts(1) == {}
        assert claims.waits(1) == {("mx2.example", "rcpt"): 180.0}
        claims.settled(0, TAKEN)
        claims.settled(1, TAKEN)
        await claims.finish([TAKEN, TAKEN])
        entry = await site.entry(0)
        assert entry is not None
        assert entry.past == NO_PAST

    play(work)


def test_doubt_of_this_attempt_outlives_a_kill_before_the_next_dot_is_answered(
    play: Play,
) -> None:
    async def work(site: Site) -> None:
        claims = site.claims()
        await claims.claim([0])
        await claims.dot_is_next(HOST, [0])
        claims.note_doubt([0], HOST)
        await claims.dot_is_next(OTHER, [0])
        site.now += 2000  # we are dead
        again = site.claims()
        assert await again.claim([0]) == ([0], {}, [])
        assert again.doubts(0) == {HOST: 1, OTHER: 1}

    play(work)


def test_doubt_is_told_though_the_claim_could_not_be_written(play: Play) -> None:
    async def work(site: Site) -> None:
        claims = site.claims()
        # Never claimed, as far as the store knows.
        claims.note_doubt([0], HOST)
        claims.settled(0, IN_DOUBT)
        await claims.finish([IN_DOUBT])
        again = site.claims()
        await again.claim([0])
        assert again.doubts(0) == {HOST: 1}

    play(work)


def test_host_that_refused_it_for_now_is_in_no_doubt_any_more(play: Play) -> None:
    async def work(site: Site) -> None:
        claims = site.claims()
        await claims.claim([0])
        await claims.dot_is_next(HOST, [0])  # and it answers 4yz
        await claims.dot_is_next(OTHER, [0])  # which leaves no doubt either
        entry = await site.entry(0)
        assert entry is not None
        assert entry.relay == OTHER
        claims.settled(0, LATER)
        await claims.finish([LATER])
        assert await site.state(0) is None

    play(work)


@pytest.mark.parametrize(
    "state", [one for one in EntryState if one is not EntryState.DEFERRED]
)
def test_dot_is_not_sent_when_another_process_has_taken_over(
    state: EntryState, play: Play
) -> None:
    async def work(site: Site) -> None:
        claims = site.claims(deadline=10)
        await claims.claim([0])
        site.now += 100  # far longer than we said, and others believed it
        if state in (EntryState.DELIVERED, EntryState.REFUSED):
            outcome = TAKEN if state is EntryState.DELIVERED else REFUSED
            entry = outcome_entry(outcome)
            await site.store.put(KEYS[0], entry.encode(), site.now + KEPT)
        else:
            await site.another(state, alive=True)
        before = await site.entry(0)
        with pytest.raises(TakenOver):
            await claims.dot_is_next(HOST, [0])
        claims.settled(0, LATER)
        await claims.finish([LATER])
        assert await site.entry(0) == before

    play(work)


@pytest.mark.parametrize("keeps_claims", [False, True])
@pytest.mark.parametrize("is_fast", [False, True])
def test_recipient_that_is_named_twice_has_one_entry(
    keeps_claims: bool, is_fast: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path / "state.sqlite3"))
        site = Site(store, keeps_claims=keeps_claims)
        site.now = time.time()
        claims = site.claims(keys={0: KEYS[0], 1: KEYS[0], 2: KEYS[2]})
        async with asyncio.timeout(5):
            if is_fast:
                assert await claims.record_dot(HOST, [0, 1, 2])
            assert await claims.claim([0, 1, 2]) == ([0, 1, 2], {}, [])
            await claims.dot_is_next(HOST, [0, 1, 2])
            assert await site.state(0) is EntryState.DOT_SENT
            for number in range(3):
                claims.settled(number, TAKEN)
            await claims.finish([TAKEN] * 3)
            again = site.claims(keys={0: KEYS[0], 1: KEYS[0], 2: KEYS[2]})
            settled = {0: TAKEN, 1: TAKEN, 2: TAKEN}
            assert (await again.claim([0, 1, 2])).settled.keys() == settled.keys()
        await store.close()

    asyncio.run(main())


def test_dot_is_sent_when_the_entry_is_gone(play: Play) -> None:
    async def work(site: Site) -> None:
        claims = site.claims()
        await claims.claim([0])
        await site.store.delete(KEYS[0])  # `hosts clear`, or no room
        await claims.dot_is_next(HOST, [0])
        assert await site.state(0) is EntryState.DOT_SENT

    play(work)


def test_delivery_is_the_truth_whoever_has_written_there(play: Play) -> None:
    async def work(site: Site) -> None:
        claims = site.claims()
        await claims.claim([0, 1])
        await site.another(EntryState.CLAIMED, alive=True)
        theirs = await site.entry(0)
        assert theirs is not None
        await site.store.put(KEYS[1], theirs.encode(), site.now + KEPT)
        claims.settled(0, TAKEN)
        claims.settled(1, REFUSED)
        await claims.finish([TAKEN, REFUSED])
        assert await site.state(0) is EntryState.DELIVERED
        assert await site.entry(1) == theirs

    play(work)


def test_nobody_without_a_key_is_in_the_journal(play: Play) -> None:
    async def work(site: Site) -> None:
        claims = site.claims(keys={})
        assert await claims.claim([0, 1]) == ([0, 1], {}, [])
        await claims.dot_is_next(HOST, [0, 1])
        claims.settled(0, TAKEN)
        claims.settled(1, LATER)
        await claims.finish([TAKEN, LATER])
        assert await site.store.scan("") == []

    play(work)


def test_bug_in_one_write_is_told_and_the_others_are_written(play: Play) -> None:
    class Buggy(MemoryStore):
        async def delete(self, key: str, old: bytes | None = None) -> bool:
            raise RuntimeError("a bug of the store's")

    async def work(site: Site) -> None:
        claims = site.claims()
        await claims.claim([0, 1])
        await claims.dot_is_next(HOST, [0, 1])
        claims.settled(0, LATER)
        claims.settled(1, TAKEN)
        await claims.finish([LATER, TAKEN])
        assert await site.state(1) is EntryState.DELIVERED
        assert site.told == ["a bug of the store's"]

    play(work, Buggy(lambda: 1_000_000.0))


# -- a store that fails -----------------------------------------------------------


@pytest.mark.parametrize("outcome", [TAKEN, REFUSED, LATER, IN_DOUBT])
@pytest.mark.parametrize(
    ("after", "error"),
    [*((after, StoreError) for after in range(8)), (0, StoreBusy), (3, StoreBusy)],
)
def test_store_that_fails_at_any_moment_stops_nothing(
    error: type[StoreError], after: int, outcome: Outcome, play: Play
) -> None:
    async def work(site: Site) -> None:
        claims = site.claims()
        assert await claims.claim([0]) == ([0], {}, [])
        await claims.dot_is_next(HOST, [0])
        claims.settled(0, outcome)
        await claims.finish([outcome, LATER])

    told: list[str] = []
    store = FailingStore(error("no"), lambda number, _: number >= after)
    seconds = play(work, FallbackStore(store, told.append))
    # A store that is away is left at once; a busy one has ten seconds, and sixty once
    # there was a dot.
    assert seconds < (1 if error is StoreError else 85)
    if error is StoreError:
        assert len(told) <= 1


def test_busy_store_is_given_time_since_a_copy_may_depend_on_it(play: Play) -> None:
    class BusyForAWhile(MemoryStore):
        until = 0.0

        async def do(self, operation: Operation[T]) -> T:
            if asyncio.get_running_loop().time() < self.until:
                raise StoreBusy("no")
            return await super().do(operation)

    store = BusyForAWhile(lambda: 1_000_000.0)

    async def work(site: Site) -> None:
        entry = outcome_entry(TAKEN)
        await store.put(KEYS[0], entry.encode(), site.now + KEPT)
        store.until = asyncio.get_running_loop().time() + 5
        claim = await site.claims().claim([0])
        assert list(claim.settled) == [0]

    assert 5 <= play(work, FallbackStore(store, print)) < 6


async def one_delivered_and_one_not(store: SlowOnce) -> int:
    """Deliver to recipient 0 and not to 1; return the visits before the host took it."""
    site = Site(FallbackStore(store, print))
    claims = site.claims()
    await claims.claim([0, 1])
    await claims.dot_is_next(HOST, [0, 1])
    before = store.visits
    claims.settled(0, TAKEN)
    claims.settled(1, LATER)
    await claims.finish([TAKEN, LATER])
    return before


def visits() -> tuple[int, int]:
    """Return how many visits there are in all, and before the host has taken it."""
    store = SlowOnce("done late", -1, 0.0)
    before = run_with_sockets(one_delivered_and_one_not(store))
    return store.visits, before


@pytest.mark.parametrize("how", ["done late", "told late"])
@pytest.mark.parametrize("at", range(visits()[0]))
def test_one_slow_visit_to_the_store_costs_no_copy(
    at: int, how: str, play: Play
) -> None:
    _, before = visits()
    store = SlowOnce(how, at, 9.5 if at < before else 59.0)

    async def work(site: Site) -> None:
        await one_delivered_and_one_not(store)
        store.at = -1
        claim = await site.claims().claim([0, 1])
        assert list(claim.settled) == [0]
        assert claim.ours == [1]

    play(work, FallbackStore(store, print))


@pytest.mark.parametrize("how", ["done late", "told late"])
@pytest.mark.parametrize("at", range(visits()[1]))
def test_claim_or_dot_that_was_written_too_late_is_still_ours(
    at: int, how: str, play: Play
) -> None:
    store = SlowOnce(how, at, 10.5)  # longer than anybody waits

    async def work(site: Site) -> None:
        claims = site.claims()
        assert (await claims.claim([0, 1])).ours == [0, 1]
        await asyncio.sleep(20)
        await claims.dot_is_next(HOST, [0, 1])
        await asyncio.sleep(20)
        await claims.dot_is_next(OTHER, [0, 1])
        claims.settled(0, LATER)
        claims.settled(1, LATER)
        await claims.finish([LATER, LATER])
        await asyncio.sleep(20)
        for index in (0, 1):
            entry = await site.entry(index)
            assert entry is None

    play(work, FallbackStore(store, print))


# -- processes ----------------------------------------------------------------------

_CLAIM = """
import asyncio, sys
from mxpolicy.delivery.claims import Claims
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.entries import Entries
from mxpolicy.delivery.settlement import RecipientState, Settlement
from mxpolicy.options import Options
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.sqlite import SqliteStore

async def main():
    store = FallbackStore(SqliteStore(sys.argv[1]), print)
    settlement = Settlement(["bob@example.com"], print)
    context = Context(Options(), store=store)
    owner = context.calls.begin()
    entries = Entries(context, {0: "journal/a"}, owner, 900.0)
    claims = Claims(entries, settlement, print)
    await claims.claim([0])
    ours = settlement.those(RecipientState.OPEN, [0])
    if ours:
        await claims.dot_is_next("mx.example[192.0.2.1]:25", [0])
    print("ours" if ours else "busy", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def test_of_many_processes_one_delivers_and_its_death_frees_the_message(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "state.sqlite3")
    command = [sys.executable, "-c", _CLAIM, path]
    many = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    try:
        said = [one.stdout.readline().strip() for one in many if one.stdout]
        assert sorted(said) == [b"busy"] * 7 + [b"ours"]
        (winner,) = (
            one for one, word in zip(many, said, strict=True) if word == b"ours"
        )
        winner.kill()
        winner.wait()

        async def work(site: Site) -> None:
            claims = site.claims()
            assert await claims.claim([0]) == ([0], {}, [])
            assert claims.doubts(0) == {"mx.example[192.0.2.1]:25": 1}

        async def main() -> None:
            store = SqliteStore(path)
            site = Site(store)
            site.now = os.stat(tmp_path / "journal.sqlite3").st_mtime
            await work(site)
            await store.close()

        asyncio.run(main())
    finally:
        for one in many:
            one.kill()
            one.communicate()


def test_owner_of_a_settled_entry_is_nobody() -> None:
    entry = outcome_entry(TAKEN)
    assert entry is not None
    assert entry.owner == Owner("", "", "", 0, 0, "")
    assert len(entry.encode()) < 100
