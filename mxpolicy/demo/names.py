"""An authoritative name server for one domain of the demo: UDP, dnspython's wire code.

It knows the MX records of the domain and the addresses of its hosts, says
NODATA and NXDOMAIN with a SOA record as RFC 2308 wants it, and refuses every
other name. Answers fit into 512 octets (RFC 1035 §4.2.1), so there is no TCP.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Zone", "serve"]

TTL = 60
DATAGRAM = 4096


class Zone:
    """The records of one domain; `answer` is all that it does.

    Args:
        domain: The zone's name.
        hosts: ``(name, address)`` of the MX hosts, best first; they get the
            preferences 10, 20, … Without any, the domain has a null MX
            (RFC 7505 §3).
    """

    def __init__(self, domain: str, hosts: Sequence[tuple[str, str]]) -> None:
        self._origin = dns.name.from_text(domain)
        exchanges = [f"{n * 10} {name}." for n, (name, _) in enumerate(hosts, 1)]
        self._soa = _rrset(
            domain, "SOA", f"ns.{domain}. hostmaster.{domain}. 1 60 60 60 {TTL}"
        )
        self._records = [_rrset(domain, "MX", *(exchanges or ["0 ."])), self._soa]
        self._records += [_rrset(name, "A", address) for name, address in hosts]

    def answer(self, wire: bytes) -> bytes | None:
        """Return the response to a query, or None for what is no query.

        A question outside the zone, and anything but a plain query, gets
        REFUSED or NOTIMP.
        """
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if query.flags & dns.flags.QR or len(query.question) != 1:
            return None
        response = dns.message.make_response(query)
        self._fill(response)
        return response.to_wire()

    def _fill(self, response: dns.message.Message) -> None:
        question = response.question[0]
        if response.opcode() != dns.opcode.QUERY:
            response.set_rcode(dns.rcode.NOTIMP)
            return
        if not question.name.is_subdomain(self._origin):
            response.set_rcode(dns.rcode.REFUSED)
            return
        response.flags |= dns.flags.AA
        here = [rrset for rrset in self._records if rrset.name == question.name]
        response.answer = [rrset for rrset in here if rrset.rdtype == question.rdtype]
        if not response.answer:
            response.authority = [self._soa]
        if not here:
            response.set_rcode(dns.rcode.NXDOMAIN)


def _rrset(name: str, rdtype: str, *rdata: str) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(dns.name.from_text(name), TTL, "IN", rdtype, rdata)


async def serve(zone: Zone, sock: socket.socket) -> None:
    """Answer queries on the non-blocking UDP socket *sock* until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        wire, client = await loop.sock_recvfrom(sock, DATAGRAM)
        response = zone.answer(wire)
        if response is not None:
            await loop.sock_sendto(sock, response, client)
