"""The server over streams; its judgements by plans from a real name server's answers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import dns.message
import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import AccessJudged, Trouble
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.options import (
    AccessAbout,
    AccessFinding,
    AccessPolicyOptions,
    AccessRule,
    MemoryOptions,
    NxdomainPolicy,
    Options,
    ResolverOptions,
)
from mxpolicy.protocol.access_policy import AccessRequest
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.domain_record import DomainRecord, after_delivery
from mxpolicy.routing.domain_record import encode as encode_track
from mxpolicy.routing.host_record import HostRecord, encode
from mxpolicy.routing.kept_findings import MEMORY_HOLDS
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord
from mxpolicy.server.access_policy import AccessPolicyServer
from mxpolicy.state.memory import MemoryStore
from tests.helpers.dns_server import DnsServer, dns_server, faults

if TYPE_CHECKING:
    from mxpolicy.delivery.events import Event

FAILED = HostRecord(Verdict.FILTERED, Phase.CONNECT, True, 0.0, 600.0, 6.0)
FAR = time.time() + 1e6

ZONE = (
    "two.example. 60 MX 10 mx.good.example.",
    "two.example. 60 MX 20 mx.two.example.",
    "mx.two.example. 60 A 192.0.2.20",
    "two.example. 60 MX 20 mx.unresolvable.example.",
    "good.example. 60 MX 10 mx.good.example.",
    "mx.good.example. 60 A 192.0.2.10",
    "null.example. 60 MX 0 .",
    "half-null.example. 60 MX 0 .",
    "half-null.example. 60 MX 10 mx.good.example.",
    "empty.example. 60 TXT x",
    "nowhere.example. 60 MX 10 mx.nowhere.example.",
    "literal.example. 60 MX 10 127.0.0.1.",
    "loopback.example. 60 MX 10 mx.loopback.example.",
    "mx.loopback.example. 60 A 127.0.0.1",
    "loop.example. 60 MX 10 mail.own.example.",
    "behind-nat.example. 60 A 198.51.100.25",
    "backup.example. 60 MX 10 mx.nowhere.example.",
    "backup.example. 60 MX 20 mail.own.example.",
    "mail.own.example. 60 MX 0 .",
    "lists.own.example. 60 MX 0 .",
)

# The domain -> what is certain about it.
FINDINGS = {
    "good.example": None,
    "half-null.example": None,
    "backup.example": None,
    "mail.own.example": None,
    "lists.own.example": None,
    "[192.0.2.1]": None,
    "null.example": AccessFinding.NULL_MX,
    "nxdomain.example": AccessFinding.NO_SUCH_DOMAIN,
    "empty.example": AccessFinding.NO_ADDRESS,
    "nowhere.example": AccessFinding.NO_ADDRESS,
    "literal.example": AccessFinding.NEVER_DIALLED,
    "loopback.example": AccessFinding.NEVER_DIALLED,
    "[127.0.0.1]": AccessFinding.NEVER_DIALLED,
    "loop.example": AccessFinding.LOOPS_TO_MYSELF,
    "behind-nat.example": AccessFinding.LOOPS_TO_MYSELF,
}

# Every finding has an action that names it.
TELLING = tuple(
    AccessRule((one,), f"WARN {about.value} {one.value}", about)
    for one in AccessFinding
    for about in AccessAbout
)


async def answered(server: AccessPolicyServer, request: AccessRequest) -> str:
    """Return the action for *request*, also when it is to be found out."""
    action = server.action_for(request)
    return action if isinstance(action, str) else await action


class Court:
    """A server with the engine of these options, and what was observed."""

    def __init__(
        self,
        server: DnsServer,
        *rules: AccessRule,
        timeout: float = 8.0,
        nxdomain: NxdomainPolicy = NxdomainPolicy.BOUNCE,
        fast_deferral: bool = True,
    ) -> None:
        self.store = MemoryStore()
        options = Options(
            memory=MemoryOptions(fast_deferral=fast_deferral),
            helo="mail.own.example",
            own_names=("lists.own.example",),
            own_addresses=("198.51.100.25",),
            resolver=ResolverOptions(servers=(server.text,)),
            nxdomain=nxdomain,
            policy=AccessPolicyOptions(timeout, rules),
        )
        self.events: list[Event] = []
        engine = Engine(Context(options, store=self.store))
        self.ahead = 0.0
        self.server = AccessPolicyServer(
            lambda: engine, self.events.append, lambda: time.monotonic() + self.ahead
        )

    async def remember(self, address: str, **record: object) -> None:
        """Let the host at *address* have failed 30 s ago, or as *record* says."""
        known = FAILED._replace(since=time.time() - 30)._replace(**record)  # type: ignore[arg-type]
        candidate = Candidate("mx", address, 25)
        await self.write(host_key(candidate), encode(known))

    async def write(self, key: str, value: bytes) -> None:
        """Let another process write a row, and a second pass."""
        await self.store.put(key, value, FAR)
        self.ahead += MEMORY_HOLDS

    async def rows(self) -> dict[str, bytes]:
        """Return all that is remembered."""
        return {one.key: one.value for one in await self.store.scan("")}

    async def ask(self, recipient: str = "", sender: str = "", **more: str) -> str:
        """Return the action."""
        request = AccessRequest("RCPT", sender, recipient, **more)
        return await answered(self.server, request)

    @property
    def trouble(self) -> list[str]:
        """What was said of troubles."""
        return [one.text for one in self.events if isinstance(one, Trouble)]


@pytest.mark.parametrize(("domain", "found"), FINDINGS.items())
async def test_what_is_certain_about_a_domain(
    domain: str, found: AccessFinding | None
) -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server, *TELLING)
        said = await court.ask(f"user@{domain}"), await court.ask("", f"user@{domain}")
        if found is None:
            assert said == ("DUNNO", "DUNNO")
        else:
            assert said == (
                f"WARN recipient {found.value}",
                f"WARN sender {found.value}",
            )
        assert not court.trouble


async def test_null_mx_is_refused_as_rfc_7505_says() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server)
        assert await court.ask("user@null.example", "me@good.example") == (
            "550 5.1.10 recipient domain null.example does not accept mail (null MX)"
        )
        assert await court.ask("user@good.example", "me@null.example") == (
            "550 5.7.27 sender domain null.example does not accept mail (null MX)"
        )
        for domain, found in FINDINGS.items():
            if found is not AccessFinding.NULL_MX:
                assert await court.ask(f"a@{domain}", f"b@{domain}") == "DUNNO"


@pytest.mark.parametrize(
    "address",
    ["", "root", "@null.example", "user@", "user@null..example", "user@null.example\0"],
)
async def test_what_is_no_address_is_not_judged(address: str) -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server, *TELLING)
        assert await court.ask(address, address) == "DUNNO"
        assert not server.asked
        assert not court.trouble


@pytest.mark.parametrize(
    "address", ["a b@NULL.example.", "a@b@null.example", "-@null.example"]
)
async def test_local_part_comes_unquoted(address: str) -> None:
    async with dns_server(*ZONE) as server:
        assert (await Court(server).ask(address)).startswith("550 5.1.10 ")


async def test_context_says_whom_to_judge() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server)
        addresses = ("a@null.example", "b@null.example")
        for context, status in [
            ("", "5.1.10"),
            ("recipient", "5.1.10"),
            ("sender", "5.7.27"),
        ]:
            said = await court.ask(*addresses, policy_context=context)
            assert said.startswith(f"550 {status} ")
        assert await court.ask(*addresses, policy_context="greylisting") == "DUNNO"


async def test_refusal_goes_before_everything_else() -> None:
    async with dns_server(*ZONE) as server:
        null_mx = (AccessFinding.NULL_MX,)
        court = Court(
            server,
            AccessRule((AccessFinding.NO_ADDRESS,), "PREPEND X-A: b"),
            AccessRule(null_mx, "DEFER_IF_PERMIT", AccessAbout.SENDER),
        )
        assert await court.ask("a@empty.example") == "PREPEND X-A: b"
        assert (await court.ask("a@empty.example", "b@null.example")).startswith(
            "DEFER_IF_PERMIT 4.7.27 sender domain null.example "
        )
        # A DUNNO for one is none for the other.
        court = Court(server, AccessRule(null_mx, "DUNNO"))
        assert (await court.ask("a@null.example", "b@null.example")).startswith(
            "550 5.7.27 "
        )


async def test_rules_know_the_client() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(
            server,
            AccessRule((AccessFinding.NULL_MX,), "450 not you", sasl_username=("kim",)),
            AccessRule((AccessFinding.NULL_MX,), "WARN", client=("192.0.2.0/24",)),
        )
        recipient = "a@null.example"
        assert await court.ask(recipient, sasl_username="kim") == "450 not you"
        assert await court.ask(recipient, client_address="192.0.2.7") == (
            "WARN recipient domain null.example does not accept mail (null MX)"
        )
        assert (await court.ask(recipient)).startswith("550 ")


async def test_judgement_is_told() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server)
        action = await court.ask("a@null.example", "b@good.example", queue_id="4b")
        [event] = court.events
        assert isinstance(event, AccessJudged)
        assert 0 <= event.at < 5
        assert event[1:] == (
            "4b",
            "RCPT",
            "",
            "b@good.example",
            "a@null.example",
            ("recipient null.example null_mx",),
            action,
        )


async def test_domain_whose_absence_defers_is_not_refused() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server, *TELLING, nxdomain=NxdomainPolicy.DEFER)
        assert await court.ask("a@nxdomain.example") == "DUNNO"
        assert await court.ask("a@null.example") == "WARN recipient null_mx"


@pytest.mark.parametrize(
    "fault",
    [faults.rcode("SERVFAIL"), faults.rcode("REFUSED"), faults.garbage, faults.silent],
    ids=["servfail", "refused", "garbage", "silent"],
)
async def test_dead_dns_is_dunno_and_a_line_in_the_log(fault: object) -> None:
    async with dns_server(*ZONE) as server:
        server.fault = server.tcp_fault = fault  # type: ignore[assignment]
        court = Court(server, *TELLING, timeout=1.0)
        began = time.monotonic()
        assert await court.ask("a@null.example") == "DUNNO"
        assert time.monotonic() - began < 30
        [text] = court.trouble
        assert text.startswith("no DNS answer for null.example: MX of null.example")
        assert text.endswith("; answered DUNNO")


async def test_dead_dns_is_remembered_for_a_while() -> None:
    async with dns_server(*ZONE) as server:
        server.die()
        court = Court(server, timeout=1.0)
        await court.ask("a@null.example")
        asked = len(server.asked)
        assert await court.ask("b@null.example") == "DUNNO"
        assert len(server.asked) == asked


async def test_hundreds_at_once_are_all_answered_in_time_by_dead_dns() -> None:
    async with dns_server(*ZONE) as server:
        server.die()
        court = Court(server, timeout=1.0)
        began = time.monotonic()
        said = await asyncio.gather(
            *(court.ask(f"a@{n}.example", f"b@{n}.example") for n in range(300))
        )
        assert set(said) == {"DUNNO"}
        assert time.monotonic() - began < 30  # one after the other: 300
        assert "no judgement within 1 s; answered DUNNO" in court.trouble
        # They leave nothing behind: the next one is judged.
        server.fault = None
        assert (await court.ask("a@null.example")).startswith("550 ")


async def test_what_is_known_of_one_counts_while_the_other_is_waited_for() -> None:
    async with dns_server(*ZONE) as server:

        def one_is_silent(server: DnsServer, query: object) -> bytes | None:
            if "slow" in str(query):
                return None
            return server.honest(query).to_wire()  # type: ignore[arg-type]

        server.fault = one_is_silent
        court = Court(server, timeout=0.6)
        said = await court.ask("a@null.example", "b@slow.example")
        assert said.startswith("550 5.1.10 ")


async def test_second_server_is_asked_in_time() -> None:
    async with dns_server(*ZONE) as dead, dns_server(*ZONE) as alive:
        dead.die()
        servers = ResolverOptions(servers=(dead.text, alive.text))
        options = Options(resolver=servers, policy=AccessPolicyOptions(timeout=1.0))
        engine = Engine(Context(options))
        asked = AccessPolicyServer(lambda: engine, lambda _: None)
        request = AccessRequest("RCPT", "", "a@null.example")
        assert (await answered(asked, request)).startswith("550 5.1.10 ")


async def test_fault_of_ours_is_dunno_and_a_line_in_the_log() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server)

        class Broken(Engine):
            async def plan(self, *_: object) -> None:  # type: ignore[override]
                raise ZeroDivisionError("a bug")

        options = Options(resolver=ResolverOptions(servers=(server.text,)))
        broken = Broken(Context(options))
        court.server = AccessPolicyServer(lambda: broken, court.events.append)
        assert await court.ask("a@null.example", "b@null.example") == "DUNNO"
        assert "ZeroDivisionError: a bug" in court.trouble[0]


async def test_without_descriptors_the_answer_is_dunno() -> None:
    import os
    import resource

    async with dns_server(*ZONE) as server:
        court = Court(server)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, limits[1]))
        try:
            assert await court.ask("a@null.example") == "DUNNO"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            os.close(spare)
        assert "Too many open files" in court.trouble[0]
        assert (await court.ask("a@null.example")).startswith("550 5.1.10 ")


# -- what is remembered ----------------------------------------------------------


async def test_better_host_that_cannot_be_looked_up_is_named_beside_those_in_pause() -> (
    None
):
    def without_best(server: DnsServer, query: dns.message.Message) -> bytes | None:
        if "mx.good" in str(query):
            return faults.rcode("SERVFAIL")(server, query)
        return server.honest(query).to_wire()

    async with dns_server(*ZONE) as server:
        server.fault = without_best
        rule = AccessRule((AccessFinding.ALL_PAUSED,), "DEFER_IF_PERMIT")
        court = Court(server, rule)
        await court.remember("192.0.2.20")
        said = await court.ask("a@two.example")
        assert said.startswith("DEFER_IF_PERMIT ")
        assert said.endswith("; mx.good.example cannot be looked up")


async def test_hosts_that_all_are_in_their_pause_are_found() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server, *TELLING)
        await court.remember("192.0.2.10")
        assert await court.ask("a@two.example") == "DUNNO"  # the other one is unknown
        await court.remember("192.0.2.20", since=time.time() - 20)
        assert await court.ask("a@two.example") == "WARN recipient all_paused"
        assert await court.ask("", "a@two.example") == "WARN sender all_paused"
        assert await court.ask("a@good.example") == "WARN recipient all_paused"
        await court.remember("192.0.2.10", verdict=None)
        assert await court.ask("a@two.example") == "DUNNO"
        assert not court.trouble


@pytest.mark.parametrize(
    "record",
    [
        {"full": False},  # only our patience ended
        {"since": time.time() - 700},  # due: the next message looks after it
        {"since": time.time() - 5000},  # too long ago
        {"since": time.time() + 5000},  # the clock was set back
        {"verdict": None},
    ],
    ids=str,
)
async def test_host_that_may_be_well_again_is_no_finding(
    record: dict[str, object],
) -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server, *TELLING)
        await court.remember("192.0.2.10", **record)
        assert await court.ask("a@good.example") == "DUNNO"


async def test_hosts_in_their_pause_are_dunno_by_default() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server)
        await court.remember("192.0.2.10")
        assert await court.ask("a@good.example", "b@good.example") == "DUNNO"


@pytest.mark.parametrize("fast_deferral", [True, False])
@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("DEFER_IF_PERMIT", "DEFER_IF_PERMIT 4.4.1 {}"),
        ("DEFER", "DEFER 4.4.1 {}"),
        ("450", "450 4.4.1 {}"),
        ("WARN", "WARN {}"),
        ("PREPEND X-Slow: yes", "PREPEND X-Slow: yes"),
        ("FILTER mxpolicy:", "FILTER mxpolicy:"),
        # What may be over in a minute is never refused for good.
        ("REJECT", "DEFER 4.4.1 {}"),
        ("550", "450 4.4.1 {}"),
        ("554 5.7.1 go away", "454 4.7.1 go away"),
    ],
)
async def test_hosts_in_their_pause_are_answered_as_rules_say(
    action: str, said: str, fast_deferral: bool
) -> None:
    async with dns_server(*ZONE) as server:
        rule = AccessRule((AccessFinding.ALL_PAUSED,), action)
        court = Court(server, rule, fast_deferral=fast_deferral)
        await court.remember("192.0.2.10")
        await court.remember("192.0.2.20")
        text = (
            "recipient domain two.example has no mail server that could be reached:"
            " mx.good.example[192.0.2.10]:25 filtered 30s ago, and 1 more"
        )
        assert await court.ask("a@two.example") == said.format(text)


async def test_judging_changes_nothing_that_is_remembered() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server, *TELLING)
        await court.remember("192.0.2.10")
        await court.remember("192.0.2.20", since=time.time() - 700)
        lookup = Lookup("null.example", "MX", LookupStatus.FOUND)
        track = after_delivery(DomainRecord(), lookup, time.time() - 9e4)
        await court.write("domain null.example", encode_track(track))
        before = await court.rows()
        for domain in FINDINGS:
            await court.ask(f"a@{domain}", f"b@{domain}")
        assert await court.rows() == before


async def test_domain_that_took_mail_until_now_is_not_refused() -> None:
    # What `deliver` defers for a day must not be refused before.
    async with dns_server(*ZONE) as server:
        court = Court(server, *TELLING)
        now = time.time()
        lookup = Lookup("null.example", "MX", LookupStatus.FOUND)
        track = after_delivery(DomainRecord(), lookup, now - 2 * 86400)
        for domain in ("null.example", "nxdomain.example", "empty.example"):
            await court.write(f"domain {domain}", encode_track(track))
            assert await court.ask(f"a@{domain}") == "DUNNO"
        # A delivery has seen it to be so for more than a day.
        track = track._replace(missing=now - 90_000)
        await court.write("domain null.example", encode_track(track))
        assert await court.ask("a@null.example") == "WARN recipient null_mx"


async def test_mx_records_of_before_refuse_nobody_while_dns_fails() -> None:
    async with dns_server(*ZONE) as server:
        court = Court(server, *TELLING)

        def mx_fails(server: DnsServer, query: object) -> bytes | None:
            if " MX" in str(query):
                return faults.rcode("SERVFAIL")(server, query)  # type: ignore[arg-type]
            return server.honest(query).to_wire()  # type: ignore[arg-type]

        server.fault = mx_fails
        record = MxRecord(10, "mx.nowhere.example")
        lookup = Lookup("good.example", "MX", LookupStatus.FOUND, (record,))
        track = after_delivery(DomainRecord(), lookup, time.time() - 60)
        await court.write("domain good.example", encode_track(track))
        assert await court.ask("a@good.example") == "DUNNO"
        # They are those to whom a message would go, so what is known of them counts.
        records = (MxRecord(10, "mx.two.example"),)
        lookup = lookup._replace(records=records)
        track = after_delivery(DomainRecord(), lookup, time.time() - 60)
        await court.write("domain good.example", encode_track(track))
        await court.remember("192.0.2.20")
        court.ahead += 5.0  # for so long DNS is not asked again
        assert await court.ask("a@good.example") == "WARN recipient all_paused"
