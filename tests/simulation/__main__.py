"""``python -m tests.simulation FIRST [LAST]``: play worlds, and tell the faulty ones."""

from __future__ import annotations

import sys
import time

from tests.simulation.referee import judge, tell, world_of


def main(first: int, last: int) -> int:
    """Play the worlds *first* to *last*; return how many are faulty."""
    began, count = time.monotonic(), 0
    for seed in range(first, last + 1):
        world = world_of(seed)
        faults = judge(world)
        count += bool(faults)
        if faults or first == last:
            print(tell(world, faults), flush=True)
    worlds = last + 1 - first
    print(f"{count} of {worlds} worlds, {time.monotonic() - began:.0f}s")
    return count


if __name__ == "__main__":
    numbers = [int(one) for one in sys.argv[1:]]
    sys.exit(1 if main(numbers[0], numbers[-1]) else 0)
