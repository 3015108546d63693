"""What is asked of set-up, and what it would change: the values that plans are made of. Pure.

A plan is made from what is there, and changes nothing. Each of its steps is one entry of
one file, or a whole file of our own, with what was there before: that is its undo.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MAIN", "MASTER", "PROGRAM", "WHOLE", "Asked", "Command", "Plan", "Step"]

MAIN = "main.cf"
MASTER = "master.cf"

# The key of a step that is about a whole file.
WHOLE = ""

# Where contrib's lines have it.
PROGRAM = "/opt/mxpolicy/bin/mxpolicy"

Command = tuple[str, ...]
"""The words of a command line."""


class Asked(NamedTuple):
    """What the postmaster asks for.

    Attributes:
        domains: Whose mail goes by mxpolicy; ``.example.com`` is all below it.
        fallback: What smtp(8) could not deliver.
        all_mail: All mail that leaves.
        policy: Questions of the mail server, before it takes a message.
        lmtp: By the daemon, over LMTP, in the place of ``mxpolicy pipe``.
        program: Absolute path of mxpolicy.
        config: For ``--config`` of the commands; empty is the usual file.
        processes: How many deliveries run at once (``limits.processes``).
    """

    domains: tuple[str, ...] = ()
    fallback: bool = False
    all_mail: bool = False
    policy: bool = False
    lmtp: bool = False
    program: str = PROGRAM
    config: str = ""
    processes: int = 60


class Step(NamedTuple):
    """One change.

    Attributes:
        file: ``main.cf``, ``master.cf``, or the absolute path of a file of our own.
        key: The parameter, or ``NAME/TYPE`` of a service; `WHOLE` for a whole file.
        after: The value of the parameter, the service's line, or the file's text.
        before: The lines that were there, as they were, or the file's text; None
            where there was nothing.
    """

    file: str
    key: str
    after: str
    before: str | None = None


class Plan(NamedTuple):
    """What would be done.

    Attributes:
        steps: In the order in which they take effect.
        refusals: Why nothing is done: what, where, and what to do. Empty when all is well.
        notes: What the postmaster should know, a sentence each.
        by_hand: What the postmaster puts in: where, and the lines.
    """

    steps: tuple[Step, ...] = ()
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    by_hand: tuple[tuple[str, str], ...] = ()
