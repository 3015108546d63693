"""What set-up would change: the values that plans are made of. Pure.

A plan is made from what is there, and changes nothing. Each of its steps is one entry of
one file, or a whole file of our own, with what was there before: that is its undo.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MAIN", "MASTER", "WHOLE", "Plan", "Step"]

MAIN = "main.cf"
MASTER = "master.cf"

# The key of a step that is about a whole file.
WHOLE = ""


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
    """

    steps: tuple[Step, ...] = ()
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
