"""What a set-up says, from looking to the end, also where it fails."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mxpolicy.check.programs import Ended
from mxpolicy.setup.disk import SetupError
from mxpolicy.setup.flow import set_up
from mxpolicy.setup.kept import Stage
from mxpolicy.setup.postfix import Postfix
from mxpolicy.setup.steps import Asked
from mxpolicy.terminal import Terminal
from tests.setup.programs import CHECKOUT, Copy, sample, write

if TYPE_CHECKING:
    from pathlib import Path


def test_half_done_set_up_says_how_to_go_on(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    programs = Copy(directory)

    def run(program: str, *argv: str, **how: object) -> Ended:
        if argv[:1] == ("-e",):
            return Ended(1, "", "postconf: fatal: close main.cf.tmp: Device or busy")
        return programs(program, *argv)

    server = Postfix(run)
    stream = io.StringIO()
    terminal = Terminal(stream, {})
    with pytest.raises(SetupError, match="Device or busy"):
        set_up(server, Asked(all_mail=True), ((), ()), terminal, is_applied=True)
    assert server.stage is Stage.UNFINISHED
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("It is half done. The same command goes on")
    assert "--undo --apply takes it back" in last


def test_what_went_wrong_comes_last_in_one_file(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    server = Postfix(Copy(directory))
    terminal = Terminal(io.StringIO(), {})
    set_up(server, Asked(all_mail=True), ((), ()), terminal, is_applied=True)
    write(tmp_path / "postconf", '#!/bin/sh\necho "$MAIL_CONFIG"\n')
    write(tmp_path / "postqueue", "#!/bin/sh\n")
    argv = [sys.executable, "-m", "mxpolicy", "setup", "postfix", "--undo", "--apply"]
    with server.alone():
        done = subprocess.run(
            [*argv, "-c", str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=CHECKOUT,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            check=False,
        )
    lines = done.stdout.splitlines()
    assert "  - default_transport = mxpolicy:" in lines[:-1]
    assert lines[-1] == f"mxpolicy: another set-up of {directory} runs"


def test_file_that_a_panel_has_written_anew_is_set_up_again(tmp_path: Path) -> None:
    directory = sample("ispconfig", tmp_path / "postfix")
    before = (directory / "main.cf").read_bytes()
    server = Postfix(Copy(directory))
    stream = io.StringIO()

    def all_mail() -> None:
        terminal = Terminal(stream, {})
        set_up(server, Asked(all_mail=True), ((), ()), terminal, is_applied=True)

    all_mail()
    after = (directory / "main.cf").read_bytes()
    (directory / "main.cf").write_bytes(before)
    all_mail()
    assert "or another program has written it. --apply sets up again" in (
        stream.getvalue()
    )
    assert (directory / "main.cf").read_bytes() == after
    (directory / "main.cf").write_bytes(before + b"panel_made = yes\n")
    all_mail()
    what = server.undoing()
    assert what is not None
    server.undo(what)
    assert (directory / "main.cf").read_bytes() == before + b"panel_made = yes\n"
