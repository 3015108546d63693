"""`mxpolicy.server.lmtp`: real sockets on both sides, a table in place of DNS."""

from __future__ import annotations

import asyncio
import select
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import RecipientSettled, Trouble
from mxpolicy.delivery.inquiry import MAX_AT_ONCE
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.net.dial import dial
from mxpolicy.options import LmtpOptions, MemoryOptions, Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.routing.kept_findings import MEMORY_HOLDS
from mxpolicy.server.lmtp import LmtpServer
from mxpolicy.server.lmtp.client import CLIENT_SILENCE, DATA_SILENCE, Client
from mxpolicy.server.lmtp.message import reply_of
from mxpolicy.server.lmtp.recipients import FORECAST_TIME, GOOD_FOR, Recipients
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import End, ScriptedHost, serve
from tests.helpers.socket_loop import run_with_sockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from mxpolicy.delivery.events import Event
    from mxpolicy.net.stream import Stream
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate

MESSAGE = b"Received: from a by b\r\nSubject: one\r\n\r\nOne line.\r\n"
DOT = b".\r\n"

OK = EnhancedStatus(2, 0, 0)
LATER = EnhancedStatus(4, 0, 0)
NEVER = EnhancedStatus(5, 0, 0)


class MailServer:
    """What a mail server does, line by line."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = b""

    async def say(self, data: bytes) -> None:
        """Send *data*."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def line(self) -> str:
        """Return the next line; empty at the end."""
        loop = asyncio.get_running_loop()
        while b"\r\n" not in self._received:
            data = await loop.sock_recv(self._socket, 65536)
            if not data:
                assert not self._received
                return ""
            self._received += data
        line, _, self._received = self._received.partition(b"\r\n")
        return line.decode("ascii")

    async def reply(self) -> str:
        """Return the last line of the next reply."""
        while (line := await self.line())[3:4] == "-":
            pass
        return line

    async def replies(self, count: int) -> list[str]:
        """Return the next replies, the last line of each."""
        return [await self.reply() for _ in range(count)]

    async def greet(self) -> None:
        """Hear the greeting, and say LHLO."""
        assert (await self.reply()).startswith("220 ")
        await self.say(b"LHLO client.example\r\n")
        assert (await self.reply()).startswith("250 ")

    def has_received(self) -> bool:
        """Return whether there is something to read."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def flood(self, data: bytes, most: int) -> int:
        """Send *data* again and again while it is taken; return how many bytes were."""
        sent = 0
        with suppress(BlockingIOError):
            while sent < most:
                sent += self._socket.send(data[sent % len(data) :])
        return sent

    def hang_up(self) -> None:
        """Close the connection."""
        self._socket.close()


class Site:
    """An LMTP server, and domains whose hosts are scripted.

    Attributes:
        happened: What the server's observer was told.
    """

    def __init__(
        self,
        domains: Mapping[str, Sequence[ScriptedHost]],
        lmtp: LmtpOptions | None = None,
    ) -> None:
        self.resolver = FakeResolver()
        self.happened: list[Event] = []
        self._ports: dict[str, int] = {}
        for domain, hosts in domains.items():
            names = [f"mx{place}.{domain}" for place in range(1, len(hosts) + 1)]
            self.resolver.mx[domain] = [
                (10 * place, name) for place, name in enumerate(names, 1)
            ]
            for name, host in zip(names, hosts, strict=True):
                candidate = host.candidate()
                self._ports[candidate.address] = candidate.port
                self.resolver.addresses["A"][name] = [candidate.address]
        options = Options(
            helo="us.example.net",
            allow_dial=("127.0.0.0/8",),
            lmtp=lmtp or LmtpOptions(),
            memory=MemoryOptions(),
        )
        self.context = Context(
            options,
            resolver=self.resolver,
            dial=self._dial,
            clock=asyncio.get_running_loop().time,
        )
        self.engine = Engine(self.context)
        self.server = LmtpServer(lambda: self.engine, self.happened.append)
        self._tasks: list[asyncio.Task[None]] = []
        self._clients: list[MailServer] = []

    async def _dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        there = candidate._replace(port=self._ports[candidate.address])
        return await dial(there, mss=mss)

    def client(self) -> MailServer:
        """Return a client that is connected."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._tasks.append(asyncio.create_task(self.server.serve(theirs)))
        self._clients.append(MailServer(ours))
        return self._clients[-1]

    def settled(self) -> list[RecipientSettled]:
        """Return what became of recipients, in the order of time."""
        return [one for one in self.happened if isinstance(one, RecipientSettled)]

    def troubles(self) -> list[str]:
        """Return what went wrong on our side."""
        return [one.text for one in self.happened if isinstance(one, Trouble)]

    async def cancel(self) -> None:
        """Cancel what serves the clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Hang up all clients, and wait for the deliveries."""
        await self.cancel()
        await self.engine.stop("the test ends")
        for client in self._clients:
            client.hang_up()


