"""What the pipe command costs before it delivers: its imports, beside a bare Python.

    python -m tests.bench imports [ROWS] [RUNS]

Needs root, the lab, and cachegrind (Debian's valgrind, unpacked like the lab's own
packages). In one run:

- for a delivery without and with a configuration file, to a host in good health: its
  instructions as cachegrind(1) counts them, and its user and system time (median of RUNS,
  wait4(2)); both beside `python3 -I -c pass`
- what takes these instructions: the interpreter, the standard library, mxpolicy's own
  modules, and the delivery itself
- how long each module takes to import (`python3 -X importtime`, the least of RUNS) in
  such a delivery, the ROWS dearest ones, and the sum for each package

It is installed by pip, and so has its byte code.
"""

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tests.lab.packages import LabUnavailable, root_tree
from tests.lab.world import INSTALLED, World

from . import report
from .servers import ALONE, Servers

MESSAGE = b"Received: from a by b\nSubject: one\n\nOne line.\n"

_FILE = "/etc/imports.yaml"
_CONFIGURATION = """\
helo: mail.lab.test
own_addresses: [192.0.2.25]
log: {to: syslog, detail: recipients}
"""

_ARGUMENTS = ["pipe", "-f", "me@lab.test", "--queue-id", "4ZbX3k0Qz"]
_RECIPIENT = ["--", f"user@{ALONE}.lab.test"]
_WITHOUT = [*_ARGUMENTS, *_RECIPIENT]
_WITH = [*_ARGUMENTS, "--config", _FILE, *_RECIPIENT]

# What pipe(8) gives a command; byte code may be written, and none is hidden.
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONHASHSEED": "0",  # the same instructions in every run
}

_COMMAND = "from mxpolicy.cli import main; main()"

# Its stderr is led away when it begins, and with it what the interpreter reports.
_KEEP_STDERR = """
import os, sys
dup2 = os.dup2
os.dup2 = lambda old, new: new if new == 2 else dup2(old, new)
from mxpolicy.cli import main
main()
"""

# Run a command so many times, stdin from a file; print each run's seconds.
_RUN = """
import os, sys
count, message, *argv = sys.argv[1:]
out = os.open(os.devnull, os.O_WRONLY)
for _ in range(int(count)):
    stdin = os.open(message, os.O_RDONLY)
    places = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, out, 1)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=places)
    os.close(stdin)
    _, status, used = os.wait4(pid, 0)
    assert status == 0, (argv, status)
    print(used.ru_utime + used.ru_stime)
"""

_MESSAGE_FILE = "/etc/imports.message"
_PYTHON = f"{INSTALLED}/bin/python3"

# As the command does it, which ends without the interpreter's own way out. Modules of
# other systems are among those that are asked for.
_IMPORT = """
import gc, os
gc.disable()
for name in {names}:
    try:
        __import__(name)
    except ImportError:
        pass
os._exit(0)
"""


