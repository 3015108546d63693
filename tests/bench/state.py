"""A delivery with a large state, beside one with an empty state.

    python -m tests.bench state [ROWS]

Needs no root and no lab; mxpolicy is installed as a user has it. `mxpolicy pipe` delivers
to a host on loopback, a process for each message: with an empty state, then with so many
rows (1,100,000, if not said otherwise: far beyond the bound) in the file of hosts, then as
many in the journal's, too, which takes some minutes to fill. Shown are the median and the longest wall time and the
processor time of a delivery, and how many rows went meanwhile.

Then, with both files full, so many processes at once (50) deliver a message each, and all
of them the same message once more. A second copy, or a line in the log that nothing was
kept, ends the measurement as failed. Of a machine with so many processes, what is
remembered of hosts may come too late; how often it did is told.
"""

import argparse
import hashlib
import resource
import sqlite3
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mxpolicy.state.store import LIGHT
from tests.helpers.piping import MESSAGE, Host, Runner

from . import report
from .installation import installation

DELIVERIES = 30
AT_ONCE = 50
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
            empty = _deliver(pipe, there)
            rows = [("empty", *empty.texts(), "")]
            for name, prefix in FILES.items():
                _fill(pipe.state / name, prefix, count)
                found = _deliver(pipe, there)
                gone = _gone(pipe.state / name, count)
                words = f"{count:,} rows in {name}, {gone:,} gone"
                times = report.ratio(found.processor, empty.processor)
                rows.append((words, *found.texts(), times))
            found = _deliver_at_once(pipe, there)
            times = report.ratio(found.processor, empty.processor)
            rows.append((f"the same, {AT_ONCE} at once", *found.texts(), times))
            again = _deliver_at_once(pipe, there)
            rows.append(("the same messages again", *again.texts(), ""))
            late = _check(pipe, there)
        finally:
            there.close()
    head = ("state", "wall", "longest", "processor", "of the empty one's")
    print(report.table(head, rows))
    print(
        f"\nNo second copy; {late} of {2 * AT_ONCE} without what is remembered of hosts."
    )
    print(f"\n{report.circumstances(begun)}")
    return 0


class Spent(NamedTuple):
    """Seconds of a delivery: the median wall time, the longest, and processor time."""

    wall: float
    longest: float
    processor: float

    def texts(self) -> tuple[str, str, str]:
        """Return them as they are printed."""
        wall, longest, processor = map(report.seconds, self)
        return wall, longest, processor


def _deliver(pipe: Runner, there: Host) -> Spent:
    """Deliver, one message after the other."""
    argv = pipe.argv(there.nexthop, "b@b.example")
    # Another message each time, or the journal would answer.
    jobs = [
        partial(_run, pipe, argv, b"X-Time: %d\n" % time.time_ns() + MESSAGE)
        for _ in range(DELIVERIES)
    ]
    return _spent(lambda: [job() for job in jobs])


def _deliver_at_once(pipe: Runner, there: Host) -> Spent:
    """Deliver, all at once; the same messages each time."""
    jobs = []
    for number in range(AT_ONCE):
        argv = pipe.argv(there.nexthop, f"u{number}@b.example")
        argv[argv.index("QID")] = f"4ZbX{number}"
        jobs.append(partial(_run, pipe, argv, MESSAGE))
    with ThreadPoolExecutor(AT_ONCE) as together:
        return _spent(lambda: [*together.map(lambda job: job(), jobs)])


def _run(pipe: Runner, argv: Sequence[str], message: bytes) -> float:
    """Run it to its end; return the wall time."""
    began = time.monotonic()
    ended = pipe.run(argv, message, cwd="/")
    if ended.status != 0:
        raise RuntimeError(str(ended))
    return time.monotonic() - began


def _spent(work: Callable[[], Sequence[float]]) -> Spent:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    walls = work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(statistics.median(walls), max(walls), processor / len(walls))


def _check(pipe: Runner, there: Host) -> int:
    """Raise where a process had no journal; return how many had no memory in time."""
    got = Counter(one for one in there.rcpt_to if one.startswith("<u"))
    copies = {one: times for one, times in got.items() if times != 1}
    lines = pipe.log.read_text().splitlines()
    without = [one for one in lines if "nothing outlives" in one]
    if copies or len(got) != AT_ONCE or without:
        raise RuntimeError(f"{len(got)} messages; more than once {copies}; {without}")
    return sum("no answer from the store in time" in one for one in lines)


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
