"""`mxpolicy.delivery.inquiry`: what is certain about a domain, shared, bounded and kept."""

from __future__ import annotations

import asyncio

import pytest

from mxpolicy.delivery.forecast import Forecast
from mxpolicy.delivery.inquiry import (
    MAX_AT_ONCE,
    MAX_DOMAIN,
    MAX_INQUIRIES,
    Inquiries,
    found_by,
)
from mxpolicy.delivery.plan import Plan
from mxpolicy.options import AccessFinding, Options
from mxpolicy.outcome import Bounced, Deferred, Outcome
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.host_record import HostRecord
from mxpolicy.routing.kept_findings import MEMORY_HOLDS, NOTHING_FOUND, Found
from mxpolicy.routing.known_hosts import KnownHosts
from mxpolicy.routing.mx import DIRECTORY_FAILURE, NULL_MX
from mxpolicy.routing.unresolved import Unresolved
from tests.helpers.access_policy import Foreseeing, timed

REFUSAL = Bounced(NULL_MX, "")
NOTHING_SAID = Deferred(DIRECTORY_FAILURE, "DNS does not answer")
PAUSED = Deferred(EnhancedStatus(4, 4, 1), "no host can be reached")
HOST = Candidate("mx.example", "192.0.2.10", 25)
FAILED = HostRecord(Verdict.FILTERED, Phase.CONNECT, True, 1000.0, 60.0, 6.0)
ALL_FAILED = KnownHosts((HOST,), is_hopeless=True, of_host={HOST: FAILED}, at=1010.0)


class Door:
    """One that asks *engine*, and what it was told of troubles."""

    def __init__(self, engine: Foreseeing, place_within: float | None = None) -> None:
        self.faults: list[str] = []
        self.unanswered: list[str] = []
        self.now = asyncio.get_running_loop().time
        self.inquiries = Inquiries(
            engine,
            5.0,
            lambda text, seconds: self.faults.append(text),
            self.now,
            unanswered=lambda text, seconds: self.unanswered.append(text),
            place_within=place_within,
        )

    async def ask(self, domain: str) -> Found:
        inquiry = self.inquiries.join(domain, f"a@{domain}")
        assert inquiry is not None
        return await inquiry.task

    def kept(self, domain: str) -> Found | None:
        return self.inquiries.kept.found(domain, self.now())


@pytest.mark.parametrize(
    ("plan", "known", "found"),
    [
        pytest.param(Plan("x", (HOST,)), KnownHosts(), NOTHING_FOUND, id="a host"),
        pytest.param(
            Plan("x", (), refusal=REFUSAL),
            KnownHosts(),
            Found(AccessFinding.NULL_MX, "", REFUSAL),
            id="null MX",
        ),
        pytest.param(
            Plan("x", (), refusal=NOTHING_SAID),
            KnownHosts(),
            NOTHING_FOUND,
            id="no DNS",
        ),
        pytest.param(
            Plan("x", (HOST,), refusal=PAUSED),
            ALL_FAILED,
            Found(
                AccessFinding.ALL_PAUSED,
                "mx.example[192.0.2.10]:25 filtered 10s ago",
                PAUSED,
            ),
            id="all paused",
        ),
        pytest.param(
            Plan(
                "x", (HOST,), refusal=PAUSED, unresolved=(Unresolved("mx0.example", 5),)
            ),
            ALL_FAILED,
            Found(
                AccessFinding.ALL_PAUSED,
                "mx.example[192.0.2.10]:25 filtered 10s ago;"
                " mx0.example cannot be looked up",
            ),
            id="all paused, and one not looked up",
        ),
    ],
)
def test_what_is_certain(plan: Plan, known: KnownHosts, found: Found) -> None:
    assert found_by(Forecast(plan, known)) == found


