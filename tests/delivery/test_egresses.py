"""Two egresses to one address are two candidates, wherever a candidate is known.

Nothing plans a second egress yet: here a planner does, and each egress leads to a host
of its own, though the address is the same.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.connect import Egress
from mxpolicy.delivery.host_memory import HOST, NEXTHOP
from mxpolicy.delivery.log_line import json_line, text_line
from mxpolicy.delivery.plan import Planner
from mxpolicy.delivery.sessions import Sessions
from mxpolicy.net.dial import dial
from mxpolicy.outcome import Deferred
from mxpolicy.routing.candidate import DIRECT, egress_of
from mxpolicy.routing.host_record import HostRecord, decode
from mxpolicy.state.store import JOURNAL
from tests.delivery.attempts import run
from tests.delivery.test_engine import Site, status
from tests.helpers.scripted_smtp import End, Script, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.plan import Plan
    from mxpolicy.net.stream import Stream
    from mxpolicy.routing.candidate import Candidate

TUNNEL = "tunnel"


class _Planner(Planner):
    """Plans every candidate by each egress; the best one comes first."""

    egresses = (DIRECT, TUNNEL)

    async def plan(self, *given: Any, **more: Any) -> Plan:
        plan = await super().plan(*given, **more)
        candidates = [
            one._replace(egress=egress, egress_position=number)
            for number, egress in enumerate(self.egresses)
            for one in plan.candidates
        ]
        return plan._replace(candidates=tuple(candidates))


def _to(host: ScriptedHost, context: Context) -> Egress:
    async def dial_there(candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        there = host.candidate()
        return await dial(
            candidate._replace(address=there.address, port=there.port), mss=mss
        )

    has_name = context.identity.has_name
    return Egress(dial_there, "us.example.net", has_name, context.clock)


def play(
    direct: ScriptedHost,
    tunnel: ScriptedHost,
    work: Callable[[Site], Coroutine[Any, Any, None]],
) -> None:
    """Run *work* with a site whose one address is *direct* or *tunnel*."""

    async def main() -> None:
        site = Site({"one.example": [direct]})
        context = site.context
        context.planner = _Planner(
            site.resolver, context.options, context.identity, context.utc
        )
        egresses = {DIRECT: _to(direct, context), TUNNEL: _to(tunnel, context)}
        context.sessions = Sessions(egresses)
        await work(site)

    run(direct, tunnel, work=main)


def last(site: Site) -> events.RecipientSettled:
    return site.all(events.RecipientSettled)[-1]


async def journal(site: Site) -> str:
    (row,) = await site.store.scan(JOURNAL)
    return row.value.decode()


async def records(site: Site) -> dict[str, HostRecord]:
    """Return {egress: what is remembered}."""
    rows = await site.store.scan(HOST)
    return {row.key.split()[1]: decode(row.value) for row in rows}


RELAY = "mx1.one.example[127.0.0.11]:25"


def test_log_says_by_which_egress_it_went_and_which_failed() -> None:
    direct, tunnel = ScriptedHost({"CONNECT": End.CLOSE}), ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        line = text_line(last(site))
        assert f", relay={RELAY}, egress=tunnel, " in line
        assert f", tried={RELAY} closed " in line
        said = json.loads(json_line(last(site), "2026-11-26T10:00:00.000Z"))
        assert (said["relay"], said["egress"]) == (RELAY, TUNNEL)
        # And when the journal answers.
        await site.send()
        assert last(site).outcome.text.endswith("(delivered earlier)")
        assert f", relay={RELAY}, egress=tunnel, " in text_line(last(site))

    play(direct, tunnel, work)
    assert len(tunnel.taken) == 1


def test_each_is_remembered_by_itself() -> None:
    direct, tunnel = ScriptedHost({"CONNECT": End.CLOSE}), ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        known = await records(site)
        assert known[DIRECT].verdict is not None
        assert known[TUNNEL].verdict is None
        site.happened.clear()
        await site.send(queue_id="next")
        started = site.all(events.CandidateStarted)
        assert [one.candidate.egress for one in started] == [TUNNEL]

    play(direct, tunnel, work)


def test_message_that_is_taken_by_one_says_nothing_good_of_the_other() -> None:
    direct, tunnel = ScriptedHost({"MAIL": End.CLOSE}), ScriptedHost()

    async def work(site: Site) -> None:
        (outcome,) = await site.send()
        assert status(outcome) == "Delivered 2.0.0"
        rows = await site.store.scan(NEXTHOP)
        failed = {
            row.key.split()[-3] for row in rows if decode(row.value).verdict is not None
        }
        assert failed == {DIRECT}

    play(direct, tunnel, work)


def test_process_that_dies_at_the_dot_leaves_word_by_which_one_it_went() -> None:
    direct = ScriptedHost({"CONNECT": End.CLOSE})
    tunnel = ScriptedHost({".": (60.0, "250 ok")})

    async def work(site: Site) -> None:
        task = asyncio.create_task(site.send())
        await asyncio.sleep(30)
        entry = await journal(site)
        assert "\tdot-sent\t" in entry
        assert f"\t{RELAY}/tunnel\t" in entry
        await task

    play(direct, tunnel, work)


def test_both_are_tried_and_told_apart_when_both_fail() -> None:
    direct = ScriptedHost(is_refused=True)
    tunnel = ScriptedHost({"CONNECT": "421 busy"})

    async def work(site: Site) -> None:
        (outcome,) = await site.send()
        assert isinstance(outcome, Deferred)
        tried = [one.rpartition("s")[0].split(" ")[:2] for one in last(site).tried]
        assert tried == [[RELAY, "refused"], [f"{RELAY}/tunnel", "greeting_4xx"]]
        assert egress_of(last(site).outcome.relay) == TUNNEL, "which came further"
        # The sender is told of hosts, not of our firewall.
        assert "tunnel" not in outcome.text
        assert outcome.text.count(RELAY) >= 2

    play(direct, tunnel, work)


def test_both_are_held_at_once_and_the_better_one_is_taken() -> None:
    # The worse one is ready while the better one still greets, within its grace.
    direct = ScriptedHost({"CONNECT": (8.1, "220 hi")})
    tunnel = ScriptedHost()

    async def work(site: Site) -> None:
        (outcome,) = await site.send()
        assert status(outcome) == "Delivered 2.0.0"
        ready = [
            one.candidate.egress
            for one in site.all(events.PhaseReached)
            if one.phase.word == "ready"
        ]
        assert sorted(ready) == [DIRECT, TUNNEL]
        assert egress_of(last(site).outcome.relay) == DIRECT

    play(direct, tunnel, work)
    assert len(direct.taken) == 1
    assert tunnel.commands == ["EHLO us.example.net", "QUIT"]


@pytest.mark.parametrize("first", [DIRECT, TUNNEL])
def test_doubt_at_the_dot_is_of_the_one_by_which_it_was_sent(first: str) -> None:
    cuts: Script = {".": End.CLOSE}
    scripts: dict[str, Script] = {
        DIRECT: cuts if first == DIRECT else {"CONNECT": End.CLOSE},
        TUNNEL: cuts if first == TUNNEL else {},
    }
    direct, tunnel = ScriptedHost(scripts[DIRECT]), ScriptedHost(scripts[TUNNEL])
    word = RELAY if first == DIRECT else f"{RELAY}/{TUNNEL}"

    async def work(site: Site) -> None:
        (outcome,) = await site.send()
        assert isinstance(outcome, Deferred)
        assert outcome.may_have_arrived
        assert outcome.text.startswith(f"{RELAY} ended")
        assert egress_of(last(site).outcome.relay) == first
        assert f"\t{word},1\t" in await journal(site)
        if first == DIRECT:  # then the other one is asked before it
            (again,) = await site.send()
            assert status(again) == "Delivered 2.0.0"
            assert egress_of(last(site).outcome.relay) == TUNNEL

    play(direct, tunnel, work)


def test_each_is_waited_for_by_itself() -> None:
    silent: Script = {"CONNECT": End.SILENT}
    direct, tunnel = ScriptedHost(silent), ScriptedHost(silent)

    async def work(site: Site) -> None:
        (outcome,) = await site.send(deadline=60.0)
        assert isinstance(outcome, Deferred)
        waits = (await journal(site)).rpartition("\t")[2].split(" ")
        words = {one.split(",")[0] for one in waits}
        assert words == {RELAY, f"{RELAY}/tunnel"}

    play(direct, tunnel, work)


def test_waits_of_one_are_no_waits_of_the_other() -> None:
    # The worse one's refusal is final when the better one was waited for patiently.
    direct = ScriptedHost({"RCPT": "550 5.1.1 who?"})
    tunnel = ScriptedHost({"CONNECT": End.SILENT})

    async def work(site: Site) -> None:
        site.context.planner.egresses = (TUNNEL, DIRECT)  # type: ignore[attr-defined]
        ends = []
        for _ in range(6):
            (outcome,) = await site.send(deadline=150.0)
            ends.append(status(outcome))
            site.now += 3600
        assert "Bounced 5.1.1" in ends

    play(direct, tunnel, work)
