"""Many messages of one process, and hosts that take few at once: on a clock that jumps."""

from __future__ import annotations

import asyncio
import resource
import socket
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.connections import Connections
from mxpolicy.delivery.request import Request
from mxpolicy.options import LimitOptions
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict
from mxpolicy.routing.turns import Turns
from tests.delivery.attempts import MESSAGE, run
from tests.delivery.site import Site
from tests.helpers.scripted_smtp import LINGER, End, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

LIMITS = LimitOptions(connections_per_host=2, connections=5)


class Sent(NamedTuple):
    """What became of a message, and after how many seconds."""

    outcome: Outcome
    seconds: float
    events: list[events.Event]

    @property
    def has_dialled(self) -> bool:
        return any(isinstance(one, events.CandidateStarted) for one in self.events)


class Sender:
    """Sends messages to hosts, each to be named by its nexthop."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.number = 0
        self.tasks: list[asyncio.Task[Sent]] = []

    async def _send(
        self, host: ScriptedHost | str, data: bytes = MESSAGE, **more: Any
    ) -> Sent:
        self.number += 1
        happened: list[events.Event] = []
        if isinstance(host, ScriptedHost):
            one = host.candidate()
            host = f"[{one.address}]:{one.port}"
        request = Request(
            "alice@example.net",
            ("bob@example.com",),
            host,
            f"Q{self.number}",
            900.0,
            observe=happened.append,
            has_process=False,
        )._replace(**more)
        clock = asyncio.get_running_loop().time
        began = clock()
        with closing(self.site.engine.new_mail_data()) as message:
            message.append(data)
            await message.drain()
            message.finish()
            (outcome,) = await self.site.engine.deliver(request, message)
        return Sent(outcome, clock() - began, happened)

    def send(
        self, host: ScriptedHost | str, count: int = 1, **more: Any
    ) -> list[asyncio.Task[Sent]]:
        tasks = [asyncio.create_task(self._send(host, **more)) for _ in range(count)]
        self.tasks += tasks
        return tasks

    async def one(self, host: ScriptedHost | str, **more: Any) -> Sent:
        return await self._send(host, **more)


def play(
    *hosts: ScriptedHost,
    work: Callable[[Sender], Coroutine[Any, Any, None]],
    limits: LimitOptions = LIMITS,
) -> None:
    async def main() -> None:
        site = Site(*hosts, keeps_sessions=True, limits=limits)
        sender = Sender(site)
        try:
            await work(sender)
        finally:
            for task in sender.tasks:
                task.cancel()
            await asyncio.gather(*sender.tasks, return_exceptions=True)
            await site.engine.stop("the test is over")
        connections = site.context.connections
        assert connections is not None
        assert connections.open == 0, "all are given back"
        assert not site.troubles()

    run(*hosts, work=main)


def slow(seconds: float) -> ScriptedHost:
    return ScriptedHost({".": [(seconds, "250 ok")]})


def most_at_once(sent: list[Sent], began: list[float]) -> int:
    spans = []
    for one, start in zip(sent, began, strict=True):
        at = next(
            event.at
            for event in one.events
            if isinstance(event, events.CandidateStarted)
        )
        spans.append((start + at, start + one.seconds))
    return max(sum(a <= at < b for a, b in spans) for at, _ in spans)


def test_slow_host_has_few_connections_and_all_its_messages() -> None:
    host = slow(10.0)

    async def work(sender: Sender) -> None:
        sent = await asyncio.gather(*sender.send(host, 9))
        assert all(isinstance(one.outcome, Delivered) for one in sent)
        assert most_at_once(sent, [0.0] * 9) == 2
        assert max(one.seconds for one in sent) == pytest.approx(50, abs=5)

    play(host, work=work)
    assert len(host.taken) == 9


def test_many_for_a_slow_host_delay_nobody_else() -> None:
    host, good = slow(10.0), ScriptedHost()

    async def work(sender: Sender) -> None:
        waiting = sender.send(host, 30)
        await asyncio.sleep(1)
        sent = await sender.one(good)
        assert isinstance(sent.outcome, Delivered)
        assert sent.seconds < 0.5
        sent_slowly = await asyncio.gather(*waiting)
        assert all(isinstance(one.outcome, Delivered) for one in sent_slowly)

    play(host, good, work=work)


def test_waiting_is_no_slowness_of_a_host() -> None:
    host = slow(20.0)

    async def work(sender: Sender) -> None:
        *_, last = await asyncio.gather(*sender.send(host, 5))
        assert last.seconds > 40
        assert not any(isinstance(one, events.CandidateDoubted) for one in last.events)

    play(host, work=work)


def test_dead_host_is_waited_for_by_few_and_not_longer_than_they_need() -> None:
    dead = ScriptedHost({"CONNECT": End.SILENT})

    async def work(sender: Sender) -> None:
        sent = await asyncio.gather(*sender.send(dead, 50))
        dialled = [one for one in sent if one.has_dialled]
        assert len(dialled) == LIMITS.connections_per_host
        for one in sent:
            assert isinstance(one.outcome, Deferred)
            assert "(4.4." in f"({one.outcome.status}"
        # As soon as it is remembered, they are deferred from the memory.
        longest = max(one.seconds for one in sent if not one.has_dialled)
        assert longest <= min(one.seconds for one in dialled) + 1

    play(dead, work=work)


def test_message_that_waits_too_long_for_a_host_is_deferred() -> None:
    host = slow(500.0)

    async def work(sender: Sender) -> None:
        sender.send(host, 2)
        await asyncio.sleep(1)
        sent = await sender.one(host, deadline=300.0)
        assert sent.seconds == pytest.approx(200, abs=1)
        assert isinstance(sent.outcome, Deferred)
        assert str(sent.outcome.status) == "4.4.5", "the host takes mail"
        assert "all 2 connections with" in sent.outcome.text
        assert not sent.has_dialled

    play(host, work=work)


def test_full_machine_is_told_as_such() -> None:
    hosts = [slow(500.0) for _ in range(5)]
    good = ScriptedHost()

    async def work(sender: Sender) -> None:
        for host in hosts:
            sender.send(host)
        await asyncio.sleep(1)
        sent = await sender.one(good, deadline=300.0)
        assert isinstance(sent.outcome, Deferred)
        assert str(sent.outcome.status) == "4.3.2"
        assert sent.outcome.text == "all 5 connections are in use, waited 200s"

    play(*hosts, good, work=work)


def test_message_with_a_process_waits_for_no_turn() -> None:
    host = slow(100.0)

    async def work(sender: Sender) -> None:
        sender.send(host, 3)
        await asyncio.sleep(1)
        sent = await sender.one(host, has_process=True)
        assert sent.seconds == pytest.approx(100, abs=1)

    play(host, work=work)


def test_cancelled_message_waits_no_more() -> None:
    host = slow(50.0)

    async def work(sender: Sender) -> None:
        first = sender.send(host, 2)
        await asyncio.sleep(1)
        (waiting,) = sender.send(host)
        (last,) = sender.send(host)
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.gather(*first)
        assert (await last).seconds == pytest.approx(99, abs=1)

    play(host, work=work)


def test_session_that_waits_is_for_the_message_that_waits() -> None:
    host = ScriptedHost({".": [(5.0, "250 ok")]})

    async def work(sender: Sender) -> None:
        sent = await asyncio.gather(*sender.send(host, 8))
        reused = [
            one
            for one in sent
            if any(isinstance(event, events.SessionReused) for event in one.events)
        ]
        assert len(reused) == 6

    play(host, work=work)
    assert len(host.visits) == 2


def test_sessions_that_wait_elsewhere_make_room() -> None:
    hosts = [ScriptedHost() for _ in range(5)]
    new = ScriptedHost()

    async def work(sender: Sender) -> None:
        for host in hosts:
            await sender.one(host)
        sent = await sender.one(new)
        assert isinstance(sent.outcome, Delivered)
        await asyncio.sleep(0.1)
        idle = sender.site.context.sessions._idle
        assert idle is not None
        assert len(idle) == 5

    play(*hosts, new, work=work)


class BusyHost(ScriptedHost):
    """Serves three connections, each message for a second, and turns others away."""

    def __init__(self, how: bytes) -> None:
        super().__init__({".": (1.0, "250 ok")})
        self._how = how
        self._served = 0

    async def _serve(self, client: socket.socket) -> None:
        if self._served == 3:
            client.send(self._how)
            if not self._how:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
            client.close()
            return
        self._served += 1
        try:
            await super()._serve(client)
        finally:
            self._served -= 1


@pytest.mark.parametrize(
    "how", [b"421 4.7.0 too many\r\n", b"554 5.7.0 too many\r\n", b""]
)
def test_burst_waits_for_a_host_that_takes_fewer_connections_than_we_do(
    how: bytes,
) -> None:
    host = BusyHost(how)
    limits = LimitOptions(connections_per_host=6, connections=100)

    async def work(sender: Sender) -> None:
        sent = await asyncio.gather(*sender.send(host, 60))
        deferred = [one for one in sent if isinstance(one.outcome, Deferred)]
        # Three at once; and each time that one more is tried.
        assert len(deferred) <= 4
        assert not any("as was found before" in one.outcome.text for one in deferred)

    play(host, work=work, limits=limits)
    assert len(host.taken) >= 56


def test_refusal_by_a_worse_host_is_not_final_where_we_fill_the_better_one() -> None:
    host = BusyHost(b"421 4.7.0 too many\r\n")
    worse = ScriptedHost({"RCPT": "550 5.7.1 unknown here"})

    async def work(sender: Sender) -> None:
        nexthop = sender.site.nexthop
        sent = await asyncio.gather(*sender.send(nexthop, 6))
        assert [type(one.outcome) for one in sent].count(Delivered) == 3
        assert not any(isinstance(one.outcome, Bounced) for one in sent)

    limits = LimitOptions(connections_per_host=6, connections=100)
    play(host, worse, work=work, limits=limits)
    assert "RCPT TO:<bob@example.com>" in worse.commands


def test_host_that_turns_all_away_is_found_to_be_down() -> None:
    host = ScriptedHost({"CONNECT": End.CLOSE})

    async def work(sender: Sender) -> None:
        sent = await asyncio.gather(*sender.send(host, 20))
        assert all(isinstance(one.outcome, Deferred) for one in sent)
        assert sum(one.has_dialled for one in sent) <= 4
        assert (await sender.site.record(host)).full

    play(host, work=work)


def test_limit_that_a_host_has_shown_rises_again() -> None:
    candidate = Candidate("mx.example", "192.0.2.1", 25, 10)
    turns: Turns[str] = Turns(5, 0)
    turns.narrow(candidate, 2)
    assert turns.limit(candidate) == 2
    assert turns.limit(candidate._replace(address="192.0.2.2")) == 5
    assert [turns.widen(candidate) for _ in range(3)] == [True, True, False]
    assert turns.limit(candidate) == 5
    turns.narrow(candidate, 9)
    assert turns.limit(candidate) == 5
    turns.per_host = 0
    assert turns.limit(candidate) == 9
    while turns.widen(candidate):
        pass
    assert turns.limit(candidate) == 0


def test_second_host_of_a_race_counts() -> None:
    silent, good = ScriptedHost({"CONNECT": End.SILENT}), slow(100.0)

    async def work(sender: Sender) -> None:
        both = sender.send(sender.site.nexthop, 2)
        await asyncio.sleep(50)
        (sent,) = sender.send(good)
        await asyncio.gather(*both)
        assert (await sent).seconds == pytest.approx(158, abs=5)

    play(silent, good, work=work)


def test_looking_again_is_not_lining_up_again() -> None:
    one, other = (
        Candidate(f"mx{place}.example", f"192.0.2.{place}", 25, 10) for place in (1, 2)
    )
    connections = Connections(1, 0, None)
    first, second, third, fourth = (
        connections.turn("example:25", lambda: 0.0, 900.0, may_wait=True)
        for _ in range(4)
    )
    assert first.ask((one, other)) == (one, other)
    assert second.ask((one, other)) == (other, one)
    assert third.ask((one, other)) is None
    assert fourth.ask((one, other)) is None
    assert third.ask((other, one)) is None, "another order, the same hosts"
    first.leave()
    assert fourth.ask((one, other)) is None
    assert third.ask((other, one)) == (one, other)


def test_limits_that_are_raised_let_more_go_on_at_once() -> None:
    host = slow(50.0)

    async def work(sender: Sender) -> None:
        site = sender.site
        tasks = sender.send(host, 6)
        await asyncio.sleep(1)
        more = LIMITS._replace(connections_per_host=4)
        site.engine = site.engine.renewed(site.options._replace(limits=more))
        sent = await asyncio.gather(*tasks)
        assert sorted(round(one.seconds) for one in sent) == [50, 50, 51, 51, 100, 100]

    play(host, work=work)


def test_descriptors_limit_the_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    places = [
        Candidate(f"mx{place}.example", f"192.0.2.{place}", 25, 10)
        for place in range(200)
    ]
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        connections = Connections(20, 1000, None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    turns = [
        connections.turn("example:25", lambda: 0.0, 900.0, may_wait=True)
        for _ in places
    ]
    asked = [turn.ask((one,)) for turn, one in zip(turns, places, strict=True)]
    assert sum(one is not None for one in asked) == 100


def test_host_that_fails_when_it_is_dialled_anew_has_its_place_back() -> None:
    host = Candidate("mx.example", "192.0.2.1", 25, 10)
    connections = Connections(1, 0, None)
    turn = connections.turn("example:25", lambda: 0.0, 900.0, may_wait=True)
    assert turn.ask((host,)) == (host,)
    turn.learn(events.CandidateStarted(0.0, host))
    turn.learn(events.CandidateTaken(0.0, host))
    turn.learn(events.SessionReplaced(0.0, host, "closed"))
    turn.learn(events.CandidateStarted(0.0, host))
    assert connections.open == 1
    turn.learn(
        events.CandidateFailed(0.0, host, Finding(Verdict.REFUSED, Phase.CONNECT, 0.0))
    )
    assert connections.open == 0, "though the message goes on elsewhere"
    turn.leave()
    assert connections.open == 0


# -- a host that hardly reads -------------------------------------------------------------


async def _read_a_byte_a_second(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while await reader.read(1):  # noqa: ASYNC110 - no condition is waited for
        await asyncio.sleep(1)


def test_host_that_reads_a_byte_a_second_holds_its_own_places_only() -> None:
    host, good = ScriptedHost({"BODY": _read_a_byte_a_second}), ScriptedHost()
    size = 8 << 20  # more than the kernels on the way take
    data = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * (size // 72)

    async def work(sender: Sender) -> None:
        site = sender.site
        large = sender.send(host, 6, data=data)
        await asyncio.sleep(20)
        streams = [one.dialogue.stream for one in site.context.sessions._in_use]
        assert len(streams) == LIMITS.connections_per_host
        assert all(len(one._outgoing) <= 128 * 1024 for one in streams)
        assert site.context.spool_memory.used < 6 << 20, "of six times as much"
        for _ in range(20):
            sent = await sender.one(good)
            assert isinstance(sent.outcome, Delivered)
            assert sent.seconds < 0.5
        ended = await asyncio.gather(*large)
        assert all(isinstance(one.outcome, Deferred) for one in ended)
        assert max(one.seconds for one in ended) <= 900

    play(host, good, work=work, limits=LIMITS)
    assert not host.taken
