"""A delivery with a large state, beside one with an empty state.

    python -m tests.bench state [ROWS]

Needs no root and no lab; mxpolicy is installed as a user has it. `mxpolicy pipe` delivers to a host on loopback, a process for
each message: with an empty state, then with so many rows (1,100,000, if not said
otherwise: far beyond the bound) in the file of hosts, then as many in the journal's, too,
which takes some minutes to fill. Shown are the median of the wall time and the processor
time of a delivery, and how many rows went meanwhile.
"""

import argparse
import hashlib
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mxpolicy.state.store import LIGHT
from tests.helpers.piping import MESSAGE, Host, Runner

from . import report
from .installation import installation

DELIVERIES = 30
FILES = {"state.sqlite3": "host direct ", "journal.sqlite3": "journal/"}


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench state", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("rows", type=int, nargs="?", default=1_100_000)
    count = parser.parse_args(arguments).rows
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        python = str(installation() / "bin" / "python3")
        there, pipe = Host(), Runner(Path(directory), python)
        try:
            _deliver(pipe, there)
            wall, processor = _deliver(pipe, there)
            rows = [("empty", report.seconds(wall), report.seconds(processor), "")]
            for name, prefix in FILES.items():
                _fill(pipe.state / name, prefix, count)
                found = _deliver(pipe, there)
                gone = _gone(pipe.state / name, count)
                words = f"{count:,} rows in {name}, {gone:,} gone"
                times = report.seconds(found[0]), report.seconds(found[1])
                rows.append((words, *times, report.ratio(found[1], processor)))
        finally:
            there.close()
    print(report.table(("state", "wall", "processor", "of the empty one's"), rows))
    print(f"\n{report.circumstances(begun)}")
    return 0


def _deliver(pipe: Runner, there: Host) -> tuple[float, float]:
    """Deliver; return the median of the wall time, and the processor time of one."""
    argv, walls = pipe.argv(there.nexthop, "b@b.example"), []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(DELIVERIES):
        began = time.monotonic()
        # Another message each time, or the journal would answer.
        ended = pipe.run(argv, b"X-Time: %d\n" % time.time_ns() + MESSAGE, cwd="/")
        walls.append(time.monotonic() - began)
        if ended.status != 0:
            raise RuntimeError(str(ended))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return statistics.median(walls), processor / DELIVERIES


def _fill(file: Path, prefix: str, count: int) -> None:
    end = time.time() + 86400
    rows = (
        (prefix + hashlib.sha256(b"%d" % number).hexdigest(), bytes(150), end, LIGHT)
        for number in range(count)
    )
    with closing(sqlite3.connect(file)) as db:
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
        db.commit()


def _gone(file: Path, count: int) -> int:
    with closing(sqlite3.connect(file)) as db:
        (left,) = db.execute("SELECT count(*) FROM rows").fetchone()
    return max(0, count - int(left))