@asynccontextmanager
async def serving(
    lmtp: LmtpOptions | None = None, **hosts: ScriptedHost
) -> AsyncIterator[Site]:
    """Serve with hosts: ``one=host`` is the only one of ``one.example``."""
    async with asyncio.timeout(20_000), serve(*hosts.values()):
        site = Site({f"{name}.example": [host] for name, host in hosts.items()}, lmtp)
        try:
            yield site
        finally:
            await site.close()


class Hold:
    """Holds a host at one command: `reached` when it is there, until `release`."""

    def __init__(self) -> None:
        self.reached, self.release = asyncio.Event(), asyncio.Event()

    async def __call__(self, *_: object) -> None:
        self.reached.set()
        await self.release.wait()


USUAL_MAIL = "MAIL FROM:<a@b.example> SIZE=60"


def envelope(*recipients: str, mail: str = USUAL_MAIL) -> bytes:
    """Return the commands from MAIL to DATA; parameters follow a recipient's ``>``."""
    rcpt = [f"RCPT TO:<{one}{'' if '>' in one else '>'}" for one in recipients]
    return "".join(f"{line}\r\n" for line in [mail, *rcpt, "DATA"]).encode()


async def begin(site: Site, *recipients: str, mail: str = USUAL_MAIL) -> MailServer:
    """Return a client that may send mail data now."""
    client = site.client()
    await client.greet()
    await client.say(envelope(*recipients, mail=mail))
    replies = await client.replies(2 + len(recipients))
    assert [one[:3] for one in replies] == ["250"] * (1 + len(recipients)) + ["354"]
    return client


async def until(happens: Callable[[], object]) -> None:
    """Return once *happens* returns something true."""
    while not happens():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.002)


# -- what is said when --------------------------------------------------------


async def test_a_message_is_delivered() -> None:
    host = ScriptedHost({".": "250 2.0.0 queued as 17"})
    async with serving(one=host) as site:
        client = await begin(site, "c@one.example")
        await client.say(MESSAGE + DOT)
        reply = await client.reply()
        assert reply.startswith("250 2.0.0 mx1.one.example["), reply
        assert reply.endswith("said: 250 2.0.0 queued as 17")
        await client.say(b"QUIT\r\n")
        assert await client.reply() == "221 2.0.0 Bye"
        assert await client.line() == ""
    (message,) = host.taken
    assert message.reverse_path == "a@b.example"
    assert message.forward_paths == ("c@one.example",)
    assert message.mail_data == MESSAGE
    assert site.troubles() == []


async def test_one_client_sends_many_messages_each_under_its_own_name() -> None:
    host = ScriptedHost()
    async with serving(one=host) as site:
        client = site.client()
        await client.greet()
        for number in range(3):
            await client.say(f"XFORWARD IDENT=Q{number}\r\n".encode())
            await client.say(envelope("c@one.example") + MESSAGE + DOT)
            replies = await client.replies(5)
            assert [one[:3] for one in replies] == ["250", "250", "250", "354", "250"]
    assert len(host.taken) == 3
    assert [one.queue_id for one in site.settled()] == ["Q0", "Q1", "Q2"]


