"""How a program of the mail server is run: bounded in time and in what it says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mxpolicy.check.programs import ProgramError, run


def program(directory: Path, text: str) -> None:
    file = directory / "postconf"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_program_that_hangs_is_given_up(tmp_path: Path) -> None:
    # A process of its own in between, which holds the pipe open as a real one may.
    program(tmp_path, "sleep 20; true")
    begun = time.monotonic()
    with pytest.raises(ProgramError, match=r"did not answer within 0\.2 s"):
        run(str(tmp_path), "postconf", patience=0.2)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "text", ["exec yes", "exec yes >&2", "yes & exec sleep 20", "exec cat /dev/zero"]
)
def test_program_that_never_stops_talking_is_given_up(
    tmp_path: Path, text: str
) -> None:
    program(tmp_path, text)
    begun = time.monotonic()
    with pytest.raises(ProgramError, match=r"^postconf says more than 4194304 bytes$"):
        run(str(tmp_path), "postconf")
    assert time.monotonic() - begun < 10


def test_program_that_talks_slowly_is_given_up(tmp_path: Path) -> None:
    program(tmp_path, "while :; do echo x; sleep 0.05; done")
    begun = time.monotonic()
    with pytest.raises(ProgramError, match=r"did not answer within 0\.3 s"):
        run(str(tmp_path), "postconf", patience=0.3)
    assert time.monotonic() - begun < 10


def test_program_that_ends_its_output_and_stays_is_given_up(tmp_path: Path) -> None:
    program(tmp_path, "exec >&- 2>&-; sleep 20; true")
    with pytest.raises(ProgramError, match=r"did not answer within 0\.2 s"):
        run(str(tmp_path), "postconf", patience=0.2)


def test_program_that_cannot_be_started_is_unseen(tmp_path: Path) -> None:
    (tmp_path / "postconf").touch(0o644)
    with pytest.raises(ProgramError, match=r"^postconf: Permission denied$"):
        run(str(tmp_path), "postconf")
    with pytest.raises(ProgramError, match=r"^postmap: No such file or directory$"):
        run(str(tmp_path), "postmap", "-q", "x")
