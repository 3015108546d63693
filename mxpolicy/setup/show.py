"""What set-up prints: lines that change, commands, and what is in the way."""

from __future__ import annotations

import difflib
import os
import shlex
from typing import TYPE_CHECKING

from mxpolicy.reply import printable
from mxpolicy.setup.steps import MAIN, MASTER, WHOLE
from mxpolicy.terminal import BOLD, GREEN, RED, YELLOW

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mxpolicy.setup.steps import Plan, Step
    from mxpolicy.setup.undo import Undone
    from mxpolicy.terminal import Terminal

__all__ = ["by_hand", "done", "not_yet", "plan", "sentences", "undoing", "undone"]


def plan(
    what: Plan, directory: str, commands: Sequence[Sequence[str]], terminal: Terminal
) -> None:
    """Show *what*, with the *commands* that carry it out for a mail server in *directory*."""
    if not (what.steps or what.refusals or what.by_hand):
        terminal.line("Nothing to do: all of it is there already.")
    files = dict.fromkeys(one.file for one in what.steps)
    for file in files:
        terminal.heading(os.path.join(directory, file))
        for step in what.steps:
            if step.file == file:
                _changed(*_lines(step), terminal)
    if commands:
        terminal.heading("commands")
        for command in commands:
            # Not wrapped, to be copied.
            terminal.line(f"  {_safe(shlex.join(command))}")
    sentences(what.refusals, what.notes, terminal)
    by_hand(what.by_hand, terminal)


def by_hand(parts: Iterable[tuple[str, str]], terminal: Terminal) -> None:
    """Show lines for the postmaster to put in: where, and the text."""
    for where, text in parts:
        terminal.heading(where)
        for line in text.splitlines():
            terminal.line(line)


def _lines(step: Step) -> tuple[list[str], list[str]]:
    """Return the lines that go and those that come."""
    old = (step.before or "").splitlines()
    if step.key == WHOLE:
        new = step.after.splitlines()
    elif step.file == MAIN:
        new = [f"{step.key} = {step.after}".rstrip()]
    else:
        assert step.file == MASTER
        new = [step.after]
    return old, new


def _changed(old: Sequence[str], new: Sequence[str], terminal: Terminal) -> None:
    for line in difflib.unified_diff(old, new, n=0, lineterm=""):
        if line[:3] not in {"---", "+++"} and line[:2] != "@@":
            colour = RED if line[0] == "-" else GREEN
            terminal.line(terminal.paint(_safe(f"  {line[0]} {line[1:]}"), colour))


def _safe(text: str) -> str:
    """Return *text* for any terminal, in full."""
    return printable(text, 100_000)


def undoing(
    there: Mapping[str, str | None],
    what: Undone,
    refusals: Sequence[str],
    terminal: Terminal,
) -> None:
    """Show what each file becomes."""
    for path, text in what.texts.items():
        if text == there[path]:
            continue
        terminal.heading(path + (" (goes)" if text is None else ""))
        old, new = ((one or "").splitlines() for one in (there[path], text))
        _changed(old, new, terminal)
    sentences(refusals, what.notes, terminal)


def sentences(
    refusals: Sequence[str], notes: Sequence[str], terminal: Terminal
) -> None:
    """Show what is in the way, and what is to be known."""
    if refusals or notes:
        terminal.line()
    for text in notes:
        terminal.say(
            _safe(text), "note  ", marked=terminal.paint("note", YELLOW) + "  "
        )
    for text in refusals:
        terminal.say(_safe(text), "stop  ", marked=terminal.paint("stop", RED) + "  ")
    if refusals:
        terminal.line()
        terminal.line(terminal.paint("Nothing was changed.", BOLD))


def not_yet(terminal: Terminal, *, is_all: bool = True) -> None:
    """Say that this was a look only, and whether ``--apply`` does all of it."""
    terminal.line()
    rest = "" if is_all else " What is to be put in by hand, stays to be done."
    terminal.line(f"Nothing was changed. With --apply it is.{rest}")


def done(kept: str, terminal: Terminal) -> None:
    """Say that it is set up, and what comes next."""
    terminal.line()
    terminal.line("Done.")
    terminal.say(f"What was there before is in {kept}, and --undo restores it.")
    terminal.line("What is not right yet, says: mxpolicy check")


def undone(terminal: Terminal) -> None:
    """Say that it is taken back."""
    terminal.line()
    terminal.line("Done.")
