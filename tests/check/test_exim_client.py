"""What is said to Exim's own smtp transport alone."""

from __future__ import annotations

import pytest

from mxpolicy.check.exim import Stanza
from mxpolicy.check.exim_client import left_out, unheeded

MX = {"driver": "dnslookup", "transport": "remote_smtp"}
SIGNED = {"driver": "smtp", "dkim_domain": "a.example"}
TRANSPORTS = {"remote_smtp": {"driver": "smtp", "dkim_domain": ""}}


@pytest.mark.parametrize(
    ("transports", "router", "said"),
    [
        ({}, MX, []),
        (
            {"remote_smtp": SIGNED},
            MX,
            [
                "transport remote_smtp has dkim_domain = a.example: mail that goes by mxp"
            ],
        ),
        ({"smarthost": SIGNED}, MX, []),
        ({"smarthost": SIGNED}, {**MX, "driver": "manualroute"}, []),
        (
            {"dkim_remote_smtp": SIGNED},
            {**MX, "transport": "${if def:x {dkim_remote_smtp}{remote_smtp}}"},
            ["transport dkim_remote_smtp has dkim_domain = a.example: mail"],
        ),
        (
            {
                "remote_smtp": {
                    "driver": "smtp",
                    "interface": "192.0.2.26",
                    "headers_remove": "received",
                    "return_path": "x@a.example",
                    "hosts_require_tls": "*",
                }
            },
            MX,
            [
                "transport remote_smtp has headers_remove = received and return_path =",
                "transport remote_smtp has interface = 192.0.2.26: mail",
                "transport remote_smtp has hosts_require_tls = *: mail",
            ],
        ),
        ({"remote_smtp": {"driver": "lmtp", "headers_add": "X: y"}}, MX, []),
    ],
)
def test_what_mxpolicy_does_otherwise(
    transports: dict[str, Stanza], router: Stanza, said: list[str]
) -> None:
    found = unheeded({**TRANSPORTS, **transports}, {"mx": router, "other": {}})
    assert all(one.startswith(start) for one, start in zip(found, said, strict=True))


def test_addresses_that_are_left_out_are_told() -> None:
    routers = {
        "mx": {**MX, "ignore_target_hosts": "<; 10.0.0.0/8 ; ::1/128"},
        "relays": {**MX, "ignore_target_hosts": ""},
        "smarthost": {"driver": "manualroute", "ignore_target_hosts": "10.0.0.0/8"},
    }
    [said] = left_out(routers)
    assert said.startswith("router mx leaves out hosts at <; 10.0.0.0/8 ; ::1/128 (ign")
    assert "never_dial: [private]" in said
