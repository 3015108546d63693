"""What was looked at, how it is, and the line that mends it."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mxpolicy.reply import printable

__all__ = ["Item", "Level", "Section", "fail", "ok", "warn"]

# A sentence with a few names in it; a mistake in the configuration may be long.
MAX_TEXT = 1000
MAX_MEND = 4000


class Level(Enum):
    """How a thing is."""

    OK = "ok"
    WARN = "warn"  # mail goes on, but something will bite sooner or later
    FAIL = "fail"  # mail is deferred, bounced, doubled or damaged


class Item(NamedTuple):
    """One thing that was looked at.

    Attributes:
        level: How it is.
        text: One plain sentence: what is, and what would happen; printable.
        mend: What mends it, to be copied as it is: commands for a shell, a line
            of mxpolicy.yaml, a DNS record. Empty where nothing needs mending or
            no line can.
    """

    level: Level
    text: str
    mend: str = ""


class Section(NamedTuple):
    """The items of one theme."""

    title: str
    items: tuple[Item, ...]


def ok(text: str) -> Item:
    """Return an item that is well."""
    return Item(Level.OK, printable(text, MAX_TEXT))


def warn(text: str, mend: str = "") -> Item:
    """Return an item that will bite sooner or later."""
    return Item(Level.WARN, printable(text, MAX_TEXT), printable(mend, MAX_MEND))


def fail(text: str, mend: str = "") -> Item:
    """Return an item that must be mended."""
    return Item(Level.FAIL, printable(text, MAX_TEXT), printable(mend, MAX_MEND))
