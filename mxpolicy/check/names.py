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

from mxpolicy.check.report import fail, ok, warn
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
    except TimeoutError:
        return Answered(trouble=f"no answer within {PATIENCE:g} s")
    except dns.exception.Timeout:
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
    answers = await asyncio.gather(
        *(ask(server, dns.name.root, "NS") for server in servers)
    )
    some_work = any(not answer.trouble for answer in answers)
    items = [
        _judge_server(server, answer, believed=believed, some_work=some_work)
        for server, answer in zip(servers, answers, strict=True)
    ]
    if not some_work:
        items.append(
            fail("no name server answers: all mail to domains is deferred (4.4.3)")
        )
    return items


def _servers(options: Options, conf: ResolvConf) -> list[Server]:
    named = options.resolver.servers or conf.servers
    return list(dict.fromkeys(parse_server(text) for text in named))


def _judge_server(
    server: Server, answer: Answered, *, believed: bool, some_work: bool
) -> Item:
    if answer.trouble:
        text = f"name server {server}: {answer.trouble}"
        if some_work:
            text += "; each lookup that begins there waits in vain: take it out"
        return warn(text)
    if not answer.authentic:
        text = f"name server {server} answers, and does not validate (DNSSEC):"
        text += " forged answers can lead mail to somebody else"
        return warn(text)
    text = f"name server {server} answers and validates"
    if not believed:
        return ok(f"{text}; its word for it (AD) is not believed")
    if not ipaddress.ip_address(server.address.partition("%")[0]).is_loopback:
        text += ", and is believed (AD) although it is not on this machine: whoever"
        text += " sits on the way to it can forge that"
        return warn(text, "resolver: {trust_ad: no}")
    return ok(f"{text}, and is believed (AD)")


# Our own name


async def look_at_our_name(
    options: Options, conf: ResolvConf | None = None
) -> list[Item]:
    """Compare the name in EHLO, its addresses, ours, and where their PTR points."""
    conf = conf or read_resolv_conf()
    helo = options.helo or own_name()
    server = _servers(options, conf)[0]
    sources = source_addresses()
    identity = OwnIdentity((), options.own_addresses, is_local_address)
    items = [await _judge_helo(helo, server, identity, sources)]
    items += _judge_sources(sources, options)
    named = [one for one in options.own_addresses if "/" not in one]
    public = [one for one in sources if ipaddress.ip_address(one).is_global]
    for address in dict.fromkeys([*public, *named]):
        items.append(await _judge_pointer(address, helo, server))
    return items


async def _judge_helo(
    helo: str, server: Server, identity: OwnIdentity, sources: Sequence[str]
) -> Item:
    if helo.startswith("["):
        text = f"EHLO says {helo}, an address literal: allowed, and refused by many"
        return warn(f"{text} who take it for a bot", "helo: mail.example.net")
    if helo.endswith((".localdomain", ".local", ".localhost", ".lan", ".internal")):
        text = f"EHLO says {helo}, a name that nobody else can look up: hosts that"
        return warn(f"{text} check it refuse the mail", "helo: mail.example.net")
    name = dns.name.from_text(helo, dns.name.root)
    found = [await ask(server, name, rdtype) for rdtype in ("A", "AAAA")]
    troubles = [one.trouble for one in found if one.trouble]
    addresses = [one for answer in found for one in answer.records]
    if not addresses and troubles:
        return warn(f"EHLO says {helo}; whether it resolves is unknown: {troubles[0]}")
    if not addresses:
        text = f"EHLO says {helo}, which has no address in DNS: hosts that check it"
        record = _address_record(helo, sources)
        return warn(f"{text} refuse the mail", record or "helo: mail.example.net")
    shown = ", ".join(addresses[:MAX_NAMES])
    if any(identity.has_address(one) for one in addresses):
        return ok(f"EHLO says {helo}, which is {shown}: an address of this system")
    text = f"EHLO says {helo}, which is {shown}: no address of this machine. If that is"
    text += " how the world sees it (NAT), say so, or mail for ourselves may loop"
    return warn(text, f"own_addresses: [{shown}]")


def _address_record(helo: str, sources: Sequence[str]) -> str:
    for address in sources:
        if ipaddress.ip_address(address).is_global:
            return f"{helo}. {'AAAA' if ':' in address else 'A'} {address}"
    return ""


def _judge_sources(sources: Sequence[str], options: Options) -> list[Item]:
    if not sources:
        return [fail("this machine has no route to the Internet: all mail is deferred")]
    items = [ok(f"connections leave from {' and '.join(sources)}")]
    private = [one for one in sources if ipaddress.ip_address(one).is_private]
    if len(private) == len(sources) and not options.own_addresses:
        text = "these addresses are not the ones that the world sees: an MX record that"
        text += " points to us would not be taken for ourselves, and its mail may loop"
        items.append(warn(text, "own_addresses: [THE ADDRESS THE WORLD SEES]"))
    return items


async def _judge_pointer(address: str, helo: str, server: Server) -> Item:
    reverse = dns.reversename.from_address(address)
    answer = await ask(server, reverse, "PTR")
    if answer.trouble:
        return warn(f"the PTR of {address} is unknown: {answer.trouble}")
    if not answer.records:
        text = f"{address} has no PTR record: many hosts take no mail from it"
        return warn(text, f"{reverse} PTR {helo}.")
    names = answer.records[:MAX_NAMES]
    confirmed = [one for one in names if await _is_address_of(one, address, server)]
    shown = ", ".join(one.rstrip(".") for one in names)
    if not confirmed:
        text = f"the PTR of {address} is {shown}, which does not resolve to it: many"
        return warn(f"{text} hosts take no mail from it", f"{reverse} PTR {helo}.")
    return ok(f"the PTR of {address} is {shown}, which resolves to it")


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
