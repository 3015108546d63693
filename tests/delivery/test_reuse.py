"""Several messages over one session, with real sockets and a clock that jumps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from mxpolicy.delivery import events
from mxpolicy.outcome import Delivered
from mxpolicy.routing.candidate import Phase
from tests.delivery.attempts import run
from tests.delivery.site import Sent, Site
from tests.helpers.scripted_smtp import End, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from mxpolicy.delivery.events import Event
    from tests.helpers.scripted_smtp import Script

E = TypeVar("E", bound="Event")

TWO = ("bob@example.com", "eve@example.com")


def play(
    *hosts: ScriptedHost, work: Callable[[Site], Coroutine[Any, Any, None]]
) -> Site:
    """Run *work* with a site that keeps sessions; no message meets trouble of ours."""
    sites = []

    async def main() -> None:
        sites.append(site := Site(*hosts, keeps_sessions=True))
        try:
            await work(site)
        finally:
            await site.engine.stop("the test is over")
        assert not site.troubles()

    run(*hosts, work=main)
    return sites[0]


def told(sent: Sent, kind: type[E]) -> list[E]:
    return [one for one in sent.events if isinstance(one, kind)]


def was_reused(sent: Sent) -> bool:
    return bool(told(sent, events.SessionReused))


def was_replaced(sent: Sent) -> str:
    """Return why a session was replaced; empty when it was not."""
    return "".join(one.text for one in told(sent, events.SessionReplaced))


def verbs(host: ScriptedHost) -> list[list[str]]:
    return [[line.partition(" ")[0] for line in visit] for visit in host.visits]


FIRST = ["EHLO", "MAIL", "RCPT", "DATA"]
LATER = ["RSET", "MAIL", "RCPT", "DATA"]


def test_second_message_goes_over_the_session_of_the_first() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        first = await site.send()
        await asyncio.sleep(3)
        second = await site.send()
        assert isinstance(first.outcome, Delivered)
        assert isinstance(second.outcome, Delivered)
        assert (was_reused(first), was_reused(second)) == (False, True)
        phases = [one.phase for one in told(second, events.PhaseReached)]
        assert phases == [Phase.READY]

    play(host, work=work)
    assert verbs(host) == [[*FIRST, *LATER, "QUIT"]]
    assert len(host.taken) == 2


def test_no_delay_of_a_reused_session_is_negative() -> None:
    host = ScriptedHost({"CONNECT": (2.0, "220 hi")})

    async def work(site: Site) -> None:
        await site.send()
        (settled,) = told(await site.send(), events.RecipientSettled)
        assert min(settled.delays) >= 0
        assert settled.delays.reach < 1

    play(host, work=work)


def test_session_waits_five_seconds_and_quits() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        await asyncio.sleep(4.9)
        assert "QUIT" not in host.commands
        await asyncio.sleep(0.2)
        assert "QUIT" in host.commands
        assert not was_reused(await site.send())

    play(host, work=work)
    assert len(host.visits) == 2


def test_session_is_closed_at_five_minutes_however_busy() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        for _ in range(80):
            await site.send()
            await asyncio.sleep(4)

    play(host, work=work)
    assert len(host.visits) == 2


def test_session_that_the_host_closes_while_it_waits_is_not_used() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.hang_up()
        await asyncio.sleep(0.01)
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert not was_reused(second)

    play(host, work=work)
    assert len(host.visits) == 2


@pytest.mark.parametrize(
    "last_words", [b"421 4.4.2 idle\r\n", b"250 2.0.0 queued\r\n", b"2", b"550 no\r\n"]
)
def test_session_ends_when_the_host_says_anything_while_it_waits(
    last_words: bytes,
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2)
        writer.write(last_words)

    host = ScriptedHost({".": [("250 queued", say), "250 queued"]})

    async def work(site: Site) -> None:
        await site.send()
        await asyncio.sleep(2.1)
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert not was_reused(second)

    play(host, work=work)
    assert len(host.visits) == 2


STALE: dict[str, Script] = {
    "RSET 421": {"RSET": "421 4.4.2 idle for too long"},
    "RSET 5yz": {"RSET": "502 5.5.1 no such command"},
    "RSET 4yz": {"RSET": "450 4.5.1 hm"},
    "RSET closed": {"RSET": End.CLOSE},
    "RSET reset": {"RSET": End.RESET},
    "RSET silent": {"RSET": End.SILENT},
    "RSET twice": {"RSET": "250 ok\n250 ok"},
    "MAIL 421": {"MAIL": ["250 ok", "421 4.7.0 too many messages", "250 ok"]},
    "MAIL 451": {"MAIL": ["250 ok", "451 4.7.0 one message a session", "250 ok"]},
    "MAIL 503": {"MAIL": ["250 ok", "503 5.5.1 sender already given", "250 ok"]},
    "MAIL 550": {"MAIL": ["250 ok", "550 5.7.1 reconnect", "250 ok"]},
    "MAIL closed": {"MAIL": ["250 ok", End.CLOSE, "250 ok"]},
    "MAIL reset": {"MAIL": ["250 ok", End.RESET, "250 ok"]},
    "MAIL silent": {"MAIL": ["250 ok", End.SILENT, "250 ok"]},
    "MAIL nonsense": {"MAIL": ["250 ok", "354 go ahead", "250 ok"]},
    "RCPT 421": {"RCPT": ["250 ok", "421 4.7.0 enough", "250 ok"]},
    "RCPT closed": {"RCPT": ["250 ok", End.CLOSE, "250 ok"]},
    "RCPT silent": {"RCPT": ["250 ok", End.SILENT, "250 ok"]},
    "DATA 421": {"DATA": ["354 go", "421 4.7.0 enough", "354 go"]},
    "DATA reset": {"DATA": ["354 go", End.RESET, "354 go"]},
    "DATA silent": {"DATA": ["354 go", End.SILENT, "354 go"]},
    "DATA nonsense": {"DATA": ["354 go", "250 ok", "354 go"]},
}


@pytest.mark.parametrize("case", STALE)
def test_end_of_an_old_session_before_354_is_replaced_and_is_no_finding(
    case: str,
) -> None:
    host = ScriptedHost(STALE[case])

    async def work(site: Site) -> None:
        await site.send()
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert was_reused(second)
        assert was_replaced(second)
        assert not told(second, events.CandidateFailed)
        assert not told(second, events.CandidateDoubted)
        (settled,) = told(second, events.RecipientSettled)
        assert settled.tried == ()
        assert second.seconds < 11
        record = await site.record(host)
        assert record.verdict is None

    play(host, work=work)
    assert len(host.visits) == 2
    assert len(host.taken) == 2
