"""Every figure of the manual from one run, in one order, with what it takes to repeat it.

    python -m tests.bench [--short] [--write] [--only NAME...]

Needs root and the lab (`tests.lab`). Runs the programs of this directory one after the
other and prints a summary, then the table of each with its command. That takes an hour
and more; `--short` takes less than five minutes, with fewer messages and without what
needs long. `--write` puts each table into README or BENCHMARKS.md, between the marks of
its program, and what it was measured with above the summary. Figures that stand there
without marks are of longer runs (`kills`, `soak`, `late`).
"""

import argparse
import contextlib
import io
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import NamedTuple

from tests.lab.packages import CHECKOUT, LabUnavailable
from tests.lab.world import World

from . import report
from .installation import base_python, installation, version

FILES = (CHECKOUT / "README.md", CHECKOUT / "BENCHMARKS.md")
"""What has the tables, each between its marks."""

SUMMARY_BLOCK = "summary"
"""The marks of the summary; those of a table have the program's name."""

Tables = dict[str, list[list[list[str]]]]
"""By program: its tables, each rows of cells, and the first row is the head."""


class Part(NamedTuple):
    """A program, and its arguments; *short* is None where it is left out then.

    Where *installed*, it runs by the Python that mxpolicy is installed with. Where not
    *written*, the manual has the figures of a longer run.
    """

    name: str
    words: str
    full: Sequence[str]
    short: Sequence[str] | None
    installed: bool = False
    written: bool = True


PARTS = (
    Part("faults", "Seconds until a good host had the message", (), ("good", "reset")),
    Part("again", "The message after the first, past a bad first MX", (), None),
    Part("places", "Healthy mail behind a bad domain, a process each", ("40",), None),
    Part("doors", "Through the real Postfix", ("1500",), ("300", "--rounds", "1")),
    Part("counted", "What one message executes", ("40",), ("8",)),
    Part(
        name="sessions",
        words="Without a mail server",
        full=("1000",),
        short=("300", "--rounds", "1"),
        installed=True,
    ),
    Part("mixed", "A host that also refuses and is silent", ("1000",), ("300",)),
    Part("deferrals", "A destination that is down", (), ("150",)),
    Part("policy", "Access policy", ("20000",), ("3000",)),
    Part("large", "A large message", (), ("--runs", "1")),
    Part("state", "A large state", (), ("20000",)),
    Part("daemon_memory", "The daemon's memory", (), ("20000", "200")),
    Part("limits", "Thousands of messages for one destination", (), None),
    Part("kills", "Killed at random", ("100",), None, written=False),
)


class Line(NamedTuple):
    """A line of the summary: where its figures are, each as a path to a cell."""

    words: str
    ours: "Cell"
    theirs: "Cell | None" = None
    ratio: "Cell | None" = None


class Cell(NamedTuple):
    """A cell: the program, what its row begins with, the column; which of its tables."""

    name: str
    row: str
    column: int
    table: int = 0

    def of(self, tables: Tables) -> str:
        """Return its text, or "" where it was not measured."""
        for found in tables.get(self.name, [])[self.table : self.table + 1]:
            for row in found[1:]:
                if row[0].startswith(self.row):
                    return row[self.column]
        return ""


_DOORS = "doors"
_IDLE = Cell("daemon_memory", "idle", 1)

