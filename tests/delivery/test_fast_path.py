"""The fast path, with real sockets; what it shares with the ordinary way is in test_reuse."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.destinations import FRESH
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.fast_path import Shortcut
from mxpolicy.delivery.fast_start import LIMIT
from mxpolicy.delivery.journal import Entry, EntryState
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.owner import Calls, Owner
from mxpolicy.delivery.request import Request
from mxpolicy.options import JournalOptions, Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.routing.fast_path import Input
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.state.store import JOURNAL
from mxpolicy.state.submitted import ToldByTask
from tests.delivery.attempts import MESSAGE, mail_data, run
from tests.delivery.site import START, Sent, Site
from tests.helpers.scripted_smtp import End, ScriptedHost, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.delivery.events import Event
    from mxpolicy.outcome import Outcome
    from mxpolicy.state.store import Operation

TWO = ("bob@example.com", "eve@example.com")
OTHER = Owner("machine", "boot", "pids", 1, 1, "another")


def play(
    *hosts: ScriptedHost,
    work: Callable[[Site], Coroutine[Any, Any, None]],
    store: type[MemoryStore] = MemoryStore,
    is_fast: bool = True,
    is_by_lmtp: bool = True,
) -> None:
    async def main() -> None:
        site = Site(
            *hosts,
            keeps_sessions=True,
            store=store,
            is_fast=is_fast,
            is_by_lmtp=is_by_lmtp,
        )
        try:
            await work(site)
        finally:
            await site.engine.stop("the test is over")
        assert not site.troubles()

    run(*hosts, work=main)


def count(site: Site) -> int:
    """Return how many messages have come to the end of the fast path."""
    return 0 if site.engine.fast_path is None else site.engine.fast_path.delivered


async def begun(site: Site, data: bytes | MailData = MESSAGE) -> Delivery:
    """Begin to deliver a message, as the LMTP server does."""
    request = Request(
        "alice@example.net",
        ("bob@example.com",),
        site.nexthop,
        f"B{count(site)}",
        900.0,
        observe=site.happened.append,
        is_wanted=lambda: True,
        has_process=False,
    )
    return site.engine.begin(
        request, mail_data(data) if isinstance(data, bytes) else data
    )


def facts(sent: Sent) -> list[tuple[object, ...]]:
    """Return what was told, without the times."""
    return [
        (
            type(one),
            *(value for name, value in one._asdict().items() if name not in _TIMES),
        )
        for one in sent.events
    ]


_TIMES = {"at", "delays"}


@pytest.mark.parametrize("extensions", [["PIPELINING"], []], ids=["pipelined", ""])
@pytest.mark.parametrize("recipients", [TWO[:1], TWO])
@pytest.mark.parametrize("is_by_lmtp", [True, False], ids=["lmtp", "handed over"])
def test_all_that_is_told_and_kept_is_as_on_the_ordinary_way(
    recipients: tuple[str, ...], extensions: list[str], is_by_lmtp: bool
) -> None:
    told, kept, said = [], [], []
    for is_fast in (True, False):
        host = ScriptedHost(extensions=extensions)

        async def work(site: Site, is_fast: bool = is_fast) -> None:
            await site.send()
            told.append(facts(await site.send(recipients=recipients)))
            assert count(site) == is_fast
            await asyncio.sleep(0.1)
            rows = [*await site.store.scan(""), *await site.store.scan(JOURNAL)]
            kept.append([one.value for one in rows])

        play(host, work=work, is_fast=is_fast, is_by_lmtp=is_by_lmtp)
        said.append((host.commands, [one.mail_data for one in host.taken]))
    ports = "relay", "candidate"
    assert _without(told[0], ports) == _without(told[1], ports)
    assert len(kept[0]) == len(kept[1])
    assert said[0] == said[1]


def _without(told: list[tuple[object, ...]], words: tuple[str, ...]) -> list[str]:
    """Return *told* as text, without the port of the host: each has one of its own."""
    return [re.sub(r"\b\d{4,5}\b", "PORT", str(one)) for one in told]


def test_what_began_by_the_old_configuration_shows_no_way_to_the_next_message() -> None:
    async def work(site: Site) -> None:
        first = await begun(site)
        site.engine = site.engine.renewed(site.options._replace(allow_dial=()))
        (outcome,) = await first.outcomes()
        assert isinstance(outcome, Delivered)
        assert isinstance((await site.send()).outcome, Deferred)

    play(ScriptedHost(), work=work)


def test_message_that_still_comes_is_waited_for() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        growing = MailData()
        delivery = await begun(site, growing)
        growing.append(MESSAGE[:20])
        await asyncio.sleep(0.5)
        growing.append(MESSAGE[20:])
        growing.finish()
        assert isinstance((await delivery.outcomes())[0], Delivered)
        assert count(site) == 1
        growing.close()

    play(host, work=work)


@pytest.mark.parametrize(("size", "fast"), [(LIMIT, 1), (LIMIT + 1, 0)])
def test_only_small_messages_go_it(size: int, fast: int) -> None:
    host = ScriptedHost()
    head = b"Received: from a by b; now\r\nSubject: x\r\n\r\n"
    lines = b"0123456789abcd\r\n" * (size // 16 - 10)
    rest = size - len(head) - len(lines) - 2
    text = head + lines + b"x" * rest + b"\r\n"

    async def work(site: Site) -> None:
        await site.send()
        sent = await site.send(data=text)
        assert isinstance(sent.outcome, Delivered)
        assert count(site) == fast

    play(host, work=work)
    assert host.taken[-1].mail_data == text


def test_dot_waits_for_a_larger_body_than_the_path_has_shown() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        for size in (20_000, 20_000, 100):
            sent = await site.send(data=MESSAGE + b"x" * size + b"\r\n")
            assert isinstance(sent.outcome, Delivered)
        assert count(site) == 3

    play(host, work=work)


def test_one_message_in_a_while_goes_the_ordinary_way() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        for _ in range(20):
            await site.send()
            await asyncio.sleep(FRESH / 10)
        assert count(site) == 18

    play(host, work=work)
    assert len(host.visits) == 1


# The journal


class Claimed(MemoryStore):
    """A store in which another process has claimed every message but the first."""

    def submit(self, operation: Operation[Any], told: Callable[[Any], None]) -> Any:
        if operation.name == "replace_all":
            theirs = Entry(EntryState.CLAIMED, OTHER, START + 1000).encode()
            for row in operation.arguments[0]:
                self.rows.replace_all([row._replace(old=None, new=theirs)], False)
        return super().submit(operation, told)


def test_message_that_another_process_has_claimed_gets_no_dot() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        site.context.calls._lives = lambda owner: True
        second = await site.send()
        assert isinstance(second.outcome, Deferred)
        assert count(site) == 0

    play(host, work=work, store=Claimed)
    assert len(host.taken) == 1
    assert host.was_reset == [True]


def test_refusal_is_heard_once_also_when_the_record_is_slow() -> None:
    class Slow(MemoryStore):
        def submit(self, operation: Operation[Any], told: Callable[[Any], None]) -> Any:
            async def late() -> Any:
                await asyncio.sleep(0.3)
                return await self.do(operation)

            return ToldByTask(late(), told)

    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({"RCPT": "550 5.1.1 no such user"})
        assert isinstance((await site.send()).outcome, Bounced)

    play(host, work=work, store=Slow)
    assert len(host.visits) == 1
    assert sum(line.startswith("RCPT") for line in host.commands) == 2


# Messages that are handed over


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("after", [0.0, 0.3, 2.0])
def test_the_door_is_asked_and_obeyed(says: bool, after: float) -> None:
    host = ScriptedHost()
    asked = []

    async def may_send_dot() -> bool:
        asked.append(len(host.taken))
        await asyncio.sleep(after)
        return says

    async def work(site: Site) -> None:
        await site.send()
        sent = await site.send(may_send_dot=may_send_dot)
        assert isinstance(sent.outcome, Delivered if says else Deferred)
        assert asked
        assert count(site) == (says and after < 1)

    play(host, work=work, is_by_lmtp=False)
    assert len(host.taken) == 1 + says


def test_message_has_a_place_while_it_goes_the_fast_path() -> None:
    host = ScriptedHost({".": ["250 queued", (0.4, "250 queued")]})

    async def work(site: Site) -> None:
        async def places() -> int:
            return len(await site.store.scan("place "))

        await site.send()
        assert not await places()
        sending = asyncio.create_task(site.send())
        await asyncio.sleep(0.2)
        assert await places() == 1
        await sending
        assert count(site) == 1
        assert not await places()

    play(host, work=work, is_by_lmtp=False)


# The end


AT = {
    "mail": ({"MAIL": ["250 ok", (5.0, "250 ok")]}, Deferred),
    "data": ({"DATA": ["354 go", (5.0, "354 go")]}, Deferred),
    "dot": ({".": ["250 queued", (5.0, "250 queued")]}, Delivered),
}


@pytest.mark.parametrize("place", AT)
@pytest.mark.parametrize("after", [0.3, 3.0], ids=["fast", "handed over"])
def test_cancelled_message_is_left_unless_its_dot_is_out(
    place: str, after: float
) -> None:
    script, kind = AT[place]
    host = ScriptedHost(script)  # type: ignore[arg-type]

    async def work(site: Site) -> None:
        await site.send()
        delivery = await begun(site)
        await asyncio.sleep(after)
        delivery.cancel("as the test wants it")
        (outcome,) = await delivery.outcomes()
        assert isinstance(outcome, kind)
        assert not site.context.connections.open  # type: ignore[union-attr]

    play(host, work=work)
    assert len(host.taken) == (2 if kind is Delivered else 1)


@pytest.mark.parametrize("place", AT)
def test_abandoned_message_leaves_a_doubt_where_its_dot_is_out(place: str) -> None:
    script, kind = AT[place]
    host = ScriptedHost(script)  # type: ignore[arg-type]

    async def work(site: Site) -> None:
        await site.send()
        delivery = await begun(site)
        await asyncio.sleep(0.3)
        await site.engine.abandon()
        (outcome,) = await delivery.outcomes()
        assert isinstance(outcome, Deferred)
        rows = [Entry.decode(one.value) for one in await site.store.scan(JOURNAL)]
        left = [one for one in rows if one and one.state is not EntryState.DELIVERED]
        assert [bool(one.past.doubts) for one in left] == (
            [True] if kind is Delivered else []
        )

    play(host, work=work)


def test_message_that_nobody_wants_any_more_is_not_sent() -> None:
    host = ScriptedHost({"DATA": ["354 go", (0.2, "354 go")]})

    async def work(site: Site) -> None:
        await site.send()
        wanted = [True]
        request = Request(
            "alice@example.net",
            TWO[:1],
            site.nexthop,
            "Q",
            900.0,
            observe=site.happened.append,
            may_send_dot=lambda: asyncio.sleep(0, wanted[0]),
            is_wanted=lambda: wanted[0],
            has_process=False,
        )
        delivery = site.engine.begin(request, mail_data(MESSAGE))
        await asyncio.sleep(0.1)
        wanted[0] = False
        (outcome,) = await delivery.outcomes()
        assert isinstance(outcome, Deferred)

    play(host, work=work)
    assert len(host.taken) == 1


def test_silent_host_is_left_to_the_ordinary_way_and_its_late_250_counts() -> None:
    host = ScriptedHost({".": ["250 queued", (500.0, "250 queued")]})

    async def work(site: Site) -> None:
        await site.send()
        sent = await site.send()
        assert isinstance(sent.outcome, Delivered)
        assert 499 < sent.seconds < 501
        assert count(site) == 0

    play(host, work=work)


def test_silent_host_leaves_a_doubt() -> None:
    host = ScriptedHost({".": ["250 queued", End.SILENT]})

    async def work(site: Site) -> None:
        await site.send()
        sent = await site.send()
        assert isinstance(sent.outcome, Deferred)
        assert 599 < sent.seconds < 602
        assert "more than once" in sent.outcome.text

    play(host, work=work)


# Places and turns


def test_message_does_not_go_past_those_that_wait_for_their_turn() -> None:
    host = ScriptedHost({".": ["250 queued", (0.2, "250 queued")]})

    async def work(site: Site) -> None:
        await site.send()
        connections = site.context.connections
        assert connections is not None
        connections.renew(per_host=1, in_all=0)
        deliveries = [await begun(site, MESSAGE + b"%d\r\n" % one) for one in range(4)]
        for one in deliveries:
            assert isinstance((await one.outcomes())[0], Delivered)
        assert not connections.open

    play(host, work=work)
    assert len(host.visits) == 1


def kinds(happened: list[Event]) -> list[str]:
    return [type(one).__name__ for one in happened]


def test_nothing_is_told_twice_when_the_ordinary_way_goes_on() -> None:
    host = ScriptedHost({"RCPT": ["250 ok", "550 5.1.1 no such user"]})

    async def work(site: Site) -> None:
        await site.send()
        sent = await site.send()
        told = kinds(sent.events)
        for kind in (events.Planned, events.CandidateStarted, events.SessionReused):
            assert told.count(kind.__name__) == 1

    play(host, work=work)


# One journal for a daemon and for processes that are started for one message


async def test_daemon_and_processes_at_once_send_one_copy(tmp_path: Path) -> None:
    """The same messages, at the same time, by real files: as after a restart."""
    host = ScriptedHost()
    async with serve(host):
        engines = [
            _engine(tmp_path, number, keeps_sessions=number == 0) for number in range(3)
        ]
        (daemon, *alone) = engines
        await _send(daemon, host, "first")
        for number in range(8):
            turn = engines[number % 3 :] + engines[: number % 3]
            outcomes = await asyncio.gather(
                *(_send(engine, host, f"Q{number}") for engine in turn)
            )
            assert all(isinstance(one, Delivered) for one in outcomes)
        assert daemon.fast_path is not None
        assert daemon.fast_path.delivered
        assert all(engine.fast_path is None for engine in alone)
        for engine in engines:
            await engine.stop("the test is over")
            await engine.context.store.close()
    assert len(host.taken) == 9


def _engine(directory: Path, number: int, *, keeps_sessions: bool) -> Engine:
    """Return the engine of one process; each takes the others for alive."""
    owner = Owner("machine", "boot", "pids", number, 1, "")
    calls = itertools.count()
    return Engine(
        Context(
            Options(
                helo="mail.example.com",
                allow_dial=("127.0.0.0/8",),
                journal=JournalOptions(wait=5.0),
            ),
            store=SqliteStore(str(directory / "state.sqlite3")),
            calls=Calls(
                lambda: owner._replace(call=str(next(calls))), lambda owner: True
            ),
            keeps_sessions=keeps_sessions,
        )
    )


async def _send(engine: Engine, host: ScriptedHost, queue_id: str) -> Outcome:
    candidate = host.candidate()
    request = Request(
        "alice@example.net",
        ("bob@example.com",),
        f"[{candidate.address}]:{candidate.port}",
        queue_id,
        900.0,
        is_wanted=lambda: True,
        has_process=False,
    )
    message = mail_data(MESSAGE)
    try:
        (outcome,) = await engine.deliver(request, message)
    finally:
        message.close()
    return outcome


@pytest.mark.parametrize("place", AT)
@pytest.mark.parametrize("turns", range(5))
def test_message_abandoned_as_it_leaves_the_fast_path_keeps_no_connection(
    place: str, turns: int
) -> None:
    script, _ = AT[place]
    host = ScriptedHost(script)  # type: ignore[arg-type]

    async def work(site: Site) -> None:
        await site.send()
        delivery = await begun(site)
        await asyncio.sleep(0.3)
        assert isinstance(delivery.fast, Shortcut)
        delivery.fast._take(Input.OTHER)
        for _ in range(turns):
            await asyncio.sleep(0)
        delivery.abandon()
        await asyncio.wait([delivery.ended])
        connections = site.context.connections
        assert connections is not None
        assert not connections.open
        assert not connections._accepted
        assert not site.context.sessions._in_use
        assert delivery.outcome(0) is not None

    play(host, work=work)
    assert "QUIT" not in host.visits[0], "an orderly end in the middle of a message"
