"""What the pipe command costs before it delivers: its imports, beside a bare Python.

    python -m tests.bench imports [ROWS] [RUNS]

Needs root, the lab, and callgrind (Debian's valgrind, unpacked like the lab's own
packages). In one run:

- for a delivery without and with a configuration file, to a host in good health: its
  instructions as callgrind(1) counts them, and its user and system time (median of RUNS,
  wait4(2)); both beside `python3 -I -c pass` in a virtual environment with nothing in it
- how long each module took to import (`python3 -X importtime`) in such a delivery, the
  ROWS dearest ones, and the sum for each package

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
_BARE = "/etc/imports-python"


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
            print(_costs(world, str(valgrind), given.runs))
            print(f"\n{_table(_imported(world), given.rows)}")
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


def _costs(world: World, valgrind: str, runs: int) -> str:
    # An environment of its own: others may have much to do in `site` (.pth files).
    world.run("mta", [f"{INSTALLED}/bin/python", "-m", "venv", "--without-pip", _BARE])
    # What the script `mxpolicy` runs: callgrind counts one process.
    command = [f"{INSTALLED}/bin/python3", "-I", "-c", _COMMAND]
    asked = {
        "`python3 -I -c pass`": [f"{_BARE}/bin/python3", "-I", "-c", "pass"],
        "`mxpolicy pipe`, no configuration file": [*command, *_WITHOUT],
        "`mxpolicy pipe`, with one": [*command, *_WITH],
    }
    # The first delivery finds nothing remembered, and makes the file for it.
    _run(world, asked["`mxpolicy pipe`, with one"])
    first = (0.0, 0.0)
    rows: list[list[str]] = []
    for name, argv in asked.items():
        spent = _instructions(world, valgrind, argv), _processor(world, argv, runs)
        first = first if rows else spent
        instructions, seconds = spent
        rows.append(
            [
                *(name, f"{instructions / 1e6:.1f} M"),
                report.ratio(instructions, first[0]),
                *(report.seconds(seconds), report.ratio(seconds, first[1])),
            ]
        )
    head = ["", "instructions", "times", "processor time", "times"]
    return report.table(head, rows)


def _instructions(world: World, valgrind: str, argv: Sequence[str]) -> int:
    counting = ["--tool=callgrind", "--callgrind-out-file=/dev/null"]
    tools = {"VALGRIND_LIB": f"{valgrind}/usr/libexec/valgrind"}
    program = f"{valgrind}/usr/bin/valgrind"
    # A delivery leads its stderr away, but not what valgrind opened before.
    _, said = _run(world, [program, *counting, *argv], **tools)
    found = re.search(r"Collected : (\d+)", said)
    assert found is not None, said
    return int(found[1])


def _processor(world: World, argv: Sequence[str], runs: int) -> float:
    measuring = [f"{INSTALLED}/bin/python", "-I", "-c", _RUN, str(runs), _MESSAGE_FILE]
    said, _ = _run(world, [*measuring, *argv])
    return statistics.median(map(float, said.split()))


# --- each module -----------------------------------------------------------------


def _imported(world: World) -> list[Imported]:
    """Return what a delivery without a configuration file imports."""
    python = [f"{INSTALLED}/bin/python", "-I", "-X", "importtime", "-c", _KEEP_STDERR]
    _, said = _run(world, [*python, *_WITHOUT])
    line = re.compile(r"^import time: +(\d+) \| +(\d+) \| +(\S+)$", re.M)
    return [Imported(m[3], int(m[1]), int(m[2])) for m in line.finditer(said)]


def _table(imported: Sequence[Imported], rows: int) -> str:
    whole = sum(one.own for one in imported)

    def row(name: str, own: int, cumulative: str) -> list[str]:
        return [name, f"{own} µs", f"{100 * own / whole:.1f} %", cumulative]

    sums: Counter[str] = Counter()
    for one in imported:
        sums[_package(one.name)] += one.own
    dearest = sorted(imported, key=lambda one: one.own, reverse=True)
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
