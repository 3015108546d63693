from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.errors import RemoteProtocolError
from mxpolicy.protocol.reply_reader import KEPT, MAX_REPLY, ReplyReader
from mxpolicy.reply import MAX_TEXT, Reply
from tests.protocol.feeding import cut_up, every_way, same_every_way


def read(pieces: list[bytes], *, skip: bool = False) -> tuple[list[Reply], str]:
    """Feed *pieces*; return the replies and the error that ended them, if any."""
    reader = ReplyReader()
    replies = []
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while (reply := reader.next_reply(skip=skip)) is not None:
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
        pytest.param(b"250-a\r\n550 b\r\n", [Reply(550, ("b",))], id="yes_and_then_no"),
        pytest.param(
            b"550-a\r\n550-b\r\n250-c\r\n250 d\r\n",
            [Reply(250, ("c", "d"))],
            id="no_and_then_yes",
        ),
        pytest.param(
            b"550-a\r\n450-b\r\n550 c\r\n",
            [Reply(550, ("c",))],
            id="never_and_later_and_never",
        ),
        pytest.param(b"299 ?\r\n", [Reply(299, ("?",))], id="unknown_code"),
        pytest.param(b"150 wait\r\n", [Reply(150, ("wait",))], id="below_200"),
        pytest.param(b"999 what\r\n", [Reply(999, ("what",))], id="above_599"),
        pytest.param(b"000\r\n", [Reply(0, ("",))], id="zero"),
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
        pytest.param(b"250_OK\r\n", "not an SMTP reply", id="underscore"),
        pytest.param(b"25\r\n", "not an SMTP reply", id="two_digits_alone"),
        pytest.param(b"\x00250 OK\r\n", "not an SMTP reply: '?250 OK'", id="nul"),
        pytest.param(b"250\tOK\r\n", "not an SMTP reply", id="tab"),
        pytest.param(b" 250 OK\r\n", "not an SMTP reply", id="leading_space"),
        pytest.param(b"25 OK\r\n", "not an SMTP reply", id="two_digits"),
        pytest.param(b"2500 OK\r\n", "not an SMTP reply", id="four_digits"),
        pytest.param(b"\xb2\xb5\xb0 x\r\n", "not an SMTP reply", id="not_ascii_digits"),
        pytest.param(b"250-a\r\n\r\n", "not an SMTP reply", id="gap_in_a_reply"),
    ],
)
def test_what_is_no_reply_is_an_error_and_what_came_before_is_kept(
    data: bytes, error: str
) -> None:
    assert error in same_every_way(read, data)[1]
    assert same_every_way(read, b"220 hello\r\n" + data)[0] == [Reply(220, ("hello",))]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r",
        b"What follows is a reply",
        b" 250 no",
        b"250_no",
        b"250no",
        b"25",
        b"\x00\x00",
        b"\xff" * 9,
        b"x" * 3000,
    ],
)
def test_a_line_that_is_none_is_skipped_where_that_is_allowed(line: bytes) -> None:
    before = line + b"\r\n250 ok\r\n"
    inside = b"250-a\r\n" + line + b"\n250 b\r\n"
    for data, lines in ((before, ("ok",)), (inside, ("a", "b"))):
        for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
            assert read(pieces, skip=True) == ([Reply(250, lines)], "")
            assert read(pieces)[1].startswith("not an SMTP reply")


@pytest.mark.parametrize("line", [b"HTTP/1.1 400 No", b"SSH-2.0-x", b"* OK", b"+OK"])
def test_another_protocol_is_never_skipped_in_place_of_a_greeting(line: bytes) -> None:
    assert "not an SMTP reply" in read([line + b"\r\n"], skip=True)[1]
    later = b"220 hello\r\n" + line + b"\r\n250 ok\r\n"
    assert len(read([later], skip=True)[0]) == 2


def test_what_was_skipped_is_told_until_the_reply_comes() -> None:
    reader = ReplyReader()
    reader.receive_data(b"\x1b[2J\r\nmore\r\n")
    assert reader.next_reply(skip=True) is None
    assert (reader.skipped, reader.has_unread) == ("?[2J", False)
    reader.receive_data(b"250 ok\r\n")
    assert reader.next_reply(skip=True) is not None
    assert reader.skipped == ""


def test_a_reply_is_read_to_its_last_line_and_only_its_beginning_is_kept() -> None:
    text = b"x" * 76
    for data in (
        b"250 " + b"x" * 3000 + b"\r\n",
        b"250-" + b"x" * (MAX_REPLY - 100) + b"\r\n250 ok\r\n",
        b"250-%b\r\n" % text * 5000 + b"250 ok\r\n",
        b"250-\r\n" * 100_000 + b"250 ok\r\n",
    ):
        for size in (len(data), 65536, 1000):
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            [reply], error = read([*pieces, b"550 next\r\n"][:-1])
            assert (reply.code, error) == (250, "")
            assert sum(map(len, reply.lines)) <= KEPT + MAX_TEXT
            assert len(reply.lines) <= KEPT // len("250-") + 1


def test_what_is_kept_is_told_by_the_caller() -> None:
    reader = ReplyReader()
    reader.receive_data(b"250-KEYWORD\r\n" * 1000 + b"250 LAST\r\n")
    reply = reader.next_reply(keep=65536)
    assert reply is not None
    assert len(reply.lines) == 1001
    assert reply.lines[-1] == "LAST"


def test_the_last_code_counts_beyond_what_is_kept() -> None:
    begun = b"250-taken\r\n" * 10_000
    assert read([begun, b"550 5.7.1 no\r\n"])[0] == [Reply(550, ("5.7.1 no",))]
    assert read([begun, b"251 yes\r\n"])[0][0].code == 251


@pytest.mark.parametrize(
    "piece", [b"x" * 4096, b"250-x\r\n" * 700, b"\r\n" * 2000, b"\x00" * 4096]
)
def test_a_reply_without_end_is_an_error_after_a_mebibyte(piece: bytes) -> None:
    pieces = [piece] * (MAX_REPLY // len(piece))
    assert read(pieces, skip=True) == ([], "")
    _, error = read([*pieces, piece], skip=True)
    assert error == f"a reply of over {MAX_REPLY} bytes"
    assert read([b"".join(pieces) + piece], skip=True)[1] == error


def test_limits_begin_anew_with_every_reply() -> None:
    reply = b"250-%b\r\n" % (b"x" * 1000) * 1000 + b"250 ok\r\n"
    replies, error = read([reply] * 3)
    assert (len(replies), error) == (3, "")
    assert replies[0] == replies[2]


def test_where_a_reply_began_is_told() -> None:
    wire = b"220 hi\r\nrubbish\r\n250-a\r\n250 b\r\n\r\n550 c\r\n"
    for pieces in every_way(wire):
        reader, began = ReplyReader(), []
        for piece in pieces:
            reader.receive_data(piece)
            while reader.next_reply(skip=True) is not None:
                began.append(reader.began)
        assert began == [wire.index(code) for code in (b"220", b"250-a", b"550")]


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


@given(st.data(), garbage, st.booleans())
@settings(max_examples=200)
def test_any_bytes_give_replies_or_one_kind_of_error_however_they_are_cut(
    data: st.DataObject, wire: bytes, skip: bool
) -> None:
    replies, error = read([wire], skip=skip)
    assert read(data.draw(cut_up(wire)), skip=skip) == (replies, error)
    for reply in replies:
        assert 0 <= reply.code <= 999
        assert all(line.isascii() and line.isprintable() for line in reply.lines)
