"""Lines of a log are found by what they contain."""

from pathlib import Path

import pytest

from .mail_log import lines_with

LOG = b"a: 1: one\nb: 2: two\na: 1: 1: \xff\nc: 1: not ended"


@pytest.mark.parametrize(
    ("mark", "found"),
    [
        (": 1: ", ["a: 1: one", "a: 1: 1: \ufffd", "c: 1: not ended"]),
        ("b: ", ["b: 2: two"]),
        ("d: ", []),
        ("", ["a: 1: one", "b: 2: two", "a: 1: 1: \ufffd", "c: 1: not ended"]),
    ],
)
def test_each_line_with_the_mark_comes_once(
    tmp_path: Path, mark: str, found: list[str]
) -> None:
    log = tmp_path / "log"
    log.write_bytes(LOG)
    assert lines_with(log, mark) == found


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert lines_with(tmp_path / "log") == lines_with(tmp_path / "log", "a") == []
