"""`mxpolicy.delivery.engine.Engine.stop` and `abandon`: all deliveries at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mxpolicy.outcome import Deferred
from tests.delivery.test_engine import Site, play, status
from tests.helpers.scripted_smtp import End, ScriptedHost

if TYPE_CHECKING:
    from mxpolicy.outcome import Outcome

WHY = "the test ends"


async def begun(site: Site, *domains: str) -> list[asyncio.Task[list[Outcome]]]:
    """Begin a message to each domain, and return when each is at its host."""
    tasks = [
        asyncio.create_task(site.send(f"bob@{one}", queue_id=one)) for one in domains
    ]
    await asyncio.sleep(1.0)
    assert len(site.engine.under_way) == len(domains)
    return tasks


def test_each_delivery_ends_by_where_it_is() -> None:
    before, after = (
        ScriptedHost({"RCPT": End.SILENT}),
        ScriptedHost({".": (60.0, "250 ok")}),
    )

    async def work(site: Site) -> None:
        first, second = await begun(site, "one.example", "two.example")
        now = asyncio.get_running_loop().time
        began = now()
        stopping = asyncio.create_task(site.engine.stop(WHY))
        (outcome,) = await first
        assert status(outcome) == "Deferred 4.3.2"
        assert outcome.text == f"the delivery was cancelled: {WHY}"
        assert now() < began + 4
        assert not stopping.done()
        await stopping
        assert 55 < now() - began < 64
        (outcome,) = await second
        assert status(outcome) == "Delivered 2.0.0"
        assert not site.engine.under_way

    play(work, {"one.example": [before], "two.example": [after]})
    assert not before.taken
    assert len(after.taken) == 1


def test_delivery_that_begins_all_the_same_is_deferred_and_dials_nothing() -> None:
    host = ScriptedHost({".": (60.0, "250 ok")})
    late = ScriptedHost()

    async def work(site: Site) -> None:
        await begun(site, "one.example")
        stopping = asyncio.create_task(site.engine.stop(WHY))
        await asyncio.sleep(1.0)
        (outcome,) = await site.send("bob@two.example")
        assert status(outcome) == "Deferred 4.3.2"
        await stopping

    play(work, {"one.example": [host], "two.example": [late]})
    assert not late.visits


def test_deliveries_of_an_earlier_configuration_are_stopped_too() -> None:
    host = ScriptedHost({"RCPT": End.SILENT})

    async def work(site: Site) -> None:
        (task,) = await begun(site, "one.example")
        engine = site.engine.renewed(site.context.options)
        await engine.stop(WHY)
        assert status((await task)[0]) == "Deferred 4.3.2"
        # A door that still has the old one.
        (outcome,) = await site.send("bob@two.example")
        assert status(outcome) == "Deferred 4.3.2"

    play(work, {"one.example": [host]})


@pytest.mark.parametrize("is_stopping", [True, False])
def test_abandoned_dot_is_a_doubt_and_the_journal_has_it(is_stopping: bool) -> None:
    host = ScriptedHost({".": End.SILENT})

    async def work(site: Site) -> None:
        (task,) = await begun(site, "one.example")
        stopping = asyncio.create_task(site.engine.stop(WHY))
        if not is_stopping:
            stopping.cancel()
        now = asyncio.get_running_loop().time
        began = now()
        await site.engine.abandon()
        assert now() < began + 4
        await asyncio.gather(stopping, return_exceptions=True)
        found = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert site.settled() == [("bob@one.example", "Deferred 4.4.2")]
        assert await site.journal() == ["deferred"]
        # The retry goes to another host first, if there is one: here it is the same.
        await site.engine.abandon()  # nothing is under way

    play(work, {"one.example": [host]})


def test_delivery_that_is_abandoned_as_it_begins_has_an_outcome() -> None:
    async def work(site: Site) -> None:
        sending = asyncio.create_task(site.send("bob@one.example"))
        await asyncio.sleep(0)
        assert site.engine.under_way
        await site.engine.abandon()
        await asyncio.gather(sending, return_exceptions=True)
        assert site.settled() == [("bob@one.example", "Deferred 4.3.0")]

    play(work, {"one.example": [ScriptedHost()]})


def test_nothing_is_under_way_and_the_end_is_at_once() -> None:
    async def work(site: Site) -> None:
        await site.engine.stop(WHY)
        await site.engine.abandon()
        (outcome,) = await site.send()
        assert isinstance(outcome, Deferred)

    play(work)
