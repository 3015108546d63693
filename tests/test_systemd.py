"""contrib/systemd: what systemd thinks of the units, and that they fit the daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from mxpolicy.daemon import RECORDED_WITHIN, STOPS_WITHIN
from mxpolicy.doors import DEFAULT_DIRECTORY, DOORS
from mxpolicy.option_values import parse_duration
from mxpolicy.state.opening import DEFAULT_DIRECTORY as STATE_DIRECTORY
from tests.reference import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

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
