"""What is said of a thing that was looked at; and the tables that say it.

A `Row` of a table is one sentence: when it is said, how it goes, and the line that
mends what it tells of. `judge` reads a table against facts that were gathered before,
so what is said is a pure function of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from mxpolicy.reply import printable

__all__ = [
    "Item",
    "Level",
    "Row",
    "Section",
    "Table",
    "fail",
    "first",
    "judge",
    "ok",
    "otherwise",
    "tell",
    "warn",
]

# A sentence with a few names in it; a mistake in the configuration may be long.
MAX_TEXT = 1000
MAX_MEND = 4000

Facts = TypeVar("Facts")


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
    items: Sequence[Item]


class Row(NamedTuple, Generic[Facts]):
    """One sentence of a table.

    Attributes:
        level: Of the item.
        condition: Whether it is said, by what is true of the facts.
        sentence: For `str.format`; in braces stand attributes of the facts.
        mend: The same, for the line that mends it.
    """

    level: Level
    condition: Callable[[Facts], object]
    sentence: str
    mend: str = ""


# Rows of which the first whose condition is true is said, or none.
Group = Sequence[Row[Facts]]

Table = Sequence[Group[Facts]]


def ok(condition: Callable[[Facts], object], sentence: str) -> Group[Facts]:
    """Return the row of a thing that is well."""
    return (Row(Level.OK, condition, sentence),)


def warn(
    condition: Callable[[Facts], object], sentence: str, mend: str = ""
) -> Group[Facts]:
    """Return the row of a thing that will bite sooner or later."""
    return (Row(Level.WARN, condition, sentence, mend),)


def fail(
    condition: Callable[[Facts], object], sentence: str, mend: str = ""
) -> Group[Facts]:
    """Return the row of a thing that must be mended."""
    return (Row(Level.FAIL, condition, sentence, mend),)


def first(*groups: Group[Facts]) -> Group[Facts]:
    """Return one group of all these rows: what is true first is said alone."""
    return tuple(row for group in groups for row in group)


def otherwise(facts: object) -> bool:
    """Return True: the condition of a row that is said when no row before it is."""
    del facts
    return True


def judge(table: Table[Facts], facts: Facts) -> list[Item]:
    """Return what *table* says of *facts*, in its order."""
    words = _Words(facts)
    said = (next((row for row in g if row.condition(facts)), None) for g in table)
    return [
        tell(row.level, row.sentence.format_map(words), row.mend.format_map(words))
        for row in said
        if row
    ]


def tell(level: Level, text: str, mend: str = "") -> Item:
    """Return an item that can be shown on any terminal."""
    return Item(level, printable(text, MAX_TEXT), printable(mend, MAX_MEND))


class _Words:
    """The attributes of some facts, as `str.format_map` asks for them."""

    def __init__(self, facts: object) -> None:
        self._facts = facts

    def __getitem__(self, name: str) -> object:
        return getattr(self._facts, name)
