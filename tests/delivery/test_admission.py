"""Places at work: several deliveries over one store, on a clock that is moved."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.admission import LIMITED_FOR, PLACE, Admission, Stay
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.owner import Owner, myself
from mxpolicy.delivery.request import Request
from mxpolicy.options import LimitOptions, Options
from mxpolicy.outcome import Deferred
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict
from mxpolicy.routing.places import FIRST_ANSWER, LONGEST_LOOK, NEXT_ANSWER
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.sqlite import SqliteStore
from tests.delivery.attempts import mail_data
from tests.helpers.failing_store import FailingStore
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.fast_loop import run_fast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import Any

    from mxpolicy.net.stream import Stream
    from mxpolicy.state.store import Store

T = TypeVar("T")


LIMIT = 20
BAD, GOOD = "bad.example:25", "good.example:25"
HOST = Candidate("mx1.example", "192.0.2.1", 25, 10)
BACKUP = Candidate("mx2.example", "192.0.2.2", 25, 20)

HERE = ("machine", "boot", "namespace")


def _fail(error: Exception) -> None:
    raise AssertionError from error


class Machine:
    """Processes that deliver, all of one mail server, over one store."""

    def __init__(
        self,
        limit: int = LIMIT,
        store: Callable[[Callable[[], float]], Store] = MemoryStore,
    ) -> None:
        self.began = asyncio.get_running_loop().time()
        self.store = store(self.utc)
        self.limit = limit
        self.started = 0
        self.killed: set[int] = set()
        self.offset = 0.0

    def utc(self) -> float:
        return 1_000_000.0 + self.now() + self.offset

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    def stay(self, aim: str, where: tuple[str, str, str] = HERE) -> Stay:
        self.started += 1
        owner = Owner(*where, self.started, 7, "call")
        admission = Admission(
            self.store,
            self.limit,
            utc=self.utc,
            lives=lambda one: one.pid not in self.killed,
        )
        return Stay(admission, owner, aim, self.now, self.now() + 900.0, _fail)

    async def come(self, aim: str, *hosts: Candidate) -> Stay | Deferred:
        """Have one delivery come that dials *hosts*, as the engine would."""
        stay = self.stay(aim)
        refusal = await stay.enter()
        if refusal is None:
            stay.planned()
            refusal = await stay.dial(hosts or (HOST,))
        if refusal is not None:
            await stay.leave()
            return refusal
        stay.learn(events.CandidateStarted(self.now(), (hosts or (HOST,))[0]))
        return stay

    async def stuck(self, count: int, aim: str = BAD, *hosts: Candidate) -> list[Stay]:
        """Have *count* come of which nothing is heard any more."""
        stays = [await self.come(aim, *hosts) for _ in range(count)]
        assert all(isinstance(one, Stay) for one in stays), stays
        await asyncio.sleep(FIRST_ANSWER + 0.1)
        return [one for one in stays if isinstance(one, Stay)]

    async def rows(self) -> int:
        return len(await self.store.scan(PLACE))


def on_a_machine(
    work: Callable[[Machine], Coroutine[Any, Any, None]],
    limit: int = LIMIT,
    store: Callable[[Callable[[], float]], Store] = MemoryStore,
) -> float:
    """Run *work*; return how many seconds passed on its clock."""

    async def main() -> None:
        await work(Machine(limit, store))

    return run_fast(main())[1]


def test_destination_that_others_wait_for_is_deferred_at_once() -> None:
    async def work(machine: Machine) -> None:
        await machine.stuck(15)
        before = machine.now()
        refusal = await machine.come(BAD)
        assert machine.now() == before
        assert isinstance(refusal, Deferred)
        assert str(refusal.status) == "4.3.2"
        assert refusal.text == (
            "15 of 20 processes are in use, 15 of them by mail for bad.example:25 "
            "that waits, 2s for mx1.example[192.0.2.1]:25 (connect); others come first"
        )
        assert await machine.rows() == 15
        good = await machine.come(GOOD, BACKUP)
        assert isinstance(good, Stay)

    on_a_machine(work)


def test_nobody_is_limited_while_there_is_room() -> None:
    async def work(machine: Machine) -> None:
        await machine.stuck(14)
        assert isinstance(await machine.come(BAD), Stay)

    on_a_machine(work)


def test_host_that_goes_on_slowly_is_not_waited_for() -> None:
    async def work(machine: Machine) -> None:
        stays = [await machine.come(BAD) for _ in range(15)]
        for phase in (Phase.GREETING, Phase.EHLO, Phase.READY, Phase.TRANSACTION):
            for stay in stays:
                assert isinstance(stay, Stay)
                stay.learn(events.PhaseReached(machine.now(), HOST, phase))
            await asyncio.sleep(NEXT_ANSWER - 1)
        for stay in stays:
            assert isinstance(stay, Stay)
            stay.learn(events.Progressed(machine.now(), HOST))
        await asyncio.sleep(NEXT_ANSWER - 1)
        assert isinstance(await machine.come(BAD), Stay)
        await asyncio.sleep(2)
        refusal = await machine.come(BAD)
        assert isinstance(refusal, Deferred)
        assert "waits, 11s for mx1.example[192.0.2.1]:25 (transaction)" in refusal.text

    on_a_machine(work)


def test_one_that_waited_and_goes_on_counts_no_more() -> None:
    async def work(machine: Machine) -> None:
        stays = await machine.stuck(15)
        for stay in stays:
            stay.learn(events.PhaseReached(machine.now(), HOST, Phase.READY))
        await asyncio.sleep(NEXT_ANSWER - 0.2)
        for stay in stays:
            stay.learn(events.PhaseReached(machine.now(), HOST, Phase.TRANSACTION))
        assert isinstance(await machine.come(GOOD, BACKUP), Stay)
        assert isinstance(await machine.come(BAD), Stay)

    on_a_machine(work)


@pytest.mark.parametrize("kills", [0, 1, 5])
def test_killed_process_frees_its_place(kills: int) -> None:
    async def work(machine: Machine) -> None:
        await machine.stuck(15)
        machine.killed.update(range(1, kills + 1))
        said = await machine.come(BAD)
        assert isinstance(said, Stay) is (kills > 0)
        assert await machine.rows() == 15 - kills + (kills > 0)

    on_a_machine(work)


@pytest.mark.parametrize(
    "where",
    [
        ("other machine", "other boot", "namespace"),
        ("machine", "boot before", "namespace"),
        ("machine", "boot", "other namespace"),
    ],
)
def test_places_of_others_who_share_the_store_are_not_ours(
    where: tuple[str, str, str],
) -> None:
    async def work(machine: Machine) -> None:
        for _ in range(15):
            assert await machine.stay(BAD, where).enter() is None
        await asyncio.sleep(60)
        assert isinstance(await machine.come(BAD), Stay)

    on_a_machine(work)


def test_where_processes_cannot_be_told_apart_nobody_is_limited() -> None:
    async def work(machine: Machine) -> None:
        nowhere = ("", "", "")
        for _ in range(LIMIT + 1):
            assert await machine.stay(BAD, nowhere).enter() is None
            await asyncio.sleep(60)

    on_a_machine(work)


def test_no_limit_costs_nothing_and_limits_nobody() -> None:
    async def work(machine: Machine) -> None:
        await machine.stuck(100)
        assert await machine.rows() == 0

    on_a_machine(work, limit=0)


def test_place_is_given_back() -> None:
    async def work(machine: Machine) -> None:
        stays = await machine.stuck(15)
        for stay in stays:
            await stay.leave()
            await stay.leave()
            stay.learn(events.PhaseReached(machine.now(), HOST, Phase.GREETING))
        assert await machine.rows() == 0
        # Nor is anything left behind that would write.
        assert asyncio.all_tasks() == {asyncio.current_task()}

    on_a_machine(work)


def test_place_is_given_back_also_while_its_row_is_written() -> None:
    async def work(machine: Machine) -> None:
        for stay in await machine.stuck(3):
            stay.learn(events.PhaseReached(machine.now(), HOST, Phase.GREETING))
            await asyncio.sleep(0)  # the write has begun
            stay.learn(events.CandidateStarted(machine.now(), BACKUP))
            await asyncio.sleep(FIRST_ANSWER + 0.1)
            stay.learn(events.PhaseReached(machine.now(), BACKUP, Phase.GREETING))
            await stay.leave()
        assert await machine.store.scan("") == []

    on_a_machine(work, store=Lazy)


def test_clock_that_was_set_back_limits_nobody_for_longer() -> None:
    async def work(machine: Machine) -> None:
        stays = await machine.stuck(15)
        assert isinstance(await machine.come(BAD), Deferred)
        for stay in stays:
            await stay.leave()
        machine.offset = -3600.0
        came = [await machine.come(BAD) for _ in range(14)]
        assert all(isinstance(one, Stay) for one in came)
        admission = Admission(machine.store, LIMIT, utc=machine.utc)
        assert await admission.lately([BAD]) == {}

    on_a_machine(work)


def test_retries_of_a_limited_destination_do_not_take_all_places_anew() -> None:
    async def work(machine: Machine) -> None:
        stays = await machine.stuck(15)
        assert isinstance(await machine.come(BAD), Deferred)
        for stay in stays:
            await stay.leave()
        # Nobody can be seen to wait yet, and it is known all the same.
        came = [await machine.come(BAD) for _ in range(LIMIT)]
        assert [isinstance(one, Stay) for one in came] == [True] * 15 + [False] * 5
        last = came[-1]
        assert isinstance(last, Deferred)
        assert (
            "15 of them by mail for bad.example:25 that has not gone through lately"
            in last.text
        )
        for one in came:
            if isinstance(one, Stay):
                await one.leave()
        await asyncio.sleep(LIMITED_FOR)
        came = [await machine.come(BAD) for _ in range(15)]
        assert isinstance(await machine.come(GOOD, BACKUP), Stay)

    on_a_machine(work)


def test_destination_that_has_recovered_has_all_places_again() -> None:
    async def work(machine: Machine) -> None:
        stays = await machine.stuck(15)
        assert isinstance(await machine.come(BAD), Deferred)
        for stay in stays[:10]:
            await stay.leave()
        healthy = [await machine.come(GOOD, BACKUP) for _ in range(10)]
        assert isinstance(await machine.come(BAD), Deferred)
        for stay in stays[10:]:
            await stay.leave()
        healthy += [await machine.come(GOOD, BACKUP) for _ in range(5)]
        again = await machine.come(BAD)
        assert isinstance(again, Stay)
        again.learn(events.PhaseReached(machine.now(), HOST, Phase.READY))
        await again.leave()
        for one in healthy:
            assert isinstance(one, Stay)
            await one.leave()
        came = [await machine.come(BAD) for _ in range(15)]
        for one in came:
            assert isinstance(one, Stay)
            one.learn(events.PhaseReached(machine.now(), HOST, Phase.READY))
        late = asyncio.create_task(machine.come(BAD))
        await asyncio.sleep(1)
        assert isinstance(came[0], Stay)
        await came[0].leave()
        assert isinstance(await late, Stay)

    on_a_machine(work)


def test_destination_that_recovered_on_a_quiet_machine_has_all_places_again() -> None:
    async def work(machine: Machine) -> None:
        stays = await machine.stuck(15)
        assert isinstance(await machine.come(BAD), Deferred)
        for stay in stays:
            await stay.leave()
        await asyncio.sleep(60)
        assert await send(machine, BAD, 1, 0.1) == ["sent"]
        assert await send(machine, BAD, 40, 1.0) == ["sent"] * 40

    on_a_machine(work)


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("stuck", [10, 12, 15])
def test_burst_for_a_healthy_destination_is_not_deferred_beside_one_that_waits(
    stuck: int, seconds: float
) -> None:
    async def work(machine: Machine) -> None:
        await machine.stuck(stuck)
        sent = await send(machine, GOOD, 40, seconds, BACKUP)
        assert sent == ["sent"] * 40
        assert machine.now() < 60

    on_a_machine(work)


def test_second_destination_that_waits_leaves_the_last_places_to_others() -> None:
    async def work(machine: Machine) -> None:
        await machine.stuck(15)
        came = await asyncio.gather(
            *(machine.come("worse.example:25", BACKUP) for _ in range(5))
        )
        assert sum(isinstance(one, Deferred) for one in came) >= 1
        third = Candidate("mx3.example", "192.0.2.3", 25, 10)
        assert isinstance(await machine.come(GOOD, third), Stay)

    on_a_machine(work)


async def send(
    machine: Machine, aim: str, count: int, seconds: float, host: Candidate = HOST
) -> list[str]:
    """Send at once, to a host that takes *seconds* for each reply; say what came."""
    running = asyncio.Semaphore(max(1, machine.limit - await machine.rows()))

    async def one() -> str:
        async with running:  # as many as the mail server runs
            stay = await machine.come(aim, host)
            if isinstance(stay, Deferred):
                return stay.text
            for phase in (Phase.EHLO, Phase.READY, *[Phase.TRANSACTION] * 4):
                await asyncio.sleep(seconds)
                stay.learn(events.PhaseReached(machine.now(), host, phase))
            await stay.leave()
            return "sent"

    return await asyncio.gather(*(one() for _ in range(count)))


def test_many_domains_of_one_host_that_is_down_are_one_destination() -> None:
    async def work(machine: Machine) -> None:
        for number in range(15):
            assert isinstance(await machine.come(f"customer{number}:25"), Stay)
        await asyncio.sleep(FIRST_ANSWER + 0.1)
        refusal = await machine.come("customer99:25")
        assert isinstance(refusal, Deferred)
        assert "15 of them by mail for [192.0.2.1]:25 that waits" in refusal.text
        assert await machine.rows() == 15
        # Who asks another host first does not wait for this one.
        assert isinstance(await machine.come("other:25", BACKUP, HOST), Stay)

    on_a_machine(work)


def test_name_servers_that_do_not_answer_are_waited_for_too() -> None:
    async def work(machine: Machine) -> None:
        for _ in range(15):
            assert await machine.stay(BAD).enter() is None
        await asyncio.sleep(6)
        refusal = await machine.come(BAD)
        assert isinstance(refusal, Deferred)
        assert "waits, 6s for DNS" in refusal.text

    on_a_machine(work)


def test_burst_is_decided_before_it_takes_the_last_places() -> None:
    async def work(machine: Machine) -> None:
        stays = [await machine.come(BAD) for _ in range(15)]
        for stay in stays:
            assert isinstance(stay, Stay)
            stay.learn(events.PhaseReached(machine.now(), HOST, Phase.GREETING))
        # Silent from here on: all that is to come finds out at the same time.
        late = await asyncio.gather(*(machine.come(BAD) for _ in range(5)))
        assert all(isinstance(one, Deferred) for one in late)
        assert NEXT_ANSWER <= machine.now() <= LONGEST_LOOK
        before = machine.now()
        assert isinstance(await machine.come(BAD), Deferred)
        assert machine.now() == before

    on_a_machine(work)


def test_burst_for_a_healthy_destination_waits_for_the_first_to_end() -> None:
    async def work(machine: Machine) -> None:
        stays = [await machine.come(GOOD) for _ in range(15)]

        async def end_one() -> None:
            await asyncio.sleep(1)
            assert isinstance(stays[-1], Stay)
            stays[-1].learn(events.PhaseReached(machine.now(), HOST, Phase.READY))
            await stays[-1].leave()

        end = asyncio.create_task(end_one())
        late = await asyncio.gather(*(machine.come(GOOD) for _ in range(5)))
        await end
        assert all(isinstance(one, Stay) for one in late)
        assert machine.now() < 3

    on_a_machine(work)


def test_failed_first_host_leaves_the_next_one_its_time() -> None:
    async def work(machine: Machine) -> None:
        stays = [await machine.come(BAD) for _ in range(15)]
        await asyncio.sleep(1)
        refused = Finding(Verdict.REFUSED, Phase.CONNECT, 1.0)
        for stay in stays:
            assert isinstance(stay, Stay)
            stay.learn(events.CandidateFailed(machine.now(), HOST, refused))
            stay.learn(events.CandidateStarted(machine.now(), BACKUP))
            stay.learn(events.PhaseReached(machine.now(), BACKUP, Phase.READY))
        await asyncio.sleep(NEXT_ANSWER + 1)
        said = await machine.come(BAD)
        assert isinstance(said, Deferred)
        assert "mx2.example[192.0.2.2]:25 (ready)" in said.text

    on_a_machine(work)


class Lazy(MemoryStore):
    """A disk that takes its time."""

    async def put(self, *row: Any, **how: Any) -> None:
        await asyncio.sleep(0.01)
        await super().put(*row, **how)


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_store_that_works_nobody_is_limited(broken: bool) -> None:
    async def work(machine: Machine) -> None:
        for _ in range(LIMIT * 2):  # each process has a memory of its own
            disk = FailingStore(
                None, lambda _, operation: operation.name == "scan", machine.utc
            )
            machine.store = FallbackStore(
                disk if broken else None,
                lambda text: None,
                MemoryStore(machine.utc),
            )
            assert isinstance(await machine.come(BAD), Stay)
        await asyncio.sleep(60)
        assert isinstance(await machine.come(BAD), Stay)

    on_a_machine(work)


def test_row_that_nobody_understands_is_not_there() -> None:
    owner = b"machine\tboot\tnamespace\t1\t7\tcall"
    values = [b"", b"\xff", b"a\tb\tc", owner, owner + b"\taim", owner + b"\taim\tx\t"]
    values += [owner + b"\taim\t1\tx\ty", owner.replace(b"7", b"z") + b"\taim\t1\tx"]

    async def work(machine: Machine) -> None:
        for number, value in enumerate(values):
            for copy in range(10):
                key = f"{PLACE}{number} {copy}"
                await machine.store.put(key, value, machine.utc() + 900)
        await machine.stuck(14)
        assert isinstance(await machine.come(BAD), Stay)

    on_a_machine(work)


async def test_places_are_seen_through_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    machine = Machine(4, lambda utc: SqliteStore(path))
    admission = Admission(machine.store, 4)
    stay = Stay(admission, myself(), BAD, machine.now, machine.now() + 900, _fail)
    assert await stay.enter() is None
    # We are a process that lives, and no other.
    other = Owner(*myself()[:3], 1, 0, "other")
    (place,) = await admission.places(other)
    assert place.aims == {BAD}
    await stay.leave()
    assert await admission.places(other) == []
    await machine.store.close()


# -- in the engine -------------------------------------------------------------------


@contextmanager
def another_process() -> Iterator[Owner]:
    """Start a process that lives, and return who it is."""
    program = (
        "from mxpolicy.delivery.owner import myself\n"
        "print(*myself(), sep='\\t', flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        words = process.stdout.readline().rstrip("\n").split("\t")
        machine, boot, namespace, pid, started, call = words
        try:
            yield Owner(machine, boot, namespace, int(pid), int(started), call)
        finally:
            process.kill()


def engine_beside(store: Store) -> Engine:
    """Return an engine with one place, for a domain whose host must not be dialled."""
    mx, a = [(10, "mx1.example.com")], ["192.0.2.1"]
    resolver = FakeResolver({"example.com": mx}, {"mx1.example.com": a})

    async def dial(candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        raise AssertionError(f"{candidate} was dialled")

    options = Options(helo="mail.example.net", limits=LimitOptions(processes=1))
    return Engine(Context(options, store=store, resolver=resolver, dial=dial))


@pytest.mark.parametrize(
    ("aim", "of_another"),
    [("example.com:25", HOST), ("customer.example:25", HOST)],
    ids=["same_domain", "same_host"],
)
async def test_delivery_that_is_put_off_dials_nobody(
    aim: str, of_another: Candidate
) -> None:
    store = MemoryStore()
    now = asyncio.get_running_loop().time
    with another_process() as owner:
        admission = Admission(store, 1)
        other = Stay(admission, owner, aim, now, now() + 900, _fail)
        assert await other.enter() is None
        other.planned()
        other.learn(events.CandidateStarted(now() - 60, of_another))
        await asyncio.sleep(0)
        happened: list[events.Event] = []
        message = mail_data()
        request = Request(
            "me@example.net",
            ("you@example.com",),
            "",
            "Q",
            900.0,
            observe=happened.append,
        )
        (outcome,) = await engine_beside(store).deliver(request, message)
        message.close()
        await other.leave()
        assert isinstance(outcome, Deferred)
        assert str(outcome.status) == "4.3.2"
        assert "mx1.example[192.0.2.1]:25 (connect)" in outcome.text
        assert not any(isinstance(one, events.CandidateStarted) for one in happened)
        # Nothing of it is left: neither a place nor a claim.
        assert [one.key for one in await store.scan(PLACE)] == []
        assert [one.key for one in await store.scan("journal/")] == []
