from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.errors import RemoteProtocolError
from mxpolicy.protocol.reply_reader import MAX_LINE, MAX_LINES, MAX_REPLY, ReplyReader
from mxpolicy.reply import MAX_TEXT, Reply
from tests.protocol.feeding import cut_up, every_way, same_every_way


def read(pieces: list[bytes]) -> tuple[list[Reply], str]:
    """Feed *pieces*; return the replies and the error that ended them, if any."""
    reader = ReplyReader()
    replies = []
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while (reply := reader.next_reply()) is not None:
                replies.append(reply)
    except RemoteProtocolError as error:
        return replies, str(error)
    return replies, ""


@pytest.mark.parametrize(
    ("data", "replies"),
    [
        pytest.param(b"250 OK\r\n", [Reply(250, ("OK",))], id="one_line"),
        pytest.param(b"250 OK\n", [Reply(250, ("OK",))], id="bare_lf"),
        pytest.param(b"250\r\n", [Reply(250, ("",))], id="no_text_no_space"),
        pytest.param(b"250 \r\n", [Reply(250, ("",))], id="no_text"),
        pytest.param(b"250-\r\n250\r\n", [Reply(250, ("", ""))], id="no_text_twice"),
        pytest.param(b"250  x \r\n", [Reply(250, (" x ",))], id="spaces_are_text"),
        pytest.param(
            b"250-mx.example\r\n250-SIZE 1\r\n250 DSN\r\n",
            [Reply(250, ("mx.example", "SIZE 1", "DSN"))],
            id="several_lines",
        ),
        pytest.param(
            b"250-a\n250-b\r\n250 c\n",
            [Reply(250, ("a", "b", "c"))],
            id="mixed_line_ends",
        ),
        pytest.param(
            b"550-no\r\n554 really\r\n",
            [Reply(554, ("no", "really"))],
            id="last_code_of_a_class_counts",
        ),
        pytest.param(b"299 ?\r\n", [Reply(299, ("?",))], id="unknown_code"),
        pytest.param(
            b"250 a\r\n450 b\r\n550 c\r\n",
            [Reply(250, ("a",)), Reply(450, ("b",)), Reply(550, ("c",))],
            id="three_replies",
        ),
        pytest.param(
            b"220 \x1b[2J\xc3\xa4\x00\t\x7f\r\n",
            [Reply(220, ("?[2J?????",))],
            id="unprintable_text_is_escaped",
        ),
        pytest.param(b"250-but no more", [], id="unfinished"),
    ],
)
def test_replies_are_read_however_they_are_cut(
    data: bytes, replies: list[Reply]
) -> None:
    assert same_every_way(read, data) == (replies, "")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(
            b"HTTP/1.1 400 Bad Request\r\n",
            "not an SMTP reply: 'HTTP/1.1 400 Bad Request'",
            id="http",
        ),
        pytest.param(b"SSH-2.0-x\r\n", "not an SMTP reply", id="ssh"),
        pytest.param(b"\x16\x03\x01\x02\n", "not an SMTP reply: '????'", id="binary"),
        pytest.param(b"\r\n", "not an SMTP reply: ''", id="empty_line"),
        pytest.param(b"250OK\r\n", "not an SMTP reply", id="no_separator"),
        pytest.param(b"250\tOK\r\n", "not an SMTP reply", id="tab"),
        pytest.param(b" 250 OK\r\n", "not an SMTP reply", id="leading_space"),
        pytest.param(b"25 OK\r\n", "not an SMTP reply", id="two_digits"),
        pytest.param(b"2500 OK\r\n", "not an SMTP reply", id="four_digits"),
        pytest.param(b"150 wait\r\n", "not an SMTP reply", id="below_200"),
        pytest.param(b"600 what\r\n", "not an SMTP reply", id="above_599"),
        pytest.param(b"\xb2\xb5\xb0 x\r\n", "not an SMTP reply", id="not_ascii_digits"),
        pytest.param(b"250-a\r\n550 b\r\n", "codes 250 and 550", id="yes_and_no"),
        pytest.param(b"550-a\r\n250 b\r\n", "codes 550 and 250", id="no_and_yes"),
        pytest.param(b"550-a\r\n450 b\r\n", "codes 550 and 450", id="never_and_later"),
        pytest.param(b"250-a\r\n\r\n", "not an SMTP reply", id="gap_in_a_reply"),
    ],
)
def test_what_is_no_reply_is_an_error_and_what_came_before_is_kept(
    data: bytes, error: str
) -> None:
    assert error in same_every_way(read, data)[1]
    assert same_every_way(read, b"220 hello\r\n" + data)[0] == [Reply(220, ("hello",))]


