"""The mail hosts of the demo, each on an address 127.0.0.x of its own; its name server.

MX records carry no port, so all hosts of a story share one port number. That needs
Linux: there every address of 127.0.0.0/8 is on the loopback interface.

A dropped SYN needs no firewall. A listening socket whose accept queue is full does not
answer a SYN at all. A queue made by ``listen(0)`` is full with a single connection that
is not accepted.

The name server is authoritative for one domain and speaks UDP only: its answers fit into
512 octets (RFC 1035 §4.2.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset

from mxpolicy.demo.stories import Behaviour
from mxpolicy.errors import MxPolicyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = [
    "DemoError",
    "Hosts",
    "Taken",
    "Zone",
    "address_of",
    "bound",
    "open_hosts",
    "serve_names",
]

TTL = 60
DATAGRAM = 4096

# One more than needed: the queue takes one connection more than listen(2) was told.
FILLERS = 3
# On loopback a SYN-ACK takes microseconds.
SYN_ACK_TIME = 0.02

GOOD = {
    "CONNECT": "220 demo ESMTP",
    "EHLO": "250-demo\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES",
    "MAIL": "250 2.1.0 Ok",
    "RCPT": "250 2.1.5 Ok",
    "DATA": "354 End data with <CR><LF>.<CR><LF>",
    "RSET": "250 2.0.0 Ok",
    "QUIT": "221 2.0.0 Bye",
}
# Said at a step instead, the first time and from then on; "" closes the connection,
# None says nothing at all.
INSTEAD: dict[Behaviour, dict[str, tuple[str | None, str | None]]] = {
    Behaviour.SILENT: {"CONNECT": (None, None)},
    Behaviour.CLOSES: {"CONNECT": ("", "")},
    Behaviour.REJECTS: {"CONNECT": ("554 5.7.1 No SMTP service here",) * 2},
    Behaviour.BREAKS: {"DATA": ("", "")},
    Behaviour.GREYLISTS: {"RCPT": ("450 4.7.1 Greylisted", GOOD["RCPT"])},
    Behaviour.EMPTY: {"RCPT": ("550 5.1.1 No such user here",) * 2},
}


class DemoError(MxPolicyError):
    """The demo cannot be shown on this machine; the text says why."""


def address_of(place: int) -> str:
    """Return the address of the host at *place* of a story, counted from 0."""
    return f"127.0.0.{11 + place}"


class Taken(NamedTuple):
    """A message that a host has accepted.

    Attributes:
        place: The host's place in its story, from 0.
        paths: The reverse-path, then the forward-paths.
        mail_data: As it came over the wire, dot-stuffing removed, final CRLF kept.
    """

    place: int
    paths: tuple[str, ...]
    mail_data: bytes


class Hosts:
    """The hosts of one story, all on one port; made by `open_hosts`.

    Attributes:
        port: The port they share; 0 as long as there is no host.
        taken: What they have taken, in order.
    """

    def __init__(self, behaviours: Sequence[Behaviour]) -> None:
        self.port = 0
        self.taken: list[Taken] = []
        self._behaviours = behaviours
        self._asked: set[tuple[int, str]] = set()

    async def serve(
        self, place: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection as the host at *place*, and close it."""
        with (
            contextlib.closing(writer),
            contextlib.suppress(OSError, asyncio.IncompleteReadError),
        ):
            command, paths = "CONNECT", list[str]()
            while True:
                verb, _, argument = command.partition(" ")
                reply = self._reply(place, verb)
                if verb == "DATA" and len(paths) < 2:
                    reply = "554 5.5.1 No valid recipients"
                if reply is None:
                    await reader.read()
                if not reply:
                    return
                writer.write(f"{reply}\r\n".encode())
                if verb in {"MAIL", "RCPT"} and reply.startswith("2"):
                    paths.append(argument.partition("<")[2].rpartition(">")[0])
                elif reply.startswith("354"):
                    mail_data = await _mail_data(reader)
                    self.taken.append(Taken(place, tuple(paths), mail_data))
                    writer.write(b"250 2.0.0 Ok: taken\r\n")
                elif verb in {"EHLO", "RSET"}:
                    paths.clear()
                command = (await reader.readuntil(b"\r\n")).decode().rstrip()

    def _reply(self, place: int, verb: str) -> str | None:
        usual = GOOD.get(verb, "502 5.5.2 Command not recognized")
        instead = INSTEAD.get(self._behaviours[place], {}).get(verb, (usual, usual))
        is_again = (place, verb) in self._asked
        self._asked.add((place, verb))
        return instead[is_again]


