"""The resolver against real servers on loopback, good ones and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rrset
import pytest

from mxpolicy.delivery.plan import STAGE
from mxpolicy.errors import ConfigError
from mxpolicy.net.dns_query import Server, parse_server
from mxpolicy.net.resolv_conf import ResolvConf, ResolvConfFile
from mxpolicy.net.resolver import Resolver
from mxpolicy.options import Options, ResolverOptions
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord
from tests.helpers.dns_server import DnsServer, dns_server, faults
from tests.helpers.socket_loop import run_with_sockets

if TYPE_CHECKING:
    from tests.helpers.dns_server import Fault

# How long a server is given in tests where one is silent, in seconds; and where
# none is, so that a busy machine cannot make a test fail.
PATIENCE = 0.2
AMPLE = 20.0

FOUND, NODATA = LookupStatus.FOUND, LookupStatus.NODATA
NXDOMAIN, FAILED = LookupStatus.NXDOMAIN, LookupStatus.FAILED

ZONE = (
    "example.com. 300 MX 20 b.example.com.",
    "example.com. 300 MX 10 A.Example.Com.",
    "a.example.com. 300 A 192.0.2.1",
    "a.example.com. 300 AAAA 2001:DB8::1",
    "alias.example.com. 60 CNAME other.example.com.",
    "other.example.com. 90 CNAME a.example.com.",
    "dangling.example.com. 60 CNAME nowhere.example.com.",
    "loop.example.com. 60 CNAME pool.example.com.",
    "pool.example.com. 60 CNAME loop.example.com.",
    "null.example.com. 300 MX 0 .",
    "brief.example.com. 0 A 192.0.2.2",
)


def resolver(
    *servers: DnsServer, trust_ad: bool | None = None, patience: float = AMPLE
) -> Resolver:
    """A resolver that asks these servers in two rounds."""
    return Resolver(
        ResolverOptions(
            servers=tuple(server.text for server in servers),
            timeout=2 * AMPLE,
            trust_ad=trust_ad,
        ),
        ResolvConf(timeout=patience, attempts=2),
    )


async def ask(server: DnsServer, name: str, rdtype: str) -> Lookup:
    return await resolver(server).lookup(name, rdtype)


@pytest.mark.parametrize(
    ("name", "rdtype", "status", "records", "ttl"),
    [
        pytest.param(
            "example.com",
            "MX",
            FOUND,
            {MxRecord(10, "a.example.com"), MxRecord(20, "b.example.com")},
            300,
            id="mx",
        ),
        pytest.param("a.example.com", "A", FOUND, {"192.0.2.1"}, 300, id="a"),
        pytest.param("a.example.com", "AAAA", FOUND, {"2001:db8::1"}, 300, id="aaaa"),
        pytest.param("alias.example.com", "A", FOUND, {"192.0.2.1"}, 60, id="cnames"),
        pytest.param("a.example.com", "MX", NODATA, set(), 60, id="nodata"),
        pytest.param("alias.example.com", "MX", NODATA, set(), 60, id="cname_nodata"),
        pytest.param("nowhere.example.com", "A", NXDOMAIN, set(), 60, id="nxdomain"),
        pytest.param("dangling.example.com", "A", NXDOMAIN, set(), 60, id="dangling"),
        pytest.param(
            "null.example.com", "MX", FOUND, {MxRecord(0, ".")}, 300, id="null_mx"
        ),
    ],
)
async def test_answer_is_told_with_its_ttl(
    name: str,
    rdtype: str,
    status: LookupStatus,
    records: set[object],
    ttl: float,
) -> None:
    async with dns_server(*ZONE) as server:
        lookup = await ask(server, name, rdtype)
    assert (lookup.name, lookup.rdtype, lookup.status) == (name, rdtype, status)
    assert set(lookup.records) == records
    assert lookup.ttl == ttl
    assert lookup.reason == ""


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(faults.silent, "no answer from", id="silent"),
        pytest.param(faults.rcode("SERVFAIL"), "SERVFAIL from", id="servfail"),
        pytest.param(faults.rcode("REFUSED"), "REFUSED from", id="refused"),
        pytest.param(faults.rcode("NOTAUTH"), "NOTAUTH from", id="other_rcode"),
        pytest.param(
            faults.rcode("SERVFAIL", question=False), "SERVFAIL from", id="no_question"
        ),
        pytest.param(faults.referral, "lame answer from", id="referral"),
        pytest.param(faults.empty(), "lame answer from", id="says_nothing"),
        pytest.param(
            faults.empty(rcode="NXDOMAIN"),
            "NXDOMAIN from a lame server",
            id="nxdomain_without_standing",
        ),
        pytest.param(faults.garbage, "malformed answer", id="garbage"),
        pytest.param(faults.of_another_id, "no answer from", id="wrong_id"),
        pytest.param(faults.of_another_question, "no answer from", id="wrong_question"),
        pytest.param(faults.echo, "no answer from", id="echo"),
    ],
)
async def test_bad_server_is_no_answer_and_the_next_one_is_asked(
    fault: Fault, reason: str
) -> None:
    async with dns_server(*ZONE) as bad, dns_server(*ZONE, address="127.0.0.2") as good:
        bad.fault = bad.tcp_fault = fault
        alone = await resolver(bad, patience=PATIENCE).lookup("a.example.com", "A")
        assert alone.status is FAILED
        assert alone.records == ()
        assert alone.reason.startswith(reason)
        asking = resolver(bad, good, patience=PATIENCE)
        both = await asking.lookup("a.example.com", "A")
        assert both.addresses == ("192.0.2.1",)


@pytest.mark.parametrize(
    ("flags", "rcode", "status"),
    [
        pytest.param(dns.flags.RA, "NOERROR", NODATA, id="forwarder_nodata"),
        pytest.param(dns.flags.AA, "NOERROR", NODATA, id="authority_nodata"),
        pytest.param(dns.flags.RA, "NXDOMAIN", NXDOMAIN, id="forwarder_nxdomain"),
    ],
)
async def test_negative_answer_without_soa_counts_but_is_not_kept(
    flags: int, rcode: str, status: LookupStatus
) -> None:
    async with dns_server() as server:
        server.fault = faults.empty(flags, rcode)
        asking = resolver(server)
        for _ in range(2):
            lookup = await asking.lookup("example.com", "MX")
            assert (lookup.status, lookup.ttl) == (status, 0)
        assert len(server.asked) == 2


async def test_answers_from_another_port_change_nothing() -> None:
    async with dns_server(*ZONE) as server:

        def flood(self: DnsServer, query: object) -> bytes:
            transport = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with transport:
                # From another port: the kernel keeps these from us.
                transport.sendto(
                    faults.rcode("NXDOMAIN")(self, query) or b"",  # type: ignore[arg-type]
                    ("127.0.0.1", self.source_ports[-1]),
                )
            return self.honest(query).to_wire()  # type: ignore[arg-type]

        server.fault = flood
        lookup = await ask(server, "a.example.com", "A")
    assert lookup.status is FOUND


async def test_every_query_has_its_own_port_and_id() -> None:
    async with dns_server(*ZONE) as server:
        asking = resolver(server)
        for n in range(12):
            await asking.lookup(f"n{n}.example.com", "A")
    assert len(set(server.source_ports)) > 6
    assert len(set(server.ids)) > 6
    assert sorted(server.ids) != server.ids


async def test_query_is_one_that_every_server_understands() -> None:
    async with dns_server(*ZONE) as server:
        await ask(server, "a.example.com", "A")
    assert server.edns == [-1]
    assert server.asked == ["udp A a.example.com."]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.hates_edns(), id="drops"),
        pytest.param(faults.hates_edns("SERVFAIL"), id="servfail"),
        pytest.param(faults.hates_edns("REFUSED"), id="refused"),
        pytest.param(faults.hates_edns("NOTIMP"), id="notimp"),
        pytest.param(faults.hates_edns("FORMERR", bare=True), id="twelve_bytes"),
    ],
)
async def test_server_that_dislikes_edns_is_understood(fault: Fault) -> None:
    async with dns_server(*ZONE) as server:
        server.fault = fault
        lookup = await ask(server, "a.example.com", "A")
    assert lookup.addresses == ("192.0.2.1",)


LONG = tuple(f"many.example.com. 60 A 192.0.2.{n}" for n in range(50))


@pytest.mark.parametrize("how", ["is_closed", "closes", "is_garbage", "is_refused"])
async def test_long_answer_comes_by_edns_where_tcp_fails(how: str) -> None:
    async with dns_server(*LONG, has_tcp=how != "is_closed") as server:
        server.tcp_fault = {
            "is_garbage": faults.of_another_question,
            "is_refused": faults.truncated,
        }.get(how, faults.silent)
        lookup = await ask(server, "many.example.com", "A")
    assert len(lookup.addresses) == 50
    assert server.edns[-1] == 1232
    assert server.edns.count(1232) == 1


def _says_it_is_cut(server: DnsServer, query: dns.message.Message) -> bytes:
    answer = server.honest(query)
    answer.flags |= dns.flags.TC
    return answer.to_wire()


async def test_whole_answer_over_tcp_that_says_it_is_cut_is_used() -> None:
    async with dns_server(*ZONE) as server:
        server.fault = server.tcp_fault = _says_it_is_cut
        there = await ask(server, "a.example.com", "A")
        absent = await ask(server, "a.example.com", "MX")
    assert there.addresses == ("192.0.2.1",)
    assert absent.status is FAILED


async def test_long_answer_that_comes_by_no_way_is_told_so() -> None:
    async with dns_server(*LONG, has_tcp=False) as server:
        server.fault = faults.truncated
        lookup = await ask(server, "many.example.com", "A")
    assert lookup.status is FAILED
    assert lookup.reason.startswith("truncated answer, Connection refused")
    assert server.edns == [-1, 1232]


async def test_closed_udp_port_is_no_reason_to_give_tcp_up() -> None:
    async with dns_server(*ZONE, has_udp=False) as server:
        lookup = await ask(server, "a.example.com", "A")
    assert lookup.addresses == ("192.0.2.1",)


def _drops_long_answers(server: DnsServer, query: dns.message.Message) -> bytes | None:
    """Be a firewall from the time when no DNS datagram had over 512 bytes."""
    wire = server.honest(query).to_wire()
    return wire if len(wire) <= 512 else None


async def test_long_answers_dropped_over_udp_come_over_tcp() -> None:
    async with dns_server(*LONG, *ZONE) as server:
        server.fault = _drops_long_answers
        asking = resolver(server, patience=PATIENCE)
        lookup = await asking.lookup("many.example.com", "A")
        short = await asking.lookup("a.example.com", "A")
    assert len(lookup.addresses) == 50
    assert short.addresses == ("192.0.2.1",)


async def test_long_answer_is_fetched_over_tcp() -> None:
    lines = [f"many.example.com. 60 A 192.0.2.{n}" for n in range(90)]
    async with dns_server(*lines) as server:
        lookup = await ask(server, "many.example.com", "A")
    assert len(lookup.addresses) == 90
    assert [one.split()[0] for one in server.asked] == ["udp", "tcp"]


async def test_addresses_beyond_what_a_plan_keeps_are_left_out() -> None:
    lines = [f"many.example.com. 60 A 192.0.2.{n}" for n in range(200)]
    async with dns_server(*lines) as server:
        first = await ask(server, "many.example.com", "A")
        server.records[next(iter(server.records))] = dns.rrset.from_text(
            "many.example.com.",
            60,
            "IN",
            "A",
            *(f"192.0.2.{n}" for n in range(199, -1, -1)),
        )
        again = await ask(server, "many.example.com", "A")
    assert len(first.addresses) == 100
    assert again.addresses == first.addresses


async def test_mx_answer_as_long_as_tcp_can_carry_is_read() -> None:
    lines = [f"example.com. 60 MX {n} mx{n}.example.com." for n in range(2400)]
    async with dns_server(*lines) as server:
        server.tcp_fault = lambda self, query: self.honest(query).to_wire(
            max_size=65535
        )
        (rrset,) = server.records.values()
        lookup = await ask(server, "example.com", "MX")
    assert len(rrset) == len(lookup.exchanges) == 2400


@pytest.mark.parametrize(
    "tcp_fault",
    [
        pytest.param(faults.silent, id="closes"),
        pytest.param(faults.truncated, id="cut_again"),
        pytest.param(faults.garbage, id="garbage"),
        pytest.param(faults.of_another_question, id="wrong_question"),
        pytest.param(faults.of_another_id, id="wrong_id"),
    ],
)
async def test_bad_answer_over_tcp_is_no_answer(tcp_fault: Fault) -> None:
    async with dns_server(*ZONE) as server:
        server.fault = faults.truncated
        server.tcp_fault = tcp_fault
        lookup = await ask(server, "a.example.com", "A")
    assert lookup.status is FAILED
    assert "127.0.0.1" in lookup.reason


async def test_closed_port_is_told_at_once() -> None:
    async with dns_server() as server:
        pass
    began = asyncio.get_running_loop().time()
    lookup = await resolver(server).lookup("example.com", "MX")
    assert lookup.status is FAILED
    assert "Connection refused" in lookup.reason
    assert asyncio.get_running_loop().time() - began < 2


async def test_dead_servers_take_bounded_time_and_are_all_named() -> None:
    async with dns_server() as one, dns_server(address="127.0.0.2") as two:
        one.die()
        two.die()
        began = asyncio.get_running_loop().time()
        asking = resolver(one, two, patience=PATIENCE)
        lookup = await asking.lookup("example.com", "MX")
        took = asyncio.get_running_loop().time() - began
    assert lookup.status is FAILED
    assert "127.0.0.1" in lookup.reason
    assert "127.0.0.2" in lookup.reason
    # Two rounds over two servers, the second over TCP, too, with twice the patience.
    assert one.asked == ["udp MX example.com."] * 2 + ["tcp MX example.com."]
    assert two.asked == one.asked
    assert took + 0.01 >= 6 * PATIENCE


async def test_no_lookup_takes_longer_than_the_option_says() -> None:
    async with dns_server() as server:
        server.die()
        began = asyncio.get_running_loop().time()
        asking = Resolver(
            ResolverOptions(servers=(server.text,), timeout=PATIENCE),
            ResolvConf(timeout=AMPLE),
        )
        lookup = await asking.lookup("example.com", "MX")
        took = asyncio.get_running_loop().time() - began
    assert lookup.status is FAILED
    assert "no answer within 0.2 s" in lookup.reason
    assert took < AMPLE / 2


async def test_slow_server_is_heard_in_a_later_round() -> None:
    async with dns_server(*ZONE) as server:
        server.delay = 1.5 * PATIENCE
        lookup = await resolver(server, patience=PATIENCE).lookup("a.example.com", "A")
    assert lookup.status is FOUND
    assert server.asked.count("udp A a.example.com.") == 2


# What the table in `mxpolicy.net.resolver` says; T for all messages, and for the policy.
WAITS = [
    pytest.param("dead good", 2.0, 1.2, id="first_dead"),
    pytest.param("dead dead good", 4.0, 1.8, id="two_dead"),
    pytest.param("tcp_silent", 0.5, 0.45, id="long_answer_and_silent_tcp"),
    pytest.param("dead tcp_silent", 2.5, 1.5, id="first_dead_and_silent_tcp"),
    pytest.param("tcp_closed", 0.0, 0.0, id="long_answer_and_closed_tcp"),
    pytest.param("only_tcp only_tcp", 4.0, 2.4, id="udp_dropped"),
    pytest.param("dead dead", 15.0, 3.6, id="all_dead"),
    pytest.param("dead refuses", 14.0, 3.6, id="one_dead_one_refuses"),
]


@pytest.mark.parametrize(("kinds", "seconds", "of_policy"), WAITS)
@pytest.mark.parametrize("is_policy", [False, True], ids=["message", "policy"])
def test_longest_wait_is_the_one_that_is_written_down(
    kinds: str, seconds: float, of_policy: float, is_policy: bool
) -> None:
    options = Options()
    within = STAGE * options.policy.timeout if is_policy else None

    async def look_up() -> tuple[Lookup, float, float]:
        async with contextlib.AsyncExitStack() as stack:
            servers = [
                await stack.enter_async_context(
                    dns_server(*LONG, has_tcp=kind != "tcp_closed")
                )
                for kind in kinds.split()
            ]
            for server, kind in zip(servers, kinds.split(), strict=True):
                _make(server, kind)
            names = tuple(server.text for server in servers)
            asking = Resolver(options.resolver._replace(servers=names), ResolvConf())
            loop = asyncio.get_running_loop()
            began = loop.time()
            lookup = await asking.lookup("many.example.com", "A", within)
            first = loop.time()
            await asking.lookup("nowhere.example.com", "A", within)
            return lookup, first - began, loop.time() - first

    lookup, took, next_took = run_with_sockets(look_up())
    assert took == pytest.approx(of_policy if is_policy else seconds, abs=0.01)
    if "good" in kinds:
        assert next_took == pytest.approx(0.0, abs=0.01)
    is_hopeless = kinds in ("dead dead", "dead refuses")
    assert (lookup.status is FAILED) is is_hopeless


def _make(server: DnsServer, kind: str) -> None:
    match kind:
        case "dead":
            server.die()
        case "tcp_silent":
            server.tcp_is_silent = True
        case "only_tcp":
            server.fault = faults.silent
        case "refuses":
            server.fault = server.tcp_fault = faults.rcode("REFUSED")
        case _:
            assert kind in ("good", "tcp_closed")


@pytest.mark.parametrize("strays", [20, 500])
def test_answers_to_other_questions_do_not_end_the_wait(strays: int) -> None:
    async def look_up() -> Lookup:
        async with dns_server(*ZONE) as server:

            def flood(self: DnsServer, query: dns.message.Message) -> bytes:
                for _ in range(strays):
                    self.send_to_last(faults.of_another_id(self, query))
                    self.send_to_last(faults.of_another_question(self, query))
                return self.honest(query).to_wire()

            server.fault = flood
            return await ask(server, "a.example.com", "A")

    assert run_with_sockets(look_up()).addresses == ("192.0.2.1",)


async def test_use_vc_asks_over_tcp_only() -> None:
    async with dns_server(*ZONE) as server:
        conf = ResolvConf(servers=(server.text,), use_vc=True)
        lookup = await Resolver(ResolverOptions(), conf).lookup("a.example.com", "A")
        server.tcp_fault = faults.silent
        other = await Resolver(ResolverOptions(), conf).lookup("a.example.com", "A")
    assert lookup.addresses == ("192.0.2.1",)
    assert other.status is FAILED
    assert set(server.asked) == {"tcp A a.example.com."}


class Changing(ResolvConfFile):
    """A resolv.conf that names one server, and then another one."""

    def __init__(self, before: DnsServer, after: DnsServer) -> None:
        super().__init__("/no/such/file")
        self._before = before
        self._after = after
        self.has_changed = False

    def read(self) -> ResolvConf:
        return ResolvConf(servers=(self._before.text,), timeout=AMPLE)

    def news(self, now: float) -> ResolvConf | None:
        if not self.has_changed:
            return None
        return ResolvConf(servers=(self._after.text,), timeout=AMPLE)


async def test_servers_of_a_changed_resolv_conf_are_asked() -> None:
    async with dns_server(*ZONE) as before, dns_server(*ZONE) as after:
        file = Changing(before, after)
        asking = Resolver(ResolverOptions(), file=file)
        assert (await asking.lookup("a.example.com", "A")).addresses
        file.has_changed = True
        # What is known is known.
        assert (await asking.lookup("a.example.com", "A")).addresses
        assert not after.asked
        assert (await asking.lookup("example.com", "MX")).status is FOUND
    assert after.asked == ["udp MX example.com."]


async def test_question_that_is_open_ends_with_the_servers_it_began_with() -> None:
    async with dns_server(*ZONE) as before, dns_server(*ZONE) as after:
        before.fault = before.tcp_fault = faults.silent
        file = Changing(before, after)
        asking = Resolver(ResolverOptions(timeout=5 * PATIENCE), file=file)
        first = asyncio.create_task(asking.lookup("a.example.com", "A"))
        await asyncio.sleep(0)
        file.has_changed = True
        assert (await asking.lookup("example.com", "MX")).status is FOUND
        lookup = await first
    assert lookup.status is FAILED
    assert f"port {before.text.rpartition(':')[2]}" in lookup.reason


@pytest.mark.parametrize("rotate", [True, False])
async def test_rotate_begins_at_any_server(rotate: bool) -> None:
    async with dns_server(*ZONE) as one, dns_server(*ZONE) as two:
        conf = ResolvConf(servers=(one.text, two.text), rotate=rotate)
        for _ in range(40):
            await Resolver(ResolverOptions(), conf).lookup("a.example.com", "A")
    assert len(one.asked) + len(two.asked) == 40
    assert bool(two.asked) is rotate


async def test_dead_server_goes_to_the_end_of_the_list() -> None:
    async with dns_server() as dead, dns_server(*ZONE, address="127.0.0.2") as good:
        dead.fault = faults.silent
        asking = resolver(dead, good, patience=PATIENCE)
        await asking.lookup("a.example.com", "A")
        await asking.lookup("example.com", "MX")
        await asking.lookup("a.example.com", "AAAA")
    assert len(dead.asked) == 1
    assert len(good.asked) == 3


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        pytest.param(None, FAILED, id="server_shows_the_loop"),
        pytest.param(faults.chain_without_end, FAILED, id="link_by_link"),
    ],
)
async def test_cname_loop_is_deferred(
    fault: Fault | None, status: LookupStatus
) -> None:
    # Postfix calls it permanent ("Name server loop"); whoever makes such a
    # mistake repairs it, and meanwhile the mail can wait.
    async with dns_server(*ZONE) as server:
        server.fault = fault
        lookup = await ask(server, "loop.example.com", "A")
    assert lookup.status is status
    assert "CNAME" in lookup.reason
    assert len(server.asked) <= 20


async def test_cname_left_to_us_is_followed() -> None:
    async with dns_server(*ZONE) as server:
        server.fault = faults.chain_without_end
        server.authentic = True
        lookup = await resolver(server, trust_ad=True).lookup("alias.example.com", "A")
    assert lookup.addresses == ("192.0.2.1",)
    assert lookup.name == "alias.example.com"
    assert lookup.ttl == 60
    # One link came without AD, and a chain is as strong as that.
    assert not lookup.secure


@pytest.mark.parametrize(
    ("trust_ad", "authentic", "secure"),
    [
        (True, True, True),
        (True, False, False),
        (None, True, False),
        (False, True, False),
    ],
)
async def test_ad_is_believed_only_on_request(
    trust_ad: bool | None, authentic: bool, secure: bool
) -> None:
    async with dns_server(*ZONE) as server:
        server.authentic = authentic
        asking = resolver(server, trust_ad=trust_ad)
        assert (await asking.lookup("a.example.com", "A")).secure is secure
        assert (await asking.lookup("a.example.com", "MX")).secure is secure


@pytest.mark.parametrize("trust_ad", [True, False])
async def test_trust_ad_of_resolv_conf_is_about_its_own_servers(
    trust_ad: bool,
) -> None:
    async with dns_server(*ZONE) as server:
        server.authentic = True
        conf = ResolvConf(servers=(server.text,), trust_ad=trust_ad)
        of_the_file = Resolver(ResolverOptions(), conf)
        assert (await of_the_file.lookup("a.example.com", "A")).secure is trust_ad
        named = Resolver(ResolverOptions(servers=(server.text,)), conf)
        assert not (await named.lookup("a.example.com", "A")).secure


async def test_answers_are_kept_and_spelling_does_not_matter() -> None:
    async with dns_server(*ZONE) as server:
        asking = resolver(server)
        for name in ("a.example.com", "A.EXAMPLE.com", "a.example.com."):
            lookup = await asking.lookup(name, "A")
            assert lookup.addresses == ("192.0.2.1",)
            assert 299 < lookup.ttl <= 300
        await asking.lookup("a.example.com", "AAAA")
    assert server.asked == ["udp A a.example.com.", "udp AAAA a.example.com."]


async def test_answer_of_ttl_zero_is_used_once() -> None:
    async with dns_server(*ZONE) as server:
        asking = resolver(server)
        for _ in range(2):
            await asking.lookup("brief.example.com", "A")
    assert len(server.asked) == 2


async def test_failure_is_kept_for_a_while() -> None:
    async with dns_server(*ZONE) as server:
        server.fault = faults.rcode("SERVFAIL")
        asking = resolver(server)
        first = await asking.lookup("a.example.com", "A")
        server.fault = None
        again = await asking.lookup("a.example.com", "A")
    assert again.status is FAILED
    assert again.reason == first.reason
    assert len(server.asked) == 1


async def test_our_own_lack_of_descriptors_is_not_remembered() -> None:
    async with dns_server(*ZONE) as server:
        asking = resolver(server)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            lookup = await asking.lookup("a.example.com", "A")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        again = await asking.lookup("a.example.com", "A")
    assert lookup.status is FAILED
    assert lookup.reason == "Too many open files"
    assert again.status is FOUND


async def test_equal_questions_at_the_same_time_are_asked_once() -> None:
    async with dns_server(*ZONE) as server:
        server.delay = PATIENCE / 4
        asking = resolver(server)
        answers = await asyncio.gather(
            *(asking.lookup("brief.example.com", "A") for _ in range(50))
        )
    assert len(server.asked) == 1
    assert {one.addresses for one in answers} == {("192.0.2.2",)}


async def test_question_in_a_hurry_shares_answers_and_no_failure() -> None:
    async with dns_server(*ZONE) as server:
        asking = resolver(server)
        server.die()
        hurried = await asking.lookup("a.example.com", "A", PATIENCE / 10)
        assert hurried.status is FAILED
        server.asked.clear()
        assert await asking.lookup("a.example.com", "A", PATIENCE / 10)
        assert not server.asked
        server.revive()
        assert (await asking.lookup("a.example.com", "A")).status is FOUND
        server.die()
        again = await asking.lookup("a.example.com", "A", PATIENCE / 10)
    assert again.status is FOUND


async def test_waiting_ones_ask_themselves_when_the_first_is_cancelled() -> None:
    async with dns_server(*ZONE) as server:
        server.delay = PATIENCE / 2
        asking = resolver(server)
        first = asyncio.create_task(asking.lookup("a.example.com", "A"))
        others = [
            asyncio.create_task(asking.lookup("a.example.com", "A")) for _ in range(3)
        ]
        await server.was_asked.wait()
        first.cancel()
        answers = await asyncio.gather(*others)
    assert {one.addresses for one in answers} == {("192.0.2.1",)}
    assert len(server.asked) == 2


async def test_search_list_is_never_used() -> None:
    async with dns_server("short.example.com. 60 A 192.0.2.9") as server:
        lookup = await ask(server, "short", "A")
    assert lookup.status is NXDOMAIN
    assert server.asked == ["udp A short."]


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..b", "x." * 200])
async def test_what_dns_cannot_ask_fails_quietly(name: str) -> None:
    async with dns_server() as server:
        lookup = await ask(server, name, "A")
    assert lookup.status is FAILED
    assert lookup.reason == "not a domain name"
    assert server.asked == []


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.53", Server("192.0.2.53")),
        ("192.0.2.53:5353", Server("192.0.2.53", 5353)),
        ("2001:db8::53", Server("2001:db8::53")),
        ("[2001:db8::53]", Server("2001:db8::53")),
        ("[2001:db8::53]:5353", Server("2001:db8::53", 5353)),
        ("fe80::1%lo", Server("fe80::1%lo")),
    ],
)
def test_server_is_written_in_these_forms(text: str, server: Server) -> None:
    assert parse_server(text) == server


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ns.example.com",
        "192.0.2.53:0",
        "192.0.2.53:x",
        "[::1]:65536",
    ],
)
def test_server_written_otherwise_is_a_mistake_in_the_configuration(text: str) -> None:
    with pytest.raises(ConfigError, match=r"resolver\.servers: expected ADDRESS"):
        Resolver(ResolverOptions(servers=(text,)))


async def test_server_on_ipv6_is_asked() -> None:
    async with dns_server(*ZONE, address="::1") as server:
        options = ResolverOptions(servers=(f"[::1]:{server.port}",))
        lookup = await Resolver(options).lookup("a.example.com", "A")
    assert lookup.addresses == ("192.0.2.1",)


async def test_server_with_a_zone_by_number_is_asked() -> None:
    loopback = socket.if_nametoindex("lo")
    async with dns_server(*ZONE, address="::1") as server:
        options = ResolverOptions(servers=(f"[::1%{loopback}]:{server.port}",))
        lookup = await Resolver(options).lookup("a.example.com", "A")
    assert lookup.addresses == ("192.0.2.1",)


@pytest.mark.parametrize("zone", ["nosuchif", "99999", "9" * 40])
async def test_server_with_a_zone_that_is_gone_is_no_answer(zone: str) -> None:
    asking = Resolver(ResolverOptions(servers=(f"fe80::1%{zone}",)))
    lookup = await asking.lookup("example.com", "A")
    assert lookup.status is FAILED
