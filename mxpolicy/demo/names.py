"""An authoritative name server for one domain of the demo: UDP, dnspython's wire code.

It knows the MX records of the domain and the addresses of its hosts. NODATA and
NXDOMAIN come with a SOA record (RFC 2308 §3). Answers fit into 512 octets
(RFC 1035 §4.2.1), so there is no TCP.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

__all__ = ["Zone", "serve"]

TTL = 60
DATAGRAM = 4096


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


async def serve(zone: Zone, sock: socket.socket) -> None:
    """Answer queries on the non-blocking UDP socket *sock* until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        wire, client = await loop.sock_recvfrom(sock, DATAGRAM)
        if response := zone.answer(wire):
            await loop.sock_sendto(sock, response, client)
