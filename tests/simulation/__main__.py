"""``python -m tests.simulation [--of KIND] FIRST [LAST]``: play worlds, tell the faulty ones."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser

from tests.simulation.referee import WORLDS, judge, tell


def main(kind: str, first: int, last: int) -> int:
    """Play the worlds *first* to *last* of a *kind*; return how many are faulty."""
    began, count = time.monotonic(), 0
    for seed in range(first, last + 1):
        world = WORLDS[kind](seed)
        faults = judge(world)
        count += bool(faults)
        if faults or first == last:
            print(tell(world, faults), flush=True)
    worlds = last + 1 - first
    print(f"{count} of {worlds} worlds, {time.monotonic() - began:.0f}s")
    return count


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=WORLDS, default="all", help="which kind")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, nargs="?")
    given = parser.parse_args()
    sys.exit(1 if main(given.of, given.first, given.last or given.first) else 0)
