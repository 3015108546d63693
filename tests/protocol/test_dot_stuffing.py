from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mxpolicy.options import LongLines
from mxpolicy.protocol.dot_stuffing import (
    FINAL_DOT,
    MAX_TEXT_LINE,
    DotStuffer,
    DotUnstuffer,
    size_on_the_wire,
)
from tests.protocol.feeding import cut_up, every_way, same_every_way

X = b"x"


def fold(pieces: list[bytes]) -> bytes:
    return encode(pieces, LongLines.FOLD)


def pass_on(pieces: list[bytes]) -> bytes:
    return encode(pieces, LongLines.PASS)


def encode(pieces: list[bytes], long_lines: LongLines) -> bytes:
    stuffer = DotStuffer(long_lines)
    out = b"".join(map(stuffer.encode, pieces)) + stuffer.finish()
    assert stuffer.finish() == b""
    return out


# Mail data in, bytes on the wire out. The names of the smuggling cases are the
# ends of data that some server or other has taken for the real one.
CORPUS = [
    pytest.param(b"", b"", id="empty"),
    pytest.param(b"a", b"a\r\n", id="open_line_is_ended"),
    pytest.param(b"a\n", b"a\r\n", id="lf"),
    pytest.param(b"a\r\n", b"a\r\n", id="crlf"),
    pytest.param(b"\r", b" \r\n", id="cr_alone"),
    pytest.param(b"a\r", b"a \r\n", id="cr_at_the_end"),
    pytest.param(b"a\rb\n", b"a b\r\n", id="bare_cr"),
    pytest.param(b"a\r\rb", b"a  b\r\n", id="two_bare_crs"),
    pytest.param(b"a\n\rb", b"a\r\n b\r\n", id="lf_cr"),
    pytest.param(b"a\n\r", b"a\r\n \r\n", id="lf_cr_at_the_end"),
    pytest.param(b"a\r\r\nb", b"a \r\nb\r\n", id="cr_crlf"),
    pytest.param(
        b"A: b\r\r\n\r\r\nC: d\n\n", b"A: b \r\n \r\nC: d\r\n\r\n", id="header"
    ),
    pytest.param(b"\n\n\n", b"\r\n\r\n\r\n", id="empty_lines"),
    pytest.param(b".", b"..\r\n", id="dot_alone"),
    pytest.param(b".\n", b"..\r\n", id="dot_line_first"),
    pytest.param(b"..\n.\n", b"...\r\n..\r\n", id="dot_lines"),
    pytest.param(b"a.\nb.c\n", b"a.\r\nb.c\r\n", id="dots_inside"),
    pytest.param(b"\x00.\x00\n\x00", b"\x00.\x00\r\n\x00\r\n", id="nul_passes"),
    pytest.param(b"\xff.\n\xe4", b"\xff.\r\n\xe4\r\n", id="8bit_passes"),
    pytest.param(b"a\n.\nb", b"a\r\n..\r\nb\r\n", id="smuggled_lf_dot_lf"),
    pytest.param(b"a\n.\r\nb", b"a\r\n..\r\nb\r\n", id="smuggled_lf_dot_crlf"),
    pytest.param(b"a\r\n.\nb", b"a\r\n..\r\nb\r\n", id="smuggled_crlf_dot_lf"),
    pytest.param(b"a\r\n.\r\nb", b"a\r\n..\r\nb\r\n", id="smuggled_crlf_dot_crlf"),
    pytest.param(b"a\r.\rb", b"a . b\r\n", id="smuggled_cr_dot_cr"),
    pytest.param(b"a\r\n.\rb", b"a\r\n.. b\r\n", id="smuggled_crlf_dot_cr"),
    pytest.param(b"a\r.\r\nb", b"a .\r\nb\r\n", id="smuggled_cr_dot_crlf"),
    pytest.param(b"a\r.\nb", b"a .\r\nb\r\n", id="smuggled_cr_dot_lf"),
    pytest.param(b"a\n.\rb", b"a\r\n.. b\r\n", id="smuggled_lf_dot_cr"),
    pytest.param(b"a\r\n\r.\r\nb", b"a\r\n .\r\nb\r\n", id="smuggled_crlf_cr_dot_crlf"),
    pytest.param(b"a\r\r\n.\r\r\nb", b"a \r\n.. \r\nb\r\n", id="smuggled_cr_crlf_dot"),
    pytest.param(b"a\r\n\x00.\r\nb", b"a\r\n\x00.\r\nb\r\n", id="nul_before_dot"),
]


@pytest.mark.parametrize(("mail_data", "wire"), CORPUS)
def test_mail_data_is_stuffed_however_it_is_cut(mail_data: bytes, wire: bytes) -> None:
    assert same_every_way(fold, mail_data) == wire
    assert same_every_way(pass_on, mail_data) == wire


