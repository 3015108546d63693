"""Mail servers killed while they write to mxpolicy: how many messages arrive half?

    python -m tests.bench half [KILLS] [--seed SEED] [--door DOOR...]

Needs root and the lab (`tests.lab`). Messages of 4 MB go through six doors, one after the
other: pipe, handed over and delivered alone, and LMTP, each by Postfix and by Exim. At
moments drawn at random mxpolicy is stopped, daemon and commands, until what writes to it
cannot go on. Then the processes of the mail server that deliver are killed, and mxpolicy
goes on without them. A kill counts where there was a writer in the middle of a message:
more than `FULL` bytes of it lay in the pipe or the socket. So it goes on until there are
500 of them, if not said otherwise, in equal parts; then the queues are run until all has
arrived. What has arrived is compared by the SHA-256 of its body.
"""

import argparse
import fcntl
import hashlib
import os
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from tests.lab.case import Placed, place
from tests.lab.daemon import LMTP
from tests.lab.half_messages import CASE, LINE, MAIL_SERVERS, SETTINGS, kill_all
from tests.lab.lab import EXIM_LMTP, HANDED_EXIM, MXPOLICY_EXIM, Lab
from tests.lab.packages import LabUnavailable
from tests.lab.transports import TO_SOCKET, lab_with_daemon

from . import report
from .killers import Killer

MESSAGE = b"Subject: large\n\n" + LINE * 60_000 + b"This is the end.\n"
BODY = hashlib.sha256(MESSAGE.partition(b"\n\n")[2].replace(b"\n", b"\r\n")).hexdigest()

AT_ONCE = 8
"""Messages under way."""
LONGEST = 0.6
"""Seconds between two times at which all is stopped, at most."""
FULL = 32 * 1024
"""Bytes: half of what a pipe holds."""
RUN_QUEUE = 1.0
WITHIN = 240.0

MXPOLICY = "mxpolicy"
BY_DAEMON = ("handed", HANDED_EXIM, TO_SOCKET, EXIM_LMTP)
ALONE = (MXPOLICY, MXPOLICY_EXIM)

DOORS = {
    "handed": "pipe handed over, Postfix",
    HANDED_EXIM: "pipe handed over, Exim",
    MXPOLICY: "pipe alone, Postfix",
    MXPOLICY_EXIM: "pipe alone, Exim",
    TO_SOCKET: "LMTP, Postfix",
    EXIM_LMTP: "LMTP, Exim",
}


