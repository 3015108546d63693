"""contrib/systemd: what systemd thinks of the units, and that they fit the daemon."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from ctypes.util import find_library
from typing import TYPE_CHECKING

import pytest

from mxpolicy.daemon import RECORDED_WITHIN, STOPS_WITHIN
from mxpolicy.doors import DEFAULT_DIRECTORY, DOORS
from mxpolicy.option_values import parse_duration
from mxpolicy.state.opening import DEFAULT_DIRECTORY as STATE_DIRECTORY
from tests.helpers.handing_over import Command, command
from tests.helpers.piping import MESSAGE, host
from tests.helpers.serving import TIMEOUT, Runner, serving
from tests.reference import CHECKOUT
from tests.test_daemon import DUNNO, Lmtp, Make, ask, free_port, to

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["command", "host", "serving"]

UNITS = CHECKOUT / "contrib" / "systemd"
SERVICE = UNITS / "mxpolicy.service"
SOCKETS = sorted(UNITS.glob("*.socket"))

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here"
)


def settings(path: Path) -> dict[str, list[str]]:
    """Return what a unit says, without comments: key -> its values."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@needs_systemd_analyze
def test_systemd_finds_no_fault_with_the_units(tmp_path: Path) -> None:
    """Only the command is another one: it need not be installed here."""
    for one in (SERVICE, *SOCKETS):
        text = one.read_text().replace("/opt/mxpolicy/bin/mxpolicy", "/bin/sh")
        (tmp_path / one.name).write_text(text)
    names = [tmp_path / one.name for one in (SERVICE, *SOCKETS)]
    done = subprocess.run(
        ["systemd-analyze", "verify", *names],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "mxpolicy" in line]
    assert ours == []


@needs_systemd_analyze
def test_service_may_do_little_to_the_machine() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(SERVICE)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(
        r"Overall exposure level for mxpolicy\.service: ([0-9.]+)", done.stdout
    )
    assert found is not None, done.stderr
    assert float(found[1]) <= 2.0


def test_each_door_has_a_socket_of_its_name() -> None:
    assert {one.name for one in SOCKETS} == {
        f"mxpolicy-{name}.socket" for name in DOORS
    }
    for one in SOCKETS:
        unit = settings(one)
        name = one.stem.removeprefix("mxpolicy-")
        assert unit["FileDescriptorName"] == [name]
        assert unit["ListenStream"] == [f"{DEFAULT_DIRECTORY}/{name}"]
        assert unit["Service"] == [SERVICE.name]
        assert unit["SocketMode"] == ["0660"]
        assert one.name in settings(SERVICE)["Wants"][0].split()


def test_service_leaves_time_for_a_dot_that_is_out() -> None:
    unit = settings(SERVICE)
    [stops] = unit["TimeoutStopSec"]
    assert parse_duration(stops) > STOPS_WITHIN + RECORDED_WITHIN + 10
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]
    assert f"/run/{unit['RuntimeDirectory'][0]}" == DEFAULT_DIRECTORY
    assert f"/var/lib/{unit['StateDirectory'][0]}" == STATE_DIRECTORY


def test_type_of_systemd_253_is_only_in_the_file_for_it() -> None:
    assert settings(SERVICE)["Type"] == ["notify"]
    assert settings(UNITS / "reload.conf") == {
        "Type": ["notify-reload"],
        "ExecReload": [""],
    }


def calls_of(words: Sequence[str]) -> set[str]:
    """Return the system calls in *words*, which may name systemd's sets of them."""
    found = set(words)
    while names := {one for one in found if one.startswith("@")}:
        listed = ["systemd-analyze", "syscall-filter", *names]
        done = subprocess.run(listed, check=True, capture_output=True, text=True)
        lines = [line.strip() for line in done.stdout.splitlines() if line[:1] == " "]
        found = (found - names) | {line for line in lines if line[:1] != "#"}
    return found


def allowed_calls() -> list[str]:
    """Return the system calls that the unit allows: later lines change earlier ones."""
    found = calls_of(["@default"])
    for line in settings(SERVICE)["SystemCallFilter"]:
        named = calls_of(line.removeprefix("~").split())
        found = found - named if line.startswith("~") else found | named
    return sorted(found)


@needs_systemd_analyze
def test_daemon_needs_no_system_call_that_the_service_may_not(
    serving: Runner, host: Make, command: Command
) -> None:
    """One that it tries all the same ends it here; systemd's filter refuses it."""
    if find_library("seccomp") is None:
        pytest.skip("there is no libseccomp here")
    before = f"""
import ctypes
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
kill, allow = 0x80000000, 0x7FFF0000
rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(kill)))
for name in {allowed_calls()}:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert library.seccomp_rule_add(rules, allow, number, 0) == 0
assert library.seccomp_load(rules) == 0
"""
    one = host()
    port = f"port: {one.nexthop.rpartition(':')[2]}"
    at_port = free_port()
    at = f"[unix, '[::1]:{at_port}']"
    doors = f"listen: {{lmtp: {{at: {at}, allow: ['::1']}}, policy: {{group: root}}}}"
    serving.configure(port, doors)
    with serving.started(before=before) as daemon:
        assert "Seccomp:\t2" in daemon.proc("status").read_text()
        tcp = socket.create_connection(("::1", at_port), TIMEOUT)
        with tcp, daemon.connect("lmtp") as connection:
            for number, each in enumerate((tcp, connection)):
                client = Lmtp(each)
                client.send(f"{number}{to(one)}")
                assert client.reply().startswith("250 2.0.0 ")
        with daemon.connect("policy") as asking:
            daemon.reload()
            assert ask(asking) == DUNNO
        for message in (MESSAGE, b"x" * 2_000_000):
            argv = command.argv(daemon.run / "pipe", one.nexthop)
            assert command.run(argv, message).status == 0
        assert daemon.log().count("QID: to=<") == 2
        assert daemon.end() == 0