def test_who_asks_at_once_shares_and_what_was_found_is_kept_for_all_doors() -> None:
    async def play() -> None:
        engine = Foreseeing(Options())
        engine.seconds["null.example"] = 1.0
        first, second = Door(engine), Door(engine)
        found = await asyncio.gather(*(first.ask("null.example") for _ in range(9)))
        assert {one.finding for one in found} == {AccessFinding.NULL_MX}
        assert second.kept("null.example") == found[0]
        await asyncio.sleep(MEMORY_HOLDS)
        assert second.kept("null.example") is None  # memory is to be asked anew
        assert await second.ask("null.example") == found[0]
        assert engine.asked == ["null.example"]  # and the plan holds

    timed(play)


def test_inquiry_ends_when_none_waits() -> None:
    async def play() -> None:
        engine = Foreseeing(Options())
        engine.seconds["null.example"] = 1.0
        door = Door(engine)
        both = [door.inquiries.join("null.example", "a@null.example") for _ in "ab"]
        first, second = both
        assert first is not None
        assert second is first
        await asyncio.sleep(0)
        door.inquiries.leave(first)
        await asyncio.sleep(0)
        assert not first.task.cancelling()
        door.inquiries.leave(second)
        await asyncio.sleep(0)
        assert first.task.cancelled()
        assert (await door.ask("null.example")).finding is AccessFinding.NULL_MX

    timed(play)


def test_so_many_at_once_and_no_more() -> None:
    async def play() -> None:
        engine = Foreseeing(Options())
        names = [f"{number}.example" for number in range(MAX_INQUIRIES)]
        engine.seconds = dict.fromkeys(names, 1.0)
        door = Door(engine, place_within=0.5)
        asked = [asyncio.create_task(door.ask(name)) for name in names]
        await asyncio.sleep(0.1)
        assert len(engine.asked) == MAX_AT_ONCE
        assert door.inquiries.join("more.example", "a@more.example") is None
        found = await asyncio.gather(*asked)
        assert found.count(NOTHING_FOUND) == MAX_INQUIRIES - MAX_AT_ONCE
        assert len(engine.asked) == MAX_AT_ONCE
        # Another door has places of its own, and these are free again.
        for one in (Door(engine), door):
            assert (await one.ask("more.example")).finding is AccessFinding.NULL_MX

    timed(play)


class Troubled(Foreseeing):
    """Its plans are *refusal*, or an error.

    Attributes:
        refusal: Of each.
    """

    refusal: Outcome | None = None

    async def plan(self, *given: object) -> Plan:
        plan = await super().plan(*given)
        if self.refusal is None:
            raise ValueError("a bug")
        return plan._replace(refusal=self.refusal)


@pytest.mark.parametrize("length", [MAX_DOMAIN, MAX_DOMAIN + 1])
def test_what_is_too_long_for_a_domain_is_not_kept(length: int) -> None:
    async def play() -> None:
        engine = Troubled(Options())
        engine.refusal = PAUSED
        door = Door(engine)
        name = "a" * length
        found = await door.ask(name)
        assert door.kept(name) == (found if length == MAX_DOMAIN else None)

    timed(play)


def test_fault_of_ours_is_told_and_not_kept() -> None:
    async def play() -> None:
        engine = Troubled(Options())
        door = Door(engine)
        assert await door.ask("null.example") == NOTHING_FOUND
        assert door.kept("null.example") is None
        assert "ValueError: a bug" in door.faults[0]
        assert door.unanswered == []
        engine.refusal = REFUSAL
        assert (await door.ask("null.example")).refusal == REFUSAL

    timed(play)


def test_dns_that_does_not_answer_is_told_once_for_each_plan() -> None:
    async def play() -> None:
        engine = Troubled(Options())
        engine.refusal, engine.ttl = NOTHING_SAID, 5.0
        door = Door(engine)
        for _ in range(3):
            assert await door.ask("dead.example") == NOTHING_FOUND
        assert door.unanswered == [NOTHING_SAID.text]
        await asyncio.sleep(5.0)
        await door.ask("dead.example")
        assert door.unanswered == [NOTHING_SAID.text] * 2
        assert door.faults == []

    timed(play)
