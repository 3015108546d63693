"""What is shown to people: leaving when the reader has left, and how time is written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mxpolicy.terminal import age, duration, milliseconds

CHECKOUT = Path(__file__).parents[1]


def run_unread(code: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run *code* with a stdout that nothing reads any more."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        return subprocess.run(
            [sys.executable, "-c", code],
            stdout=writes,
            stderr=subprocess.PIPE,
            env={**os.environ, **environ},
            timeout=60,
            check=False,
        )
    finally:
        os.close(writes)


@pytest.mark.parametrize("length", [1, 1_000_000], ids=["at_the_flush", "at_the_print"])
def test_reader_that_has_left_ends_the_block_and_nothing_else(length: int) -> None:
    ended = run_unread(
        "from mxpolicy.terminal import reader_may_leave\n"
        "def shown():\n"
        "    with reader_may_leave():\n"
        f"        print('x' * {length})\n"
        "        return 3\n"
        "    return 4\n"
        "raise SystemExit(shown() + 10)\n"
    )
    assert ended.stderr == b""
    assert ended.returncode == 14


@pytest.mark.parametrize(
    ("argv", "status"), [(["hosts"], 0), (["demo", "--list"], 1)], ids=["hosts", "demo"]
)
def test_command_whose_reader_has_left_ends_quietly(
    argv: list[str], status: int, tmp_path: Path
) -> None:
    code = f"import sys; from mxpolicy.cli import main; sys.argv[1:] = {argv}; sys.exit(main())"
    ended = run_unread(code, STATE_DIRECTORY=str(tmp_path), MXPOLICY_CONFIG="/dev/null")
    assert (ended.returncode, ended.stderr) == (status, b"")


def shown(arguments: str, to: str, tmp_path: Path) -> tuple[int, str]:
    """Run ``mxpolicy`` in a shell, stdout as *to* says; return status and stderr."""
    code = "import sys; from mxpolicy.cli import main; sys.exit(main())"
    command = f"{shlex.join([sys.executable, '-c', code])} {arguments} {to}"
    said = {"STATE_DIRECTORY": str(tmp_path), "MXPOLICY_CONFIG": "/dev/null"}
    ended = subprocess.run(
        ["/bin/sh", "-c", command],
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, **said},
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("arguments", ["hosts", "hosts --json", "--help", "-V"])
def test_closed_stdout_is_no_trouble(arguments: str, tmp_path: Path) -> None:
    assert shown(arguments, ">&-", tmp_path) == (0, "")


@pytest.mark.parametrize("arguments", ["hosts", "hosts --json"])
def test_stdout_on_a_full_disk_is_told(arguments: str, tmp_path: Path) -> None:
    said = "mxpolicy: standard output: No space left on device\n"
    assert shown(arguments, ">/dev/full", tmp_path) == (1, said)


@pytest.mark.parametrize(
    ("seconds", "exactly", "as_age"),
    [
        (0.0, "0 ms", "0s"),
        (0.012, "12 ms", "0s"),
        (1.5, "1.5 s", "2s"),
        (119.0, "119 s", "119s"),
        (120.0, "120 s", "2m"),
        (7200.0, "7200 s", "2h"),
        (9999.7, "10000 s", "3h"),
        (36000.0, "36000 s", "10h"),
    ],
)
def test_time_is_written_exactly_or_as_an_age(
    seconds: float, exactly: str, as_age: str
) -> None:
    assert (duration(seconds), age(seconds)) == (exactly, as_age)


def test_age_of_what_is_yet_to_come_is_none() -> None:
    assert age(-5.0) == "0s"
    assert age(172800.0) == "2d"


def test_times_of_one_column_have_one_unit() -> None:
    assert milliseconds(6.1) == "6100 ms"
