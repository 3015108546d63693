"""`mxpolicy.routing.reuse`: which sessions are kept, and what counts that one says."""

from __future__ import annotations

from math import inf

import pytest

from mxpolicy.routing.candidate import Verdict
from mxpolicy.routing.reuse import (
    LONGEST_AGE,
    QUICK,
    Counts,
    Course,
    kept_until,
    may_be_kept,
    what_counts,
)

WELL = Course(data=354, seconds=0.1, dot=250)


@pytest.mark.parametrize(
    ("course", "other", "is_kept"),
    [
        pytest.param(WELL, {}, True, id="plain success"),
        pytest.param(Course(), {}, False, id="no transaction"),
        pytest.param(Course(True), {}, False, id="MAIL refused"),
        pytest.param(
            WELL._replace(is_recipient_refused=True), {}, False, id="one RCPT refused"
        ),
        pytest.param(WELL._replace(data=353), {}, False, id="353 in place of 354"),
        pytest.param(WELL._replace(dot=251), {}, False, id="251 at the dot"),
        pytest.param(WELL._replace(dot=0), {}, False, id="no answer to the dot"),
        pytest.param(WELL._replace(dot=550), {}, False, id="refused at the dot"),
        pytest.param(WELL._replace(seconds=QUICK), {}, True, id="just quick enough"),
        pytest.param(WELL._replace(seconds=QUICK + 0.1), {}, False, id="slow"),
        pytest.param(WELL, {"strays": 1}, False, id="a reply to nothing"),
        pytest.param(WELL, {"transactions": 9, "most": 10}, True, id="one more"),
        pytest.param(WELL, {"transactions": 10, "most": 10}, False, id="no more"),
        pytest.param(WELL, {"transactions": 10, "most": None}, True, id="no limit"),
    ],
)
def test_session_is_kept_after_plain_success_only(
    course: Course, other: dict[str, int], is_kept: bool
) -> None:
    usual: dict[str, int] = {"transactions": 1, "most": 100, "strays": 0}
    assert may_be_kept(course, **(usual | other)) is is_kept


@pytest.mark.parametrize(
    ("now", "began", "idle", "known_until", "until"),
    [
        pytest.param(1000, 990, 5, inf, 1005, id="idle time"),
        pytest.param(1000, 990, 2, inf, 1002, id="a shorter idle time"),
        pytest.param(1000, 1002 - LONGEST_AGE, 5, inf, 1002, id="age"),
        pytest.param(1000, 990, 5, 1001, 1001, id="what has led to it may change"),
        pytest.param(1000, 990, 0, inf, 1000, id="not at all"),
    ],
)
def test_session_is_kept_until_the_first_reason_to_end_it(
    now: float, began: float, idle: float, known_until: float, until: float
) -> None:
    assert kept_until(now, began, idle=idle, known_until=known_until) == until


# What counts, whole: each course, each end. The first row that fits decides, in the order
# of the table in `what_counts`.

CLOSED = Verdict.CLOSED


def _row(course: Course, ended: Verdict | None, dot_is_out: bool) -> tuple[str, Counts]:
    """Return the row of the table, and what it says."""
    rows = [
        ("the dot is out", dot_is_out, Counts.ALL),
        ("354, closed", course.data == 354 and ended is CLOSED, Counts.DIAL_ANEW),
        ("354, anything else", course.data == 354, Counts.ALL),
        ("the session broke", ended is not None, Counts.DIAL_ANEW),
        ("MAIL was refused", course.is_sender_refused, Counts.DIAL_ANEW),
        ("another refusal", True, Counts.IF_IN_STEP),
    ]
    return next((name, counts) for name, fits, counts in rows if fits)


COURSES = [
    Course(is_sender_refused, is_recipient_refused, data, 0.1, dot)
    for is_sender_refused in (False, True)
    for is_recipient_refused in (False, True)
    for data in (0, 250, 354, 421, 550)
    for dot in (0, 250, 251, 450, 550)
]


@pytest.mark.parametrize("dot_is_out", [False, True])
@pytest.mark.parametrize("ended", [None, *Verdict])
def test_what_counts_of_each_course_that_ended_in_each_way(
    ended: Verdict | None, dot_is_out: bool
) -> None:
    met = set()
    for course in COURSES:
        row, counts = _row(course, ended, dot_is_out)
        found = what_counts(course, ended=ended, dot_is_out=dot_is_out)
        assert (course, row, found) == (course, row, counts)
        met.add(row)
    # All of them together are the table.
    if dot_is_out:
        assert met == {"the dot is out"}
    elif ended is None:
        assert met == {"354, anything else", "MAIL was refused", "another refusal"}
    else:
        is_closed = ended is CLOSED
        after = "354, closed" if is_closed else "354, anything else"
        assert met == {after, "the session broke"}


BROKEN = [Verdict.CLOSED, Verdict.SILENT, Verdict.STALLED, Verdict.TRANSIENT]
BEFORE = Course()
GO_AHEAD = Course(data=354)


@pytest.mark.parametrize("ended", [*BROKEN, Verdict.UNFIT])
@pytest.mark.parametrize(
    "course",
    [
        BEFORE,
        Course(is_recipient_refused=True),
        Course(is_sender_refused=True),
        Course(data=250),
        Course(data=550),
    ],
    ids=str,
)
def test_end_before_354_is_no_finding(course: Course, ended: Verdict) -> None:
    assert what_counts(course, ended=ended) is Counts.DIAL_ANEW


@pytest.mark.parametrize(
    ("ended", "counts"),
    [
        (None, Counts.ALL),
        (Verdict.CLOSED, Counts.DIAL_ANEW),
        (Verdict.SILENT, Counts.ALL),
        (Verdict.STALLED, Counts.ALL),
        (Verdict.TRANSIENT, Counts.ALL),
    ],
)
def test_end_in_the_mail_data_is_the_hosts_except_that_it_has_closed(
    ended: Verdict | None, counts: Counts
) -> None:
    course = GO_AHEAD._replace(is_recipient_refused=True)
    assert what_counts(course, ended=ended) is counts


@pytest.mark.parametrize("ended", [None, *BROKEN])
@pytest.mark.parametrize("course", [BEFORE, GO_AHEAD, Course(data=550)], ids=str)
def test_everything_counts_once_the_dot_is_out(
    course: Course, ended: Verdict | None
) -> None:
    assert what_counts(course, ended=ended, dot_is_out=True) is Counts.ALL


@pytest.mark.parametrize(
    ("course", "counts"),
    [
        pytest.param(Course(is_sender_refused=True), Counts.DIAL_ANEW, id="MAIL"),
        pytest.param(
            Course(is_recipient_refused=True), Counts.IF_IN_STEP, id="all RCPT"
        ),
        pytest.param(Course(data=550), Counts.IF_IN_STEP, id="DATA"),
        pytest.param(
            Course(is_recipient_refused=True, data=354, dot=250),
            Counts.ALL,
            id="one RCPT, and 354 behind it",
        ),
        pytest.param(Course(data=354, dot=550), Counts.ALL, id="the dot"),
    ],
)
def test_refusal_counts_when_the_replies_are_in_step(
    course: Course, counts: Counts
) -> None:
    assert what_counts(course, ended=None) is counts
