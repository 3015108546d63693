"""Where mxpolicy is asked in the postmaster's own lists."""

from __future__ import annotations

import pytest

from mxpolicy.setup.postfix_lines import (
    RELAY_CHECK,
    RELAY_LIST,
    SENDER_CHECK,
    SENDER_LIST,
    STRANGERS,
)
from mxpolicy.setup.restrictions import joined_relay, joined_sender

DEFAULT = "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination"


@pytest.mark.parametrize(
    ("written", "effective", "expected"),
    [
        (None, DEFAULT, RELAY_LIST),
        # compatibility_level 0: smtpd_recipient_restrictions says who may relay.
        (None, "", None),
        ("", "", None),
        (DEFAULT, DEFAULT, f"permit_auth_destination, {RELAY_CHECK}, {DEFAULT}"),
        ("$who", "permit_mynetworks reject_unauth_destination",
         f"permit_auth_destination, {RELAY_CHECK}, $who"),
        ("$who", "check_client_access cidr:/c, reject_unauth_destination", None),
        ("only_insiders, reject_unauth_destination",
         "only_insiders, reject_unauth_destination", None),
        ("permit_mynetworks, reject", "permit_mynetworks, reject", None),
        (RELAY_LIST, RELAY_LIST, RELAY_LIST),
        ("a, check_policy_service {$mxpolicy_policy,policy_context=recipient}", "a",
         "a, check_policy_service {$mxpolicy_policy,policy_context=recipient}"),
    ],
)  # fmt: skip
def test_recipients(written: str | None, effective: str, expected: str | None) -> None:
    assert joined_relay(written, effective) == expected


@pytest.mark.parametrize(
    ("written", "effective", "expected"),
    [
        (None, "", SENDER_LIST),
        ("", "", SENDER_LIST),
        ("reject_unlisted_sender,", "reject_unlisted_sender",
         f"reject_unlisted_sender, {STRANGERS}, {SENDER_CHECK}"),
        ("$mine", "only_insiders check_sender_access cdb:/x",
         f"$mine, {STRANGERS}, {SENDER_CHECK}"),
        ("permit_mynetworks, reject", "permit_mynetworks, reject", None),
        ("$mine", "check_sender_access cdb:/x permit", None),
        (SENDER_LIST, SENDER_LIST, SENDER_LIST),
    ],
)  # fmt: skip
def test_senders(written: str | None, effective: str, expected: str | None) -> None:
    assert joined_sender(written, effective) == expected