SUMMARY = (
    *(
        Line(words, *(Cell("faults", row, column) for column in (1, 2, 3)))
        for words, row in (
            ("first message, first MX dropped; smtp(8)", "first MX: SYN dropped"),
            ("first message, first MX silent; smtp(8)", "first MX: accepts and is"),
        )
    ),
    Line(
        "the next one; a healthy destination",
        *(Cell("again", "SYN dropped", column) for column in (3, 2, 4)),
    ),
    Line(
        "healthy mail behind 40 for a bad domain; on a quiet machine",
        *(Cell("places", "40 messages: SYN", 1), Cell("places", "nothing", 1)),
    ),
    *(
        Line(
            words,
            Cell(_DOORS, row, 1, 2),
            Cell(_DOORS, "smtp(8)", 1, 2),
            Cell(_DOORS, row, 2, 2),
        )
        for words, row in (
            ("LMTP, waiting; smtp(8)", "LMTP"),
            (
                "the same, the journal's dot durable; smtp(8)",
                "LMTP, journal.durable: yes",
            ),
            ("the same, not durable; smtp(8)", "LMTP, journal.durable: no"),
            ("LMTP, the first MX dropped; smtp(8), healthy", "LMTP, first MX"),
        )
    ),
    Line(
        "LMTP, each message another destination; smtp(8), the same",
        *(Cell(_DOORS, "LMTP, each", 1, 2), Cell(_DOORS, "smtp(8), each", 1, 2)),
    ),
    Line(
        "LMTP, from smtp-source(1); smtp(8)",
        *(
            Cell(_DOORS, "LMTP", 1),
            Cell(_DOORS, "Postfix smtp(8)", 1),
            Cell(_DOORS, "LMTP", 2),
        ),
    ),
    Line(
        "pipe(8) with the daemon; smtp(8)",
        *(Cell(_DOORS, "pipe, handed", 1), Cell(_DOORS, "Postfix smtp(8)", 1)),
        Cell(_DOORS, "pipe, handed", 2),
    ),
    Line(
        "pipe(8) with the daemon; pipe(8) with msmtp",
        *(Cell(_DOORS, "pipe, handed", 1), Cell(_DOORS, "pipe, msmtp", 1)),
    ),
    Line(
        "its client, instructions; msmtp",
        *(Cell("counted", "pipe, handed", 1), Cell("counted", "pipe, msmtp", 1)),
    ),
    Line("mxpolicy pipe alone, instructions", Cell("counted", "pipe alone", 1)),
    Line(
        "LMTP, instructions of the daemon; of smtp(8)",
        *(Cell("counted", "LMTP", 2), Cell("counted", "Postfix smtp(8)", 1)),
    ),
    Line(
        "a mixed host, LMTP; smtp(8)",
        *(
            Cell("mixed", "LMTP", 1),
            Cell("mixed", "Postfix", 1),
            Cell("mixed", "LMTP", 2),
        ),
    ),
    Line(
        "deferrals: attempts at a host; allowed",
        *(Cell("deferrals", "attempts at host 1", 1), Cell("deferrals", "allowed", 1)),
    ),
    Line(
        "access policy, uvloop; the resolver's, asyncio",
        *(Cell("policy", "serve, uvloop", 1), Cell("policy", "resolver, asyncio", 1)),
    ),
    Line(
        "access policy, asyncio; the resolver's, asyncio",
        *(Cell("policy", "serve, asyncio", 1), Cell("policy", "resolver, asyncio", 1)),
    ),
    Line(
        "50 MiB by LMTP; smtp(8)",
        *(
            Cell("large", "LMTP", 1),
            Cell("large", "Postfix", 1),
            Cell("large", "LMTP", 2),
        ),
    ),
    Line(
        "50 MiB by LMTP, memory; smtp(8)",
        Cell("large", "LMTP", 4),
        Cell("large", "Postfix", 4),
    ),
    Line(
        "processor time of a delivery, a large state; an empty one",
        *(
            Cell("state", "1,100,000 rows in journal", 2),
            Cell("state", "empty", 2),
            Cell("state", "1,100,000 rows in journal", 3),
        ),
    ),
    *(
        Line(f"the daemon, {words}; idle", Cell("daemon_memory", row, 1), _IDLE)
        for words, row in (
            ("100,000 hosts remembered in memory", "100,000 hosts, in memory"),
            ("1,000 open sessions", "1,000 open sessions"),
        )
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Measure, and print all; 1 where the lab cannot be, or a program was not content."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="less than five minutes")
    parser.add_argument("--write", action="store_true", help="into the manual")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        where = _circumstances()
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    blocks: dict[str, str] = {}
    tables: Tables = {}
    failed = []
    for part in PARTS:
        given = part.short if options.short else part.full
        if given is None or (options.only and part.name not in options.only):
            continue
        print(
            f"{time.monotonic() - begun:6.0f} s  {part.name}",
            file=sys.stderr,
            flush=True,
        )
        status, said = _run(part, given)
        if status:
            failed.append(part.name)
        found = re.findall(r"(?m)(?:^\|.*\n?)+", said)
        tables[part.name] = [_cells(one) for one in found]
        command = " ".join(["python -m tests.bench", part.name, *given])
        head = f"**{part.words}** (`{command}`)"
        blocks[part.name] = "\n\n".join([head, *map(str.strip, found)])
    took = f"One run of {(time.monotonic() - begun) / 60:.0f} minutes"
    how = "`python -m tests.bench" + (" --short`" if options.short else "`")
    summary = f"{took}, {how}. {where}\n\n{_summary(tables)}"
    print("\n\n".join([summary, *blocks.values()]))
    if failed:
        print(f"not content: {', '.join(failed)}", file=sys.stderr)
    elif options.write:
        fit = {
            part.name: blocks[part.name]
            for part in PARTS
            if part.written and part.name in blocks
        }
        texts = written(
            [path.read_text() for path in FILES], {SUMMARY_BLOCK: summary, **fit}
        )
        for path, text in zip(FILES, texts, strict=True):
            path.write_text(text)
    return 1 if failed else 0


def marks(name: str) -> tuple[str, str]:
    """Return what stands around a block."""
    return f"<!-- bench {name} -->", f"<!-- /bench {name} -->"


def written(texts: Sequence[str], blocks: Mapping[str, str]) -> list[str]:
    """Return *texts* with each of *blocks* between its marks, in the one that has them."""
    made = list(texts)
    for name, block in blocks.items():
        first, last = marks(name)
        for number, text in enumerate(made):
            begin, end = text.find(first), text.find(last)
            if 0 <= begin < end:
                kept = text[: begin + len(first)], text[end:]
                made[number] = f"{kept[0]}\n\n{block}\n\n{kept[1]}"
                break
        else:
            raise ValueError(f"no {first} and {last} behind it")
    return made


def _run(part: Part, arguments: Sequence[str]) -> tuple[int, str]:
    """Return a program's status, and what it has printed."""
    if part.installed:
        python = str(installation() / "bin" / "python3")
        done = subprocess.run(
            [python, "-m", f"tests.bench.{part.name}", *arguments],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout
    program: Callable[[Sequence[str]], int]
    program = import_module(f"tests.bench.{part.name}").main
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = program(arguments)
    return status, out.getvalue()


def _cells(table: str) -> list[list[str]]:
    head, _, *rows = table.strip().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *rows)]


def _summary(tables: Tables) -> str:
    rows = []
    for line in SUMMARY:
        ours = line.ours.of(tables)
        theirs = line.theirs.of(tables) if line.theirs else ""
        ratio = line.ratio.of(tables) if line.ratio else _ratio(ours, theirs)
        if ours:
            rows.append((line.words, ours, theirs, ratio))
    return report.table(("what; beside what", "mxpolicy", "the other", "ratio"), rows)


def _ratio(ours: str, theirs: str) -> str:
    """Return the ratio of two figures of one unit, where they are that."""
    found = [re.fullmatch(r"([\d.]+) ?(\D*)", one) for one in (ours, theirs)]
    first, second = found
    if not first or not second or first[2] != second[2]:
        return ""
    return report.ratio(float(first[1]), float(second[1]))


def _circumstances() -> str:
    """Return what a reader needs to repeat the run. Raises LabUnavailable."""
    python = base_python()
    with World() as world:
        postfix = world.run("mta", ["postconf", "-dh", "mail_version"]).stdout.decode()
        exim = world.run("mta", ["exim4", "-C", "/dev/null", "-bV"]).stdout.decode()
    found = re.search(r"Exim version (\S+)", exim)
    model = re.search(r"(?m)^model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    release = platform.freedesktop_os_release()["PRETTY_NAME"]
    return (
        f"{datetime.now(UTC):%d %B %Y}; mxpolicy {version_of('mxpolicy')} as a wheel with "
        f"`fast`, {python} {version(python)}; Postfix {postfix.strip()}, Exim "
        f"{found[1] if found else '?'}; {release}, Linux {platform.release()}; "
        f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}; load "
        f"{os.getloadavg()[0]:.1f} before. Processor time is user and system; instructions "
        "are those of user space. Only ratios and instructions mean something elsewhere."
    )
