"""The state of each recipient: the whole table, then the stories."""

from __future__ import annotations

import pytest

from mxpolicy.delivery.journal import NO_PAST, Past
from mxpolicy.delivery.settlement import (
    TRANSITIONS,
    Input,
    Recipient,
    RecipientState,
    Settlement,
)
from mxpolicy.delivery.trouble import delivered
from mxpolicy.errors import LocalProtocolError
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.routing.candidate import Awaited, Candidate, Rank
from mxpolicy.routing.race_timing import Entrant

OK = Delivered(
    EnhancedStatus(2, 0, 0), "250 ok", Reply(250, ("ok",)), "a[192.0.2.1]:25"
)
LATER = Deferred(EnhancedStatus(4, 4, 1), "not now")
NEVER = Bounced(EnhancedStatus(5, 1, 1), "unknown")
UNANSWERED = Deferred(
    EnhancedStatus(4, 4, 2), "sent, not answered", None, "a[192.0.2.1]:25", True
)
RELAY = "a[192.0.2.1]:25"
SAME_HOST = "a[192.0.2.2]:25"
CANDIDATE = Candidate("a", "192.0.2.1", 25, preference=10)
OTHER = "b[192.0.2.3]:25"
BEST, MIDDLE, WORST = (Rank(0, 10), Rank(0, 20), Rank(0, 30))
FINAL = {RecipientState.DELIVERED, RecipientState.DEFERRED, RecipientState.BOUNCED}
SETTLED = {*FINAL, RecipientState.WAITING, RecipientState.TAKEN_LATE}

# The table once more, as a picture: rows are states, columns are inputs.
#          claimed busy     accepted dot      released doubted  taken    put-off delivered deferred bounced
PICTURE = """
unclaimed  open   elsewhere .        .        .        .        .          .       delivered deferred bounced
elsewhere  open   elsewhere .        .        .        .        .          .       delivered deferred bounced
open       .      .         accepted .        open     .        .          waiting .         deferred bounced
accepted   .      .         .        dot-sent open     .        .          waiting .         deferred bounced
dot-sent   .      .         .        .        open     open     taken      waiting .         deferred bounced
taken      .      .         .        .        .        .        .          .       delivered .        .
waiting    .      .         .        .        deferred deferred taken-late .       .         .        .
taken-late .      .         .        .        .        .        .          .       .         .        .
delivered  .      .         .        .        .        .        .          .       .         .        .
deferred   .      .         .        .        .        .        .          .       .         .        .
bounced    .      .         .        .        .        .        .          .       .         .        .
"""
CELLS = [
    (RecipientState(row.split()[0]), what, after)
    for row in PICTURE.split("\n")[1:-1]
    for what, after in zip(Input, row.split()[1:], strict=True)
]


def settlement(*states: RecipientState) -> tuple[Settlement, list[Recipient]]:
    """Make one with a recipient in each of *states*; return who was reported, too."""
    reported: list[Recipient] = []
    made = Settlement(
        [f"r{n}@example.com" for n in range(len(states))], reported.append
    )
    for number, state in enumerate(states):
        made[number].state = state
        if state is RecipientState.TAKEN:
            made[number].taken = delivered(Reply(250, ("ok",)), RELAY)
    return made, reported


# --- the table


@pytest.mark.parametrize(
    ("state", "what", "after"),
    CELLS,
    ids=[f"{state.value}-{what.value}" for state, what, _ in CELLS],
)
def test_every_input_in_every_state(
    state: RecipientState, what: Input, after: str
) -> None:
    recipient = Recipient(0, "bob@example.com")
    recipient.state = state
    if after == ".":
        with pytest.raises(LocalProtocolError):
            recipient.take(what)
        assert recipient.state is state
    else:
        recipient.take(what)
        assert recipient.state is RecipientState(after)


def test_the_table_knows_every_state() -> None:
    assert set(TRANSITIONS) == set(RecipientState)
    assert {state for state, _, _ in CELLS} == set(RecipientState)


def test_a_host_delivers_only_what_it_has_seen_the_dot_of() -> None:
    from_ = {state for state in RecipientState if Input.DELIVERED in TRANSITIONS[state]}
    # The first two: another process has delivered it, says the journal.
    assert from_ == {
        RecipientState.UNCLAIMED,
        RecipientState.ELSEWHERE,
        RecipientState.TAKEN,
    }
    assert [state for state in RecipientState if Input.TAKEN in TRANSITIONS[state]] == [
        RecipientState.DOT_SENT,
        RecipientState.WAITING,  # for the next attempt
    ]
    assert set(TRANSITIONS[RecipientState.TAKEN]) == {Input.DELIVERED}


