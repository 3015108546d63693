"""`mxpolicy.delivery.probe`: hosts that are dialled beside a message."""

from __future__ import annotations

import asyncio

import pytest

from mxpolicy.delivery.host_memory import host_key
from mxpolicy.outcome import Delivered
from mxpolicy.routing.candidate import Verdict
from mxpolicy.routing.host_record import HostRecord, encode
from tests.delivery.attempts import run
from tests.delivery.site import START, Site
from tests.helpers.scripted_smtp import End, ScriptedHost


def test_recovered_host_is_found_by_a_probe_that_delays_nobody() -> None:
    first, good = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]}), ScriptedHost()

    async def work() -> None:
        site = Site(first, good)
        await site.send()
        assert (await site.record(first)).full
        site.utc.offset += 61
        probing = await site.send()
        assert isinstance(probing.outcome, Delivered)
        assert probing.seconds < 0.3
        assert probing.dialled == [good.candidate().address]
        assert first.visits[1] == ["EHLO mail.example.com", "QUIT"]
        assert (await site.record(first)).verdict is None
        after = await site.send()
        assert after.dialled == [first.candidate().address]

    run(first, good, work=work)


def test_probe_of_a_dead_host_ends_soon_after_the_message() -> None:
    dead, good = ScriptedHost(is_filtered=True), ScriptedHost()

    async def work() -> None:
        site = Site(dead, good)
        await site.send()
        site.utc.offset += 61
        loop = asyncio.get_running_loop()
        began = loop.time()
        sent = await site.send()
        assert sent.seconds < 0.3
        assert 2.9 < loop.time() - began < 3.5
        # No answer to three SYNs: the pause begins anew, and nobody else probes.
        began = loop.time()
        await site.send()
        assert loop.time() - began < 0.3

    run(dead, good, work=work)


def test_probe_has_the_full_time_of_each_phase_while_its_message_lasts() -> None:
    slow = ScriptedHost({"CONNECT": (20.0, "220 hello")})
    good = ScriptedHost({"RCPT": (25.0, "250 ok")})

    async def work() -> None:
        site = Site(slow, good)
        value = encode(HostRecord(Verdict.FILTERED, since=site.utc() - 61, pause=60))
        await site.store.put(host_key(slow.candidate()), value, START * 2)
        await site.send()
        assert slow.visits == [["EHLO mail.example.com", "QUIT"]]
        assert (await site.record(slow)).verdict is None

    run(slow, good, work=work)


def test_message_that_a_probe_has_no_room_for_waits_for_its_end() -> None:
    busy = ScriptedHost({"CONNECT": [(2.0, "220 hello"), "421 too many", "220 hello"]})
    refused = ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site(refused, busy)
        value = encode(HostRecord(Verdict.REFUSED, since=site.utc() - 61, pause=60))
        await site.store.put(host_key(busy.candidate()), value, START * 2)
        sent = await site.send()
        assert isinstance(sent.outcome, Delivered)
        assert 2.0 < sent.seconds < 2.5
        assert len(busy.visits) == 3

    run(refused, busy, work=work)


def test_host_that_turns_a_probe_away_is_asked_once_by_it() -> None:
    busy, good = ScriptedHost({"CONNECT": "421 too many"}), ScriptedHost()

    async def work() -> None:
        site = Site(busy, good)
        value = encode(HostRecord(Verdict.REFUSED, since=site.utc() - 61, pause=60))
        await site.store.put(host_key(busy.candidate()), value, START * 2)
        assert isinstance((await site.send()).outcome, Delivered)
        assert len(busy.visits) == 1

    run(busy, good, work=work)


def test_cancelled_delivery_leaves_no_probe_behind() -> None:
    dead, hangs = ScriptedHost(is_filtered=True), ScriptedHost({"MAIL": End.SILENT})

    async def work() -> None:
        site = Site(dead, hangs)
        value = encode(HostRecord(Verdict.FILTERED, since=site.utc() - 61, pause=60))
        await site.store.put(host_key(dead.candidate()), value, START * 2)
        task = asyncio.create_task(site.send())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(dead, hangs, work=work)
