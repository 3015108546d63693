"""``mxpolicy serve`` among clients that never finish, and without descriptors."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.helpers.piping import host
from tests.helpers.serving import TIMEOUT, Runner, Serving, serving
from tests.test_daemon import DUNNO, Lmtp, ask, to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.test_daemon import Make

__all__ = ["host", "serving"]

CROWD = 1000

# What a client says, and then no more.
UNFINISHED = {
    "policy": b"request=smtpd_access_policy\nrecipient=",
    "lmtp": b"LHLO client.example\r\nMAIL FROM:<me@a.example>\r\nRCPT TO:<",
    "pipe": b"m",
}


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """Let this process have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"a process has {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def crowd(daemon: Serving, name: str, count: int) -> Iterator[list[socket.socket]]:
    """Have so many clients that say something and wait."""
    with contextlib.ExitStack() as clients:
        found = []
        for _ in range(count):
            client = clients.enter_context(daemon.connect(name))
            client.sendall(UNFINISHED[name])
            found.append(client)
        yield found


def descriptors_of(daemon: Serving) -> int:
    return len(list(daemon.proc("fd").iterdir()))


def resident(daemon: Serving) -> int:
    """Return the memory that it has, in KiB."""
    fields = dict(
        line.split(":", 1) for line in daemon.proc("status").read_text().splitlines()
    )
    return int(fields["VmRSS"].split()[0])


def wait_until_served(daemon: Serving, count: int) -> None:
    ends = time.monotonic() + TIMEOUT
    while descriptors_of(daemon) < count:
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.mark.parametrize("name", UNFINISHED)
def test_good_clients_are_served_among_a_thousand_that_never_finish(
    serving: Runner, host: Make, name: str
) -> None:
    one = host()
    serving.configure(f"port: {one.nexthop.rpartition(':')[2]}")
    with many_descriptors(), serving.started() as daemon:
        with daemon.connect("policy") as client:
            assert ask(client) == DUNNO
        before, had = resident(daemon), descriptors_of(daemon)
        with crowd(daemon, name, CROWD):
            wait_until_served(daemon, had + CROWD - 1)
            grown = resident(daemon) - before
            print(f"{CROWD} clients of {name}: {grown / CROWD:.1f} KiB each")
            with (
                daemon.connect("policy") as asking,
                daemon.connect("lmtp") as connection,
            ):
                assert ask(asking) == DUNNO
                good = Lmtp(connection)
                good.send(to(one))
                assert good.reply().startswith("250 2.0.0 ")
            # A client that only waits is no cause for tens of MiB.
            assert grown < 64 * CROWD
        assert "Traceback" not in daemon.log()


def test_without_descriptors_it_says_so_once_and_serves_those_it_has(
    serving: Runner,
) -> None:
    # A client takes one, and more are in use than the bound on clients knows of.
    before = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
held = [open("/dev/null") for _ in range(160)]
"""
    with (
        serving.started(before=before) as daemon,
        daemon.connect("policy") as first,
    ):
        assert ask(first) == DUNNO
        with crowd(daemon, "policy", 60) as clients:
            daemon.wait_for_log("clients must wait: Too many open files")
            for _ in range(100):
                assert ask(first) == DUNNO
            # All that wait are served as soon as others have gone.
            for one in clients[:50]:
                one.close()
            clients[-1].sendall(b"a@[192.0.2.1]\n\n")
            assert clients[-1].recv(4096) == DUNNO
        assert daemon.log().count("clients must wait") == 1
        assert daemon.end() == 0
