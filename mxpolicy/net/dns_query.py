"""One question to one name server: over UDP, over TCP, and with EDNS where it must be.

Every query has a random id and a socket of its own: the port is random, and connected,
so that only this server can answer. An answer to another question is ignored (RFC
5452). `mxpolicy.net.dns_message` reads an answer. `mxpolicy.net.resolver` decides which
server is asked, and how often.
"""

from __future__ import annotations

import asyncio
import os
import socket
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import canonical_address
from mxpolicy.errors import EXHAUSTED, ConfigError, LocalTrouble
from mxpolicy.net.dns_message import Answer, is_for, read_answer
from mxpolicy.routing.mx import LookupStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mxpolicy.net.dns_message import Question

__all__ = [
    "FIRST_ROUND",
    "LATER_ROUND",
    "ONLY_TCP",
    "Server",
    "Step",
    "ask_server",
    "parse_server",
]

PORT = 53

# Forged answers that are read before this query is given up.
MAX_STRAYS = 100

# The number of an interface has 32 bits.
MAX_ZONE_DIGITS = 10

# What the length before a message over TCP can say (RFC 1035 §4.2.2).
MAX_MESSAGE = 65535


class Server(NamedTuple):
    """A name server: address, perhaps with zone index, and port."""

    address: str
    port: int = PORT

    def __str__(self) -> str:
        return self.address if self.port == PORT else f"{self.address} port {self.port}"


def parse_server(text: str) -> Server:
    """Return the server in ``ADDRESS``, ``ADDRESS:PORT`` or ``[V6]:PORT``.

    Raises:
        ConfigError: It is none of these. A host name is not allowed, since there is
            nothing to look it up with.
    """
    address, port = text, ""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    number = int(port) if port.isascii() and port.isdigit() else 0
    if canonical_address(address.partition("%")[0]) and (
        0 < number < 65536 or not port
    ):
        return Server(address, number or PORT)
    expected = "ADDRESS, ADDRESS:PORT or [V6]:PORT"
    raise ConfigError([f"resolver.servers: expected {expected}, not {text!a}"])


class Transport(Enum):
    """What carries one query."""

    UDP = "UDP"
    TCP = "TCP"
    EDNS = "UDP with EDNS"


class Step(NamedTuple):
    """When a query leaves, and how.

    Attributes:
        transport: What carries it.
        alone: The share of the server's time before the next step begins beside it.
        when_cut: It is taken only after an answer that was cut or damaged.
    """

    transport: Transport
    alone: float = 1.0
    when_cut: bool = False


# A server that says "too long for UDP" is alive: TCP works soon or not at all.
FIRST_ROUND = (
    Step(Transport.UDP),
    Step(Transport.TCP, 0.25, when_cut=True),
    Step(Transport.EDNS, when_cut=True),
)
LATER_ROUND = (
    Step(Transport.UDP, 0.0),
    Step(Transport.TCP),
    Step(Transport.EDNS, when_cut=True),
)
ONLY_TCP = (Step(Transport.TCP),)


async def ask_server(
    server: Server, question: Question, steps: Sequence[Step], patience: float
) -> Answer:
    """Return the answer of *server* to *question* within *patience* seconds.

    A whole answer or a refusal ends the wait. At its end half an answer is better than
    none. A failure has ``ask_again`` set when more time or another transport may help.

    Raises:
        LocalTrouble: We have no descriptor or memory for a question.
    """
    return await _Inquiry(server, question, steps).run(patience)


