"""What a journal's entry means to whoever comes next."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.delivery.journal import (
    LONGEST_CLAIM,
    MAX_ENTRY,
    NO_PAST,
    Entry,
    EntryState,
    Past,
    aim_of,
    awaited,
    entry_key,
    left_by,
    meaning,
    outcome_entry,
    waiting_entry,
)
from mxpolicy.delivery.owner import Owner
from mxpolicy.delivery.trouble import with_doubts
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.candidate import host_of

HOST = "mx.example[192.0.2.1]:25"
DOUBTED = Past({HOST: 1})
CUT_OFF = NO_PAST.cut_off(HOST)
SINCE = "2027-01-15T08:00:00Z"
ME = Owner("m", "b", "pid:[1]", 100, 5000, "aa")
OTHER = ME._replace(call="bb")
TAKEN = EnhancedStatus(2, 0, 0)
REFUSED = EnhancedStatus(5, 1, 1)
LATER = Deferred(EnhancedStatus(4, 2, 2), "452 4.2.2 Full", None, HOST)


def entry(state: EntryState, owner: Owner = OTHER, until: float = 1000.0) -> Entry:
    """Return an entry as the code makes it."""
    match state:
        case EntryState.CLAIMED | EntryState.DEFERRED:
            return Entry(state, owner, until)
        case EntryState.DOT_SENT:
            return Entry(state, owner, until, HOST)
        case EntryState.WAITING:
            return waiting_entry(HOST, SINCE, owner, until, DOUBTED)
        case EntryState.DELIVERED:
            return Entry(state, owner, until, HOST, TAKEN, "250 2.0.0 Ok")
        case EntryState.REFUSED:
            return Entry(state, owner, until, HOST, REFUSED, "550 5.1.1 Who?")


# Every state by whoever made it, alive and in his time or not.
TABLE = [
    (EntryState.CLAIMED, OTHER, True, 999.0, None),
    (EntryState.CLAIMED, OTHER, True, 1000.0, NO_PAST),
    (EntryState.CLAIMED, OTHER, False, 999.0, NO_PAST),
    (EntryState.CLAIMED, ME, True, 999.0, NO_PAST),
    (EntryState.DOT_SENT, OTHER, True, 999.0, None),
    (EntryState.DOT_SENT, OTHER, True, 1000.0, CUT_OFF),
    (EntryState.DOT_SENT, OTHER, False, 999.0, CUT_OFF),
    (EntryState.DOT_SENT, ME, True, 999.0, CUT_OFF),
    (EntryState.WAITING, OTHER, True, 999.0, awaited(HOST, SINCE)),
    (EntryState.WAITING, OTHER, True, 1000.0, DOUBTED),
    (EntryState.WAITING, OTHER, False, 999.0, DOUBTED),
    (EntryState.WAITING, ME, True, 999.0, DOUBTED),
    (EntryState.DEFERRED, OTHER, True, 999.0, NO_PAST),
]


@pytest.mark.parametrize(("state", "owner", "alive", "now", "expected"), TABLE)
def test_unsettled_entry_is_busy_while_its_owner_is_at_it(
    state: EntryState,
    owner: Owner,
    alive: bool,
    now: float,
    expected: Past | Deferred | None,
) -> None:
    assert meaning(entry(state, owner), ME, now, alive=alive) == expected


def test_claim_that_nobody_would_make_is_none() -> None:
    # Made by a clock that was a year ahead, or read by one that is a year behind.
    far = entry(EntryState.CLAIMED, OTHER, until=LONGEST_CLAIM + 1)
    assert meaning(far, ME, 0.0, alive=True) == NO_PAST
    assert meaning(far, ME, 2.0, alive=True) is None


def test_no_entry_is_a_claim() -> None:
    assert meaning(None, ME, 0.0, alive=False) == NO_PAST


@pytest.mark.parametrize("owner", [ME, OTHER])
@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("now", [0.0, 1e12])
def test_settled_entry_stays_settled(owner: Owner, alive: bool, now: float) -> None:
    found = meaning(entry(EntryState.DELIVERED, owner), ME, now, alive=alive)
    assert isinstance(found, Delivered)
    assert found.status == TAKEN
    assert found.text == "250 2.0.0 Ok (delivered earlier)"
    assert found.relay == HOST
    found = meaning(entry(EntryState.REFUSED, owner), ME, now, alive=alive)
    assert found == Bounced(REFUSED, "550 5.1.1 Who?", None, HOST)


@pytest.mark.parametrize(
    "made_wrong",
    [
        entry(EntryState.DELIVERED)._replace(status=REFUSED),
        entry(EntryState.REFUSED)._replace(status=TAKEN),
        entry(EntryState.REFUSED)._replace(status=None),
        entry(EntryState.WAITING)._replace(status=None, past=NO_PAST),
        entry(EntryState.WAITING)._replace(status=TAKEN, past=NO_PAST),
    ],
)
def test_entry_that_contradicts_itself_is_not_there(made_wrong: Entry) -> None:
    assert meaning(made_wrong, ME, 0.0, alive=True) == NO_PAST


def test_refusal_is_replayed_whole_who_may_have_the_message_included() -> None:
    hosts = [f"{'x' * 60}.host{number}.example" for number in range(9)]
    refusal = with_doubts(Bounced(REFUSED, "550 5.1.1 " + "x" * 900, None, HOST), hosts)
    there = outcome_entry(refusal)
    assert there is not None
    found = Entry.decode(there.encode())
    assert found is not None
    assert meaning(found, ME, 0.0, alive=False) == refusal


@pytest.mark.parametrize("state", EntryState)
def test_entry_is_read_as_it_was_written(state: EntryState) -> None:
    assert Entry.decode(entry(state).encode()) == entry(state)


@given(
    st.binary()
    | st.sampled_from(list(EntryState)).map(lambda s: entry(s).encode()[:-9])
)
def test_anything_else_is_no_entry(data: bytes) -> None:
    found = Entry.decode(data)
    assert found is None or isinstance(found, Entry)


PASTS = st.builds(
    Past,
    st.dictionaries(st.sampled_from(["mx1.example", "2001:db8::1"]), st.integers(1, 9)),
    st.dictionaries(
        st.tuples(
            st.sampled_from(["mx1.example", "mx2.example"]),
            st.sampled_from(["connect", "rcpt"]),
        ),
        st.integers(0, 9000).map(lambda tenths: tenths / 10),
    ),
    st.sampled_from(["", "mx1.example[192.0.2.1]:25 said too late: 451 4.3.0 No"]),
)


@given(PASTS)
def test_past_is_read_as_it_was_written(past: Past) -> None:
    there = entry(EntryState.CLAIMED)._replace(past=past)
    assert Entry.decode(there.encode()) == there


@given(
    st.dictionaries(st.text(max_size=300), st.integers(0, 10**12)),
    st.dictionaries(st.tuples(st.text(), st.text()), st.floats(0, 1e12)),
)
def test_past_of_any_size_leaves_a_bounded_entry_that_is_read(
    doubts: dict[str, int], waits: dict[tuple[str, str], float]
) -> None:
    data = entry(EntryState.DOT_SENT)._replace(past=Past(doubts, waits)).encode()
    assert len(data) <= MAX_ENTRY
    assert Entry.decode(data) is not None


def test_past_that_is_too_long_loses_the_shortest_waits_first() -> None:
    hosts = [f"{'x' * 60}.host{number}.example" for number in range(100)]
    waits = {(host, "rcpt"): float(number) for number, host in enumerate(hosts)}
    past = Past({hosts[0]: 2, hosts[1]: 1}, waits)
    kept = Entry.decode(entry(EntryState.CLAIMED)._replace(past=past).encode())
    assert kept is not None
    assert kept.past.doubts == past.doubts
    assert 30 < len(kept.past.waits) < 60
    assert min(kept.past.waits.values()) == 100 - len(kept.past.waits)


def test_doubts_and_waits_add_up() -> None:
    past = NO_PAST.doubted("a").doubted("b").doubted("a")
    assert past.doubts == {"a": 2, "b": 1}
    past = past.waited("a", "rcpt", 60.0).waited("a", "mail", 1.0)
    assert past.waited("a", "rcpt", 40.5).waits == {
        ("a", "rcpt"): 100.5,
        ("a", "mail"): 1.0,
    }
    assert Past({}, {}) == NO_PAST


def test_late_refusal_is_no_doubt_and_is_remembered() -> None:
    past = NO_PAST.doubted(HOST).doubted("b").refused_late(HOST, "554 Spam")
    assert past.doubts == {"b": 1}
    assert past.unanswered == {HOST: 1, "b": 1}
    past = past.doubted(HOST).refused_late(HOST, "554 Spam").doubted(HOST)
    assert past.doubts == {HOST: 1, "b": 1}
    assert past.unanswered == {HOST: 3, "b": 1}
    there = entry(EntryState.CLAIMED)._replace(past=past)
    kept = Entry.decode(there.encode())
    assert kept is not None
    assert kept.past == past
    assert kept.past.said == "mx.example[192.0.2.1]:25 said too late: 554 Spam"
    assert kept.text == ""
    # One that was not in doubt, which cannot be.
    assert NO_PAST.refused_late(HOST, "554 Spam").doubts == {}


def test_deferral_says_for_whose_reply_it_waits_and_since_when() -> None:
    outcome = awaited(HOST, SINCE)
    assert outcome.status == EnhancedStatus(4, 4, 2)
    assert outcome.text == (
        "waits for the reply of mx.example[192.0.2.1]:25 to the final dot"
        " since 2027-01-15T08:00:00Z"
    )
    assert outcome.may_have_arrived


def test_deferral_leaves_an_entry_only_if_it_has_a_past() -> None:
    assert left_by(LATER, NO_PAST) is None
    for past in (NO_PAST.doubted("a"), NO_PAST.waited("a", "rcpt", 1.0)):
        there = left_by(LATER, past)
        assert there is not None
        assert meaning(there, ME, 1e12, alive=False) == past


def test_dot_of_a_dead_process_adds_to_the_doubts_of_before() -> None:
    past = Past({HOST: 1, "mx2[192.0.2.2]:25": 3})
    there = entry(EntryState.DOT_SENT)._replace(past=past)
    found = meaning(there, ME, 0.0, alive=False)
    assert found == past.cut_off(HOST)
    assert found.doubts == {HOST: 2, "mx2[192.0.2.2]:25": 3}


def test_dot_that_a_host_could_not_answer_is_no_silence_of_it() -> None:
    other = "mx.example[192.0.2.9]:25"
    past = NO_PAST.cut_off(HOST).cut_off(other).doubted("b[192.0.2.2]:25")
    assert past.unanswered == {HOST: 1, other: 1, "b[192.0.2.2]:25": 1}
    assert (past.silences_at("mx.example"), past.silences_at("b")) == (0, 1)
    past = past.doubted(other).cut_off(HOST)
    assert past.silences_at("mx.example") == 1
    kept = Entry.decode(entry(EntryState.DEFERRED)._replace(past=past).encode())
    assert kept is not None
    assert kept.past.silences_at("mx.example") == 1
    # What it refused late was no silence that we have cut off.
    assert past.refused_late(other, "554 Spam").silences_at("mx.example") == 1


@pytest.mark.parametrize(
    ("relay", "host"),
    [
        (HOST, "mx.example"),
        ("mx.example[2001:db8::1]:2525", "mx.example"),
        ("2001:db8::1[2001:db8::1]:25", "2001:db8::1"),
    ],
)
def test_host_is_one_whatever_its_addresses(relay: str, host: str) -> None:
    assert host_of(relay) == host


WORDS = st.lists(st.text(max_size=3), min_size=4, max_size=4)


@given(WORDS, st.data())
def test_keys_differ_where_anything_differs(
    words: list[str], data: st.DataObject
) -> None:
    other = data.draw(WORDS)
    same = key(words) == key(other)
    assert same == (words == other)
    assert key(words) != key(words, sha256().digest())


def key(words: list[str], digest: bytes = sha256(b"one").digest()) -> str:
    identity, aim, reverse_path, forward_path = words
    return entry_key(identity, aim, digest, reverse_path, forward_path)


SAME_AIM = [
    ("example.net", "EXAMPLE.net.", "example.net:25", " example.net,example.net"),
    ("[h.example.net]", "[H.example.NET.]:25", "[h.example.net]:smtp"),
    ("192.0.2.1", "[192.0.2.1]", "[192.0.2.1]:25"),
    ("[2001:db8::1]", "[ipv6:2001:DB8:0::1]:25"),
    ("a.example, [b.example]", "a.example\t[b.example]:25,a.example"),
    ("[b.example], a.example",),
    ("[h.example.net]:587", "[h.example.net]:submission"),
    ("xn--bcher-kva.example", "b\u00fccher.example", "B\u00dcCHER.example."),
    ("what [is this",),
    ("",),
]


def test_aim_has_one_spelling_and_no_two_the_same() -> None:
    pytest.importorskip("idna")
    aims = [{aim_of(text, 25) for text in same} for same in SAME_AIM]
    assert [len(one) for one in aims] == [1] * len(SAME_AIM)
    assert len(set.union(*aims)) == len(SAME_AIM)
    # What is not written is the option's.
    assert aim_of("[h.example.net]", 2525) == aim_of("[h.example.net]:2525", 25)
    assert aim_of("[h.example.net]", 2525) != aim_of("[h.example.net]", 25)
