"""`mxpolicy.routing.domain_record`: domains that took mail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.domain_record import (
    UNKNOWN_DOMAIN,
    DomainRecord,
    after_delivery,
    after_missing,
    decode,
    encode,
    is_missing,
    is_news,
    is_stale,
    is_stale_usable,
    stale_mx,
)
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord

START = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0

MX = (MxRecord(10, "mx1.example.com"), MxRecord(20, "mx2.example.com"))
FOUND = Lookup("example.com", "MX", LookupStatus.FOUND, MX)
TOOK = after_delivery(UNKNOWN_DOMAIN, FOUND, START)


def test_domain_that_vanishes_is_doubted_for_a_day() -> None:
    assert not is_stale_usable(UNKNOWN_DOMAIN, START)
    gone = after_missing(TOOK, START + 5 * DAY)
    assert is_stale_usable(gone, START + 5 * DAY)
    later = after_missing(gone, START + 5.9 * DAY)
    assert later.missing == START + 5 * DAY
    assert is_stale_usable(later, START + 5.9 * DAY)
    assert not is_stale_usable(later, START + 6 * DAY)


def test_domain_that_took_mail_long_ago_is_not_doubted() -> None:
    assert is_stale_usable(after_missing(TOOK, START + 13.9 * DAY), START + 13.9 * DAY)
    assert not is_stale_usable(after_missing(TOOK, START + 14 * DAY), START + 14 * DAY)


def test_domain_that_takes_mail_again_has_its_day_again() -> None:
    gone = after_missing(TOOK, START + DAY)
    back = after_delivery(gone, FOUND, START + 3 * DAY)
    assert is_stale_usable(after_missing(back, START + 4 * DAY), START + 4.9 * DAY)


def test_domain_that_vanishes_right_after_a_delivery_is_still_doubted() -> None:
    # A row has whole seconds: this one is of half a second later.
    taken = decode(encode(after_delivery(UNKNOWN_DOMAIN, FOUND, START + 0.6)))
    assert is_stale_usable(after_missing(taken, START + 0.7), START + 0.7)
    assert stale_mx(taken, START + 0.7)


def test_clock_that_was_set_back_makes_no_reprieve_longer() -> None:
    gone = after_missing(TOOK, START + 10 * DAY)
    back = after_missing(gone, START + DAY)
    assert back.missing == START + DAY
    assert not is_stale_usable(TOOK, START - 1)


def test_mx_records_stand_in_for_a_day() -> None:
    assert stale_mx(TOOK, START + 0.9 * DAY) == MX
    assert stale_mx(TOOK, START + DAY) == ()
    assert stale_mx(UNKNOWN_DOMAIN, START) == ()
    # What is taken by their help does not make them any younger.
    helped = FOUND._replace(reason="SERVFAIL")
    assert is_stale(helped)
    assert not is_stale(FOUND)
    again = after_delivery(TOOK, helped, START + 0.9 * DAY)
    assert stale_mx(again, START + DAY) == ()
    assert again.taken == START + 0.9 * DAY


def test_implicit_mx_has_nothing_to_stale_mx() -> None:
    implicit = Lookup("example.com", "MX", LookupStatus.NODATA)
    assert stale_mx(after_delivery(TOOK, implicit, START + 1), START + 2) == ()


def test_busy_domain_is_written_down_now_and_then_only() -> None:
    assert is_news(UNKNOWN_DOMAIN, TOOK)
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
    DomainRecord,
    times,
    times,
    times,
    st.lists(st.builds(MxRecord, st.integers(0, 65535), names), max_size=20).map(tuple),
)


@given(records)
def test_record_is_read_as_it_was_written(record: DomainRecord) -> None:
    assert decode(encode(record)) == record


@given(st.binary(max_size=100))
def test_anything_can_be_read(value: bytes) -> None:
    assert is_stale_usable(decode(value), START) in (True, False)


def test_record_of_another_version_is_none() -> None:
    assert decode(b"2" + encode(TOOK)[1:]) == UNKNOWN_DOMAIN
    assert decode(None) == UNKNOWN_DOMAIN


def test_names_that_would_not_be_read_again_are_left_out() -> None:
    odd = FOUND._replace(records=(MxRecord(5, "a b"), MxRecord(6, "a,b"), *MX))
    assert after_delivery(UNKNOWN_DOMAIN, odd, START).exchanges == MX
