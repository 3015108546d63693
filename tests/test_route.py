"""``mxpolicy route``: its plan is the engine's, its reasons are true, nobody is dialled."""

import asyncio
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.forecast import Forecast, forecast
from mxpolicy.delivery.host_memory import host_key, nexthop_key
from mxpolicy.delivery.plan import Plan, Planner
from mxpolicy.options import MemoryOptions, Options, RaceOptions
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.route.explanation import (
    Explained,
    as_json,
    exit_status,
    explain,
    starts,
)
from mxpolicy.route.text import show
from mxpolicy.routing.broken_tls import BrokenTls
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.domain_record import DomainRecord, after_delivery
from mxpolicy.routing.domain_record import encode as encode_track
from mxpolicy.routing.host_record import HostRecord, encode
from mxpolicy.routing.known_hosts import advise
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord
from mxpolicy.routing.nexthop import parse_nexthop
from mxpolicy.routing.own import OwnIdentity
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.terminal import Terminal
from tests.helpers.dns_server import (
    DnsServer,
    dns_server,
    name_server_in_a_thread,
)
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.fast_loop import run_fast

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"

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


@pytest.fixture
def name_server() -> Iterator[DnsServer]:
    with name_server_in_a_thread(*RECORDS) as server:
        yield server


@pytest.fixture
def config(name_server: DnsServer, tmp_path: Path) -> str:
    file = tmp_path / "mxpolicy.yaml"
    file.write_text(
        f"helo: mail.example.net\nresolver: {{servers: ['{name_server.text}']}}\n"
        f"state: {tmp_path / 'state'}\n"
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
    planner = Planner(resolver, options, own or OwnIdentity(), lambda: 0.0)
    plan, _ = run_fast(
        planner.plan(
            parse_nexthop(nexthop, options.port),
            destination_domain=nexthop,
            reverse_path="",
            forward_path=f"user@{nexthop}",
        )
    )
    return plan


def explained(plan: Plan | Forecast, options: Options | None = None) -> Explained:
    foreseen = plan if isinstance(plan, Forecast) else Forecast(plan)
    return explain(foreseen, options or Options(), "", "user@example.com")


def shown(
    plan: Plan | Forecast, options: Options | None = None, width: int | None = None
) -> str:
    stream = io.StringIO()
    terminal = Terminal(stream, {})
    terminal.width = width
    show(explained(plan, options), terminal)
    return stream.getvalue()


def texts(
    plan: Plan | Forecast, about: str, options: Options | None = None
) -> list[str]:
    remarks = explained(plan, options).remarks
    return [one.text for one in remarks if one.about == about]


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

    def order(*more: str) -> list[str]:
        told = json.loads(run(*argv, *more).stdout)
        return [one["host"] for one in told["candidates"]]

    first, again = order(*message), order(*message)
    if first != again:  # it holds for hours, and those may have ended in between
        first, again = again, order(*message)
    other = order(*message[:3], "other@equal.example")
    assert first == again != other
    assert sorted(first) == sorted(other)


# The plan is the engine's


async def test_engine_plans_as_it_delivers() -> None:
    async with dns_server(*RECORDS) as server:
        from mxpolicy.options import ResolverOptions

        options = Options(
            helo="mail.example.net", resolver=ResolverOptions(servers=(server.text,))
        )
        engine = Engine(Context(options))
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
        plan = await Engine(Context(options)).plan(nexthop, "", recipient)
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
    assert list(starts(Forecast(plan), Options()).values()) == [0.0, 0.25, 1.75]


def test_starts_follow_the_configured_delays() -> None:
    plan = planned(FakeResolver(**DUAL))  # type: ignore[arg-type]
    options = Options(race=RaceOptions(address_delay=0.5, rank_delay=3.0))
    assert list(starts(Forecast(plan), options).values()) == [0.0, 0.5, 3.5]


def test_who_is_beyond_the_most_that_are_dialled_never_starts() -> None:
    many = [f"mx{n}.example.com" for n in range(40)]
    resolver = FakeResolver(
        mx={"example.com": [(n, name) for n, name in enumerate(many)]},
        a={name: [f"198.51.100.{n}"] for n, name in enumerate(many)},
    )
    plan = planned(resolver)
    assert len(starts(Forecast(plan), Options())) == 32
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
    assert exit_status(plan) == 75
    assert "no host to dial, deferred (exit 75)" in shown(plan)


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
    whole = shown(plan) + json.dumps(as_json(explained(plan)))
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
    config: str, name_server: DnsServer, tmp_path: Path
) -> None:
    with socket.socket() as mail:
        mail.bind(("127.0.0.1", 0))
        mail.listen()
        mail.setblocking(False)
        port = mail.getsockname()[1]
        Path(config).write_text(
            f"resolver: {{servers: ['{name_server.text}']}}\n"
            f"allow_dial: [127.0.0.0/8]\nstate: {tmp_path}\n"
        )
        ended = run(f"[127.0.0.1]:{port}", "--config", config)
        assert ended.returncode == 0
        assert f"127.0.0.1:{port}" in ended.stdout
        with pytest.raises(BlockingIOError):
            mail.accept()


