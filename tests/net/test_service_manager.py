"""What systemd is told, as it hears it."""

from __future__ import annotations

import os
import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from mxpolicy.net.service_manager import ServiceManager, given_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Systemd:
    """The other end of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": address.replace("\0", "@"), "OTHER": "x"}

    def heard(self) -> list[str]:
        """Return the datagrams."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    path = str(tmp_path / "notify")
    one = Systemd(path if request.param == "path" else f"\0mxpolicy-test{path}")
    with one.socket:
        yield one


def test_it_hears_from_the_beginning_to_the_end(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.environ)
    assert systemd.environ == {"OTHER": "x"}
    manager.ready("serving")
    manager.alive("serving")
    manager.alive("serving; 1")
    manager.stopping("ends")
    assert systemd.heard() == [
        "READY=1\nSTATUS=serving",
        "STATUS=serving; 1",
        "STOPPING=1\nSTATUS=ends",
    ]


def test_reload_has_the_time_that_systemd_compares(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.environ)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    [heard] = systemd.heard()
    found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=([0-9]+)", heard)
    assert found is not None
    assert before <= int(found[1]) <= after


def test_status_cannot_bring_in_a_line(systemd: Systemd) -> None:
    ServiceManager(systemd.environ).ready("a\nSTOPPING=1")
    assert systemd.heard() == ["READY=1\nSTATUS=a?STOPPING=1"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({}, None),
    ],
)
def test_watchdog(
    systemd: Systemd, environ: dict[str, str], seconds: float | None
) -> None:
    variables = {**systemd.environ, **environ}
    manager = ServiceManager(variables)
    assert manager.watchdog == seconds
    assert variables == {"OTHER": "x"}
    manager.alive("")
    assert systemd.heard() == ([] if seconds is None else ["WATCHDOG=1"])


@pytest.mark.parametrize("path", ["", "/no/such/socket", "@no such name"])
def test_nobody_listens_and_nothing_is_raised(path: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": path})
    manager.ready("serving")
    manager.stopping("ends")


def test_service_manager_that_does_not_read_delays_nothing(tmp_path: Path) -> None:
    systemd = Systemd(str(tmp_path / "notify"))
    with systemd.socket:
        manager = ServiceManager(systemd.environ)
        for number in range(1000):
            manager.alive(str(number))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "lmtp"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_sockets_for_another_process_are_not_ours(environ: dict[str, str]) -> None:
    assert given_sockets(environ) == []
    assert environ == {}
