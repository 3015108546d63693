"""Clients of the server: how much one asks, how fast, and when it leaves."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.inquiry import MAX_AT_ONCE
from mxpolicy.delivery.plan import Plan
from mxpolicy.server.access_policy import READ_SIZE, AccessPolicyServer
from mxpolicy.server.access_policy.conversation import MAX_TOLD, MAX_UNANSWERED
from tests.helpers.access_policy import (
    DUNNO,
    NULL_MX,
    Foreseeing,
    Service,
    null_mx,
    timed,
)

if TYPE_CHECKING:
    pass


class Client:
    """A mail server at the other end of a connection.

    Attributes:
        serving: The server's task for it.
    """

    def __init__(self, server: AccessPolicyServer) -> None:
        self.socket, theirs = socket.socketpair()
        self._received = b""
        for one in (self.socket, theirs):
            one.setblocking(False)
        self.serving = asyncio.create_task(self._serve(server, theirs))

    async def _serve(self, server: AccessPolicyServer, theirs: socket.socket) -> None:
        with theirs:
            await server.serve(theirs)

    def ask(self, *recipients: str) -> None:
        """Send a question about each of *recipients*."""
        for one in recipients:
            self.send(
                b"request=smtpd_access_policy\nprotocol_state=RCPT\n"
                b"recipient=%b\n\n" % one.encode()
            )

    def send(self, data: bytes) -> None:
        assert self.socket.send(data) == len(data)

    def end(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def received(self) -> bytes:
        with suppress(BlockingIOError):
            while data := self.socket.recv(1 << 20):
                self._received += data
        return self._received

    def is_closed(self) -> bool:
        """Whether the server has hung up."""
        try:
            return not self.socket.recv(1)
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.socket.close()


def test_client_that_sends_nothing_is_never_disconnected() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        await asyncio.sleep(86400)
        assert not client.serving.done()
        client.ask("a@null.example")
        await asyncio.sleep(86400)
        assert client.received() == NULL_MX
        assert not client.serving.done()
        client.end()
        await client.serving
        assert not service.trouble
        client.close()

    assert timed(play) == pytest.approx(2 * 86400)


def test_question_is_answered_dunno_when_its_forecast_takes_too_long() -> None:
    async def play() -> None:
        service = Service(timeout=2.0)
        client = Client(service.server)
        service.engine.seconds["slow.example"] = 1000.0
        client.ask("a@slow.example", "a@null.example")
        client.end()
        await client.serving
        assert client.received() == DUNNO + NULL_MX
        assert service.trouble == ["no judgement within 2 s; answered DUNNO"]
        client.close()

    assert timed(play) == pytest.approx(2.0)


def test_forecast_that_cannot_be_cancelled_is_not_waited_for() -> None:
    class Deaf(Foreseeing):
        async def plan(self, *_: object) -> Plan:
            end = asyncio.get_running_loop().time() + 50.0
            while (left := end - asyncio.get_running_loop().time()) > 0:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(left)
            raise ZeroDivisionError

    async def play() -> None:
        service = Service(timeout=2.0, engine=Deaf)
        client = Client(service.server)
        client.ask("a@null.example")
        await asyncio.sleep(3)
        assert client.received() == DUNNO
        client.end()
        await client.serving
        await asyncio.sleep(60)
        client.close()

    timed(play)


def test_question_that_waits_for_a_place_is_answered_in_time() -> None:
    async def play() -> None:
        service = Service(timeout=2.0)
        client = Client(service.server)
        names = [f"{n}.example" for n in range(MAX_AT_ONCE + 1)]
        service.engine.seconds = dict.fromkeys(names, 5.0)
        client.ask(*(f"a@{one}" for one in names))
        client.end()
        await client.serving
        assert client.received() == len(names) * DUNNO
        assert service.engine.asked == names[:MAX_AT_ONCE]
        client.close()

    assert timed(play) == pytest.approx(2.0)


def test_many_clients_have_their_own_answers_in_the_order_of_their_questions() -> None:
    async def play() -> None:
        service = Service()
        clients = [Client(service.server) for _ in range(50)]
        for number, client in enumerate(clients):
            names = [f"{number}-{n}.example" for n in range(3)]
            service.engine.seconds[names[0]] = 1.0  # the first answer is ready last
            client.ask(f"a@{names[0]}")
            client.send(b"junk\n\n")
            client.ask(*(f"a@{one}" for one in names[1:]))
            client.end()
        await asyncio.gather(*(one.serving for one in clients))
        for number, client in enumerate(clients):
            first, *rest = (null_mx(f"{number}-{n}.example") for n in range(3))
            assert client.received() == b"".join([first, DUNNO, *rest])
            client.close()

    assert timed(play) < 4  # not one after the other


def test_half_a_question_is_waited_for_and_its_end_is_told() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        client.ask("a@null.example")
        client.send(b"request=smtpd_access_policy\nrecipient=")
        await asyncio.sleep(3600)
        assert client.received() == NULL_MX
        client.end()
        await client.serving
        [text] = service.trouble
        assert "ended in the middle of a request" in text
        client.close()

    timed(play)


def test_huge_question_is_dunno_and_spoils_nothing() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        for _ in range(100):
            client.send(b"x" * 100_000)
            await asyncio.sleep(0.001)
        client.send(b"\n\n")
        client.ask("a@null.example")
        client.end()
        await client.serving
        assert client.received() == DUNNO + NULL_MX
        assert "over 65536 bytes" in service.trouble[0]
        client.close()

    timed(play)


def test_flood_of_what_is_no_question_is_answered_and_told_in_few_lines() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        for _ in range(100):
            client.send(100 * b"\n")
            await asyncio.sleep(0.001)
            client.received()
        client.end()
        await client.serving
        assert client.received() == 10_000 * DUNNO
        assert len(service.trouble) == MAX_TOLD + 1
        assert service.trouble[-1].startswith(f"not a request, {10_000 - MAX_TOLD} ")
        client.close()

    timed(play)


def test_client_that_asks_on_and_on_is_read_no_further() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        names = [f"{n}.example" for n in range(20 * MAX_UNANSWERED)]
        service.engine.seconds = dict.fromkeys(names, 5.0)
        before = len(asyncio.all_tasks())
        with suppress(BlockingIOError):
            for one in names:
                client.ask(f"a@{one}")
        await asyncio.sleep(1)
        # For each question a task, and one for what is found about its address.
        assert len(asyncio.all_tasks()) - before < 2 * (MAX_UNANSWERED + READ_SIZE / 50)
        client.serving.cancel()
        await asyncio.gather(client.serving, return_exceptions=True)
        client.close()

    timed(play)


def send_until_full(client: Client) -> int:
    """Ask about one domain until no more is taken; return the bytes sent."""
    question = b"request=smtpd_access_policy\nprotocol_state=RCPT\nrecipient=a@null.example\n\n"
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += client.socket.send(100 * question)
    return sent


def test_client_that_never_reads_its_answers_is_read_no_further() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        sent = 0
        for _ in range(100):
            sent += send_until_full(client)
            await asyncio.sleep(1)
        assert sent < 4 << 20  # what the kernel keeps for both, and 64 KiB of ours
        assert not client.serving.done()
        judged = len(service.events)
        await asyncio.sleep(3600)
        assert len(service.events) == judged
        # The others are served, and so is it when it reads on.
        other = Client(service.server)
        other.ask("a@null.example")
        await asyncio.sleep(1)
        assert other.received() == NULL_MX
        client.received()
        await asyncio.sleep(1)
        assert len(service.events) > judged + 1
        for one in (client, other):
            one.close()
        await asyncio.gather(client.serving, other.serving)

    timed(play)


def test_thousand_idle_clients_cost_little_and_one_more_is_served() -> None:
    async def play() -> None:
        service = Service()
        clients = [Client(service.server) for _ in range(1000)]
        await asyncio.sleep(1)
        clients[0].ask("a@null.example")
        await asyncio.sleep(86400)
        before = len(asyncio.all_tasks())
        for one in clients:
            one.ask("a@null.example")
        await asyncio.sleep(1)
        # What is known is answered without a task.
        assert len(asyncio.all_tasks()) == before
        for one in clients:
            assert one.received().endswith(NULL_MX)
            one.end()
        await asyncio.gather(*(one.serving for one in clients))
        for one in clients:
            assert one.is_closed()
            one.close()

    timed(play)


def test_cancelling_answers_what_waits_at_once() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        names = [f"{n}.example" for n in range(3)]
        service.engine.seconds = {names[0]: 5.0, names[2]: 5.0}
        client.ask(*(f"a@{one}" for one in names))
        await asyncio.sleep(1)
        assert client.received() == b""
        client.serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.serving
        assert client.received() == DUNNO + null_mx(names[1]) + DUNNO
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        client.close()

    assert timed(play) == pytest.approx(1.0)


def test_client_that_does_not_read_keeps_nobody_from_ending() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        for _ in range(20):
            send_until_full(client)
            await asyncio.sleep(1)
        client.serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.serving
        client.close()

    assert timed(play) == pytest.approx(20.0)


def test_stopping_hangs_up_on_nobody_and_answers_go_on() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        service.server.stop()
        client.ask("a@null.example")
        await asyncio.sleep(3600)
        assert client.received() == NULL_MX
        assert not client.serving.done()
        client.close()
        await client.serving

    timed(play)


def test_client_that_has_gone_leaves_nothing_behind() -> None:
    async def play() -> None:
        service = Service()
        client = Client(service.server)
        service.engine.seconds["b.example"] = 5.0
        client.ask("a@null.example", "a@b.example")
        client.close()
        await client.serving
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    assert timed(play) < 6
