"""Thousands of messages for one destination through LMTP: who else waits, and what it takes.

    python -m tests.bench limits [DEAD] [SLOW]

Needs root and the lab (`tests.lab`). The daemon runs, and Postfix has contrib's queue for
each domain (contrib/postfix/lmtp-per-domain). DEAD messages (20,000, if not said otherwise)
go to a domain that drops every SYN, then SLOW (2,000) to a healthy one that answers each
final dot after a second. Meanwhile a message for a healthy domain of its own follows every
few seconds, and what counts is its delay, beside that of such messages on a quiet machine.

For each burst the table has what became of it, in how many seconds, how many of
its messages dialled, and the most memory and the most lmtp(8) that were seen.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.lab.case import Case, Host, Placed, place
from tests.lab.lab import Lab
from tests.lab.packages import LabUnavailable
from tests.lab.postfix import Delivery
from tests.lab.smtp_host import Behaviour, Step
from tests.lab.world import INSTALLED, World

from . import report

TRANSPORT = "mxlmtp"
"""Nothing but the name of the domains: it is Postfix's default transport."""

QUIET = tuple(Case(f"quiet{number}", "", (Host("mx1", 10),), {}) for number in range(5))
GOOD = tuple(Case(f"good{number}", "", (Host("mx1", 10),), {}) for number in range(60))
DEAD = Case("dead", "dead", (Host("mx1", 10, firewall="drop"),), {})
SLOW = Case("slow", "slow", (Host("mx1", 10, Behaviour({"DOT": Step(delay=1)})),), {})

PACE = 5.0
"""Seconds between two good messages."""
WITHIN = 900.0


class Burst(NamedTuple):
    """What became of a burst, and of the others meanwhile."""

    name: str
    sent: int
    deferred: int
    seconds: float
    dialled: int
    good: list[Delivery]
    memory: float  # MiB
    clients: int

    def row(self) -> tuple[str, ...]:
        """Return it as the table has it."""
        whole = _spread([one.delay for one in self.good])
        # Before that, the message waited in the incoming queue for qmgr(8).
        ours = _spread([sum(one.delays[1:]) for one in self.good])
        return (
            self.name,
            f"{self.sent} / {self.deferred}",
            report.seconds(self.seconds),
            str(self.dialled),
            whole,
            ours,
            f"{self.memory:.0f} MiB",
            str(self.clients),
        )


HEAD = (
    *("ahead of the good ones", "sent / deferred", "in", "dialled"),
    *("delay of a good one", "since qmgr(8) had it", "daemon", "lmtp(8)"),
)


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 where the lab cannot be, or a slow one was deferred."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench limits",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("dead", type=int, nargs="?", default=20_000)
    parser.add_argument("slow", type=int, nargs="?", default=2_000)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    cases = (*QUIET, *GOOD, DEAD, SLOW)
    try:
        lab = Lab(
            place(cases, (TRANSPORT,)),
            settings={"mynetworks": "127.0.0.0/8"},
            fragments=("lmtp-per-domain",),
        )
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    with lab:
        bench = _Bench(lab, _Daemon(lab.world))
        good = iter(GOOD)
        bursts = [
            bench.quiet(),
            *(
                bench.burst(case, count, good)
                for case, count in ((DEAD, options.dead), (SLOW, options.slow))
                if count
            ),
        ]
    print(report.table(HEAD, [one.row() for one in bursts]))
    print(f"\n{report.circumstances(begun)}")
    is_good = not options.slow or not bursts[-1].deferred
    return 0 if is_good else 1


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s"


class _Daemon:
    """``mxpolicy serve``, with the port that contrib's master.cf names."""

    def __init__(self, world: World) -> None:
        self._log = world.path("/var/log/mxpolicy.daemon")
        configuration = "/etc/mxpolicy/limits.yaml"
        path = world.path(configuration)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "listen: {pipe: {at: []}, policy: {at: []}, lmtp: {at: ['127.0.0.1:2424']}}\n"
            "log: {to: stderr}\n"
        )
        argv = [f"{INSTALLED}/bin/mxpolicy", "serve", "--config", configuration]
        world.start("mta", argv, user="mxpolicy", log="/var/log/mxpolicy.daemon")
        until = time.monotonic() + 30
        while not any(" serves " in line for line in self.log()):
            if time.monotonic() > until:
                raise RuntimeError("\n".join(("no daemon:", *self.log()[-20:])))
            time.sleep(0.05)
        [pid] = [
            one.pid
            for one in world.processes()
            if one.user == "mxpolicy" and configuration in one.command
        ]
        self._status = world.path(f"/proc/{pid}/status")

    def log(self) -> list[str]:
        """Return what it has logged."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    def memory(self) -> float:
        """Return its resident memory, in MiB."""
        found = re.search(r"(?m)^VmRSS:\s+(\d+) kB", self._status.read_text())
        assert found is not None
        return int(found[1]) / 1024


class _Bench:
    """A lab, its daemon, and what was seen of both."""

    def __init__(self, lab: Lab, daemon: _Daemon) -> None:
        self._lab = lab
        self._daemon = daemon
        self._memory = 0.0
        self._clients = 0

    def quiet(self) -> Burst:
        """Return the good messages of a quiet machine."""
        good = [self._good(one) for one in QUIET]
        self._look()
        return self._seen("nothing", 0, 0, 0.0, 0, good)

    def burst(self, case: Case, count: int, others: Iterator[Case]) -> Burst:
        """Send *count* messages, and a good one now and then, until all have ended."""
        one = self._placed(case)
        began = time.monotonic()
        source = self._lab.world.start("mta", self._source(one, count))
        self._memory, self._clients = 0.0, 0
        good: list[Delivery] = []
        while time.monotonic() < began + WITHIN:
            good.append(self._good(next(others)))
            until = time.monotonic() + PACE
            while time.monotonic() < until:
                self._look()
                time.sleep(0.5)
            sent, deferred = self._ended(one)
            if source.poll() is not None and sent + deferred >= count:
                break
        seconds = time.monotonic() - began
        sent, deferred = self._ended(one)
        tried = [
            line
            for line in self._daemon.log()
            if one.domain in line and "as was found before" not in line
        ]
        name = f"{count} {case.name}"
        return self._seen(name, sent, deferred, seconds, len(tried), good)

    def _seen(
        self,
        name: str,
        sent: int,
        deferred: int,
        seconds: float,
        dialled: int,
        good: list[Delivery],
    ) -> Burst:
        return Burst(
            *(name, sent, deferred, seconds, dialled, good),
            *(self._memory, self._clients),
        )

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
        [found] = [one for one in self._lab.placed if one.case is case]
        return found

    def _ended(self, one: Placed) -> tuple[int, int]:
        text = self._lab.world.path("/var/log/mail.log").read_bytes()
        lines = [line for line in text.split(b"\n") if one.domain.encode() in line]
        sent = sum(b"status=sent" in line for line in lines)
        return sent, sum(b"status=deferred" in line for line in lines)

    def _look(self) -> None:
        self._memory = max(self._memory, self._daemon.memory())
        done = self._lab.world.run("mta", ["pgrep", "-cx", "lmtp"], check=False)
        self._clients = max(self._clients, int(done.stdout or b"0"))