# What is remembered

FAILED = HostRecord(Verdict.FILTERED, Phase.CONNECT, True, 0.0, 600.0, 6.0)
MX1, MX1_V6, MX2 = "198.51.100.1", "2001:db8::1", "198.51.100.2"


def host(address: str) -> str:
    return host_key(Candidate("mx", address, 25))


def remember(tmp_path: Path, rows: dict[str, bytes]) -> dict[str, bytes]:
    """Write *rows* as deliveries do, and return the files that there are then."""

    async def write() -> None:
        store = SqliteStore(str(tmp_path / "state" / "state.sqlite3"))
        for key, value in rows.items():
            await store.put(key, value, time.time() + 1e6)
        await store.close()

    (tmp_path / "state").mkdir(exist_ok=True)
    asyncio.run(write())
    return files(tmp_path)


def files(tmp_path: Path) -> dict[str, bytes]:
    """Return what is kept; the library's index and empty log say nothing of it."""
    found = {one.name: one.read_bytes() for one in (tmp_path / "state").iterdir()}
    return {name: data for name, data in found.items() if data and "-shm" not in name}


def failed(seconds: float = 30.0, **more: Any) -> bytes:
    return encode(FAILED._replace(since=time.time() - seconds)._replace(**more))


def test_host_in_its_pause_is_shown_and_asked_last(config: str, tmp_path: Path) -> None:
    before = remember(
        tmp_path,
        {
            host(MX1): failed(said="no answer"),
            host(MX1_V6): failed(40, verdict=Verdict.REFUSED, full=False),
            host(MX2): encode(
                HostRecord(connect_time=0.02, last_ready=time.time() - 60)
            ),
        },
    )
    ended = run("example.com", "--config", config)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = [line.split() for line in ended.stdout.splitlines() if ":25 " in line]
    assert [row[4] for row in rows] == [f"{MX2}:25", f"[{MX1_V6}]:25", f"{MX1}:25"]
    lines = [line for line in ended.stdout.splitlines() if ":25 " in line]
    assert re.search(r"first; ready 6\ds ago$", lines[0])
    assert re.search(
        r"\+1 s: a better preference, asked later; refused \(connect, 6\.0s\),"
        r" in doubt 4\ds ago; asked last for 9m$",
        lines[1],
    )
    assert re.search(r"; filtered .* 3\ds ago; .*; said: no answer$", lines[2])
    assert files(tmp_path) == before


def test_json_has_what_is_remembered(config: str, tmp_path: Path) -> None:
    remember(tmp_path, {host(MX1): failed()})
    ended = run("example.com", "--json", "--config", config)
    assert ended.returncode == 0
    *others, last = json.loads(ended.stdout)["candidates"]
    assert not any("verdict" in one for one in others)
    since, until = (datetime.fromisoformat(last.pop(key)) for key in ("since", "until"))
    assert last == {
        "egress": "direct",
        "host": "mx1.example.com",
        "preference": 10,
        "address": MX1,
        "port": 25,
        "tls": "may",
        "verdict": "filtered",
        "phase": "connect",
        "full": True,
        "standing": "paused",
    }
    assert (until - since).total_seconds() == 600
    assert 25 < time.time() - since.timestamp() < 60