async def _mail_data(reader: asyncio.StreamReader) -> bytes:
    data = b""
    while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
        data += line.removeprefix(b".")
    return data


@contextlib.asynccontextmanager
async def open_hosts(behaviours: Sequence[Behaviour]) -> AsyncIterator[Hosts]:
    """Open one host for each of *behaviours*, all on a port that the kernel chooses.

    Raises:
        DemoError: There are no such addresses here, the port is not free on all
            of them, or this kernel answers every SYN.
    """
    hosts = Hosts(behaviours)
    with contextlib.ExitStack() as stack:
        for place, behaviour in enumerate(behaviours):
            sock = stack.enter_context(bound(address_of(place), hosts.port))
            hosts.port = sock.getsockname()[1]
            if behaviour is Behaviour.DROPPED:
                await _drop_syns(sock, stack)
            elif behaviour is not Behaviour.REFUSES:
                serve = functools.partial(hosts.serve, place)
                server = await asyncio.start_server(serve, sock=sock)
                stack.callback(server.close)
        yield hosts


async def _drop_syns(listener: socket.socket, stack: contextlib.ExitStack) -> None:
    """Fill the accept queue of *listener*, so that further SYNs are dropped."""
    listener.listen(0)
    for _ in range(FILLERS):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    await asyncio.sleep(SYN_ACK_TIME)
    with contextlib.suppress(OSError):  # the last one is not connected
        filler.getpeername()
        raise DemoError("this kernel answers SYNs to a full accept queue")


class Zone:
    """The records of one domain.

    Args:
        domain: The zone's name.
        hosts: ``(name, address)`` of the MX hosts, best first; they get the
            preferences 10, 20, … Without any, the domain has a null MX
            (RFC 7505 §3).
    """

    def __init__(self, domain: str, hosts: Sequence[tuple[str, str]]) -> None:
        exchanges = [f"{n * 10} {name}." for n, (name, _) in enumerate(hosts, 1)]
        self._soa = _rrset(domain, "SOA", f"ns.{domain}. root.{domain}. 1 60 60 60 60")
        self._records = [_rrset(domain, "MX", *(exchanges or ["0 ."])), self._soa]
        self._records += [_rrset(name, "A", address) for name, address in hosts]

    def answer(self, wire: bytes) -> bytes | None:
        """Return the response to a query, or None for what is no query."""
        try:
            response = dns.message.make_response(dns.message.from_wire(wire))
        except dns.exception.DNSException:
            return None
        for question in response.question[:1]:
            here = [one for one in self._records if one.name == question.name]
            response.answer = [one for one in here if one.rdtype == question.rdtype]
            if not response.answer:
                response.authority = [self._soa]
            if not here:
                response.set_rcode(dns.rcode.NXDOMAIN)
        response.flags |= dns.flags.AA
        return response.to_wire()


def _rrset(name: str, rdtype: str, *rdata: str) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(dns.name.from_text(name), TTL, "IN", rdtype, rdata)


async def serve_names(zone: Zone, sock: socket.socket) -> None:
    """Answer queries on the non-blocking UDP socket *sock* until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        wire, client = await loop.sock_recvfrom(sock, DATAGRAM)
        if response := zone.answer(wire):
            await loop.sock_sendto(sock, response, client)


def bound(
    address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """Return a non-blocking socket of *address*; port 0 is any.

    Raises:
        DemoError: It cannot be bound.
    """
    sock = socket.socket(type=kind)
    sock.setblocking(False)
    try:
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise DemoError(
            f"cannot use {address}: {error.strerror}"
            " (the demo needs Linux, where all of 127.0.0.0/8 is loopback)"
        ) from error
    return sock
