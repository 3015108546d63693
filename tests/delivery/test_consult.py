"""`mxpolicy.delivery.consult`: who asks, who waits, and who is deferred at once."""

from __future__ import annotations

import asyncio
import random

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.consult import MAX_PROBES
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.delivery.leases import Leases
from mxpolicy.options import MemoryOptions
from mxpolicy.outcome import Deferred, Delivered
from mxpolicy.routing.candidate import Verdict
from mxpolicy.routing.host_record import HostRecord, encode
from tests.delivery.attempts import run
from tests.delivery.site import START, Sent, Site
from tests.helpers.scripted_smtp import End, ScriptedHost


def test_all_dead_hosts_defer_at_once_and_are_asked_again_after_the_pause() -> None:
    dead, refused = ScriptedHost(is_filtered=True), ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site(dead, refused)
        first, second = await site.send(), await site.send()
        assert isinstance(first.outcome, Deferred)
        assert isinstance(second.outcome, Deferred)
        assert second.dialled == []
        assert second.seconds < 0.1
        assert str(second.outcome.status) == "4.4.1"
        assert "filtered" in second.outcome.text
        assert "refused" in second.outcome.text
        assert " ago" in second.outcome.text
        site.utc.offset += 61
        third = await site.send()
        assert len(third.dialled) == 2
        assert (await site.record(refused)).pause == 120
        assert not site.troubles()

    run(dead, refused, work=work)


def test_all_dead_hosts_are_asked_again_where_that_is_wanted() -> None:
    refused = ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site(refused, options=MemoryOptions(fast_deferral=False))
        await site.send()
        assert len((await site.send()).dialled) == 1

    run(refused, work=work)


def test_doubted_host_alone_is_never_deferred_without_being_asked() -> None:
    slow, good = ScriptedHost({"CONNECT": (9.0, "220 hello")}), ScriptedHost()

    async def work() -> None:
        site = Site(slow, good)
        await site.send()
        assert (await site.record(slow)).verdict is not None
        only = slow.candidate()
        sent = await site.send(f"[{only.address}]:{only.port}")
        assert isinstance(sent.outcome, Delivered)
        record = await site.record(slow)
        assert record.verdict is None
        assert 8.9 < (record.greeting_latency or 0) < 9.1
        # And now it is known how long it takes, and nobody overtakes it.
        third = await site.send()
        assert third.dialled == [only.address]
        assert len(slow.taken) == 2

    run(slow, good, work=work)


def test_one_of_many_probes_and_one_of_many_goes_ahead() -> None:
    back = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        site = Site(back)
        await site.send()
        site.utc.offset += 61
        loop = asyncio.get_running_loop()
        ends: list[float] = []

        async def send() -> None:
            sent = await site.send()
            assert isinstance(sent.outcome, Delivered)
            ends.append(loop.time() - began)

        began = loop.time()
        await asyncio.gather(*(send() for _ in range(12)))
        assert len(back.taken) == 12
        # One went ahead; the others came when it was known that they may.
        assert sum(end < 0.2 for end in ends) == 1
        assert max(ends) < 0.6

    run(back, work=work)


def test_host_that_the_message_asks_first_is_not_probed_beside_it() -> None:
    """It may have one place only, which the probe would take."""
    busy = ScriptedHost({"CONNECT": ["421 4.7.0 too many", "220 hello", "421 again"]})

    async def work() -> None:
        site = Site(busy)
        await site.send()
        assert not (await site.record(busy)).full
        site.utc.offset += 61
        assert isinstance((await site.send()).outcome, Delivered)
        assert len(busy.visits) == 2
        assert (await site.record(busy)).verdict is None

    run(busy, work=work)


def test_lease_of_a_dead_process_is_waited_for_and_then_the_host_is_dialled() -> None:
    back = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        site = Site(back)
        await site.send()
        site.utc.offset += 61
        assert await Leases(site.store, site.utc).take(host_key(back.candidate()))
        sent = await site.send()
        assert isinstance(sent.outcome, Delivered)
        assert 14.9 < sent.seconds < 15.7

    run(back, work=work)


