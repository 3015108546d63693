"""A host that refuses, puts off and is silent now and then: LMTP beside smtp(8).

    python -m tests.bench mixed [MESSAGES]

Needs root and the lab (`tests.lab`). Messages (1,000, if not said otherwise), each to a
recipient of its own, wait in the queue for a host that does as `smart_sink` says: 10 of
100 are deferred, 5 bounce, and 2 hear nothing. A rate counts until all but the silent
ones have ended. Those keep a client and a session for minutes, with smtp(8) too. Where
more has bounced, or less was sent, than the host has said, the table says so.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tests.lab.packages import CHECKOUT, LabUnavailable

from . import report, smart_sink
from .doors import AGENTS, Doors
from .servers import LMTP, SMTP, WAYS, Servers


class Mixed(NamedTuple):
    """What became of the messages of one way."""

    rate: float
    agents: float
    daemon: float
    ends: Counter[str]


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 where the lab cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench mixed", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("messages", type=int, nargs="?", default=1000)
    count = parser.parse_args(arguments).messages
    begun = time.monotonic()
    try:
        with Servers() as servers:
            print(table(servers, count))
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    print(f"\n{report.circumstances(begun)}")
    return 0


def table(servers: Servers, count: int) -> str:
    """Return the table. From now on the host is the smart sink."""
    source = CHECKOUT / "tests" / "bench" / "smart_sink.py"
    servers.start_sink([sys.executable, "-I", str(source)])
    expected = Counter(_end(number) for number in range(count))
    found = {way: _measure(servers, way, count, expected) for way in (SMTP, LMTP)}
    first = found[SMTP]
    rows = [
        (
            WAYS[way],
            f"{one.rate:.0f}/s",
            report.ratio(one.rate, first.rate),
            f"{one.agents * 1000:.2f} ms",
            f"{one.daemon * 1000:.2f} ms" if one.daemon else "",
            *(str(one.ends[end]) for end in ("sent", "deferred", "bounced")),
        )
        for way, one in found.items()
    ]
    said = [f"{expected[end]} {end}" for end in ("sent", "deferred", "bounced")]
    head = (f"{count:,} messages, mixed", "a second", "of smtp(8)'s")
    return report.table((*head, "agents' processor time", "the daemon's", *said), rows)


def _end(number: int) -> str:
    reply = smart_sink.answer(b"user%d@" % number)
    return {b"2": "sent", b"4": "deferred", b"5": "bounced", b"": ""}[reply[:1]]


def _measure(servers: Servers, way: str, count: int, expected: Counter[str]) -> Mixed:
    doors = Doors(servers)
    has_daemon = servers.needs_daemon(way)

    def daemon() -> float:
        return servers.daemon.processor_time() if has_daemon else 0.0

    doors.hold(way, [f"user{number}@{way}.lab.test" for number in range(count)])
    ending = count - expected[""]
    agents, before = servers.processor_time(AGENTS), daemon()
    began = time.monotonic()
    servers.postfix.flush()
    ends = doors.ends(way, ending)
    took = time.monotonic() - began
    return Mixed(
        ending / took,
        (servers.processor_time(AGENTS) - agents) / ending,
        (daemon() - before) / ending,
        ends,
    )