@pytest.mark.parametrize(
    ("mail_data", "wire"),
    [
        pytest.param(X * 998 + b"\n", X * 998 + b"\r\n", id="998_fits"),
        pytest.param(X * 998, X * 998 + b"\r\n", id="998_open"),
        pytest.param(X * 999 + b"\n", X * 998 + b"\r\n x\r\n", id="999_does_not"),
        pytest.param(X * 999, X * 998 + b"\r\n x\r\n", id="999_open"),
        pytest.param(
            b"a\n" + X * 999 + b"\nb\n",
            b"a\r\n" + X * 998 + b"\r\n x\r\nb\r\n",
            id="between_others",
        ),
        pytest.param(
            X * (998 + 997), X * 998 + b"\r\n " + X * 997 + b"\r\n", id="space_counts"
        ),
        pytest.param(
            X * (998 + 997 + 1),
            X * 998 + b"\r\n " + X * 997 + b"\r\n x\r\n",
            id="two_folds",
        ),
        pytest.param(
            X * 998 + b"\r\n" + X * 999 + b"\r\n",
            X * 998 + b"\r\n" + X * 998 + b"\r\n x\r\n",
            id="line_ends_do_not_count",
        ),
        pytest.param(
            X * 998 + b"\r", X * 998 + b"\r\n  \r\n", id="space_for_a_cr_counts"
        ),
        pytest.param(
            X * 998 + b"\r\r\n", X * 998 + b"\r\n  \r\n", id="cr_crlf_is_one_more"
        ),
        pytest.param(
            b"." + X * 997 + b"\n", b".." + X * 997 + b"\r\n", id="dot_does_not_count"
        ),
        pytest.param(
            X * 998 + b".\nb", X * 998 + b"\r\n .\r\nb\r\n", id="dot_folded_off"
        ),
        pytest.param(
            b"." * 999, b"." * 999 + b"\r\n .\r\n", id="nothing_but_dots_in_a_line"
        ),
        pytest.param(
            X * 997 + "ä".encode(), X * 997 + b"\r\n \xc3\xa4\r\n", id="two_bytes_stay"
        ),
        pytest.param(
            X * 995 + "𝄞".encode(),
            X * 995 + b"\r\n " + "𝄞".encode() + b"\r\n",
            id="four_bytes_stay",
        ),
        pytest.param(
            X * 996 + "äb".encode(),
            X * 996 + b"\xc3\xa4\r\n b\r\n",
            id="cut_between_two_characters",
        ),
        pytest.param(
            b"\xa4" * 999,
            b"\xa4" * 998 + b"\r\n \xa4\r\n",
            id="no_utf8_is_cut_anywhere",
        ),
        pytest.param(
            X * 997 + b"\xa4\xa4",
            X * 997 + b"\xa4\r\n \xa4\r\n",
            id="latin1_is_cut_anywhere",
        ),
    ],
)
def test_long_lines_are_folded_however_they_are_cut(
    mail_data: bytes, wire: bytes
) -> None:
    around = [at for at in (1, 500, *range(990, 1003)) if at < len(mail_data)]
    ways = [[mail_data], [mail_data[at : at + 1] for at in range(len(mail_data))]]
    ways += [[mail_data[:at], mail_data[at:]] for at in around]
    assert [fold(pieces) for pieces in ways] == [wire] * len(ways)


def test_long_lines_pass_when_so_configured() -> None:
    line = b"." + X * 5000
    for pieces in ([line, line], [line[:1000], line[1000:], line]):
        assert pass_on(pieces) == b"." + line + line + b"\r\n"


def test_passed_lines_leave_at_once_and_are_not_collected() -> None:
    stuffer = DotStuffer(LongLines.PASS)
    assert stuffer.encode(X * 5000) == X * 5000
    assert stuffer.encode(b"." * 10) == b"." * 10
    assert stuffer.finish() == b"\r\n"


def test_no_more_than_one_line_is_held_back() -> None:
    stuffer = DotStuffer(LongLines.FOLD)
    assert stuffer.encode(X * 998 + b"\r") == b""
    assert len(stuffer.encode(X * 5000)) >= 5000 - MAX_TEXT_LINE


def test_the_final_dot_after_any_of_the_corpus_is_the_only_one() -> None:
    for mail_data, _ in (case.values for case in CORPUS):
        assert isinstance(mail_data, bytes)
        for pieces in every_way(mail_data):
            wire = b"\r\n" + fold(pieces) + FINAL_DOT
            assert wire.index(b"\r\n.\r\n") == len(wire) - 5


