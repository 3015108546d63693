"""What is said of a thing that was looked at, and the rows of the tables that say it.

A row (`ok`, `warn`, `fail`) is a condition, the sentence that is said when it holds, and
the line that mends it. A table is a call of `said` with rows about facts that were
gathered before.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from mxpolicy.reply import printable

__all__ = ["Item", "Level", "Row", "fail", "first", "ok", "said", "tell", "warn"]

# A sentence with a few names in it; a mistake in the configuration may be long.
MAX_TEXT = 1000
MAX_MEND = 4000

Row = Callable[..., "Item | None"]
"""`ok`, `warn` or `fail`."""


class Level(Enum):
    """How a thing is."""

    OK = "ok"
    WARN = "warn"  # mail goes on, but there will be trouble sooner or later
    FAIL = "fail"  # mail is deferred, bounced, doubled or damaged


class Item(NamedTuple):
    """One thing that was looked at.

    Attributes:
        level: How it is.
        text: One sentence: what is found, and what would happen; printable.
        mend: What mends it, to be copied: commands for a shell, a line of
            mxpolicy.yaml, a DNS record. Empty where there is no such line.
    """

    level: Level
    text: str
    mend: str = ""


def tell(level: Level, text: str, mend: str = "") -> Item:
    """Return an item that can be shown on any terminal."""
    return Item(level, printable(text, MAX_TEXT), printable(mend, MAX_MEND))


def ok(condition: object, text: str) -> Item | None:
    """Return the row of a thing that is well; None where *condition* is false."""
    return tell(Level.OK, text) if condition else None


def warn(condition: object, text: str, mend: str = "") -> Item | None:
    """Return the row of a thing that will make trouble sooner or later, or None."""
    return tell(Level.WARN, text, mend) if condition else None


def fail(condition: object, text: str, mend: str = "") -> Item | None:
    """Return the row of a thing that must be mended, or None."""
    return tell(Level.FAIL, text, mend) if condition else None


def first(*rows: Item | None) -> Item | None:
    """Return the first of *rows* that is said."""
    return next(filter(None, rows), None)


def said(*rows: Item | None) -> list[Item]:
    """Return all of *rows* that are said."""
    return list(filter(None, rows))
