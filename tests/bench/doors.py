"""Each door of the daemon beside smtp(8): messages a second, and what one costs.

    python -m tests.bench doors [MESSAGES] [--rounds N]

Needs root and the lab (`tests.lab`). Messages (1,500, if not said otherwise) go through
the real Postfix to smtp-sink(1), by each way in turn:

smtp(8)     Postfix's own client
LMTP        lmtp(8), and `mxpolicy serve` behind it
pipe        pipe(8), whose command hands the message over to `mxpolicy serve`
pipe alone  the same, where no daemon runs; a twentieth of the messages

In the first table they come from smtp-source(1) while they are delivered, in the second
they wait in the queue before. A rate counts from the first message's begin to the last
one's end. Processor time is user and system time of the delivery agents, the commands
that they run, and the daemon: /proc/PID/stat. Figures are the median of the rounds.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from tests.lab.daemon import Daemon
from tests.lab.names import NameService
from tests.lab.packages import LabUnavailable
from tests.lab.postfix import Postfix
from tests.lab.world import World

from . import report

SINK = "198.18.1.1"
LOG = "/var/log/mail.log"
WITHIN = 600.0
SENDERS = 10

SMTP, LMTP, PIPE, ALONE = "smtp", "mxlmtp", "mxpolicy", "alone"
WAYS = {SMTP: "smtp(8)", LMTP: "LMTP", PIPE: "pipe", ALONE: "pipe alone"}

# As in contrib, but with a socket where no daemon listens.
_ALONE = (
    "unix - n n - 60 pipe flags=q user=mxpolicy null_sender="
    " argv=/opt/mxpolicy/bin/mxpolicy pipe -f ${sender} --nexthop ${nexthop}"
    " --queue-id ${queue_id} --deadline 2900s --socket /nowhere -- ${recipient}"
)

_SETTINGS = {"max_use": "100000", "max_idle": "1000s", "smtp_address_preference": "any"}


class Measured(NamedTuple):
    """One way, one round: messages a second, seconds of processor time a message."""

    rate: float
    agents: float
    daemon: float


class Bench:
    """Postfix, the daemon and a sink, started; a context manager. Raises LabUnavailable."""

    def __init__(self) -> None:
        self.world = World()
        try:
            records = [f"{way}.lab.test. MX 10 mx.lab.test." for way in WAYS]
            NameService(self.world, [*records, f"mx.lab.test. A {SINK}"])
            self.world.start("net", ["smtp-sink", "-u", "nsd", f"{SINK}:25", "1000"])
            routes = [(f"{way}.lab.test", f"{way}:") for way in WAYS]
            self.postfix = Postfix(
                self.world,
                routes,
                {ALONE: _ALONE},
                settings={**_SETTINGS, "alone_destination_recipient_limit": "1"},
                fragments=["lmtp-per-domain"],
            )
            self.daemon = Daemon(self.world)
        except BaseException:
            self.world.close()
            raise

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.world.close()

    def fed(self, way: str, count: int) -> Measured:
        """Deliver *count* messages while they come."""
        return self._measure(way, count, lambda: self._feed(way, count))

    def waiting(self, way: str, count: int) -> Measured:
        """Deliver *count* messages that wait in the queue."""
        self.postfix.set(defer_transports=way)
        self._feed(way, count)
        self._await(lambda: self._logged(way, "deferred") >= count)
        self.postfix.set(defer_transports="")
        return self._measure(way, count, self.postfix.flush)

    def _measure(self, way: str, count: int, begin: Callable[[], None]) -> Measured:
        self.world.path(LOG).write_bytes(b"")
        agents, daemon = self._agents(), self.daemon.processor_time()
        began = time.monotonic()
        begin()
        self._await(lambda: self._logged(way, "sent") >= count)
        took = time.monotonic() - began
        time.sleep(0.5)  # pipe(8) waits for its command after it has its answer
        return Measured(
            count / took,
            (self._agents() - agents) / count,
            (self.daemon.processor_time() - daemon) / count,
        )

    def _feed(self, way: str, count: int) -> None:
        to = f"user@{way}.lab.test"
        argv = ["smtp-source", "-s", str(SENDERS), "-m", str(count), "-l", "2000"]
        self.world.run(
            "mta", [*argv, "-f", "", "-t", to, "127.0.0.1:25"], timeout=WITHIN
        )

    def _logged(self, way: str, status: str) -> int:
        text = self.world.path(LOG).read_bytes()
        to, found = f"@{way}.lab.test>".encode(), f"status={status}".encode()
        return sum(to in line and found in line for line in text.splitlines())

    def _await(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + WITHIN
        while not done():
            if time.monotonic() > until:
                raise RuntimeError(self.postfix.queue()[-2000:])
            time.sleep(0.05)

    def _agents(self) -> float:
        """Return the processor seconds of all delivery agents and their commands."""
        ticks = 0
        for one in self.world.processes():
            if one.command.split(" ")[0] in {"smtp", "lmtp", "pipe"}:
                stat = self.world.path(f"/proc/{one.pid}/stat").read_text()
                # utime, stime, cutime and cstime are fields 14 to 17, the name is 2.
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str]) -> int:
    """Measure, and print two tables; 1 where the lab cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench doors", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("messages", type=int, nargs="?", default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        bench = Bench()
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    with bench:
        for name, by in (("fed", bench.fed), ("waiting", bench.waiting)):
            print(_table(name, by, options.messages, options.rounds), end="\n\n")
    print(report.circumstances(begun))
    return 0


def _table(
    name: str, by: Callable[[str, int], Measured], count: int, rounds: int
) -> str:
    found: dict[str, list[Measured]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, measured in found.items():
            by(way, 20)  # processes start, hosts become known
            measured.append(by(way, count // 20 if way == ALONE else count))
    medians = {
        way: Measured(*(median(column) for column in zip(*many, strict=True)))
        for way, many in found.items()
    }
    rows = [
        (
            WAYS[way],
            f"{one.rate:.0f}/s",
            f"{one.rate / medians[SMTP].rate:.2f}x",
            f"{one.agents * 1000:.2f} ms",
            f"{one.daemon * 1000:.2f} ms",
        )
        for way, one in medians.items()
    ]
    head = (name, "messages", "of smtp(8)'s", "agents' processor time", "the daemon's")
    return report.table(head, rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
