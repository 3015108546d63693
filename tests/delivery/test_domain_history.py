"""`mxpolicy.delivery.domain_history`, most of it in the engine: DNS changes its mind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.domain_history import DOMAIN, DomainHistory
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.request import Request
from mxpolicy.options import Options
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.domain_record import KEPT
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord
from mxpolicy.state.memory import MemoryStore
from tests.delivery.attempts import mail_data, run
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mxpolicy.delivery.events import Event

START = 1_800_000_000.0
DAY = 86400.0


class Site:
    """An engine that asks a table in place of DNS, and one good or bad host."""

    def __init__(self, host: ScriptedHost) -> None:
        candidate = host.candidate()
        self.now = START
        self.happened: list[Event] = []
        options = Options(
            helo="mail.example.net", allow_dial=("127.0.0.0/8",), port=candidate.port
        )
        loop = asyncio.get_running_loop()
        self.resolver = self._asked = FakeResolver(
            mx={"example.com": [(10, "mx.example.com")]},
            a={"mx.example.com": [candidate.address]},
        )
        context = Context(
            options,
            store=MemoryStore(lambda: self.now),
            clock=loop.time,
            utc=lambda: self.now,
            resolver=self,
        )
        self.engine = Engine(context)
        self.number = 0

    def ask(self, resolver: FakeResolver) -> None:
        self._asked = resolver

    async def lookup(
        self, name: str, rdtype: str, within: float | None = None
    ) -> Lookup:
        return await self._asked.lookup(name, rdtype)

    async def send(self, nexthop: str = "") -> Outcome:
        self.number += 1
        request = Request(
            "alice@example.net",
            ("bob@example.com",),
            nexthop,
            f"Q{self.number}",
            900.0,
            observe=self.happened.append,
        )
        message = mail_data()
        try:
            (outcome,) = await self.engine.deliver(request, message)
        finally:
            message.close()
        return outcome


def test_domain_that_vanishes_after_taking_mail_is_deferred_for_a_day() -> None:
    host = ScriptedHost()

    async def work() -> None:
        site = Site(host)
        site.ask(FakeResolver())
        assert isinstance(await site.send(), Bounced)
        site.ask(site.resolver)
        assert isinstance(await site.send(), Delivered)
        for vanished in (
            FakeResolver(),
            FakeResolver(mx={"example.com": [(0, ".")]}),
            FakeResolver(mx={"example.com": [(10, "gone.example.com")]}),
        ):
            site.ask(vanished)
            site.now += DAY / 4
            outcome = await site.send()
            assert isinstance(outcome, Deferred)
            assert "it took mail not long ago" in outcome.text
        site.now += DAY
        assert isinstance(await site.send(), Bounced)

    run(host, work=work)


def test_last_mx_records_are_used_while_dns_fails() -> None:
    host = ScriptedHost()

    async def work() -> None:
        site = Site(host)
        failing = FakeResolver(
            a=site.resolver.addresses["A"], fail=["MX example.com"]
        )  # fmt: skip
        site.ask(failing)
        assert isinstance(await site.send(), Deferred)
        site.ask(site.resolver)
        await site.send()
        site.ask(failing)
        site.now += DAY / 2
        assert isinstance(await site.send(), Delivered)
        planned = [one for one in site.happened if isinstance(one, events.Planned)]
        assert planned[-1].remarks == (
            "remembered: MX of example.com; DNS says: SERVFAIL",
        )
        site.now += DAY / 2
        assert isinstance(await site.send(), Deferred)

    run(host, work=work)


def test_host_of_yesterdays_mx_records_bounces_nothing() -> None:
    host = ScriptedHost({"RCPT": ["250 ok", "550 5.1.1 we are not their host"]})

    async def work() -> None:
        site = Site(host)
        await site.send()
        site.ask(FakeResolver(a=site.resolver.addresses["A"], fail=["MX example.com"]))
        outcome = await site.send()
        assert isinstance(outcome, Deferred)
        assert str(outcome.status) == "4.1.1"
        assert "by MX records of before" in outcome.text

    run(host, work=work)


def test_nexthop_of_the_operators_is_no_track_of_the_domain() -> None:
    host = ScriptedHost()

    async def work() -> None:
        site = Site(host)
        only = host.candidate()
        outcome = await site.send(f"[{only.address}]:{only.port}")
        assert isinstance(outcome, Delivered)
        site.ask(FakeResolver())
        assert isinstance(await site.send(), Bounced)

    run(host, work=work)


class Meanwhile(MemoryStore):
    """Lets another process go ahead just after a row was read, once."""

    work: Callable[[], Awaitable[object]] | None = None

    async def get(self, key: str) -> bytes | None:
        value = await super().get(key)
        if work := self.work:
            self.work = None
            await work()
        return value


def _found(*names: str) -> Lookup:
    records = tuple(MxRecord(10, name) for name in names)
    return Lookup("example.com", "MX", LookupStatus.FOUND, records)


async def test_message_taken_meanwhile_is_not_forgotten() -> None:
    now = START
    store = Meanwhile(lambda: now)
    ours, theirs = (DomainHistory(store, utc=lambda: now) for _ in range(2))
    await ours.took("example.com", [_found("old.example.com")])
    now += 5 * DAY
    store.work = lambda: theirs.took("example.com", [_found("new.example.com")])
    gone = Bounced(EnhancedStatus(5, 1, 2), "no such domain")
    assert isinstance(await ours.unless_stale("example.com", gone), Deferred)
    record = await ours.record("example.com")
    assert record.taken == record.missing == now
    assert record.exchanges == (MxRecord(10, "new.example.com"),)


async def test_domain_is_forgotten_so_long_after_it_last_took_mail() -> None:
    now = START
    store = MemoryStore(lambda: now)
    domains = DomainHistory(store, utc=lambda: now)
    await domains.took("example.com", [_found("mx.example.com")])
    (before,) = await store.scan(DOMAIN)
    now += 5 * DAY
    gone = Bounced(EnhancedStatus(5, 1, 2), "no such domain")
    await domains.unless_stale("example.com", gone)
    (after,) = await store.scan(DOMAIN)
    assert after.value != before.value
    assert after.expires == before.expires == START + KEPT