async def test_each_recipient_has_the_words_of_its_host() -> None:
    one = ScriptedHost(
        {"RCPT no@one.example": "550 5.1.1 nobody", ".": "250 2.0.0 one"}
    )
    two = ScriptedHost({".": "452 4.2.2 disk full"})
    async with serving(one=one, two=two) as site:
        client = await begin(site, "x@two.example", "no@one.example", "c@one.example")
        await client.say(MESSAGE + DOT)
        second, first, third = await client.replies(3)
    assert second.startswith("452 4.2.2 host mx1.two.example[")
    assert "said: 452 4.2.2 disk full (in reply to end of data)" in second
    assert first.startswith("550 5.1.1 host mx1.one.example[")
    assert first.endswith("said: 550 5.1.1 nobody (in reply to RCPT command)")
    assert third.startswith("250 2.0.0 mx1.one.example[")


async def test_a_reply_waits_for_those_before_it_only() -> None:
    hold = Hold()
    slow = ScriptedHost({".": (hold, "250 2.0.0 slow")})
    quick = ScriptedHost({".": "250 2.0.0 quick"})
    async with serving(slow=slow, quick=quick) as site:
        ahead = await begin(site, "a@quick.example", "b@slow.example")
        await ahead.say(MESSAGE + DOT)
        assert (await ahead.reply()).endswith("quick")
        behind = await begin(site, "b@slow.example", "a@quick.example")
        await behind.say(MESSAGE + b"Another.\r\n" + DOT)
        await until(lambda: len(quick.taken) == 2)
        await until(lambda: len(site.settled()) == 2)
        assert not behind.has_received()
        hold.release.set()
        assert (await ahead.reply()).endswith("slow")
        assert [one[-5:] for one in await behind.replies(2)] == [" slow", "quick"]


async def test_421_of_a_host_does_not_end_the_session() -> None:
    host = ScriptedHost({"RCPT": ("421 4.7.0 go away", End.CLOSE)})
    async with serving(one=host) as site:
        client = await begin(site, "c@one.example")
        await client.say(MESSAGE + DOT)
        reply = await client.reply()
        assert reply.startswith("451 4."), reply
        assert "421 4.7.0 go away" in reply
        await client.say(b"NOOP\r\n")
        assert await client.reply() == "250 2.0.0 Ok"


async def test_what_is_known_is_said_at_rcpt() -> None:
    async with serving(one=ScriptedHost()) as site:
        site.resolver.mx["null.example"] = [(0, ".")]
        client = site.client()
        await client.greet()
        await client.say(
            b"XFORWARD IDENT=Q1\r\n"
            + envelope(
                "a@null.example", "b@none.example", "c@one.example", "no-address"
            )
        )
        *_, null, none, one, bad, data = await client.replies(7)
        assert null == ("550 5.1.10 domain null.example does not accept mail (null MX)")
        assert none.startswith("550 5.1.2 domain none.example does not exist")
        assert one == "250 2.1.5 Ok"
        assert bad.startswith("550 5.1.3 bad recipient address ")
        assert data.startswith("354 ")
        # Those that were refused have their line in the log.
        assert sorted((one.queue_id, one.recipient) for one in site.settled()) == [
            ("Q1", "a@null.example"),
            ("Q1", "b@none.example"),
            ("Q1", "no-address"),
        ]
        await client.say(MESSAGE + DOT)
        assert (await client.reply()).startswith("250 ")


async def test_what_is_no_address_says_nothing_of_the_domain_of_that_name() -> None:
    async with serving(one=ScriptedHost()) as site:
        client = site.client()
        await client.greet()
        await client.say(envelope("one.example"))
        _, bad, _ = await client.replies(3)
        assert bad.startswith("550 5.1.3 bad recipient address ")
        await client.say(b"RSET\r\n" + envelope("c@one.example"))
        *_, one, data = await client.replies(4)
        assert one == "250 2.1.5 Ok"
        assert data.startswith("354 ")


def test_hosts_that_have_all_failed_are_told_at_rcpt() -> None:
    async def main() -> None:
        host = ScriptedHost({"CONNECT": End.CLOSE})
        async with serving(one=host) as site:
            client = await begin(site, "c@one.example")
            await client.say(MESSAGE + DOT)
            assert (await client.reply()).startswith("451 4.4.")
            await asyncio.sleep(GOOD_FOR + MEMORY_HOLDS)
            client = site.client()
            await client.greet()
            await client.say(envelope("c@one.example"))
            _, rcpt, data = await client.replies(3)
        assert rcpt.startswith(
            "451 4.4.1 no host can be reached, as was found before: "
        )
        assert data.startswith("503 5.5.1 ")
        assert len(host.visits) == 1

    run_with_sockets(main())


