"""Each door of the daemon beside smtp(8): messages a second, and what one costs.

    python -m tests.bench doors [MESSAGES] [--rounds N]

Needs root and the lab (`tests.lab`). Messages (1,500, if not said otherwise) go through
the real Postfix to smtp-sink(1), by each way of `servers` in turn. Of what starts a
process for each message and has no daemon there are fewer: a fifth, and a twentieth.

In the first table they come from smtp-source(1) while they are delivered, in the second
they wait in the queue before. Two more have waited, through LMTP and smtp(8): each for
another domain with another host, so that no session serves two; and for a domain whose
first MX drops every SYN. smtp(8) is not asked to do that: it takes 30 s for each
connection.

A rate counts from the first message's begin to the last one's end. Processor time is
user and system time of the delivery agents, the commands that they run, and the daemon:
/proc/PID/stat. Figures are the median of the rounds.
"""

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import NamedTuple

from mxpolicy.options import JournalOptions
from tests.lab.packages import LabUnavailable
from tests.lab.postfix import Client

from . import report
from .servers import ALONE, DROPPED, LMTP, MSMTP, PIPE, SMTP, WAYS, Servers

LOG = "/var/log/mail.log"
WITHIN = 600.0
SENDERS = 10
LENGTH = 2000
"""Bytes of a message."""

SUBMITTERS = 4
_DATA = b"Subject: one of many\n\n" + b"A line, and not the only one.\n" * 60

DOORS = (SMTP, LMTP, PIPE, MSMTP, ALONE)
SHARES = {MSMTP: 5, ALONE: 20}
"""Of so many messages one goes this way."""

AGENTS = r"(smtp|lmtp|pipe) "

FORGOTTEN = 6.0
"""Seconds after which no idle session is left (transaction.session_idle)."""

DURABLE = "durable" in JournalOptions._fields


class Measured(NamedTuple):
    """One way, one round: messages a second, seconds of processor time a message."""

    rate: float
    agents: float
    daemon: float


class Row(NamedTuple):
    """A way, and how its messages come."""

    how: str
    way: str
    words: str


class Doors:
    """Measures at servers that run."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._postfix = servers.postfix
        self._log = servers.world.path(LOG)

    def fed(self, way: str, count: int) -> Measured:
        """Deliver *count* messages while they come."""
        return self._measure(way, count, lambda: self._feed(f"{way}.lab.test", count))

    def waiting(self, way: str, count: int) -> Measured:
        """Deliver *count* messages that wait in the queue."""
        return self._held(way, [f"user{one}@{way}.lab.test" for one in range(count)])

    def dropped(self, way: str, count: int) -> Measured:
        """The same for a domain whose first MX is dead, and is known to be."""
        domain = f"{DROPPED}.{way}.lab.test"
        return self._held(way, [f"user{one}@{domain}" for one in range(count)])

    def scattered(self, way: str, count: int) -> Measured:
        """The same, each for another domain and another host.

        Once before, so that there are as many clients as there will be.
        """
        recipients = [f"user@d{one}.{way}.lab.test" for one in range(count)]
        self._held(way, recipients)
        time.sleep(FORGOTTEN)
        return self._held(way, recipients)

    def hold(self, way: str, recipients: Sequence[str]) -> None:
        """Have Postfix take a message for each, and let none of them go."""
        self._postfix.set(defer_transports=way)
        self._log.write_bytes(b"")

        def send(first: int) -> None:
            with Client(self._servers.world) as client:
                for one in recipients[first::SUBMITTERS]:
                    client.submit([one], "", _DATA)

        with ThreadPoolExecutor(SUBMITTERS) as threads:
            list(threads.map(send, range(SUBMITTERS)))
        self.ends(way, len(recipients))
        self._postfix.set(defer_transports="")
        self._log.write_bytes(b"")

    def ends(self, way: str, count: int, status: str = "") -> Counter[str]:
        """Wait until so many messages of this way have ended so; return how they have."""
        to = f"{way}.lab.test>".encode()
        until, rest = time.monotonic() + WITHIN, b""
        found: Counter[str] = Counter()
        with self._log.open("rb") as log:
            while (found[status] if status else found.total()) < count:
                *lines, rest = (rest + log.read()).split(b"\n")
                for line in lines:
                    if to in line and (match := re.search(rb"status=(\w+)", line)):
                        found[match[1].decode()] += 1
                if time.monotonic() > until:
                    raise RuntimeError(f"{found}\n{self._postfix.queue()[-2000:]}")
                time.sleep(0.02)
        return found

    def _held(self, way: str, recipients: Sequence[str]) -> Measured:
        self.hold(way, recipients)
        return self._measure(way, len(recipients), self._postfix.flush)

    def _measure(self, way: str, count: int, begin: Callable[[], None]) -> Measured:
        has_daemon = self._servers.needs_daemon(way)
        self._log.write_bytes(b"")
        agents, daemon = self._agents(), self._daemon(has_daemon)
        began = time.monotonic()
        begin()
        self.ends(way, count, "sent")
        took = time.monotonic() - began
        time.sleep(0.5)  # pipe(8) waits for its command after it has its answer
        return Measured(
            count / took,
            (self._agents() - agents) / count,
            (self._daemon(has_daemon) - daemon) / count,
        )

    def _feed(self, domain: str, count: int) -> None:
        argv = ["smtp-source", "-s", str(SENDERS), "-m", str(count), "-l", str(LENGTH)]
        to = ["-f", "", "-t", f"user@{domain}", "127.0.0.1:25"]
        self._servers.world.run("mta", [*argv, *to], timeout=WITHIN)

    def _agents(self) -> float:
        return self._servers.processor_time(AGENTS)

    def _daemon(self, has_daemon: bool) -> float:
        return self._servers.daemon.processor_time() if has_daemon else 0.0


def main(arguments: Sequence[str]) -> int:
    """Measure, and print three tables; 1 where the lab cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench doors", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("messages", type=int, nargs="?", default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    count = options.messages
    try:
        with Servers(domains=min(count, 1000)) as servers:
            for table in tables(servers, count, options.rounds):
                print(table, end="\n\n")
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    print(report.circumstances(begun))
    return 0


