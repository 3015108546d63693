"""One message through the engine again and again, as a mail server asks for it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.request import Request
from mxpolicy.net.dial import dial
from mxpolicy.options import JournalOptions, Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from tests.delivery.attempts import mail_data, run
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import Answer, End, Script, ScriptedHost
from tests.helpers.slow_store import SlowOnce

if TYPE_CHECKING:
    from mxpolicy.delivery.events import Event
    from mxpolicy.net.stream import Stream
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.state.store import Store

START = 1_800_000_000.0

# What a host says to one recipient.
LATER = "450 4.2.0 Greylisted"


class Site:
    """An engine, its store, and a domain whose hosts are scripted.

    Args:
        mx: Name, preference and host; a name that comes twice has two addresses.
        store: By default one that never fails.
        journal: Whether there is one.
    """

    def __init__(
        self,
        *mx: tuple[str, int, ScriptedHost],
        store: Store | None = None,
        journal: bool = True,
    ) -> None:
        self.now = START
        self.happened: list[Event] = []
        self._ports: dict[str, int] = {}
        self._mx: list[tuple[int, str]] = []
        self._addresses: dict[str, list[str]] = {}
        self._resolver = FakeResolver()
        self._resolver.mx["example.com"] = self._mx
        self._resolver.addresses["A"] = self._addresses  # type: ignore[assignment]
        for name, preference, host in mx:
            self.add(name, preference, host)
        context = Context(
            Options(
                helo="mail.example.net",
                allow_dial=("127.0.0.0/8",),
                journal=JournalOptions(keep=journal),
            ),
            store=store or MemoryStore(lambda: self.now),
            clock=asyncio.get_running_loop().time,
            utc=lambda: self.now,
            resolver=self._resolver,
            dial=self._dial,
        )
        self.engine = Engine(context)

    def add(self, name: str, preference: int, host: ScriptedHost) -> None:
        """Publish one address more of a host."""
        candidate = host.candidate()
        self._ports[candidate.address] = candidate.port
        addresses = self._addresses.setdefault(f"{name}.example.com", [])
        addresses.append(candidate.address)
        if len(addresses) == 1:
            self._mx.append((preference, f"{name}.example.com"))

    def move(self, name: str, host: ScriptedHost) -> None:
        """Give a host another address."""
        self._addresses[f"{name}.example.com"].clear()
        self.add(name, 0, host)
        self._mx.pop()

    def vanish(self) -> None:
        """Let the domain not exist any more."""
        self._resolver.mx.clear()

    async def _dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        there = candidate._replace(port=self._ports[candidate.address])
        return await dial(there, mss=mss)

    async def send(
        self,
        *names: str,
        sender: str = "alice@example.net",
        queue_id: str = "Q",
        after: float = 3600,
    ) -> list[Outcome]:
        """Deliver to these users, some seconds *after* the call before."""
        self.now += after
        recipients = tuple(f"{name}@example.com" for name in names)
        message = mail_data()
        try:
            request = Request(
                sender,
                recipients,
                "",
                queue_id,
                900.0,
                observe=self.happened.append,
            )
            return await self.engine.deliver(request, message)
        finally:
            message.close()
            troubles = [one for one in self.happened if isinstance(one, events.Trouble)]
            assert not troubles, troubles[0].text

    def dialled(self) -> list[str]:
        """Return the hosts that were dialled since it was asked last."""
        names = [
            one.candidate.host.partition(".")[0]
            for one in self.happened
            if isinstance(one, events.CandidateStarted)
        ]
        self.happened.clear()
        return names


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [f"{type(one).__name__} {one.status}" for one in outcomes]


def rcpt(**replies: Answer | list[Answer]) -> Script:
    """Return the script of a host that answers these users so."""
    return {f"RCPT {name}@example.com": reply for name, reply in replies.items()}


# -- the order of equal hosts --------------------------------------------------------


def test_equal_hosts_keep_their_order_when_a_recipient_is_settled() -> None:
    hosts = [ScriptedHost(rcpt(bob=LATER, carol=LATER)) for _ in range(4)]

    async def work() -> None:
        site = Site(*((f"mx{place}", 10, host) for place, host in enumerate(hosts)))
        firsts = set()
        for number in range(8):
            sender, queue_id = f"s{number}@example.net", f"Q{number}"
            orders = []
            for _ in range(3):
                await site.send(
                    *("alice", "bob", "carol"),
                    sender=sender,
                    queue_id=queue_id,
                    after=1.0,
                )
                orders.append(site.dialled()[:1])
            assert orders[0] == orders[1] == orders[2]
            firsts.add(orders[0][0])
        assert len(firsts) > 1, "the order is not the same for all messages"

    run(*hosts, work=work)


@pytest.mark.parametrize("place", range(3))
def test_equal_hosts_that_always_put_off_do_not_keep_mail_from_the_good_one(
    place: int,
) -> None:
    good = ScriptedHost()
    hosts = [ScriptedHost(rcpt(bob=LATER)) for _ in range(2)]
    hosts.insert(place, good)

    async def work() -> None:
        site = Site(*((f"mx{number}", 10, host) for number, host in enumerate(hosts)))
        for _ in range(24):
            (outcome,) = await site.send("bob")
            if isinstance(outcome, Delivered):
                return
        pytest.fail("it was never asked")

    run(*hosts, work=work)


# -- a refusal that the mail server makes a deferral of --------------------------------


def test_refusal_is_asked_for_again_as_often_as_the_mail_server_asks() -> None:
    host = ScriptedHost(rcpt(bob=["550 5.1.1 Who?", "550 5.1.1 Who?", "250 Ok"]))

    async def work() -> None:
        site = Site(("mx1", 10, host))
        for status in ("Bounced 5.1.1", "Bounced 5.1.1", "Delivered 2.0.0"):
            assert statuses(await site.send("bob")) == [status]
            assert site.dialled() == ["mx1"]

    run(host, work=work)


def test_mixed_call_never_sends_again_to_who_has_it_however_long_it_goes_on() -> None:
    host = ScriptedHost(rcpt(bob="550 5.1.1 Who?"))

    async def work() -> None:
        site = Site(("mx1", 10, host))
        for _ in range(12):
            outcomes = await site.send("alice", "bob", after=23 * 3600)
            assert statuses(outcomes) == ["Delivered 2.0.0", "Bounced 5.1.1"]
            assert site.dialled() == ["mx1"]
        outcomes = await site.send("alice", "bob", after=6 * 24 * 3600)
        assert statuses(outcomes) == ["Delivered 2.0.0", "Bounced 5.1.1"]
        assert [one.forward_paths for one in host.taken] == [("alice@example.com",)]

    run(host, work=work)


def test_refusal_of_one_is_told_again_while_another_is_deferred() -> None:
    host = ScriptedHost(rcpt(bob="550 5.1.1 Who?", carol=[LATER, LATER, "250 Ok"]))

    async def work() -> None:
        site = Site(("mx1", 10, host))
        for end in ("Deferred 4.2.0", "Deferred 4.2.0", "Delivered 2.0.0"):
            outcomes = await site.send("bob", "carol")
            assert statuses(outcomes) == ["Bounced 5.1.1", end]
        bob = [line for line in host.commands if "RCPT TO:<bob@" in line]
        assert len(bob) == 1

    run(host, work=work)


# -- a store that is slow ----------------------------------------------------------------


async def send_twice(host: ScriptedHost, store: SlowOnce) -> tuple[int, list[Outcome]]:
    """Return the visits to the store before the second call, and how that ended."""
    site = Site(("mx1", 10, host), store=FallbackStore(store, print))
    await site.send("alice", "bob")
    first, store.at = store.visits, -1
    return first, await site.send("alice", "bob")


def test_one_slow_moment_of_the_store_costs_no_copy_wherever_it_is() -> None:
    places = 1
    for how in ("done late", "told late"):
        at = 0
        while at < places:
            host = ScriptedHost(rcpt(bob=[LATER, "250 Ok"]))
            store = SlowOnce(how, at, 9.5, lambda: START)
            places, outcomes = run(host, work=partial(send_twice, host, store))
            assert statuses(outcomes) == ["Delivered 2.0.0"] * 2, (how, at)
            got = [who for one in host.taken for who in one.forward_paths]
            assert sorted(got) == ["alice@example.com", "bob@example.com"], (how, at)
            at += 1
    assert places > 10


# -- a host that does not answer the final dot ------------------------------------------

CUT: Script = {".": End.CLOSE}


def deferred_in_doubt(outcome: Outcome, host: str) -> bool:
    """Whether it says so, and names *host*."""
    return (
        isinstance(outcome, Deferred)
        and outcome.may_have_arrived
        and outcome.text.startswith(f"{host}.example.com[")
        and "message may be sent more than once" in outcome.text
    )


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, End.SILENT])
def test_host_that_cuts_every_dot_does_not_keep_the_message_from_the_next(
    end: End,
) -> None:
    cutting, good = ScriptedHost({".": end}), ScriptedHost()

    async def work() -> None:
        site = Site(("mx1", 10, cutting), ("mx2", 20, good))
        (outcome,) = await site.send("bob")
        assert deferred_in_doubt(outcome, "mx1")
        assert site.dialled() == ["mx1"], "nobody else in the same attempt"
        assert statuses(await site.send("bob")) == ["Delivered 2.0.0"]
        assert (len(cutting.messages), len(good.taken)) == (1, 1)
        assert statuses(await site.send("bob")) == ["Delivered 2.0.0"]
        assert (len(cutting.messages), len(good.taken)) == (1, 1)

    run(cutting, good, work=work)


def test_address_that_cuts_every_dot_does_not_keep_the_message_from_the_hosts_others() -> (
    None
):
    # One bad machine behind a name with several, or a firewall in the way of IPv6.
    for of in (2, 4):
        cutting = ScriptedHost({".": End.CLOSE})
        good = [ScriptedHost() for _ in range(of - 1)]
        work = partial(_cut_at_one_address, cutting, good)
        run(cutting, *good, work=work)


async def _cut_at_one_address(cutting: ScriptedHost, good: list[ScriptedHost]) -> None:
    site = Site(*(("mx", 10, one) for one in (cutting, *good)))
    for number in range(8):  # each message has an order of its own
        (outcome,) = await site.send(f"bob{number}", queue_id=f"Q{number}")
        if isinstance(outcome, Deferred):
            assert deferred_in_doubt(outcome, "mx")
            again = await site.send(f"bob{number}", queue_id=f"Q{number}")
            assert statuses(again) == ["Delivered 2.0.0"]
    assert cutting.messages, "the order is left to chance"
    assert sum(len(one.taken) for one in good) == 8


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "."])
@pytest.mark.parametrize("text", ["421 4.7.0 too many", "451 4.7.1 not from you"])
def test_host_with_two_addresses_that_always_puts_off_is_followed_by_the_next(
    verb: str, text: str
) -> None:
    best = [ScriptedHost({verb: text}) for _ in range(2)]
    good = ScriptedHost()

    async def work() -> None:
        site = Site(*(("mx1", 10, one) for one in best), ("mx2", 20, good))
        assert statuses(await site.send("bob", "carol")) == ["Delivered 2.0.0"] * 2
        assert [len(one.visits) for one in (*best, good)] == [1, 1, 1]

    run(*best, good, work=work)


def test_message_that_one_filter_cuts_goes_by_the_next_host_and_others_do_not() -> None:
    # The first dot is cut, whoever's it is; all later ones are not.
    filtering, good = ScriptedHost({".": [End.CLOSE, "250 2.0.0 Ok"]}), ScriptedHost()

    async def work() -> None:
        site = Site(("mx1", 10, filtering), ("mx2", 20, good))
        await site.send("bob", queue_id="CUT")
        await site.send("bob", queue_id="OTHER")
        assert len(filtering.taken) == 1
        assert statuses(await site.send("bob", queue_id="CUT")) == ["Delivered 2.0.0"]
        assert (len(filtering.messages), len(good.taken)) == (2, 1)

    run(filtering, good, work=work)


def test_all_that_cut_are_asked_the_least_doubtful_first() -> None:
    hosts = [ScriptedHost(CUT) for _ in range(3)]

    async def work() -> None:
        names = ("mx1", "mx2", "mx3")
        site = Site(*zip(names, (10, 20, 30), hosts, strict=True))
        for name in names:  # a first doubt ends the attempt
            (outcome,) = await site.send("bob")
            assert deferred_in_doubt(outcome, name)
            assert site.dialled() == [name]
        for _ in range(2):  # a second one goes on
            (outcome,) = await site.send("bob")
            assert isinstance(outcome, Deferred)
            assert outcome.may_have_arrived
            assert sorted(site.dialled()) == [*names]
        assert [len(host.messages) for host in hosts] == [3, 3, 3]

    run(*hosts, work=work)


def test_second_doubt_goes_on_and_a_first_one_after_it_ends_the_attempt() -> None:
    first, second, third = (ScriptedHost(CUT) for _ in range(3))
    second_up = ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site(("mx1", 10, first), ("mx2", 20, second_up))
        await site.send("bob")
        (outcome,) = await site.send("bob")
        # The only one that answers: it is asked again, and is in doubt again.
        assert deferred_in_doubt(outcome, "mx1")
        assert site.dialled() == ["mx1", "mx2", "mx1"]
        site.move("mx2", second)
        site.add("mx3", 30, third)
        (outcome,) = await site.send("bob")
        assert deferred_in_doubt(outcome, "mx2")
        assert site.dialled() == ["mx2"]

    run(first, second, third, second_up, work=work)


def test_worse_hosts_5yz_is_not_final_before_the_doubtful_better_one_is_heard() -> None:
    # A lost connection, once, and a stale backup.
    better = ScriptedHost({".": [End.CLOSE, "250 2.0.0 Ok"]})
    stale = ScriptedHost({"RCPT": "550 5.1.1 Who?"})

    async def work() -> None:
        site = Site(("mx1", 10, better), ("mx2", 20, stale))
        await site.send("bob")
        assert statuses(await site.send("bob")) == ["Delivered 2.0.0"]
        assert site.dialled() == ["mx1", "mx2", "mx1"]

    run(better, stale, work=work)


def test_bounce_by_a_worse_host_names_who_may_have_the_message() -> None:
    cutting, refusing = ScriptedHost(CUT), ScriptedHost({"RCPT": "550 5.1.1 Who?"})

    async def work() -> None:
        site = Site(("mx1", 10, cutting), ("mx2", 20, refusing))
        assert deferred_in_doubt((await site.send("bob"))[0], "mx1")
        (outcome,) = await site.send("bob")
        assert isinstance(outcome, Bounced)
        assert "Who?" in outcome.text
        assert "may have been delivered by mx1.example.com" in outcome.text
        assert len(cutting.messages) == 2

    run(cutting, refusing, work=work)


def test_bounce_without_any_host_names_who_may_have_the_message() -> None:
    cutting = ScriptedHost(CUT)

    async def work() -> None:
        site = Site(("mx1", 10, cutting))
        await site.send("bob")
        site.vanish()
        (outcome,) = await site.send("bob")
        assert isinstance(outcome, Bounced)
        assert outcome.text.endswith("; but may have been delivered by mx1.example.com")

    run(cutting, work=work)


def test_addresses_of_one_host_are_one_host() -> None:
    one, other, good = ScriptedHost(CUT), ScriptedHost(CUT), ScriptedHost()

    async def work() -> None:
        site = Site(("mx1", 10, one), ("mx1", 10, other), ("mx2", 20, good))
        await site.send("bob")
        assert statuses(await site.send("bob")) == ["Delivered 2.0.0"]
        assert site.dialled() == ["mx1", "mx2"]
        assert len(one.messages) + len(other.messages) == 1

    run(one, other, good, work=work)


def test_only_host_is_asked_again_and_once_an_attempt_whatever_its_addresses() -> None:
    one, other = ScriptedHost(CUT), ScriptedHost(CUT)

    async def work() -> None:
        site = Site(("mx1", 10, one), ("mx1", 10, other))
        for count in (1, 2, 3):
            assert deferred_in_doubt((await site.send("bob"))[0], "mx1")
            assert len(one.messages) + len(other.messages) == count

    run(one, other, work=work)


def test_each_recipient_has_doubts_of_its_own() -> None:
    # Carol is put off before the dot at first, so she is in no doubt when Bob is.
    cutting = ScriptedHost(rcpt(carol=[LATER, "250 2.1.5 Ok"]) | CUT)
    good = ScriptedHost(rcpt(bob=[LATER, "250 2.1.5 Ok"], carol=LATER))

    async def work() -> None:
        site = Site(("mx1", 10, cutting), ("mx2", 20, good))
        bob, carol = await site.send("bob", "carol")
        assert deferred_in_doubt(bob, "mx1")
        assert statuses([carol]) == ["Deferred 4.2.0"]
        site.dialled()
        # Both go to the second host first, which puts them off, and then to the first:
        # his second doubt there goes on, and nobody is left; hers is a first one.
        bob, carol = await site.send("bob", "carol")
        assert deferred_in_doubt(bob, "mx1")
        assert deferred_in_doubt(carol, "mx1")
        assert site.dialled() == ["mx2", "mx1"]
        bob, carol = await site.send("bob", "carol")
        assert isinstance(bob, Delivered)
        assert not isinstance(carol, Delivered)
        assert [one.forward_paths for one in good.taken] == [("bob@example.com",)]

    run(cutting, good, work=work)


def test_without_a_journal_the_same_host_is_asked_again() -> None:
    cutting, good = ScriptedHost(CUT), ScriptedHost()

    async def work() -> None:
        site = Site(("mx1", 10, cutting), ("mx2", 20, good), journal=False)
        for count in (1, 2):
            assert deferred_in_doubt((await site.send("bob"))[0], "mx1")
            assert len(cutting.messages) == count
        assert not good.messages

    run(cutting, good, work=work)
