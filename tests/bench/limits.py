"""Thousands of messages for one destination: who else waits, and what it takes.

    python -m tests.bench limits [DEAD] [SLOW] [--way WAY...]

Needs root and the lab (`tests.lab`). By LMTP and then by Postfix's own smtp(8), in one run:
DEAD messages (20,000, if not said otherwise) go to a domain that drops every SYN, then SLOW
(2,000) to a healthy one that answers each final dot after a second. The daemon runs, and
Postfix has contrib's queue for each domain (contrib/postfix/lmtp-per-domain). Meanwhile
messages for healthy domains of their own follow one another, and what counts is their
delay, beside that of such messages on a quiet machine.

For each burst the table has what became of it, in how many seconds, and the delay of the
good ones: all of it, and the two parts of it that Postfix tells apart. qmgr(8) holds
qmgr_message_active_limit messages, which is 20,000. When they are reached, it takes no
other, whatever its destination, until one of them has ended; and of a domain that drops
every SYN none ends within half a minute at first. So DEAD comes a second time, for another
such domain, with twice that limit. Then the daemon's memory, and the most clients seen.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.lab.case import Case, Host, Placed, place
from tests.lab.lab import Lab
from tests.lab.packages import LabUnavailable
from tests.lab.postfix import Delivery
from tests.lab.smtp_host import Behaviour, Step

from . import report
from .installation import installation

WAYS = {"mxlmtp": "LMTP", "smtp": "smtp(8)"}
"""The name of the transport; and the command of its clients is the name of the way."""
CLIENTS = {"mxlmtp": "lmtp", "smtp": "smtp"}

QUIET = tuple(Case(f"quiet{number}", "", (Host("mx1", 10),), {}) for number in range(5))
GOOD = tuple(Case(f"good{number}", "", (Host("mx1", 10),), {}) for number in range(200))
DEAD, DEAD_TOO = (
    Case(name, name, (Host("mx1", 10, firewall="drop"),), {})
    for name in ("dead", "dead2")
)
SLOW = Case("slow", "slow", (Host("mx1", 10, Behaviour({"DOT": Step(delay=1)})),), {})

LIMIT = 20_000
"""Postfix's default qmgr_message_active_limit."""

PACE = 1.0
"""Seconds between two good messages, at least."""
LOOK = 0.2
WITHIN = 900.0


class Burst(NamedTuple):
    """What became of a burst, and of the others meanwhile."""

    name: str
    sent: int
    deferred: int
    seconds: float
    good: list[Delivery]
    memory: float  # MiB
    clients: int

    def row(self) -> tuple[str, ...]:
        """Return it as the table has it."""
        return (
            self.name,
            f"{self.sent} / {self.deferred}",
            report.seconds(self.seconds),
            _spread([one.delay for one in self.good]),
            _spread([one.delays[0] for one in self.good]),
            _spread([sum(one.delays[1:]) for one in self.good]),
            f"{self.memory:.0f} MiB" if self.memory else "",
            str(self.clients),
        )


HEAD = (
    *("ahead of the good ones", "sent / deferred", "in", "delay of a good one"),
    *("until qmgr(8) has it", "from then", "daemon", "clients"),
)


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 where the lab cannot be, or a slow one was deferred."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench limits",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("dead", type=int, nargs="?", default=20_000)
    parser.add_argument("slow", type=int, nargs="?", default=2_000)
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    cases = (*QUIET, *GOOD, DEAD, DEAD_TOO, SLOW)
    try:
        lab = Lab(
            place(cases, options.way),
            settings={"mynetworks": "127.0.0.0/8"},
            fragments=("lmtp-per-domain",),
            routes={"mxlmtp": "mxlmtp:"},
            installed=installation(),
        )
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    bursts: list[Burst] = []
    with lab:
        lab.start_daemon()
        for way in options.way:
            bench, good = _Bench(lab, way), iter(GOOD)
            bursts.append(bench.quiet())
            asked = (
                (DEAD, options.dead, "dead", LIMIT),
                (DEAD_TOO, options.dead, f"dead, limit {2 * LIMIT:,}", 2 * LIMIT),
                (SLOW, options.slow, "slow", LIMIT),
            )
            for case, count, words, limit in asked:
                if count:
                    lab.postfix.set(qmgr_message_active_limit=str(limit))
                    bursts.append(bench.burst(case, count, words, good))
    print(report.table(HEAD, [one.row() for one in bursts]))
    print(f"\n{report.circumstances(begun)}")
    are_lost = [one.deferred for one in bursts if one.name.endswith("slow, LMTP")]
    return 1 if any(are_lost) else 0


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s"


