"""`mxpolicy.delivery.known_entry`: its table, whole; and what each entry means."""

from __future__ import annotations

from typing import get_args

import pytest

from mxpolicy.delivery.journal import NO_PAST, Entry, EntryState, Past, outcome_entry
from mxpolicy.delivery.known_entry import TRANSITIONS, Input, Known, KnownEntry
from mxpolicy.delivery.owner import Owner
from mxpolicy.outcome import Delivered
from mxpolicy.reply import EnhancedStatus, Reply

NOW = 1_000_000.0
ME = Owner("machine", "boot", "namespace", 1, 1, "me")
OTHER = ME._replace(pid=2, call="other")
HOST = "mx1.example[192.0.2.1]:25"
TAKEN = Delivered(EnhancedStatus(2, 0, 0), "250 2.0.0 Ok", Reply(250, ("Ok",)), HOST)
CUT_OFF = NO_PAST.cut_off(HOST)
KNOWN, INPUTS = get_args(Known), get_args(Input)

TABLE = """
            left     outcome  write    record   recorded dropped
nothing     left     settled  ours     unsent   -        -
left        left     settled  ours     -        -        nothing
ours        ours     settled  ours     -        ours     ours
unsent      unsent   settled  ours     -        ours     unsent
settled     settled  settled  settled  settled  settled  settled
"""


def rows() -> list[tuple[str, str, str | None]]:
    head, *lines = [line.split() for line in TABLE.strip().splitlines()]
    return [
        (name, what, None if after == "-" else after)
        for name, *cells in lines
        for what, after in zip(head, cells, strict=True)
    ]


def test_the_table_here_is_whole() -> None:
    assert len(rows()) == len(KNOWN) * len(INPUTS)


@pytest.mark.parametrize(("known", "what", "after"), rows())
def test_what_is_known_after_each_input(
    known: Known, what: Input, after: Known | None
) -> None:
    entry = KnownEntry(ME)
    entry.known, entry.value = known, b"as it was"
    if after is None:
        with pytest.raises(KeyError):
            entry.take(what)
        assert entry.known == known
    else:
        entry.take(what)
        assert entry.known == after
    assert entry.value == b"as it was"


@pytest.mark.parametrize("known", ["ours", "unsent"])
def test_what_we_may_have_written_is_never_forgotten(known: Known) -> None:
    """Else it would stay in the store, and count against the next attempt."""
    after = set(TRANSITIONS[known].values())
    assert after <= {"ours", "unsent", "settled"}


def entry_of(state: EntryState, owner: Owner, past: Past = NO_PAST) -> bytes:
    relay = HOST if state is EntryState.DOT_SENT else ""
    return Entry(state, owner, NOW + 900, relay, past=past).encode()


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize(
    ("value", "alive", "means"),
    [
        pytest.param(None, True, NO_PAST, id="none"),
        pytest.param(b"what is this", True, NO_PAST, id="garbage"),
        pytest.param(
            entry_of(EntryState.CLAIMED, OTHER), True, None, id="another's claim"
        ),
        pytest.param(
            entry_of(EntryState.DOT_SENT, OTHER), True, None, id="another's dot"
        ),
        pytest.param(
            entry_of(EntryState.CLAIMED, OTHER, CUT_OFF),
            False,
            CUT_OFF,
            id="dead claim",
        ),
        pytest.param(
            entry_of(EntryState.DOT_SENT, OTHER), False, CUT_OFF, id="dead dot"
        ),
    ],
)
def test_reading_what_settles_nothing_changes_nothing(
    known: Known, value: bytes | None, alive: bool, means: Past | None
) -> None:
    entry = KnownEntry(ME)
    entry.known = known
    assert entry.read(value, NOW, lambda owner: alive) == means
    assert (entry.known, entry.value) == (known, None)


@pytest.mark.parametrize("known", KNOWN)
def test_our_dot_is_a_doubt_unless_it_was_not_sent(known: Known) -> None:
    entry = KnownEntry(ME)
    entry.known = known
    means = entry.read(entry_of(EntryState.DOT_SENT, ME), NOW, lambda owner: True)
    assert means == (NO_PAST if known == "unsent" else CUT_OFF)


@pytest.mark.parametrize("known", KNOWN)
def test_outcome_of_another_delivery_is_kept_as_it_is(known: Known) -> None:
    entry = KnownEntry(ME)
    entry.known = known
    value = outcome_entry(TAKEN).encode()
    assert isinstance(entry.read(value, NOW, lambda owner: True), Delivered)
    assert (entry.known, entry.value) == ("settled", value)


@pytest.mark.parametrize(
    ("value", "is_ours"),
    [
        pytest.param(None, True, id="none"),
        pytest.param(b"known", True, id="the one that we know"),
        pytest.param(b"what is this", True, id="garbage"),
        pytest.param(entry_of(EntryState.CLAIMED, ME), True, id="one that came late"),
        pytest.param(entry_of(EntryState.CLAIMED, OTHER), False, id="another's"),
        pytest.param(outcome_entry(TAKEN).encode(), False, id="an outcome"),
    ],
)
def test_only_what_is_not_anothers_is_replaced(
    value: bytes | None, is_ours: bool
) -> None:
    entry = KnownEntry(ME)
    entry.left(b"known")
    assert entry.known == "left"
    assert entry.is_ours(value) is is_ours
