"""What the measurements write into the manual has its place and its form there."""

import re

import pytest

from tests.bench.__main__ import main
from tests.bench.whole import (
    FILES,
    PARTS,
    SUMMARY,
    SUMMARY_BLOCK,
    Cell,
    marks,
    written,
)

WRITTEN = [part.name for part in PARTS if part.written]


def block_of(name: str) -> str:
    """Return what stands between the marks of *name*, in one of the files."""
    text = "".join(path.read_text() for path in FILES)
    first, last = marks(name)
    assert (text.count(first), text.count(last)) == (1, 1)
    return text.partition(first)[2].partition(last)[0]


@pytest.mark.parametrize("name", [SUMMARY_BLOCK, *WRITTEN])
def test_manual_has_a_table_with_its_command_between_marks(name: str) -> None:
    block = block_of(name)
    command = "python -m tests.bench" if name == SUMMARY_BLOCK else rf"bench {name}\b"
    assert re.search(rf"`[^`]*{command}", block)
    tables = re.findall(r"(?m)(?:^\|.*\n)+", block)
    assert tables
    for table in tables:
        head, rule, *rows = table.splitlines()
        assert re.fullmatch(r"\|(?: ?-+:? ?\|)+", rule)
        assert rows
        assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}


def test_table_goes_between_its_marks_only() -> None:
    text = (
        "a\n<!-- bench x -->old<!-- /bench x -->\nb\n<!-- bench y --><!-- /bench y -->"
    )
    new = text.replace("old", "\n\nnew\n\n")
    assert written(["b", text], {"x": "new"}) == ["b", new]
    with pytest.raises(ValueError, match="no <!-- bench z -->"):
        written([text], {"z": "new"})


def test_each_figure_of_the_summary_is_of_a_program_that_is_run() -> None:
    cells = [cell for line in SUMMARY for cell in line[1:] if cell is not None]
    assert {cell.name for cell in cells if isinstance(cell, Cell)} <= set(WRITTEN)
    assert all(isinstance(cell, Cell) for cell in cells)


def test_cell_is_found_by_the_begin_of_its_row() -> None:
    tables = {"x": [[["head", "one"], ["first row", "1"], ["other", "2"]]]}
    assert Cell("x", "other", 1).of(tables) == "2"
    assert Cell("x", "none", 1).of(tables) == ""
    assert Cell("x", "other", 1, table=1).of(tables) == ""
    assert Cell("y", "other", 1).of(tables) == ""


def test_whoever_asks_for_what_is_not_there_is_told_what_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["none"]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in ("faults", "large", "processor"))