class _Watch(threading.Thread):
    """Looks again and again at the daemon and the clients.

    Attributes:
        memory: MiB of the daemon's, the most that was seen.
        clients: Of the way, likewise.
    """

    def __init__(self, lab: Lab, way: str) -> None:
        super().__init__(daemon=True)
        self.memory = 0.0
        self.clients = 0
        self._lab = lab
        self._way = way
        self._is_over = threading.Event()

    def __enter__(self) -> "_Watch":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        """Look until it is over, and at least once."""
        name = CLIENTS[self._way]
        while True:
            if self._way == "mxlmtp":
                memory = self._lab.daemon.memory() / 2**20
                self.memory = max(self.memory, memory)
            running = self._lab.world.processes()
            clients = sum(one.command.split(" ")[0] == name for one in running)
            self.clients = max(self.clients, clients)
            if self._is_over.wait(LOOK):
                break


class _Bench:
    """A lab, its daemon, and a way through it."""

    def __init__(self, lab: Lab, way: str) -> None:
        self._lab = lab
        self._way = way

    def quiet(self) -> Burst:
        """Return the good messages of a quiet machine."""
        with _Watch(self._lab, self._way) as watch:
            good = [self._good(one) for one in QUIET]
        return self._seen("nothing", 0, 0, 0.0, good, watch)

    def burst(
        self, case: Case, count: int, words: str, others: Iterator[Case]
    ) -> Burst:
        """Send *count* messages, and a good one now and then, until all have ended."""
        one = self._placed(case)
        began = time.monotonic()
        source = self._lab.world.start("mta", self._source(one, count))
        good: list[Delivery] = []
        with _Watch(self._lab, self._way) as watch:
            while time.monotonic() < began + WITHIN:
                good.append(self._good(next(others)))
                time.sleep(PACE)
                sent, deferred = self._ended(one)
                if source.poll() is not None and sent + deferred >= count:
                    break
        seconds = time.monotonic() - began
        name = f"{count:,} {words}"
        return self._seen(name, *self._ended(one), seconds, good, watch)

    def _seen(
        self,
        name: str,
        sent: int,
        deferred: int,
        seconds: float,
        good: list[Delivery],
        watch: _Watch,
    ) -> Burst:
        words = f"{name}, {WAYS[self._way]}"
        seen = (watch.memory, watch.clients)
        return Burst(words, sent, deferred, seconds, good, *seen)

    def _source(self, one: Placed, count: int) -> list[str]:
        return [
            *("smtp-source", "-s", "4", "-m", str(count), "-l", "1024", "-d"),
            *("-f", one.sender, "-t", f"user@{one.domain}", "127.0.0.1:25"),
        ]

    def _good(self, case: Case) -> Delivery:
        one = self._placed(case)
        queue_id = self._lab.send([f"user@{one.domain}"], one.sender)
        [line] = self._lab.postfix.await_deliveries(queue_id, 60.0)
        assert line.status == "sent", line
        return line

    def _placed(self, case: Case) -> Placed:
        [found] = [
            one
            for one in self._lab.placed
            if one.case is case and one.transport == self._way
        ]
        return found

    def _ended(self, one: Placed) -> tuple[int, int]:
        text = self._lab.world.path("/var/log/mail.log").read_bytes()
        lines = [line for line in text.split(b"\n") if one.domain.encode() in line]
        sent = sum(b"status=sent" in line for line in lines)
        return sent, sum(b"status=deferred" in line for line in lines)
