"""What the server keeps of a domain, for how long, and who shares it; on a moved clock."""

from __future__ import annotations

import asyncio
import time

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.delivery.inquiry import MAX_INQUIRIES
from mxpolicy.delivery.plan import Plan
from mxpolicy.options import AccessFinding, AccessPolicyOptions, AccessRule, Options
from mxpolicy.protocol.access_policy import AccessRequest
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.host_record import HostRecord, encode
from mxpolicy.routing.kept_findings import MEMORY_HOLDS, PLAN_HOLDS
from mxpolicy.server.access_policy import AccessPolicyServer
from mxpolicy.state.memory import MemoryStore
from tests.helpers.access_policy import DUNNO, NULL_MX, Foreseeing, Service, timed
from tests.helpers.fast_loop import FastLoop

REFUSED = NULL_MX.decode().removeprefix("action=").rstrip()
NOT_JUDGED = DUNNO.decode().removeprefix("action=").rstrip()


def asked(service: Service, recipient: str) -> str | asyncio.Task[str]:
    """Ask about *recipient*."""
    return service.server.action_for(AccessRequest("RCPT", "", recipient))


async def said(service: Service, recipient: str = "a@null.example") -> str:
    """Return the answer about *recipient*, also where it is found out first."""
    action = asked(service, recipient)
    return action if isinstance(action, str) else await action


@pytest.mark.parametrize(("ttl", "seconds"), [(60.0, 60.0), (3600.0, PLAN_HOLDS)])
def test_plan_is_made_anew_when_dns_allows_no_more(ttl: float, seconds: float) -> None:
    async def play() -> None:
        service = Service()
        service.engine.ttl = ttl
        assert await said(service) == REFUSED
        for _ in range(10):
            await asyncio.sleep(seconds / 11)
            assert await said(service, "b@null.example") == REFUSED
        assert len(service.engine.asked) == 1
        await asyncio.sleep(seconds / 11)
        assert await said(service) == REFUSED
        assert len(service.engine.asked) == 2

    timed(play)


def test_domain_that_has_mail_servers_again_is_refused_no_longer() -> None:
    class Changing(Foreseeing):
        async def plan(self, *given: object) -> Plan:
            plan = await super().plan(*given)
            return plan._replace(refusal=None) if len(self.asked) > 1 else plan

    async def play() -> None:
        service = Service(engine=Changing)
        service.engine.ttl = 60.0
        assert await said(service) == REFUSED
        await asyncio.sleep(59)
        assert await said(service) == REFUSED
        await asyncio.sleep(1)
        assert await said(service) == NOT_JUDGED

    timed(play)


def test_answer_that_must_not_be_kept_is_asked_for_each_time() -> None:
    async def play() -> None:
        service = Service()
        service.engine.ttl = 0.0
        for number in range(3):
            assert await said(service) == REFUSED
            assert len(service.engine.asked) == number + 1

    timed(play)


def test_what_is_known_is_answered_at_once() -> None:
    async def play() -> None:
        service = Service()
        await said(service)
        assert asked(service, "b@NULL.example.") == REFUSED
        # What is not judged needs nothing to be found out.
        for recipient in ("", "root", "a@mail.own.example"):
            assert asked(service, recipient) == NOT_JUDGED
        assert len(asyncio.all_tasks()) == 1

    timed(play)


def test_questions_about_one_domain_at_once_share_what_is_found_out() -> None:
    async def play() -> None:
        service = Service()
        service.engine.seconds["null.example"] = 1.0
        names = [f"{n}@null.example" for n in range(100)]
        actions = await asyncio.gather(*(said(service, one) for one in names))
        assert set(actions) == {REFUSED}
        assert service.engine.asked == ["null.example"]

    assert timed(play) == pytest.approx(1.0)


def test_who_leaves_takes_nothing_from_those_who_wait_for_the_same() -> None:
    async def play() -> None:
        service = Service()
        service.engine.seconds["null.example"] = 1.0
        first, second = (asked(service, f"{n}@null.example") for n in range(2))
        assert isinstance(first, asyncio.Task)
        assert isinstance(second, asyncio.Task)
        await asyncio.sleep(0.5)
        first.cancel()
        assert await second == REFUSED
        # When nobody waits, nothing goes on.
        service.engine.seconds["b.example"] = 1.0
        last = asked(service, "a@b.example")
        assert isinstance(last, asyncio.Task)
        await asyncio.sleep(0.5)
        last.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    timed(play)