def test_answer_is_the_pipe_s_when_all_are_in_their_pause(
    config: str, tmp_path: Path
) -> None:
    rows = {host(one): failed() for one in (MX1, MX1_V6, MX2)}
    before = remember(tmp_path, rows)
    ended = run("example.com", "--json", "--config", config)
    said = json.loads(ended.stdout)
    assert ended.returncode == 75
    assert (said["action"], said["status"]) == ("defer", "4.4.1")
    assert said["text"].startswith("no host can be reached, as was found before: mx1.")
    assert [one["verdict"] for one in said["candidates"]] == ["filtered"] * 3
    assert not [one for one in said["findings"] if one["about"] == "start"]
    ended = run("example.com", "--config", config)
    assert ended.returncode == 75
    assert "no host is dialled now, deferred (exit 75)" in ended.stdout
    assert ended.stdout.count("filtered (connect, 6.0s) 3") == 3
    assert "mail is deferred at once (memory.fast_deferral: yes)" in ended.stdout
    with open(config, "a") as file:
        file.write("memory: {fast_deferral: no}\n")
    ended = run("example.com", "--config", config)
    assert ended.returncode == 0
    assert "all are asked again (memory.fast_deferral: no)" in ended.stdout
    assert files(tmp_path) == before


def test_verdict_for_a_nexthop_only_is_said_to_be_so(
    config: str, tmp_path: Path
) -> None:
    closed = failed(verdict=Verdict.CLOSED, phase=Phase.TRANSACTION, waited=0.1)
    key = nexthop_key("example.com:25", Candidate("mx", MX1, 25))
    remember(tmp_path, {key: closed})
    ended = run("example.com", "--json", "--config", config)
    *others, last = json.loads(ended.stdout)["candidates"]
    assert (last["address"], last["nexthop"]) == (MX1, "example.com")
    assert (last["verdict"], last["phase"]) == ("closed", "transaction")
    assert not any("nexthop" in one for one in others)
    ended = run("example.com", "--config", config)
    assert "closed (transaction, 0.1s) for example.com 3" in ended.stdout
    # Another port is another candidate, and another nexthop.
    ended = run("example.com:26", "--json", "--config", config)
    assert "closed" not in ended.stdout


def test_domain_that_took_mail_until_now_is_deferred_as_by_the_pipe(
    config: str, tmp_path: Path
) -> None:
    lookup = Lookup("null.example", "MX", LookupStatus.FOUND)
    track = after_delivery(DomainRecord(), lookup, time.time() - 86400)
    before = remember(tmp_path, {"domain null.example": encode_track(track)})
    ended = run("null.example", "--json", "--config", config)
    said = json.loads(ended.stdout)
    assert (ended.returncode, said["status"]) == (75, "4.1.10")
    assert "it took mail not long ago" in said["text"]
    assert files(tmp_path) == before


def test_records_of_before_are_said_to_be_so_while_dns_fails(
    config: str, tmp_path: Path, name_server: DnsServer
) -> None:
    def mx_fails(server: DnsServer, query: Any) -> bytes:
        if " MX" in str(query):
            return _servfail(query)
        return server.honest(query).to_wire()

    name_server.fault = mx_fails
    records = (MxRecord(10, "mx2.example.com"),)
    lookup = Lookup("example.com", "MX", LookupStatus.FOUND, records)
    track = after_delivery(DomainRecord(), lookup, time.time() - 60)
    remember(tmp_path, {"domain example.com": encode_track(track)})
    ended = run("example.com", "--config", config)
    assert ended.returncode == 0
    assert f"{MX2}:25" in ended.stdout
    assert "remembered: MX of example.com; DNS says: " in ended.stdout