def tables(servers: Servers, count: int, rounds: int) -> Iterator[str]:
    """Yield the tables, as they are measured."""
    doors = Doors(servers)
    for name, by in (("from smtp-source(1)", doors.fed), ("waiting", doors.waiting)):
        found = _rounds(
            {way: (lambda n, way=way, by=by: by(way, n)) for way in DOORS},  # type: ignore[misc]
            {way: max(2, count // SHARES.get(way, 1)) for way in DOORS},
            rounds,
        )
        yield _table(f"{count:,} messages, {name}", found, {w: WAYS[w] for w in DOORS})
    yield _more(servers, doors, count, rounds)


def _more(servers: Servers, doors: Doors, count: int, rounds: int) -> str:
    few = min(count, 1000)
    asked: dict[str, Callable[[int], Measured]] = {
        "smtp(8)": lambda n: doors.waiting(SMTP, n),
        "smtp(8), each another domain": lambda n: doors.scattered(SMTP, n),
        "LMTP": lambda n: doors.waiting(LMTP, n),
        "LMTP, each another domain": lambda n: doors.scattered(LMTP, n),
        "LMTP, first MX dropped": lambda n: doors.dropped(LMTP, n),
    }
    found = _rounds(asked, dict.fromkeys(asked, few), rounds)
    for word in ("yes", "no") if DURABLE else ():
        servers.restart_daemon(f"journal: {{durable: {word}}}\n")
        name = f"LMTP, journal.durable: {word}"
        one = {name: lambda n: doors.waiting(LMTP, n)}
        found |= _rounds(one, {name: few}, rounds)
    return _table(f"{few:,} messages, waiting", found, {name: name for name in found})


def _rounds(
    asked: dict[str, Callable[[int], Measured]], counts: dict[str, int], rounds: int
) -> dict[str, Measured]:
    """Return the median of each, measured in turn."""
    found: dict[str, list[Measured]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, measure in asked.items():
            measure(min(20, counts[name]))  # processes start, hosts become known
            found[name].append(measure(counts[name]))
    return {
        name: Measured(*(median(column) for column in zip(*many, strict=True)))
        for name, many in found.items()
    }


def _table(name: str, found: dict[str, Measured], words: dict[str, str]) -> str:
    first, *_ = found.values()
    rows = [
        (
            words[key],
            f"{one.rate:.0f}/s",
            f"{one.rate / first.rate:.2f}x",
            f"{one.agents * 1000:.2f} ms",
            f"{one.daemon * 1000:.2f} ms" if one.daemon else "",
        )
        for key, one in found.items()
    ]
    head = (name, "a second", "of smtp(8)'s", "agents' processor time", "the daemon's")
    return report.table(head, rows)
