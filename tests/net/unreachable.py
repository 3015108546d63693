"""Every way in which a connection can fail, provoked for real; for `test_dial`.

Runs as root in a network namespace of its own (``unshare -n``), makes a second one as
the router, dials each case and prints ``{case: "verdict: reason"}`` as JSON. The one
argument is the tree with iproute2 and nftables. With both namespaces everything goes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from mxpolicy.errors import LocalTrouble
from mxpolicy.net.dial import ConnectError, dial
from mxpolicy.routing.candidate import Candidate

# Linux sends a second SYN after one second and asks for a neighbour three times.
LONG_ENOUGH = 5.0

REJECTED = {
    "dropped": ("10.8.0.1", "drop"),
    "tcp_reset": ("10.8.0.2", "reject with tcp reset"),
    "icmp_port_unreachable": ("10.8.0.3", "reject with icmp type port-unreachable"),
    "icmp_admin_prohibited": ("10.8.0.4", "reject with icmp type admin-prohibited"),
    "icmp_host_prohibited": ("10.8.0.5", "reject with icmp type host-prohibited"),
    "icmp_net_prohibited": ("10.8.0.6", "reject with icmp type net-prohibited"),
    "icmp_host_unreachable": ("10.8.0.7", "reject with icmp type host-unreachable"),
    "icmp_net_unreachable": ("10.8.0.8", "reject with icmp type net-unreachable"),
    "icmp_prot_unreachable": ("10.8.0.9", "reject with icmp type prot-unreachable"),
    "icmp6_dropped": ("fd08::1", "drop"),
    "icmp6_tcp_reset": ("fd08::2", "reject with tcp reset"),
    "icmp6_port_unreachable": ("fd08::3", "reject with icmpv6 type port-unreachable"),
    "icmp6_admin_prohibited": ("fd08::4", "reject with icmpv6 type admin-prohibited"),
    "icmp6_addr_unreachable": ("fd08::5", "reject with icmpv6 type addr-unreachable"),
    "icmp6_no_route": ("fd08::6", "reject with icmpv6 type no-route"),
    "icmp6_policy_fail": ("fd08::7", "reject with icmpv6 type policy-fail"),
    "icmp6_reject_route": ("fd08::8", "reject with icmpv6 type reject-route"),
}

REJECTED_HERE = {
    "output_dropped": ("10.8.1.1", "drop"),
    "output_tcp_reset": ("10.8.1.2", "reject with tcp reset"),
    "output_icmp_admin_prohibited": (
        "10.8.1.3",
        "reject with icmp type admin-prohibited",
    ),
    "output_icmp6_admin_prohibited": (
        "fd08::101",
        "reject with icmpv6 type admin-prohibited",
    ),
}

ROUTED = {
    "router_has_no_route": "10.8.2.1",
    "neighbour_does_not_answer_arp": "10.9.0.77",
    "neighbour_does_not_answer_nd": "fd09::77",
    "no_route": "203.0.113.1",
    "no_route6": "2001:db8::1",
    "unreachable_route": "10.7.1.1",
    "blackhole_route": "10.7.2.1",
    "prohibit_route": "10.7.3.1",
}

HERE = """
link set lo up
addr add 10.9.0.1/24 dev eth0
addr add fd09::1/64 dev eth0 nodad
link set eth0 up
route add 10.8.0.0/16 via 10.9.0.2
route add fd08::/16 via fd09::2
route add unreachable 10.7.1.0/24
route add blackhole 10.7.2.0/24
route add prohibit 10.7.3.0/24
"""

THERE = """
link set lo up
addr add 10.9.0.2/24 dev eth0
addr add fd09::2/64 dev eth0 nodad
link set eth0 up
"""


class Tools:
    """The programs of an unpacked tree, with their libraries."""

    def __init__(self, tree: Path) -> None:
        libraries = {str(found.parent) for found in tree.glob("usr/lib/**/*.so*")}
        self._tree = tree
        self._environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}

    def run(self, program: str, *arguments: str, stdin: str, router: int) -> None:
        """Run *program* here, or in the namespace of the process *router*, if not 0."""
        prefix = ["nsenter", f"--net=/proc/{router}/ns/net"] if router else []
        found = str(self._tree / "usr" / "sbin" / program)
        subprocess.run(
            [*prefix, found, *arguments],
            input=stdin,
            text=True,
            env=self._environment,
            check=True,
        )


def rules(hook: str, cases: dict[str, tuple[str, str]]) -> str:
    lines = [
        f"{'ip6' if ':' in address else 'ip'} daddr {address} tcp dport 25 {action}"
        for address, action in cases.values()
    ]
    chain = f"type filter hook {hook} priority 0"
    return "\n".join(["table inet lab {", "chain lab {", chain, *lines, "}", "}", ""])


def build(tools: Tools, router: int) -> None:
    link = f"link add eth0 type veth peer name eth0 netns {router}\n"
    tools.run("ip", "-batch", "-", stdin=link + HERE, router=0)
    tools.run("ip", "-batch", "-", stdin=THERE, router=router)
    tools.run("nft", "-f", "-", stdin=rules("output", REJECTED_HERE), router=0)
    tools.run("nft", "-f", "-", stdin=rules("prerouting", REJECTED), router=router)
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        sysctl(name, "1", router)
    for name in ("ipv4/icmp_ratemask", "ipv6/icmp/ratelimit"):
        sysctl(name, "0", router)


def sysctl(name: str, value: str, router: int = 0) -> None:
    prefix = ["nsenter", f"--net=/proc/{router}/ns/net"] if router else []
    write = ["sh", "-c", f"echo '{value}' > /proc/sys/net/{name}"]
    subprocess.run([*prefix, *write], check=True)


async def see(address: str, port: int = 25) -> str:
    try:
        async with asyncio.timeout(LONG_ENOUGH):
            stream = await dial(Candidate("mx.example", address, port))
    except ConnectError as error:
        return f"{error.verdict.value}: {error}"
    except LocalTrouble as error:
        return f"LocalTrouble: {error}"
    except TimeoutError:
        return "silence"
    stream.close()
    return "reached"


async def see_all() -> dict[str, str]:
    rejected = {**REJECTED, **REJECTED_HERE}
    addresses = {name: address for name, (address, _) in rejected.items()} | ROUTED
    async with asyncio.TaskGroup() as group:
        tasks = {n: group.create_task(see(a)) for n, a in addresses.items()}
    seen = {name: task.result() for name, task in tasks.items()}
    return seen | await see_ports() | await see_without_ipv6()


async def see_ports() -> dict[str, str]:
    """One local port only: first connect it to itself, then to somebody, then no more."""
    sysctl("ipv4/ip_local_port_range", "40000 40000")
    itself = await see("127.0.0.1", 40000)
    with socket.create_server(("127.0.0.1", 25)) as host:
        stream = await dial(Candidate("mx.example", *host.getsockname()))
        exhausted = await see("127.0.0.1")
        stream.abort()
    return {"connected_to_itself": itself, "ports_exhausted": exhausted}


async def see_without_ipv6() -> dict[str, str]:
    sysctl("ipv6/conf/all/disable_ipv6", "1")
    return {"ipv6_switched_off": await see("2001:db8::1")}


def main() -> None:
    router = subprocess.Popen(
        ["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with router:
        assert router.stdin is not None
        assert router.stdout is not None
        router.stdin.write(b"\n")
        router.stdin.flush()
        router.stdout.readline()  # so unshare(1) has done its work
        build(Tools(Path(sys.argv[1])), router.pid)
        print(json.dumps(asyncio.run(see_all())))


if __name__ == "__main__":
    main()