class _Inquiry:
    """One server being asked by several transports.

    An answer is a half when its ``ask_again`` is set: cut, or damaged.
    """

    def __init__(
        self, server: Server, question: Question, steps: Iterable[Step]
    ) -> None:
        self._server = server
        self._question = question
        self._waiting = list(steps)
        self._running: set[asyncio.Task[Answer | str]] = set()
        self._halves: list[Answer] = []
        self._reasons: list[str] = []

    async def run(self, patience: float) -> Answer:
        try:
            return await self._hear(patience) or self._sum_up()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _hear(self, patience: float) -> Answer | None:
        """Return the first whole answer or refusal; None when there will be none."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        while True:
            left = wait = max(0.0, end - loop.time())
            if self._waiting and (self._halves or not self._waiting[0].when_cut):
                wait = min(left, self._begin() * patience)
            if not self._running:
                return None
            done, _ = await asyncio.wait(
                self._running, timeout=wait, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if answer := self._note(task):
                    return answer
            if not done and wait == left:
                self._reasons.append("no answer")
                return None

    def _begin(self) -> float:
        """Send the next query; return the share of the time for which it is alone."""
        transport, alone, _ = self._waiting.pop(0)
        ask = _ask_once(self._server, self._question, transport)
        self._running.add(asyncio.create_task(ask))
        return alone

    def _note(self, task: asyncio.Task[Answer | str]) -> Answer | None:
        """Note the end of a query; return its answer if that is whole or a refusal."""
        self._running.remove(task)
        told = task.result()
        if isinstance(told, str):
            self._reasons.append(told)
            return None
        if not told.ask_again:
            return told
        self._halves.append(told)
        if told.reason:
            self._reasons.append(told.reason)
        return None

    def _sum_up(self) -> Answer:
        for answer in self._halves:
            if answer.status is not LookupStatus.FAILED:
                return answer
        return Answer(
            LookupStatus.FAILED,
            reason=", ".join(dict.fromkeys(self._reasons)),
            ask_again=bool(self._running or self._waiting),
        )


async def _ask_once(
    server: Server, question: Question, transport: Transport
) -> Answer | str:
    """Ask once; return the answer, or why there is none. It may wait for ever."""
    message_id = int.from_bytes(os.urandom(2), "big")
    query = question.to_wire(message_id, edns=transport is Transport.EDNS)

    def read(wire: bytes) -> Answer | None:
        if not is_for(wire, message_id):
            return None
        return read_answer(wire, question, over_tcp=transport is Transport.TCP)

    ask = _over_tcp if transport is Transport.TCP else _over_udp
    try:
        answer = await ask(server, query, read)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise LocalTrouble(error.strerror) from error
        # asyncio's words replace the kernel's in the exception.
        return os.strerror(error.errno) if error.errno else str(error)
    if answer is None:
        return "only answers to other questions"
    if transport is Transport.EDNS and answer.status is LookupStatus.FAILED:
        # The server may have refused EDNS, and not the question.
        return answer.reason
    return answer


async def _over_udp(
    server: Server, query: bytes, read: Callable[[bytes], Answer | None]
) -> Answer | None:
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_DGRAM) as connection:
        # Connected, so that the kernel tells us when the port is closed. It never waits.
        connection.connect(_socket_address(server))
        await loop.sock_sendall(connection, query)
        for _ in range(MAX_STRAYS):
            if answer := read(await loop.sock_recv(connection, MAX_MESSAGE)):
                return answer
    return None


async def _over_tcp(
    server: Server, query: bytes, read: Callable[[bytes], Answer | None]
) -> Answer | None:
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_STREAM) as connection:
        await loop.sock_connect(connection, _socket_address(server))
        await loop.sock_sendall(connection, len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await _read_exactly(connection, 2), "big")
        wire = await _read_exactly(connection, size)
    return read(wire)


async def _read_exactly(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        part = await loop.sock_recv(connection, size - len(data))
        if not part:
            raise ConnectionResetError("connection closed in mid-answer")
        data += part
    return bytes(data)


def _socket(server: Server, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    made = socket.socket(family, kind)
    made.setblocking(False)
    return made


def _socket_address(server: Server) -> tuple[str, int] | tuple[str, int, int, int]:
    address, _, zone = server.address.partition("%")
    if not zone:
        return address, server.port
    return address, server.port, 0, _interface(zone)


def _interface(zone: str) -> int:
    """Return the number of an interface; *zone* is its name or number (RFC 4007 §11.2)."""
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        if zone.isascii() and zone.isdigit() and len(zone) < MAX_ZONE_DIGITS:
            return int(zone)
        raise
