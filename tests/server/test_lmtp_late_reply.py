"""What an LMTP client hears when a host answers the dot after its time."""

from __future__ import annotations

import asyncio
import socket

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.late_reply import LateReplies
from mxpolicy.net.dial import dial
from mxpolicy.options import Options
from mxpolicy.server.lmtp import LmtpServer
from tests.delivery.attempts import run
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import ScriptedHost

MESSAGE = b"Received: from a by b\r\nSubject: one\r\n\r\nOne line.\r\n.\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\n%bDATA\r\n"


class Client:
    """A mail server that delivers one message again and again over one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._received = b""

    async def reply(self) -> str:
        """Return the last line of the next reply."""
        while True:
            while b"\r\n" not in self._received:
                self._received += await self._loop.sock_recv(self._socket, 65536)
            line, _, self._received = self._received.partition(b"\r\n")
            if line[3:4] != b"-":
                return line.decode()

    async def begin(self) -> None:
        """Hear the greeting, and say LHLO."""
        await self.reply()
        await self._loop.sock_sendall(self._socket, b"LHLO client.example\r\n")
        assert (await self.reply()).startswith("250")

    async def deliver(self, *users: str) -> tuple[list[str], float]:
        """Deliver to *users*; return the replies to the end, and how long they took."""
        rcpt = b"".join(b"RCPT TO:<%b@one.example>\r\n" % one.encode() for one in users)
        await self._loop.sock_sendall(self._socket, ENVELOPE % rcpt)
        said = [await self.reply() for _ in range(len(users) + 2)]
        assert said[-1].startswith("354"), said
        began = self._loop.time()
        await self._loop.sock_sendall(self._socket, MESSAGE)
        replies = [await self.reply() for _ in users]
        return replies, self._loop.time() - began


def test_client_hears_4_4_2_at_once_while_the_reply_may_come_and_250_after_it() -> None:
    host = ScriptedHost({".": (1200.0, "250 2.0.0 queued as 17")})
    host.will({"RCPT eve@one.example": "550 5.1.1 Who?"})

    async def work() -> None:
        resolver, candidate = FakeResolver(), host.candidate()
        resolver.mx["one.example"] = [(10, "mx.one.example")]
        resolver.addresses["A"] = {"mx.one.example": [candidate.address]}
        late = LateReplies()
        engine = Engine(
            Context(
                Options(
                    helo="us.example.net",
                    port=candidate.port,
                    allow_dial=("127.0.0.0/8",),
                ),
                resolver=resolver,
                dial=dial,
                clock=asyncio.get_running_loop().time,
                late_replies=late,
            )
        )
        server = LmtpServer(lambda: engine, lambda event: None)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        serving = asyncio.create_task(server.serve(theirs))
        client = Client(ours)
        await client.begin()

        replies, seconds = await client.deliver("bob", "eve", "carol")
        bob, eve, carol = replies
        assert "message may be sent more than once" in bob
        assert bob.startswith("451 4.4.2 mx.one.example[")
        assert "5.1.1" in eve
        assert carol == bob
        assert seconds > 600
        replies, seconds = await client.deliver("bob", "carol")
        assert all(
            "4.4.2 waits for the reply of mx.one.example[" in one for one in replies
        )
        assert seconds < 1
        await asyncio.sleep(601)
        replies, _ = await client.deliver("carol", "bob")
        assert all(one.startswith("250 2.0.0 ") for one in replies), replies
        assert all("(delivered earlier)" in one for one in replies), replies
        assert len(host.messages) == 1

        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        for one in (ours, theirs):
            one.close()
        await engine.stop("the test ends")

    run(host, work=work)
