"""What all measurements print: a Markdown table, and figures with digits that count."""

import time
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, padded so that it reads well as plain text, too.

    The first column is set to the left, all others to the right.
    """
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in (head, rule, *rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
    return f"| {' | '.join(cells)} |"


def ratio(first: float, second: float) -> str:
    """Return how many times the second the first is, in two digits: "120x", "1.3x"."""
    times = first / second
    digits = 0 if times >= 10 else 1 if times >= 1 else 2
    return f"{times:.{digits}f}x"


def seconds(value: float) -> str:
    """Return a time in the digits that mean something: "302 s", "2.3 s", "0.21 s"."""
    if value < 0.1:
        return f"{value * 1000:.{0 if value >= 0.01 else 1}f} ms"
    digits = 0 if value >= 20 else 1 if value >= 2 else 2
    return f"{value:.{digits}f} s"


def mebibytes(kibibytes: float) -> str:
    """Return a size in MiB: "31 MiB", "4.2 MiB"."""
    size = kibibytes / 1024
    return f"{size:.{0 if size >= 10 else 1}f} MiB"


def millions(count: float) -> str:
    """Return a number of instructions in millions: "682 M", "1.3 M"; "" for none."""
    value = count / 1e6
    digits = 0 if value >= 20 else 1 if value >= 2 else 2
    return f"{value:.{digits}f} M" if count else ""


def circumstances(begun: float) -> str:
    """Return the line under a table; *begun* is of `time.monotonic`."""
    took = time.monotonic() - begun
    return f"One machine, one run of {took:.0f} s; ratios count."