def test_no_way_leads_out_of_an_outcome() -> None:
    ends = {state for state in RecipientState if not TRANSITIONS[state]}
    assert ends == {*FINAL, RecipientState.TAKEN_LATE}


@pytest.mark.parametrize("outcome", [OK, LATER, NEVER], ids=["ok", "later", "never"])
@pytest.mark.parametrize("state", RecipientState, ids=lambda state: state.value)
def test_an_outcome_is_given_once_and_stays(
    state: RecipientState, outcome: Delivered | Deferred | Bounced
) -> None:
    made, reported = settlement(state)
    try:
        made.settle(0, outcome)
    except LocalProtocolError:
        assert made[0].state is state
        assert made[0].outcome is None
        assert not reported
        return
    if state is RecipientState.TAKEN:  # whatever was to be its outcome
        assert isinstance(made[0].outcome, Delivered)
    else:
        assert made[0].outcome == outcome
    assert made[0].state in FINAL
    assert reported == [made[0]]
    with pytest.raises(LocalProtocolError):
        made.settle(0, outcome)
    assert len(reported) == 1


# --- stories


def test_message_taken_for_one_and_refused_for_the_other() -> None:
    made, reported = settlement(RecipientState.OPEN, RecipientState.OPEN)
    made.accepted([0])
    made.settle(1, NEVER)
    made.dot_sent([0], RELAY)
    assert made.outcomes() is None
    made.taken([0], Reply(250, ("ok",)))
    made.settle(0, OK)
    assert made.outcomes() == [OK, NEVER]
    assert [one.number for one in reported] == [1, 0]


def test_broken_session_leaves_everybody_to_the_next_host() -> None:
    states = (
        RecipientState.OPEN,
        RecipientState.ACCEPTED,
        RecipientState.DOT_SENT,
        RecipientState.DELIVERED,
    )
    made, _ = settlement(*states)
    assert made.those(RecipientState.ACCEPTED, range(2)) != [0, 1]
    assert made.those(RecipientState.ACCEPTED, [1]) == [1]
    made.withdrawn(range(4))
    assert made.those(RecipientState.OPEN, range(4)) == [0, 1]
    assert made.those(RecipientState.DOT_SENT, range(4)) == [2]
    made.released([2])  # it never left
    assert made.those(RecipientState.OPEN, range(4)) == [0, 1, 2]
    assert made[3].state is RecipientState.DELIVERED


def test_refusal_out_of_turn_is_asked_of_better_hosts_only() -> None:
    made, _ = settlement(RecipientState.OPEN, RecipientState.OPEN)
    made.refused(0, MIDDLE)
    assert made.open_to(BEST, [0, 1]) == [0, 1]
    assert made.open_to(MIDDLE, [0, 1]) == [1]
    assert made.open_to(WORST, [0, 1]) == [1]
    made.refused(0, WORST)  # the best refusal counts
    assert made.open_to(MIDDLE, [0]) == []
    made.refused(0, BEST)
    assert made.open_to(BEST, [0]) == []


def test_settled_recipient_is_offered_to_no_host() -> None:
    made, _ = settlement(RecipientState.OPEN, RecipientState.OPEN)
    made.settle(0, LATER)
    assert made.open_to(BEST, [0, 1]) == [1]
    assert made.unsettled() == [1]


@pytest.mark.parametrize(
    ("doubts", "is_first"),
    [
        pytest.param({}, True, id="none"),
        pytest.param({RELAY: 1}, False, id="same_address"),
        pytest.param({SAME_HOST: 1}, False, id="same_host"),
        pytest.param({OTHER: 3}, True, id="other_host"),
    ],
)
def test_second_doubt_at_one_host_goes_on(
    doubts: dict[str, int], is_first: bool
) -> None:
    made, _ = settlement(RecipientState.UNCLAIMED)
    made.claimed(0, Past(doubts))
    made.accepted([0])
    made.dot_sent([0], RELAY)
    assert made.doubted(0, UNANSWERED, True) is is_first
    assert made[0].past.doubts[RELAY] == doubts.get(RELAY, 0) + 1
    if is_first:
        made.settle(0, UNANSWERED)
        assert made[0].outcome == UNANSWERED
    else:
        assert made[0].state is RecipientState.OPEN


def test_each_doubt_goes_on_where_none_would_be_remembered() -> None:
    made, _ = settlement(RecipientState.DOT_SENT)
    made[0].relay = RELAY
    assert not made.doubted(0, UNANSWERED, False)
    assert made[0].state is RecipientState.OPEN
    made.settle(0, LATER)
    assert made[0].outcome == UNANSWERED._replace(text="sent, not answered; not now")


