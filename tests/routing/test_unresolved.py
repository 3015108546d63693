"""Hosts without known address: whom they overrule, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.routing.candidate import Candidate
from mxpolicy.routing.unresolved import (
    KEPT,
    NEWS_EVERY,
    SOFT,
    FailedSince,
    Unresolved,
    after_failure,
    decode,
    encode,
    has_better,
    is_news,
    is_soft,
    that_matter,
)

NOW = 1_800_000_000.0


def candidate(
    preference: int, position: int = 0, egress_position: int = 0
) -> Candidate:
    return Candidate(
        f"mx{preference}.example.com",
        "192.0.2.1",
        25,
        preference,
        egress_position=egress_position,
        nexthop_position=position,
    )


@pytest.mark.parametrize(
    ("unresolved", "tried", "better"),
    [
        pytest.param(Unresolved("a", 10), candidate(20), True, id="better"),
        pytest.param(Unresolved("a", 20), candidate(20), False, id="equal"),
        pytest.param(Unresolved("a", 30), candidate(20), False, id="worse"),
        pytest.param(Unresolved("a", 65535), candidate(0, 1), True, id="next_nexthop"),
        pytest.param(Unresolved("a", 0, 1), candidate(9), False, id="later_nexthop"),
        pytest.param(
            Unresolved("a", rdtype="MX"), candidate(0, 1), True, id="whole_nexthop"
        ),
        pytest.param(
            Unresolved("a", 10),
            candidate(5, egress_position=1),
            True,
            id="other_egress",
        ),
    ],
)
def test_better_one_overrules(
    unresolved: Unresolved, tried: Candidate, better: bool
) -> None:
    assert has_better([unresolved], tried) is better
    assert bool(that_matter([unresolved], [tried])) is better


def test_those_matter_that_are_better_than_another_unresolved_one() -> None:
    best, next_best, worst = (Unresolved(f"mx{n}", n) for n in (10, 20, 30))
    assert that_matter([best, next_best, worst], []) == (best, next_best)
    assert that_matter([best], []) == ()
    assert that_matter([], []) == ()


def test_first_failure_is_what_counts() -> None:
    since = after_failure(None, NOW)
    for minutes in range(10, 60, 10):
        since = after_failure(since, NOW + minutes * 60)
    assert since == FailedSince(NOW, NOW + 3000)
    assert is_soft(since, NOW + SOFT - 1)
    assert not is_soft(since, NOW + SOFT)


def test_clock_that_is_set_back_makes_nothing_softer_than_for_an_hour() -> None:
    since = after_failure(FailedSince(NOW, NOW), NOW - 86400)
    assert since.first == NOW - 86400
    assert not is_soft(since, NOW - 86400 + SOFT)


def test_failure_of_long_ago_is_another_story() -> None:
    since = FailedSince(NOW, NOW)
    assert after_failure(since, NOW + KEPT - 1).first == NOW
    assert after_failure(since, NOW + KEPT).first == NOW + KEPT


def test_only_news_is_written() -> None:
    since = FailedSince(NOW, NOW)
    assert is_news(None, since)
    assert not is_news(since, FailedSince(NOW, NOW + NEWS_EVERY - 1))
    assert is_news(since, FailedSince(NOW, NOW + NEWS_EVERY))
    assert is_news(since, FailedSince(NOW - 1, NOW))


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_what_is_kept_can_be_read_again(first: int, last: int) -> None:
    since = FailedSince(float(first), float(last))
    assert decode(encode(since)) == since


@pytest.mark.parametrize(
    "value",
    [None, b"", b"1", b"1 2", b"2 3 4", b"1 nan 4", b"1 -3 4", b"1 3 4 5", b"\xff 1 2"],
)
def test_what_cannot_be_understood_is_not_there(value: bytes | None) -> None:
    assert decode(value) is None