async def test_dns_that_does_not_answer_is_left_to_the_delivery() -> None:
    async with serving(one=ScriptedHost()) as site:
        site.resolver.fail = frozenset({"MX dead.example"})
        client = await begin(site, "c@dead.example")
        await client.say(MESSAGE + DOT)
        assert (await client.reply()).startswith("451 4.4.3 ")


def test_no_recipient_waits_for_the_forecasts_of_others() -> None:
    async def main() -> None:
        count = 8 * MAX_AT_ONCE
        domains = [f"d{number}.example" for number in range(count)]
        async with serving(one=ScriptedHost()) as site:
            questions = [f"MX {domain}" for domain in domains]
            site.resolver.fail = frozenset(questions)
            site.resolver.slow = dict.fromkeys(questions, FORECAST_TIME)
            client = site.client()
            await client.greet()
            began = asyncio.get_running_loop().time()
            await client.say(envelope(*[f"a@{domain}" for domain in domains]))
            replies = await client.replies(2 + count)
            assert {one[:3] for one in replies[:-1]} == {"250"}
            assert asyncio.get_running_loop().time() - began < 3 * FORECAST_TIME

    run_with_sockets(main())


async def test_stopping_is_said_at_rcpt_and_nothing_else_changes() -> None:
    host = ScriptedHost()
    async with serving(one=host) as site:
        begun = await begin(site, "c@one.example")
        site.server.stop()
        await begun.say(MESSAGE + DOT)
        assert (await begun.reply()).startswith("250 ")
        for client in (begun, site.client()):
            if client is not begun:
                await client.greet()
            await client.say(envelope("c@one.example"))
            mail, rcpt, data = await client.replies(3)
            assert mail == "250 2.1.0 Ok"
            assert rcpt == "451 4.3.2 mxpolicy is stopping"
            assert data.startswith("503 ")
            await client.say(b"NOOP\r\n")
            assert await client.reply() == "250 2.0.0 Ok"


async def test_the_host_is_sent_what_still_comes() -> None:
    host = ScriptedHost()
    async with serving(one=host) as site:
        client = await begin(site, "c@one.example")
        line = b"x" * 76 + b"\r\n"
        await client.say(MESSAGE + 2000 * line)
        await until(lambda: host.raw and len(host.raw[0]) > 100_000)
        assert host.messages == []
        await client.say(b"..last\r\n" + DOT)
        assert (await client.reply()).startswith("250 ")
    (message,) = host.taken
    assert message.mail_data == MESSAGE + 2000 * line + b"..last\r\n"


async def test_a_host_is_told_size_and_body_though_they_are_not_known_yet() -> None:
    host = ScriptedHost()
    async with serving(one=host) as site:
        client = await begin(site, "c@one.example")
        await client.say(MESSAGE + 2000 * (b"x" * 76 + b"\r\n"))
        await until(lambda: host.raw and b"DATA" in host.raw[0])
        await client.say("\u00e9\r\n".encode() + DOT)
        assert (await client.reply()).startswith("250 ")
        small = await begin(site, "c@one.example")
        await small.say(MESSAGE + b"Another.\r\n" + DOT)
        assert (await small.reply()).startswith("250 ")
    mail = [one for one in host.commands if one.startswith("MAIL")]
    assert mail == [
        "MAIL FROM:<a@b.example> SIZE=60 BODY=8BITMIME",
        "MAIL FROM:<a@b.example> SIZE=60",
    ]


