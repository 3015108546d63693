"""``mxpolicy check`` as an operator runs it: bounded in time, safe on a terminal."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mxpolicy import check
from mxpolicy.check import configuration
from mxpolicy.check.access import Account
from mxpolicy.check.our_name import look_at_our_name
from mxpolicy.check.report import Level
from mxpolicy.check.surroundings import over_bound, takes_no_row
from mxpolicy.net.resolv_conf import read_resolv_conf
from mxpolicy.options import Options, ResolverOptions
from mxpolicy.state.opening import open_store
from tests.helpers.dns_server import dns_server

CHECKOUT = Path(__file__).parents[2]
# As the zone file spells ESC ] 0 ; x BEL and ESC [ 2 J, in a label.
HOSTILE = r"a\027[2J\027]0\;x\007.example."

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def name_server() -> Iterator[str]:
    """A name server in a thread of its own; its address."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    end = asyncio.Event()
    seen: list[str] = []

    async def serve() -> None:
        records = (
            "mail.example.net. 300 A 192.0.2.25",
            f"25.2.0.192.in-addr.arpa. 300 PTR {HOSTILE}",
            f"evil.example. 300 MX 10 {HOSTILE}",
            f"{HOSTILE} 300 A 198.51.100.1",
        )
        async with dns_server(*records) as server:
            seen.append(server.text)
            ready.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield seen[0]
    loop.call_soon_threadsafe(end.set)
    thread.join()
    loop.close()


@pytest.fixture
def run(tmp_path: Path, name_server: str) -> Run:
    """Runs mxpolicy with that name server, and with *postconf* as Postfix's, if any."""

    def run(
        *argv: str, postconf: str = "exit 1", yaml: str = ""
    ) -> subprocess.CompletedProcess[str]:
        program(tmp_path, postconf)
        file = tmp_path / "mxpolicy.yaml"
        file.write_text(
            yaml
            or "helo: mail.example.net\nown_addresses: [192.0.2.25]\n"
            f"resolver: {{servers: ['{name_server}']}}\n"
            f"state: {tmp_path / 'state'}\nlog: {{to: {tmp_path / 'log'}}}\n"
        )
        return subprocess.run(
            [sys.executable, "-m", "mxpolicy", *argv, "--config", str(file)],
            capture_output=True,
            text=True,
            cwd=CHECKOUT,
            env={
                **os.environ,
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "RUNTIME_DIRECTORY": str(tmp_path),
            },
            timeout=60,
            check=False,
        )

    return run


def program(directory: Path, text: str) -> None:
    file = directory / "postconf"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_wrong_configuration_fails_with_its_place(run: Run) -> None:
    ended = run("check", yaml="helo: [\n")
    assert ended.returncode == 1
    assert "mxpolicy.yaml:2:1" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_stranger_is_told_that_nothing_was_checked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "mxpolicy.yaml").touch(0o600)
        os.seteuid(54321)
        try:
            status = check.main(["--config", f"{made}/mxpolicy.yaml"])
        finally:
            os.seteuid(0)
    assert status == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing was checked: 54321 is not root, and /" in said
    assert "Permission denied" in said
    assert "deferred" not in said


def test_what_fails_is_to_be_done_first(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o777)
    (tmp_path / "state").chmod(0o777)
    said = json.loads(run("check", "--json").stdout)
    first = said["first"]
    assert first in said["items"]
    assert (first["level"], first["about"]) == ("fail", "this machine")
    assert first["mend"].startswith("chmod o-w ")
    lines = run("check").stdout.splitlines()
    [place] = [n for n, one in enumerate(lines) if one.startswith("First (this")]
    assert lines[place + 1].strip() == first["mend"]
    assert " fail, " in lines[-1]


