"""`mxpolicy.routing.track_record`: domains that took mail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord
from mxpolicy.routing.track_record import (
    NO_TRACK,
    TrackRecord,
    after_delivery,
    after_missing,
    decode,
    encode,
    is_missing,
    is_news,
    is_reprieved,
    is_stand_in,
    stand_in,
)

START = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0

MX = (MxRecord(10, "mx1.example.com"), MxRecord(20, "mx2.example.com"))
FOUND = Lookup("example.com", "MX", LookupStatus.FOUND, MX)
TOOK = after_delivery(NO_TRACK, FOUND, START)


def test_domain_that_vanishes_is_doubted_for_a_day() -> None:
    assert not is_reprieved(NO_TRACK, START)
    gone = after_missing(TOOK, START + 5 * DAY)
    assert is_reprieved(gone, START + 5 * DAY)
    later = after_missing(gone, START + 5.9 * DAY)
    assert later.missing == START + 5 * DAY
    assert is_reprieved(later, START + 5.9 * DAY)
    assert not is_reprieved(later, START + 6 * DAY)


def test_domain_that_took_mail_long_ago_is_not_doubted() -> None:
    assert is_reprieved(after_missing(TOOK, START + 13.9 * DAY), START + 13.9 * DAY)
    assert not is_reprieved(after_missing(TOOK, START + 14 * DAY), START + 14 * DAY)


def test_domain_that_takes_mail_again_has_its_day_again() -> None:
    gone = after_missing(TOOK, START + DAY)
    back = after_delivery(gone, FOUND, START + 3 * DAY)
    assert is_reprieved(after_missing(back, START + 4 * DAY), START + 4.9 * DAY)


def test_clock_that_was_set_back_makes_no_reprieve_longer() -> None:
    gone = after_missing(TOOK, START + 10 * DAY)
    back = after_missing(gone, START + DAY)
    assert back.missing == START + DAY
    assert not is_reprieved(TOOK, START - 1)


def test_mx_records_stand_in_for_a_day() -> None:
    assert stand_in(TOOK, START + 0.9 * DAY) == MX
    assert stand_in(TOOK, START + DAY) == ()
    assert stand_in(NO_TRACK, START) == ()
    # What is taken by their help does not make them any younger.
    helped = FOUND._replace(reason="SERVFAIL")
    assert is_stand_in(helped)
    assert not is_stand_in(FOUND)
    again = after_delivery(TOOK, helped, START + 0.9 * DAY)
    assert stand_in(again, START + DAY) == ()
    assert again.taken == START + 0.9 * DAY


def test_implicit_mx_has_nothing_to_stand_in() -> None:
    implicit = Lookup("example.com", "MX", LookupStatus.NODATA)
    assert stand_in(after_delivery(TOOK, implicit, START + 1), START + 2) == ()


def test_busy_domain_is_written_down_now_and_then_only() -> None:
    assert is_news(NO_TRACK, TOOK)
    assert not is_news(TOOK, after_delivery(TOOK, FOUND, START + 60))
    assert is_news(TOOK, after_delivery(TOOK, FOUND, START + HOUR))
    assert is_news(TOOK, after_missing(TOOK, START + 60))
    other = FOUND._replace(records=MX[:1])
    assert is_news(TOOK, after_delivery(TOOK, other, START + 60))


@pytest.mark.parametrize(
    ("status", "expected"),
    [((5, 1, 2), True), ((5, 1, 10), True), ((5, 4, 4), True), ((5, 4, 6), False)],
)
def test_refusals_that_say_that_a_domain_takes_no_mail(
    status: tuple[int, int, int], expected: bool
) -> None:
    assert is_missing(Bounced(EnhancedStatus(*status), "")) is expected
    assert not is_missing(Deferred(EnhancedStatus(4, 4, 3), ""))
    assert not is_missing(None)


times = st.none() | st.integers(0, 2**33).map(float)
names = st.text("abcxyz0123456789-._", min_size=1, max_size=60)
records = st.builds(
    TrackRecord,
    times,
    times,
    times,
    st.lists(st.builds(MxRecord, st.integers(0, 65535), names), max_size=20).map(tuple),
)


@given(records)
def test_record_is_read_as_it_was_written(record: TrackRecord) -> None:
    assert decode(encode(record)) == record


@given(st.binary(max_size=100))
def test_anything_can_be_read(value: bytes) -> None:
    assert is_reprieved(decode(value), START) in (True, False)


def test_record_of_another_version_is_none() -> None:
    assert decode(b"2" + encode(TOOK)[1:]) == NO_TRACK
    assert decode(None) == NO_TRACK


def test_names_that_would_not_be_read_again_are_left_out() -> None:
    odd = FOUND._replace(records=(MxRecord(5, "a b"), MxRecord(6, "a,b"), *MX))
    assert after_delivery(NO_TRACK, odd, START).exchanges == MX
