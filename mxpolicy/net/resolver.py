"""The stub resolver: questions to the machine's name servers, with bounded time.

Every query leaves from a socket of its own (a random port, connected, so that only
this server can answer), with a random id; an answer to another question is
ignored (RFC 5452). UDP with EDNS, TCP when an answer is cut (RFC 7766), without
EDNS where it is refused. A server that fails goes to the end of the list.

SERVFAIL, REFUSED, silence, nonsense and lame answers are kept apart from "there is
none" to the very end: they are `LookupStatus.FAILED`, each with its reason. The
judging of messages is in `mxpolicy.net.dns_message`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, NamedTuple

import dns.exception

from mxpolicy.address import canonical_address
from mxpolicy.errors import ConfigError, LocalTrouble
from mxpolicy.net.dns_cache import Cache
from mxpolicy.net.dns_message import (
    MAX_CNAMES,
    MAX_MESSAGE,
    Answer,
    Question,
    is_for,
    is_truncated,
    read_answer,
)
from mxpolicy.net.resolv_conf import read_resolv_conf
from mxpolicy.net.stream import OWN_TROUBLE
from mxpolicy.reply import printable
from mxpolicy.routing.mx import Lookup, LookupStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.net.resolv_conf import ResolvConf
    from mxpolicy.options import ResolverOptions

__all__ = ["Resolver"]

PORT = 53

# How long a server is given at first; it doubles with every round, so that a
# recursive server that has to look far is heard in a later one. glibc waits 5 s
# each time; a dead first server would cost that much in front of every message.
FIRST_TIMEOUT = 2.0
ROUNDS = 3

# Forged answers that a lookup reads before it gives up on this server.
MAX_STRAYS = 100


class Server(NamedTuple):
    """A name server: address, perhaps with zone index, and port."""

    address: str
    port: int = PORT

    def __str__(self) -> str:
        return self.address if self.port == PORT else f"{self.address} port {self.port}"


class Resolver:
    """Looks names up, and remembers the answers while their TTL lasts."""

    def __init__(
        self, options: ResolverOptions, conf: ResolvConf | None = None
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            options: Servers named here replace those of resolv.conf, and then
                its ``trust-ad``, which is about its own servers, means nothing.
            conf: What resolv.conf says; read from /etc when None.

        Raises:
            ConfigError: A server is not written as an address.
        """
        conf = conf or read_resolv_conf()
        named = options.servers
        self._servers = [parse_server(text) for text in named or conf.servers]
        if options.trust_ad is not None:
            self._trust_ad = options.trust_ad
        else:
            self._trust_ad = conf.trust_ad and not named
        self._timeout = options.timeout
        # Never so long that a dead first server leaves the second one no time.
        self._first_timeout = min(conf.timeout or FIRST_TIMEOUT, self._timeout / 2)
        self._rounds = conf.attempts or ROUNDS
        self._cache = Cache()
        self._asking: dict[tuple[str, str], asyncio.Future[Lookup | None]] = {}

    async def lookup(self, name: str, rdtype: str) -> Lookup:
        """Return what DNS says about *name* (absolute, final dot or not).

        It takes at most ``ResolverOptions.timeout`` seconds and raises for nothing
        that DNS does: no answer is FAILED with a reason. Equal questions at the
        same time are asked once.

        Args:
            rdtype: ``MX``, ``A`` or ``AAAA``.
        """
        key = (name.lower().rstrip("."), rdtype)
        while True:
            if known := self._cache.get(*key, _now()):
                return known
            if (asking := self._asking.get(key)) is None:
                return await self._ask_and_tell(key)
            # Whoever asks may be cancelled; then one of those who wait asks.
            if told := await asyncio.shield(asking):
                return told

    async def _ask_and_tell(self, key: tuple[str, str]) -> Lookup:
        done: asyncio.Future[Lookup | None]
        self._asking[key] = done = asyncio.get_running_loop().create_future()
        lookup = None
        try:
            lookup = await self._ask(*key)
            self._cache.put(lookup, _now())
        except LocalTrouble as error:
            # It says nothing about the name, so it is not kept.
            lookup = Lookup(*key, LookupStatus.FAILED, reason=str(error))
        finally:
            del self._asking[key]
            done.set_result(lookup)
        return lookup

    async def _ask(self, name: str, rdtype: str) -> Lookup:
        reasons: list[str] = []
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._follow(Question.of(name, rdtype), reasons)
        except TimeoutError:
            answer = Answer(LookupStatus.FAILED)
            reasons.append(f"no answer within {self._timeout:g} s")
        except dns.exception.DNSException:
            answer = Answer(LookupStatus.FAILED, reason="not a domain name")
        return Lookup(
            name,
            rdtype,
            answer.status,
            answer.records,
            answer.secure and self._trust_ad,
            answer.ttl,
            _reason(answer, reasons),
        )

    async def _follow(self, question: Question, reasons: list[str]) -> Answer:
        """Ask, and ask on where a server leaves a CNAME's target to us."""
        secure, ttl = True, float("inf")
        for _ in range(MAX_CNAMES):
            answer = await self._ask_servers(question, reasons)
            secure, ttl = secure and answer.secure, min(ttl, answer.ttl)
            if answer.follow is None:
                return answer._replace(secure=secure, ttl=ttl)
            question = question._replace(name=answer.follow)
        return Answer(LookupStatus.FAILED, reason="CNAME chain too long or a loop")

    async def _ask_servers(self, question: Question, reasons: list[str]) -> Answer:
        """Ask one server after the other, a few rounds long, until one answers."""
        hopeless: set[Server] = set()
        for turn in range(self._rounds):
            for server in tuple(self._servers):
                if server in hopeless:
                    continue
                answer = await _ask_server(
                    server, question, self._first_timeout * 2**turn
                )
                if answer is not None and answer.status is not LookupStatus.FAILED:
                    return answer
                if answer is None:
                    reasons.append(f"no answer from {server}")
                else:
                    # It has spoken; asking it the same again changes nothing.
                    reasons.append(f"{answer.reason} from {server}")
                    hopeless.add(server)
                self._move_to_end(server)
        return Answer(LookupStatus.FAILED)

    def _move_to_end(self, server: Server) -> None:
        self._servers.remove(server)
        self._servers.append(server)


