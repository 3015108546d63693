from __future__ import annotations

import pytest

from mxpolicy.errors import RemoteProtocolError
from mxpolicy.protocol.receive_buffer import ReceiveBuffer
from tests.protocol.feeding import every_way, same_every_way


def lines_of(pieces: list[bytes], limit: int = 10) -> tuple[list[bytes], bool]:
    """Feed *pieces*; return the lines and whether something was left over."""
    buffer = ReceiveBuffer(limit)
    lines = []
    for piece in pieces:
        buffer.append(piece)
        while (line := buffer.next_line()) is not None:
            lines.append(line)
    return lines, bool(buffer)


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


@pytest.mark.parametrize("end", [b"", b"\n", b"\nab\n"])
def test_a_line_over_the_limit_is_an_error_finished_or_not(end: bytes) -> None:
    for pieces in every_way(b"x" * 11 + end):
        with pytest.raises(RemoteProtocolError, match="over 10 bytes"):
            lines_of(pieces)


def test_lines_before_one_that_is_too_long_are_returned() -> None:
    buffer = ReceiveBuffer(10)
    buffer.append(b"good\n" + b"x" * 11)
    assert buffer.next_line() == b"good"
    with pytest.raises(RemoteProtocolError):
        buffer.next_line()


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
