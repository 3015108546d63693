"""SIGKILL for the daemon at random moments: what is lost, and what arrives twice.

    python -m tests.bench daemon_kills [DELIVERIES] [--seed SEED] [--door DOOR...]

Needs root and the lab (`tests.lab`). The deliveries (1000 through each door, if not said
otherwise; each tried again after each kill) go through the daemon, with contrib as it is:
handed over by the pipe transports of Postfix and Exim, and by the LMTP of both. The daemon
is killed at a moment drawn uniformly from its first seconds, and started again at once, as
systemd does it. All that is under way then is hit, each message somewhere else on its way.
The queues are run until they are empty.

What a copy is, and how the window is measured, is as in `tests.bench.kills`. A copy is
accounted for when the kill fell into the window behind the first one's final dot.
"""

import argparse
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise

from tests.lab.case import Case, Host, Placed, place
from tests.lab.lab import Lab
from tests.lab.packages import LabUnavailable
from tests.lab.transports import DAEMON_TRANSPORTS, lab_with_daemon

from . import report
from .kills import (
    LONGEST_WINDOW,
    QUIET,
    RUN_QUEUE,
    SLOW,
    is_empty,
    named,
    send,
    times_taken,
    window,
)

DOORS = tuple(one for one in DAEMON_TRANSPORTS if one not in {"handed-many", "mxlmtp"})
HEALTHY = Case(
    "kills", "two hosts in good health", (Host("mx1", 10, SLOW), Host("mx2", 20)), {}
)

AT_ONCE = 16
LIFE = 3.0
"""Seconds from its start within which the daemon is killed."""
WITHIN = 1500.0


class Killer:
    """A thread that kills the daemon and starts it again, until it is told to stop."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.kills: list[float] = []
        """When, in seconds since the epoch."""
        self._daemon = lab.daemon
        self._random = random.Random(seed)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._random.uniform(0, LIFE)):
            self._daemon.kill()
            self.kills.append(time.time())
            self._daemon.start()


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 when mail was lost, bounced, or copied unaccounted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench daemon_kills",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("deliveries", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--door", nargs="+", choices=DOORS, default=DOORS)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    columns = []
    for door in options.door:
        try:
            lab = lab_with_daemon(place((HEALTHY,), (door,)))
        except LabUnavailable as why:
            print(why, file=sys.stderr)
            return 1
        with lab:
            (placed,) = lab.placed
            windows = window(lab, placed, QUIET)
            figures = _campaign(lab, placed, options.deliveries, options.seed)
        middle = report.seconds(statistics.median(windows))
        longest = report.seconds(max(windows))
        figures |= {"window, median": middle, "window, longest": longest}
        columns.append(figures)
        print(report.table(("", door), list(figures.items())), flush=True)
    rows = [(name, *(one[name] for one in columns)) for name in columns[0]]
    print(report.table(("", *options.door), rows))
    print(f"\n{report.circumstances(begun)}")
    bad = ("lost", "bounced", "copies unaccounted for")
    return 1 if any(one[name] != "0" for one in columns for name in bad) else 0


def _campaign(lab: Lab, placed: Placed, count: int, seed: int) -> dict[str, str]:
    """Deliver *count* messages among kills; return what came of them."""
    lab.hosts.forget()
    recipients = [named(placed, f"user{number}") for number in range(count)]
    server = lab.server(placed)
    sender = f"killed.{placed.transport}@home.lab.test"
    with Killer(lab, seed) as killer:
        run_queue = began = time.monotonic()
        until = began + WITHIN
        waiting = list(recipients)
        arrived: set[str] = set()
        while len(arrived) < count and time.monotonic() < until:
            arrived = set(times_taken(lab)) & set(recipients)
            under_way = count - len(waiting) - len(arrived)
            for _ in range(min(len(waiting), max(0, AT_ONCE - under_way))):
                send(lab, placed, waiting.pop(0), sender)
            if time.monotonic() - run_queue > RUN_QUEUE:
                run_queue = time.monotonic()
                server.flush()
            time.sleep(0.1)
    while not is_empty(lab, placed) and time.monotonic() < until:
        server.flush()
        time.sleep(RUN_QUEUE)
    deferrals = sum(one.status == "deferred" for one in server.deliveries())
    return {
        "deliveries": str(count),
        "kills": str(len(killer.kills)),
        "attempts deferred": str(deferrals),
        **_account(lab, recipients, sender, killer.kills),
        "left in the queue": str(int(not is_empty(lab, placed))),
        "seconds": f"{time.monotonic() - began:.0f}",
    }


def _account(
    lab: Lab, recipients: Sequence[str], sender: str, kills: Sequence[float]
) -> dict[str, str]:
    times = times_taken(lab)
    after = [
        min((kill - one for kill in kills if one < kill < two), default=LONGEST_WINDOW)
        for to in recipients
        for one, two in pairwise(sorted(times.get(to, [])))
    ]
    return {
        "lost": str(sum(to not in times for to in recipients)),
        "bounced": str(len(lab.hosts.received(sender))),
        "copies": str(len(after)),
        "copies unaccounted for": str(sum(one >= LONGEST_WINDOW for one in after)),
        "longest from dot to such a kill, ms": f"{1000 * max(after, default=0.0):.0f}",
    }
