"""The machine of the fast path, whole: each state, each input, each way through it."""

from __future__ import annotations

import pytest

from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.fast_path import TABLE, Action, Input, State, usable_hosts
from mxpolicy.routing.host_record import HostRecord
from mxpolicy.routing.known_hosts import KnownHosts

Way = tuple[tuple[Input, Action], ...]


def ways(state: State = State.ASKING, way: Way = ()) -> list[Way]:
    """Return each way through the table that does not stay where it is."""
    found = []
    for what, step in TABLE[state].items():
        gone = (*way, (what, step.action))
        if step.state is State.OVER:
            found.append(gone)
        elif step.state is not state:
            found += ways(step.state, gone)
    return found


WAYS = ways()


def before(way: Way, action: Action) -> set[Input]:
    """Return what has happened by the time of *action*."""
    actions = [one for _, one in way]
    return {what for what, _ in way[: actions.index(action) + 1]}


def having(action: Action) -> list[Way]:
    return [way for way in WAYS if action in dict(way).values()]


def test_every_state_is_in_the_table_and_is_reached() -> None:
    reached = {step.state for row in TABLE.values() for step in row.values()}
    assert set(TABLE) == set(State)
    assert reached == {*State} - {State.ASKING} | {State.OVER}


@pytest.mark.parametrize("state", [one for one in State if one is not State.OVER])
def test_anything_may_happen_in_every_state(state: State) -> None:
    step = TABLE[state][Input.OTHER]
    assert step.action in (Action.HAND_OVER, Action.WAIT)
    assert step.state is (
        State.OVER if step.action is Action.HAND_OVER else State.LEAVING
    )


@pytest.mark.parametrize("state", State)
def test_the_answer_of_the_store_is_expected_until_it_is_there(state: State) -> None:
    is_awaited = state in {State.ASKING, State.DATA, State.HELD_UP, State.LEAVING}
    assert (Input.RECORDED in TABLE[state]) is is_awaited
    assert (Input.NOT_RECORDED in TABLE[state]) is is_awaited


def test_it_is_over_only_with_a_deed() -> None:
    for row in TABLE.values():
        for step in row.values():
            is_last = step.action in (
                Action.SETTLE,
                Action.HAND_OVER,
                Action.BEGIN_ANEW,
            )
            assert (step.state is State.OVER) is is_last


def test_mail_data_leaves_after_354_and_the_record() -> None:
    assert having(Action.SEND_BODY)
    for way in having(Action.SEND_BODY):
        needed = {Input.ACCEPTED, Input.GO_AHEAD, Input.RECORDED}
        assert before(way, Action.SEND_BODY) == needed


def test_dot_leaves_after_the_mail_data_has_arrived() -> None:
    for way in having(Action.SEND_DOT):
        assert Action.SEND_BODY in [one for _, one in way]
        assert Input.ACKNOWLEDGED in before(way, Action.SEND_DOT)


def test_recipients_are_settled_after_the_dot_only() -> None:
    (way, *_) = having(Action.SETTLE)
    assert [one for _, one in way if one is not Action.WAIT] == [
        Action.GIVE_DATA,
        Action.SEND_BODY,
        Action.SEND_DOT,
        Action.SETTLE,
    ]
    assert all(Action.SEND_DOT in dict(one).values() for one in having(Action.SETTLE))


def test_who_loses_the_record_sends_nothing_more_and_begins_anew() -> None:
    lost = [way for way in WAYS if Input.NOT_RECORDED in dict(way)]
    assert lost
    for way in lost:
        assert way[-1] == (Input.NOT_RECORDED, Action.BEGIN_ANEW)
        assert Action.SEND_BODY not in dict(way).values()


def test_nothing_is_handed_over_before_the_store_has_answered() -> None:
    for way in having(Action.HAND_OVER):
        assert Input.RECORDED in before(way, Action.HAND_OVER)


# Which hosts

HOSTS = [
    Candidate("mx1.example.com", "192.0.2.1", 25, 10),
    Candidate("mx2.example.com", "192.0.2.2", 25, 10),
    Candidate("mx3.example.com", "192.0.2.3", 25, 20),
]
BAD = HostRecord(verdict=Verdict.CLOSED, phase=Phase.GREETING, since=1.0, pause=60.0)


def test_the_best_hosts_are_usable() -> None:
    assert usable_hosts(HOSTS, KnownHosts()) == tuple(HOSTS[:2])


def test_worse_ones_are_usable_when_they_come_first() -> None:
    order = [HOSTS[2], HOSTS[0], HOSTS[1]]
    known = KnownHosts(of_host={HOSTS[0]: BAD, HOSTS[1]: BAD})
    assert usable_hosts(order, known) == (HOSTS[2],)


@pytest.mark.parametrize("of", ["of_host", "of_nexthop"])
def test_hosts_with_a_failure_are_not_usable(of: str) -> None:
    known = KnownHosts(**{of: {HOSTS[0]: BAD}})  # type: ignore[arg-type]
    assert usable_hosts(HOSTS, known) == (HOSTS[1],)


def test_no_host_is_usable_while_a_probe_is_due() -> None:
    assert usable_hosts(HOSTS, KnownHosts(due=(HOSTS[2],))) == ()
