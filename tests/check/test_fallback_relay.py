"""Which of Postfix's own clients leave their mail to mxpolicy."""

from __future__ import annotations

from collections import defaultdict

import pytest

from mxpolicy.check.fallback_relay import Fallback, fallback, is_to_us

MASTER = """\
smtp inet n - y - - smtpd
smtp unix - - y - - smtp
relay unix - - y - - smtp -o syslog_name=postfix/relay
amavis unix - - - - 2 smtp -o smtp_fallback_relay=
127.0.0.1:10026 inet n - n - - smtpd -o content_filter=mxpolicy:
"""


@pytest.mark.parametrize(
    ("lines", "settings", "expected"),
    [
        ("", {}, Fallback(["relay/unix"], [], [])),
        (
            "",
            {"default_transport": "relay:[192.0.2.1]"},
            Fallback(["smtp/unix"], [], []),
        ),
        (
            "scan unix - - n - 10 smtp -v -o { disable_dns_lookups = yes }\n",
            {"content_filter": "scan:[127.0.0.1]:10025"},
            Fallback(
                ["relay/unix", "scan/unix"],
                ["content_filter = scan:[127.0.0.1]:10025"],
                [],
            ),
        ),
        (
            "submission inet n - n - - smtpd -o content_filter=smtp:[127.0.0.1]:10025\n",
            {"virtual_transport": "smtp:[192.0.2.1]", "mailbox_transport": "smtpx"},
            Fallback(
                ["relay/unix"],
                [],
                [
                    "virtual_transport = smtp:[192.0.2.1]",
                    "content_filter = smtp:[127.0.0.1]:10025",
                ],
            ),
        ),
        ("", {"relay_transport": "smtp"}, Fallback(["relay/unix"], [], [])),
        (
            "",
            {"relay_transport": "smtp", "relay_domains": "hash:/etc/postfix/relays"},
            Fallback(["relay/unix"], [], ["relay_transport = smtp"]),
        ),
        (
            "",
            {"relay_transport": "relay", "relay_domains": "example.net"},
            Fallback(["relay/unix"], ["relay_transport = relay"], []),
        ),
        # All mail goes by mxpolicy.
        ("", {"default_transport": "mxpolicy:"}, Fallback(["relay/unix"], [], [])),
        (
            "",
            {"content_filter": "amavis:[127.0.0.1]:10024"},
            Fallback(["relay/unix"], [], []),
        ),
    ],
)
def test_mail_that_is_not_for_the_world(
    lines: str, settings: dict[str, str], expected: Fallback
) -> None:
    said = defaultdict(str, {"default_transport": "smtp", **settings})
    assert fallback(MASTER + lines, said) == expected


@pytest.mark.parametrize(
    ("relay", "expected"),
    [
        ("[127.0.0.1]:10026", True),
        ("[192.0.2.1], [127.0.0.1]:10026", True),
        ("[127.0.0.1]:25", False),
        ("relay.example.net", False),
        ("", False),
    ],
)
def test_relay_that_is_ours(relay: str, expected: bool) -> None:
    assert is_to_us(MASTER, {"smtp_fallback_relay": relay}, {"mxpolicy"}) == expected
    assert not is_to_us(MASTER, {"smtp_fallback_relay": relay}, {"other"})
