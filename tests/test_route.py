"""``mxpolicy route``: its plan is the engine's, its reasons are true, nobody is dialled."""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mxpolicy import route
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.plan import Plan, Planner
from mxpolicy.options import Options, RaceOptions
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.routing.nexthop import parse_nexthop
from mxpolicy.routing.own import OwnIdentity
from mxpolicy.terminal import Terminal
from tests.helpers.dns_server import DnsServer, dns_server
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.fast_loop import run_fast

CHECKOUT = Path(__file__).parents[1]

RECORDS = (
    "example.com. 300 MX 10 mx1.example.com.",
    "example.com. 300 MX 20 mx2.example.com.",
    "mx1.example.com. 300 A 198.51.100.1",
    "mx1.example.com. 300 AAAA 2001:db8::1",
    "mx2.example.com. 300 A 198.51.100.2",
    "null.example. 300 MX 0 .",
    "implicit.example. 300 A 198.51.100.3",
    "loopback.example. 300 MX 10 localhost.example.",
    "localhost.example. 300 A 127.0.0.1",
)


class Name:
    """A name server in a thread of its own, for commands in processes of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self.server: DnsServer
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with dns_server(*RECORDS) as self.server:
            self._ready.set()
            await self._end.wait()

    def __enter__(self) -> DnsServer:
        self._thread.start()
        self._ready.wait(10)
        return self.server

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()


@pytest.fixture
def name_server() -> Iterator[DnsServer]:
    with Name() as server:
        yield server


@pytest.fixture
def config(name_server: DnsServer, tmp_path: Path) -> str:
    file = tmp_path / "mxpolicy.yaml"
    file.write_text(
        f"helo: mail.example.net\nresolver: {{servers: ['{name_server.text}']}}\n"
    )
    return str(file)


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``mxpolicy route`` as an operator would."""
    return subprocess.run(
        [sys.executable, "-m", "mxpolicy", "route", *argv],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, **environ},
        timeout=60,
        check=False,
    )


def planned(
    resolver: FakeResolver,
    nexthop: str = "example.com",
    *,
    own: OwnIdentity | None = None,
    options: Options | None = None,
) -> Plan:
    options = options or Options()
    planner = Planner(resolver, options, own or OwnIdentity())
    plan, _ = run_fast(
        planner.plan(
            parse_nexthop(nexthop, options.port),
            destination_domain=nexthop,
            reverse_path="",
            forward_path=f"user@{nexthop}",
        )
    )
    return plan


def shown(plan: Plan, options: Options | None = None, width: int | None = None) -> str:
    options = options or Options()
    when = route.starts(plan, options)
    found = route.findings(plan, options, when, "", "user@example.com")
    stream = io.StringIO()
    route.show(plan, found, when, options.race, Terminal(stream, {}, width))
    return stream.getvalue()


def texts(plan: Plan, about: str, options: Options | None = None) -> list[str]:
    options = options or Options()
    when = route.starts(plan, options)
    found = route.findings(plan, options, when, "", "user@example.com")
    return [one.text for one in found if one.about == about]


DUAL = {
    "mx": {"example.com": [(10, "a.example.com"), (20, "b.example.com")]},
    "a": {"a.example.com": ["198.51.100.1"], "b.example.com": ["198.51.100.2"]},
    "aaaa": {"a.example.com": ["2001:db8::1"]},
}


# The command


def test_route_shows_the_plan_without_dialling(
    config: str, name_server: DnsServer
) -> None:
    ended = run("example.com", "--config", config)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "example.com: 3 addresses to try" in ended.stdout
    assert "[2001:db8::1]:25" in ended.stdout
    assert "+250 ms: the same host's other address family" in ended.stdout
    assert "+1.5 s: a worse preference" in ended.stdout
    assert name_server.was_asked.is_set()


def test_json_has_the_shape_that_route_probe_and_hosts_share(config: str) -> None:
    ended = run("example.com", "--json", "--config", config)
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    assert list(said) == ["schema", "nexthop", "findings", "candidates", "action"]
    assert (said["schema"], said["action"]) == (1, "deliver")
    assert said["candidates"][2] == {
        "egress": "direct",
        "host": "mx2.example.com",
        "preference": 20,
        "address": "198.51.100.2",
        "port": 25,
        "tls": "may",
    }
    first = said["findings"][0]
    assert first["about"] == "dns"
    assert first["records"] == ["10 mx1.example.com", "20 mx2.example.com"]
    [start] = [one for one in said["findings"] if one["about"] == "start"]
    assert start["seconds"] == [0.0, 0.25, 1.75]