def test_a_line_over_its_limit_is_an_error_before_it_ends() -> None:
    longest = b"250 " + b"x" * (MAX_LINE - 5) + b"\r\n"
    replies, error = read([longest])
    assert (len(replies[0].lines[0]), error) == (MAX_TEXT, "")
    assert read([b"250 " + b"x" * MAX_LINE])[1] == f"a line of over {MAX_LINE} bytes"


def test_a_reply_without_end_is_an_error() -> None:
    lines = [b"250-x\r\n"] * (MAX_LINES - 1)
    assert len(read([*lines, b"250 x\r\n"])[0][0].lines) == MAX_LINES
    assert "over 100 lines" in read([*lines, b"250-x\r\n", b"250-x\r\n"])[1]


def test_a_reply_with_too_many_bytes_is_an_error() -> None:
    line = b"250-" + b"x" * 2000 + b"\r\n"
    enough = MAX_REPLY // (len(line) - 2)
    assert read([line] * enough) == ([], "")
    assert "65536 bytes" in read([line] * (enough + 1))[1]


def test_limits_begin_anew_with_every_reply() -> None:
    text = b"x" * (MAX_REPLY // MAX_LINES - 10)
    reply = b"250-%b\r\n" % text * (MAX_LINES - 1) + b"250 %b\r\n" % text
    replies, error = read([reply] * 3)
    assert (len(replies), error) == (3, "")


def test_bytes_behind_a_reply_are_left_and_seen() -> None:
    for trailing in (b"2", b"250-", b"250 next", b"250-next\r\n", b"rubbish"):
        for pieces in every_way(b"220 hello\r\n"):
            reader = ReplyReader()
            assert not reader.has_unread
            for piece in [*pieces[:-1], pieces[-1] + trailing]:
                reader.receive_data(piece)
            assert reader.next_reply() == Reply(220, ("hello",))
            assert reader.next_reply() is None
            assert reader.has_unread


def test_nothing_is_unread_after_a_whole_reply() -> None:
    reader = ReplyReader()
    reader.receive_data(b"250-a\r\n250 b\r\n")
    assert reader.next_reply() is not None
    assert not reader.has_unread


lines = st.lists(
    st.text("abc XYZ-019.", max_size=30).map(str.encode), min_size=1, max_size=5
)


@given(
    st.data(),
    st.lists(st.tuples(st.integers(200, 599), lines), max_size=6),
    st.sampled_from([b"\n", b"\r\n"]),
)
@settings(max_examples=60)
def test_any_sequence_of_replies_survives_any_cut(
    data: st.DataObject, expected: list[tuple[int, list[bytes]]], end: bytes
) -> None:
    wire = b""
    for code, texts in expected:
        for text in texts[:-1]:
            wire += b"%d-%b%b" % (code, text, end)
        wire += b"%d %b%b" % (code, texts[-1], end)
    replies = [
        Reply(code, tuple(text.decode() for text in texts)) for code, texts in expected
    ]
    assert read(data.draw(cut_up(wire))) == (replies, "")


garbage = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [b"250 ok\r\n", b"250-", b"\r", b"\n", b"-", b" ", b"421", b"5"]
        ),
    ),
    max_size=12,
).map(b"".join)


@given(st.data(), garbage)
@settings(max_examples=200)
def test_any_bytes_give_replies_or_one_kind_of_error_however_they_are_cut(
    data: st.DataObject, wire: bytes
) -> None:
    replies, error = read([wire])
    assert read(data.draw(cut_up(wire))) == (replies, error)
    for reply in replies:
        assert 200 <= reply.code <= 599
        assert all(line.isascii() and line.isprintable() for line in reply.lines)
