"""`mxpolicy.delivery.kick`: the mail server is told when its hosts are back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.command import CommandFailed
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.delivery.kick import AFTER_FAILURE, HOSTS_UNDER_WAY, Kick
from mxpolicy.delivery.leases import Leases
from mxpolicy.options import KickOptions
from mxpolicy.outcome import Deferred, Delivered
from mxpolicy.routing.deferred_mail import Waiting
from tests.delivery.attempts import run
from tests.delivery.site import Site
from tests.helpers.scripted_smtp import End, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

COMMAND = ("/usr/sbin/postqueue", "-i")


class Kicked:
    """A site with a kick, and the commands that it ran: (seconds, arguments)."""

    def __init__(self, *hosts: ScriptedHost, rate: int = 10) -> None:
        self.site = Site(*hosts)
        options = self.site.options._replace(kick=KickOptions(COMMAND, rate))
        self.site.context.options = options
        self.commands: list[tuple[float, list[str]]] = []
        self.fails = 0
        self.has_run = asyncio.Event()
        self.told: list[events.Event] = []
        self.kick = Kick(lambda: self.site.context, self.told.append, self._command)

    async def _command(self, argv: Sequence[str]) -> None:
        self.commands.append((asyncio.get_running_loop().time(), list(argv)))
        self.has_run.set()
        if self.fails:
            self.fails -= 1
            raise CommandFailed("status 1: postqueue: fatal: no such queue")

    async def send(self, nexthop: str = "", *recipients: str) -> object:
        """Send a message; the kick sees what the log sees."""
        sent = await self.site.send(nexthop, recipients or ("bob@example.com",))
        for event in sent.events:
            self.kick.observe(event)
        return sent.outcomes[0]

    async def send_again(self, nexthop: str, *recipients: str) -> object:
        """Send the same message again, perhaps elsewhere."""
        self.site.number -= 1
        return await self.send(nexthop, *recipients)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.kick.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def queue_ids(self) -> list[str]:
        assert all(argv[:2] == list(COMMAND) for _, argv in self.commands)
        return [argv[2] for _, argv in self.commands]


def test_mail_server_is_told_when_the_host_is_back() -> None:
    host = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        kicked = Kicked(host)
        async with kicked.running():
            assert isinstance(await kicked.send(), Deferred)
            assert isinstance(await kicked.send(), Deferred)  # from memory
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(120)
        assert kicked.queue_ids() == ["Q1", "Q2"]
        # The pause is a minute: not sooner, and not by the mail server's schedule.
        assert 55 < kicked.commands[0][0] - began < 75
        assert host.visits[1:] == [["EHLO mail.example.com", "QUIT"]]
        recovered = [
            one for one in kicked.told if isinstance(one, events.HostRecovered)
        ]
        assert [one.messages for one in recovered] == [2]
        assert isinstance(await kicked.send(), Delivered)

    run(host, work=work)


def test_mail_server_is_not_told_of_mail_that_has_gone_meanwhile() -> None:
    host, other = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]}), ScriptedHost()

    async def work() -> None:
        kicked = Kicked(host, other)
        there, elsewhere = (
            f"[{one.candidate().address}]:{one.candidate().port}"
            for one in (host, other)
        )
        both = "bob@example.com", "eve@example.com"
        async with kicked.running():
            assert isinstance(await kicked.send(there), Deferred)
            assert isinstance(await kicked.send_again(elsewhere), Delivered)
            assert isinstance(await kicked.send(there, *both), Deferred)
            assert isinstance(
                await kicked.send_again(elsewhere, "bob@example.com"), Delivered
            )
            await asyncio.sleep(120)
        assert kicked.queue_ids() == ["Q2"], "it is still waiting for eve"

    run(host, other, work=work)


def test_dead_host_is_dialled_once_in_each_pause() -> None:
    host = ScriptedHost({"CONNECT": End.CLOSE})

    async def work() -> None:
        kicked = Kicked(host)
        async with kicked.running():
            for _ in range(5):
                assert isinstance(await kicked.send(), Deferred)
            await asyncio.sleep(3600)
        assert kicked.commands == []
        # 1 + 2 + 4 + 8 minutes, then one each ten.
        assert 7 <= len(host.visits) <= 10

    run(host, work=work)


def test_probe_of_another_process_is_left_to_it() -> None:
    host = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        kicked = Kicked(host)
        leases = Leases(kicked.site.store, kicked.site.utc)
        async with kicked.running():
            await kicked.send()
            await asyncio.sleep(50)
            assert await leases.take(host_key(host.candidate()))
            await asyncio.sleep(30)
            assert len(host.visits) == 1
            await leases.release()
            await asyncio.sleep(30)
        assert kicked.queue_ids() == ["Q1"]

    run(host, work=work)


def test_other_mail_that_finds_the_host_ready_is_enough() -> None:
    host = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        kicked = Kicked(host)
        async with kicked.running():
            await kicked.send()
            await asyncio.sleep(5)
            kicked.site.utc.offset += 120  # its verdict is too old to count
            assert isinstance(await kicked.send(), Delivered)
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(10)
        assert kicked.queue_ids() == ["Q1"]
        assert kicked.commands[0][0] - began < 5

    run(host, work=work)


def test_message_that_the_mail_server_has_tried_itself_waits_no_more() -> None:
    host = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        kicked = Kicked(host)
        async with kicked.running():
            await kicked.send()
            await asyncio.sleep(5)
            kicked.site.utc.offset += 120  # its verdict is too old to count
            kicked.site.number -= 1  # the same message again
            assert isinstance(await kicked.send(), Delivered)
            await asyncio.sleep(10)
        assert kicked.queue_ids() == []

    run(host, work=work)


@pytest.mark.parametrize("reply", ["451 greylisted", "250 ok"])
def test_answered_mail_is_left_to_the_mail_server(reply: str) -> None:
    host = ScriptedHost({"RCPT": reply})

    async def work() -> None:
        kicked = Kicked(host)
        async with kicked.running():
            await kicked.send()
            await kicked.send()
            await asyncio.sleep(600)
        assert kicked.commands == []

    run(host, work=work)


def test_rate_is_kept() -> None:
    host = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        kicked = Kicked(host, rate=2)
        async with kicked.running():
            for _ in range(6):
                await kicked.send()
            await asyncio.sleep(120)
        times = [at for at, _ in kicked.commands]
        assert len(times) == 6
        assert min(b - a for a, b in pairwise(times)) >= 0.5

    run(host, work=work)


def test_host_that_fails_again_keeps_the_rest_of_its_mail() -> None:
    host = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello", End.CLOSE]})

    async def work() -> None:
        kicked = Kicked(host, rate=1)
        async with kicked.running():
            for _ in range(5):
                await kicked.send()
            await kicked.has_run.wait()
            kicked.site.utc.offset += 120
            assert isinstance(await kicked.send(), Deferred)
            await asyncio.sleep(20)
            before = len(kicked.commands)
            assert before < 5
            await asyncio.sleep(5)
            assert len(kicked.commands) == before

    run(host, work=work)


def test_command_that_fails_is_told_and_tried_less_often() -> None:
    host = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        kicked = Kicked(host)
        kicked.fails = 1
        async with kicked.running():
            await kicked.send()
            await kicked.send()
            await asyncio.sleep(300)
        assert kicked.queue_ids() == ["Q1", "Q2"]
        assert kicked.commands[1][0] - kicked.commands[0][0] >= AFTER_FAILURE
        (trouble,) = [one for one in kicked.told if isinstance(one, events.Trouble)]
        assert trouble.text == (
            "/usr/sbin/postqueue Q1: status 1: postqueue: fatal: no such queue"
        )

    run(host, work=work)


@pytest.mark.parametrize("queue_id", ["", "-d", "a b", "x;y", "../x", "Q" * 101])
def test_strange_queue_id_is_no_argument(queue_id: str) -> None:
    host = ScriptedHost()

    async def work() -> None:
        kicked = Kicked(host)
        candidate = host.candidate()
        kicked.kick.observe(events.Planned(0.0, "x", (candidate,), (), queue_id))
        deferred = Deferred((4, 4, 1), "no answer")  # type: ignore[arg-type]
        kicked.kick.observe(
            events.RecipientSettled(0.0, "x", deferred, events.Delays(), (), queue_id)
        )
        assert not kicked.kick._mail

    run(host, work=work)


def test_hosts_of_messages_under_way_are_bounded() -> None:
    host = ScriptedHost()

    async def work() -> None:
        kicked = Kicked(host)
        many = (host.candidate(),) * 100
        last = HOSTS_UNDER_WAY // len(many)
        deferred = Deferred((4, 4, 1), "no answer")  # type: ignore[arg-type]
        for number in range(last + 1):
            kicked.kick.observe(events.Planned(0.0, "x", many, (), f"Q{number}"))
        for queue_id in ("Q0", "Q1", f"Q{last}"):
            kicked.kick.observe(
                events.RecipientSettled(
                    0.0, "x", deferred, events.Delays(), (), queue_id
                )
            )
        assert len(kicked.kick._mail) == 2, "the first message's hosts are forgotten"
        # The same plan of a retry takes no more room.
        for _ in range(3):
            kicked.kick.observe(events.Planned(0.0, "x", many, (), "Q1"))
        kicked.kick._mail.settled(Waiting("Q2", "x"))
        kicked.kick.observe(
            events.RecipientSettled(0.0, "x", deferred, events.Delays(), (), "Q2")
        )
        assert len(kicked.kick._mail) == 3

    run(host, work=work)
