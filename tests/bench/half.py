"""Mail servers killed while they write to the daemon: how many messages arrive half?

    python -m tests.bench half [KILLS] [--seed SEED]

Needs root and the lab (`tests.lab`). A message of 13 MB goes through each of four doors
(handed over and LMTP, by Postfix and by Exim). At a moment drawn at random the daemon is
stopped, the processes of the mail servers are killed, and the daemon goes on. Then the
queues are run until every message has arrived. 500 kills, if not said otherwise.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence

from tests.lab.case import place
from tests.lab.half_messages import CASE, SETTINGS, Outcome, kill_writers
from tests.lab.packages import LabUnavailable
from tests.lab.transports import lab_with_daemon

from . import report
from .daemon_kills import DOORS

LONGEST = 0.4
"""Seconds after the last message was sent; by then the quick ones are at their host."""


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 when a message arrived half, or not once."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench half", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("kills", type=int, nargs="?", default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    begun = time.monotonic()
    try:
        lab = lab_with_daemon(place((CASE,), DOORS), SETTINGS)
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    outcomes: list[Outcome] = []
    with lab:
        for number in range(-(-options.kills // len(DOORS))):
            after = chance.uniform(0, LONGEST)
            outcomes += kill_writers(lab, lab.placed, number, after)
            lab.hosts.forget()
    rows = [_row(door, [o for o in outcomes if o.door == door]) for door in DOORS]
    head = ("door", "kills", "nothing sent by then", "half", "copies too many")
    print(report.table(head, rows))
    print(f"\n{report.circumstances(begun)}")
    return 1 if any(one.is_half or one.copies != 1 for one in outcomes) else 0


def _row(door: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    cut = sum(one.was_cut for one in outcomes)
    half = sum(one.is_half for one in outcomes)
    copies = sum(one.copies - 1 for one in outcomes)
    return door, str(len(outcomes)), str(cut), str(half), str(copies)
