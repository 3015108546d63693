"""`mxpolicy.routing.host_record`: what is written, and how it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.routing.candidate import Finding, Phase, Verdict
from mxpolicy.routing.host_record import NOTHING, HostRecord, decode, encode, is_news
from mxpolicy.routing.reachability import Standing, after_failure, after_ready, standing
from tests.routing.remembering import DEFAULTS, START

FILTERED = Finding(Verdict.FILTERED, Phase.CONNECT, 6.0, text="no answer")
DAY = 86400.0


def fail(record: HostRecord, finding: Finding, now: float) -> HostRecord:
    return after_failure(record, finding, now, DEFAULTS, 0.0, "m")


def test_healthy_host_is_written_down_now_and_then_only() -> None:
    first = after_ready(NOTHING, START, 0.03, 0.5)
    assert is_news(NOTHING, first)
    assert not is_news(first, after_ready(first, START + 29, 0.05, 0.55))
    assert is_news(first, after_ready(first, START + 29, 0.05, 6.0))
    assert is_news(first, after_ready(first, START + 31, 0.03, 0.5))
    assert is_news(first, fail(first, FILTERED, START + 1))
    failed = fail(first, FILTERED, START + 1)
    assert is_news(failed, after_ready(failed, START + 2, 0.03, 0.5))


def test_what_was_worked_around_is_not_tried_for_a_while() -> None:
    record = HostRecord(small_segments=START)
    assert record.needs_small_segments(START + 86399)
    assert not record.needs_small_segments(START + 86400)
    assert not NOTHING.needs_small_segments(START)


records = st.builds(
    HostRecord,
    verdict=st.none() | st.sampled_from(Verdict),
    phase=st.sampled_from(Phase),
    full=st.booleans(),
    since=st.integers(0, 2**33).map(float),
    pause=st.integers(0, 86400).map(float),
    waited=st.integers(0, 86400).map(float),
    connect_time=st.none() | st.integers(0, 30000).map(lambda ms: ms / 1000),
    greeting_latency=st.none() | st.integers(0, 300000).map(lambda ms: ms / 1000),
    last_ready=st.none() | st.integers(0, 2**33).map(float),
    small_segments=st.none() | st.integers(0, 2**33).map(float),
    name=st.sampled_from(["", "mx.example.com"]),
    message_id=st.text("0123456789abcdef", max_size=16),
    said=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
)


@given(records)
def test_record_is_read_as_it_was_written(record: HostRecord) -> None:
    assert decode(encode(record)) == record


@given(st.binary(max_size=200) | st.tuples(records.map(encode), st.integers(0, 200)))
def test_anything_can_be_read(value: bytes | tuple[bytes, int]) -> None:
    if isinstance(value, tuple):
        value = value[0][: value[1]]
    record = decode(value)
    assert standing(record, START, DEFAULTS) in Standing
    assert decode(encode(record)) == record


def test_record_of_another_version_is_nothing() -> None:
    value = encode(fail(NOTHING, FILTERED, START))
    assert decode(value) != NOTHING
    assert decode(b"1" + value[1:]) == NOTHING
    assert decode(None) == NOTHING
    assert decode(value.replace(b"filtered", b"cursed")) == NOTHING
    assert decode(value.replace(b" 60 ", b" nan ")) == NOTHING


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        pytest.param((0.01, 0.05), (0.12, 3.9), False, id="noise"),
        pytest.param((0.12, 3.9), (0.01, 0.05), False, id="noise_that_ends"),
        pytest.param((0.01, 0.05), (0.24, 0.05), True, id="slow_to_connect"),
        pytest.param((0.01, 0.05), (0.01, 5.0), True, id="slow_to_greet"),
        pytest.param((0.01, 6.0), (0.01, 6.5), False, id="slow_as_before"),
        pytest.param((0.01, 6.0), (0.01, 0.05), True, id="quick_again"),
        pytest.param((None, None), (0.01, 0.05), True, id="first_time"),
    ],
)
def test_latency_is_news_only_where_the_race_waits_for_it(
    before: tuple[float | None, float | None],
    after: tuple[float, float],
    news: bool,
) -> None:
    known = HostRecord(None, last_ready=START)
    known = known._replace(connect_time=before[0], greeting_latency=before[1])
    assert is_news(known, after_ready(known, START + 1, *after)) is news
