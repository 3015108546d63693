"""Requests of the access policy protocol, its actions, and answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.protocol.access_policy import (
    MAX_ACTION,
    VERBS,
    AccessRequest,
    Action,
    RequestError,
    answer,
    parse_action,
    parse_request,
)

# As Postfix 3.7.11 sends it, which knows many more.
RCPT = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "protocol_name": "ESMTP",
    "client_address": "2001:DB8::0:1",
    "sender": "a@example.com",
    "recipient": "b c@example.net",
    "recipient_count": "0",
    "queue_id": "",
    "sasl_username": "kim",
    "policy_context": "recipient",
    "an_attribute_of_2040": "x",
}


def test_request_has_what_is_judged() -> None:
    assert parse_request(RCPT) == AccessRequest(
        protocol_state="RCPT",
        sender="a@example.com",
        recipient="b c@example.net",
        client_address="2001:db8::1",
        sasl_username="kim",
        policy_context="recipient",
    )


def test_attributes_that_are_not_sent_are_empty() -> None:
    assert parse_request({"request": "smtpd_access_policy"}) == AccessRequest()


@pytest.mark.parametrize("client", ["unknown", "", "192.0.2.1 ", "fe80::1%eth0", "\n"])
def test_client_that_is_no_address_is_none(client: str) -> None:
    assert parse_request({**RCPT, "client_address": client}).client_address == ""


@pytest.mark.parametrize("kind", ["", "junk", "SMTPD_ACCESS_POLICY", "x" * 1000])
def test_other_requests_are_refused(kind: str) -> None:
    with pytest.raises(RequestError, match="expected request=smtpd_access_policy, not"):
        parse_request({**RCPT, "request": kind})
    with pytest.raises(RequestError):
        parse_request({})


@pytest.mark.parametrize(
    ("text", "action", "class_"),
    [
        ("DUNNO", Action("DUNNO"), 0),
        ("dunno ", Action("DUNNO"), 0),
        ("REJECT", Action("REJECT"), 5),
        ("Reject  5.1.1 no  such", Action("REJECT", "5.1.1 no  such"), 5),
        ("DEFER", Action("DEFER"), 4),
        ("DEFER_IF_PERMIT 4.4.1 later", Action("DEFER_IF_PERMIT", "4.4.1 later"), 4),
        ("WARN", Action("WARN"), 0),
        ("WARN 5.1.1 is only a text", Action("WARN", "5.1.1 is only a text"), 0),
        ("550", Action("550"), 5),
        ("450 4.1.1 x", Action("450", "4.1.1 x"), 4),
        ("599 x", Action("599", "x"), 5),
        ("PREPEND X-A: b", Action("PREPEND", "X-A: b"), 0),
        ("FILTER mxpolicy:", Action("FILTER", "mxpolicy:"), 0),
        ("FILTER smtp:[192.0.2.1]:26", Action("FILTER", "smtp:[192.0.2.1]:26"), 0),
    ],
)
def test_action_is_understood_as_postfix_does(
    text: str, action: Action, class_: int
) -> None:
    assert parse_action(text) == action
    assert parse_action(text).class_ == class_
    assert parse_action(str(action)) == action


# OK, and all digits, are "permit" to access(5).
@pytest.mark.parametrize("text", ["OK", "ok yes", "RELAY", "permit", "200", "0", "7"])
def test_what_might_let_strangers_relay_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="might let strangers relay"):
        parse_action(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected DUNNO"),
        ("HOLD", "'HOLD' is not allowed here"),
        ("DISCARD", "not allowed"),
        ("BCC a@example.com", "not allowed"),
        ("REDIRECT a@example.com", "not allowed"),
        ("HANGUP", "not allowed"),
        ("reject_unauth_destination", "not allowed"),
        ("550: no", "not allowed"),
        ("421 x", "would hang up"),
        ("521", "would hang up"),
        ("550 4.1.1 x", "4.1.1 does not begin with 5"),
        ("DEFER_IF_PERMIT 5.1.1 x", "5.1.1 does not begin with 4"),
        ("DUNNO x", "has no text"),
        ("PREPEND", "needs a header"),
        ("PREPEND X-A b", "needs a header"),
        ("PREPEND X A: b", "needs a header"),
        ("PREPEND X-A:", "needs a header"),
        ("FILTER mxpolicy", "needs transport:nexthop"),
        ("FILTER :x", "needs transport:nexthop"),
        ("FILTER a:b c", "needs transport:nexthop"),
        ("550 a\nb", "one line"),
        ("550 \u00e4", "printable ASCII"),
        ("550 " + "x" * MAX_ACTION, "longer than 400"),
    ],
)
def test_other_actions_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_action(text)


@given(st.text(max_size=30) | st.sampled_from(VERBS).map(lambda verb: f"{verb} x: y"))
def test_action_that_is_taken_can_be_answered_as_it_is(text: str) -> None:
    try:
        action = parse_action(text)
    except ValueError:
        return
    assert answer(str(action)) == f"action={action}\n\n".encode()


def test_answer_is_one_line_and_an_empty_one() -> None:
    assert answer("DUNNO") == b"action=DUNNO\n\n"


@given(st.text(max_size=2000))
def test_answer_is_one_bounded_line_whatever_it_holds(text: str) -> None:
    wire = answer(text)
    assert wire.startswith(b"action=")
    assert wire.endswith(b"\n\n")
    assert wire.count(b"\n") == 2
    assert wire[:-2].decode("ascii").isprintable()
    assert len(wire) <= 2 * MAX_ACTION + 9


@pytest.mark.parametrize(
    ("text", "softer"),
    [
        ("REJECT", "DEFER"),
        ("REJECT 5.1.2 no", "DEFER 4.1.2 no"),
        ("550", "450"),
        ("554 5.7.1 5.7.1", "454 4.7.1 5.7.1"),
        ("550 no", "450 no"),
        ("451 4.4.1 x", "451 4.4.1 x"),
        ("DEFER", "DEFER"),
        ("DEFER_IF_PERMIT", "DEFER_IF_PERMIT"),
        ("WARN 5.1.2", "WARN 5.1.2"),
        ("DUNNO", "DUNNO"),
        ("FILTER mxpolicy:", "FILTER mxpolicy:"),
        ("PREPEND X-A: 5.1.2", "PREPEND X-A: 5.1.2"),
    ],
)
def test_action_for_now_refuses_nothing_for_good(text: str, softer: str) -> None:
    action = parse_action(text).for_now()
    assert str(action) == softer
    assert action.class_ != 5