def test_line_that_mends_has_a_place(
    run: Run, name_server: str, tmp_path: Path
) -> None:
    yaml = (
        f"deadline: 1m\nresolver: {{servers: ['{name_server}']}}\n"
        f"state: {tmp_path / 'state'}\nlog: {{to: {tmp_path / 'log'}}}\n"
    )
    lines = run("check", yaml=yaml).stdout.splitlines()
    assert "        deadline: 15m" in lines
    assert f"Lines with `name: value` belong into {tmp_path}/mxpolicy.yaml" in lines


def test_postfix_that_refuses_to_say_is_not_called_well(run: Run) -> None:
    ended = run("check", "--json", postconf="echo main.cf: nobody may >&2; exit 1")
    items = json.loads(ended.stdout)["items"]
    [item] = [one for one in items if one["about"] == "Postfix"]
    assert item["level"] == "warn"
    # Root is not told to be root.
    mend = "; try as root" if os.geteuid() else ""
    assert item["text"] == f"could not be seen: main.cf: nobody may{mend}"


def test_garbage_from_postfix_is_neither_believed_nor_shown_raw(run: Run) -> None:
    ended = run(
        "check", postconf=r"printf '\033[31mx\000\377 a b c d e f pipe g=\nm\n'"
    )
    assert ended.stderr == ""
    assert is_plain(ended.stdout)
    assert "service of it runs mxpolicy" in ended.stdout


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        pytest.param(["check"], "2J", id="pointer"),  # there, without its teeth
        # No name of a host, and so not even shown.
        pytest.param(["route", "evil.example"], "names a host", id="mx"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_names_in_dns_do_nothing_to_a_terminal(
    run: Run, command: list[str], shown: str, more: list[str]
) -> None:
    ended = run(*command, *more)
    assert ended.stderr == ""
    assert is_plain(ended.stdout)
    assert shown in ended.stdout
    if more:
        said: dict[str, Any] = json.loads(ended.stdout)
        assert said["schema"] == 1
        assert is_plain(json.dumps(said, ensure_ascii=False))


def is_plain(text: str) -> bool:
    return all(one == "\n" or " " <= one <= "~" for one in text)


async def test_pointer_that_does_not_resolve_back_is_told_with_its_record() -> None:
    async with dns_server(
        "mail.example.net. 300 A 192.0.2.25",
        "25.2.0.192.in-addr.arpa. 300 PTR other.example.net.",
    ) as server:
        options = Options(
            helo="mail.example.net",
            own_addresses=("192.0.2.25",),
            resolver=ResolverOptions(servers=(server.text,)),
        )
        items = await look_at_our_name(options, read_resolv_conf())
    [item] = [one for one in items if one.text.startswith("the PTR of 192.0.2.25")]
    assert item.level is Level.WARN
    assert "other.example.net, which does not resolve to it" in item.text
    assert item.mend == "25.2.0.192.in-addr.arpa. PTR mail.example.net."


@pytest.mark.parametrize(("deadline", "level"), [(899.0, "fail"), (900.0, None)])
def test_deadline_too_short_to_wait_for_a_slow_host_fails(
    deadline: float, level: str | None
) -> None:
    items = configuration.look("/nowhere", Options(deadline=deadline), {})
    about = [one.level.value for one in items if "deadline" in one.text]
    assert about == ([level] if level else [])


@pytest.mark.parametrize(
    "how", ["directory", "link", "trigger", "nonsense", "later", "inside"]
)
def test_state_that_a_delivery_would_not_use_fails_with_what_mends_it(
    run: Run, tmp_path: Path, name_server: str, how: str
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o750)
    yaml = (
        "helo: mail.example.net\nown_addresses: [192.0.2.25]\n"
        f"resolver: {{servers: ['{name_server}']}}\n"
        f"state: {state}\nlog: {{to: {tmp_path}/log}}\n"
    )
    told: list[str] = []

    async def deliver() -> None:
        store = open_store(str(state / "state.sqlite3"), told.append)
        await store.put("journal/a", b"1", time.time() + 60)
        await store.close()

    asyncio.run(deliver())
    assert about_state(run, yaml)["level"] != "fail"
    journal = state / "journal.sqlite3"
    match how:
        case "directory":
            state.chmod(0o777)
        case "link":
            journal.rename(tmp_path / "elsewhere")
            journal.symlink_to(tmp_path / "elsewhere")
        case "trigger":
            with closing(sqlite3.connect(journal)) as db:
                db.execute("CREATE TRIGGER t AFTER INSERT ON rows BEGIN SELECT 1; END")
        case "later":
            with closing(sqlite3.connect(journal)) as db:
                db.execute("PRAGMA user_version = 999")
        case "nonsense":
            journal.write_bytes(b"nonsense" * 1000)
        case _:
            with closing(sqlite3.connect(journal)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with journal.open("r+b") as file:
                # The page of the rows; the first one, with the schema, is as it was.
                file.seek(4096)
                file.write(b"nonsense" * 512)
    before = sorted((one.name, one.lstat().st_uid) for one in state.iterdir())
    item = about_state(run, yaml)
    assert item["level"] == "fail"
    assert sorted((one.name, one.lstat().st_uid) for one in state.iterdir()) == before
    asyncio.run(deliver())
    if how == "inside":
        assert "journal.sqlite3: " in item["text"]
        subprocess.run(item["mend"], shell=True, check=True)
        assert about_state(run, yaml)["level"] != "fail"
        return
    [line] = told
    reason = item["text"].removeprefix(
        "nothing is remembered, and there is no journal: "
    )
    assert reason in line
    assert str(state) in reason
    if how != "nonsense":
        assert line.endswith(f"(mend it: {item['mend']})")
    subprocess.run(item["mend"], shell=True, check=True)
    assert about_state(run, yaml)["level"] != "fail"


def about_state(run: Run, yaml: str) -> dict[str, str]:
    items = json.loads(run("check", "--json", yaml=yaml).stdout)["items"]
    here = [one for one in items if one["about"] == "this machine"]
    here = [one for one in here if not one["text"].startswith("the log")]
    [item] = [one for one in here if "state" in one["text"]]
    assert isinstance(item, dict)
    return item


def test_file_that_has_outgrown_its_bound_is_told(tmp_path: Path) -> None:
    file = tmp_path / "state.sqlite3"
    assert over_bound(str(file), 1 << 20) is None
    file.touch()
    os.truncate(file, 2 << 20)
    assert over_bound(str(file), 1 << 20) is None
    (tmp_path / "state.sqlite3-wal").touch()
    os.truncate(tmp_path / "state.sqlite3-wal", (3 << 20))
    item = over_bound(str(file), 1 << 20)
    assert item is not None
    assert "has 3 MiB, and never grows beyond 1 MiB" in item.text
    subprocess.run(item.mend, shell=True, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["state.sqlite3", "journal.sqlite3"])
def test_state_file_that_may_not_be_written_is_unused(name: str) -> None:
    me = Account("me", os.geteuid() or 54321, frozenset())
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        directory.chmod(0o755)
        (directory / name).touch(0o400)
        os.chown(directory / name, me.uid, -1)
        asked = str(directory / "state.sqlite3"), me, os.statvfs(directory)
        assert takes_no_row(*asked) == f"me has no permission for {directory / name}"
        (directory / name).chmod(0o600)
        assert takes_no_row(*asked) == ""


@pytest.mark.parametrize(
    ("free", "flags", "why"),
    [(0, 0, "full"), (9, os.ST_RDONLY, "read-only"), (9, 0, "")],
)
def test_file_system_that_takes_no_state_is_told(
    tmp_path: Path, free: int, flags: int, why: str
) -> None:
    system = os.statvfs_result((4096, 4096, 90, free, free, 9, 9, 9, flags, 255))
    who = Account("root", 0, frozenset())
    assert takes_no_row(str(tmp_path / "state.sqlite3"), who, system).endswith(why)
