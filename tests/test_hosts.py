"""``mxpolicy hosts``: what an operator sees, and what clear takes away."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mxpolicy.config import load
from mxpolicy.delivery.domain_history import DOMAIN
from mxpolicy.delivery.host_memory import (
    HOST,
    NEXTHOP,
    TLS,
    host_key,
    nexthop_key,
    tls_key,
)
from mxpolicy.delivery.leases import LEASED
from mxpolicy.hosts import destinations, main
from mxpolicy.hosts.remembered import Remembered, as_json, clear, read, show
from mxpolicy.options import MemoryOptions
from mxpolicy.routing import broken_tls
from mxpolicy.routing.broken_tls import BrokenTls
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.domain_record import DomainRecord
from mxpolicy.routing.domain_record import encode as encode_domain
from mxpolicy.routing.host_record import HostRecord, encode
from mxpolicy.routing.mx import MxRecord
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.sqlite import SqliteStore
from mxpolicy.terminal import Terminal

if TYPE_CHECKING:
    from mxpolicy.state.store import Store

README = Path(__file__).parents[1] / "README.md"

NOW = 1_800_000_000.0
OPTIONS = MemoryOptions()

RECORDS = {
    f"{HOST}direct 192.0.2.1 25": HostRecord(
        Verdict.FILTERED,
        Phase.CONNECT,
        True,
        NOW - 20,
        60.0,
        6.0,
        name="mx1.example.com",
    ),
    f"{HOST}direct 2001:db8::2 25": HostRecord(
        connect_time=0.012,
        greeting_latency=6.1,
        last_ready=NOW - 7200,
        small_segments=NOW - 5,
        name="mx2.example.com",
    ),
    f"{NEXTHOP}example.org, [192.0.2.9]:25 {HOST}direct 192.0.2.1 25": HostRecord(
        Verdict.CLOSED, Phase.TRANSACTION, True, NOW - 300, 60.0, 0.1, said="\x1b[31m"
    ),
    f"{HOST}direct nonsense": HostRecord(),
}
BROKEN_TLS = {
    f"{TLS}mx3.example.com {HOST}direct 192.0.2.3 25": BrokenTls(NOW - 5, "a", True),
    f"{TLS}mx4.example.com {HOST}direct 192.0.2.3 25": BrokenTls(NOW - 5, "a"),
}


async def filled(store: Store) -> Store:
    for key, record in RECORDS.items():
        await store.put(key, encode(record), NOW + 1e9)
        await store.put(LEASED + key, b"1", NOW + 1e9)
    for key, known in BROKEN_TLS.items():
        await store.put(key, broken_tls.encode(known), NOW + 1e9)
        await store.put(LEASED + key, b"1", NOW + 1e9)
    return store


def shown() -> str:
    stream = io.StringIO()
    found = asyncio.run(_found())
    show(found, NOW, OPTIONS, Terminal(stream, {}))
    return stream.getvalue()


async def _found() -> dict[str, Remembered]:
    return await read(await filled(MemoryStore(lambda: NOW)))


def test_table_says_what_is_known_and_what_follows() -> None:
    lines = shown().splitlines()
    assert lines[0] == "5 remembered, 2 of them as failing"
    assert "mx1.example.com  192.0.2.1:25" in lines[2]
    assert "filtered (connect, 6.0s) 20s ago; asked last for 40s" in lines[2]
    assert "closed (transaction, 0.1s) for example.org, [192.0.2.9]:25" in lines[3]
    assert "too long ago to matter" in lines[3]
    assert "12 ms" in lines[4]
    assert "6100 ms" in lines[4]
    assert "ready 2h ago; needs small segments" in lines[4]
    assert "mx3.example.com  192.0.2.3:25" in lines[5]
    assert "STARTTLS fails, left out for 60m" in lines[5]
    assert "mx4.example.com  192.0.2.3:25" in lines[6]
    assert "STARTTLS failed 5s ago, tried again" in lines[6]
    assert "\x1b" not in shown()


async def test_readme_shows_what_is_printed() -> None:
    store = MemoryStore(lambda: NOW)
    mx1, mx2, backup = (
        Candidate(host, f"203.0.113.{n}", 25)
        for n, host in enumerate(
            ("mx1.example.com", "mx2.example.com", "backup.example.net"), 1
        )
    )
    failed = HostRecord(
        *(Verdict.FILTERED, Phase.CONNECT, True),
        *(NOW - 25, 60.0, 6.0),
        name=mx1.host,
    )
    slow = HostRecord(
        connect_time=0.012,
        greeting_latency=6.1,
        last_ready=NOW - 120,
        small_segments=NOW - 3600,
        name=mx2.host,
    )
    closed = HostRecord(
        *(Verdict.CLOSED, Phase.TRANSACTION, True),
        *(NOW - 300, 240.0, 0.1),
        name=backup.host,
        said="421 4.3.0 come back later",
    )
    await store.put(host_key(mx1), encode(failed), NOW + 1)
    await store.put(host_key(mx2), encode(slow), NOW + 1)
    key = nexthop_key("example.org:25", backup)
    await store.put(key, encode(closed), NOW + 1)
    of_tls = broken_tls.encode(BrokenTls(NOW - 240, "a", True))
    await store.put(tls_key(backup), of_tls, NOW + 1)
    stream = io.StringIO()
    terminal = Terminal(stream, {})
    terminal.width = 110
    show(await read(store), NOW, OPTIONS, terminal)
    block = "".join(f"    {line}\n" for line in stream.getvalue().splitlines())
    assert f"    $ mxpolicy hosts\n{block}" in README.read_text(), block


DOMAINS = {
    "example.com": DomainRecord(
        NOW - 7200,
        seen=NOW - 7200,
        exchanges=(MxRecord(20, "MX2.example.com"), MxRecord(10, "mx1.example.com")),
    ),
    "example.net": DomainRecord(NOW - 60, missing=NOW - 30),
}


async def by_destination() -> list[destinations.Destination]:
    store = await filled(MemoryStore(lambda: NOW))
    for name, record in DOMAINS.items():
        await store.put(f"{DOMAIN}{name}", encode_domain(record), NOW + 1e9)
    return destinations.sort_out(await read(store), await destinations.read(store))


async def test_destinations_have_their_hosts_those_that_fail_first() -> None:
    stream = io.StringIO()
    found = await by_destination()
    destinations.show(found, NOW, OPTIONS, Terminal(stream, {}))
    text = stream.getvalue()
    titles = [one.splitlines()[0] for one in text.split("\n\n")]
    assert titles == [
        "example.com: took mail 2h ago",
        "example.org, [192.0.2.9]:25",
        "example.net: took mail 60s ago, missing in DNS for 30s",
        "of no destination that is remembered",
    ]
    first, second = text.splitlines()[1:3]
    assert first.split()[:3] == ["10", "mx1.example.com", "192.0.2.1:25"]
    assert "asked last for 40s" in first
    assert second.split()[:2] == ["20", "mx2.example.com"]
    assert "  -  example.net  -  nothing is remembered of it\n" in text
    # Every host that `hosts` shows is there once.
    known = [entry.known for one in found for entry in one.entries if entry.known]
    assert sorted(map(repr, known)) == sorted(map(repr, (await _found()).values()))


async def test_destinations_as_json() -> None:
    text = json.dumps(destinations.as_json(await by_destination(), NOW, OPTIONS))
    first, *_, last = json.loads(text)["destinations"]
    assert first["destination"] == "example.com"
    assert first["taken"] == "2027-01-15T06:00:00+00:00"
    assert [one["preference"] for one in first["hosts"]] == [10, 20]
    assert first["hosts"][0]["known"]["verdict"] == "filtered"
    assert last["destination"] is None


def test_no_destination_is_said_to_be_so() -> None:
    stream = io.StringIO()
    destinations.show([], NOW, OPTIONS, Terminal(stream, {}))
    assert stream.getvalue() == "Nothing is remembered.\n"


def test_empty_memory_is_said_to_be_so() -> None:
    stream = io.StringIO()
    show({}, NOW, OPTIONS, Terminal(stream, {}))
    assert stream.getvalue() == "Nothing is remembered.\n"


def test_json_has_the_shape_of_route() -> None:
    found = asyncio.run(_found())
    facts = json.loads(json.dumps(as_json(found, NOW, OPTIONS)))
    assert facts["schema"] == 1
    first, second, third, fourth, fifth = facts["candidates"]
    assert first == {
        "egress": "direct",
        "host": "mx1.example.com",
        "address": "192.0.2.1",
        "port": 25,
        "verdict": "filtered",
        "phase": "connect",
        "full": True,
        "since": "2027-01-15T07:59:40+00:00",
        "until": "2027-01-15T08:00:40+00:00",
        "standing": "paused",
    }
    assert (fourth["host"], fourth["starttls"]) == ("mx3.example.com", "broken")
    assert (fifth["host"], fifth["starttls"]) == ("mx4.example.com", "failed")
    assert "verdict" not in second
    assert third["nexthop"] == "example.org, [192.0.2.9]:25"


@pytest.mark.parametrize(
    ("name", "left"),
    [
        (None, 0),
        ("mx1.example.com", 4),
        ("MX1.example.com.", 4),
        ("mx3.example.com", 4),
        ("192.0.2.1", 3),
        ("192.0.2.1:25", 3),
        ("192.0.2.3", 3),
        ("[2001:db8::2]:25", 4),
        ("example.org, [192.0.2.9]:25", 4),
        ("nobody", 5),
        ("", 5),
    ],
)
def test_clear_takes_what_was_named(name: str | None, left: int) -> None:
    async def work() -> None:
        store = await filled(MemoryStore(lambda: NOW))
        assert await clear(store, name) == 5 - left
        found = await read(store)
        assert len(found) == left
        leases = {row.key.removeprefix(LEASED) for row in await store.scan(LEASED)}
        assert leases >= found.keys()
        assert len(leases) == left + 1

    asyncio.run(work())


@pytest.mark.parametrize("name", ["example.org", "Example.ORG.", "example.org:smtp"])
async def test_clear_takes_a_nexthop_in_any_spelling(name: str) -> None:
    store = MemoryStore(lambda: NOW)
    key = nexthop_key("example.org:25", Candidate("mx", "192.0.2.1", 25))
    await store.put(key, encode(HostRecord()), NOW + 1e9)
    assert await clear(store, "[example.org]") == 0
    assert await clear(store, name) == 1


# --- the command


def run(state: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mxpolicy", "hosts", "--config", "/dev/null", *argv],
        env={"STATE_DIRECTORY": str(state), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_shows_and_clears_the_state_file(tmp_path: Path) -> None:
    async def fill() -> None:
        store = SqliteStore(str(tmp_path / "state.sqlite3"))
        record = HostRecord(Verdict.REFUSED, full=True, since=time.time(), pause=60.0)
        await store.put(f"{HOST}direct 192.0.2.1 25", encode(record), time.time() + 60)
        await store.close()

    asyncio.run(fill())
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "refused (connect" in done.stdout
    assert json.loads(run(tmp_path, "--json").stdout)["candidates"][0]["port"] == 25
    sorted_out = run(tmp_path, "--by-destination").stdout
    assert sorted_out.startswith("of no destination that is remembered\n")
    assert "refused (connect" in sorted_out
    absent = run(tmp_path, "clear", "192.0.2.2")
    assert (absent.returncode, absent.stdout) == (0, "0 forgotten\n")
    assert run(tmp_path, "clear", "192.0.2.1").stdout == "1 forgotten\n"
    assert run(tmp_path).stdout == "Nothing is remembered.\n"
    assert run(tmp_path, "clear").returncode == 0
    assert run(tmp_path, "nonsense").returncode == 2


def test_command_never_makes_the_state_file(tmp_path: Path) -> None:
    assert run(tmp_path).stdout == "Nothing is remembered.\n"
    cleared = run(tmp_path, "clear")
    assert (cleared.returncode, cleared.stderr) == (0, "")
    assert cleared.stdout == "Nothing is remembered.\n"
    assert run(tmp_path, "clear", "192.0.2.1").returncode == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", [["show"], ["clear"]])
def test_command_says_that_it_may_not_look(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = tmp_path / "state"
    state.mkdir(0)
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    load("/dev/null", {})  # imports what another user might not read
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        status = main([*command, "--config", "/dev/null"])
    finally:
        os.seteuid(user)
        state.chmod(0o700)
    said = capsys.readouterr()
    assert (status, said.out) == (1, "")
    assert said.err.startswith(f"mxpolicy: {state}/")
    assert "cannot be read: Permission denied" in said.err


def test_command_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite3").write_bytes(b"no database" * 1000)
    done = run(tmp_path)
    assert done.returncode == 1
    assert "not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_shows_files_of_any_owner_and_none_that_acts(tmp_path: Path) -> None:
    file = tmp_path / "state.sqlite3"

    async def fill() -> None:
        store = SqliteStore(str(file))
        record = HostRecord(Verdict.REFUSED, full=True, since=time.time(), pause=60.0)
        await store.put(f"{HOST}direct 192.0.2.1 25", encode(record), time.time() + 60)
        await store.close()

    asyncio.run(fill())
    if os.geteuid() == 0:
        for one in (tmp_path, file):
            os.chown(one, 54321, 54322)
    before = {one.name: one.stat() for one in tmp_path.iterdir()}
    assert "192.0.2.1:25" in run(tmp_path).stdout
    after = {one.name: one.stat() for one in tmp_path.iterdir()}
    assert {name: (one.st_uid, one.st_mtime) for name, one in after.items()} == {
        name: (one.st_uid, one.st_mtime) for name, one in before.items()
    }
    assert run(tmp_path, "clear").stdout == "1 forgotten\n"
    assert {one.stat().st_uid for one in tmp_path.iterdir()} == {
        before[file.name].st_uid
    }
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TRIGGER t AFTER DELETE ON rows BEGIN SELECT 1; END")
    for command in ([], ["clear"]):
        done = run(tmp_path, *command)
        assert done.returncode == 1
        assert f"{file} has a trigger" in done.stderr
