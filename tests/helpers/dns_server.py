"""A small real name server on loopback, with faults on request.

It speaks UDP and TCP on one port, in the test's own event loop, with dnspython's
wire code. Records come from zone-file lines; what a name does not have is
answered as an honest recursive server would, with an SOA.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from typing import TYPE_CHECKING, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Fault = Callable[["DnsServer", dns.message.Message], "bytes | None"]

__all__ = ["DnsServer", "dns_server", "faults", "name_server_in_a_thread"]

SOA = "ns.invalid. hostmaster.invalid. 1 3600 600 86400 60"


class DnsServer:
    """The server's tables, which a test may change while it runs.

    Attributes:
        fault: For UDP: from (server, query) to the bytes to send, or None for
            silence; None for no fault.
        tcp_fault: The same for TCP; None as result closes the connection.
        tcp_is_silent: Take connections and queries over TCP, and never answer.
        delay: Seconds before a UDP answer.
        authentic: Set AD.
        asked: ``udp MX example.com.`` for each query, in order.
        was_asked: Set by the first query.
        edns: The EDNS payload size of each query, -1 without EDNS.
    """

    def __init__(self, *lines: str) -> None:
        self.records: dict[tuple[dns.name.Name, int], dns.rrset.RRset] = {}
        for line in lines:
            self.add(line)
        self.fault: Fault | None = None
        self.tcp_fault: Fault | None = None
        self.tcp_is_silent = False
        self.delay = 0.0
        self.authentic = False
        self.recursive = True
        self.asked: list[str] = []
        self.was_asked = asyncio.Event()
        self.edns: list[int] = []
        self.source_ports: list[int] = []
        self.source = ("", 0)
        self.transport: asyncio.DatagramTransport | None = None
        self.ids: list[int] = []
        self.address = ""
        self.port = 0

    def die(self) -> None:
        """Answer nothing from now on."""
        self.fault = faults.silent
        self.tcp_is_silent = True

    def revive(self) -> None:
        """Answer well from now on."""
        self.fault = self.tcp_fault = None
        self.tcp_is_silent = False

    def send_to_last(self, wire: bytes) -> None:
        """Send *wire* to where the last query over UDP came from, at once."""
        assert self.transport is not None
        self.transport.sendto(wire, self.source)

    @property
    def text(self) -> str:
        """``127.0.0.1:5300``, as in the option ``resolver.servers``."""
        return f"{self.address}:{self.port}"

    def add(self, line: str) -> None:
        """Add ``name ttl type rdata``."""
        name, ttl, rdtype, rdata = line.split(None, 3)
        new = dns.rrset.from_text(name, int(ttl), "IN", rdtype, rdata)
        old = self.records.setdefault((new.name, new.rdtype), new)
        old.update(new)  # type: ignore[no-untyped-call]

    def honest(self, query: dns.message.Message) -> dns.message.Message:
        """Return the right answer."""
        (question,) = query.question
        answer = dns.message.make_response(query, recursion_available=self.recursive)
        if self.authentic:
            answer.flags |= dns.flags.AD
        name = question.name
        for _ in range(20):
            if found := self.records.get((name, question.rdtype)):
                answer.answer.append(found)
                return answer
            link = self.records.get((name, dns.rdatatype.CNAME))
            if link is None:
                break
            if link not in answer.answer:
                answer.answer.append(link)
            name = link[0].target
        else:
            return answer
        if not any(owner == name for owner, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        answer.authority.append(dns.rrset.from_text("invalid.", 900, "IN", "SOA", SOA))
        return answer

    def answer(self, transport: str, wire: bytes) -> bytes | None:
        """Answer one query."""
        query = dns.message.from_wire(wire)
        (question,) = query.question
        rdtype = dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{transport} {rdtype} {question.name}")
        self.was_asked.set()
        self.edns.append(query.payload if query.edns >= 0 else -1)
        self.ids.append(query.id)
        fault = self.fault if transport == "udp" else self.tcp_fault
        if fault is not None:
            return fault(self, query)
        max_size = 65535 if transport == "tcp" else max(query.payload, 512)
        try:
            return self.honest(query).to_wire(max_size=max_size)
        except dns.exception.TooBig:
            return faults.truncated(self, query)


class faults:
    """Ways to answer badly."""

    @staticmethod
    def silent(_server: DnsServer, _query: dns.message.Message) -> None:
        """Drop the query."""

    @staticmethod
    def rcode(text: str, *, question: bool = True) -> Fault:
        """Answer with this rcode and nothing else."""

        def fault(_server: DnsServer, query: dns.message.Message) -> bytes:
            answer = dns.message.make_response(query, recursion_available=True)
            answer.set_rcode(dns.rcode.from_text(text))
            if not question:
                answer.question.clear()
            return answer.to_wire()

        return fault

    @staticmethod
    def truncated(_server: DnsServer, query: dns.message.Message) -> bytes:
        """Set TC and say nothing."""
        answer = dns.message.make_response(query, recursion_available=True)
        answer.flags |= dns.flags.TC
        return answer.to_wire()

    @staticmethod
    def hates_edns(rcode: str = "", *, bare: bool = False) -> Fault:
        """Answer only what comes without EDNS.

        Args:
            rcode: The answer to the others; they are dropped when empty.
            bare: That answer is a header and nothing else.
        """

        def fault(server: DnsServer, query: dns.message.Message) -> bytes | None:
            if query.edns < 0:
                return server.honest(query).to_wire()
            if not rcode:
                return None
            answer = dns.message.make_response(query)
            answer.use_edns(-1)
            answer.set_rcode(dns.rcode.from_text(rcode))
            if bare:
                answer.question.clear()
            return answer.to_wire()

        return fault

    @staticmethod
    def damaged(damage: Callable[[bytearray], bytes | bytearray]) -> Fault:
        """Do something to the bytes of the right answer."""

        def fault(server: DnsServer, query: dns.message.Message) -> bytes:
            return bytes(damage(bytearray(server.honest(query).to_wire())))

        return fault

    @staticmethod
    def referral(_server: DnsServer, query: dns.message.Message) -> bytes:
        """Say "ask them", as an authoritative server for the parent does."""
        answer = dns.message.make_response(query)
        answer.authority.append(
            dns.rrset.from_text("com.", 900, "IN", "NS", "ns.invalid.")
        )
        return answer.to_wire()

    @staticmethod
    def empty(flags: int = 0, rcode: str = "NOERROR") -> Fault:
        """Say nothing at all, with these flags."""

        def fault(_server: DnsServer, query: dns.message.Message) -> bytes:
            answer = dns.message.make_response(query)
            answer.flags |= flags
            answer.set_rcode(dns.rcode.from_text(rcode))
            return answer.to_wire()

        return fault

    @staticmethod
    def garbage(_server: DnsServer, query: dns.message.Message) -> bytes:
        """Send a right header and then nonsense."""
        return query.id.to_bytes(2, "big") + b"\x81\x80" + b"\xff" * 40

    @staticmethod
    def of_another_id(server: DnsServer, query: dns.message.Message) -> bytes:
        """Answer with a wrong id, as somebody would who guesses."""
        wire = bytearray(server.honest(query).to_wire())
        wire[0] ^= 0xFF
        return bytes(wire)

    @staticmethod
    def of_another_question(server: DnsServer, query: dns.message.Message) -> bytes:
        """Answer what was not asked."""
        other = dns.message.make_query("elsewhere.example.", query.question[0].rdtype)
        other.id = query.id
        return server.honest(other).to_wire()

    @staticmethod
    def echo(_server: DnsServer, query: dns.message.Message) -> bytes:
        """Send the query back."""
        return query.to_wire()

    @staticmethod
    def chain_without_end(server: DnsServer, query: dns.message.Message) -> bytes:
        """Answer the first CNAME only, and leave the rest to the client."""
        (question,) = query.question
        answer = dns.message.make_response(query, recursion_available=True)
        link = server.records.get((question.name, dns.rdatatype.CNAME))
        if link is None:
            return server.honest(query).to_wire()
        answer.answer.append(link)
        return answer.to_wire()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)
        self._server.transport = self._transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.source_ports.append(addr[1])
        self._server.source = addr
        wire = self._server.answer("udp", data)
        if wire is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self._server.delay, self._send, wire, addr)

    def _send(self, wire: bytes, addr: tuple[str, int]) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(wire, addr)


@contextlib.asynccontextmanager
async def dns_server(
    *lines: str,
    address: str = "127.0.0.1",
    has_udp: bool = True,
    has_tcp: bool = True,
) -> AsyncIterator[DnsServer]:
    """Run a server with the records of *lines* on a free port of *address*.

    Without *has_udp* or *has_tcp* that port is closed.
    """
    server = DnsServer(*lines)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            size = int.from_bytes(await reader.readexactly(2), "big")
            wire = server.answer("tcp", await reader.readexactly(size))
            if server.tcp_is_silent:
                await reader.read()
            elif wire is not None:
                writer.write(len(wire).to_bytes(2, "big") + wire)
                await writer.drain()
        writer.close()

    tcp = await asyncio.start_server(serve, address, 0)
    server.address, server.port = tcp.sockets[0].getsockname()[:2]
    udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Udp(server), (address, server.port)
    )
    if not has_udp:
        udp.close()
        await asyncio.sleep(0)  # it closes its socket in the loop's next turn
    if not has_tcp:
        tcp.close()
    try:
        yield server
    finally:
        udp.close()
        tcp.close()
        await tcp.wait_closed()
        # A datagram transport closes its socket in the loop's next turn.
        await asyncio.sleep(0)


@contextlib.contextmanager
def name_server_in_a_thread(*records: str) -> Iterator[DnsServer]:
    """Run a name server with these records for commands that block, or run elsewhere."""
    loop = asyncio.new_event_loop()
    ready: queue.Queue[DnsServer] = queue.Queue()
    end = asyncio.Event()

    async def serve() -> None:
        async with dns_server(*records) as server:
            ready.put(server)
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield ready.get(timeout=10)
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()
