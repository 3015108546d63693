"""Instructions for a message, by each way through the real Postfix.

    python -m tests.bench counted [MESSAGES]

Needs root, the lab, and valgrind (unpacked like the lab's own packages where the machine
has none). cachegrind(1) counts what smtp(8), lmtp(8), pipe(8) with its commands, and the
daemon execute in user space, one message after the other. What they take to start is
left out: it is the difference between many messages (40, if not said otherwise) and a
few, by that number. Of pipe(8) the commands count: each is a process for one message,
and starts with it. Unlike a rate, such a count is nearly the same on every machine, busy or not.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.lab.packages import LabUnavailable, root_tree

from . import report
from .doors import DOORS, Doors
from .servers import ALONE, LMTP, MSMTP, PIPE, SMTP, WAYS, Servers

FEW = 2
SLOW = {ALONE: 20, PIPE: 3, MSMTP: 3}
"""Of so many messages one goes this way."""

_SBIN = "/usr/lib/postfix/sbin"
_REAL = "/usr/lib/postfix/real"
_COUNTS = "/var/tmp/counts"
_VALGRIND = (
    *(
        "valgrind",
        "--vgdb=no",
        "--tool=cachegrind",
        "--cache-sim=no",
        "--trace-children=yes",
    ),
    *("--cachegrind-out-file=/dev/null", f"--log-file={_COUNTS}/%p-%n"),
)

# One process of each, or what they take to start would come in between.
_ONE_AT_A_TIME = {
    "initial_destination_concurrency": "1",
    **{f"{way}_destination_concurrency_limit": "1" for way in DOORS},
}


class Count(NamedTuple):
    """Instructions for a message, of the delivery agent with its command, and the daemon."""

    agents: float
    daemon: float


def main(arguments: Sequence[str]) -> int:
    """Count, and print a table; 1 where the lab cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench counted", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("messages", type=int, nargs="?", default=40)
    count = parser.parse_args(arguments).messages
    begun = time.monotonic()
    try:
        with Servers() as servers:
            found = counts(servers, count)
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    head = ("instructions for a message", "agent", "daemon")
    rows = [
        (WAYS[way], report.millions(one.agents), report.millions(one.daemon))
        for way, one in found.items()
    ]
    print(report.table(head, rows))
    print(f"\n{report.circumstances(begun)}")
    return 0


def counts(servers: Servers, messages: int) -> dict[str, Count]:
    """Return the counts by way. Postfix counts from now on."""
    counter = _Counter(servers)
    return {way: counter.count(way, messages // SLOW.get(way, 1)) for way in DOORS}


class _Counter:
    """Servers whose programs run under cachegrind(1)."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._world = servers.world
        if not self._world.path("/usr/bin/valgrind").exists():
            tree = root_tree((("valgrind",),))
            self._world.run("mta", ["cp", "-a", f"{tree}/usr/.", "/usr"])
        for name in ("smtp", "lmtp", "pipe"):
            # smtp(8) and lmtp(8) are one program, which looks at its name.
            move = f"mkdir -p {_REAL} && mv {_SBIN}/{name} {_REAL}/{name}"
            self._world.run("mta", ["sh", "-c", move])
            script = f'#!/bin/sh\nexec {" ".join(_VALGRIND)} {_REAL}/{name} "$@"\n'
            path = self._world.path(f"{_SBIN}/{name}")
            path.write_text(script)
            path.chmod(0o755)
        self._world.run("mta", ["install", "-d", "-m", "1777", _COUNTS])
        servers.postfix.set(**_ONE_AT_A_TIME)

    def count(self, way: str, messages: int) -> Count:
        """Return the count for one message."""
        messages = max(1, messages)
        if way in {ALONE, MSMTP}:
            return Count(self._total(way, messages).agents / messages, 0)
        first, second = self._total(way, FEW), self._total(way, FEW + messages)
        return Count(
            (second.agents - first.agents) / messages,
            (second.daemon - first.daemon) / messages,
        )

    def _total(self, way: str, messages: int) -> Count:
        """Return the instructions of all processes for so many messages."""
        has_daemon = way in {LMTP, PIPE}
        if has_daemon:
            self._servers.restart_daemon(wrap=_VALGRIND)
        self._forget()
        Doors(self._servers).fed(way, messages)
        # They end when they have nothing to do.
        self._world.run("mta", ["postfix", "reload"])
        self._await_ends()
        agents = self._sum(lambda command: way in {SMTP, LMTP} or _REAL not in command)
        if not has_daemon:
            return Count(agents, 0)
        self._forget()
        self._servers.stop_daemon()
        self._await_ends()
        return Count(agents, self._sum(lambda command: True))

    def _await_ends(self) -> None:
        until = time.monotonic() + 60
        while self._servers.processes(f".*{_REAL}/"):
            if time.monotonic() > until:
                raise RuntimeError("a delivery agent does not end")
            time.sleep(0.1)

    def _forget(self) -> None:
        for path in self._world.path(_COUNTS).iterdir():
            if "I   refs" in path.read_text():
                path.unlink()

    def _sum(self, counts: Callable[[str], bool]) -> float:
        """Return the instructions of those whose command line *counts*."""
        total = 0
        for path in self._world.path(_COUNTS).iterdir():
            text = path.read_text()
            command = re.search(r"Command: +(.*)", text)
            found = re.search(r"I +refs: +([\d,]+)", text)
            # What has replaced itself by another program has none.
            if command and found and counts(command[1]):
                total += int(found[1].replace(",", ""))
        return total
