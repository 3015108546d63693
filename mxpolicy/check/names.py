"""Name servers, asked live; and what the world's DNS says of our own name."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, NamedTuple

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename

from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.net.dns_query import Server, parse_server
from mxpolicy.net.own_address import is_local_address
from mxpolicy.net.own_name import own_name
from mxpolicy.net.resolv_conf import read_resolv_conf
from mxpolicy.reply import printable
from mxpolicy.routing.own import OwnIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.check.report import Item
    from mxpolicy.net.resolv_conf import ResolvConf
    from mxpolicy.options import Options

__all__ = ["look_at_name_servers", "look_at_our_name", "source_addresses"]

# As glibc waits for one server; a slower one makes every message wait.
PATIENCE = 5.0

# To choose a route to; connecting a datagram socket sends nothing. From the ranges for
# documentation (RFC 5737, RFC 3849).
_FAR_AWAY = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8::1"}

# What a name server says that serves a closed network.
_KNOWS_NOTHING = ("SERVFAIL", "REFUSED")

MAX_NAMES = 5  # of an answer, shown


class Answered(NamedTuple):
    """What a name server did with a question.

    Attributes:
        records: The texts of the records of the type asked for.
        authentic: The AD bit.
        trouble: Why there is no usable answer; empty when there is one.
        instead: The same of the root, where our own name was asked for instead.
    """

    records: tuple[str, ...] = ()
    authentic: bool = False
    trouble: str = ""
    instead: str = ""


async def ask(server: Server, name: dns.name.Name, rdtype: str) -> Answered:
    """Ask *server* once, for at most `PATIENCE` seconds; nothing it does raises."""
    # Without EDNS, as `mxpolicy.net.resolver` asks.
    query = dns.message.make_query(name, rdtype)
    query.flags |= dns.flags.AD
    try:
        async with asyncio.timeout(PATIENCE):
            answer, _ = await dns.asyncquery.udp_with_fallback(
                query, server.address, timeout=PATIENCE, port=server.port
            )
    except (TimeoutError, dns.exception.Timeout):
        return Answered(trouble=f"no answer within {PATIENCE:g} s")
    except OSError as error:
        return Answered(trouble=error.strerror or str(error))
    except Exception as error:
        # dnspython raises more than its own exceptions for broken bytes.
        return Answered(trouble=f"malformed answer ({type(error).__name__})")
    if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Answered(trouble=dns.rcode.to_text(answer.rcode()))
    wanted = dns.rdatatype.from_text(rdtype)
    records = [
        printable(str(record))
        for found in answer.answer
        if found.rdtype == wanted
        for record in found
    ]
    return Answered(tuple(records), bool(answer.flags & dns.flags.AD))


# Name servers


async def look_at_name_servers(
    options: Options, conf: ResolvConf | None = None
) -> list[Item]:
    """Ask every configured name server for the root, all at once."""
    conf = conf or read_resolv_conf()
    servers = _servers(options, conf)
    believed = options.resolver.trust_ad
    if believed is None:
        believed = conf.trust_ad and not options.resolver.servers
    own = dns.name.from_text((options.helo or own_name()).strip("[]"), dns.name.root)
    answers = await asyncio.gather(*(_ask_for_root(server, own) for server in servers))
    some_work = any(not answer.trouble for answer in answers)
    return said(
        *(
            _judge_server(server, answer, believed=believed, some_work=some_work)
            for server, answer in zip(servers, answers, strict=True)
        ),
        fail(
            not some_work,
            "no name server answers: all mail to domains is deferred (4.4.3)",
        ),
    )


async def _ask_for_root(server: Server, own: dns.name.Name) -> Answered:
    """Ask for the root; in a closed network, where nothing knows it, for our own name."""
    answer = await ask(server, dns.name.root, "NS")
    if answer.trouble in _KNOWS_NOTHING:
        instead = await ask(server, own, "A")
        answer = answer if instead.trouble else instead._replace(instead=answer.trouble)
    return answer


def _servers(options: Options, conf: ResolvConf) -> list[Server]:
    named = options.resolver.servers or conf.servers
    return list(dict.fromkeys(parse_server(text) for text in named))


def _judge_server(
    server: Server, answer: Answered, *, believed: bool, some_work: bool
) -> Item | None:
    address = ipaddress.ip_address(server.address.partition("%")[0])
    text = f"name server {server} answers and validates"
    return first(
        warn(
            answer.trouble and some_work,
            f"name server {server}: {answer.trouble}; each lookup that begins there"
            " waits in vain: take it out",
        ),
        warn(answer.trouble, f"name server {server}: {answer.trouble}"),
        ok(
            answer.instead,
            f"name server {server} answers for our own name ({answer.instead} for the"
            " root, as in a closed network)",
        ),
        warn(
            not answer.authentic,
            f"name server {server} answers, and does not validate (DNSSEC): forged"
            " answers can lead mail to another host",
        ),
        ok(not believed, f"{text}; its word for it (AD) is not believed"),
        ok(address.is_loopback, f"{text}, and is believed (AD)"),
        warn(
            True,
            f"{text}, and is believed (AD) although it is not on this machine: its word can"
            " be forged on the way",
            "resolver: {trust_ad: no}",
        ),
    )


# Our own name


async def look_at_our_name(
    options: Options, conf: ResolvConf | None = None
) -> list[Item]:
    """Compare the name in EHLO, its addresses, ours, and where their PTR points."""
    conf = conf or read_resolv_conf()
    helo = options.helo or own_name()
    server = _servers(options, conf)[0]
    sources = source_addresses()
    public = [one for one in sources if ipaddress.ip_address(one).is_global]
    named = [one for one in options.own_addresses if "/" not in one]
    identity = OwnIdentity((), options.own_addresses, is_local_address)
    return said(
        _judge_literal(helo) or await _judge_helo(helo, server, identity, public),
        *_judge_sources(sources, options),
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


def _judge_sources(sources: Sequence[str], options: Options) -> list[Item]:
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
            "these addresses are not the ones that the world sees: an MX record that"
            " points to us would not be taken for ourselves, and its mail may loop",
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
