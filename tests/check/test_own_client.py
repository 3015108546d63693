"""What main.cf says to Postfix's own client alone."""

from __future__ import annotations

from collections import defaultdict

import pytest

from mxpolicy.check.own_client import told_to_client, unheeded, verified


@pytest.mark.parametrize(
    ("master", "settings", "said"),
    [
        ("smtp unix - - y - - smtp\n", {"smtp_destination_rate_delay": "0s"}, []),
        (
            "",
            {"smtp_generic_maps": "hash:/etc/postfix/generic"},
            ["smtp_generic_maps is hash:/etc/postfix/generic: mail that goes by mxpo"],
        ),
        (
            "smtp unix - - y - - smtp -o smtp_bind_address=192.0.2.26\n"
            "other unix - - y - - smtp -o smtp_bind_address6=2001:db8::26\n",
            {},
            ["smtp_bind_address is 192.0.2.26: mail that goes by mxpolicy leaves"],
        ),
        (
            "out unix - - y - - smtp -o smtp_bind_address=\n",
            {"default_transport": "out:", "smtp_bind_address": "192.0.2.26"},
            [],
        ),
        (
            "smtp unix - - y - - smtp -o smtp_header_checks=pcre:/h\n",
            {
                "default_transport": "mxpolicy:",
                "smtp_body_checks": "pcre:/b",
                "smtp_destination_rate_delay": "1s",
            },
            [
                "smtp_header_checks is pcre:/h and smtp_body_checks is pcre:/b: mail",
                "smtp_destination_rate_delay is 1s: mail",
            ],
        ),
    ],
)
def test_what_mxpolicy_does_otherwise(
    master: str, settings: dict[str, str], said: list[str]
) -> None:
    seen = defaultdict(str, settings)
    found = unheeded(told_to_client(master, seen))
    assert [one.startswith(start) for one, start in zip(found, said, strict=True)] == [
        True
    ] * len(said)


@pytest.mark.parametrize(
    ("master", "settings", "expected"),
    [
        ("", {"smtpd_sender_restrictions": "reject_unlisted_sender"}, []),
        (
            "",
            {
                "smtpd_relay_restrictions": "permit_mynetworks,reject_unverified_sender",
                "smtpd_data_restrictions": "reject_unverified_recipient",
            },
            ["reject_unverified_recipient", "reject_unverified_sender"],
        ),
        (
            "587 inet n - y - - smtpd"
            " -o { smtpd_recipient_restrictions = reject_unverified_recipient, permit }\n",
            {},
            ["reject_unverified_recipient"],
        ),
    ],
)
def test_words_that_have_hosts_asked(
    master: str, settings: dict[str, str], expected: list[str]
) -> None:
    assert verified(master, defaultdict(str, settings)) == expected
