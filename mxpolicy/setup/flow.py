"""Look, print, refuse, do: the way of a set-up and of its undo, for any mail server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mxpolicy.errors import MxPolicyError
from mxpolicy.setup import show
from mxpolicy.setup.disk import SetupError
from mxpolicy.setup.kept import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.setup.mail_server import MailServer
    from mxpolicy.setup.steps import Asked
    from mxpolicy.terminal import Terminal

__all__ = ["set_up", "take_back"]

_CHANGED = "something changed meanwhile; look again"

_HALF_DONE = (
    "It is half done. The same command goes on when what is said below is mended;"
    " --undo --apply takes it back."
)

_INTERRUPTED = {
    Stage.UNFINISHED: "An earlier set-up was interrupted; --apply finishes it.",
    Stage.HALF_UNDONE: "A file is as it was before set-up: an earlier --undo was"
    " interrupted, or another program has written it. --apply sets up again; --undo"
    " --apply takes the rest back.",
}


def set_up(
    server: MailServer,
    asked: Asked,
    found: tuple[Sequence[str], Sequence[str]],
    terminal: Terminal,
    *,
    is_applied: bool,
) -> int:
    """Say what would be done to *server*, or do it.

    Args:
        server: The mail server.
        asked: What the postmaster asks for.
        found: What is in the way on this machine, and what to know of it.
        terminal: For what is printed.
        is_applied: Whether it is to be done.

    Returns:
        The exit status: 0, or 1 when something is in the way.
    """
    refusals, notes = found
    what = server.plan(asked)
    what = what._replace(
        refusals=(*refusals, *what.refusals), notes=(*notes, *what.notes)
    )
    show.plan(what, server.directory, server.commands(what), terminal)
    if what.refusals:
        return 1
    stage = server.stage
    if said := _INTERRUPTED.get(stage):
        terminal.say(said)
    if stage is not Stage.UNFINISHED and not what.steps:
        return 0
    if not is_applied:
        show.not_yet(terminal, is_all=not what.by_hand)
        return 0
    with server.alone():
        # What is there may be another by now.
        if server.plan(asked).steps != what.steps:
            raise SetupError(_CHANGED)
        try:
            server.apply(asked, what, terminal.say)
        except (MxPolicyError, OSError):
            if server.stage is Stage.UNFINISHED:
                terminal.line()
                terminal.say(_HALF_DONE)
            raise
    show.sentences((), server.lost, terminal)
    show.done(server.kept_path, terminal)
    return 0


def take_back(server: MailServer, terminal: Terminal, *, is_applied: bool) -> int:
    """Say what taking set-up back would do to *server*, or do it; see `set_up`."""
    what = server.undoing()
    if what is None:
        if is_applied and os.path.isdir(server.directory):
            # What a run that was killed at its very beginning left is removed.
            with server.alone():
                pass
        terminal.say(f"Nothing to undo: there is no {server.kept_path}.")
        show.sentences((), server.left(), terminal)
        return 0
    show.undoing(what.there, what.undone, what.refusals, terminal)
    show.sentences((), server.left(), terminal)
    if what.refusals:
        return 1
    if not is_applied:
        show.not_yet(terminal)
        return 0
    with server.alone():
        if server.undoing() != what:
            raise SetupError(_CHANGED)
        after = server.undo(what, terminal.say)
    for sentence in after:
        terminal.say(sentence, "warn  ")
    show.sentences((), server.lost, terminal)
    show.undone(terminal)
    return 1 if after else 0
