"""The text of main.cf and master.cf as postconf(1) reads and edits it. Pure.

A logical line begins in the first column. A line that begins with white space continues
it. Empty lines and comments belong to no logical line, even in the midst of one
(postconf(5), master(5)). Where ``postconf -e`` gives a parameter another value, it writes
one line in the place of the first one and drops the further ones, and those comments
stay.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.setup.steps import MASTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Entry", "entries", "find", "put_back", "squeeze"]

# What Postfix takes for white space: ASCII's alone.
_WHITE = " \t\r\v\f\n"
_NAME = re.compile("[ =]")
_LINE = re.compile("[^\n]*\n|[^\n]+")


class Entry(NamedTuple):
    """A logical line.

    Attributes:
        key: The name of the parameter; of a service ``NAME/TYPE``.
        value: The value, or the service's whole line; white space is one blank.
        first, last: Its first and last line, counted from 0.
        text: All lines from the first to the last, comments between them as well.
    """

    key: str
    value: str
    first: int
    last: int
    text: str


def entries(file: str, text: str) -> list[Entry]:
    """Return the logical lines of *text* in their order.

    Args:
        file: ``main.cf`` or ``master.cf``.
        text: What is in it.
    """
    lines = _LINE.findall(text)
    found = []
    for numbers in _logical(lines):
        words = squeeze(" ".join(lines[one] for one in numbers))
        if file == MASTER:
            key, value = "/".join(words.split(" ")[:2]), words
        else:
            key, value = _NAME.split(words, 1)[0], words.partition("=")[2].strip(" ")
        first, last = numbers[0], numbers[-1]
        whole = "".join(lines[first : last + 1])
        found.append(Entry(key, value, first, last, whole))
    return found


def find(file: str, text: str, key: str) -> list[Entry]:
    """Return the entries of *key*; more than one is a mistake of the postmaster's."""
    return [one for one in entries(file, text) if one.key == key]


def squeeze(text: str) -> str:
    """Return *text* with one blank in the place of all white space between words."""
    return re.sub(f"[{_WHITE}]+", " ", text).strip(" ")


def put_back(text: str, entry: Entry, before: str | None) -> str:
    """Return *text* with *before* in the place of *entry*; without it where that is None.

    The comments that ``postconf -e`` left behind go back to their place, where they
    still follow *entry*.
    """
    lines = _LINE.findall(text)
    old = _LINE.findall(before or "")
    end = entry.last + 1
    left = [one for one in old if _is_aside(one)]
    if lines[end : end + len(left)] == left:
        end += len(left)
    else:
        old = [one for one in old if not _is_aside(one)]
    return "".join((*lines[: entry.first], *old, *lines[end:]))


def _logical(lines: Sequence[str]) -> Iterator[list[int]]:
    numbers: list[int] = []
    for number, line in enumerate(lines):
        if _is_aside(line):
            continue
        if line[0] in _WHITE:
            # A continuation of nothing: Postfix refuses the file.
            if numbers:
                numbers.append(number)
            continue
        if numbers:
            yield numbers
        numbers = [number]
    if numbers:
        yield numbers


def _is_aside(line: str) -> bool:
    """Return whether *line* is a comment or empty."""
    return line.lstrip(_WHITE)[:1] in {"", "#"}
