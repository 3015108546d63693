from __future__ import annotations

import itertools

from mxpolicy.protocol.lmtp_states import (
    READS_COMMANDS,
    TRANSITIONS,
    LmtpInput,
    LmtpState,
)

HAPPENS = {LmtpInput.ACCEPTED, LmtpInput.END, LmtpInput.ANSWERED}
COMMANDS = set(LmtpInput) - HAPPENS


def test_a_message_goes_its_way() -> None:
    state = LmtpState.LHLO
    way = [
        LmtpInput.LHLO,
        LmtpInput.MAIL,
        LmtpInput.RCPT,
        LmtpInput.ACCEPTED,
        LmtpInput.RCPT,
    ]
    way += [
        LmtpInput.ACCEPTED,
        LmtpInput.DATA,
        LmtpInput.END,
        LmtpInput.ANSWERED,
        LmtpInput.QUIT,
    ]
    states = []
    for step in way:
        state = TRANSITIONS[state, step]
        states.append(state.value)
    assert (
        " ".join(states) == "ready mail mail rcpt rcpt rcpt data answers ready closed"
    )


def test_commands_are_obeyed_only_where_they_are_read() -> None:
    for state, what in TRANSITIONS:
        assert (what in COMMANDS) == (
            state in READS_COMMANDS
        ) or what is LmtpInput.ACCEPTED


def test_data_needs_a_recipient_that_was_accepted() -> None:
    assert {state for state, what in TRANSITIONS if what is LmtpInput.DATA} == {
        LmtpState.RCPT
    }
    assert {
        state
        for (state, what), following in TRANSITIONS.items()
        if following is LmtpState.RCPT and state is not LmtpState.RCPT
    } == {LmtpState.MAIL}
    assert TRANSITIONS[LmtpState.MAIL, LmtpInput.ACCEPTED] is LmtpState.RCPT


def test_a_transaction_ends_by_its_last_reply_or_is_dropped() -> None:
    into_ready = {
        what
        for (state, what), following in TRANSITIONS.items()
        if following is LmtpState.READY and state is not LmtpState.READY
    }
    assert into_ready == {LmtpInput.LHLO, LmtpInput.RSET, LmtpInput.ANSWERED}


def test_only_mail_opens_a_transaction_and_only_one() -> None:
    assert [key for key in TRANSITIONS if key[1] is LmtpInput.MAIL] == [
        (LmtpState.READY, LmtpInput.MAIL)
    ]


def test_nothing_but_rset_noop_vrfy_and_quit_before_lhlo() -> None:
    before = {what for state, what in TRANSITIONS if state is LmtpState.LHLO}
    assert before == {
        LmtpInput.LHLO,
        LmtpInput.RSET,
        LmtpInput.NOOP,
        LmtpInput.VRFY,
        LmtpInput.QUIT,
    }


def test_nothing_follows_the_end() -> None:
    assert not [key for key in TRANSITIONS if key[0] is LmtpState.CLOSED]


def test_every_state_is_reached() -> None:
    reached = {LmtpState.LHLO}
    for _ in LmtpState:
        reached |= {
            TRANSITIONS[key]
            for key in itertools.product(reached, LmtpInput)
            if key in TRANSITIONS
        }
    assert reached == set(LmtpState)