def test_deferral_begins_with_the_host_that_may_have_the_message() -> None:
    made, _ = settlement(RecipientState.UNCLAIMED)
    made.claimed(0, Past({RELAY: 1}))
    made.accepted([0])
    made.dot_sent([0], RELAY)
    assert not made.doubted(0, UNANSWERED, True)
    made.settle(0, LATER)
    assert made[0].outcome == UNANSWERED._replace(text="sent, not answered; not now")


# --- a reply that comes late


def put_off(past: Past = NO_PAST, *relays: str) -> tuple[Settlement, list[Recipient]]:
    """Return one recipient that waits for the late reply of each of *relays*."""
    made, reported = settlement(RecipientState.UNCLAIMED)
    made.claimed(0, past)
    for relay in relays or (RELAY,):
        made.accepted([0])
        made.dot_sent([0], relay)
        made.may_answer([0], relay)
        if made.doubted(0, UNANSWERED, True):
            made.settle(0, UNANSWERED)
    if not reported:
        made.settle(0, LATER)
    assert made[0].state is RecipientState.WAITING
    return made, reported


def test_late_250_leaves_the_outcome_and_is_for_the_next_attempt() -> None:
    made, reported = put_off()
    assert made.answered_late(RELAY, Reply(250, ("2.0.0 ok",))) == [0]
    assert made[0].state is RecipientState.TAKEN_LATE
    assert made.outcomes() == [UNANSWERED]
    assert len(reported) == 1
    assert made.delivered(0).relay == RELAY
    assert made.answered_late(RELAY, Reply(250, ("2.0.0 ok",))) == []


@pytest.mark.parametrize("code", [421, 451, 554])
def test_late_refusal_takes_the_doubt_back_but_not_the_place_in_the_order(
    code: int,
) -> None:
    made, _ = put_off(Past({SAME_HOST: 1}))
    assert made[0].past.doubts == {SAME_HOST: 1, RELAY: 1}
    assert made.answered_late(RELAY, Reply(code, ("no",))) == [0]
    assert made[0].state is RecipientState.DEFERRED
    assert made[0].past.doubts == {SAME_HOST: 1}
    assert made[0].past.doubts_at(CANDIDATE) == (2, 1)


def test_wait_in_vain_leaves_the_doubt() -> None:
    made, _ = put_off()
    assert made.answered_late(RELAY, None) == [0]
    assert made[0].state is RecipientState.DEFERRED
    assert made[0].past.doubts == {RELAY: 1}


@pytest.mark.parametrize("last", [OTHER, RELAY])
def test_of_two_hosts_that_may_still_answer_either_may_have_it(last: str) -> None:
    first = RELAY if last == OTHER else OTHER
    for reply in (None, Reply(554, ("spam",))):
        made, _ = put_off(Past({RELAY: 1}), RELAY, OTHER)
        assert made.answered_late(first, reply) == []
        assert made.those(RecipientState.WAITING, [0]) == [0]
        assert made.answered_late(last, Reply(250, ("ok",))) == [0]
        assert made.those(RecipientState.TAKEN_LATE, [0]) == [0]
        assert made.delivered(0).relay == last
    made, _ = put_off(Past({RELAY: 1}), RELAY, OTHER)
    assert made.answered_late(first, Reply(250, ("ok",))) == [0]
    assert made.answered_late(last, Reply(554, ("spam",))) == []
    assert made[0].state is RecipientState.TAKEN_LATE
    made, _ = put_off(Past({RELAY: 1}), RELAY, OTHER)
    assert made.answered_late(first, None) == []
    assert made.answered_late(last, Reply(554, ("spam",))) == [0]
    assert made[0].state is RecipientState.DEFERRED


@pytest.mark.parametrize("outcome", [OK, NEVER], ids=["delivered", "bounced"])
def test_late_reply_changes_nothing_where_another_host_has_decided(
    outcome: Delivered | Bounced,
) -> None:
    made, _ = settlement(RecipientState.UNCLAIMED)
    made.claimed(0, Past({RELAY: 1}))
    made.accepted([0])
    made.dot_sent([0], RELAY)
    made.may_answer([0], RELAY)
    assert not made.doubted(0, UNANSWERED, True)
    if outcome is OK:
        made.accepted([0])
        made.dot_sent([0], OTHER)
        made.taken([0], Reply(250, ("ok",)))
    made.settle(0, outcome)
    state, past = made[0].state, made[0].past
    assert state in FINAL
    assert made.answered_late(RELAY, Reply(451, ("no",))) == []
    assert (made[0].state, made[0].past) == (state, past)