class Imported(NamedTuple):
    """A module: microseconds of its own, and with what it was the first to import."""

    name: str
    own: int
    cumulative: int


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there are tables."""
    parser = argparse.ArgumentParser("python -m tests.bench imports")
    parser.add_argument("rows", nargs="?", type=int, default=25)
    parser.add_argument("runs", nargs="?", type=int, default=9)
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        valgrind = root_tree((("valgrind",),))
        with Servers() as servers:
            world = servers.world
            world.path(_FILE).write_text(_CONFIGURATION)
            world.path(_MESSAGE_FILE).write_bytes(MESSAGE)
            counts = Counts(world, str(valgrind))
            print(_costs(counts, given.runs))
            imported = _imported(world, given.runs)
            print(f"\n{_shares(counts, imported)}")
            print(f"\n{_table(imported, given.rows)}")
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    print(f"\n{report.circumstances(begun)}")
    return 0


def _run(world: World, argv: Sequence[str], **more: str) -> tuple[bytes, str]:
    """Run a command with a message on stdin as pipe(8) would; return its two outputs."""
    done = world.run(
        "mta",
        argv,
        user="mxpolicy",
        stdin=MESSAGE,
        env={**_ENVIRONMENT, **more},
        timeout=300,
    )
    return done.stdout, done.stderr.decode()


# --- the whole -------------------------------------------------------------------


class Counts:
    """Counts instructions, each command once."""

    def __init__(self, world: World, valgrind: str) -> None:
        self.world = world
        self._valgrind = valgrind
        self._known: dict[tuple[str, ...], int] = {}

    def of(self, argv: Sequence[str]) -> int:
        """Return the instructions of a command."""
        key = tuple(argv)
        if key not in self._known:
            self._known[key] = self._count(argv)
        return self._known[key]

    def of_imports(self, names: Sequence[str]) -> int:
        """Return the instructions of a process that imports *names*."""
        program = _IMPORT.format(names=list(names))
        return self.of([_PYTHON, "-I", "-c", program])

    def _count(self, argv: Sequence[str]) -> int:
        # No gdbserver: its files in /tmp bear the process's number, which the lab's
        # processes share with those of other labs.
        counting = ["--vgdb=no", "--tool=cachegrind", "--cache-sim=no"]
        counting.append("--cachegrind-out-file=/dev/null")
        tools = {"VALGRIND_LIB": f"{self._valgrind}/usr/libexec/valgrind"}
        program = f"{self._valgrind}/usr/bin/valgrind"
        # A delivery leads its stderr away, but not what valgrind opened before.
        _, said = _run(self.world, [program, *counting, *argv], **tools)
        found = re.search(r"I +refs: +([\d,]+)", said)
        assert found is not None, said
        return int(found[1].replace(",", ""))


# What the script `mxpolicy` runs: cachegrind counts one process.
_DELIVERY = [_PYTHON, "-I", "-c", _COMMAND]


def _costs(counts: Counts, runs: int) -> str:
    asked = {
        "`python3 -I -c pass`": [_PYTHON, "-I", "-c", "pass"],
        "`mxpolicy pipe`, no configuration file": [*_DELIVERY, *_WITHOUT],
        "`mxpolicy pipe`, with one": [*_DELIVERY, *_WITH],
    }
    # The first delivery finds nothing remembered, and makes the file for it.
    _run(counts.world, asked["`mxpolicy pipe`, with one"])
    first = (0.0, 0.0)
    rows: list[list[str]] = []
    for name, argv in asked.items():
        spent = counts.of(argv), _processor(counts.world, argv, runs)
        first = first if rows else spent
        instructions, seconds = spent
        rows.append(
            [
                *(name, _millions(instructions)),
                report.ratio(instructions, first[0]),
                *(report.seconds(seconds), report.ratio(seconds, first[1])),
            ]
        )
    head = ["", "instructions", "times", "processor time", "times"]
    return report.table(head, rows)


def _millions(instructions: int) -> str:
    return f"{instructions / 1e6:.1f} M"


def _shares(counts: Counts, imported: Sequence[Imported]) -> str:
    """Return what takes the instructions, as the differences of growing processes."""
    names = [one.name for one in imported]
    ours = [name for name in names if name.partition(".")[0] == "mxpolicy"]
    library = [name for name in names if name not in ours]
    whole = counts.of([*_DELIVERY, *_WITHOUT])
    grown = {
        "the interpreter": counts.of_imports([]),
        "`typing`, `enum`, `re`": counts.of_imports(["typing", "enum", "re"]),
        "`ssl`, which `asyncio` imports": counts.of_imports(["typing", "enum", "ssl"]),
        "`asyncio`": counts.of_imports(["typing", "enum", "ssl", "asyncio"]),
        "the rest of the standard library": counts.of_imports(library),
        "the modules of mxpolicy": counts.of_imports([*library, *ours]),
        "DNS, memory and journal, SMTP": whole,
        "a configuration file (PyYAML)": counts.of([*_DELIVERY, *_WITH]),
    }
    rows, before = [], 0
    for name, until in grown.items():
        share = f"{100 * (until - before) / whole:.0f} %"
        rows.append([name, _millions(until - before), share])
        before = until
    return report.table(["of a delivery alone", "instructions", "share"], rows)


def _processor(world: World, argv: Sequence[str], runs: int) -> float:
    measuring = [_PYTHON, "-I", "-c", _RUN, str(runs), _MESSAGE_FILE]
    said, _ = _run(world, [*measuring, *argv])
    return statistics.median(map(float, said.split()))


# --- each module -----------------------------------------------------------------


def _imported(world: World, runs: int) -> list[Imported]:
    """Return what a delivery without a configuration file imports, in its order."""
    python = [_PYTHON, "-I", "-X", "importtime", "-c", _KEEP_STDERR]
    line = re.compile(r"^import time: +(\d+) \| +(\d+) \| +(\S+)$", re.M)
    least: dict[str, Imported] = {}
    for _ in range(runs):
        _, said = _run(world, [*python, *_WITHOUT])
        for found in line.finditer(said):
            one = Imported(found[3], int(found[1]), int(found[2]))
            least[one.name] = min(least.get(one.name, one), one, key=_own)
    return list(least.values())


def _own(one: Imported) -> int:
    return one.own


def _table(imported: Sequence[Imported], rows: int) -> str:
    whole = sum(one.own for one in imported)

    def row(name: str, own: int, cumulative: str) -> list[str]:
        return [name, f"{own} µs", f"{100 * own / whole:.1f} %", cumulative]

    sums: Counter[str] = Counter()
    for one in imported:
        sums[_package(one.name)] += one.own
    dearest = sorted(imported, key=_own, reverse=True)
    modules = report.table(
        ["module", "own", "share", "cumulative"],
        [
            row(f"`{one.name}`", one.own, f"{one.cumulative} µs")
            for one in dearest[:rows]
        ],
    )
    packages = report.table(
        ["package", "own", "share", "modules"],
        [
            row(name, own, str(sum(_package(one.name) == name for one in imported)))
            for name, own in sums.most_common()
        ]
        + [row("all", whole, str(len(imported)))],
    )
    return f"{packages}\n\n{modules}"


def _package(name: str) -> str:
    top = name.partition(".")[0]
    return f"`{top}`" if top in {"mxpolicy", "dns", "asyncio"} else "the others"
