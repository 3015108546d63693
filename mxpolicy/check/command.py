"""A command line of ours in a mail server's configuration, and what it refers to.

pipe(8), spawn(8) and Exim's pipe transport have one each: an account runs a program, which
reads a configuration file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.installation import Obstacle
from mxpolicy.check.report import fail, first
from mxpolicy.config import DEFAULT_PATH
from mxpolicy.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.check.access import Account
    from mxpolicy.check.machine import Machine
    from mxpolicy.check.report import Item, Row
    from mxpolicy.options import Options
    from mxpolicy.pipe_command import Arguments

    # Reads the words after the command: the arguments, and the file of ``--config``.
    Parse = Callable[[Sequence[str]], tuple[Arguments | None, str | None]]

__all__ = ["Command", "cannot_run", "cannot_use_file", "gather"]


class Command(NamedTuple):
    """A command line, and what it refers to.

    Attributes:
        words: After the program; with macros of pipe(8) filled in.
        account: That runs it; None when there is none.
        cannot_run: What keeps that account from running the program.
        usage_error: What mxpolicy says of the words; empty when it takes them.
        arguments: Of ``mxpolicy pipe``, as it understands them; else None.
        file: The configuration file that it reads; empty when that is not known.
        mistakes: In that file, or why it cannot be read; empty when there are none.
        options: In that file; None when there are mistakes.
        cannot_read: What keeps the account from reading it.
    """

    words: tuple[str, ...] = ()
    account: Account | None = None
    cannot_run: Obstacle = Obstacle()
    usage_error: str = ""
    arguments: Arguments | None = None
    file: str = ""
    mistakes: str = ""
    options: Options | None = None
    cannot_read: Obstacle = Obstacle()


def gather(
    name: str,
    program: str,
    words: tuple[str, ...],
    user: Account | None,
    parse: Parse,
    machine: Machine,
) -> Command:
    """Return the command *name* of *program*, and what it refers to on *machine*.

    Args:
        name: The word that must come first: ``pipe``, ``policy``.
        program: As it is written.
        words: What follows it.
        user: The account that runs it.
        parse: Reads what follows *name*; raises `UsageError`.
        machine: This one.
    """
    it = Command(words, user)
    if user:
        it = it._replace(cannot_run=machine.obstacle(user, program))
    if words[:1] != (name,):
        return it._replace(usage_error=f"{name!r} is not its first word")
    try:
        arguments, given = parse(words[1:])
    except UsageError as error:
        return it._replace(usage_error=str(error))
    it = it._replace(arguments=arguments, file=given or DEFAULT_PATH)
    try:
        it = it._replace(options=machine.load(given))
    except ConfigError as error:
        return it._replace(mistakes="; ".join(error.mistakes))
    if user:
        it = it._replace(cannot_read=machine.unreadable(user, it.file))
    return it


def cannot_run(it: Command, name: str, effect: str) -> Item | None:
    """Return what is said of the program of *name*."""
    return fail(
        it.cannot_run.why,
        f"{name} cannot run its program ({it.cannot_run.why}){effect}",
        it.cannot_run.mend,
    )


def cannot_use_file(it: Command, name: str, level: Row, effect: str) -> Item | None:
    """Return what is said of the configuration file of *name*; *level* says how bad."""
    return first(
        level(it.mistakes, f"{name}: {effect}: {it.mistakes}"),
        level(
            it.cannot_read.why,
            f"{name}: {effect}: {it.file}: {it.cannot_read.why}",
            it.cannot_read.mend,
        ),
    )
