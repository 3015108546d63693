"""What is written into a store that is back, by what is there."""

from __future__ import annotations

import pytest

from mxpolicy.delivery.journal import (
    Entry,
    EntryState,
    Past,
    left_by,
    waiting_entry,
)
from mxpolicy.delivery.owner import Owner, myself
from mxpolicy.delivery.replay import prevails
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.state.store import Stored

HOST = "mx.example[192.0.2.1]:25"
ANOTHER = Owner("machine", "boot", "namespace", 1, 1, "call")


def left(outcome: Outcome) -> Entry:
    entry = left_by(outcome, Past({HOST: 1}))
    assert entry is not None
    return entry


DELIVERED = left(Delivered(EnhancedStatus(2, 0, 0), "ok", Reply(250, ("ok",)), HOST))
REFUSED = left(Bounced(EnhancedStatus(5, 1, 1), "550 Who?", None, HOST))
DEFERRED = left(Deferred(EnhancedStatus(4, 2, 2), "452 Full", None, HOST))
CLAIMED = Entry(EntryState.CLAIMED, myself(), 9e9)
DOT_SENT = Entry(EntryState.DOT_SENT, myself(), 9e9, HOST)
WAITING = waiting_entry(HOST, "2027-01-15T08:00:00Z", myself(), 9e9, Past({HOST: 1}))
CLAIMED_ELSEWHERE = Entry(EntryState.CLAIMED, ANOTHER, 9e9)
EARLIER_CALL = Entry(EntryState.CLAIMED, myself(), 9e9)


@pytest.mark.parametrize("there", [None, REFUSED, DEFERRED, CLAIMED_ELSEWHERE, CLAIMED])
def test_that_somebody_has_it_is_written_in_any_case(there: Entry | None) -> None:
    assert _prevails(DELIVERED, there)


@pytest.mark.parametrize("ours", [REFUSED, DEFERRED, WAITING])
@pytest.mark.parametrize(
    ("there", "written"),
    [
        (None, True),
        (EARLIER_CALL, True),
        (DOT_SENT, True),
        (CLAIMED_ELSEWHERE, False),
        (DELIVERED, False),
        (REFUSED, False),
        (DEFERRED, False),
    ],
)
def test_other_outcomes_take_the_place_of_our_own_claim_only(
    ours: Entry, there: Entry | None, written: bool
) -> None:
    assert _prevails(ours, there) is written


@pytest.mark.parametrize("ours", [CLAIMED, DOT_SENT])
@pytest.mark.parametrize("there", [None, DELIVERED, DEFERRED, CLAIMED_ELSEWHERE])
def test_claim_is_never_written_later(ours: Entry, there: Entry | None) -> None:
    assert not _prevails(ours, there)


def test_who_has_it_is_not_written_twice() -> None:
    assert not _prevails(DELIVERED, DELIVERED)


def test_of_two_that_have_it_the_one_that_is_kept_longer_counts() -> None:
    # Of a message that others shall still have, it is kept for days.
    ours = Stored("journal/a", DELIVERED.encode(), 100.0)
    assert prevails(ours, ours._replace(expires=99.0))
    assert not prevails(ours, ours._replace(expires=100.0))


def test_garbage_is_not_written_and_gives_way() -> None:
    assert not prevails(Stored("journal/a", b"garbage", 9e9), None)
    there = Stored("journal/a", b"garbage", 9e9)
    assert prevails(Stored("journal/a", DEFERRED.encode(), 1.0), there)


def _prevails(ours: Entry, there: Entry | None) -> bool:
    return prevails(
        Stored("journal/a", ours.encode(), 1.0),
        None if there is None else Stored("journal/a", there.encode(), 9e9),
    )


@pytest.mark.parametrize("kind", ["host ", "nexthop ", "tls ", "domain ", "lookup "])
def test_of_what_was_learned_the_newer_counts(kind: str) -> None:
    ours = Stored(f"{kind}a", b"ours", 100.0)
    assert prevails(ours, None)
    assert prevails(ours, Stored(ours.key, b"theirs", 99.0))
    assert not prevails(ours, Stored(ours.key, b"theirs", 100.0))
    assert not prevails(ours, Stored(ours.key, b"theirs", 101.0))


@pytest.mark.parametrize("key", ["lease host a", "place 1", "lately a", "probe"])
def test_what_was_about_that_time_is_not_written(key: str) -> None:
    assert not prevails(Stored(key, b"", 9e9), None)
