"""What the world's DNS says of our own name, and of the addresses that we connect from."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING

import dns.name
import dns.reversename

from mxpolicy.check.names import ask, servers_of
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.net.own_address import is_local_address
from mxpolicy.net.own_name import own_name
from mxpolicy.net.resolv_conf import read_resolv_conf
from mxpolicy.routing.own import OwnIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.check.report import Item
    from mxpolicy.net.dns_query import Server
    from mxpolicy.net.resolv_conf import ResolvConf
    from mxpolicy.options import Options

__all__ = ["judge_sources", "look_at_our_name"]

# To choose a route to; connecting a datagram socket sends nothing. From the ranges for
# documentation (RFC 5737, RFC 3849).
_FAR_AWAY = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8::1"}

MAX_NAMES = 5  # of an answer, shown


async def look_at_our_name(
    options: Options, conf: ResolvConf | None = None
) -> list[Item]:
    """Compare the name in EHLO, its addresses, ours, and where their PTR points."""
    conf = conf or read_resolv_conf()
    helo = options.helo or own_name()
    server = servers_of(options, conf)[0]
    sources = source_addresses()
    public = [one for one in sources if ipaddress.ip_address(one).is_global]
    named = [one for one in options.own_addresses if "/" not in one]
    identity = OwnIdentity((), options.own_addresses, is_local_address)
    return said(
        _judge_literal(helo) or await _judge_helo(helo, server, identity, public),
        *judge_sources(sources, options),
        *[
            await _judge_pointer(address, helo, server)
            for address in dict.fromkeys([*public, *named])
        ],
    )


def _judge_literal(helo: str) -> Item | None:
    private = (".localdomain", ".local", ".localhost", ".lan", ".internal")
    return first(
        warn(
            helo.startswith("["),
            f"EHLO says {helo}, an address literal: allowed, but many hosts refuse it"
            " as a bot's",
            "helo: THE NAME THE WORLD KNOWS",
        ),
        warn(
            helo.endswith(private),
            f"EHLO says {helo}, a name of this network only: hosts that look it up"
            " refuse the mail",
            "helo: THE NAME THE WORLD KNOWS",
        ),
    )


async def _judge_helo(
    helo: str, server: Server, identity: OwnIdentity, public: Sequence[str]
) -> Item | None:
    name = dns.name.from_text(helo, dns.name.root)
    found = await asyncio.gather(ask(server, name, "A"), ask(server, name, "AAAA"))
    troubles = [one.trouble for one in found if one.trouble]
    addresses = [one for answer in found for one in answer.records]
    shown = ", ".join(addresses[:MAX_NAMES])
    record = "helo: THE NAME THE WORLD KNOWS"
    for address in public[:1]:
        record = f"{helo}. {'AAAA' if ':' in address else 'A'} {address}"
    return first(
        warn(
            not addresses and troubles,
            f"EHLO says {helo}; whether it resolves is unknown: {''.join(troubles[:1])}",
        ),
        warn(
            not addresses,
            f"EHLO says {helo}, which has no address in DNS: hosts that check it refuse"
            " the mail",
            record,
        ),
        ok(
            any(identity.has_address(one) for one in addresses),
            f"EHLO says {helo}, which is {shown}: an address of this system",
        ),
        warn(
            True,
            f"EHLO says {helo}, which is {shown}: no address of this machine. If that"
            " is how the world sees it (NAT), say so, or mail for ourselves may loop",
            f"own_addresses: [{shown}]",
        ),
    )


def judge_sources(sources: Sequence[str], options: Options) -> list[Item]:
    """Say which addresses connections leave from, and whether the world sees these."""
    private = [one for one in sources if ipaddress.ip_address(one).is_private]
    return said(
        first(
            fail(
                not sources,
                "this machine has no route to the Internet: all mail is deferred",
            ),
            ok(True, f"connections leave from {' and '.join(sources)}"),
        ),
        warn(
            sources and len(private) == len(sources) and not options.own_addresses,
            f"the world does not see {' and '.join(sources)}, but another address: an MX"
            " record that points to us would not be taken for ourselves, and its mail"
            " may loop",
            "own_addresses: [THE ADDRESS THE WORLD SEES]",
        ),
    )


async def _judge_pointer(address: str, helo: str, server: Server) -> Item | None:
    reverse = dns.reversename.from_address(address)
    answer = await ask(server, reverse, "PTR")
    names = answer.records[:MAX_NAMES]
    confirmed = [await _is_address_of(one, address, server) for one in names]
    shown = ", ".join(one.rstrip(".") for one in names)
    return first(
        warn(
            answer.trouble,
            f"the PTR of {address} is unknown: {answer.trouble}",
        ),
        warn(
            not names,
            f"{address} has no PTR record: many hosts take no mail from it",
            f"{reverse} PTR {helo}.",
        ),
        warn(
            not any(confirmed),
            f"the PTR of {address} is {shown}, which does not resolve to it: many hosts"
            " take no mail from it",
            f"{reverse} PTR {helo}.",
        ),
        ok(True, f"the PTR of {address} is {shown}, which resolves to it"),
    )


async def _is_address_of(name: str, address: str, server: Server) -> bool:
    rdtype = "AAAA" if ":" in address else "A"
    answer = await ask(server, dns.name.from_text(name), rdtype)
    wanted = ipaddress.ip_address(address)
    return any(ipaddress.ip_address(one) == wanted for one in answer.records)


def source_addresses() -> list[str]:
    """Return the addresses that the kernel would connect from; no packet leaves."""
    found = []
    for family, far in _FAR_AWAY.items():
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 25))
                found.append(str(probe.getsockname()[0]))
        except OSError:
            continue
    return found
