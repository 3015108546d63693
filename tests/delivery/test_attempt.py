"""`mxpolicy.delivery.attempt` against real sockets on loopback: whole attempts."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import ssl
from math import inf
from typing import TYPE_CHECKING

import pytest
import trustme

from mxpolicy.delivery import events
from mxpolicy.options import (
    GreetingPolicy,
    Options,
    TlsLevel,
    TlsOptions,
    TransactionOptions,
)
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.routing.candidate import Phase, Scope
from tests.delivery.attempts import MESSAGE, Journal, Played, deliver, play, run
from tests.helpers.scripted_smtp import EXTENSIONS, End, ScriptedHost
from tests.helpers.socket_loop import let_pass

if TYPE_CHECKING:
    from tests.helpers.scripted_smtp import Answer, Script

TWO = ("ann@example.com", "bob@example.com")
BIG = b"Subject: big\r\n\r\n" + (b"0123456789abcdef" * 60 + b"\r\n") * 8192
IMPATIENT = Options(transaction=TransactionOptions(body_progress=5.0))


def status(outcome: Outcome) -> str:
    return f"{type(outcome).__name__} {outcome.status}"


def verdicts(played: Played) -> list[tuple[str, str]]:
    return [
        (event.finding.verdict.value, event.finding.phase.word)
        for event in played.all(events.CandidateFailed)
    ]


# --- one host


def test_message_arrives_as_it_is_with_crlf() -> None:
    host = ScriptedHost()
    played = deliver(host, data=b"Subject: x\n\nfirst\n.second\rthird\r\nlast")
    assert status(played.outcome) == "Delivered 2.0.0"
    assert [one.mail_data for one in host.taken] == [
        b"Subject: x\r\n\r\nfirst\r\n..second third\r\nlast\r\n"
    ]
    assert host.commands[-1] == "QUIT"
    assert played.tried == [()]


@pytest.mark.parametrize(
    ("script", "expected", "verdict"),
    [
        pytest.param(
            {"CONNECT": End.SILENT}, "4.4.2", ("silent", "greeting"), id="silent"
        ),
        pytest.param(
            {"CONNECT": End.CLOSE}, "4.4.2", ("closed", "greeting"), id="closes"
        ),
        pytest.param(
            {"CONNECT": End.RESET}, "4.4.2", ("closed", "greeting"), id="resets"
        ),
        pytest.param(
            {"CONNECT": "HTTP/1.1 400 Bad Request"},
            "4.5.0",
            ("not_smtp", "greeting"),
            id="speaks HTTP",
        ),
        pytest.param(
            {"CONNECT": "450 4.3.2 not now"},
            "4.3.2",
            ("greeting_4xx", "greeting"),
            id="greets 4yz",
        ),
        pytest.param(
            {"CONNECT": "421 4.3.2 busy"},
            "4.3.2",
            ("greeting_4xx", "greeting"),
            id="greets 421",
        ),
        pytest.param(
            {"CONNECT": "554 5.7.1 no"},
            "4.7.1",
            ("greeting_5xx", "greeting"),
            id="greets 5yz",
        ),
        pytest.param(
            {"EHLO": End.CLOSE}, "4.4.2", ("closed", "ehlo"), id="ehlo closed"
        ),
        pytest.param(
            {"EHLO": "450 4.7.1 no", "HELO": "450 4.7.1 no"},
            "4.7.1",
            ("ehlo_refused", "ehlo"),
            id="helo 4yz",
        ),
        pytest.param(
            {"EHLO": "450 4.7.1 no", "HELO": End.CLOSE},
            "4.7.1",
            ("ehlo_refused", "ehlo"),
            id="helo closed",
        ),
        pytest.param(
            {"EHLO": "502 what?", "HELO": "550 5.7.1 no"},
            "4.7.1",
            ("ehlo_refused", "ehlo"),
            id="helo 5yz",
        ),
        pytest.param(
            {"MAIL": End.CLOSE}, "4.4.2", ("closed", "transaction"), id="mail closed"
        ),
        pytest.param(
            {"MAIL": "421 4.7.0 go"},
            "4.7.0",
            ("transient", "transaction"),
            id="mail 421",
        ),
        pytest.param(
            {"RCPT": "421 4.7.0 go"},
            "4.7.0",
            ("transient", "transaction"),
            id="rcpt 421",
        ),
        pytest.param(
            {"DATA": "421 4.7.0 go"},
            "4.7.0",
            ("transient", "transaction"),
            id="data 421",
        ),
        pytest.param(
            {"DATA": "250 ok"},
            "4.4.2",
            ("closed", "transaction"),
            id="data without 354",
        ),
        pytest.param(
            {"RCPT": "999 ?"}, "4.4.2", ("closed", "transaction"), id="impossible code"
        ),
    ],
)
def test_message_is_deferred_when_the_only_host_fails(
    script: dict[str, str], expected: str, verdict: tuple[str, str]
) -> None:
    host = ScriptedHost(script)
    played = deliver(host)
    assert status(played.outcome) == f"Deferred {expected}"
    assert verdicts(played) == [verdict]
    assert len(played.tried[0]) == 1
    assert not host.messages


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param({"MAIL": "550 5.1.8 bad sender"}, "Bounced 5.1.8", id="MAIL 5yz"),
        pytest.param({"MAIL": "450 4.1.8 later"}, "Deferred 4.1.8", id="MAIL 4yz"),
        pytest.param({"RCPT": "550 5.1.1 unknown"}, "Bounced 5.1.1", id="RCPT 5yz"),
        pytest.param({"RCPT": "450 5.7.1 later"}, "Deferred 4.0.0", id="RCPT 4yz, 5.z"),
        pytest.param({"RCPT": "599 5.9.9 odd"}, "Bounced 5.9.9", id="unknown 5yz"),
        pytest.param({"RCPT": "299 odd"}, "Delivered 2.0.0", id="unknown 2yz"),
        pytest.param({"MAIL": "501 what?"}, "Bounced 5.0.0", id="MAIL, our session"),
        pytest.param({"RCPT": "503 what?"}, "Bounced 5.0.0", id="RCPT, our session"),
        pytest.param({"RCPT": "530 TLS!"}, "Bounced 5.0.0", id="wants what it has not"),
        pytest.param({"RCPT": "554 bad HELO"}, "Bounced 5.0.0", id="HELO"),
        pytest.param({"DATA": "503 what?"}, "Bounced 5.0.0", id="DATA, our session"),
        pytest.param({"CONNECT": "554 no"}, "Deferred 4.0.0", id="greeting 5yz"),
        pytest.param({"DATA": "554 5.7.1 no"}, "Bounced 5.7.1", id="DATA 5yz"),
        pytest.param({"DATA": "451 4.3.0 disk"}, "Deferred 4.3.0", id="DATA 4yz"),
        pytest.param({".": "554 5.6.0 spam"}, "Bounced 5.6.0", id="dot 5yz"),
        pytest.param({".": "451 4.3.0 disk"}, "Deferred 4.3.0", id="dot 4yz"),
        pytest.param({".": "421 4.3.0 bye"}, "Deferred 4.3.0", id="dot 421"),
    ],
)
def test_reply_decides(script: dict[str, str], expected: str) -> None:
    host = ScriptedHost(script)
    played = deliver(host)
    assert status(played.outcome) == expected
    assert len(host.visits) == 1


def test_recipients_are_answered_one_by_one() -> None:
    host = ScriptedHost(
        {
            "RCPT no@example.com": "550 5.1.1 unknown",
            "RCPT later@example.com": "450 4.2.1 greylisted",
        }
    )
    played = deliver(
        host,
        recipients=("no@example.com", "bob@example.com", "later@example.com"),
    )
    assert list(map(status, played.outcomes)) == [
        "Bounced 5.1.1",
        "Delivered 2.0.0",
        "Deferred 4.2.1",
    ]
    assert [one.forward_paths for one in host.taken] == [("bob@example.com",)]


def test_greeting_5xx_bounces_where_the_operator_says_so() -> None:
    host = ScriptedHost({"CONNECT": "554 5.7.1 no"})
    options = Options(greeting_5xx=GreetingPolicy.BOUNCE)
    assert status(deliver(host, options=options).outcome) == "Bounced 5.7.1"


def test_host_with_our_name_is_known_by_what_attempt_is_told() -> None:
    # The port is not 25, so this is a second instance on this machine.
    host = ScriptedHost()
    assert status(deliver(host, helo="mx.example.com").outcome) == "Delivered 2.0.0"


def test_5yz_about_our_helo_is_no_bounce() -> None:
    refusing = ScriptedHost({"RCPT": "550 5.7.1 <client.example.net>: HELO rejected"})
    good = ScriptedHost()
    played = deliver(refusing, good)
    assert status(played.outcome) == "Delivered 2.0.0"


def test_5yz_that_only_names_our_helo_bounces() -> None:
    said = "550 5.7.26 mail from client.example.net fails DMARC"
    for script in ({"RCPT": said}, {".": said}):
        refusing, other = ScriptedHost(script), ScriptedHost()
        played = deliver(refusing, other)
        assert status(played.outcome) == "Bounced 5.7.26"
        assert not other.messages


def test_helo_that_cannot_be_sent_is_our_own_trouble() -> None:
    host = ScriptedHost()
    played = deliver(host, helo="two words")
    assert status(played.outcome) == "Deferred 4.3.0"
    assert "LocalProtocolError" in played.all(events.Trouble)[0].text
    assert host.visits == [[]]


# --- several hosts

OFFER = "250-mx.example.com\n250 STARTTLS"


@pytest.mark.parametrize(
    ("first", "seconds"),
    [
        pytest.param(ScriptedHost(is_filtered=True), 1.5, id="filtered"),
        pytest.param(ScriptedHost(is_refused=True), 0, id="refused"),
        pytest.param(ScriptedHost({"CONNECT": End.SILENT}), 8.2, id="silent"),
        pytest.param(ScriptedHost({"CONNECT": End.CLOSE}), 0, id="closes"),
        pytest.param(ScriptedHost({"EHLO": End.SILENT}), 8.2, id="ehlo silent"),
        pytest.param(ScriptedHost({"CONNECT": "554 no"}), 0, id="greets 5yz"),
        pytest.param(ScriptedHost({"MAIL": "421 go away"}), 0, id="MAIL 421"),
        pytest.param(ScriptedHost({"MAIL": "421 4.3.2 down"}), 0, id="421 of its own"),
        pytest.param(ScriptedHost({"MAIL": "451 4.7.1 no"}), 0, id="MAIL x.7.z"),
        pytest.param(ScriptedHost({"RCPT": "450 4.7.1 no"}), 0, id="RCPT x.7.z"),
        pytest.param(ScriptedHost({"RCPT": "421 later"}), 0, id="RCPT 421"),
        pytest.param(ScriptedHost({"RCPT": "450 4.2.1 no"}), 0, id="4yz"),
        pytest.param(ScriptedHost({"DATA": "421 4.7.0 go"}), 0, id="DATA 421"),
        pytest.param(ScriptedHost({"DATA": "451 4.7.1 no"}), 0, id="DATA x.7.z"),
        pytest.param(ScriptedHost({"MAIL": End.SILENT}), 60, id="MAIL silent"),
        pytest.param(ScriptedHost({"RCPT": End.SILENT}), 60, id="RCPT silent"),
        pytest.param(ScriptedHost({"DATA": End.SILENT}), 60, id="DATA silent"),
        pytest.param(ScriptedHost(extensions=["SIZE 24"]), 0, id="too small"),
        pytest.param(
            ScriptedHost({"CONNECT": (6.0, "220 postscreen")}), "first", id="postscreen"
        ),
    ],
)
def test_second_host_gets_what_the_first_does_not_take(
    first: ScriptedHost, seconds: float | str
) -> None:
    second = ScriptedHost()
    played = deliver(first, second)
    if seconds == "first":
        assert isinstance(played.outcome, Delivered)
        assert len(first.taken) == 1
        assert not second.taken
        assert played.seconds == pytest.approx(6.0, abs=0.1)
    else:
        assert isinstance(played.outcome, Delivered)
        assert len(second.taken) == 1
        assert not first.messages
        assert played.seconds == pytest.approx(seconds, abs=0.1)
        # Why it went to the second one.
        [[why]] = played.tried
        assert why.startswith(f"{first.candidate(10).key} ")


def test_refusal_by_a_worse_host_is_not_final_while_a_better_one_is_slow() -> None:
    slow = ScriptedHost({"CONNECT": (20.0, "220 at last")})
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    played = deliver(slow, stale)
    assert status(played.outcome) == "Delivered 2.0.0"
    assert len(slow.taken) == 1
    assert played.seconds == pytest.approx(20, abs=0.1)


def test_refusal_by_a_worse_host_is_final_once_the_better_one_has_failed() -> None:
    slow = ScriptedHost({"CONNECT": (20.0, End.CLOSE)})
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    played = deliver(slow, stale)
    assert status(played.outcome) == "Bounced 5.1.1"
    assert played.seconds == pytest.approx(20, abs=0.1)


def test_refusal_by_a_worse_host_defers_when_the_better_one_never_had_its_time() -> (
    None
):
    slow = ScriptedHost({"CONNECT": End.SILENT})
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    played = deliver(slow, stale, deadline=60)
    assert isinstance(played.outcome, Deferred)
    assert played.seconds == pytest.approx(60, abs=0.1)


LATE = 100.0


@pytest.mark.parametrize(
    "slow",
    [
        pytest.param({"MAIL": (LATE, "250 ok")}, id="MAIL"),
        pytest.param({"RCPT": (LATE, "250 ok")}, id="RCPT"),
        pytest.param({"DATA": (LATE, "354 go")}, id="DATA"),
        pytest.param({"CONNECT": (LATE, "220 hi")}, id="greeting"),
        pytest.param({"EHLO": (LATE, "250 hi")}, id="EHLO"),
    ],
)
@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param({"MAIL": "550 5.7.1 no"}, id="to MAIL"),
        pytest.param({"RCPT": "550 5.1.1 unknown"}, id="to RCPT"),
        pytest.param({"DATA": "554 5.7.1 no"}, id="to DATA"),
        pytest.param({".": "554 5.6.0 spam"}, id="to the dot"),
    ],
)
def test_refusal_by_a_worse_host_waits_for_a_better_one_that_outlasts_our_patience(
    slow: Script, refusal: Script
) -> None:
    better, stale = ScriptedHost(slow), ScriptedHost(refusal)
    played = deliver(better, stale)
    assert isinstance(played.outcome, Delivered)
    assert len(better.taken) == 1


def test_refusal_by_a_worse_host_is_final_once_a_better_one_had_its_time() -> None:
    better = ScriptedHost({"RCPT": End.SILENT})
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    played = deliver(better, stale)
    assert status(played.outcome) == "Bounced 5.1.1"
    assert played.seconds == pytest.approx(60 + 300, abs=1)


def test_refusal_by_a_worse_host_defers_when_the_deadline_cuts_the_better_one() -> None:
    better = ScriptedHost({"RCPT": End.SILENT})
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    played = deliver(better, stale, deadline=290)
    assert isinstance(played.outcome, Deferred)


def test_host_that_greets_late_is_waited_for_after_a_refusal_until_the_deadline() -> (
    None
):
    better = ScriptedHost({"CONNECT": (60.0, "220 at last")})
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    played = deliver(better, stale, deadline=120)
    assert isinstance(played.outcome, Delivered)
    assert len(better.visits) == 1


@pytest.mark.parametrize(
    "slow",
    [
        pytest.param({"CONNECT": End.SILENT}, id="greeting"),
        pytest.param({"EHLO": End.SILENT}, id="EHLO"),
        pytest.param({"MAIL": End.SILENT}, id="MAIL"),
        pytest.param({"RCPT": End.SILENT}, id="RCPT"),
    ],
)
def test_seconds_waited_add_up_over_the_attempts_until_a_refusal_is_final(
    slow: Script,
) -> None:
    """A deadline of 130 s leaves no time for 300 s of patience in one attempt."""
    better = ScriptedHost(slow)
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    journal = Journal()

    async def work() -> list[Outcome]:
        again = [
            await play(better, stale, deadline=130, journal=journal) for _ in range(3)
        ]
        return [played.outcome for played in again]

    outcomes = run(better, stale, work=work)
    assert [type(one) for one in outcomes] == [Deferred, Deferred, Bounced]


def test_seconds_that_only_one_recipient_has_waited_make_no_refusal_final() -> None:
    better = ScriptedHost({"CONNECT": End.SILENT})
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    journal = Journal()

    async def work() -> Played:
        journal.waited[0] = {(str(better.candidate(10)), "greeting"): 300.0}
        return await play(better, stale, recipients=TWO, deadline=130, journal=journal)

    played = run(better, stale, work=work)
    assert [type(one) for one in played.outcomes] == [Deferred, Deferred]


def test_nothing_is_noted_for_a_host_that_answers() -> None:
    journal = Journal()
    slow = ScriptedHost({"RCPT": (90.0, "450 4.2.1 later")})
    refused = ScriptedHost(is_refused=True)
    played = deliver(slow, refused, journal=journal)
    assert isinstance(played.outcome, Deferred)
    assert not journal.waited


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([{"RCPT": (90.0, "250 ok")}], "Delivered", id="slow and good"),
        pytest.param([{"RCPT": End.SILENT}], "Bounced", id="silent"),
        pytest.param([{"CONNECT": End.CLOSE}], "Bounced", id="closes"),
        pytest.param([{"CONNECT": "554 no"}], "Bounced", id="greets 5yz"),
        pytest.param([{"RCPT": "550 5.1.1 unknown"}], "Bounced", id="refuses"),
        pytest.param([{"RCPT": "450 4.2.0 grey"}], "Bounced", id="puts off"),
        pytest.param([{"RCPT": "502 what?"}, {}], "Delivered", id="third is good"),
    ],
)
@pytest.mark.parametrize("is_worst", [False, True], ids=["best", "worst"])
def test_refusal_of_our_session_is_final_once_all_others_were_heard(
    others: list[Script], expected: str, is_worst: bool
) -> None:
    hosts = [ScriptedHost({"RCPT": "503 5.5.1 what?"}), *map(ScriptedHost, others)]
    played = deliver(*(reversed(hosts) if is_worst else hosts))
    assert type(played.outcome).__name__ == expected


def test_refusal_of_our_session_defers_when_the_deadline_cuts_another_short() -> None:
    hosts = ScriptedHost({"RCPT": "503 what?"}), ScriptedHost({"CONNECT": End.SILENT})
    assert isinstance(deliver(*hosts, deadline=120).outcome, Deferred)


def test_slow_host_is_asked_again_for_whom_the_others_put_off() -> None:
    slow = ScriptedHost({"RCPT": (90.0, "250 ok")})
    others = [ScriptedHost({"RCPT": "450 4.2.1 later"}) for _ in range(2)]
    played = deliver(slow, *others)
    assert isinstance(played.outcome, Delivered)


def test_each_recipient_is_settled_by_whom_a_patient_sender_would_have_asked() -> None:
    better = ScriptedHost(
        {"RCPT": (90.0, "250 ok"), "RCPT bob@example.com": "550 5.1.1 no"},
    )
    stale = ScriptedHost({"RCPT ann@example.com": "550 5.1.1 no"})
    played = deliver(better, stale, recipients=TWO)
    # bob was refused by the better one, and yet taken: by a host that it never named.
    assert [status(one) for one in played.outcomes] == ["Delivered 2.0.0"] * 2


def test_host_that_fails_in_clear_after_a_silent_handshake_has_not_failed() -> None:
    better = ScriptedHost(
        {
            "EHLO": OFFER,
            "STARTTLS": ("220 go ahead", End.SILENT),
            "CONNECT": ["220 hi", "220 hi", End.CLOSE],
        }
    )
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    assert isinstance(deliver(better, stale).outcome, Deferred)


def test_better_host_is_waited_for_as_long_as_nobody_else_matters() -> None:
    # The one after the stale one may no longer be asked, so it is no reason to hurry.
    slow = ScriptedHost({"CONNECT": (20.0, "220 hi"), "RCPT": (200.0, "250 ok")})
    stale = ScriptedHost({"RCPT": "550 5.1.1 unknown"})
    other = ScriptedHost({"CONNECT": (60.0, "220 hi")})
    played = deliver(slow, stale, other, preferences=[10, 20, 30])
    assert status(played.outcome) == "Delivered 2.0.0"
    assert len(slow.taken) == 1
    assert not other.messages


def test_greylisting_site_is_visited_twice() -> None:
    hosts = [ScriptedHost({"RCPT": "450 4.2.0 greylisted"}) for _ in range(5)]
    played = deliver(*hosts)
    assert status(played.outcome) == "Deferred 4.2.0"
    assert [len(host.visits) for host in hosts] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("text", ["450 4.7.1 policy", "421 4.7.0 too many of you"])
def test_site_that_asks_to_be_left_alone_is_visited_twice(text: str) -> None:
    hosts = [ScriptedHost({"RCPT": text}) for _ in range(5)]
    played = deliver(*hosts)
    assert isinstance(played.outcome, Deferred)
    assert [len(host.visits) for host in hosts] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("text", ["421 4.7.0 later", "451 4.7.0 later"])
def test_second_host_gets_what_the_first_puts_off_at_the_dot(text: str) -> None:
    first, second = ScriptedHost({".": text}), ScriptedHost()
    played = deliver(first, second)
    assert isinstance(played.outcome, Delivered)
    assert len(second.taken) == 1


def test_body_too_large_everywhere_bounces() -> None:
    hosts = [ScriptedHost(extensions=["SIZE 20"]) for _ in range(3)]
    played = deliver(*hosts)
    assert status(played.outcome) == "Bounced 5.3.4"
    assert all(host.commands[-1] == "QUIT" for host in hosts)
    assert verdicts(played) == [("unfit", "transaction")] * 3


def test_smtputf8_nowhere_bounces_and_is_never_faked() -> None:
    hosts = [ScriptedHost() for _ in range(2)]
    played = deliver(*hosts, recipients=["jürgen@example.com"])
    assert status(played.outcome) == "Bounced 5.6.7"
    assert not any("MAIL" in line for host in hosts for line in host.commands)


@pytest.mark.parametrize(
    "host",
    [
        pytest.param({"CONNECT": "220 *****2****", "EHLO": "500 what?"}, id="banner"),
        pytest.param({"EHLO": "250-mx.example.com\n250 XXXXXXXB"}, id="keyword"),
    ],
)
def test_smtputf8_behind_a_firewall_that_masks_is_deferred(host: Script) -> None:
    played = deliver(ScriptedHost(host), recipients=["b\u00fcro@example.com"])
    assert isinstance(played.outcome, Deferred)
    assert str(played.outcome.status) == "4.6.7"


def test_smtputf8_is_used_where_offered() -> None:
    host = ScriptedHost(extensions=(*EXTENSIONS, "SMTPUTF8"))
    played = deliver(host, recipients=["jürgen@example.com"])
    assert isinstance(played.outcome, Delivered)
    assert host.taken[0].forward_paths == ("jürgen@example.com",)
    assert host.commands[1].endswith(" SMTPUTF8")


def test_refused_recipient_is_offered_to_better_hosts_only() -> None:
    # ann's refusal by the second is not final, and bob's 4yz lets the race go on. The
    # fourth, then the third are ready, and only the first may still take her.
    first = ScriptedHost({"CONNECT": (40.0, "220 at last")})
    second = ScriptedHost(
        {"RCPT ann@example.com": "550 5.1.1 no", "RCPT bob@example.com": "450 4.2.1 no"}
    )
    third = ScriptedHost({"CONNECT": (9.0, "220 hi")})
    fourth = ScriptedHost()
    hosts = first, second, third, fourth
    played = deliver(*hosts, recipients=TWO)
    assert [status(one) for one in played.outcomes] == ["Delivered 2.0.0"] * 2
    assert [one.forward_paths for host in hosts for one in host.taken] == [
        ("ann@example.com",),
        ("bob@example.com",),
    ]
    assert third.commands == ["EHLO client.example.net", "QUIT"]


# The worse one starts after 8 seconds and is ready shortly before the better one,
# which then has its grace.
ALMOST = (1.95, "220 almost first")
PATIENT = (10.0, "220 at last")


def test_loser_hears_quit_once_the_winner_has_answered_rcpt() -> None:
    better = ScriptedHost({"CONNECT": PATIENT, "RCPT": (1.0, "250 ok"), ".": End.CLOSE})
    worse = ScriptedHost({"CONNECT": ALMOST})
    played = deliver(better, worse)
    assert "sent more than once" in played.outcome.text
    assert worse.commands == ["EHLO client.example.net", "QUIT"]
    (dropped,) = played.all(events.CandidateDropped)
    assert dropped.at == pytest.approx(11.0)
    assert dropped.phase is Phase.READY


def test_loser_is_let_go_also_when_the_winner_refuses_for_good() -> None:
    better = ScriptedHost({"CONNECT": PATIENT, "RCPT": "550 5.1.1 no"})
    worse = ScriptedHost({"CONNECT": ALMOST})
    played = deliver(better, worse)
    assert status(played.outcome) == "Bounced 5.1.1"
    assert worse.commands == ["EHLO client.example.net", "QUIT"]
    assert len(played.all(events.CandidateDropped)) == 1


def test_loser_is_taken_when_the_winner_falls_silent() -> None:
    better = ScriptedHost({"CONNECT": PATIENT, "RCPT": End.SILENT})
    worse = ScriptedHost({"CONNECT": ALMOST})
    played = deliver(better, worse)
    assert isinstance(played.outcome, Delivered)
    assert len(worse.visits) == 1
    assert played.seconds == pytest.approx(70, abs=0.1)


HELLO = "250-busy.example.com\n250 PIPELINING"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param((HELLO, 30.0, "421 4.4.2 idle"), id="421"),
        pytest.param((HELLO, 30.0, End.CLOSE), id="closed"),
        pytest.param((HELLO, 30.0, End.RESET), id="reset"),
        pytest.param((HELLO, 30.0, "250 what?", End.SILENT), id="nonsense"),
        pytest.param((HELLO, 30.0, b"4", End.SILENT), id="part of a reply"),
    ],
)
def test_loser_that_grew_tired_of_waiting_is_asked_again(end: Answer) -> None:
    better = ScriptedHost({"CONNECT": PATIENT, "RCPT": End.SILENT})
    tired = ScriptedHost({"CONNECT": [ALMOST, "220 hi"], "EHLO": [end, HELLO]})
    played = deliver(better, tired)
    assert isinstance(played.outcome, Delivered)
    assert len(tired.visits) == 2
    assert len(tired.taken) == 1


# --- the dot


@pytest.mark.parametrize(
    ("end", "seconds"),
    [
        pytest.param(End.CLOSE, 0, id="closed"),
        pytest.param(End.RESET, 0, id="reset"),
        pytest.param(End.SILENT, 600, id="silent"),
        pytest.param("666 ?", 0, id="impossible code"),
        pytest.param("354 go on", 0, id="code that fits nowhere"),
        pytest.param((b"25", End.CLOSE), 0, id="half a reply"),
    ],
)
def test_nobody_else_is_asked_when_the_dot_was_not_answered(
    end: Answer, seconds: float
) -> None:
    first, second = ScriptedHost({".": end}), ScriptedHost()
    played = deliver(first, second)
    assert status(played.outcome) == "Deferred 4.4.2"
    assert played.outcome.text.count("message may be sent more than once") == 1
    assert len(first.messages) == 1
    assert not second.visits
    assert len(played.tried[0]) == 1
    assert played.seconds == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("reply", ["250 Ok", "451 4.2.0 later", "550 5.1.1 Who?"])
def test_others_are_asked_when_the_dot_was_not_answered_the_second_time(
    reply: str,
) -> None:
    first, second = ScriptedHost({".": End.CLOSE}), ScriptedHost({"RCPT": reply})
    journal = Journal({"mx11.example.com": 1, "mx12.example.com": 1})
    played = deliver(first, second, journal=journal)
    assert len(first.messages) == 1
    assert len(second.visits) == 1
    assert journal.noted == [(0, "mx11.example.com")]
    match played.outcome:
        case Delivered():
            assert reply == "250 Ok"
        case Bounced(_, text):
            assert "Who?" in text
        case Deferred(_, text, may_have_arrived=may_have_arrived):
            assert may_have_arrived
            assert text.count("message may be sent more than once") == 1
            assert "4.2.0 later" in text


def test_doubt_that_is_not_the_first_is_told_when_the_caller_cancels() -> None:
    first, silent = (
        ScriptedHost({".": End.CLOSE}),
        ScriptedHost({"CONNECT": End.SILENT}),
    )
    settled: dict[int, Outcome] = {}
    journal = Journal({"mx11.example.com": 1, "mx12.example.com": 1})

    async def work() -> None:
        task = asyncio.create_task(
            play(first, silent, settled=settled, journal=journal)
        )
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(first, silent, work=work)
    assert journal.noted == [(0, "mx11.example.com")]
    assert [status(one) for one in settled.values()] == ["Deferred 4.4.2"]
    assert "message may be sent more than once" in settled[0].text


def test_others_are_asked_for_those_who_had_no_part_in_the_dot() -> None:
    first = ScriptedHost({"RCPT ann@example.com": "450 4.2.2 full", ".": End.CLOSE})
    second = ScriptedHost()
    played = deliver(first, second, recipients=TWO)
    assert [status(one) for one in played.outcomes] == [
        "Delivered 2.0.0",
        "Deferred 4.4.2",
    ]
    assert [one.forward_paths for one in second.taken] == [("ann@example.com",)]


def test_trouble_with_one_outcome_after_the_hosts_250_undoes_no_other() -> None:
    class Broken(dict[int, Outcome]):
        def __setitem__(self, number: int, outcome: Outcome) -> None:
            super().__setitem__(number, outcome)
            if number == 0:
                raise ZeroDivisionError

    first, second = ScriptedHost(), ScriptedHost()
    journal = Journal()
    played = deliver(first, second, recipients=TWO, settled=Broken(), journal=journal)
    assert [status(one) for one in played.outcomes] == ["Delivered 2.0.0"] * 2
    assert journal.noted == []
    assert not second.visits


def test_reply_to_the_dot_may_come_in_pieces() -> None:
    pieces = tuple(
        step for byte in b"250-a\r\n250 b\r\n" for step in (bytes([byte]), 0.1)
    )
    host = ScriptedHost({".": pieces})
    assert isinstance(deliver(host).outcome, Delivered)


@pytest.mark.parametrize(
    ("deadline", "ends", "ready", "sent"),
    [
        pytest.param(150.0, inf, 140.0, True, id="just before the deadline"),
        pytest.param(150.0, 750.0, 140.0, True, id="whose limit is where it should be"),
        pytest.param(900.0, 970.0, 290.0, True, id="by default"),
        pytest.param(900.0, 700.0, 99.0, True, id="just before the limit"),
        pytest.param(900.0, 700.0, 101.0, False, id="too close to the limit"),
        pytest.param(900.0, 500.0, 0.0, False, id="limit that no dot fits in"),
    ],
)
def test_dot_is_sent_only_while_the_mail_server_waits_for_its_reply(
    deadline: float, ends: float, ready: float, sent: bool
) -> None:
    host = ScriptedHost({"RCPT": (ready, "250 ok")})
    played = deliver(host, deadline=deadline, ends=ends)
    assert bool(host.messages) is sent
    expected = "Delivered 2.0.0" if sent else "Deferred 4.4.2"
    assert status(played.outcome) == expected


def test_reply_to_the_dot_has_its_time_beyond_the_deadline() -> None:
    host = ScriptedHost({"RCPT": (140.0, "250 ok"), ".": (590.0, "250 taken")})
    played = deliver(host, deadline=150)
    assert isinstance(played.outcome, Delivered)
    assert played.seconds == pytest.approx(730, abs=1)


def test_slow_reader_has_the_body_until_the_deadline() -> None:
    slow = ScriptedHost({"BODY": 140.0})
    played = deliver(slow, data=BIG, deadline=150)
    assert isinstance(played.outcome, Delivered)
    assert played.seconds == pytest.approx(140, abs=5)


def test_host_that_reads_no_more_of_the_body_is_left_for_another() -> None:
    deaf = ScriptedHost({"BODY": End.DEAF})
    second = ScriptedHost()
    played = deliver(deaf, second, data=BIG, options=IMPATIENT)
    assert isinstance(played.outcome, Delivered)
    assert verdicts(played) == [("silent", "transaction")]
    assert 5 < played.seconds < 15


def test_no_dot_and_no_other_host_when_the_body_took_too_long() -> None:
    deaf, second = ScriptedHost({"BODY": End.DEAF}), ScriptedHost()
    played = deliver(deaf, second, data=BIG, deadline=9)
    assert status(played.outcome) == "Deferred 4.4.2"
    assert "too little time" in played.outcome.text
    assert played.seconds == pytest.approx(9, abs=0.1)
    assert not second.visits


def test_no_dot_when_time_is_up_before_it() -> None:
    first = ScriptedHost({"RCPT": (25.0, "250 ok")})
    second = ScriptedHost({"CONNECT": (2.0, "220 hi")})
    played = deliver(first, second, deadline=60, ends=620)
    assert status(played.outcome) == "Deferred 4.4.2"
    assert not first.messages
    assert not second.messages


@pytest.mark.parametrize("asked", [0, 1])
def test_no_dot_when_the_input_is_not_known_to_be_whole(asked: int) -> None:
    answers = iter([True] * asked + [False] * 9)
    first, second = ScriptedHost(), ScriptedHost()
    played = deliver(first, second, is_complete=lambda: next(answers))
    assert status(played.outcome) == "Deferred 4.3.0"
    assert not first.messages
    assert not second.visits
    assert first.commands.count("DATA") == asked
    assert verdicts(played) == [("closed", "transaction")]


# --- TLS


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example.com").configure_cert(made)
    return made


def test_message_goes_under_tls_where_it_is_offered(context: ssl.SSLContext) -> None:
    host = ScriptedHost(context=context)
    played = deliver(host)
    assert isinstance(played.outcome, Delivered)
    [tls] = played.tls
    assert re.fullmatch(r"TLSv1\.[23]/[A-Z0-9_-]+", tls)
    assert len(host.visits) == 1
    ehlo = "EHLO client.example.net"
    assert host.commands[:4] == [
        ehlo,
        "STARTTLS",
        ehlo,
        "MAIL FROM:<alice@example.net> SIZE=25",
    ]
    assert host.commands[-1] == "QUIT"


def test_tls_is_left_alone_where_the_operator_says_so(context: ssl.SSLContext) -> None:
    host = ScriptedHost(context=context)
    played = deliver(host, options=Options(tls=TlsOptions(default=TlsLevel.NONE)))
    assert isinstance(played.outcome, Delivered)
    assert "STARTTLS" not in host.commands
    assert played.tls == [""]


def test_host_that_refuses_starttls_goes_on_in_clear_in_the_same_session() -> None:
    host = ScriptedHost({"EHLO": OFFER, "STARTTLS": "454 4.7.0 not now"})
    assert isinstance(deliver(host).outcome, Delivered)
    assert len(host.visits) == 1


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        pytest.param("421 4.7.0 no", 0, id="421"),
        pytest.param(End.CLOSE, 0, id="closed"),
        pytest.param(End.SILENT, 30, id="silent"),
        pytest.param("999 what", 0, id="nonsense"),
        pytest.param(("220 go ahead", End.CLOSE), 0, id="closed in the handshake"),
        pytest.param(("220 go ahead", End.RESET), 0, id="reset in the handshake"),
        pytest.param(
            ("220 go ahead", 1.0, b"not TLS at all\r\n", End.SILENT), 1, id="broken"
        ),
        pytest.param(
            (b"220 go ahead\r\n250 injected\r\n", End.SILENT), 0, id="injected"
        ),
    ],
)
def test_broken_tls_is_retried_in_clear_on_a_new_connection(
    answer: Answer, seconds: float
) -> None:
    host = ScriptedHost({"EHLO": OFFER, "STARTTLS": answer})
    played = deliver(host)
    assert isinstance(played.outcome, Delivered)
    assert [visit.count("STARTTLS") for visit in host.visits] == [1, 0]
    assert played.seconds == pytest.approx(seconds, abs=0.1)
    assert not verdicts(played)
    # Each phase is told once, though two connections went through it.
    phases = [event.phase for event in played.all(events.PhaseReached)]
    assert phases == [Phase.GREETING, Phase.EHLO, Phase.TLS, Phase.READY]


def test_answer_of_a_transaction_that_takes_its_time_is_told_when_it_comes() -> None:
    host = ScriptedHost(
        {"MAIL": (3.0, "250 ok"), "RCPT": (4.0, "250 ok"), "DATA": (5.0, "354 go")}
    )
    played = deliver(host)
    told = [event.at for event in played.all(events.Progressed)]
    # MAIL and RCPT leave together, and are answered in turn. The dot leaves at once.
    assert told == pytest.approx([3, 7, 12], abs=0.1)
    assert {event.candidate.host for event in played.all(events.Progressed)} == {
        host.candidate().host
    }


def test_silence_after_client_hello_is_met_with_small_segments_before_clear() -> None:
    host = ScriptedHost({"EHLO": OFFER, "STARTTLS": ("220 go ahead", End.SILENT)})
    played = deliver(host)
    assert isinstance(played.outcome, Delivered)
    assert [visit.count("STARTTLS") for visit in host.visits] == [1, 1, 0]
    assert played.seconds == pytest.approx(40, abs=0.5)


def test_helo_is_said_under_tls_too(context: ssl.SSLContext) -> None:
    host = ScriptedHost({"EHLO": [OFFER, "450 no"]}, context=context)
    assert isinstance(deliver(host).outcome, Delivered)
    assert len(host.visits) == 1


@pytest.mark.parametrize("helo", ["550 no", End.CLOSE])
def test_helo_refused_under_tls_is_retried_in_clear(
    helo: Answer, context: ssl.SSLContext
) -> None:
    script: Script = {"EHLO": [OFFER, "550 no", OFFER], "HELO": helo}
    host = ScriptedHost(script, context=context)
    assert isinstance(deliver(host).outcome, Delivered)
    assert len(host.visits) == 2


# From hosts of the field: what they say to who comes in clear.
WANTS_TLS = {
    "530": "530 5.7.0 Must issue a STARTTLS command first",
    "530 bare": "530 Authentication required",
    "538": "538 Encryption required",
    "x.7.10": "523 5.7.10 Encryption Needed",
    "x.7.11": "454 4.7.11 not so",
    "550": "550 5.7.1 must issue a STARTTLS command first",
    "554": "554 5.7.1 <mx.example.net[192.0.2.1]>: Client host rejected: TLS required",
    "451": "451 4.7.0 Session encryption is required",
    "421": "421 4.7.29 wasn't sent over a TLS connection.",
}
EVERY_COMMAND = pytest.mark.parametrize("asked", ["MAIL", "RCPT", "DATA", "."])


@EVERY_COMMAND
@pytest.mark.parametrize("said", WANTS_TLS.values(), ids=WANTS_TLS)
def test_host_that_wants_tls_after_one_lost_handshake_gets_it(
    context: ssl.SSLContext, asked: str, said: str
) -> None:
    script: Script = {"STARTTLS": [End.CLOSE, "220 go"], asked: [said, GOOD[asked]]}
    host = ScriptedHost(script, context=context)
    played = deliver(host)
    assert isinstance(played.outcome, Delivered), played.outcome
    assert [visit.count("STARTTLS") for visit in host.visits] == [1, 0, 1]
    (wanted,) = played.all(events.TlsWanted)
    assert wanted.text == said


GOOD = {"MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go", ".": "250 ok"}


@EVERY_COMMAND
@pytest.mark.parametrize("said", WANTS_TLS.values(), ids=WANTS_TLS)
def test_host_that_wants_tls_and_breaks_it_defers_and_never_bounces(
    asked: str, said: str
) -> None:
    host = ScriptedHost({"EHLO": OFFER, "STARTTLS": End.CLOSE, asked: said})
    backup = ScriptedHost()
    played = deliver(host)
    assert isinstance(played.outcome, Deferred), played.outcome
    if not said.startswith("421"):
        assert str(played.outcome.status) == "4.7.5"
        assert f"in clear it said {said}" in played.outcome.text
    assert len(host.visits) == 3
    assert isinstance(deliver(host, backup).outcome, Delivered)


@pytest.mark.parametrize(
    "starttls", ["454 4.7.0 not now", "501 no"], ids=["454", "501"]
)
def test_host_that_puts_starttls_off_and_wants_it_is_asked_for_it_once_more(
    context: ssl.SSLContext, starttls: str
) -> None:
    said = WANTS_TLS["550"]
    host = ScriptedHost(
        {"STARTTLS": [starttls, "220 go"], "MAIL": [said, "250 ok"]}, context=context
    )
    assert isinstance(deliver(host).outcome, Delivered)
    assert [visit.count("STARTTLS") for visit in host.visits] == [1, 1]
    host = ScriptedHost({"EHLO": OFFER, "STARTTLS": starttls, "MAIL": said})
    assert isinstance(deliver(host).outcome, Deferred)
    assert [visit.count("STARTTLS") for visit in host.visits] == [1, 1]


@pytest.mark.parametrize("said", WANTS_TLS.values(), ids=WANTS_TLS)
@pytest.mark.parametrize(
    "script",
    [
        {"EHLO": "250-mx.example.com\n250 XXXXXXXA"},
        {"CONNECT": "220 " + "*" * 40, "EHLO": "250 mx.example.com"},
    ],
    ids=["keyword", "banner"],
)
def test_refusal_in_clear_behind_a_firewall_that_masks_starttls_never_bounces(
    script: Script, said: str
) -> None:
    host = ScriptedHost({**script, "MAIL": said})
    assert isinstance(deliver(host).outcome, Deferred)


def test_refusal_of_clear_text_stands_where_the_operator_wants_no_tls() -> None:
    host = ScriptedHost({"EHLO": OFFER, "MAIL": WANTS_TLS["550"]})
    played = deliver(host, options=Options(tls=TlsOptions(default=TlsLevel.NONE)))
    assert status(played.outcome) == "Bounced 5.7.1"
    assert len(host.visits) == 1


def test_refusal_that_names_tls_stands_when_it_was_said_under_tls(
    context: ssl.SSLContext,
) -> None:
    said = "550 5.7.1 TLS client certificate required"
    host = ScriptedHost({"MAIL": said}, context=context)
    assert status(deliver(host).outcome) == "Bounced 5.7.1"
    # Also when one handshake is lost before.
    host = ScriptedHost(
        {"STARTTLS": [End.CLOSE, "220 go"], "MAIL": said}, context=context
    )
    assert status(deliver(host).outcome) == "Bounced 5.7.1"
    assert len(host.visits) == 3


@pytest.mark.parametrize(
    "said",
    [
        "550 5.1.1 unknown user",
        "550 5.7.1 spam, see https://tls.example.net/SSL",
        "554 5.7.1 <tls@example.com>: Relay access denied",
        "550 5.7.1 encrypted attachments are not taken",
    ],
)
def test_other_refusals_in_clear_stand(context: ssl.SSLContext, said: str) -> None:
    host = ScriptedHost({"STARTTLS": End.CLOSE, "RCPT": said}, context=context)
    assert isinstance(deliver(host).outcome, Bounced)
    assert len(host.visits) == 2


def test_only_those_refused_for_want_of_tls_are_offered_again(
    context: ssl.SSLContext,
) -> None:
    host = ScriptedHost(
        {
            "STARTTLS": [End.CLOSE, "220 go"],
            "RCPT a@example.com": "550 5.1.1 unknown",
            "RCPT b@example.com": ["550 5.7.1 only with TLS", "250 ok"],
        },
        context=context,
    )
    recipients = [f"{one}@example.com" for one in "abc"]
    played = deliver(host, recipients=recipients)
    expected = ["Bounced 5.1.1", "Delivered 2.0.0", "Delivered 2.0.0"]
    assert list(map(status, played.outcomes)) == expected
    assert [one.forward_paths for one in host.taken] == [
        ("c@example.com",),
        ("b@example.com",),
    ]


def test_want_of_tls_beside_a_dot_in_doubt_neither_bounces_nor_sends_again(
    context: ssl.SSLContext,
) -> None:
    host = ScriptedHost(
        {
            "STARTTLS": [End.CLOSE, "220 go"],
            "RCPT a@example.com": "550 5.7.1 only with TLS",
            ".": End.CLOSE,
        },
        extensions=(*EXTENSIONS, "LIMITS RCPTMAX=1"),
        context=context,
    )
    played = deliver(host, recipients=["a@example.com", "b@example.com"])
    assert all(isinstance(one, Deferred) for one in played.outcomes), played.outcomes
    assert "only with TLS" in played.outcomes[0].text
    assert "may be sent more than once" in played.outcomes[1].text
    assert len(host.messages) == 1


def test_handshake_lost_with_small_segments_too_is_met_with_them_under_tls(
    context: ssl.SSLContext,
) -> None:
    silent = ("220 go ahead", End.SILENT)
    host = ScriptedHost(
        {"STARTTLS": [silent, silent, "220 go"], "MAIL": [WANTS_TLS["530"], "250 ok"]},
        context=context,
    )
    played = deliver(host)
    assert isinstance(played.outcome, Delivered)
    assert [visit.count("STARTTLS") for visit in host.visits] == [1, 1, 0, 1]
    # That small segments did not help says nothing for them.
    assert [one.small_segments for one in played.all(events.WorkedAround)] == [False]


def test_second_connection_that_fails_after_broken_tls_is_a_failure_of_tls() -> None:
    host = ScriptedHost(
        {"EHLO": OFFER, "STARTTLS": End.CLOSE, "CONNECT": ["220 hi", End.CLOSE]}
    )
    played = deliver(host)
    assert verdicts(played) == [("tls_failed", "tls")]
    assert "then in clear: closed" in played.outcome.text


# --- what a host says out of turn


def test_stray_reply_is_told_and_changes_nothing() -> None:
    host = ScriptedHost({"DATA": ("354 go", "250 hm"), "CONNECT": ("220 a", "220 b")})
    played = deliver(host)
    assert status(played.outcome) == "Delivered 2.0.0"
    assert len(host.taken) == 1
    told = [(one.candidate.host, one.text) for one in played.all(events.StrayReply)]
    assert told == [("mx11.example.com", "220 b"), ("mx11.example.com", "250 hm")]


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_host_that_leaves_before_the_dot_is_followed_by_the_next(end: End) -> None:
    slow = Journal(seconds=0.5)  # in which the host goes
    gone, good = ScriptedHost({"BODY": end}), ScriptedHost()
    played = deliver(gone, good, journal=slow)
    assert status(played.outcome) == "Delivered 2.0.0"
    assert len(good.taken) == 1
    alone = deliver(ScriptedHost({"BODY": end}), journal=slow)
    assert status(alone.outcome) == "Deferred 4.4.2"
    assert "more than once" not in alone.outcome.text


def test_250_before_the_dot_does_not_lose_a_message_that_is_refused_there() -> None:
    slow = Journal(seconds=0.5)  # in which the host speaks
    hasty = ScriptedHost({"BODY": "250 2.1.5 ok", ".": "554 5.6.0 refused"})
    played = deliver(hasty, ScriptedHost(), journal=slow)
    assert status(played.outcome) == "Bounced 5.6.0"


# --- our own trouble


def test_no_descriptor_left_is_our_trouble_and_no_host_is_blamed() -> None:
    host, other = ScriptedHost(), ScriptedHost()

    async def work() -> Played:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        fillers: list[int] = []
        try:
            while True:
                fillers.append(os.dup(0))
        except OSError:
            return await play(host, other)
        finally:
            for filler in fillers:
                os.close(filler)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    played = run(host, other, work=work)
    assert status(played.outcome) == "Deferred 4.3.0"
    assert "Too many open files" in played.outcome.text
    failed = played.all(events.CandidateFailed)
    assert {event.finding.scope for event in failed} == {Scope.SITE}
    assert not host.visits


def test_spool_that_cannot_be_read_defers_and_asks_nobody_else() -> None:
    host, other = ScriptedHost(), ScriptedHost()
    played = deliver(
        host,
        other,
        data=BIG,
        spoil=lambda message: os.truncate(message._file._descriptor, 10),
    )
    assert status(played.outcome) == "Deferred 4.3.0"
    assert not host.messages
    assert not other.visits
    assert not played.all(events.Trouble)


def test_our_own_bug_in_a_transaction_is_told_and_another_host_is_asked() -> None:
    divisors = iter([0, 1, 1])
    first, second = ScriptedHost(), ScriptedHost()
    played = deliver(first, second, is_complete=lambda: 1 // next(divisors) == 1)
    assert isinstance(played.outcome, Delivered)
    assert "ZeroDivisionError" in played.all(events.Trouble)[0].text
    assert not first.messages
    assert len(first.visits) == 1


class Bug(Exception):
    """One of ours."""


def test_delivered_stays_delivered_when_the_second_transaction_meets_a_bug() -> None:
    calls = iter([True, True])
    host = ScriptedHost({"RCPT bob@example.com": "452 4.5.3 too many"})
    played = deliver(host, recipients=TWO, is_complete=lambda: next(calls))
    assert status(played.outcomes[0]) == "Delivered 2.0.0"
    assert isinstance(played.outcomes[1], Deferred)


def test_delivered_stays_delivered_when_what_follows_meets_a_bug() -> None:
    host = ScriptedHost(
        {"RCPT bob@example.com": ["452 4.5.3 too many", End.CLOSE]},
    )
    settled: dict[int, Outcome] = {}

    async def work() -> None:
        with pytest.raises(ExceptionGroup):
            await play(host, recipients=TWO, observe=burst, settled=settled)

    def burst(event: events.Event) -> None:
        # Told when ann has been taken, and bob is lost with the connection.
        if isinstance(event, events.CandidateFailed):
            raise Bug

    run(host, work=work)
    assert {index: status(one) for index, one in settled.items()} == {
        0: "Delivered 2.0.0"
    }


def test_bug_in_a_timer_ends_the_attempt_and_reaches_the_caller() -> None:
    first, second = ScriptedHost(is_filtered=True), ScriptedHost()

    async def work() -> None:
        with pytest.raises(ExceptionGroup):
            await play(first, second, observe=burst)

    def burst(event: events.Event) -> None:
        if isinstance(event, events.CandidateStarted) and event.at > 1:
            raise Bug

    run(first, second, work=work)
    assert not second.visits


# --- cancelled by whoever called


@pytest.mark.parametrize(
    "script",
    [
        {"CONNECT": End.SILENT},
        {"EHLO": End.SILENT},
        {"EHLO": OFFER, "STARTTLS": End.SILENT},
        {"EHLO": OFFER, "STARTTLS": ("220 go", End.SILENT)},
        {"MAIL": End.SILENT},
        {"RCPT": End.SILENT},
        {"DATA": End.SILENT},
        {"BODY": End.DEAF},
        {".": End.SILENT},
    ],
    ids=str,
)
@pytest.mark.parametrize("moment", [0.0, 0.1, 5.0])
def test_nothing_is_left_behind_when_the_caller_cancels(
    script: Script, moment: float
) -> None:
    hosts = [
        ScriptedHost(script),
        ScriptedHost({"CONNECT": End.SILENT}),
        ScriptedHost(is_filtered=True),
    ]
    settled: dict[int, Outcome] = {}
    data = BIG if "BODY" in script else MESSAGE

    async def work() -> None:
        task = asyncio.create_task(
            play(*hosts, data=data, settled=settled, preferences=[10, 10, 10])
        )
        await asyncio.sleep(moment)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(*hosts, work=work)
    in_doubt = "." in script and moment > 0
    assert [status(one) for one in settled.values()] == ["Deferred 4.4.2"] * in_doubt
    assert bool(hosts[0].messages) is in_doubt


def test_loser_hears_quit_when_the_caller_cancels() -> None:
    better = ScriptedHost({"CONNECT": PATIENT, "RCPT": End.SILENT})
    worse = ScriptedHost({"CONNECT": ALMOST})

    async def work() -> None:
        task = asyncio.create_task(play(better, worse))
        await asyncio.sleep(20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(better, worse, work=work)
    assert worse.commands == ["EHLO client.example.net", "QUIT"]


@pytest.mark.parametrize(
    ("script", "kind", "bug"),
    [
        pytest.param({"CONNECT": End.CLOSE}, events.CandidateFailed, None, id="reach"),
        pytest.param({}, events.CandidateTaken, None, id="take"),
        pytest.param({"MAIL": End.CLOSE}, events.CandidateFailed, None, id="offer"),
        pytest.param({"CONNECT": End.SILENT}, events.CandidateStarted, Bug, id="timer"),
    ],
)
def test_nobody_is_started_or_asked_after_the_caller_has_cancelled(
    script: Script, kind: type, bug: type[Exception] | None
) -> None:
    # Cancelled in the middle of something, which is then carried to its end.
    hosts = [ScriptedHost(script), ScriptedHost(), ScriptedHost()]
    troubles: list[object] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, facts: troubles.append(facts["exception"]))
        task = asyncio.create_task(play(*hosts, observe=lambda event: cancel(event)))

        def cancel(event: events.Event) -> None:
            if isinstance(event, kind) and (bug is None or event.at):
                task.cancel()
                if bug is not None:
                    raise bug

        with pytest.raises(asyncio.CancelledError):
            await task

    run(*hosts, work=work)
    assert [len(host.commands) for host in hosts[1:]] == [0, 0]
    assert [type(trouble) for trouble in troubles] == ([bug] if bug else [])


def test_no_dot_and_nobody_else_when_cancelled_over_our_own_trouble() -> None:
    host = ScriptedHost()

    async def work() -> None:
        task = asyncio.create_task(
            play(host, is_complete=lambda: False, observe=lambda event: cancel(event))
        )

        def cancel(event: events.Event) -> None:
            if isinstance(event, events.CandidateFailed):
                task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task

    run(host, work=work)
    assert not host.messages


@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.EHLO, Phase.READY])
def test_attempt_ends_at_its_deadline_also_when_the_process_was_held_up(
    phase: Phase,
) -> None:
    def hold_up(event: events.Event) -> None:
        if isinstance(event, events.PhaseReached) and event.phase is phase:
            let_pass(1000)

    host = ScriptedHost()
    played = deliver(host, observe=hold_up)
    assert isinstance(played.outcome, Deferred)
    assert "out of time" in played.outcome.text
    assert not [line for line in host.commands if line.startswith("MAIL")]


def test_what_a_host_took_is_settled_when_the_caller_cancels_later() -> None:
    host = ScriptedHost({"RCPT bob@example.com": ["452 4.5.3 too many", End.SILENT]})
    settled: dict[int, Outcome] = {}

    async def work() -> None:
        task = asyncio.create_task(play(host, recipients=TWO, settled=settled))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(host, work=work)
    assert {index: status(one) for index, one in settled.items()} == {
        0: "Delivered 2.0.0"
    }
