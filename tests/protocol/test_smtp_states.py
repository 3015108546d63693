from __future__ import annotations

from mxpolicy.protocol.smtp_states import (
    COMMANDS,
    MAY_QUEUE,
    TRANSITIONS,
    State,
    Verb,
    facts,
)


def test_every_state_has_a_timeout_and_words_of_its_own() -> None:
    assert all(facts(state).timeout > 0 for state in State if state is not State.CLOSED)
    assert len({facts(state).log_words for state in State}) == len(State)


def test_timeouts_are_those_of_rfc_5321_4_5_3_2() -> None:
    expected = {
        State.GREETING: 300,
        State.MAIL: 300,
        State.RCPT: 300,
        State.DATA: 120,
        State.BODY: 180,
        State.DOT: 600,
    }
    assert {state: facts(state).timeout for state in expected} == expected
    assert "more than once" in facts(State.DOT).log_words


def test_only_the_answer_to_the_dot_leaves_doubt() -> None:
    doubtful = [state for state in State if "more than once" in facts(state).log_words]
    assert doubtful == [State.DOT]


def test_a_command_can_be_answered_where_it_puts_us() -> None:
    answered = {(state, verb) for state, verb, _ in TRANSITIONS}
    waits_in_line = {(State.MAIL, Verb.RCPT), (State.MAIL, Verb.DATA)}
    for (state, verb), following in COMMANDS.items():
        if (state, verb) not in waits_in_line:
            assert (following, verb) in answered


def test_whatever_a_command_is_answered_may_be_a_refusal() -> None:
    rows = {(state, verb) for state, verb, _ in TRANSITIONS}
    assert all({(*row, 4), (*row, 5)} <= set(TRANSITIONS) for row in rows)


def test_nothing_positive_comes_of_mail_data_but_by_the_dot() -> None:
    positive = {
        state
        for state, verb, digit in TRANSITIONS
        if verb is Verb.DOT and digit in (2, 3)
    }
    assert positive == {State.DOT}
    assert {key for key in TRANSITIONS if key[1] is Verb.DATA and key[2] == 2} == set()


def test_what_may_queue_is_a_command_there() -> None:
    assert set(COMMANDS) >= MAY_QUEUE


def test_nothing_follows_the_end() -> None:
    assert not [key for key in COMMANDS if key[0] is State.CLOSED]
    assert not [key for key in TRANSITIONS if key[0] is State.CLOSED]