async def test_what_the_sender_wants_to_be_told_is_passed_on() -> None:
    knows = ScriptedHost(extensions=("PIPELINING", "DSN"))
    plain = ScriptedHost()
    async with serving(LmtpOptions(dsn=True), knows=knows, plain=plain) as site:
        client = await begin(
            site,
            "a@knows.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@z.example",
            "b@plain.example> NOTIFY=NEVER",
            "c@knows.example",
            mail="MAIL FROM:<a@b.example> RET=HDRS ENVID=QQ+2B1",
        )
        await client.say(MESSAGE + DOT)
        replies = await client.replies(3)
        assert [one[:3] for one in replies] == ["250"] * 3
    assert knows.commands[1:4] == [
        "MAIL FROM:<a@b.example> RET=HDRS ENVID=QQ+2B1",
        "RCPT TO:<a@knows.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@z.example",
        "RCPT TO:<c@knows.example>",
    ]
    assert plain.commands[1].startswith("MAIL FROM:<a@b.example> SIZE=")
    assert plain.commands[2] == "RCPT TO:<b@plain.example>"


async def test_dsn_is_not_announced_unless_it_is_wanted() -> None:
    async with serving() as site:
        client = site.client()
        await client.reply()
        await client.say(b"LHLO x\r\n")
        assert await client.reply() == "250 XFORWARD IDENT"


# -- clients that go away ------------------------------------------------------


@pytest.mark.parametrize("size", [0, 200_000], ids=["small", "large"])
async def test_a_client_that_goes_before_the_end_delivers_nothing(size: int) -> None:
    host = ScriptedHost()
    async with serving(one=host) as site:
        client = await begin(site, "c@one.example")
        await client.say(MESSAGE + size * b"x" + b"\r\n.\r")
        if size:
            await until(lambda: host.raw and len(host.raw[0]) > 100_000)
        client.hang_up()
        await until(site.settled)
    assert host.messages == []
    (settled,) = site.settled()
    assert "hung up" in settled.outcome.text
    assert isinstance(settled.outcome, Deferred)


async def test_a_client_that_goes_before_the_hosts_dot_delivers_nothing() -> None:
    hold = Hold()
    host = ScriptedHost({"DATA": (hold, "354 go ahead")})
    async with serving(one=host) as site:
        client = await begin(site, "c@one.example")
        await client.say(MESSAGE + DOT)
        await hold.reached.wait()
        client.hang_up()
        await until(site.settled)
        hold.release.set()
    assert host.messages == []
    assert isinstance(site.settled()[0].outcome, Deferred)


async def test_the_kernel_is_asked_whether_the_client_is_there() -> None:
    # Just before the dot: the loop may not have heard of its end yet.
    async with serving() as site:
        for end in (socket.socket.close, lambda one: one.shutdown(socket.SHUT_WR)):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                client = Client(
                    lambda: site.engine,
                    Recipients(lambda: site.engine, print),
                    print,
                    theirs,
                )
                assert client.is_there()
                ours.send(b"NOOP\r\n")
                assert client.is_there()
                end(ours)
                assert not client.is_there()
                client.hang_up()


async def test_a_delivery_ends_though_its_client_has_gone_after_the_dot() -> None:
    hold = Hold()
    host = ScriptedHost({".": (hold, "250 2.0.0 taken")})
    async with serving(one=host) as site:
        client = await begin(site, "c@one.example")
        await client.say(MESSAGE + DOT)
        await hold.reached.wait()
        client.hang_up()
        await asyncio.sleep(0.02)
        hold.release.set()
        await until(site.settled)
        assert isinstance(site.settled()[0].outcome, Delivered)
        # The mail server tries again, and is told.
        client = await begin(site, "c@one.example")
        await client.say(MESSAGE + DOT)
        assert "delivered earlier" in await client.reply()
    assert len(host.taken) == 1


async def test_what_serves_a_client_may_be_cancelled_after_the_dot() -> None:
    hold = Hold()
    host = ScriptedHost({".": (hold, "250 2.0.0 taken")})
    async with serving(one=host) as site:
        client = await begin(site, "c@one.example")
        await client.say(MESSAGE + DOT)
        await hold.reached.wait()
        await site.cancel()
        assert await client.line() == ""
        hold.release.set()
        await until(site.settled)
    assert isinstance(site.settled()[0].outcome, Delivered)


# -- clients that never finish -------------------------------------------------


