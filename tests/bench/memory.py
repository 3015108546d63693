"""Mail past a dead first MX: mxpolicy with its memory, beside a healthy destination.

    python -m tests.bench memory [MESSAGES]

Needs root and the lab (`tests.lab`). Messages (200, if not said otherwise) for one
recipient each are handed to Postfix as fast as it takes them, and go through pipe(8)
as contrib has it: to a destination in good health, and to one whose first MX drops
every SYN. Postfix's own smtp(8) does the same beside it, with a quarter of the messages
where the first MX is dead: it takes half a minute for each connection.

A rate is messages by the seconds from the first one's arrival at Postfix to the last
one's arrival at a host, by that host's record. The first message past the dead MX, that
all others learn from, is sent before, and its time is in a line of its own.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from tests.lab.case import Case, Host, Placed, place
from tests.lab.lab import Lab
from tests.lab.packages import LabUnavailable

from . import report
from .installation import installation

MXPOLICY, SMTP = "mxpolicy", "smtp"

HEALTHY = Case("rate-healthy", "healthy", (Host("mx1", 10), Host("mx2", 20)), {})
DROPPED = Case(
    "rate-dropped",
    "first MX dropped",
    (Host("mx1", 10, firewall="drop"), Host("mx2", 20)),
    {},
)

WITHIN = 300.0
"""Seconds, for one run of messages."""

REPEATS = 3


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 where the lab cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("messages", type=int, nargs="?", default=200)
    count = parser.parse_args(arguments).messages
    begun = time.monotonic()
    try:
        lab = Lab(place((HEALTHY, DROPPED), (MXPOLICY, SMTP)), installed=installation())
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    with lab:
        print(_measured(lab, count))
    print(f"\n{report.circumstances(begun)}")
    return 0


def _measured(lab: Lab, count: int) -> str:
    at = {(one.case.name, one.transport): one for one in lab.placed}
    rows = []
    for transport, words in ((MXPOLICY, "mxpolicy"), (SMTP, "Postfix smtp(8)")):
        healthy, dropped = (
            at[case.name, transport] for case in (HEALTHY, DROPPED)
        )  # fmt: skip
        _send(lab, healthy, 1)
        first = _send(lab, dropped, 1)
        few = count if transport == MXPOLICY else max(1, count // 4)
        # In turn, and the best of each: other work on the machine only ever slows.
        repeats = REPEATS if transport == MXPOLICY else 1
        pairs = [
            (_send(lab, healthy, count), _send(lab, dropped, few))
            for _ in range(repeats)
        ]
        rates = (
            count / min(one for one, _ in pairs),
            few / min(one for _, one in pairs),
        )
        rows.append(
            (
                words,
                report.seconds(first),
                *(f"{rate:.1f}/s" for rate in rates),
                f"{rates[1] / rates[0]:.2f}x",
            )
        )
    head = ("", "first message", "healthy", "first MX dropped", "of the healthy rate")
    return report.table(head, rows)


def _send(lab: Lab, placed: Placed, count: int) -> float:
    """Send *count* messages; return the seconds until the last one has arrived."""
    lab.hosts.forget()
    began = time.time()
    for _ in range(count):
        lab.send([placed.recipient])
    until = time.monotonic() + WITHIN
    while len(found := lab.hosts.received(placed.recipient)) < count:
        if time.monotonic() > until:
            raise RuntimeError(f"{placed.name}: {len(found)} of {count} arrived")
        time.sleep(0.1)
    return max(one.time for one in found) - began