def reference(mail_data: bytes, long_lines: LongLines) -> bytes:
    """The same by the shortest way, a line at a time, without streaming."""
    lines = re.sub(rb"\r(?!\n)", b" ", mail_data).replace(b"\r\n", b"\n").split(b"\n")
    if not lines[-1]:
        lines.pop()
    out = []
    for line in lines:
        rest, room, space = line, MAX_TEXT_LINE, b""
        while long_lines is LongLines.FOLD and len(rest) > room:
            at = room
            if (tail := rest[: at + 1].rstrip(bytes(range(0x80, 0xC0)))) and (
                at - 3 <= len(tail) - 1 < at and tail[-1] >= 0xC0
            ):
                at = len(tail) - 1
            out.append(space + rest[:at])
            rest, room, space = rest[at:], MAX_TEXT_LINE - 1, b" "
        out.append(space + rest)
    return b"".join(
        (b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in out
    )


# Mail data with one kind of line end takes another way than such with several.
lines = st.lists(
    st.sampled_from([b"", b".", b"..", b"a", b".b", b"c.", X * 997, X * 999]),
    max_size=9,
)
uniform = st.builds(
    lambda end, lines: end.join(lines), st.sampled_from([b"\n", b"\r\n"]), lines
)

mails = uniform | st.lists(
    st.one_of(
        st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\r\n.\r\n", b"\x00", b" "]),
        st.binary(max_size=6),
        st.text("äß€𝄞a", max_size=4).map(str.encode),
        st.integers(990, 1003).map(lambda n: X * n),
        st.integers(240, 260).map(lambda n: "𝄞".encode() * n),
    ),
    max_size=12,
).map(b"".join)


@given(st.data(), mails, st.sampled_from(LongLines))
@example(None, X * 998 + b"\r" + b"\n", LongLines.FOLD)
@settings(max_examples=200)
def test_any_mail_data_is_clean_whole_and_independent_of_cuts(
    data: st.DataObject | None, mail_data: bytes, long_lines: LongLines
) -> None:
    pieces = data.draw(cut_up(mail_data)) if data else [mail_data[:-1], mail_data[-1:]]
    wire = encode(pieces, long_lines)
    assert wire == reference(mail_data, long_lines)
    lines = wire.split(b"\r\n")
    assert lines.pop() == b""
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert b"." not in lines
    plain = [line[1:] if line.startswith(b".") else line for line in lines]
    if long_lines is LongLines.FOLD:
        assert all(len(line) <= MAX_TEXT_LINE for line in plain)
    else:
        text = re.sub(rb"\r(?!\n)", b" ", mail_data).replace(b"\r\n", b"\n")
        assert plain == text.split(b"\n")[: len(plain)]


@given(st.text("aäß€𝄞", min_size=400, max_size=1500))
@settings(max_examples=30)
def test_utf8_is_still_utf8_when_unfolded(text: str) -> None:
    lines = fold([text.encode()]).decode().removesuffix("\r\n").split("\r\n ")
    assert "".join(lines) == text
    assert all(len(line.encode()) <= MAX_TEXT_LINE for line in lines)


@given(mails)
def test_size_on_the_wire_is_that_with_crlf(mail_data: bytes) -> None:
    with_crlf = re.sub(rb"\r?\n", b"\r\n", mail_data)
    assert size_on_the_wire(mail_data) == len(with_crlf)


def unstuffed(wire: bytes) -> tuple[bytes, bytes]:
    """Return what `DotUnstuffer` returns, by the shortest way, without streaming."""
    data, end, rest = (b"\r\n" + wire).partition(b"\r\n.\r\n")
    assert end
    return (data + b"\r\n").replace(b"\r\n.", b"\r\n")[2:], rest


@given(st.data(), mails, st.sampled_from([b"", b"QUIT\r\n", b".\r\n"]))
@settings(max_examples=200)
def test_unstuffing_is_the_way_back_however_it_is_cut(
    data: st.DataObject, mail_data: bytes, rest: bytes
) -> None:
    wire = encode([mail_data], LongLines.PASS) + FINAL_DOT + rest
    unstuffer, taken, left = DotUnstuffer(), b"", b""
    for piece in data.draw(cut_up(wire)):
        if unstuffer.is_over:
            left += piece
            continue
        more, left = unstuffer.decode(piece)
        taken += more
    assert unstuffer.is_over
    assert (taken, left) == unstuffed(wire)
    assert encode([taken], LongLines.PASS) == wire[: len(wire) - len(FINAL_DOT + rest)]


@given(st.data(), mails)
@settings(max_examples=200)
def test_unstuffing_takes_anything_however_it_is_cut(
    data: st.DataObject, wire: bytes
) -> None:
    """What comes need not be clean: a bare CR or LF stays, and ends no line."""
    wire += b"\r\n" + FINAL_DOT
    unstuffer, taken, left = DotUnstuffer(), b"", b""
    for piece in data.draw(cut_up(wire)):
        if unstuffer.is_over:
            left += piece
            continue
        more, left = unstuffer.decode(piece)
        taken += more
    assert (taken, left) == unstuffed(wire)
