"""What a journal's entry means to whoever comes next."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.delivery.journal import (
    LONGEST_CLAIM,
    Busy,
    Claimed,
    Entry,
    Owner,
    Settled,
    State,
    digest_of,
    entry_key,
    is_alive,
    judge,
    myself,
)
from mxpolicy.outcome import Bounced, Delivered
from mxpolicy.reply import EnhancedStatus

HOST = "mx.example[192.0.2.1]:25"
ME = Owner("m", "b", "pid:[1]", 100, 5000, "aa")
OTHER = ME._replace(call="bb")
TAKEN = EnhancedStatus(2, 0, 0)
REFUSED = EnhancedStatus(5, 1, 1)


def entry(state: State, owner: Owner = OTHER, until: float = 1000.0) -> Entry:
    """Return an entry as the code makes it."""
    match state:
        case State.CLAIMED:
            return Entry(state, owner, until)
        case State.DOT_SENT:
            return Entry(state, owner, until, HOST)
        case State.DELIVERED:
            return Entry(state, owner, until, HOST, TAKEN, "250 2.0.0 Ok")
        case State.REFUSED:
            return Entry(state, owner, until, HOST, REFUSED, "550 5.1.1 Who?")


# Every state by whoever made it, alive and in his time or not.
TABLE = [
    (State.CLAIMED, OTHER, True, 999.0, Busy()),
    (State.CLAIMED, OTHER, True, 1000.0, Claimed()),
    (State.CLAIMED, OTHER, False, 999.0, Claimed()),
    (State.CLAIMED, ME, True, 999.0, Claimed()),
    (State.DOT_SENT, OTHER, True, 999.0, Busy()),
    (State.DOT_SENT, OTHER, True, 1000.0, Claimed(HOST)),
    (State.DOT_SENT, OTHER, False, 999.0, Claimed(HOST)),
    (State.DOT_SENT, ME, True, 999.0, Claimed(HOST)),
]


@pytest.mark.parametrize(("state", "owner", "alive", "now", "expected"), TABLE)
def test_unsettled_entry_is_busy_while_its_owner_is_at_it(
    state: State, owner: Owner, alive: bool, now: float, expected: Claimed | Busy
) -> None:
    assert judge(entry(state, owner), ME, now, alive=alive) == expected


def test_claim_that_nobody_would_make_is_none() -> None:
    # Made by a clock that was a year ahead, or read by one that is a year behind.
    far = entry(State.CLAIMED, OTHER, until=LONGEST_CLAIM + 1)
    assert judge(far, ME, 0.0, alive=True) == Claimed()
    assert judge(far, ME, 2.0, alive=True) == Busy()


def test_no_entry_is_a_claim() -> None:
    assert judge(None, ME, 0.0, alive=False) == Claimed()


@pytest.mark.parametrize("owner", [ME, OTHER])
@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("now", [0.0, 1e12])
def test_settled_entry_stays_settled(owner: Owner, alive: bool, now: float) -> None:
    found = judge(entry(State.DELIVERED, owner), ME, now, alive=alive)
    assert isinstance(found, Settled)
    assert isinstance(found.outcome, Delivered)
    assert found.outcome.status == TAKEN
    assert found.outcome.text == "250 2.0.0 Ok (delivered earlier)"
    assert found.outcome.relay == HOST
    found = judge(entry(State.REFUSED, owner), ME, now, alive=alive)
    assert found == Settled(Bounced(REFUSED, "550 5.1.1 Who?", None, HOST))


@pytest.mark.parametrize(
    "made_wrong",
    [
        entry(State.DELIVERED)._replace(status=REFUSED),
        entry(State.REFUSED)._replace(status=TAKEN),
        entry(State.REFUSED)._replace(status=None),
    ],
)
def test_entry_that_contradicts_itself_is_not_there(made_wrong: Entry) -> None:
    assert judge(made_wrong, ME, 0.0, alive=True) == Claimed()


@pytest.mark.parametrize("state", State)
def test_entry_is_read_as_it_was_written(state: State) -> None:
    assert Entry.decode(entry(state).encode()) == entry(state)


@given(st.binary() | st.sampled_from(list(State)).map(lambda s: entry(s).encode()[:-9]))
def test_anything_else_is_no_entry(data: bytes) -> None:
    found = Entry.decode(data)
    assert found is None or isinstance(found, Entry)


@given(st.lists(st.text(max_size=3), min_size=3, max_size=3), st.data())
def test_keys_differ_where_anything_differs(
    words: list[str], data: st.DataObject
) -> None:
    other = data.draw(st.lists(st.text(max_size=3), min_size=3, max_size=3))
    digest = digest_of([b"one", b"two"])
    same = entry_key(words[0], digest, *words[1:]) == entry_key(
        other[0], digest, *other[1:]
    )
    assert same == (words == other)
    assert entry_key(words[0], digest_of([b"onetwo"]), *words[1:]) == entry_key(
        words[0], digest, *words[1:]
    )
    assert entry_key(words[0], digest_of([]), *words[1:]) != entry_key(
        words[0], digest, *words[1:]
    )


def test_this_process_is_alive() -> None:
    assert is_alive(myself())
    assert myself() != myself()  # each delivery is one of its own


def test_process_that_has_ended_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19])
        owner = myself()._replace(pid=process.pid, started=started)
        assert is_alive(owner)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(owner), "a zombie delivers nothing"
    assert not is_alive(owner)


def test_number_that_has_gone_to_another_process_is_not_alive() -> None:
    assert not is_alive(myself()._replace(started=1))


@pytest.mark.skipif(not myself().machine, reason="no /etc/machine-id here")
def test_after_a_reboot_nobody_is_alive() -> None:
    assert not is_alive(myself()._replace(boot="another"))


@pytest.mark.parametrize(
    "elsewhere",
    [
        myself()._replace(machine="x", boot="y", pid=1),
        myself()._replace(namespace="z", pid=1 << 22),
    ],
)
def test_whoever_cannot_be_looked_up_counts_as_alive(elsewhere: Owner) -> None:
    assert is_alive(elsewhere)
