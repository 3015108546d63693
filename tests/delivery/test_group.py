"""`mxpolicy.delivery.group`: each step of the recipe, and what follows where it ends there.

Whatever happens, each recipient has an outcome, the place is left, and nothing that was
taken for it is kept.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from mxpolicy.delivery import events, own_outcomes, trouble
from mxpolicy.delivery.delivery import Delivery
from mxpolicy.delivery.group import Call, Group
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Deferred
from mxpolicy.reply import EnhancedStatus, Reply
from tests.delivery.attempts import envelope, mail_data
from tests.delivery.test_engine import Site, play, status
from tests.helpers.scripted_smtp import ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from mxpolicy.delivery.events import Event
    from mxpolicy.delivery.settlement import Settlement
    from mxpolicy.routing.candidate import Candidate
    from tests.helpers.scripted_smtp import Script

BOB, EVE, JIM = "bob@one.example", "eve@one.example", "jim@one.example"
FULL = Deferred(EnhancedStatus(4, 3, 2), "others come first")

# What a step does in the place of what it should.
Fault = Exception | Deferred | None


class Place:
    """A message's place, which is there at once, or refused as the test wants it.

    Attributes:
        aims: For where it was wanted.
        did: What was done with it, in order.
    """

    def __init__(self, enter: Fault = None, dial: Fault = None) -> None:
        self._faults = {"enter": enter, "dial": dial}
        self.aims: list[str] = []
        self.did: list[str] = []

    def at(self, aim: str) -> Place:
        self.aims.append(aim)
        return self

    async def enter(self) -> Deferred | None:
        return self._do("enter")

    async def dial(self, order: Sequence[Candidate]) -> Deferred | None:
        assert order
        return self._do("dial")

    def planned(self) -> None:
        self.did.append("planned")

    async def leave(self) -> None:
        self.did.append("leave")

    def learn(self, event: Event) -> None: ...

    def _do(self, what: str) -> Deferred | None:
        self.did.append(what)
        fault = self._faults[what]
        if isinstance(fault, Exception):
            raise fault
        return fault


class Journal:
    """Claims by which some recipients are another process's, or have the message.

    Args:
        settlement: Told so.
        busy: Those of another process.
        has_it: Those that have the message.
        later: Those of *busy* that are ours after the wait.
    """

    def __init__(
        self,
        settlement: Settlement,
        busy: Iterable[int] = (),
        has_it: Iterable[int] = (),
        later: Iterable[int] = (),
    ) -> None:
        self._settlement = settlement
        self._busy, self._has_it, self._later = set(busy), set(has_it), set(later)
        self.waited: list[float] = []

    async def claim(self, numbers: Iterable[int]) -> None:
        earlier = trouble.delivered(Reply(250, ("2.0.0 ok",)), "a host")
        for number in numbers:
            if number in self._busy:
                self._settlement.busy(number)
            elif number in self._has_it:
                self._settlement.settle(number, earlier)
            else:
                self._settlement.claimed(number)

    async def claim_later(self, numbers: Iterable[int], seconds: float) -> None:
        self.waited.append(seconds)
        for number in self._later.intersection(numbers):
            self._settlement.claimed(number)


def call_of(site: Site, delivery: Delivery, place: Place) -> Call:
    """Return the call of *delivery*, as if it had begun, with *place* for its groups."""
    stay_at: Any = place.at
    return delivery._call()._replace(stay_at=stay_at)


def started(
    work: Callable[[Site, Delivery, Place], Coroutine[Any, Any, None]],
    *recipients: str,
    place: Place | None = None,
    script: Script | None = None,
) -> tuple[ScriptedHost, Place]:
    """Run *work* with a message that no group has yet; return its host and place."""
    host, place = ScriptedHost(script), place or Place()

    async def main(site: Site) -> None:
        with closing(mail_data()) as message:
            to = recipients or (BOB,)
            delivery = Delivery(site.context, site.request(*to), message)
            delivery.envelope = envelope(*to)
            try:
                await work(site, delivery, place)
            finally:
                delivery.ended.cancel()
        assert not site.context.sessions._in_use, "a session is kept"

    play(main, {"one.example": [host]})
    return host, place


# -- from the plan to the attempt ---------------------------------------------------

ALL = ["enter", "planned", "dial", "leave"]
BUG, SHORT = ZeroDivisionError("a bug"), LocalTrouble("Too many open files")


def _names_fail(site: Site) -> None:
    site.resolver.fail = frozenset({"MX one.example"})


def _no_such_domain(site: Site) -> None:
    site.resolver.mx.clear()


def _names_are(error: Exception) -> Callable[[Site], None]:
    async def lookup(name: str, rdtype: str, within: float | None = None) -> Any:
        raise error

    def spoil(site: Site) -> None:
        site.resolver.lookup = lookup  # type: ignore[method-assign]

    return spoil


STEPS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "well": ({}, "Delivered 2.0.0", ALL),
    "nexthop is none": ({"nexthop": "[one"}, "Deferred 4.3.5", []),
    "no place": ({"enter": FULL}, "Deferred 4.3.2", ["enter", "leave"]),
    "no such domain": ({"spoil": _no_such_domain}, "Bounced 5.1.2", [*ALL[:2], "leave"]),
    "names fail": ({"spoil": _names_fail}, "Deferred 4.4.3", [*ALL[:2], "leave"]),
    "not dialled": ({"dial": FULL}, "Deferred 4.3.2", ALL),
    "bug in the place": ({"enter": BUG}, "Deferred 4.3.0", ["enter", "leave"]),
    "bug in the plan": ({"spoil": _names_are(BUG)}, "Deferred 4.3.0", ["enter", "leave"]),
    "bug before dialling": ({"dial": BUG}, "Deferred 4.3.0", ALL),
    "no descriptors": ({"spoil": _names_are(SHORT)}, "Deferred 4.3.0", ["enter", "leave"]),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_step_that_ends_the_way_settles_all_and_leaves_the_place(step: str) -> None:
    how, expected, did = STEPS[step]
    given: dict[str, Any] = {
        "nexthop": "one.example",
        "spoil": lambda site: None,
        **how,
    }

    async def work(site: Site, delivery: Delivery, place: Place) -> None:
        given["spoil"](site)
        for number in (0, 1):
            delivery.settlement.claimed(number)
        call = call_of(site, delivery, place)
        await Group(call, given["nexthop"], "one.example", [0, 1]).send()
        assert [one for _, one in site.settled()] == [expected] * 2
        assert len(site.all(events.Trouble)) == ("bug" in step)

    place = Place(given.get("enter"), given.get("dial"))
    host, place = started(work, BOB, EVE, place=place)
    assert place.did == did
    assert place.aims == (["one.example:25"] if did else [])
    assert len(host.taken) == (step == "well")


def test_hosts_that_all_failed_a_moment_ago_are_not_dialled_again() -> None:
    async def work(site: Site, delivery: Delivery, place: Place) -> None:
        for _ in range(2):
            await site.send()
        visits = len(site.all(events.CandidateStarted))
        delivery.settlement.claimed(0)
        call = call_of(site, delivery, place)
        await Group(call, "one.example", "one.example", [0]).send()
        assert site.settled()[-1] == (BOB, "Deferred 4.4.1")
        assert len(site.all(events.CandidateStarted)) == visits
        (settled,) = site.all(events.RecipientSettled)[-1:]
        assert settled.tried, "the log says why"

    _, place = started(work, script={"CONNECT": "554 no"})
    assert place.did == ["enter", "planned", "leave"]


# -- whose they are -----------------------------------------------------------------


def test_each_recipient_goes_by_whose_it_is() -> None:
    async def work(site: Site, delivery: Delivery, place: Place) -> None:
        journal: Any = Journal(delivery.settlement, busy=[1], has_it=[2])
        call = call_of(site, delivery, place)._replace(claims=journal)
        group = Group(call, "one.example", "one.example", [0, 1, 2])
        others = await group.claim()
        assert group.numbers == [0]
        assert others is not None
        assert others.numbers == [1]
        assert site.settled() == [(JIM, "Delivered 2.0.0")]

    started(work, BOB, EVE, JIM)


def test_no_group_is_made_where_all_are_ours() -> None:
    async def work(site: Site, delivery: Delivery, place: Place) -> None:
        journal: Any = Journal(delivery.settlement)
        call = call_of(site, delivery, place)._replace(claims=journal)
        group = Group(call, "one.example", "one.example", [0, 1])
        assert await group.claim() is None
        assert group.numbers == [0, 1]

    started(work, BOB, EVE)


def test_what_another_process_keeps_is_deferred_and_what_it_leaves_is_sent() -> None:
    async def work(site: Site, delivery: Delivery, place: Place) -> None:
        journal: Any = Journal(delivery.settlement, busy=[0, 1], later=[1])
        call = call_of(site, delivery, place)._replace(claims=journal)
        others = await Group(call, "one.example", "one.example", [0, 1]).claim()
        assert others is not None
        await others.send_after_others()
        assert site.settled() == [(BOB, "Deferred 4.3.0"), (EVE, "Delivered 2.0.0")]
        assert delivery.outcome(0) == own_outcomes.under_way()
        assert journal.waited == [
            3.0
        ]  # as the option says; a third of what is left is more

    host, _ = started(work, BOB, EVE)
    assert [one.forward_paths for one in host.messages] == [(EVE,)]


# -- the end ------------------------------------------------------------------------

CANCELLED = own_outcomes.cancelled("as the test wants it")
MOMENTS: dict[str, tuple[Script, str]] = {
    "at RCPT": ({"RCPT": (9.0, "250 ok")}, "Deferred 4.3.2"),
    "at the dot": ({".": (9.0, "250 ok")}, "Delivered 2.0.0"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_cancelled_group_is_settled_by_how_far_it_is(moment: str) -> None:
    script, expected = MOMENTS[moment]

    async def work(site: Site, delivery: Delivery, place: Place) -> None:
        delivery.settlement.claimed(0)
        call = call_of(site, delivery, place)
        group = Group(call, "one.example", "one.example", [0])
        group.task = asyncio.create_task(group.send())
        await asyncio.sleep(2.0)
        group.cancel(CANCELLED)
        await group.task
        assert site.settled() == [(BOB, expected)]

    _, place = started(work, script=script)
    assert place.did == ALL


def test_group_that_is_cancelled_before_its_attempt_dials_nothing() -> None:
    class Full(Place):
        async def enter(self) -> Deferred | None:
            self.did.append("enter")
            await asyncio.sleep(60.0)
            raise AssertionError("it is cancelled by then")

    async def work(site: Site, delivery: Delivery, place: Place) -> None:
        delivery.settlement.claimed(0)
        call = call_of(site, delivery, place)
        group = Group(call, "one.example", "one.example", [0])
        group.task = asyncio.create_task(group.send())
        await asyncio.sleep(2.0)
        group.cancel(CANCELLED)
        assert status(delivery.outcome(0) or FULL) == "Deferred 4.3.2"
        with pytest.raises(asyncio.CancelledError):
            await group.task

    host, place = started(work, place=Full())
    assert place.did == ["enter", "leave"]
    assert not host.visits
