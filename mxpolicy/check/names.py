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

from mxpolicy.check.report import (
    Level,
    Table,
    fail,
    first,
    judge,
    ok,
    otherwise,
    tell,
    warn,
)
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

# glibc waits as long for one server; whoever needs more makes every message wait.
PATIENCE = 5.0

# Nothing is sent there: connecting a datagram socket only chooses a route. From
# the ranges for documentation (RFC 5737, RFC 3849).
_FAR_AWAY = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8::1"}

# What an answer may hold that is shown.
MAX_NAMES = 5


class Answered(NamedTuple):
    """What a name server did with a question.

    Attributes:
        records: The texts of the records of the type asked for.
        authentic: The AD bit.
        trouble: Why there is no usable answer; empty when there is one.
    """

    records: tuple[str, ...] = ()
    authentic: bool = False
    trouble: str = ""


async def ask(server: Server, name: dns.name.Name, rdtype: str) -> Answered:
    """Ask *server* once, for at most `PATIENCE` seconds; raise for nothing it does."""
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


class _Asked(NamedTuple):
    """A name server, and what it did with a question.

    Attributes:
        server: Its address.
        answer: To the question for the root.
        is_believed: Whether we believe its AD bit.
        is_near: Whether it is on this machine.
        some_answer: Whether any name server answers.
    """

    server: Server
    answer: Answered
    is_believed: bool
    is_near: bool
    some_answer: bool


_SERVER: Table[_Asked] = (
    first(
        warn(
            lambda it: it.answer.trouble and it.some_answer,
            "name server {server}: {answer.trouble}; each lookup that begins there waits"
            " in vain: take it out",
        ),
        warn(lambda it: it.answer.trouble, "name server {server}: {answer.trouble}"),
        warn(
            lambda it: not it.answer.authentic,
            "name server {server} answers, and does not validate (DNSSEC): forged"
            " answers can lead mail to somebody else",
        ),
        ok(
            lambda it: not it.is_believed,
            "name server {server} answers and validates; its word for it (AD) is not"
            " believed",
        ),
        ok(
            lambda it: it.is_near,
            "name server {server} answers and validates, and is believed (AD)",
        ),
        warn(
            otherwise,
            "name server {server} answers and validates, and is believed (AD) although"
            " it is not on this machine: whoever sits on the way to it can forge that",
            "resolver: {{trust_ad: no}}",
        ),
    ),
)


async def look_at_name_servers(
    options: Options, conf: ResolvConf | None = None
) -> list[Item]:
    """Ask every configured name server for the root, all at once."""
    conf = conf or read_resolv_conf()
    servers = _servers(options, conf)
    believed = options.resolver.trust_ad
    if believed is None:
        believed = conf.trust_ad and not options.resolver.servers
    answers = await asyncio.gather(
        *(ask(server, dns.name.root, "NS") for server in servers)
    )
    some_answer = any(not answer.trouble for answer in answers)
    items: list[Item] = []
    for server, answer in zip(servers, answers, strict=True):
        address = ipaddress.ip_address(server.address.partition("%")[0])
        near = address.is_loopback
        items += judge(_SERVER, _Asked(server, answer, believed, near, some_answer))
    if not some_answer:
        text = "no name server answers: all mail to domains is deferred (4.4.3)"
        items.append(tell(Level.FAIL, text))
    return items


def _servers(options: Options, conf: ResolvConf) -> list[Server]:
    named = options.resolver.servers or conf.servers
    return list(dict.fromkeys(parse_server(text) for text in named))


# Our own name


class _Self(NamedTuple):
    """Our name and addresses, as we and as DNS see them.

    Attributes:
        helo: What we say in EHLO.
        options: As understood.
        sources: Addresses that connections leave from.
        trouble: Why a name server did not say what address the name has.
        addresses: Those that it has in DNS.
        is_here: Whether one of those is of this system.
    """

    helo: str
    options: Options
    sources: Sequence[str]
    trouble: str = ""
    addresses: Sequence[str] = ()
    is_here: bool = False

    @property
    def is_private(self) -> bool:
        """Whether no other host can look the name up."""
        return self.helo.endswith(_PRIVATE)

    @property
    def shown(self) -> str:
        return ", ".join(self.addresses[:MAX_NAMES])

    @property
    def record(self) -> str:
        """What gives the name an address, or another name."""
        for address in self.sources:
            if ipaddress.ip_address(address).is_global:
                return f"{self.helo}. {'AAAA' if ':' in address else 'A'} {address}"
        return "helo: mail.example.net"

    @property
    def source(self) -> str:
        return " and ".join(self.sources)

    @property
    def is_translated(self) -> bool:
        """Whether the world sees another address, and nobody has told us which."""
        private = (ipaddress.ip_address(one).is_private for one in self.sources)
        return all(private) and not self.options.own_addresses