@pytest.mark.parametrize(
    ("nexthop", "status", "action", "enhanced"),
    [
        pytest.param("null.example", 69, "bounce", "5.1.10", id="null_mx"),
        pytest.param("nosuch.example", 69, "bounce", "5.1.2", id="no_such_domain"),
        pytest.param("loopback.example", 69, "bounce", "5.4.4", id="never_dialled"),
        pytest.param("[mail.example.net]", 75, "defer", "4.3.5", id="relay_is_myself"),
        pytest.param("nosuch.example:26", 75, "defer", "4.3.5", id="operators_nexthop"),
        pytest.param("a..b", 75, "defer", "4.3.5", id="not_a_nexthop"),
        pytest.param("example.com:0", 75, "defer", "4.3.5", id="not_a_port"),
    ],
)
def test_exit_status_is_the_pipe_s_when_there_is_nobody_to_dial(
    config: str, nexthop: str, status: int, action: str, enhanced: str
) -> None:
    ended = run(nexthop, "--json", "--config", config)
    said = json.loads(ended.stdout)
    assert ended.returncode == status
    assert (said["action"], said["status"]) == (action, enhanced)
    assert said["text"]
    assert said["candidates"] == []


def test_name_server_that_is_down_defers(config: str, name_server: DnsServer) -> None:
    name_server.fault = lambda _server, query: _servfail(query)
    ended = run("example.com", "--config", config)
    assert ended.returncode == 75
    assert "4.4.3" in ended.stdout
    assert "SERVFAIL" in ended.stdout


def _servfail(query: Any) -> bytes:
    import dns.message
    import dns.rcode

    answer = dns.message.make_response(query)
    answer.set_rcode(dns.rcode.SERVFAIL)
    return answer.to_wire()


