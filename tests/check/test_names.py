"""What is said of name servers that are asked live."""

from __future__ import annotations

from mxpolicy.check.names import look_at_name_servers
from mxpolicy.net.resolv_conf import ResolvConf
from mxpolicy.options import Options, ResolverOptions
from tests.helpers.dns_server import dns_server, faults


async def test_name_server_that_dislikes_edns_answers() -> None:
    async with dns_server(". 60 NS a.root-servers.example.") as server:
        server.fault = faults.hates_edns()
        options = Options(resolver=ResolverOptions(servers=(server.text,)))
        [item] = await look_at_name_servers(options, ResolvConf())
    assert f"name server {server.address} port {server.port} answers" in item.text
