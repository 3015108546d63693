"""`mxpolicy.server.lmtp`: real sockets on both sides, a table in place of DNS."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import Trouble
from mxpolicy.net.dial import dial
from mxpolicy.options import LmtpOptions, MemoryOptions, Options
from mxpolicy.server.lmtp import LmtpServer
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import ScriptedHost, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from mxpolicy.delivery.events import Event
    from mxpolicy.net.stream import Stream
    from mxpolicy.routing.candidate import Candidate

MESSAGE = b"Received: from a by b\r\nSubject: one\r\n\r\nOne line.\r\n"
DOT = b".\r\n"


class Client:
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
        engine = Engine(self.context)
        self.server = LmtpServer(lambda: engine, self.happened.append)
        self._tasks: list[asyncio.Task[None]] = []
        self._clients: list[Client] = []

    async def _dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        there = candidate._replace(port=self._ports[candidate.address])
        return await dial(there, mss=mss)

    def client(self) -> Client:
        """Return a client that is connected."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._tasks.append(asyncio.create_task(self.server.serve(theirs)))
        self._clients.append(Client(ours))
        return self._clients[-1]

    def troubles(self) -> list[str]:
        """Return what went wrong on our side."""
        return [one.text for one in self.happened if isinstance(one, Trouble)]

    async def close(self) -> None:
        """Hang up all clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            client.hang_up()


@asynccontextmanager
async def serving(
    lmtp: LmtpOptions | None = None, **hosts: ScriptedHost
) -> AsyncIterator[Site]:
    """Serve with hosts: ``one=host`` is the only one of ``one.example``."""
    async with asyncio.timeout(20), serve(*hosts.values()):
        site = Site({f"{name}.example": [host] for name, host in hosts.items()}, lmtp)
        try:
            yield site
        finally:
            await site.close()


async def test_a_message_is_delivered() -> None:
    host = ScriptedHost({".": "250 2.0.0 queued as 17"})
    async with serving(one=host) as site:
        client = site.client()
        await client.greet()
        await client.say(
            b"MAIL FROM:<a@b.example> SIZE=60\r\nRCPT TO:<c@one.example>\r\nDATA\r\n"
        )
        assert await client.replies(3) == [
            "250 2.1.0 Ok",
            "250 2.1.5 Ok",
            "354 End data with <CR><LF>.<CR><LF>",
        ]
        await client.say(MESSAGE + DOT)
        shown = f"{host.candidate().host}"
        reply = await client.reply()
        assert reply.startswith("250 2.0.0 mx1.one.example["), (reply, shown)
        assert reply.endswith("said: 250 2.0.0 queued as 17")
        await client.say(b"QUIT\r\n")
        assert await client.reply() == "221 2.0.0 Bye"
        assert await client.line() == ""
    (message,) = host.taken
    assert message.reverse_path == "a@b.example"
    assert message.forward_paths == ("c@one.example",)
    assert message.mail_data == MESSAGE
    assert site.troubles() == []
