"""The lab itself: it is what it says, and the machine does not notice it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .packages import CHECKOUT, LabUnavailable
from .world import Namespace, World

pytestmark = pytest.mark.lab

# Says the outer pid of process 1, then waits for whatever ends it.
HOLD_A_WORLD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup(1) ignores it
from tests.lab.world import World
with World() as world:
    world.start("net", ["sleep", "600"])
    print(world.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Bare namespaces, no servers."""
    try:
        world = World()
    except LabUnavailable as why:
        pytest.skip(str(why))
    with world:
        yield world


def output(world: World, namespace: Namespace, *argv: str) -> str:
    """Run a command in the lab; return what it printed."""
    return world.run(namespace, argv).stdout.decode()


def surroundings() -> str:
    """Return what a lab must not change on the machine."""
    links = sorted(os.listdir("/sys/class/net"))
    mounts = Path("/proc/self/mounts").read_bytes()
    namespaces = list(Path("/run/netns").glob("*"))
    users = Path("/etc/passwd").read_bytes()
    return repr((links, mounts, namespaces, users))


@pytest.mark.parametrize(
    "ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name
)
@pytest.mark.usefixtures("world")
def test_lab_vanishes_with_the_run(ending: signal.Signals) -> None:
    before = surroundings()
    command = [sys.executable, "-c", HOLD_A_WORLD]
    with subprocess.Popen(
        command,
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as run:
        assert run.stdout is not None
        first = int(run.stdout.readline())
        assert process_exists(first)
        run.send_signal(ending)
        run.wait(timeout=20)
    until = time.monotonic() + 10
    while process_exists(first) and time.monotonic() < until:
        time.sleep(0.05)
    assert not process_exists(first)
    assert surroundings() == before


def process_exists(pid: int) -> bool:
    """Tell whether a process is there and not merely waiting to be reaped."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_two_labs_do_not_meet(world: World) -> None:
    with World() as other:
        other.path("/etc/postfix/of-the-other").touch()
        assert not world.path("/etc/postfix/of-the-other").exists()
        assert output(other, "net", "ip", "-4", "-o", "addr") != ""


@pytest.mark.parametrize(
    ("namespace", "link"),
    [("mta", "eth0"), ("fw", "in0"), ("fw", "out0"), ("net", "eth0")],
)
def test_segments_are_on_the_wire_as_they_were_sent(
    world: World, namespace: Namespace, link: str
) -> None:
    features = output(world, namespace, "ethtool", "-k", link)
    for name in ("tcp-segmentation", "generic-segmentation", "generic-receive"):
        assert re.search(rf"^{name}-offload: off", features, re.M), name


def test_there_is_no_way_out_of_the_lab(world: World) -> None:
    # Whatever the other two do not know goes to the firewall, and it knows no more.
    for address in ("8.8.8.8", "10.0.0.1", "2001:db8:ffff::1"):
        done = world.run("fw", ["ip", "route", "get", address], check=False)
        assert b"unreachable" in done.stderr


def test_unprivileged_user_can_run_the_python_of_the_tests(world: World) -> None:
    program = "import ssl, sqlite3, asyncio, os; print(os.getuid())"
    done = world.run("mta", [sys.executable, "-c", program], user="mxpolicy")
    assert int(done.stdout) not in (0, os.getuid())


def test_syslog_of_the_lab_is_not_the_machines(world: World) -> None:
    world.run("mta", ["logger", "-p", "mail.info", "mark-of-the-lab"])
    until = time.monotonic() + 5
    log = world.path("/var/log/syslog")
    while "mark-of-the-lab" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert "mark-of-the-lab" in log.read_text()
