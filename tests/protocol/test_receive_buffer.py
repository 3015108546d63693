from __future__ import annotations

import pytest

from mxpolicy.protocol.receive_buffer import ReceiveBuffer
from tests.protocol.feeding import same_every_way


def lines_of(pieces: list[bytes], limit: int = 10) -> tuple[list[bytes], bool]:
    """Feed *pieces*; return the lines and whether something was left over."""
    buffer = ReceiveBuffer(limit)
    lines = []
    for piece in pieces:
        buffer.append(piece)
        while (line := buffer.next_line()) is not None:
            lines.append(line)
    return lines, len(buffer) > 0


@pytest.mark.parametrize(
    ("data", "lines", "left"),
    [
        pytest.param(b"", [], False, id="nothing"),
        pytest.param(b"ab", [], True, id="unfinished"),
        pytest.param(b"ab\r", [], True, id="lf_missing"),
        pytest.param(b"ab\r\n", [b"ab"], False, id="crlf"),
        pytest.param(b"ab\n", [b"ab"], False, id="bare_lf"),
        pytest.param(b"ab\r\r\n", [b"ab"], False, id="cr_cr_lf"),
        pytest.param(b"a\rb\n", [b"a\rb"], False, id="cr_inside"),
        pytest.param(b"\r\n\n", [b"", b""], False, id="empty_lines"),
        pytest.param(b"a\nb\nc", [b"a", b"b"], True, id="several"),
        pytest.param(b"\x00\xff\n", [b"\x00\xff"], False, id="binary"),
        pytest.param(b"123456789\r\n", [b"123456789"], False, id="at_the_limit"),
    ],
)
def test_lines_come_out_however_they_are_cut(
    data: bytes, lines: list[bytes], left: bool
) -> None:
    assert same_every_way(lines_of, data) == (lines, left)


def test_a_line_over_the_limit_is_cut_however_it_comes() -> None:
    for size in (10, 11, 12, 35):
        data = b"good\n" + b"x" * size + b"\r\nab\n"
        assert same_every_way(lines_of, data) == ([b"good", b"x" * 10, b"ab"], False)


def test_of_a_line_without_end_no_more_is_kept_than_the_limit() -> None:
    buffer = ReceiveBuffer(10)
    for _ in range(100):
        buffer.append(b"x" * 1000)
        assert buffer.next_line() is None
        assert len(buffer) == 10


class Watched(bytearray):
    """Counts the bytes that are searched."""

    looked_at = 0

    def find(self, *args: object) -> int:
        start = args[1]
        assert isinstance(start, int)
        self.looked_at += len(self) - start
        return super().find(b"\n", start)


def test_no_byte_is_searched_twice_when_they_come_one_by_one() -> None:
    buffer = ReceiveBuffer(2000)
    watched = buffer._data = Watched()
    for _ in range(1000):
        buffer.append(b"x")
        assert buffer.next_line() is None
    assert watched.looked_at == 1000


def test_take_gives_all_as_it_came() -> None:
    buffer = ReceiveBuffer(10)
    buffer.append(b"DATA\r\nno line\n" + b"x" * 100)
    assert buffer.next_line() == b"DATA"
    assert buffer.peek(2) == b"no"
    assert buffer.take() == b"no line\n" + b"x" * 100
    assert (len(buffer), buffer.peek(1), buffer.take()) == (0, b"", b"")
    buffer.append(b"RSET\r\n")
    assert buffer.next_line() == b"RSET"


def test_take_forgets_what_was_searched() -> None:
    buffer = ReceiveBuffer(10)
    buffer.append(b"12345")
    assert buffer.next_line() is None
    assert buffer.take() == b"12345"
    buffer.append(b"\nx")
    assert buffer.next_line() == b""
