"""Replies, enhanced statuses, and text from a host made fit for a line."""

from __future__ import annotations

import pytest

from mxpolicy.reply import MAX_TEXT, EnhancedStatus, Reply, printable

# --- text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain ~text", "plain ~text"),
        ("\x1b[31mred\r\n\x7f", "?[31mred???"),
        ("grüß", "gr??"),
        (b"gr\xc3\xbc\x00", "gr???"),
        ("12345", "12345"),
        ("1234567890", "12..."),
        (b"1234567890", "12..."),
    ],
)
def test_text_is_one_line_of_printable_ascii(text: str | bytes, line: str) -> None:
    assert printable(text, 11 if len(line) > 5 else 5) == line


# --- enhanced statuses


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("4.7.1 later", EnhancedStatus(4, 7, 1)),
        ("5.1.1", EnhancedStatus(5, 1, 1)),
        ("2.123.456\tfine", EnhancedStatus(2, 123, 456)),
        # RFC 2034 §4: followed by white space. This one is an address.
        ("5.7.1.9 is blocked", None),
        ("4.7.1: later", None),
        ("4.7.1234 later", None),
        ("3.0.0 go on", None),
        (" 4.7.1 later", None),
        ("", None),
    ],
)
def test_status_stands_at_the_start_and_ends_before_a_blank(
    text: str, status: EnhancedStatus | None
) -> None:
    assert EnhancedStatus.parse(text) == status


def test_status_is_read_as_it_is_written() -> None:
    status = EnhancedStatus(5, 12, 3)
    assert EnhancedStatus.parse(str(status)) == status


@pytest.mark.parametrize(
    ("code", "line", "status"),
    [
        (550, "5.7.1 no", EnhancedStatus(5, 7, 1)),
        # The code decides: Postfix would let the 5.7.1 beat our exit status 75.
        (450, "5.7.1 no", EnhancedStatus(4, 0, 0)),
        (550, "4.2.2 full", EnhancedStatus(5, 0, 0)),
        (450, "no", None),
    ],
)
def test_status_of_another_class_than_the_code_says_nothing_but_the_class(
    code: int, line: str, status: EnhancedStatus | None
) -> None:
    assert Reply(code, (line, "2.0.0 not this one")).enhanced == status


def test_reply_without_lines_has_no_status() -> None:
    assert Reply(450, ()).enhanced is None


# --- replies


@pytest.mark.parametrize(
    ("code", "what"),
    [
        *((199, ""), (200, "positive"), (354, "positive"), (399, "positive")),
        *((400, "transient"), (499, "transient")),
        *((500, "permanent"), (599, "permanent"), (600, "")),
    ],
)
def test_reply_is_of_one_class_or_of_none(code: int, what: str) -> None:
    reply = Reply(code, ("",))
    is_positive = reply.is_positive, reply.is_transient, reply.is_permanent
    wanted = what == "positive", what == "transient", what == "permanent"
    assert is_positive == wanted


def test_text_of_a_reply_is_its_code_and_its_lines() -> None:
    assert Reply(250, ("one", "two")).text == "250 one two"
    assert Reply(7, ("",)).text == "007"


def test_shortened_reply_has_the_same_text_and_hardly_more_lines_than_it_needs() -> (
    None
):
    long = Reply(550, ("5.7.1 " + "x" * 94,) * 20)
    short = long.shortened()
    assert short.text == long.text
    assert sum(len(line) + 1 for line in short.lines[:-1]) <= MAX_TEXT
    assert len(short.lines) == 6
    few = Reply(250, ("ok", "fine"))
    assert few.shortened() is few
