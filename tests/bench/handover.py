"""What ``mxpolicy pipe`` costs where a daemon takes the message, beside a delivery alone.

    python -m tests.bench handover [RUNS] [--python PROGRAM]

Needs no root and no lab; callgrind (Debian's valgrind) on the PATH. The script and the
client run with PROGRAM, by default Debian's python3, which has to be of the same minor
version as that of the tests. Perl's client and Python's stand beside each other. The
daemon is not counted: see `python -m tests.bench processor`. In one run, for a small
message to a host in good health:

- instructions as callgrind(1) counts them, of the script, of Perl and of Python
- user and system time of all (median of RUNS, getrusage(2))
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from tests.helpers.counting import ENVIRONMENT, instructions
from tests.helpers.handing_over import PERL, PYTHON, SEARCH, Command
from tests.helpers.piping import MESSAGE, Host
from tests.helpers.serving import Runner

from . import report


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there is a table."""
    parser = argparse.ArgumentParser("python -m tests.bench handover")
    parser.add_argument("runs", nargs="?", type=int, default=25)
    parser.add_argument("--python", type=Path, default=Path("/usr/bin/python3"))
    given = parser.parse_args(arguments)
    if not shutil.which("valgrind"):
        print("needs valgrind", file=sys.stderr)
        return 1
    begun = time.monotonic()
    there = Host()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        commands = {}
        for client in (PERL, PYTHON):
            (directory / client).mkdir()
            commands[client] = Command(directory / client, given.python, client)
        numbers = count()
        bare = {
            PERL: [PERL, "-e", "1"],
            PYTHON: [str(given.python), "-IS", "-c", "pass"],
        }

        def row(name: str, client: str, path: Path | None) -> list[str]:
            command = commands[client]

            def argv() -> list[str]:
                if path is None:
                    return bare[client]
                words = command.argv(path, there.nexthop)
                # A queue id that was used before means "delivered earlier".
                words[words.index("QID")] = f"4Zb{next(numbers)}"
                return [str(command.program), *words]

            return _row(name, argv, command.search if path else SEARCH, given.runs)

        try:
            with Runner(directory).started() as daemon:
                handed = daemon.run / "pipe"
                rows = [
                    *(
                        row(f"`{' '.join(words)}`", client, None)
                        for client, words in bare.items()
                    ),
                    row("handed over by Perl", PERL, handed),
                    row("handed over by Python", PYTHON, handed),
                    row("alone, with Perl", PERL, Path("/nowhere")),
                    row("alone, without", PYTHON, Path("/nowhere")),
                ]
        finally:
            there.close()
    head = ["`mxpolicy pipe`", "script", "Perl", "Python", "processor time"]
    print(report.table(head, rows))
    print(f"\n{report.circumstances(begun)}")
    return 0


def _row(name: str, argv: Callable[[], list[str]], search: str, runs: int) -> list[str]:
    _spent(argv(), search)  # the byte code, and what is remembered of the host
    counts = instructions(argv(), search)
    seconds = statistics.median(_spent(argv(), search) for _ in range(runs))
    return [name, *map(_millions, counts), report.seconds(seconds)]


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count else ""


def _spent(argv: Sequence[str], search: str) -> float:
    environ = {**ENVIRONMENT, "PATH": search}
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run(
        argv, input=MESSAGE, stdout=subprocess.DEVNULL, env=environ, check=True
    )
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
