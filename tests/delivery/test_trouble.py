from __future__ import annotations

from typing import NamedTuple

import pytest

from mxpolicy.delivery import trouble
from mxpolicy.delivery.trouble import Judgement, Misfit, NextStep
from mxpolicy.options import GreetingPolicy
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.protocol.extensions import Extensions
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.candidate import Finding, Phase, Scope, Verdict
from tests.delivery.judging import RELAY, reply, said


def failed(
    verdict: Verdict,
    phase: Phase,
    text: str = "",
    policy: GreetingPolicy = GreetingPolicy.NEXT,
) -> Judgement:
    answer = reply(text) if text else None
    return trouble.judge_finding(Finding(verdict, phase, 1.0), RELAY, answer, policy)


# --- Postfix's table, row by row


class Row(NamedTuple):
    """What Postfix's smtp(8) does, what we do, and why where that differs."""

    judgement: Judgement
    next_host: bool
    status: str
    difference: str = ""


POSTFIX = {
    "connect_refused": Row(failed(Verdict.REFUSED, Phase.CONNECT), True, "4.4.1"),
    "connect_times_out": Row(failed(Verdict.FILTERED, Phase.CONNECT), True, "4.4.1"),
    "connect_unreachable": Row(failed(Verdict.NO_ROUTE, Phase.CONNECT), True, "4.4.1"),
    "connect_prohibited": Row(failed(Verdict.PROHIBITED, Phase.CONNECT), True, "4.4.1"),
    "no_banner": Row(failed(Verdict.SILENT, Phase.GREETING), True, "4.4.2"),
    "closes_at_once": Row(failed(Verdict.CLOSED, Phase.GREETING), True, "4.4.2"),
    "greeting_4xx": Row(
        failed(Verdict.GREETING_4XX, Phase.GREETING, "421 4.3.2 busy"), True, "4.3.2"
    ),
    "greeting_5xx": Row(
        failed(Verdict.GREETING_5XX, Phase.GREETING, "554 5.7.1 no"), True, "4.7.1"
    ),
    "helo_4xx": Row(
        failed(Verdict.EHLO_REFUSED, Phase.EHLO, "450 4.7.1 later"), True, "4.7.1"
    ),
    "helo_5xx": Row(
        failed(Verdict.EHLO_REFUSED, Phase.EHLO, "550 5.7.1 no"),
        True,
        "4.7.1",
        "Postfix bounces: but it is our name that is refused, not the mail",
    ),
    "starttls_not_offered": Row(
        failed(Verdict.STARTTLS_MISSING, Phase.TLS), True, "4.7.4"
    ),
    "starttls_4xx": Row(
        failed(Verdict.STARTTLS_REFUSED, Phase.TLS, "454 4.7.0 no"), True, "4.7.0"
    ),
    "starttls_5xx": Row(
        failed(Verdict.STARTTLS_REFUSED, Phase.TLS, "554 no"),
        True,
        "4.0.0",
        "Postfix bounces: but it may be a firewall that strips TLS",
    ),
    "handshake_fails": Row(failed(Verdict.TLS_FAILED, Phase.TLS), True, "4.7.5"),
    "certificate_mismatch": Row(
        failed(Verdict.CERTIFICATE_REJECTED, Phase.TLS), True, "4.7.5"
    ),
    "message_over_size": Row(
        trouble.judge_misfit(Misfit.TOO_LARGE, RELAY),
        True,
        "5.3.4",
        "Postfix bounces at the first host: but the next may have a higher limit",
    ),
    "smtputf8_not_offered": Row(
        trouble.judge_misfit(Misfit.NO_SMTPUTF8, RELAY), True, "5.6.7"
    ),
    "mail_4xx": Row(said(Verb.MAIL, "450 4.7.1 greylisted"), True, "4.7.1"),
    "rcpt_4xx": Row(said(Verb.RCPT, "450 4.2.1 busy"), True, "4.2.1"),
    "data_4xx": Row(said(Verb.DATA, "451 4.3.0 later"), True, "4.3.0"),
    "dot_4xx": Row(said(Verb.DOT, "451 4.3.0 later"), True, "4.3.0"),
    "mail_5xx": Row(said(Verb.MAIL, "550 5.7.1 no"), False, "5.7.1"),
    "rcpt_5xx": Row(said(Verb.RCPT, "550 5.1.1 no such user"), False, "5.1.1"),
    "data_5xx": Row(said(Verb.DATA, "554 5.7.1 no"), False, "5.7.1"),
    "dot_5xx": Row(said(Verb.DOT, "554 5.6.0 spam"), False, "5.6.0"),
    "lost_in_mail": Row(failed(Verdict.CLOSED, Phase.TRANSACTION), True, "4.4.2"),
    "silent_in_rcpt": Row(failed(Verdict.SILENT, Phase.TRANSACTION), True, "4.4.2"),
    "stalled_in_body": Row(failed(Verdict.STALLED, Phase.TRANSACTION), True, "4.4.2"),
    "lost_in_body_after_5xx": Row(said(Verb.DATA, "552 5.3.4 big"), False, "5.3.4"),
    "354_to_rcpt": Row(
        said(Verb.RCPT, "354 go ahead"),
        True,
        "4.0.0",
        "Postfix bounces 5.5.0: but nonsense is no refusal",
    ),
    "garbage": Row(
        failed(Verdict.NOT_SMTP, Phase.GREETING),
        True,
        "4.5.0",
        "Postfix bounces 5.5.0: but it may be a firewall that speaks",
    ),
}