def parse_server(text: str) -> Server:
    """Return the server in ``ADDRESS``, ``ADDRESS:PORT`` or ``[V6]:PORT``.

    Raises:
        ConfigError: It is none of these; a host name is not, since nobody would
            be there to look it up.
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


async def _ask_server(
    server: Server, question: Question, patience: float
) -> Answer | None:
    """Return what *server* says or does, or None if it is silent for *patience* seconds.

    Raises:
        LocalTrouble: We have no descriptor or memory for a question.
    """
    try:
        async with asyncio.timeout(patience):
            return await _exchange(server, question)
    except TimeoutError:
        return None
    except OSError as error:
        if error.errno in OWN_TROUBLE:
            raise LocalTrouble(error.strerror) from error
        return Answer(LookupStatus.FAILED, reason=error.strerror or str(error))


async def _exchange(server: Server, question: Question) -> Answer:
    """Ask *server* over UDP, then as it wishes. The caller bounds the time."""
    answer = await _ask_once(server, question, edns=True)
    if answer.edns_refused:
        answer = await _ask_once(server, question, edns=False)
    return answer


async def _ask_once(server: Server, question: Question, *, edns: bool) -> Answer:
    message_id, query = question.to_wire(edns=edns)

    def judge(wire: bytes) -> Answer | None:
        return read_answer(wire, question) if is_for(wire, message_id) else None

    answer = await _over_udp(server, query, message_id, judge)
    return answer or await _over_tcp(server, query, judge)


async def _over_udp(
    server: Server,
    query: bytes,
    message_id: int,
    judge: Callable[[bytes], Answer | None],
) -> Answer | None:
    """Return the answer, or None when it was cut and TCP must be asked."""
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_DGRAM) as connection:
        # A datagram socket connects at once, and lets the kernel tell us when
        # the port is closed.
        connection.connect(_socket_address(server))
        await loop.sock_sendall(connection, query)
        for _ in range(MAX_STRAYS):
            wire = await loop.sock_recv(connection, MAX_MESSAGE)
            if is_for(wire, message_id) and is_truncated(wire):
                return None
            if answer := judge(wire):
                return answer
    return Answer(LookupStatus.FAILED, reason="only answers to other questions")


async def _over_tcp(
    server: Server, query: bytes, judge: Callable[[bytes], Answer | None]
) -> Answer:
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_STREAM) as connection:
        await loop.sock_connect(connection, _socket_address(server))
        await loop.sock_sendall(connection, len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await _read_exactly(connection, 2), "big")
        if size > MAX_MESSAGE:
            return Answer(LookupStatus.FAILED, reason=f"answer of {size} bytes")
        wire = await _read_exactly(connection, size)
    return judge(wire) or Answer(LookupStatus.FAILED, reason="answer to another query")


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
    address, zone, interface = server.address.partition("%")
    if not zone:
        return address, server.port
    return address, server.port, 0, socket.if_nametoindex(interface)


def _reason(answer: Answer, reasons: list[str]) -> str:
    if answer.status is not LookupStatus.FAILED:
        return ""
    if answer.reason:
        return answer.reason
    return printable("; ".join(dict.fromkeys(reasons)), 200)


def _now() -> float:
    return asyncio.get_running_loop().time()
