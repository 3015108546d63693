"""Name servers, asked live."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, NamedTuple

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.net.dns_query import Server, parse_server
from mxpolicy.net.own_name import own_name
from mxpolicy.net.resolv_conf import read_resolv_conf
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from mxpolicy.check.report import Item
    from mxpolicy.net.resolv_conf import ResolvConf
    from mxpolicy.options import Options

__all__ = ["Answered", "ask", "look_at_name_servers", "servers_of"]

# As glibc waits for one server; a slower one makes every message wait.
PATIENCE = 5.0

# What a name server says that serves a closed network.
_KNOWS_NOTHING = ("SERVFAIL", "REFUSED")


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


async def look_at_name_servers(
    options: Options, conf: ResolvConf | None = None
) -> list[Item]:
    """Ask every configured name server for the root, all at once."""
    conf = conf or read_resolv_conf()
    servers = servers_of(options, conf)
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


def servers_of(options: Options, conf: ResolvConf) -> list[Server]:
    """Return the name servers that a delivery asks, in their order."""
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