_PRIVATE = (".localdomain", ".local", ".localhost", ".lan", ".internal")

_SELF: Table[_Self] = (
    first(
        warn(
            lambda it: it.helo.startswith("["),
            "EHLO says {helo}, an address literal: allowed, and refused by many who take"
            " it for a bot",
            "helo: mail.example.net",
        ),
        warn(
            lambda it: it.is_private,
            "EHLO says {helo}, a name that nobody else can look up: hosts that check it"
            " refuse the mail",
            "helo: mail.example.net",
        ),
        warn(
            lambda it: not it.addresses and it.trouble,
            "EHLO says {helo}; whether it resolves is unknown: {trouble}",
        ),
        warn(
            lambda it: not it.addresses,
            "EHLO says {helo}, which has no address in DNS: hosts that check it refuse"
            " the mail",
            "{record}",
        ),
        ok(
            lambda it: it.is_here,
            "EHLO says {helo}, which is {shown}: an address of this system",
        ),
        warn(
            otherwise,
            "EHLO says {helo}, which is {shown}: no address of this machine. If that is"
            " how the world sees it (NAT), say so, or mail for ourselves may loop",
            "own_addresses: [{shown}]",
        ),
    ),
    first(
        fail(
            lambda it: not it.sources,
            "this machine has no route to the Internet: all mail is deferred",
        ),
        ok(otherwise, "connections leave from {source}"),
    ),
    warn(
        lambda it: it.sources and it.is_translated,
        "these addresses are not the ones that the world sees: an MX record that points"
        " to us would not be taken for ourselves, and its mail may loop",
        "own_addresses: [THE ADDRESS THE WORLD SEES]",
    ),
)


class _Pointer(NamedTuple):
    """The PTR record of an address.

    Attributes:
        address: The address.
        reverse: The name of the record.
        helo: What we say in EHLO.
        trouble: Why there is no usable answer.
        shown: The names in the answer.
        is_confirmed: Whether one of them has that address.
    """

    address: str
    reverse: dns.name.Name
    helo: str
    trouble: str
    shown: str
    is_confirmed: bool


_POINTER: Table[_Pointer] = (
    first(
        warn(
            lambda it: it.trouble,
            "the PTR of {address} is unknown: {trouble}",
        ),
        warn(
            lambda it: not it.shown,
            "{address} has no PTR record: many hosts take no mail from it",
            "{reverse} PTR {helo}.",
        ),
        warn(
            lambda it: not it.is_confirmed,
            "the PTR of {address} is {shown}, which does not resolve to it: many hosts"
            " take no mail from it",
            "{reverse} PTR {helo}.",
        ),
        ok(otherwise, "the PTR of {address} is {shown}, which resolves to it"),
    ),
)


async def look_at_our_name(
    options: Options, conf: ResolvConf | None = None
) -> list[Item]:
    """Compare the name in EHLO, its addresses, ours, and where their PTR points."""
    conf = conf or read_resolv_conf()
    helo = options.helo or own_name()
    server = _servers(options, conf)[0]
    sources = source_addresses()
    items = judge(_SELF, await _look_up(_Self(helo, options, sources), server))
    named = [one for one in options.own_addresses if "/" not in one]
    public = [one for one in sources if ipaddress.ip_address(one).is_global]
    for address in dict.fromkeys([*public, *named]):
        reverse = dns.reversename.from_address(address)
        answer = await ask(server, reverse, "PTR")
        names = answer.records[:MAX_NAMES]
        confirmed = [await _is_address_of(one, address, server) for one in names]
        shown = ", ".join(one.rstrip(".") for one in names)
        it = _Pointer(address, reverse, helo, answer.trouble, shown, any(confirmed))
        items += judge(_POINTER, it)
    return items


async def _look_up(it: _Self, server: Server) -> _Self:
    """Return *it* with what DNS says of its name, where that can say anything."""
    if it.helo.startswith("[") or it.is_private:
        return it
    name = dns.name.from_text(it.helo, dns.name.root)
    found = [await ask(server, name, rdtype) for rdtype in ("A", "AAAA")]
    identity = OwnIdentity((), it.options.own_addresses, is_local_address)
    addresses = [one for answer in found for one in answer.records]
    return it._replace(
        trouble=next((one.trouble for one in found if one.trouble), ""),
        addresses=addresses,
        is_here=any(identity.has_address(one) for one in addresses),
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
