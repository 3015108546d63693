"""What a command shows: text wrapped and coloured on a terminal, plain elsewhere, or JSON.

In a pipe or a file every sentence and every row of a table is one line, to be searched
and compared. Colours are for terminals only, and not with ``NO_COLOR``
(https://no-color.org). Nothing is escaped here: what is written must be `printable`
already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "BOLD",
    "DIM",
    "GREEN",
    "RED",
    "YELLOW",
    "Terminal",
    "age",
    "duration",
    "milliseconds",
    "reader_may_leave",
]

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"

# Narrower, a table would be all wrapping; wider, a sentence is hard to read.
MIN_WIDTH = 40
MAX_WIDTH = 110

GAP = "  "  # between columns


class Terminal:
    """A stream and what it can show.

    Args:
        stream: Where all goes.
        environ: With ``TERM`` and ``NO_COLOR``.

    Attributes:
        width: Columns to fill; None where lines are not to be broken.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        live = stream.isatty() and environ.get("TERM", "dumb") != "dumb"
        self._stream = stream
        self._colour = live and not environ.get("NO_COLOR")
        # One less than there is: a full last column makes some terminals wrap.
        columns = shutil.get_terminal_size((80, 24)).columns - 1
        self.width = max(MIN_WIDTH, min(MAX_WIDTH, columns)) if live else None

    def paint(self, text: str, *codes: str) -> str:
        """Return *text*, coloured where the stream can show colours."""
        if not self._colour or not codes or not text:
            return text
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"

    def line(self, text: str = "") -> None:
        """Write *text* as it is; it may hold colours."""
        self._stream.write(f"{text}\n")

    def heading(self, text: str) -> None:
        """Write *text* as the heading of what follows."""
        self.line()
        self.line(self.paint(text, BOLD))

    def say(self, text: str, first: str = "", marked: str = "") -> None:
        """Write a sentence; its further lines begin where it began.

        Args:
            text: One line, without colours.
            first: What stands before it.
            marked: The same with colours.
        """
        lines = [f"{first}{text}".rstrip()]
        if self.width is not None:
            lines = textwrap.wrap(
                text,
                self.width,
                initial_indent=first,
                subsequent_indent=" " * len(first),
                break_on_hyphens=False,
                # A command stays in one piece, to be copied.
                break_long_words=False,
            )
        for line in lines or [first.rstrip()]:
            if marked and line.startswith(first):
                line = marked + line[len(first) :]
                marked = ""
            self.line(line)

    def table(
        self, rows: Sequence[Sequence[str]], right: Sequence[int] = (), indent: int = 2
    ) -> None:
        """Write *rows* in columns; the last column is wrapped where there is a width.

        Args:
            rows: Equally many cells each, without colours.
            right: The columns that are flush right.
            indent: Blanks before each row.
        """
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [
                cell.rjust(width) if place in right else cell.ljust(width)
                for place, (cell, width) in enumerate(
                    zip(row[:-1], widths, strict=False)
                )
            ]
            first = " " * indent + "".join(cell + GAP for cell in cells)
            if self.width is not None and len(first) > self.width * 2 // 3:
                # Too much before it: the last cell gets lines of its own.
                self.line(first.rstrip())
                first = " " * (indent + 4)
            self.say(row[-1], first)


def shown_by(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of a command that shows something, or shows it as JSON."""
    parser = argparse.ArgumentParser(
        prog=f"mxpolicy {command}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--config", metavar="FILE", help="instead of the usual one")
    return parser


def write_out(
    arguments: argparse.Namespace,
    whole: Callable[[], Mapping[str, object]],
    show: Callable[[Terminal], None],
) -> None:
    """Write to stdout what *whole* returns, as JSON, or what *show* writes as text.

    Args:
        arguments: Of the parser from `shown_by`.
        whole: Makes what ``--json`` shows.
        show: Writes the text.
    """
    with reader_may_leave():
        if arguments.json:
            print(json.dumps(whole(), indent=2))
        else:
            show(Terminal(sys.stdout, os.environ))


def milliseconds(seconds: float) -> str:
    """Return a time as ``12 ms``."""
    return f"{seconds * 1000:.0f} ms"


def duration(seconds: float) -> str:
    """Return a time in four digits, as ``250 ms`` or ``1.5 s``; in full from 1000 s on."""
    if seconds < 1:
        return milliseconds(seconds)
    return f"{seconds:.0f} s" if seconds >= 1000 else f"{seconds:.4g} s"


def age(seconds: float) -> str:
    """Return a time in the largest unit of which it has two: ``90s``, ``3h``."""
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Flush stdout at the end of the block; end it quietly when nothing reads stdout.

    Raises:
        SystemExit: With 1, when stdout cannot be written: it is a file on a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # What is about a file, names it.
        if error.filename is not None:
            raise
        # The interpreter flushes once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            text = f"mxpolicy: standard output: {error.strerror}"
            print(text, file=sys.stderr)
            raise SystemExit(1) from error
