from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mxpolicy.errors import LocalTrouble
from mxpolicy.net.dial import ConnectError, _connect, dial
from mxpolicy.net.stream import Stream
from mxpolicy.routing.candidate import Candidate, Verdict

LOOPBACK = pytest.mark.parametrize("address", ["127.0.0.1", "::1"])


def candidate(address: str, port: int) -> Candidate:
    return Candidate("mx.example", address, port)


def listening(address: str = "127.0.0.1", backlog: int = 5) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family, backlog=backlog)
    except OSError:
        pytest.skip(f"no {address} here")


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@LOOPBACK
async def test_a_host_that_listens_is_reached(address: str) -> None:
    with listening(address) as host:
        stream = await dial(candidate(address, host.getsockname()[1]))
        peer, _ = host.accept()
        with peer:
            peer.sendall(b"220 mx.example\r\n")
            assert await stream.read() == b"220 mx.example\r\n"
        stream.close()


async def test_a_host_that_resets_at_once_has_refused() -> None:
    class Reset(socket.socket):
        """Connected, says the kernel, and is not any more when it is asked."""

        def connect_ex(self, address: object) -> int:
            return 0

    with Reset() as sock, pytest.raises(ConnectError) as caught:
        await _connect(Stream(sock), sock, "127.0.0.1", 25)
    assert caught.value.verdict is Verdict.REFUSED


@LOOPBACK
async def test_a_host_that_does_not_listen_has_refused(address: str) -> None:
    with listening(address) as host:
        port = host.getsockname()[1]
    before = open_descriptors()
    with pytest.raises(ConnectError) as caught:
        await dial(candidate(address, port))
    assert caught.value.verdict is Verdict.REFUSED
    assert str(caught.value) == "Connection refused"
    assert open_descriptors() == before


async def test_giving_up_on_a_host_that_does_not_answer_leaves_nothing() -> None:
    # A full backlog: Linux then ignores further SYNs, like a firewall that drops.
    with listening(backlog=0) as host:
        target = candidate(*host.getsockname())
        first = await dial(target)
        before = open_descriptors()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await dial(target)
        assert open_descriptors() == before
        first.close()


async def test_the_source_address_is_used() -> None:
    with listening() as host:
        stream = await dial(candidate(*host.getsockname()), source="127.0.0.5")
        peer, (address, _) = host.accept()
        peer.close()
        stream.close()
    assert address == "127.0.0.5"


async def test_a_source_that_is_not_ours_is_our_trouble() -> None:
    with pytest.raises(LocalTrouble, match="Cannot assign requested"):
        await dial(candidate("127.0.0.1", 9), source="192.0.2.1")


async def test_the_segment_size_holds_for_both_directions() -> None:
    with listening() as host:
        stream = await dial(candidate(*host.getsockname()), mss=536)
        peer, _ = host.accept()
        with peer:
            theirs = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        stream.close()
    assert theirs <= 536


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    lowest_free = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_running_out_of_descriptors_is_our_trouble() -> None:
    with no_descriptor_left(), pytest.raises(LocalTrouble, match="Too many open files"):
        await dial(candidate("127.0.0.1", 9))


@pytest.mark.parametrize("address", ["mx.example", "127.1", "", "::1%lo", "[::1]"])
async def test_what_is_no_address_is_not_looked_up(address: str) -> None:
    with pytest.raises(ConnectError) as caught:
        await dial(candidate(address, 25))
    assert caught.value.verdict is Verdict.NO_ROUTE


# --- what the kernel says when a packet is refused on its way

# Seen so on Linux 6.18: the verdict, or silence, or our own trouble.
WAYS = [
    # the router between us and the host drops or rejects the SYN
    ("dropped", "silence"),
    ("tcp_reset", "refused"),
    # iptables' REJECT sends this one when told nothing else
    ("icmp_port_unreachable", "refused"),
    ("icmp_admin_prohibited", "prohibited"),
    ("icmp_host_prohibited", "prohibited"),
    ("icmp_net_prohibited", "prohibited"),
    ("icmp_host_unreachable", "prohibited"),
    ("icmp_net_unreachable", "prohibited"),
    ("icmp_prot_unreachable", "prohibited"),
    ("icmp6_dropped", "silence"),
    ("icmp6_tcp_reset", "refused"),
    ("icmp6_port_unreachable", "refused"),
    ("icmp6_admin_prohibited", "prohibited"),
    ("icmp6_addr_unreachable", "prohibited"),
    ("icmp6_no_route", "prohibited"),
    ("icmp6_policy_fail", "prohibited"),
    ("icmp6_reject_route", "prohibited"),
    ("router_has_no_route", "prohibited"),
    ("neighbour_does_not_answer_arp", "prohibited"),
    ("neighbour_does_not_answer_nd", "prohibited"),
    # our own firewall, in its output chain
    ("output_dropped", "silence"),
    ("output_tcp_reset", "refused"),
    ("output_icmp_admin_prohibited", "prohibited"),
    ("output_icmp6_admin_prohibited", "prohibited"),
    # our own routing table
    ("no_route", "no_route"),
    ("no_route6", "no_route"),
    ("unreachable_route", "no_route"),
    ("blackhole_route", "no_route"),
    ("prohibit_route", "prohibited"),
    ("ipv6_switched_off", "no_route"),
    # our own ports
    ("ports_exhausted", "LocalTrouble"),
    ("connected_to_itself", "refused"),
]


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    """What each way looks like, from a network namespace made for it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare(1)")
    from tests.lab.packages import LabUnavailable, root_tree

    try:
        tree = root_tree()
    except LabUnavailable as why:
        pytest.skip(str(why))
    script = Path(__file__).with_name("unreachable.py")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, str(script), str(tree)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


@pytest.mark.lab
@pytest.mark.parametrize(
    ("way", "verdict"), [pytest.param(*row, id=row[0]) for row in WAYS]
)
def test_the_kernels_words_become_the_verdict(
    seen: dict[str, str], way: str, verdict: str
) -> None:
    assert seen[way].split(":")[0] == verdict, seen[way]
