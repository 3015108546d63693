"""What bash and zsh complete, asked of the shells themselves where they are installed."""

import shutil
import subprocess

import pytest

from tests.reference import CHECKOUT

COMPLETION = CHECKOUT / "contrib" / "completion"

BASH = """
. "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_mxpolicy
echo "${COMPREPLY[*]}"
"""


def complete(*words: str) -> list[str]:
    """Return what bash offers for the last of *words*."""
    argv = ["bash", "-c", BASH, "bash", str(COMPLETION / "mxpolicy.bash"), *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("ro",), ["route"]),
        (("--v",), ["--version"]),
        (("route", "--s"), ["--sender"]),
        (("pipe", "--q"), ["--queue-id"]),
        (("hosts", "cl"), ["clear"]),
        (("demo", "dro"), ["dropped"]),
        (("ask", "reci"), ["recipient="]),
        (("check", "--config", "pyproj"), ["pyproject.toml"]),
        (("no-such-command", ""), []),
    ],
)
def test_bash_completes(words: tuple[str, ...], offered: list[str]) -> None:
    assert complete("mxpolicy", *words) == offered


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed here")
def test_zsh_understands_its_file() -> None:
    subprocess.run(["zsh", "-n", COMPLETION / "_mxpolicy"], check=True)
