"""`mxpolicy.delivery.session` against scripted hosts: from connected to ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mxpolicy.routing.candidate import Phase
from tests.delivery.attempts import HELO
from tests.delivery.conversations import FIVE, offered, opened
from tests.helpers.scripted_smtp import End, ScriptedHost

if TYPE_CHECKING:
    from tests.helpers.scripted_smtp import Script

TLS = "250-mx.example.com\n250 STARTTLS"


def test_phases_are_told_in_their_order() -> None:
    told = opened(ScriptedHost())
    assert told.phases == [Phase.GREETING, Phase.EHLO, Phase.READY]
    assert told.failure is None


@pytest.mark.parametrize(
    "ehlo",
    [
        "500 what?",
        "502 5.5.1 unknown",
        "554 no",
        "450 4.7.1 busy",
        "354 hm",
        "199 hm",
        "000 hm",
        "999 hm",
        "250-mx.example.com\n550 no",
    ],
)
def test_host_that_does_not_take_ehlo_hears_helo(ehlo: str) -> None:
    host = ScriptedHost({"EHLO": ehlo})
    told = offered(host, message=b"\xff\r\n")
    assert host.commands[1:3] == [f"HELO {HELO}", "MAIL FROM:<alice@example.net>"]
    assert told.result.delivered


@pytest.mark.parametrize(
    ("script", "failed", "quits"),
    [
        ({"CONNECT": "554 5.7.1 no"}, ("greeting_5xx", "greeting"), True),
        ({"CONNECT": "450 4.7.1 no"}, ("greeting_4xx", "greeting"), True),
        ({"CONNECT": "421 busy"}, ("greeting_4xx", "greeting"), False),
        ({"CONNECT": "354 hm"}, ("not_smtp", "greeting"), False),
        ({"CONNECT": b"x" * (1 << 21)}, ("not_smtp", "greeting"), False),
        ({"CONNECT": (b"what?\r\n", End.CLOSE)}, ("not_smtp", "greeting"), False),
        ({"CONNECT": b"HTTP/1.1 400 No\r\n"}, ("not_smtp", "greeting"), False),
        ({"CONNECT": "150 hm"}, ("not_smtp", "greeting"), False),
        ({"CONNECT": ("220 hi", "421 no")}, ("ehlo_refused", "ehlo"), False),
        ({"CONNECT": ("220 hi", "554 no")}, ("ehlo_refused", "ehlo"), False),
        ({"CONNECT": b"220 hi\r\n" * 50}, ("closed", "ehlo"), False),
        ({"EHLO": "421 busy"}, ("ehlo_refused", "ehlo"), False),
        ({"EHLO": "450 busy", "HELO": "450 no"}, ("ehlo_refused", "ehlo"), True),
        ({"EHLO": ("450 busy", End.CLOSE)}, ("ehlo_refused", "ehlo"), False),
        ({"EHLO": "450 busy", "HELO": End.CLOSE}, ("ehlo_refused", "ehlo"), False),
        ({"EHLO": "450 busy", "HELO": "421 no"}, ("ehlo_refused", "ehlo"), False),
        ({"EHLO": ("502 what", "421 no")}, ("ehlo_refused", "ehlo"), False),
        ({"EHLO": "502 what", "HELO": "450 no"}, ("ehlo_refused", "ehlo"), True),
        ({"EHLO": (TLS, "421 no")}, ("starttls_refused", "tls"), False),
        ({"EHLO": TLS, "STARTTLS": "421 no"}, ("starttls_refused", "tls"), False),
        ({"EHLO": TLS, "STARTTLS": End.SILENT}, ("tls_silent", "tls"), False),
        ({"EHLO": TLS, "STARTTLS": End.CLOSE}, ("tls_failed", "tls"), False),
        (
            {"EHLO": TLS, "STARTTLS": (b"220 a\r\n2", End.SILENT)},
            ("tls_failed", "tls"),
            False,
        ),
    ],
    ids=str,
)
def test_host_that_does_not_get_us_to_ready(
    script: Script, failed: tuple[str, str], quits: bool
) -> None:
    host = ScriptedHost(script)
    told = opened(host)
    assert told.failed == failed
    assert ("QUIT" in host.commands) is quits


def test_host_that_is_slow_at_ehlo_may_be_as_slow_at_starttls() -> None:
    script: Script = {"EHLO": (40.0, TLS), "STARTTLS": (60.0, "454 4.7.0 not now")}
    assert opened(ScriptedHost(script)).failure is None
    script = {"EHLO": TLS, "STARTTLS": (60.0, "454 4.7.0 not now")}
    assert opened(ScriptedHost(script)).failed == ("tls_silent", "tls")


def test_failure_says_verdict_and_words() -> None:
    told = opened(ScriptedHost({"CONNECT": "450 4.7.1 not now"}))
    assert str(told.failure) == "greeting_4xx 450 4.7.1 not now"


def test_host_that_hangs_up_on_helo_is_quoted_on_ehlo() -> None:
    for end in (End.CLOSE, End.RESET):
        told = opened(ScriptedHost({"EHLO": "450 4.7.1 not you", "HELO": end}))
        assert told.failure is not None
        assert told.failure.reply is not None
        assert told.failure.reply.text == "450 4.7.1 not you"


@pytest.mark.parametrize(
    "script", [{}, {"EHLO": "502 what", "HELO": "250 mx11.example.com hi"}]
)
def test_host_with_our_name_on_port_25_is_ourselves(script: Script) -> None:
    told = opened(ScriptedHost(script), port=25, is_myself="mx11.example.com".__eq__)
    assert told.failed == ("loops_to_myself", "ehlo")


@pytest.mark.parametrize(
    "more", [{"port": 26}, {"is_myself": "mx12.example.com".__eq__}]
)
def test_other_name_or_other_port_is_not_ourselves(more: dict[str, object]) -> None:
    usual: dict[str, object] = {"port": 25, "is_myself": "mx11.example.com".__eq__}
    assert opened(ScriptedHost(), **(usual | more)).failure is None


def test_host_behind_a_masking_firewall_gets_one_command_at_a_time() -> None:
    host = ScriptedHost({"CONNECT": "220 ****************", "MAIL": (1.0, "250 ok")})
    told = offered(host, *FIVE[:2])
    assert set(told.result.delivered) == {0, 1}
    # In one write MAIL and RCPT would be there before the reply to MAIL.
    assert host.was_pipelined is False
    told = offered(host := ScriptedHost({"MAIL": (1.0, "250 ok")}), *FIVE[:2])
    assert host.was_pipelined is True
