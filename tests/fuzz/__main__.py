"""The long search: ``python -m tests.fuzz SECONDS [TARGET...]``."""

from __future__ import annotations

import hashlib
import random
import sys
import time
import traceback
from pathlib import Path

from tests import guard
from tests.fuzz.mutate import corpus, mutated
from tests.fuzz.targets import TARGETS

FINDINGS = Path(".lab/fuzz")


def search(name: str, seconds: float, chance: random.Random) -> tuple[int, Path | None]:
    """Try mutations for *seconds*; return how many, and where the finding is, if any."""
    seeds, tried = corpus(name), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(seeds, chance)
        tried += 1
        try:
            TARGETS[name](data)
        except Exception:
            traceback.print_exc()
            FINDINGS.mkdir(parents=True, exist_ok=True)
            found = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            found.write_bytes(data)
            return tried, found
    return tried, None


def main(argv: list[str]) -> int:
    """Search all targets, or those named, and say what came of it."""
    names = argv[1:] or list(TARGETS)
    share = float(argv[0]) / len(names)
    seed = random.randrange(1 << 32)
    failed = False
    for name in names:
        tried, found = search(name, share, random.Random(f"{seed} {name}"))
        said = f"broken by {found}" if found else "nothing found"
        print(f"{name}: {tried} inputs, {said} (seed {seed})", flush=True)
        failed |= found is not None
    return failed


if __name__ == "__main__":
    sys.exit(guard.guarded(lambda: main(sys.argv[1:])))
