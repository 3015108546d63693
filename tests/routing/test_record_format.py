"""`mxpolicy.routing.record_format`: lines that may be damaged."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from mxpolicy.routing.record_format import (
    NUMBER,
    TEXT,
    WHOLE,
    RecordFormat,
    flag,
    optional,
)


class Thing(NamedTuple):
    at: float
    took: float | None = None
    name: str = ""
    works: bool = False
    said: str = ""


FORMAT = RecordFormat(
    Thing, "3", WHOLE, optional(NUMBER), optional(TEXT, ""), flag("yes", "no"), TEXT
)


@pytest.mark.parametrize(
    ("thing", "line"),
    [
        (Thing(1_800_000_000.0), b"3 1800000000 - - no "),
        (Thing(7.0, 0.25, "mx", True, "so it says"), b"3 7 0.25 mx yes so it says"),
        (Thing(100.0, 100.0, "mx", False, "-"), b"3 100 100 mx no -"),
    ],
)
def test_record_is_one_line_with_what_was_said_at_the_end(
    thing: Thing, line: bytes
) -> None:
    assert FORMAT.encode(thing) == line
    assert FORMAT.decode(line) == thing


@pytest.mark.parametrize(
    "line",
    [
        None,
        b"",
        b"3",
        b"2 7 - - no ",
        b"3 7 - - no",
        b"3 - - - no ",
        b"3 nan - - no ",
        b"3 inf - - no ",
        b"3 -1 - - no ",
        b"3 1_0 - - no ",
        b"3 . - - no ",
        b"3  - - no ",
        "3 ٣ - - no ".encode(),
        b"3 " + b"9" * 400 + b" - - no ",
        b"3 7 x - no ",
        b"3 7 - - maybe ",
    ],
)
def test_damaged_line_is_no_record(line: bytes | None) -> None:
    assert FORMAT.decode(line) is None