def test_data_that_does_not_go_on_is_given_up() -> None:
    async def main() -> None:
        host = ScriptedHost()
        async with serving(one=host) as site:
            client = await begin(site, "c@one.example")
            await client.say(MESSAGE + 2000 * b"A line.\r\n" + b"half a li")
            await asyncio.sleep(DATA_SILENCE + 1)
            await until(site.settled)
            assert "has stopped sending" in site.settled()[0].outcome.text
            # It may go on, and hear of it: the connection is not ours to close.
            await client.say(b"ne\r\n" + DOT)
            assert (await client.reply()).startswith("451 4.3.0 ")
            await client.say(b"NOOP\r\n")
            assert await client.reply() == "250 2.0.0 Ok"
        assert host.messages == []

    run_with_sockets(main())


def test_only_a_client_that_is_none_any_more_is_hung_up_on() -> None:
    async def main() -> None:
        async with serving() as site:
            client = site.client()
            await client.greet()
            await asyncio.sleep(CLIENT_SILENCE - 10)
            await client.say(b"NOOP\r\n")
            assert await client.reply() == "250 2.0.0 Ok"
            await asyncio.sleep(CLIENT_SILENCE - 10)
            assert not client.has_received()
            await asyncio.sleep(DATA_SILENCE + 20)
            assert await client.line() == ""

    run_with_sockets(main())


async def test_a_client_that_does_not_read_is_not_read_from() -> None:
    async with serving() as site:
        client = site.client()
        await client.greet()
        sent = client.flood(b"NOOP\r\n" * 1000, 1 << 24)
        await asyncio.sleep(0.1)
        sent += client.flood(b"NOOP\r\n" * 1000, 1 << 24)
        assert sent < 1 << 23
        assert (await client.replies(sent // len("NOOP\r\n")))[-1] == "250 2.0.0 Ok"


@pytest.mark.parametrize("at_once", [False, True], ids=["piecewise", "at-once"])
async def test_a_message_that_is_too_large_is_not_delivered(at_once: bool) -> None:
    host = ScriptedHost()
    line = b"x" * 70 + b"\r\n"
    async with serving(LmtpOptions(message_size=1000), one=host) as site:
        client = site.client()
        await client.greet()
        pieces = [envelope("c@one.example"), MESSAGE, *(20 * [line]), DOT]
        for piece in [b"".join(pieces)] if at_once else pieces:
            await client.say(piece)
            await asyncio.sleep(0)
        *_, reply = await client.replies(4)
    assert reply.startswith("451 4.3.0 ")
    assert "larger than 1000 bytes" in reply
    assert host.messages == []


class WithoutMemory(Engine):
    """An engine with no memory for mail data."""

    def new_mail_data(self) -> MailData:
        """Return what takes nothing."""
        return TakesNothing()


class TakesNothing(MailData):
    """Mail data as where `RLIMIT_AS` is reached."""

    def append(self, data: bytes) -> None:
        """Fail."""
        raise MemoryError


async def test_without_memory_a_message_is_put_off_and_the_client_stays() -> None:
    host = ScriptedHost()
    async with serving(one=host) as site:
        well, site.engine = site.engine, WithoutMemory(site.context)
        client = site.client()
        await client.greet()
        await client.say(envelope("c@one.example") + MESSAGE + DOT)
        *_, reply = await client.replies(4)
        assert reply.startswith("451 4.3.0 ")
        assert "no memory" in reply
        assert host.messages == []
        site.engine = well
        await client.say(envelope("c@one.example") + MESSAGE + DOT)
        *_, reply = await client.replies(4)
        assert reply.startswith("250 2.0.0 ")
        assert site.troubles() == []


# -- what is made of an outcome ------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Delivered(OK, "251 ok", Reply(251, ("ok",)), "mx[192.0.2.1]:25"), 250),
        (Deferred(LATER, "x", Reply(452, ("x",))), 452),
        (Deferred(LATER, "x", Reply(421, ("x",))), 451),
        (Deferred(LATER, "x", Reply(550, ("x",))), 451),
        (Deferred(LATER, "x"), 451),
        (Bounced(NEVER, "x", Reply(552, ("x",))), 552),
        (Bounced(NEVER, "x"), 550),
    ],
)
def test_code_of_a_reply(outcome: Outcome, said: int) -> None:
    reply = reply_of(outcome)
    assert (reply.code, reply.status) == (said, outcome.status)
    assert reply.text.endswith(outcome.text)