def test_host_that_another_message_probes_slowly_is_dialled_by_those_who_waited() -> (
    None
):
    slow = ScriptedHost({"CONNECT": [End.CLOSE, (20.0, "220 hello")]})

    async def work() -> None:
        site = Site(slow)
        await site.send()
        site.utc.offset += 61
        sent = await asyncio.gather(*(site.send() for _ in range(8)))
        assert all(isinstance(one.outcome, Delivered) for one in sent)
        assert len(slow.visits) == 1 + 8
        assert not site.troubles()

    run(slow, work=work)


def test_those_who_waited_do_not_dial_all_at_once() -> None:
    slow = ScriptedHost({"CONNECT": [End.CLOSE, (20.0, "220 hello")]})

    async def work() -> None:
        site = Site(slow, chance=random.Random(1).random)
        await site.send()
        site.utc.offset += 61
        seen = len(site.happened)
        await asyncio.gather(*(site.send() for _ in range(8)))
        dialled = [
            one.at
            for one in site.happened[seen:]
            if isinstance(one, events.CandidateStarted)
        ]
        first, *others = dialled
        assert first < 0.2
        assert len(others) == 7
        assert 11.9 < min(others) < max(others) < 15.7
        assert len({round(one) for one in others}) > 2

    run(slow, work=work)


def test_those_who_wait_are_deferred_when_the_probe_has_failed_meanwhile() -> None:
    dead = ScriptedHost({"CONNECT": [End.CLOSE, (5.0, End.CLOSE), "220 hello"]})

    async def work() -> None:
        site = Site(dead)
        await site.send()
        site.utc.offset += 61
        sent = await asyncio.gather(*(site.send() for _ in range(8)))
        assert all(isinstance(one.outcome, Deferred) for one in sent)
        assert len(dead.visits) == 2
        assert max(one.seconds for one in sent) < 5.7

    run(dead, work=work)


@pytest.mark.parametrize("asked", ["CONNECT", "EHLO"])
def test_too_many_connections_put_off_no_message_unasked(asked: str) -> None:
    good = "220 hello" if asked == "CONNECT" else "250 hello"
    busy = ScriptedHost({asked: [good, *["421 4.7.0 too many"] * 19, good]})

    async def work() -> None:
        site = Site(busy)
        assert isinstance((await site.send()).outcome, Delivered)
        for _ in range(19):
            site.utc.offset += 2
            sent = await site.send()
            assert isinstance(sent.outcome, Deferred)
            assert sent.dialled == [busy.candidate().address]
        assert isinstance((await site.send()).outcome, Delivered)

    run(busy, work=work)


def test_too_many_connections_of_a_cold_slow_greeter_put_off_no_message_unasked() -> (
    None
):
    busy = ScriptedHost(
        {"CONNECT": [*[(6.0, "220 hello")] * 5, *["421 4.7.0 too many"] * 15]}
    )

    async def work() -> None:
        site = Site(busy)

        async def send(after: float) -> Sent:
            await asyncio.sleep(after)
            return await site.send()

        sent = await asyncio.gather(*(send(number / 4) for number in range(20)))
        assert sum(isinstance(one.outcome, Delivered) for one in sent) == 5
        assert len(busy.visits) == 20

    run(busy, work=work)


def test_refusal_of_a_backup_does_not_bounce_while_the_better_one_is_paused() -> None:
    primary = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})
    backup = ScriptedHost({"RCPT": ["250 ok", "550 5.1.1 stale list of users"]})

    async def work() -> None:
        site = Site(primary, backup)
        assert isinstance((await site.send()).outcome, Delivered)
        second = await site.send()
        assert isinstance(second.outcome, Delivered), second
        assert len(primary.taken) == 1

    run(primary, backup, work=work)


def test_message_probes_a_few_of_many_hosts_that_are_due() -> None:
    many, good = [ScriptedHost() for _ in range(6)], ScriptedHost()

    async def work() -> None:
        site = Site(*many, good)
        failed = encode(HostRecord(Verdict.FILTERED, since=site.utc() - 61, pause=60))
        for one in many:
            await site.store.put(host_key(one.candidate()), failed, START * 2)
        assert isinstance((await site.send()).outcome, Delivered)
        assert sum(len(one.visits) for one in many) == MAX_PROBES
        assert len(good.taken) == 1

    run(*many, good, work=work)
