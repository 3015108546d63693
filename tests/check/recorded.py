"""What a real Postfix answered, kept in ``tests/check/postconf``, and told again.

A file has the questions as ``$`` lines, below each what was printed, and ``! status
words`` where it did not end well. All other files have only what is not as in
``contrib.txt``, and of an answer to the same question only the lines that changed. The
lab compares every file with its Postfix (`tests/lab/test_route_check.py`), and writes
them, too:

    MXPOLICY_RECORD=yes .venv/bin/python -m pytest -m lab -k recorded
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from difflib import ndiff
from pathlib import Path

from mxpolicy.check.access import Account
from mxpolicy.check.daemon import Answer
from mxpolicy.check.installation import Obstacle
from mxpolicy.check.machine import Machine
from mxpolicy.check.programs import Ended
from mxpolicy.errors import ConfigError
from mxpolicy.options import Options

DIRECTORY = Path(__file__).parent / "postconf"
BASE = "contrib"

Answers = Mapping[tuple[str, ...], Ended]


def read(name: str) -> dict[tuple[str, ...], Ended]:
    """Return what was answered to each command line."""
    answers = {} if name == BASE else read(BASE)
    text = (DIRECTORY / f"{name}.txt").read_text()
    for part in filter(None, text.removeprefix("$ ").split("\n$ ")):
        asked, *lines = part.splitlines()
        argv = tuple(shlex.split(asked))
        status, words = 0, ""
        if lines and lines[-1].startswith("! "):
            number, _, words = lines.pop().removeprefix("! ").partition(" ")
            status = int(number)
        if argv in answers:
            lines = _changed(answers[argv].out.splitlines(), lines)
        answers[argv] = Ended(status, "".join(f"{line}\n" for line in lines), words)
    return answers


def _changed(lines: list[str], changes: list[str]) -> list[str]:
    place = 0
    for change in changes:
        kind, line = change[:2], change[2:]
        if kind == "- ":
            place = lines.index(line)
            del lines[place]
        elif kind == "  ":
            place = lines.index(line) + 1
        else:
            lines.insert(place, line)
            place += 1
    return lines


def write(name: str, answers: Answers) -> None:
    """Keep *answers*, as far as they are not as in contrib."""
    known = {} if name == BASE else read(BASE)
    text = ""
    for asked, ended in answers.items():
        if known.get(asked) == ended:
            continue
        lines = ended.out.splitlines()
        if asked in known:
            changes = [
                one
                for one in ndiff(known[asked].out.splitlines(), lines)
                if not one.startswith("? ")
            ]
            # Of the lines that are the same, one tells where a new one belongs.
            lines = [
                one
                for one, after in zip(changes, [*changes[1:], ""], strict=True)
                if not one.startswith("  ") or after.startswith("+ ")
            ]
        if ended.status:
            lines.append(f"! {ended.status} {ended.err}".rstrip())
        text += "".join(f"{line}\n" for line in (f"$ {shlex.join(asked)}", *lines))
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / f"{name}.txt").write_text(text)


def _load(path: str | None) -> Options:
    if path == "/etc/nowhere.yaml":
        raise ConfigError([f"{path}: cannot be read: No such file or directory"])
    return Options()


def _objection(who: Account, path: str, wanted: int) -> str:
    del wanted
    if path in {"/opt/mxpolicy/bin/mxpolicy", "/srv/own.yaml"}:
        return ""
    return f"{who.name} has no permission for {path}"


# Where mxpolicy is installed as contrib says, with 8 GiB of memory.
MACHINE = Machine(
    memory=8 << 30,
    account=lambda user: (
        Account("mxpolicy", 64101, frozenset((64101,)))
        if user in {"mxpolicy", "mxpolicy:mxpolicy"}
        else None
    ),
    objection=_objection,
    obstacle=lambda who, program: Obstacle(_objection(who, program, 0)),
    answer=lambda at: (
        Answer(owner=64101)
        if at == "/run/mxpolicy/policy"
        else Answer("No such file or directory")
    ),
    exists=lambda path: path.startswith("/srv/"),
    load=_load,
    start="systemctl restart mxpolicy.service",
)


class Replay:
    """Answers as was answered then; a question of today fails the test."""

    def __init__(self, name: str) -> None:
        """Replay the recording *name*."""
        self._answers = read(name)

    def __call__(self, *argv: str) -> Ended:
        """Answer *argv*."""
        return self._answers[argv]
