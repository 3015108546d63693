"""What ``mxpolicy pipe`` takes of the processor: bounds, in instructions.

Instructions do not depend on the machine's load, as times do. Debian's python3 is
counted, for which they are stated; `python -m tests.bench handover` and `imports` say
where they go.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.counting import ENVIRONMENT, instructions
from tests.helpers.handing_over import PERL, PYTHON, Command
from tests.helpers.piping import MESSAGE, Host, host
from tests.helpers.serving import Runner

__all__ = ["host"]  # a fixture

DEBIAN = Path("/usr/bin/python3")
# What the tests' own environment holds is for one minor version.
LIBRARY = Path("/usr/lib/python{}.{}".format(*sys.version_info)) / "os.py"
MILLION = 1_000_000

HANDED_OVER = {PERL: 7 * MILLION, PYTHON: 17 * MILLION}
# With a configuration file, of which PyYAML takes 75 M.
ALONE = 450 * MILLION
SCRIPT = 1 * MILLION


@pytest.fixture(params=[PERL, PYTHON])
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Command:
    if not (shutil.which("valgrind") and DEBIAN.exists() and LIBRARY.exists()):
        pytest.skip("needs valgrind, and Debian's python3 of this minor version")
    return Command(tmp_path, DEBIAN, request.param)


def test_message_that_is_handed_over(
    command: Command,
    host: Callable[..., Host],
    tmp_path: Path,
) -> None:
    there = host()
    with Runner(tmp_path).started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        _run(command, argv)
        counted = instructions([str(command.program), *_anew(argv)], command.search)
    assert counted.script < SCRIPT
    assert counted.perl + counted.python < HANDED_OVER[command.client]
    assert min(counted.perl, counted.python) == 0
    assert len(there.messages) == 2


def test_message_that_is_delivered_alone(
    command: Command,
    host: Callable[..., Host],
) -> None:
    there = host()
    argv = command.argv(Path("/nowhere"), there.nexthop)
    _run(command, argv)
    counted = instructions([str(command.program), *_anew(argv)], command.search)
    assert counted.script < SCRIPT
    assert counted.perl < HANDED_OVER[PERL]  # it has asked for the daemon
    assert counted.python < ALONE
    assert len(there.messages) == 2


def _run(command: Command, argv: list[str]) -> None:
    """Run it once, so that the byte code is there, and something is remembered."""
    subprocess.run(
        [str(command.program), *argv],
        input=MESSAGE,
        stdout=subprocess.DEVNULL,
        env={**ENVIRONMENT, "PATH": command.search},
        check=True,
    )


def _anew(argv: list[str]) -> list[str]:
    """Return *argv* for another message: the journal knows the first."""
    return ["4ZbX3k0Qz" if word == "QID" else word for word in argv]
