"""``mxpolicy setup exim``: what is printed, and when it is done."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.check.postconf import directory_of, run
from mxpolicy.setup import show
from mxpolicy.setup.exim import DIRECTORY, Exim
from mxpolicy.setup.exim_lines import ACL, RETRY, router, transport
from mxpolicy.setup.kept import SetupError, alone, load, read_text, sweep
from mxpolicy.setup.undo import taken_back

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mxpolicy.setup.postfix_plan import Asked
    from mxpolicy.terminal import Terminal

__all__ = ["main"]


def main(
    given: argparse.Namespace,
    look: Callable[[argparse.Namespace], tuple[Asked, list[str], list[str]]],
    terminal: Terminal,
) -> int:
    """Set up Exim, or take that back; see `mxpolicy.setup.main`.

    Args:
        given: The command line.
        look: Makes of it what is asked for, what is in the way and what to know.
        terminal: For what is printed.
    """
    programs = directory_of("update-exim4.conf", os.environ.get("PATH", ""))
    exim = Exim(DIRECTORY, partial(run, programs or "/usr/sbin"))
    if given.undo:
        return _undo(exim, given.apply, terminal)
    asked, refusals, notes = look(given)
    if not exim.is_split:
        return _paste(exim, asked, given.apply, terminal)
    what = exim.plan(asked)
    what = what._replace(
        refusals=(*refusals, *what.refusals), notes=(*notes, *what.notes)
    )
    commands = [("update-exim4.conf",)] if what.steps else []
    if exim.has_a_place_for(asked):
        show.plan(what, exim.directory, commands, terminal)
    if asked.policy:
        _paste_acl(terminal)
    if what.refusals:
        return 1
    if exim.is_unfinished:
        terminal.say("An earlier set-up was interrupted; --apply finishes it.")
    elif not what.steps:
        return 0
    if not given.apply:
        show.not_yet(terminal)
        return 0
    with alone(exim.directory):
        if exim.plan(asked).steps != what.steps:
            raise SetupError("something changed meanwhile; look again")
        exim.apply(what)
    show.done(exim.kept_path, terminal)
    return 0


def _undo(exim: Exim, is_applied: bool, terminal: Terminal) -> int:
    kept = load(exim.kept_path)
    if kept is None:
        if is_applied and os.path.isdir(exim.directory):
            sweep(exim.directory)
        terminal.say(f"Nothing to undo: there is no {exim.kept_path}.")
        return 0
    there = {path: read_text(path) for path in kept.files}
    show.undoing(there, taken_back(kept, there), exim.in_the_way(), terminal)
    if exim.in_the_way():
        return 1
    if not is_applied:
        show.not_yet(terminal)
        return 0
    with alone(exim.directory):
        exim.undo(kept)
    show.undone(terminal)
    return 0


def _paste(exim: Exim, asked: Asked, is_applied: bool, terminal: Terminal) -> int:
    """Print the lines for a configuration in a single file."""
    terminal.say(
        f"{exim.directory} is not Debian's split configuration, so the lines are for you"
        " to put in. Nothing was changed."
    )
    parts = [
        ('after "begin transports"', transport(asked.program, asked.config, asked.lmtp))
    ]
    if asked.all_mail or asked.domains:
        where = 'after "begin routers", before the router dnslookup'
        parts.insert(0, (where, router(asked.domains, asked.lmtp)))
    parts.append(('after "begin retry", if there is no rule for all domains', RETRY))
    for where, text in parts:
        terminal.heading(where)
        for line in text.splitlines():
            terminal.line(line)
    if asked.policy:
        _paste_acl(terminal)
    return 1 if is_applied else 0


def _paste_acl(terminal: Terminal) -> None:
    terminal.heading(
        "to put in by hand: in the ACL of acl_smtp_rcpt (Debian: acl_check_rcpt in"
        " conf.d/acl/30_exim4-config_check_rcpt), before its first accept with"
        " hosts = +relay_from_hosts"
    )
    for line in ACL.splitlines():
        terminal.line(line)