def test_host_that_refused_late_is_not_named_as_one_that_may_have_it() -> None:
    made, _ = settlement(RecipientState.UNCLAIMED)
    made.claimed(0, Past({RELAY: 1, OTHER: 1}).refused_late(RELAY, "554 Spam"))
    made.settle(0, NEVER)
    outcome = made[0].outcome
    assert outcome is not None
    assert outcome.text == "unknown; but may have been delivered by b"


def test_bounce_names_the_hosts_that_may_have_the_message() -> None:
    made, _ = settlement(RecipientState.UNCLAIMED)
    made.claimed(0, Past({RELAY: 1, SAME_HOST: 1}))
    made.settle(0, NEVER)
    outcome = made[0].outcome
    assert outcome is not None
    assert outcome.text == "unknown; but may have been delivered by a"


def test_wait_is_noted_for_the_unsettled_only() -> None:
    made, _ = settlement(RecipientState.OPEN, RecipientState.OPEN)
    made.settle(0, LATER)
    made.waited([0, 1], {CANDIDATE: {Awaited.GREETING: 8.0}})
    made.waited([0, 1], {CANDIDATE: {Awaited.GREETING: 2.0}})
    assert made[0].past.waits == {}
    assert made[1].past.waits == {(RELAY, "greeting"): 10.0}


def test_what_a_candidate_left_behind_with_several_recipients() -> None:
    made, _ = settlement(RecipientState.UNCLAIMED, RecipientState.UNCLAIMED)
    waits = {(RELAY, "greeting"): 8.0, (RELAY, "ehlo"): 1.0, (OTHER, "ehlo"): 9.0}
    made.claimed(0, Past({RELAY: 1, SAME_HOST: 2, OTHER: 5}, waits))
    made.claimed(1, Past({SAME_HOST: 1}, {(RELAY, "greeting"): 3.0}))
    before = made.met_before(Entrant(CANDIDATE), [0, 1])
    assert (before.doubts, before.doubts_here, before.silences_of_all) == (3, 1, 1)
    assert before.waits[Awaited.GREETING] == 3.0
    assert not any(before.waits[one] for one in Awaited if one is not Awaited.GREETING)


def test_host_that_could_not_answer_keeps_its_chances() -> None:
    made, _ = settlement(RecipientState.UNCLAIMED)
    made.claimed(0, NO_PAST.cut_off(RELAY).cut_off(RELAY).doubted(SAME_HOST))
    before = made.met_before(Entrant(CANDIDATE), [0])
    assert (before.doubts, before.doubts_here, before.silences_of_all) == (3, 2, 1)


@pytest.mark.parametrize("state", RecipientState, ids=lambda state: state.value)
def test_stop_settles_each_by_what_a_host_may_have(state: RecipientState) -> None:
    made, reported = settlement(state)
    recipient = made[0]
    recipient.relay = RELAY
    if state in SETTLED:
        recipient.outcome = OK
    made.stop(LATER)
    outcome = recipient.outcome
    if state in SETTLED:
        assert outcome == OK
        assert not reported
    elif state is RecipientState.TAKEN:
        assert isinstance(outcome, Delivered)
        assert recipient.past.doubts == {}
    elif state is RecipientState.DOT_SENT:
        assert isinstance(outcome, Deferred)
        assert outcome.may_have_arrived
        assert recipient.past == NO_PAST.cut_off(RELAY)
    else:
        assert outcome == LATER
        assert recipient.past.doubts == {}


def test_stop_after_a_doubt_says_that_it_may_have_arrived() -> None:
    made, _ = settlement(RecipientState.UNCLAIMED)
    made.claimed(0, Past({RELAY: 1}))
    made.accepted([0])
    made.dot_sent([0], RELAY)
    made.doubted(0, UNANSWERED, True)
    made.stop(LATER)
    assert made[0].outcome == UNANSWERED


@pytest.mark.parametrize("outcome", [OK, LATER, NEVER], ids=["ok", "later", "never"])
def test_what_a_host_has_taken_is_delivered_whatever_goes_wrong_after_it(
    outcome: Delivered | Deferred | Bounced,
) -> None:
    made, reported = settlement(*[RecipientState.DOT_SENT] * 3)
    for number in range(3):
        made[number].relay = RELAY
    made.taken([0, 1], Reply(250, ("2.0.0 ok",)))
    made.settle(0, outcome)
    assert made.those(RecipientState.DOT_SENT, range(3)) == [2], "nor in doubt"
    made.stop(LATER)
    assert [isinstance(one.outcome, Delivered) for one in made] == [True, True, False]
    assert made[1].past.doubts == {}
    assert reported == list(made)


def test_forward_path_is_printable_in_what_is_shown() -> None:
    made = Settlement(["b\nob@example.com"], lambda recipient: None)
    assert made[0].text.isprintable()
