"""Requests of ``name=value`` lines, however they are cut, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.protocol.attributes import (
    MAX_ATTRIBUTES,
    MAX_REQUEST,
    AttributeReader,
    Malformed,
)
from tests.protocol.feeding import cut_up, same_every_way

Read = tuple[list[dict[str, str] | Malformed], bool]


def read(pieces: list[bytes]) -> Read:
    """Return all requests, and whether another one has begun."""
    reader = AttributeReader()
    return [one for piece in pieces for one in reader.receive_data(piece)], bool(reader)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"a=b\n\n", [{"a": "b"}], id="one"),
        pytest.param(b"a=b\nc=\n\n", [{"a": "b", "c": ""}], id="empty_value"),
        pytest.param(b"a=b=c\n\n", [{"a": "b=c"}], id="value_with_equals_sign"),
        pytest.param(b"a= b \n\n", [{"a": " b "}], id="blanks_belong_to_the_value"),
        pytest.param(b"a=b\r\nc=d\r\n\r\n", [{"a": "b", "c": "d"}], id="crlf"),
        pytest.param(b"a=b\nc=d\r\n\n", [{"a": "b", "c": "d"}], id="mixed_line_ends"),
        pytest.param(b"a=1\n\na=2\n\n", [{"a": "1"}, {"a": "2"}], id="pipelined"),
        pytest.param("a=ä\n\n".encode(), [{"a": "ä"}], id="utf_8"),
        pytest.param(b"a=\xff\n\n", [{"a": "\udcff"}], id="not_utf_8"),
        pytest.param(b"a=\0\x1b\n\n", [{"a": "\0\x1b"}], id="controls_are_kept"),
        pytest.param(b"a=\rb\n\n", [{"a": "\rb"}], id="cr_within_a_value"),
    ],
)
def test_requests_are_read_however_they_are_cut(
    data: bytes, expected: list[dict[str, str]]
) -> None:
    requests = list(expected)
    assert same_every_way(read, data) == (requests, False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"\n", "expected name=value, not ''", id="nothing"),
        pytest.param(b"\r\n", "expected name=value, not ''", id="nothing_with_cr"),
        pytest.param(b"word\n\n", "expected name=value, not 'word'", id="no_equals"),
        pytest.param(b"=x\n\n", "expected name=value, not '=x'", id="no_name"),
        pytest.param(b"a=1\nb\n\n", "expected name=value, not 'b'", id="second_line"),
        pytest.param(b"a=1\na=1\n\n", "attribute given twice: 'a'", id="twice"),
        pytest.param(
            b"\x1b[2J\xff\n\n",
            r"expected name=value, not '\x1b[2J\udcff'",
            id="terminal_escapes",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n\r\n",
            "expected name=value, not 'GET / HTTP/1.1'",
            id="http",
        ),
        pytest.param(
            b"x" * 100 + b"\n\n", f"expected name=value, not '{'x' * 40}'", id="long"
        ),
    ],
)
def test_what_is_no_request_has_its_turn_and_spoils_nothing(
    data: bytes, reason: str
) -> None:
    before, after = {"a": "1"}, {"a": "2"}
    requests, is_unfinished = same_every_way(read, b"a=1\n\n" + data + b"a=2\n\n")
    assert requests == [before, Malformed(reason), after]
    assert not is_unfinished


def test_end_in_the_middle_of_a_request_is_seen() -> None:
    assert same_every_way(read, b"a=1\n\na=2\n") == ([{"a": "1"}], True)


def test_number_of_attributes_is_bounded() -> None:
    lines = [b"a%d=" % number for number in range(MAX_ATTRIBUTES + 1)]
    enough, _ = read([b"\n".join(lines[1:]) + b"\n\n"])
    too_many, _ = read([b"\n".join(lines) + b"\n\n"])
    assert isinstance(enough[0], dict)
    assert too_many == [Malformed(f"over {MAX_ATTRIBUTES} attributes")]


TOO_LONG = Malformed(f"over {MAX_REQUEST} bytes without an empty line")


@pytest.mark.parametrize("piece", [1000, 4096, MAX_REQUEST, 3 * MAX_REQUEST])
@pytest.mark.parametrize("line", [b"a=1\n", b"x", b"\r", b"a\r\n"])
def test_request_without_end_takes_no_memory_and_is_answered_once(
    line: bytes, piece: int
) -> None:
    reader = AttributeReader()
    data = line * (3 * MAX_REQUEST // len(line))
    for start in range(0, len(data), piece):
        assert reader.receive_data(data[start : start + piece]) == []
        assert len(reader._data) <= MAX_REQUEST
    assert reader.receive_data(b"x\n\na=1\n\n") == [TOO_LONG, {"a": "1"}]


def test_longest_request_is_read_and_one_byte_more_is_not() -> None:
    longest = b"a=" + b"x" * (MAX_REQUEST - 2)
    assert read([longest + b"\n\n"])[0] == [{"a": "x" * (MAX_REQUEST - 2)}]
    assert read([longest + b"x\n\n"])[0] == [TOO_LONG]


NAMES = st.text("abc_", min_size=1, max_size=5)
VALUES = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20)
REQUESTS = st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5), max_size=5)


@settings(max_examples=100)
@given(st.data(), REQUESTS)
def test_what_is_written_is_read(
    data: st.DataObject, sent: list[dict[str, str]]
) -> None:
    text = "".join(
        "".join(f"{name}={value}\n" for name, value in one.items()) + "\n"
        for one in sent
    )
    pieces = data.draw(cut_up(text.encode()))
    assert read(pieces) == (sent, False)


@settings(max_examples=200)
@given(st.data(), st.text("a=\n\r\0\udcff", max_size=40))
def test_any_bytes_give_one_request_for_each_empty_line(
    data: st.DataObject, text: str
) -> None:
    wire = text.encode("utf-8", "surrogateescape")
    requests, _ = whole = read([wire])
    assert read(data.draw(cut_up(wire))) == whole
    lines = wire.split(b"\n")[:-1]
    assert len(requests) == sum(line in {b"", b"\r"} for line in lines)