def test_nothing_is_made_where_nothing_is_remembered(
    config: str, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    ended = run("example.com", "--config", config)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not list((tmp_path / "state").iterdir())
    assert "remembered" not in ended.stdout


def test_state_file_that_cannot_be_read_is_said(config: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.sqlite3").write_bytes(b"nonsense" * 2000)
    ended = run("example.com", "--config", config)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("what is remembered cannot be read: ") == 1


def test_slow_host_is_waited_for_and_that_is_said() -> None:
    plan = planned(FakeResolver(**DUAL))  # type: ignore[arg-type]
    records = {plan.candidates[0]: HostRecord(connect_time=0.8)}
    options = MemoryOptions()
    known = advise(plan.candidates, records, {}, 0.0, options)
    foreseen = forecast(plan, known, options)
    assert list(starts(foreseen, Options()).values()) == [0.0, 1.6, 3.1]
    assert (
        "+1.6 s: the same host's other address family, beside one that takes 800 ms to"
        " connect\n"
    ) in shown(foreseen)


def test_all_that_are_due_are_asked_by_one_message() -> None:
    plan = planned(FakeResolver(**DUAL))  # type: ignore[arg-type]
    records = dict.fromkeys(plan.candidates, FAILED)
    for fast, count in ((True, 1), (False, 0)):
        options = MemoryOptions(fast_deferral=fast)
        known = advise(plan.candidates, records, {}, 700.0, options)
        foreseen = forecast(plan, known, options)
        assert foreseen.plan.refusal is None
        assert len(texts(foreseen, "memory", Options(memory=options))) == count


def test_starttls_that_is_left_out_is_shown_with_its_host() -> None:
    plan = planned(FakeResolver(**DUAL))  # type: ignore[arg-type]
    first = plan.candidates[0]
    of_tls = {first: BrokenTls(990.0, "m", is_proven=True)}
    known = advise(plan.candidates, {}, {}, 1000.0, MemoryOptions(), of_tls)
    foreseen = forecast(plan, known, MemoryOptions())
    assert foreseen.known.is_tls_broken(first)
    assert not foreseen.known.is_tls_broken(plan.candidates[1])
    assert "STARTTLS fails, left out for 60m" in shown(foreseen)
    facts = as_json(explained(foreseen))["candidates"]
    assert isinstance(facts, list)
    assert [one.get("starttls") for one in facts][:2] == ["broken", None]


def test_readme_shows_what_is_printed() -> None:
    hosts = ("mx1.example.com", "mx2.example.com", "backup.example.net")
    resolver = FakeResolver(
        mx={"example.com": [(10, hosts[0]), (10, hosts[1]), (20, hosts[2])]},
        a={name: [f"203.0.113.{n}"] for n, name in enumerate(hosts, 1)},
        aaaa={hosts[1]: ["2001:db8::2"]},
    )
    plan = planned(resolver)
    by_address = {one.address: one for one in plan.candidates}
    records = {
        by_address["203.0.113.1"]: FAILED._replace(since=975.0, pause=60.0),
        by_address["203.0.113.2"]: HostRecord(last_ready=860.0),
    }
    options = MemoryOptions()
    known = advise(plan.candidates, records, {}, 1000.0, options)
    said = shown(forecast(plan, known, options), width=106)
    block = "".join(
        f"    {line}\n" if line else "\n"
        for line in said[: said.index("\nWhy")].splitlines()
    )
    assert f"    $ mxpolicy route example.com\n{block}" in README.read_text(), block


def test_better_host_that_cannot_be_looked_up_is_named() -> None:
    resolver = FakeResolver(
        mx={"example.com": [(10, "a.example.com"), (20, "b.example.com")]},
        a={"b.example.com": ["198.51.100.1"]},
        fail={"A a.example.com", "AAAA a.example.com"},
    )
    [text] = texts(planned(resolver), "unresolved")
    assert text.startswith("a.example.com cannot be looked up, and is better")