def test_more_domains_at_once_than_anybody_asks_about_are_not_judged() -> None:
    async def play() -> None:
        service = Service(timeout=2.0)
        names = [f"{n}.example" for n in range(MAX_INQUIRIES + 100)]
        service.engine.seconds = dict.fromkeys(names, 1.0)
        actions = [asked(service, f"a@{one}") for one in names]
        await asyncio.sleep(0.1)
        over = [one for one in actions if not isinstance(one, str) and one.done()]
        assert len(over) == 100
        assert {one.result() for one in over} == {NOT_JUDGED}
        await asyncio.sleep(3)
        assert all(not isinstance(one, str) and one.done() for one in actions)
        assert await said(service) == REFUSED

    timed(play)


def test_another_configuration_counts_from_the_next_question_on() -> None:
    async def play() -> None:
        service = Service()
        assert await said(service) == REFUSED
        rule = AccessRule((AccessFinding.NULL_MX,), "450 4.0.0 later")
        options = Options(policy=AccessPolicyOptions(rules=(rule,)))
        service.engine = Foreseeing(options)
        assert await said(service) == "450 4.0.0 later"
        assert service.engine.asked == ["null.example"]

    timed(play)


# -- memory ----------------------------------------------------------------------------

HOST = Candidate("mx.example", "192.0.2.10", 25)
PAUSE = 60.0


class Remembering(Engine):
    """An engine with one host for every domain; its clock is the loop's."""

    def __init__(self) -> None:
        self.plans = 0
        self.epoch = time.time()
        rule = AccessRule((AccessFinding.ALL_PAUSED,), "450")
        options = Options(policy=AccessPolicyOptions(rules=(rule,)))
        store = MemoryStore(self.now)
        super().__init__(Context(options, store=store, utc=self.now))

    def now(self) -> float:
        """Return UTC seconds."""
        return self.epoch + asyncio.get_running_loop().time()

    async def plan(self, *_: object) -> Plan:
        self.plans += 1
        return Plan("example.com", (HOST,))

    async def write(self, record: HostRecord) -> None:
        """Write it as another process does."""
        key = host_key(HOST)
        await self.context.store.put(key, encode(record), self.now() + 1e6)

    def failed(self) -> HostRecord:
        """Return a host that has failed now."""
        now = self.now()
        return HostRecord(Verdict.FILTERED, Phase.CONNECT, True, now, PAUSE, 6.0)


class Remembered(Service):
    """A server of it."""

    def __init__(self) -> None:
        self.memory = Remembering()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FastLoop)
        self.events = []
        self.server = AccessPolicyServer(
            lambda: self.memory, self.events.append, loop.time
        )

    async def is_paused(self) -> bool:
        """Return whether all hosts of a domain are said to be in their pause."""
        return (await said(self, "a@example.com")).startswith("450 4.4.1 ")


def test_what_is_written_meanwhile_is_seen_within_a_second() -> None:
    async def play() -> None:
        service = Remembered()
        assert not await service.is_paused()
        await service.memory.write(service.memory.failed())
        await asyncio.sleep(MEMORY_HOLDS)
        assert await service.is_paused()
        await service.memory.write(HostRecord())
        await asyncio.sleep(MEMORY_HOLDS)
        assert not await service.is_paused()
        assert service.memory.plans == 1

    timed(play)


def test_end_of_a_pause_is_seen_at_once() -> None:
    async def play() -> None:
        service = Remembered()
        await service.memory.write(service.memory.failed())
        await asyncio.sleep(PAUSE - 0.5)
        assert await service.is_paused()
        await asyncio.sleep(0.4)
        assert await service.is_paused()
        await asyncio.sleep(0.2)
        assert not await service.is_paused()

    timed(play)


def test_age_of_a_failure_is_told_to_the_second() -> None:
    async def play() -> None:
        service = Remembered()
        await service.memory.write(service.memory.failed())
        for age in range(1, 10):
            await asyncio.sleep(1)
            assert f" filtered {age}s ago" in await said(service, "a@example.com")

    timed(play)
