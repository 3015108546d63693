"""The answer to the mail server: the status, and the line."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.errors import ConfigError, LocalTrouble, UsageError
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.protocol.pipe_answer import MAX_ANSWER, answer, answer_line, deferral
from mxpolicy.reply import EnhancedStatus, Reply

YES = Delivered(
    EnhancedStatus(2, 0, 0), "250 Ok", Reply(250, ("Ok",)), "h[192.0.2.1]:25"
)
NO = Bounced(EnhancedStatus(5, 1, 1), "550 no such user")
LATER = Deferred(EnhancedStatus(4, 2, 2), "452 full")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([YES], (0, "2.0.0 250 Ok"), id="delivered"),
        pytest.param([NO], (69, "5.1.1 550 no such user"), id="bounced"),
        pytest.param([LATER], (75, "4.2.2 452 full"), id="deferred"),
        pytest.param([YES, YES], (0, "2.0.0 <r0>: 250 Ok; <r1>: 250 Ok"), id="all"),
        pytest.param(
            [YES, LATER, NO], (75, "4.2.2 <r1>: 452 full"), id="deferred_beats_all"
        ),
        pytest.param(
            [YES, NO],
            (69, "5.1.1 <r1>: 550 no such user; delivered: <r0>"),
            id="bounce_says_who_got_it",
        ),
    ],
)
def test_one_answer_stands_for_all(
    outcomes: list[Outcome], expected: tuple[int, str]
) -> None:
    rows = [(f"r{number}", outcome) for number, outcome in enumerate(outcomes)]
    assert answer(rows) == expected


def test_bounce_names_everybody_however_much_hosts_say() -> None:
    loud = Bounced(EnhancedStatus(5, 1, 1), "550 5.1.1 " + "no such user here " * 40)
    refused = [(f"refused{number}@b.example", loud) for number in range(45)]
    taken = [(f"taken{number}@b.example", YES) for number in range(5)]
    line = answer_line(*answer([*taken, *refused])).decode()
    assert line.startswith("5.1.1 <refused0@b.example>: 550 5.1.1 no such user")
    assert all(f"<{who}>: 550 5.1.1 no su" in line for who, _ in refused)
    assert line.endswith("; delivered: " + ", ".join(f"<{w}>" for w, _ in taken))


def test_bounce_of_more_than_there_is_room_for_begins_with_how_many() -> None:
    refused = [(f"refused{number}@b.example", NO) for number in range(300)]
    status, text = answer([("taken@b.example", YES), *refused])
    assert text.startswith("5.1.1 300 of 301 recipients: 550 no such user: <refused0@")
    assert len(answer_line(status, text)) <= MAX_ANSWER


@given(st.sampled_from([0, 69, 75]), st.text() | st.from_regex(r"[245]\.\d\.\d .*"))
def test_line_is_what_postfix_understands_as_the_status_says(
    status: int, text: str
) -> None:
    line = answer_line(status, text)
    assert len(line) <= MAX_ANSWER
    assert re.fullmatch(rb"[ -~]*", line)
    code = {0: b"", 75: rb"4\.\d{1,3}\.\d{1,3} ", 69: rb"5\.\d{1,3}\.\d{1,3} "}
    assert re.match(code[status], line)


def test_line_that_is_too_long_is_cut_at_what_postfix_reads() -> None:
    line = answer_line(75, "4.4.1 " + "x" * 5000)
    assert len(line) == MAX_ANSWER - 1
    assert line.endswith(b"x...")


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        pytest.param(UsageError("no sender"), "4.3.5 mxpolicy: no sender", id="usage"),
        pytest.param(ConfigError(["f:1: x"]), "4.3.5 mxpolicy: f:1: x", id="config"),
        pytest.param(LocalTrouble("full"), "4.3.0 mxpolicy: full", id="machine"),
        pytest.param(MemoryError(), "4.3.0 mxpolicy: out of memory", id="memory"),
        pytest.param(
            BaseExceptionGroup("two", [LocalTrouble("full"), ValueError("x")]),
            "4.3.0 mxpolicy: full",
            id="group",
        ),
        pytest.param(ValueError("x"), "4.3.0 mxpolicy: ValueError: x", id="bug"),
    ],
)
def test_trouble_is_told_by_its_kind(trouble: BaseException, text: str) -> None:
    assert deferral(trouble) == text


def test_trouble_of_ours_says_where_it_was_raised() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018 - it raises
    assert re.search(r" \(test_pipe_answer\.py:\d+\)$", deferral(caught.value))