class Outcome(NamedTuple):
    """What became of the messages of one door."""

    messages: int
    kills: int
    lost: int
    half: int
    copies: int


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 when a message arrived half, or not once."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench half", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("kills", type=int, nargs="?", default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--door", nargs="+", choices=DOORS, default=list(DOORS))
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    each = -(-options.kills // len(options.door))
    outcomes: dict[str, Outcome] = {}
    try:
        for doors in (BY_DAEMON, ALONE):
            if chosen := [door for door in doors if door in options.door]:
                outcomes |= _measure(chosen, each, options.seed)
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    rows = [(DOORS[door], *map(str, one)) for door, one in outcomes.items()]
    head = ("door", "messages", "killed while it wrote", "lost", "half", "copies")
    print(report.table(head, rows))
    print(f"\n{report.circumstances(begun)}")
    is_good = all(one[2:] == (0, 0, 0) for one in outcomes.values())
    return 0 if is_good else 1


def _measure(doors: Sequence[str], kills: int, seed: int) -> dict[str, Outcome]:
    placed = place((CASE,), doors)
    is_alone = doors[0] in ALONE
    lab = (
        Lab(placed, settings=SETTINGS)
        if is_alone
        else lab_with_daemon(placed, SETTINGS)
    )
    with lab:
        return {one.transport: _campaign(lab, one, kills, seed) for one in placed}


class Stopper(Killer):
    """A thread that stops mxpolicy, kills the mail server, and lets mxpolicy go on."""

    def __init__(self, lab: Lab, placed: Placed, seed: int) -> None:
        super().__init__(seed)
        self.kills = 0
        """How many writers were in the middle of a message."""
        self._lab = lab
        self._has_daemon = placed.transport in BY_DAEMON
        self._is_lmtp = placed.transport in {TO_SOCKET, EXIM_LMTP}

    def _run(self) -> None:
        while not self._is_over.wait(self._random.uniform(0, LONGEST)):
            with self._stopped():
                # What writes goes on until the pipe or the socket is full.
                time.sleep(0.1)
                self.kills += self._in_lmtp() if self._is_lmtp else self._in_pipes()
                kill_all(self._lab, *MAIL_SERVERS)

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """Keep all of mxpolicy from running."""
        with ExitStack() as stack:
            if self._has_daemon:
                stack.enter_context(self._lab.daemon.stopped())
            stopped: set[int] = set()
            while new := {pid for pid, _ in self._ours()} - stopped:
                self._signal("STOP", sorted(new))
                stopped |= new
            yield
            self._signal("CONT", sorted(stopped))

    def _ours(self) -> list[tuple[int, str]]:
        return [
            (one.pid, one.command)
            for one in self._lab.world.processes()
            if one.user == "mxpolicy"
        ]

    def _signal(self, name: str, pids: Sequence[int]) -> None:
        if pids:
            argv = ["kill", f"-{name}", *map(str, pids)]
            self._lab.world.run("mta", argv, check=False)

    def _in_pipes(self) -> int:
        """Return how many pipes to commands of ours are full."""
        full = set()
        for pid, command in self._ours():
            if " pipe " not in command:
                continue
            path = self._lab.world.path(f"/proc/{pid}/fd/0")
            with suppress(OSError):
                name = os.readlink(path)  # the shell and Python have the same one
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    found = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
                finally:
                    os.close(descriptor)
                if struct.unpack("i", found)[0] >= FULL:
                    full.add(name)
        return len(full)

    def _in_lmtp(self) -> int:
        """Return how many connections to the LMTP door are full."""
        # "u_str ESTAB RECV-Q SEND-Q PATH NUMBER * NUMBER"
        listed = self._lab.mta_exec(["ss", "-xanH"]).stdout
        rows = [line.split() for line in listed.decode().splitlines()]
        return sum(
            row[1] == "ESTAB" and row[4] == LMTP and int(row[2]) >= FULL for row in rows
        )


def _campaign(lab: Lab, placed: Placed, kills: int, seed: int) -> Outcome:
    """Send messages among kills until there were so many; return what became of them."""
    server = lab.server(placed)
    bodies: dict[str, list[str]] = {}
    sent: list[str] = []
    until = time.monotonic() + WITHIN
    lab.hosts.forget()

    def look() -> int:
        """Take note of what has arrived; return how many have not."""
        for one in lab.hosts.take():
            for to in one.forward_paths if one.accepted else ():
                bodies.setdefault(to, []).append(one.body)
        return sum(to not in bodies for to in sent)

    with ThreadPoolExecutor(1) as queue_runner:
        run: Future[None] | None = None

        def run_queue() -> None:
            # Exim's queue runner waits for each message.
            nonlocal run
            if run is None or run.done():
                run = queue_runner.submit(server.flush)

        with Stopper(lab, placed, seed) as killer:
            at = time.monotonic()
            while killer.kills < kills and time.monotonic() < until:
                for _ in range(AT_ONCE - look()):
                    sent.append(f"user{len(sent)}@{placed.domain}")
                    server.send(sent[-1:], "half@home.lab.test", MESSAGE)
                if time.monotonic() > at + RUN_QUEUE:
                    at = time.monotonic()
                    run_queue()
                time.sleep(0.1)
        while look() and time.monotonic() < until:
            run_queue()
            time.sleep(RUN_QUEUE)
        time.sleep(2)  # a copy would be under way
        look()
    return Outcome(
        len(sent),
        killer.kills,
        sum(to not in bodies for to in sent),
        sum(body != BODY for found in bodies.values() for body in found),
        sum(len(found) - 1 for found in bodies.values()),
    )
