"""The daemon's side of the hand-over: its table, and what clients may send."""

from __future__ import annotations

import contextlib
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy import handover as client
from mxpolicy.errors import LocalProtocolError, RemoteProtocolError
from mxpolicy.protocol import handover_request, pipe_answer
from mxpolicy.protocol.handover_request import (
    MAX_REQUEST,
    TRANSITIONS,
    Handover,
    HandoverInput,
    HandoverRequest,
    HandoverState,
    parse_request,
)
from tests.protocol.feeding import same_every_way

BODY = b"A-f\0A\0A--\0Ab@b.example\0Rme@a.example\0MQID\0"
REQUEST = b"mxpolicy pipe 1 %d\n%b" % (len(BODY), BODY)
UNDERSTOOD = HandoverRequest(
    ("-f", "", "--", "b@b.example"),
    {"RETURN_PATH": "me@a.example", "MESSAGE_ID": "QID"},
)


def in_state(state: HandoverState) -> Handover:
    """Return one that has come to *state* as it should."""
    one = Handover()
    if state in (HandoverState.REQUEST, HandoverState.ENDED):
        if state is HandoverState.ENDED:
            one.receive_eof()
        return one
    one.receive_data(REQUEST)
    if state is HandoverState.JUDGE:
        return one
    one.accept(990)
    if state is HandoverState.COMMIT:
        return one
    one.receive_data(b"@", 1)
    if state is HandoverState.ASKED:
        one.ask()
    return one


def do(one: Handover, what: HandoverInput) -> None:
    match what:
        case HandoverInput.REQUEST:
            one.receive_data(REQUEST)
        case HandoverInput.COMMIT:
            one.receive_data(b"@", 1)
        case HandoverInput.LIVES:
            one.receive_data(b"!")
        case HandoverInput.ACCEPT:
            one.accept(990)
        case HandoverInput.REFUSE:
            one.refuse("full")
        case HandoverInput.ASK:
            one.ask()
        case HandoverInput.ANSWER:
            one.answer(0, b"2.0.0 delivered\n")


@pytest.mark.parametrize(
    ("state", "what"),
    list(product(HandoverState, HandoverInput)),
    ids=lambda one: one.value,
)
def test_what_is_not_in_the_table_is_an_error(
    state: HandoverState, what: HandoverInput
) -> None:
    one = in_state(state)
    assert one.state is state
    if (new := TRANSITIONS.get((state, what))) is not None:
        do(one, what)
        assert one.state is new
    elif what in (HandoverInput.REQUEST, HandoverInput.COMMIT, HandoverInput.LIVES):
        with pytest.raises(RemoteProtocolError):
            do(one, what)
        # A request that is not understood can be refused.
        can_be_refused = (state, what) == (HandoverState.REQUEST, HandoverInput.LIVES)
        assert one.state is (
            HandoverState.REQUEST if can_be_refused else HandoverState.ENDED
        )
    else:
        with pytest.raises(LocalProtocolError):
            do(one, what)
        assert one.state is state


def test_what_is_said_is_what_the_client_understands() -> None:
    one = in_state(HandoverState.JUDGE)
    assert one.accept(990.7) == b"+990\n"
    assert in_state(HandoverState.JUDGE).refuse("full\r\nof \xff") == b"-full??of ?\n"
    assert in_state(HandoverState.WORK).ask() == b"?\n"
    assert in_state(HandoverState.ASKED).answer(75, b"4.0.0 x") == b"=75 4.0.0 x\n"


def test_request_is_understood_however_it_is_cut() -> None:
    def understood(pieces: list[bytes]) -> HandoverRequest | None:
        one = Handover()
        for piece in pieces:
            assert one.request is None
            one.receive_data(piece)
        return one.request

    assert same_every_way(understood, REQUEST) == UNDERSTOOD


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n", "not a request", id="http"),
        pytest.param(b"EHLO x\r\n", "not a request", id="smtp"),
        pytest.param(b"mxpolicy pipe x 1\nA", "not a request", id="no_version"),
        pytest.param(b"mxpolicy pipe 1\n", "too long", id="no_length"),
        pytest.param(b"mxpolicy pipe 2 1\n", "version 2, not 1", id="version"),
        pytest.param(b"mxpolicy pipe 9 x\n", "not a request", id="version_and_more"),
        pytest.param(
            b"mxpolicy pipe 1 %d\n" % (MAX_REQUEST + 1), "too long", id="long"
        ),
        pytest.param(b"mxpolicy pipe 1 " + b"9" * 99, "not a request", id="endless"),
        pytest.param(b"mxpolicy pipe 1 1\nA\0x", "more than", id="more"),
        pytest.param(b"mxpolicy pipe 1 1\nA", "within a field", id="no_end"),
        pytest.param(b"mxpolicy pipe 1 2\nX\0", "a field 'X'", id="unknown"),
        pytest.param(b"mxpolicy pipe 1 1\n\0", "a field ''", id="empty"),
        pytest.param(b"mxpolicy pipe 1 4\nR\0R\0", "a field 'R'", id="twice"),
    ],
)
def test_request_that_is_none_is_refused_with_its_reason(said: bytes, why: str) -> None:
    one = Handover()
    with pytest.raises(RemoteProtocolError, match=why):
        one.receive_data(said)
    assert one.refuse(why).startswith(b"-")


@pytest.mark.parametrize(
    ("state", "data", "descriptors"),
    [
        (HandoverState.REQUEST, REQUEST, 1),
        (HandoverState.COMMIT, b"@", 0),
        (HandoverState.COMMIT, b"@", 2),
        (HandoverState.COMMIT, b"@!", 1),
        (HandoverState.COMMIT, b"!", 1),
        (HandoverState.ASKED, b"!", 1),
        (HandoverState.ASKED, b"!!", 0),
        (HandoverState.WORK, b"!", 0),
        (HandoverState.JUDGE, b"@", 1),
    ],
)
def test_descriptors_and_words_come_one_by_one_and_where_they_are_due(
    state: HandoverState, data: bytes, descriptors: int
) -> None:
    one = in_state(state)
    with pytest.raises(RemoteProtocolError):
        one.receive_data(data, descriptors)
    assert one.state is HandoverState.ENDED


@given(st.binary(max_size=200))
def test_any_body_is_understood_or_refused(body: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        parse_request(body)


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"))))
def test_what_the_client_makes_is_what_is_understood(argv: list[str]) -> None:
    one = Handover()
    one.receive_data(client.request(argv))
    assert one.request is not None
    assert list(one.request.argv) == argv


def test_client_and_daemon_know_the_same_numbers() -> None:
    assert client.VERSION == handover_request.VERSION
    assert client.MAX_REQUEST == handover_request.MAX_REQUEST
    assert client.MAX_ANSWER == pipe_answer.MAX_ANSWER
