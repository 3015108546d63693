"""The command ``mxpolicy`` as it is installed, and run as a mail server runs it.

`command` is a `Command`, and a test that has it runs for each of the two clients. Its tree
looks like a virtual environment, so that the script finds them where an installation
has them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.piping import CHECKOUT, MESSAGE, TIMEOUT, Ended, all_answers

__all__ = [
    "PERL",
    "PERL_CLIENT",
    "PYTHON",
    "SEARCH",
    "Command",
    "child_of",
    "command",
    "in_perl",
]

# The clients, by the interpreter.
PERL, PYTHON = "perl", "python3"

PERL_CLIENT = CHECKOUT / "mxpolicy" / "handover.pl"

SEARCH = "/usr/bin:/bin"
# What the script, and the tests that wrap it, start by name.
PROGRAMS = (
    "cat",
    "env",
    "mount",
    "prlimit",
    "python3",
    "readlink",
    "setpriv",
    "unshare",
)


class Command:
    """Runs ``mxpolicy pipe``.

    Args:
        directory: Where its tree is made.
        python: The interpreter; by default that of the tests.
        client: The one that the script takes: Perl's, where the PATH has a perl.

    Attributes:
        program: The script.
        config: For the run without a daemon.
        search: The PATH.
        client: As given.
    """

    def __init__(
        self, directory: Path, python: Path | None = None, client: str = PERL
    ) -> None:
        self.client = client
        self.search = SEARCH if client == PERL else _without_perl(directory / "search")
        self.root = directory / "venv"
        self.program = self.root / "bin" / "mxpolicy"
        self.config = directory / "alone.yaml"
        self.log = directory / "alone.log"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = self.root / "lib" / version / "site-packages"
        packages.mkdir(parents=True)
        self.program.parent.mkdir()
        shutil.copy(CHECKOUT / "mxpolicy" / "command.sh", self.program)
        base = python or Path(sys.base_prefix) / "bin" / "python3"
        (self.root / "bin" / "python3").symlink_to(base)
        (self.root / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
        (packages / "mxpolicy").symlink_to(CHECKOUT / "mxpolicy")
        others = sysconfig.get_path("purelib")
        (packages / "others.pth").write_text(f"{others}\n")
        state = directory / "alone.state"
        state.mkdir(mode=0o700)
        self.config.write_text(
            "allow_dial: [127.0.0.0/8]\nhelo: alone.example.com\n"
            f"state: {state}\nlog: {{to: {self.log}}}\n"
        )

    def argv(self, path: Path | str, nexthop: str, *recipients: str) -> list[str]:
        """Return the arguments of a call with the daemon's socket at *path*."""
        return [
            *("pipe", "-f", "me@a.example", "--nexthop", nexthop, "--queue-id", "QID"),
            *("--socket", str(path), "--config", str(self.config)),
            *("--", *(recipients or ["b@b.example"])),
        ]

    @contextlib.contextmanager
    def started(
        self, argv: Sequence[str], **more: Any
    ) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
        """Start it; stdout and stderr are one socket that keeps writes apart."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(TIMEOUT)
        more = {"stdin": subprocess.PIPE, "cwd": "/", **more}
        wrap = more.pop("wrap", [])
        environ = {"PATH": self.search, **more.pop("environ", {})}
        with (
            ours,
            theirs,
            _popen(
                [*wrap, str(self.program), *argv],
                stdout=theirs,
                stderr=theirs,
                env=environ,
                **more,
            ) as process,
        ):
            theirs.close()
            try:
                yield process, ours
            finally:
                process.kill()

    def run(self, argv: Sequence[str], message: bytes = MESSAGE, **more: Any) -> Ended:
        """Run it to its end."""
        with self.started(argv, **more) as (process, answers):
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(message)
            found = all_answers(answers)
            return Ended(process.wait(TIMEOUT), found)


def _popen(command: list[str], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, **more)


def _without_perl(directory: Path) -> str:
    """Return a PATH, made anew."""
    directory.mkdir()
    for name in PROGRAMS:
        if found := shutil.which(name, path=SEARCH):
            (directory / name).symlink_to(found)
    return str(directory)


@pytest.fixture(params=[PERL, PYTHON])
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Command:
    if request.param == PERL and not shutil.which("perl", path=SEARCH):
        pytest.skip("needs Perl")
    return Command(tmp_path, client=request.param)


def child_of(pid: int) -> int:
    """Return the process that *pid* waits for."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text().split()):
        os.sched_yield()
    return int(found[0])


# What belongs to the file alone is made to be seen, and its main program does not run.
_LOAD = """
my $text = do { local (@ARGV, $/) = shift; <> };
$text =~ s/^my /our /mg;
eval $text or die $@;
"""


def in_perl(
    does: str, argv: Sequence[str] = (), environ: Mapping[bytes, bytes] | None = None
) -> bytes:
    """Return what Perl prints with the functions of its client, which was called so."""
    load = ["perl", "-e", f"{_LOAD} {does}", "--", str(PERL_CLIENT)]
    return subprocess.run(
        [*load, *argv], env=environ, stdout=subprocess.PIPE, check=True
    ).stdout
