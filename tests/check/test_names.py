"""What is said of name servers that are asked live."""

from __future__ import annotations

import dns.message
import dns.name

from mxpolicy.check.names import look_at_name_servers
from mxpolicy.check.report import Level
from mxpolicy.net.resolv_conf import ResolvConf
from mxpolicy.options import Options, ResolverOptions
from tests.helpers.dns_server import DnsServer, dns_server, faults


async def test_name_server_that_dislikes_edns_answers() -> None:
    async with dns_server(". 60 NS a.root-servers.example.") as server:
        server.fault = faults.hates_edns()
        options = Options(resolver=ResolverOptions(servers=(server.text,)))
        [item] = await look_at_name_servers(options, ResolvConf())
    assert f"name server {server.address} port {server.port} answers" in item.text


def servfail_for_the_root(server: DnsServer, query: dns.message.Message) -> bytes:
    if query.question[0].name == dns.name.root:
        return faults.rcode("SERVFAIL")(server, query) or b""
    return server.honest(query).to_wire()


async def test_name_server_that_resolves_nothing_fails() -> None:
    async with dns_server() as server:
        server.fault = faults.rcode("SERVFAIL")
        options = Options(resolver=ResolverOptions(servers=(server.text,)))
        items = await look_at_name_servers(options, ResolvConf())
    assert [one.level for one in items] == [Level.WARN, Level.FAIL]


async def test_closed_network_that_knows_no_root_is_no_failure() -> None:
    async with dns_server("mail.lan.test. 60 A 192.0.2.25") as server:
        server.fault = servfail_for_the_root
        options = Options(
            helo="mail.lan.test", resolver=ResolverOptions(servers=(server.text,))
        )
        [item] = await look_at_name_servers(options, ResolvConf())
    assert item.level is Level.OK
    assert "answers for our own name (SERVFAIL for the root, as in a" in item.text