@pytest.mark.parametrize("row", [pytest.param(r, id=i) for i, r in POSTFIX.items()])
def test_what_postfix_does(row: Row) -> None:
    assert (row.judgement.next_step is NextStep.NEXT_HOST) == row.next_host
    assert str(row.judgement.outcome.status) == row.status
    assert isinstance(row.judgement.outcome, Bounced) == row.status.startswith("5")


def test_no_answer_to_the_dot_is_said_to_be_ambiguous() -> None:
    # Postfix asks the next host, and makes a duplicate; this is final.
    lost = Finding(Verdict.CLOSED, Phase.DOT, 12.3, text="Connection reset by peer")
    outcome = trouble.in_doubt(lost, RELAY)
    assert isinstance(outcome, Deferred)
    assert str(outcome.status) == "4.4.2"
    assert outcome.relay == RELAY
    assert "message may be sent more than once: Connection reset" in outcome.text


# --- failures


def test_a_5xx_greeting_bounces_where_the_operator_says_so() -> None:
    how = Verdict.GREETING_5XX, Phase.GREETING, "554 5.7.1 go away"
    assert isinstance(failed(*how).outcome, Deferred)
    final = failed(*how, GreetingPolicy.BOUNCE)
    assert isinstance(final.outcome, Bounced)
    assert str(final.outcome.status) == "5.7.1"
    # An HTTP server, say: there was no reply that could be final.
    assert isinstance(failed(*how[:2], policy=GreetingPolicy.BOUNCE).outcome, Deferred)


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("text", ["", "550 5.1.1 no", "450 4.1.1 no"])
def test_no_failure_bounces(verdict: Verdict, phase: Phase, text: str) -> None:
    judgement = failed(verdict, phase, text)
    assert isinstance(judgement.outcome, Deferred)
    assert judgement.outcome.status.class_ == 4
    assert judgement.outcome.text.startswith(RELAY)


def test_our_own_trouble_is_4_3_0_and_blames_nobody() -> None:
    finding = Finding(
        Verdict.CLOSED, Phase.CONNECT, 0.0, Scope.SITE, text="Too many open files"
    )
    judgement = trouble.judge_finding(finding, RELAY)
    assert judgement.scope is Scope.SITE
    assert str(judgement.outcome.status) == "4.3.0"
    assert judgement.outcome.text == "local trouble: Too many open files"


def test_our_own_deadline_is_4_4_2() -> None:
    finding = Finding(Verdict.SILENT, Phase.TRANSACTION, 9.0, Scope.SITE, text="late")
    assert str(trouble.judge_finding(finding, RELAY).outcome.status) == "4.4.2"


def test_a_loop_is_4_4_6() -> None:
    outcome = failed(Verdict.LOOPS_TO_MYSELF, Phase.EHLO, "250 us.example").outcome
    assert str(outcome.status) == "4.4.6"


@pytest.mark.parametrize(
    ("offers", "size", "utf8", "why"),
    [
        pytest.param({}, 10**9, False, None, id="nothing_said"),
        pytest.param({"SIZE": ()}, 10**9, False, None, id="no_limit_said"),
        pytest.param({"SIZE": ("0",)}, 10**9, False, None, id="zero_is_no_limit"),
        pytest.param({"SIZE": ("1000",)}, 1000, False, None, id="just_fits"),
        pytest.param({"SIZE": ("1000",)}, 1001, False, Misfit.TOO_LARGE, id="over"),
        pytest.param({}, 1, True, Misfit.NO_SMTPUTF8, id="no_smtputf8"),
        pytest.param({"SMTPUTF8": ()}, 1, True, None, id="smtputf8"),
    ],
)
def test_what_an_ehlo_reply_rules_out(
    offers: dict[str, tuple[str, ...]], size: int, utf8: bool, why: Misfit | None
) -> None:
    found = trouble.misfit(Extensions(offers), size=size, needs_smtputf8=utf8)
    assert found is why


# --- the rest


def test_delivered_keeps_the_hosts_words() -> None:
    outcome = trouble.delivered(reply("250 2.6.0 queued as 12345"), RELAY)
    assert outcome.status == EnhancedStatus(2, 6, 0)
    assert outcome.text == "250 2.6.0 queued as 12345"
    assert trouble.delivered(reply("250 ok"), RELAY).status == EnhancedStatus(2, 0, 0)


def test_bounce_names_who_may_have_the_message() -> None:
    refusal = Bounced(EnhancedStatus(5, 1, 1), "550 5.1.1 Who?", None, RELAY)
    assert trouble.with_doubts(refusal, {}) == refusal
    assert trouble.with_doubts(refusal, {"mx1.example": 2}).text == (
        "550 5.1.1 Who?; but may have been delivered by mx1.example"
    )
    long = trouble.with_doubts(
        refusal._replace(text="550 " + "x" * 2000),
        [f"mx{number}.{'y' * 200}.example" for number in range(5)],
    )
    assert len(long.text) <= trouble.MAX_OUTCOME_TEXT
    assert long.text.endswith(".example and 3 more")
    assert "...; but may have been delivered by mx0.yyy" in long.text