def test_wrong_configuration_defers_as_the_pipe_does(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("prot: 26\n")
    ended = run("example.com", "--json", "--config", str(wrong))
    said = json.loads(ended.stdout)
    assert ended.returncode == 75
    assert said["status"] == "4.3.5"
    assert "did you mean 'port'" in said["text"]


def test_wrong_command_line_is_misuse() -> None:
    ended = run("example.com", "--jsn")
    assert ended.returncode == 2
    assert ended.stdout == ""


def test_output_that_nobody_reads_ends_quietly(config: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    ended = subprocess.run(
        [sys.executable, "-m", "mxpolicy", "route", "example.com", "--config", config],
        stdout=writes,
        stderr=subprocess.PIPE,
        cwd=CHECKOUT,
        timeout=60,
        check=False,
    )
    os.close(writes)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_recipient_and_sender_decide_the_order_as_they_do_for_a_delivery(
    config: str, name_server: DnsServer
) -> None:
    for n in range(8):
        name_server.add(f"equal.example. 300 MX 10 mx{n}.equal.example.")
        name_server.add(f"mx{n}.equal.example. 300 A 198.51.100.{n + 10}")
    argv = ("equal.example", "--json", "--config", config)
    message = ("--sender", "s@example.net", "--recipient", "r@equal.example")
    order = [
        [one["host"] for one in json.loads(run(*argv, *more).stdout)["candidates"]]
        for more in (message, message, (*message[:3], "other@equal.example"))
    ]
    assert order[0] == order[1] != order[2]
    assert sorted(order[0]) == sorted(order[2])


# The plan is the engine's


async def test_engine_plans_as_it_delivers() -> None:
    async with dns_server(*RECORDS) as server:
        from mxpolicy.options import ResolverOptions

        options = Options(
            helo="mail.example.net", resolver=ResolverOptions(servers=(server.text,))
        )
        engine = Engine(options, lambda _: None)
        for nexthop in ("example.com", "EXAMPLE.com.", "", "[198.51.100.9]"):
            plan = await engine.plan(nexthop, "", "user@example.com")
            assert plan.candidates
        assert (await engine.plan("", "a@@", "b@c")).refusal is not None


@pytest.mark.parametrize(
    ("nexthop", "recipient", "kind"),
    [
        pytest.param("nosuch.example", "u@nosuch.example", Bounced, id="own_domain"),
        pytest.param("NoSuch.Example.", "u@nosuch.example", Bounced, id="other_case"),
        pytest.param("", "u@nosuch.example", Bounced, id="no_nexthop"),
        pytest.param("nosuch.example", "u@example.com", Deferred, id="operators"),
        pytest.param("nosuch.example", "", Deferred, id="recipient_unknown"),
        pytest.param(
            "[ipv6:::1]", "u@[IPv6:::1]", Bounced, id="literal_spelt_otherwise"
        ),
        pytest.param(
            "n\u00f6such.example", "u@n\u00f6such.example", Bounced, id="u_labels"
        ),
    ],
)
async def test_only_the_recipient_s_own_domain_bounces(
    nexthop: str, recipient: str, kind: type
) -> None:
    from mxpolicy.options import ResolverOptions

    async with dns_server() as server:
        options = Options(
            helo="mail.example.net", resolver=ResolverOptions(servers=(server.text,))
        )
        plan = await Engine(options, lambda _: None).plan(nexthop, "", recipient)
    assert isinstance(plan.refusal, kind), plan


def test_plan_keeps_every_answer_in_the_order_of_hosts() -> None:
    plan = planned(FakeResolver(**DUAL))  # type: ignore[arg-type]
    assert [f"{one.rdtype} {one.name}" for one in plan.lookups] == [
        "MX example.com",
        "AAAA a.example.com",
        "A a.example.com",
        "AAAA b.example.com",
        "A b.example.com",
    ]


# When each would be started


def test_starts_are_those_of_a_race_that_nobody_answers() -> None:
    plan = planned(FakeResolver(**DUAL))  # type: ignore[arg-type]
    assert list(route.starts(plan, Options()).values()) == [0.0, 0.25, 1.75]


def test_starts_follow_the_configured_delays() -> None:
    plan = planned(FakeResolver(**DUAL))  # type: ignore[arg-type]
    options = Options(race=RaceOptions(address_delay=0.5, rank_delay=3.0))
    assert list(route.starts(plan, options).values()) == [0.0, 0.5, 3.5]


def test_who_is_beyond_the_most_that_are_dialled_never_starts() -> None:
    many = [f"mx{n}.example.com" for n in range(40)]
    resolver = FakeResolver(
        mx={"example.com": [(n, name) for n, name in enumerate(many)]},
        a={name: [f"198.51.100.{n}"] for n, name in enumerate(many)},
    )
    plan = planned(resolver)
    assert len(route.starts(plan, Options())) == 32
    assert shown(plan).count("never ") == 8


def test_waiting_for_a_place_is_said() -> None:
    names = [f"mx{n}.example.com" for n in range(6)]
    resolver = FakeResolver(
        mx={"example.com": [(10, name) for name in names]},
        a={name: [f"198.51.100.{n}"] for n, name in enumerate(names)},
    )
    assert "when one of 6 places is free (4 for one preference)" in shown(
        planned(resolver)
    )


# Reasons


def test_implicit_mx_is_said() -> None:
    plan = planned(FakeResolver(a={"example.com": ["198.51.100.1"]}))
    [text] = texts(plan, "implicit_mx")
    assert "example.com has no MX record" in text


def test_real_mx_is_not_called_implicit() -> None:
    assert texts(planned(FakeResolver(**DUAL)), "implicit_mx") == []  # type: ignore[arg-type]


def test_hosts_not_better_than_ourselves_are_named() -> None:
    resolver = FakeResolver(
        mx={
            "example.com": [
                (10, "a.example.com"),
                (20, "me.example.net"),
                (20, "c.example.com"),
                (30, "d.example.com"),
            ]
        },
        a={"a.example.com": ["198.51.100.1"], "c.example.com": ["198.51.100.3"]},
    )
    plan = planned(resolver, own=OwnIdentity(["me.example.net"]))
    [text] = texts(plan, "own")
    assert "20 c.example.com, 20 me.example.net, 30 d.example.com" in text
    assert "a.example.com" not in text


def test_ourselves_in_a_list_of_nexthops_blames_nobody_of_another_one() -> None:
    resolver = FakeResolver(**DUAL)  # type: ignore[arg-type]
    own = OwnIdentity(["me.example.net"])
    plan = planned(resolver, "[me.example.net], example.com", own=own)
    assert plan.own_preference == 0
    assert texts(plan, "own") == []


def test_what_must_not_be_dialled_is_named() -> None:
    resolver = FakeResolver(
        mx={"example.com": [(10, "a.example.com")]},
        a={"a.example.com": ["127.0.0.1", "198.51.100.1"]},
    )
    [text] = texts(planned(resolver), "left_out")
    assert "a.example.com[127.0.0.1] (loopback)" in text


def test_address_of_two_hosts_is_said_to_be_tried_once() -> None:
    resolver = FakeResolver(
        mx={"example.com": [(10, "a.example.com"), (20, "b.example.com")]},
        a={"a.example.com": ["198.51.100.1"], "b.example.com": ["198.51.100.1"]},
    )
    [text] = texts(planned(resolver), "left_out")
    assert text == "b.example.com[198.51.100.1] is tried once, as a.example.com"


def test_addresses_beyond_a_hundred_are_said_to_be_left_out() -> None:
    addresses = [f"198.51.100.{n}" for n in range(120)]
    resolver = FakeResolver(a={"example.com": addresses})
    [text] = texts(planned(resolver), "left_out")
    assert "no more than 100 addresses" in text


def test_failed_lookup_is_not_called_an_answer() -> None:
    resolver = FakeResolver(fail={"MX example.com"})
    plan = planned(resolver)
    assert texts(plan, "dns") == [
        "MX example.com: no answer that can be believed (SERVFAIL)"
    ]
    assert route.exit_status(plan) == 75
    assert "nobody to dial, deferred (exit 75)" in shown(plan)


def test_order_is_explained_only_where_hosts_are_equal() -> None:
    equal = FakeResolver(
        mx={"example.com": [(10, "a.example.com"), (10, "b.example.com")]},
        a={"a.example.com": ["198.51.100.1"], "b.example.com": ["198.51.100.2"]},
    )
    [text] = texts(planned(equal), "order")
    assert text.endswith("this is the order for <> to <user@example.com>")
    assert texts(planned(FakeResolver(**DUAL)), "order") == []  # type: ignore[arg-type]


# The look of it


def test_hostile_names_reach_no_terminal() -> None:
    resolver = FakeResolver(
        mx={"example.com": [(10, "\x1b[2J\u202e.example"), (20, "b.example.com")]},
        a={"b.example.com": ["198.51.100.2"]},
    )
    plan = planned(resolver)
    whole = shown(plan) + json.dumps(route.as_json(plan, [], "may"))
    assert "\x1b" not in whole
    assert "\u202e" not in whole


def test_lines_fit_the_terminal_and_lose_nothing() -> None:
    names = [f"mx{n}.a-rather-long-name.example.com" for n in range(9)]
    resolver = FakeResolver(
        mx={"example.com": [(n, name) for n, name in enumerate(names)]},
        a={name: [f"198.51.100.{n}"] for n, name in enumerate(names)},
    )
    plan = planned(resolver)
    wrapped = shown(plan, width=79)
    assert max(map(len, wrapped.splitlines())) <= 79
    assert shown(plan).split() == wrapped.split()


def test_no_socket_but_the_name_server_s_is_connected(
    config: str, name_server: DnsServer
) -> None:
    with socket.socket() as mail:
        mail.bind(("127.0.0.1", 0))
        mail.listen()
        mail.setblocking(False)
        port = mail.getsockname()[1]
        Path(config).write_text(
            f"resolver: {{servers: ['{name_server.text}']}}\n"
            "allow_dial: [127.0.0.0/8]\n"
        )
        ended = run(f"[127.0.0.1]:{port}", "--config", config)
        assert ended.returncode == 0
        assert f"127.0.0.1:{port}" in ended.stdout
        with pytest.raises(BlockingIOError):
            mail.accept()
