"""A better host that cannot be looked up, while a worse one refuses the mail."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.failed_lookups import LOOKUP
from mxpolicy.delivery.request import Request
from mxpolicy.net.dial import dial
from mxpolicy.options import GreetingPolicy, Options
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from tests.delivery.attempts import mail_data, run
from tests.helpers.failing_store import FailingStore
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import Script, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.net.stream import Stream
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.state.store import Store

T = TypeVar("T")


START = 1_800_000_000.0
MINUTE = 60.0

NO_USER: Script = {"RCPT": "550 5.1.1 No such user"}


class Site:
    """An engine; hosts of example.com that are there, and names without address.

    Args:
        hosts: Preference -> host; its name is ``mx`` and its preference.
        unresolved: Preferences of MX records whose names cannot be looked up.
    """

    def __init__(
        self,
        hosts: dict[int, ScriptedHost],
        unresolved: Sequence[int] = (10,),
        *,
        store: Store | None = None,
        options: Options | None = None,
    ) -> None:
        self.now = START
        self.happened: list[events.Event] = []
        self.ports: dict[str, int] = {}
        self.resolver = FakeResolver()
        self.resolver.mx["example.com"] = [
            (preference, _name(preference)) for preference in (*hosts, *unresolved)
        ]
        for preference, host in hosts.items():
            self.resolve(_name(preference), host)
        self.fail(*map(_name, unresolved))
        self.store = store or MemoryStore(lambda: self.now)
        context = Context(
            options or Options(helo="us.example.net", allow_dial=("127.0.0.0/8",)),
            store=self.store,
            clock=asyncio.get_running_loop().time,
            utc=lambda: self.now,
            resolver=self.resolver,
            dial=self._dial,
        )
        self.engine = Engine(context)
        self.number = 0

    def resolve(self, name: str, host: ScriptedHost) -> None:
        candidate = host.candidate()
        self.ports[candidate.address] = candidate.port
        addresses = dict(self.resolver.addresses["A"])
        self.resolver.addresses["A"] = {**addresses, name: [candidate.address]}

    def fail(self, *names: str, rdtypes: Sequence[str] = ("A", "AAAA")) -> None:
        """Let the lookups of *names* fail, and of no others."""
        self.resolver.fail = frozenset(
            f"{one} {name}" for name in names for one in rdtypes
        )

    async def _dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        there = candidate._replace(port=self.ports[candidate.address])
        return await dial(there, mss=mss)

    async def send(self, minutes: float = 0.0, nexthop: str = "") -> Outcome:
        """Deliver another message, so long after the one before."""
        self.now += minutes * MINUTE
        self.number += 1
        users = ("bob@example.com",)
        request = Request(
            "a@example.net",
            users,
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
        troubles = [one for one in self.happened if isinstance(one, events.Trouble)]
        assert not troubles, troubles[0].text
        return outcome


def _name(preference: int) -> str:
    return f"mx{preference}.example.com"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(NO_USER, id="rcpt"),
        pytest.param({"MAIL": "550 5.7.1 No"}, id="mail"),
        pytest.param({"DATA": "554 5.7.1 No"}, id="data"),
        pytest.param({".": "554 5.6.0 No"}, id="dot"),
    ],
)
def test_worse_host_does_not_bounce_while_the_best_cannot_be_looked_up(
    script: Script,
) -> None:
    worse = ScriptedHost(script)

    async def work() -> None:
        site = Site({20: worse})
        soft = await site.send()
        assert isinstance(soft, Deferred)
        assert soft.status.class_ == 4
        assert "better, and cannot be looked up: mx10.example.com" in soft.text
        assert isinstance(await site.send(30), Deferred)
        assert isinstance(await site.send(29), Deferred)
        assert isinstance(await site.send(1), Bounced)
        assert isinstance(await site.send(1), Bounced)

    run(worse, work=work)


def test_message_that_does_not_fit_the_worse_host_is_put_off_too() -> None:
    worse = ScriptedHost(extensions=["SIZE 1"])

    async def work() -> None:
        site = Site({20: worse})
        assert isinstance(await site.send(), Deferred)
        assert isinstance(await site.send(60), Bounced)

    run(worse, work=work)


def test_greeting_that_bounces_is_put_off_too() -> None:
    worse = ScriptedHost({"CONNECT": "554 No"})

    async def work() -> None:
        options = Options(
            helo="us.example.net",
            allow_dial=("127.0.0.0/8",),
            greeting_5xx=GreetingPolicy.BOUNCE,
        )
        site = Site({20: worse}, options=options)
        assert isinstance(await site.send(), Deferred)
        assert isinstance(await site.send(60), Bounced)

    run(worse, work=work)


def test_worse_host_that_takes_the_mail_gets_it() -> None:
    worse = ScriptedHost()

    async def work() -> None:
        assert isinstance(await Site({20: worse}).send(), Delivered)

    run(worse, work=work)


@pytest.mark.parametrize(
    ("unresolved", "hosts"),
    [
        pytest.param((20,), (20,), id="equal"),
        pytest.param((30,), (20,), id="worse"),
        pytest.param((20, 30), (10,), id="two_worse"),
    ],
)
def test_host_that_is_no_better_overrules_nothing(
    unresolved: tuple[int, ...], hosts: tuple[int, ...]
) -> None:
    refusing = ScriptedHost(NO_USER)

    async def work() -> None:
        site = Site(dict.fromkeys(hosts, refusing))
        names = [(n, f"other{n}.example.com") for n in unresolved]
        site.resolver.mx["example.com"] = [*((n, _name(n)) for n in hosts), *names]
        site.fail(*(name for _, name in names))
        assert isinstance(await site.send(), Bounced)

    run(refusing, work=work)


@pytest.mark.parametrize("there", ["A", "AAAA"])
def test_host_with_one_address_is_resolved(there: str) -> None:
    refusing, best = ScriptedHost(NO_USER), ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site({10: best, 20: refusing}, ())
        if there == "AAAA":
            site.resolver.addresses["AAAA"] = {_name(10): ["::ffff:127.0.0.9"]}
            site.resolver.addresses["A"] = {
                _name(20): site.resolver.addresses["A"][_name(20)]
            }
            site.ports["::ffff:127.0.0.9"] = 1
        site.fail(_name(10), rdtypes=["A" if there == "AAAA" else "AAAA"])
        assert isinstance(await site.send(), Bounced)

    run(refusing, best, work=work)


@pytest.mark.parametrize("exists", [True, False], ids=["nodata", "nxdomain"])
def test_host_of_which_dns_says_that_it_has_none_is_resolved(exists: bool) -> None:
    refusing = ScriptedHost(NO_USER)

    async def work() -> None:
        site = Site({20: refusing})
        site.fail()
        site.resolver.empty = frozenset([_name(10)] if exists else [])
        assert isinstance(await site.send(), Bounced)

    run(refusing, work=work)


def test_no_a_record_and_a_failed_aaaa_lookup_is_unresolved() -> None:
    refusing = ScriptedHost(NO_USER)

    async def work() -> None:
        site = Site({20: refusing})
        site.fail(_name(10), rdtypes=["AAAA"])
        site.resolver.empty = frozenset([_name(10)])
        assert isinstance(await site.send(), Deferred)

    run(refusing, work=work)


@pytest.mark.parametrize("answer", ["address", "nodata"])
def test_lookup_that_succeeds_begins_the_hour_anew(answer: str) -> None:
    refusing, best = ScriptedHost(NO_USER), ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site({20: refusing})
        assert isinstance(await site.send(), Deferred)
        site.fail()
        if answer == "address":
            site.resolve(_name(10), best)
        else:
            site.resolver.empty = frozenset([_name(10)])
        assert isinstance(await site.send(30), Bounced)
        site.fail(_name(10))
        assert isinstance(await site.send(31), Deferred)
        assert isinstance(await site.send(59), Deferred)
        assert isinstance(await site.send(1), Bounced)

    run(refusing, best, work=work)


def test_best_host_gets_the_mail_as_soon_as_it_can_be_looked_up() -> None:
    refusing, best = ScriptedHost(NO_USER), ScriptedHost()

    async def work() -> None:
        site = Site({20: refusing})
        assert isinstance(await site.send(), Deferred)
        site.fail()
        site.resolve(_name(10), best)
        assert isinstance(await site.send(5), Delivered)

    run(refusing, best, work=work)


def test_each_host_has_an_hour_of_its_own() -> None:
    refusing, second = ScriptedHost(NO_USER), ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site({20: second, 30: refusing}, (10,))
        assert isinstance(await site.send(), Deferred)
        site.fail(_name(10), _name(20))
        site.resolver.addresses["A"] = {
            _name(30): site.resolver.addresses["A"][_name(30)]
        }
        soft = await site.send(50)
        assert isinstance(soft, Deferred)
        assert "mx10.example.com, mx20.example.com" in soft.text
        soft = await site.send(11)
        assert isinstance(soft, Deferred)
        assert "mx10.example.com" not in soft.text
        assert isinstance(await site.send(49), Bounced)

    run(refusing, second, work=work)


def test_hour_begins_while_no_host_can_be_looked_up() -> None:
    refusing = ScriptedHost(NO_USER)

    async def work() -> None:
        site = Site({20: refusing})
        site.fail(_name(10), _name(20))
        site.resolver.addresses["A"] = {}
        none = await site.send()
        assert isinstance(none, Deferred)
        assert str(none.status) == "4.4.3"
        site.fail(_name(10))
        site.resolve(_name(20), refusing)
        assert isinstance(await site.send(59), Deferred)
        assert isinstance(await site.send(1), Bounced)

    run(refusing, work=work)


def test_unreachable_worse_host_is_deferred_as_ever() -> None:
    worse = ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site({20: worse})
        for minutes in (0, 61):
            outcome = await site.send(minutes)
            assert isinstance(outcome, Deferred)
            assert str(outcome.status) == "4.4.1"

    run(worse, work=work)


def test_clock_set_back_does_not_put_a_bounce_off_for_longer() -> None:
    refusing = ScriptedHost(NO_USER)

    async def work() -> None:
        site = Site({20: refusing})
        assert isinstance(await site.send(), Deferred)
        assert isinstance(await site.send(-600), Deferred)
        assert isinstance(await site.send(59), Deferred)
        assert isinstance(await site.send(1), Bounced)

    run(refusing, work=work)


def test_implicit_mx_that_cannot_be_looked_up_is_deferred() -> None:
    async def work() -> None:
        site = Site({})
        site.resolver.mx["example.com"] = []
        site.resolver.empty = frozenset(["example.com"])
        site.fail("example.com")
        for minutes in (0, 61):
            outcome = await site.send(minutes)
            assert isinstance(outcome, Deferred)
            assert str(outcome.status) == "4.4.3"
        assert site.store is not None
        assert await site.store.scan("lookup ") == []

    run(work=work)


@pytest.mark.parametrize("first", ["[mx10.example.com]", "first.example.net"])
def test_later_nexthop_does_not_bounce_while_an_earlier_one_cannot_be_looked_up(
    first: str,
) -> None:
    refusing = ScriptedHost(NO_USER)

    async def work() -> None:
        site = Site({20: refusing})
        site.resolver.fail |= {"MX first.example.net"}
        nexthop = f"{first}, [mx20.example.com]"
        assert isinstance(await site.send(nexthop=nexthop), Deferred)
        assert isinstance(await site.send(59, nexthop), Deferred)
        assert isinstance(await site.send(1, nexthop), Bounced)

    run(refusing, work=work)


class Forgetful(MemoryStore):
    """Others keep it busy whenever a failed lookup is to be written."""

    async def replace(
        self,
        key: str,
        old: bytes | None,
        new: bytes,
        expires: float,
        weight: int | None = None,
    ) -> bool:
        if key.startswith(LOOKUP):
            return False
        return await super().replace(key, old, new, expires, weight)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: FallbackStore(None, print), id="none"),
        pytest.param(lambda: FallbackStore(FailingStore(), print), id="broken"),
        pytest.param(Forgetful, id="keeps_nothing"),
    ],
)
def test_without_memory_a_host_that_cannot_be_looked_up_has_failed(
    make: type[Forgetful],
) -> None:
    refusing = ScriptedHost(NO_USER)

    async def work() -> None:
        assert isinstance(await Site({20: refusing}, store=make()).send(), Bounced)

    run(refusing, work=work)


def test_forecast_tells_what_is_waited_for_and_writes_nothing() -> None:
    refusing = ScriptedHost(NO_USER)

    async def work() -> None:
        site = Site({20: refusing})
        for _ in range(2):
            outlook = await site.engine.forecast("", "", "bob@example.com")
            assert [one.name for one in outlook.plan.unresolved] == [_name(10)]
        assert await site.store.scan("") == []
        await site.send()
        site.now += 3600
        outlook = await site.engine.forecast("", "", "bob@example.com")
        assert outlook.plan.unresolved == ()

    run(refusing, work=work)
