"""How a record of named fields becomes one line of text for a store, and back. Pure.

    VERSION WORD WORD WORD ...

There is one word for each field, in the order of the record. A line that another
version, a failing disk or a stranger has written may be damaged; it counts as no record.
Every record kept this way is an aid, so its loss costs some seconds and no mail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["NUMBER", "TEXT", "WHOLE", "Field", "RecordFormat", "flag", "optional"]

Record = TypeVar("Record", bound="tuple[Any, ...]")

# What stands for a field that is not known.
_ABSENT = "-"

# Characters of a number. Seconds since the epoch take ten, and three decimals four.
_LONGEST_NUMBER = 20


class Field(NamedTuple):
    """How one field is written and read.

    Attributes:
        write: Returns the word; only the last field of a record may have blanks in it.
        read: Returns the value; raises ValueError or KeyError for a damaged word.
    """

    write: Callable[[Any], str]
    read: Callable[[str], Any]


class RecordFormat(Generic[Record]):
    """The line of one kind of record.

    Args:
        make: Makes the record, from a value for each field.
        version: The first word. A line with another one is not read.
        fields: In the order of the record's own.
    """

    def __init__(
        self, make: Callable[..., Record], version: str, *fields: Field
    ) -> None:
        self._make = make
        self._version = version
        self._fields = fields

    def encode(self, record: Record) -> bytes:
        """Return *record* as a store keeps it."""
        fields = zip(self._fields, record, strict=True)
        words = [self._version, *(field.write(value) for field, value in fields)]
        return " ".join(words).encode("ascii", "replace")

    def decode(self, value: bytes | None) -> Record | None:
        """Return the record that was encoded; None for a damaged line and for None."""
        words = (value or b"").decode("ascii", "replace").split(" ", len(self._fields))
        if words[0] != self._version or len(words) != 1 + len(self._fields):
            return None
        try:
            fields = zip(self._fields, words[1:], strict=True)
            return self._make(*[field.read(word) for field, word in fields])
        except (ValueError, KeyError):
            return None


def optional(field: Field, absent: object = None) -> Field:
    """Return *field* for a value that may be *absent*, which is written as ``-``."""
    return Field(
        lambda value: _ABSENT if value == absent else field.write(value),
        lambda word: absent if word == _ABSENT else field.read(word),
    )


def flag(yes: str, no: str) -> Field:
    """Return the field of a bool that is written as one of two words."""
    return Field(lambda value: yes if value else no, {yes: True, no: False}.__getitem__)


def _write_number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _write_whole(seconds: float) -> str:
    return f"{int(seconds)}"


def _read_number(word: str) -> float:
    is_plain = word.isascii() and word.replace(".", "", 1).isdigit()
    if not is_plain or len(word) > _LONGEST_NUMBER:
        raise ValueError(word)
    return float(word)


# Seconds, never negative: to the millisecond, or to the second. Whole seconds are rounded
# down: what has just happened must not lie in the future.
NUMBER = Field(_write_number, _read_number)
WHOLE = Field(_write_whole, _read_number)

TEXT = Field(str, str)
