from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.delivery import refusals
from mxpolicy.delivery.trouble import NextStep
from mxpolicy.outcome import Bounced
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import Reply
from mxpolicy.routing.candidate import Phase, Scope, Verdict
from tests.delivery.judging import RELAY, reply, said

BEFORE_THE_MAIL_DATA = (Verb.MAIL, Verb.RCPT, Verb.DATA)
IN_TRANSACTION = (*BEFORE_THE_MAIL_DATA, Verb.DOT)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        pytest.param("550 5.1.1 unknown", "5.1.1", id="its_own"),
        pytest.param("550 unknown user", "5.0.0", id="none_is_invented"),
        pytest.param("550 4.2.2 full", "5.0.0", id="class_contradicts"),
        pytest.param("450 5.7.1 later", "4.0.0", id="class_contradicts_4yz"),
        pytest.param("599 odd", "5.0.0", id="unknown_code_by_first_digit"),
        pytest.param("499 odd", "4.0.0", id="unknown_4yz"),
    ],
)
def test_the_status_of_a_refusal(text: str, status: str) -> None:
    assert str(said(Verb.RCPT, text).outcome.status) == status


@pytest.mark.parametrize("verb", BEFORE_THE_MAIL_DATA)
@pytest.mark.parametrize("code", [500, 501, 502, 503, 504, 530, 538])
def test_codes_about_the_session_are_a_last_resort(verb: Verb, code: int) -> None:
    judgement = said(verb, f"{code} 5.5.1 something")
    assert judgement.scope is Scope.HOST
    assert judgement.next_step is NextStep.LAST_RESORT
    assert isinstance(judgement.outcome, Bounced)
    assert str(judgement.outcome.status) == "5.5.1"


@pytest.mark.parametrize("verb", BEFORE_THE_MAIL_DATA)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("550 5.7.1 <us.example>: Helo command rejected", id="postfix"),
        pytest.param(
            "550 5.7.1 <us.example>: Helo command rejected: Host not found",
            id="postfix_unknown",
        ),
        pytest.param(
            "554 5.7.1 Service unavailable; Helo command [us.example] blocked using x",
            id="postfix_rhsbl",
        ),
        pytest.param(
            "550 Access denied - Invalid HELO name (See RFC2821)", id="cpanel"
        ),
        pytest.param(
            "550 Please use your real hostname when saying HELO (not US)", id="exim"
        ),
        pytest.param("550 5.7.1 a@b.example... Access denied - bogus HELO [1]", id="1"),
        pytest.param("550 5.7.1 (helo/hostname mismatch)", id="policyd_weight"),
        pytest.param("554 5.7.1 bad HELO/EHLO", id="both"),
        pytest.param("554 5.7.1 bad EHLO/HELO", id="both_turned"),
        pytest.param("550-first line|550 EHLO argument is bad", id="second_line"),
        pytest.param("550 5.7.10 Encryption needed", id="came_in_clear"),
        pytest.param("554 5.7.11 Encryption needed for AUTH", id="auth_in_clear"),
    ],
)
def test_a_refusal_of_how_we_came_is_a_last_resort(verb: Verb, text: str) -> None:
    judgement = said(verb, text)
    assert judgement.scope is Scope.HOST
    assert judgement.next_step is NextStep.LAST_RESORT


# As helo and in the reverse-path: example.net, and mail.example.net[192.0.2.7].
@pytest.mark.parametrize("verb", IN_TRANSACTION)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("550 5.1.1 <helo@them.example>: unknown", id="mailbox"),
        pytest.param("550 <helo@them.example>: unknown", id="mailbox_without_status"),
        pytest.param("550 no host helo.them.example", id="host"),
        pytest.param("550 othello is dead", id="part_of_a_word"),
        pytest.param("501 5.1.3 Bad recipient address syntax", id="501_of_an_address"),
        pytest.param("501 5.1.7 Bad sender address syntax", id="501_of_the_sender"),
        pytest.param(
            "550-5.7.26 Unauthenticated email from example.net is not accepted due to"
            "|550 5.7.26 domain's DMARC policy.",
            id="gmail_dmarc",
        ),
        pytest.param(
            "550 5.7.509 Access denied, sending domain EXAMPLE.NET does not pass DMARC",
            id="outlook_dmarc",
        ),
        pytest.param(
            "550 5.7.1 Email rejected per DMARC policy for example.net", id="d"
        ),
        pytest.param(
            "550 5.1.0 192.0.2.7 is not allowed to send from <example.net> per its SPF",
            id="spf",
        ),
        pytest.param(
            "550 5.7.23 Message rejected due to: SPF fail - not authorized. Please see"
            " http://www.openspf.net/Why?s=helo;id=example.net;ip=192.0.2.7",
            id="policyd_spf",
        ),
        pytest.param(
            "550 5.7.1 SPF fail: identity=mailfrom; helo=mail.example.net;",
            id="spf_facts",
        ),
        pytest.param("554 5.7.1 spam: HELO_DYNAMIC_IPADDR=2,FROM=1", id="spam_tests"),
        pytest.param(
            "550 JunkMail rejected - mail.example.net [192.0.2.7]:4711 is in an RBL",
            id="exim_rbl",
        ),
        pytest.param(
            "550-(mail.example.net) [192.0.2.7]:4711 is currently not permitted to"
            "|550 relay through this server.",
            id="cpanel_relay",
        ),
        pytest.param("550 5.7.1 who is mail.example.net?", id="our_name_alone"),
        pytest.param("550 5.7.1 see https://x.example/help/helo", id="url"),
    ],
)
def test_a_refusal_of_the_mail_that_only_sounds_so_bounces(
    verb: Verb, text: str
) -> None:
    assert isinstance(said(verb, text).outcome, Bounced)


@pytest.mark.parametrize(
    "text",
    [
        "554 5.7.1 <example.net>: Helo command rejected",
        "503 5.5.1 bad sequence of commands",
        "500 5.5.2 Line too long",
        "530 5.7.0 Must issue a STARTTLS command first",
        "554 5.7.10 Encryption needed",
    ],
)
def test_a_refusal_at_the_dot_is_about_the_mail_whatever_it_says(text: str) -> None:
    assert isinstance(said(Verb.DOT, text).outcome, Bounced)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        pytest.param("452 4.5.3 Too many recipients", NextStep.AGAIN_HERE, id="452"),
        pytest.param("552 5.5.3 Too many recipients", NextStep.AGAIN_HERE, id="552"),
        pytest.param("450 4.5.3 Error: too many", NextStep.AGAIN_HERE, id="450"),
        pytest.param("452 no more", NextStep.AGAIN_HERE, id="452_bare"),
        pytest.param("552 no more", NextStep.AGAIN_HERE, id="552_bare"),
        pytest.param(
            "452 4.3.0 Too many recipients", NextStep.AGAIN_HERE, id="by_words"
        ),
        pytest.param("452 4.3.1 disk full", NextStep.NEXT_HOST, id="452_disk"),
        pytest.param("452 4.2.2 over quota", NextStep.NEXT_HOST, id="452_mailbox"),
        pytest.param("552 5.2.2 over quota", NextStep.SETTLE, id="552_mailbox"),
        pytest.param("421 4.5.3 too many", NextStep.NEXT_HOST, id="421_closes"),
        pytest.param("550 too many errors", NextStep.SETTLE, id="550"),
        pytest.param("552 5.2.2 too many messages", NextStep.SETTLE, id="mailbox_full"),
        pytest.param("452 4.2.2 too many messages", NextStep.NEXT_HOST, id="452_full"),
    ],
)
def test_too_many_recipients_is_asked_again_here(text: str, action: NextStep) -> None:
    assert said(Verb.RCPT, text).next_step is action
    again = action is NextStep.AGAIN_HERE
    assert refusals.is_too_many_recipients(Verb.RCPT, reply(text)) is again
    assert isinstance(said(Verb.RCPT, text).outcome, Bounced) == (
        action is NextStep.SETTLE
    )


@pytest.mark.parametrize(
    ("text", "bounces"),
    [
        pytest.param("552 5.5.3 Too many recipients", False, id="says_so_all_the_same"),
        pytest.param("552 too many recipients", False, id="says_so_in_words"),
        pytest.param("552 mailbox full", True, id="storage_exceeded"),
        pytest.param("452 mailbox full", False, id="452"),
    ],
)
def test_one_recipient_alone_is_not_too_many(text: str, bounces: bool) -> None:
    outcome = said(Verb.RCPT, text, sole_recipient=True).outcome
    assert isinstance(outcome, Bounced) == bounces


@pytest.mark.parametrize("verb", [Verb.MAIL, Verb.DATA, Verb.DOT])
def test_552_to_the_message_is_no_matter_of_recipients(verb: Verb) -> None:
    assert isinstance(said(verb, "552 too large").outcome, Bounced)


@pytest.mark.parametrize("verb", IN_TRANSACTION)
def test_421_is_about_the_host(verb: Verb) -> None:
    judgement = said(verb, "421 4.7.0 closing")
    assert (judgement.scope, judgement.next_step) == (Scope.HOST, NextStep.NEXT_HOST)


@pytest.mark.parametrize(
    ("verb", "scope"),
    [
        (Verb.MAIL, Scope.MESSAGE),
        (Verb.RCPT, Scope.RECIPIENT),
        (Verb.DATA, Scope.MESSAGE),
        (Verb.DOT, Scope.MESSAGE),
    ],
)
@pytest.mark.parametrize("text", ["450 no", "550 no"])
def test_whom_a_refusal_is_about(verb: Verb, scope: Scope, text: str) -> None:
    assert said(verb, text).scope is scope


@given(
    st.sampled_from(IN_TRANSACTION),
    st.integers(200, 599),
    st.sampled_from(["", "2.0.0 x", "4.7.1 x", "5.1.1 x", "5.5.3 x", "5.7.10 HELO"]),
    st.booleans(),
)
def test_a_reply_bounces_only_if_it_is_5yz_and_about_the_mail(
    verb: Verb, code: int, text: str, sole_recipient: bool
) -> None:
    answer = Reply(code, (text,))
    judgement = refusals.judge_reply(verb, answer, RELAY, sole_recipient=sole_recipient)
    outcome = judgement.outcome
    bounces = isinstance(outcome, Bounced)
    last_resort = judgement.next_step is NextStep.LAST_RESORT
    assert bounces == (last_resort or judgement.next_step is NextStep.SETTLE)
    assert outcome.status.class_ == (5 if bounces else 4)
    if bounces:
        assert code >= 500
        assert refusals.is_about_the_session(verb, answer) is last_resort


def test_the_text_says_who_said_what_to_what() -> None:
    outcome = said(Verb.RCPT, "550-5.1.1 unknown|550 sorry").outcome
    assert outcome.text == (
        f"host {RELAY} said: 550 5.1.1 unknown sorry (in reply to RCPT command)"
    )
    assert outcome.relay == RELAY
    assert outcome.reply is not None


@pytest.mark.parametrize(
    ("texts", "verdict"),
    [
        (["550 5.1.1 no"], Verdict.PERMANENT),
        (["450 4.2.1 busy"], Verdict.TRANSIENT),
        (["550 5.1.1 no", "450 4.7.1 greylisted"], Verdict.TRANSIENT),
        (["550 5.1.1 no", "503 5.5.1 EHLO first"], Verdict.UNFIT),
        (["552 full"], Verdict.UNFIT),
    ],
)
def test_the_most_hopeful_refusal_sums_up_a_transaction(
    texts: list[str], verdict: Verdict
) -> None:
    said = [(Verb.RCPT, reply(text)) for text in texts]
    finding = refusals.ending(said, waited=2.0, sole_recipient=False)
    assert (finding.verdict, finding.phase) == (verdict, Phase.TRANSACTION)


# --- TLS wanted


@pytest.mark.parametrize(
    "text",
    [
        "530 no",
        "538 no",
        "550 5.7.10 no",
        "450 4.7.11 no",
        "530 5.7.0 Must issue a STARTTLS command first",
        "550 5.7.1 must issue a STARTTLS command first.",
        "451 4.7.1 You must issue START TLS",
        "554 5.7.1 TLSv1.2 or newer is required",
        "550 5.7.3 Requires TLS/SSL; see https://example.com/",
        "421 4.7.29 This mail was not sent with a TLS connection.",
        "523 Encryption needed",
        "554 5.7.0 Session encryption is required",
        "550 5.7.1 Your server is required to use encryption",
        "550 5.7.0 Unencrypted connections are not allowed",
        "554 5.7.1 use an encrypted SMTP connection",
    ],
)
def test_refusal_of_clear_text_is_known_by_code_status_or_text(text: str) -> None:
    assert refusals.wants_tls(reply(text))


@pytest.mark.parametrize(
    "text",
    [
        "250 2.0.0 TLS is fine",
        "550 5.1.1 <tls@example.com>: unknown",
        "530 5.1.1 no such user",
        "550 5.1.8 no STARTTLS in your domain's name",
        "554 5.7.1 spam, see https://example.com/TLS",
        "554 5.7.1 blocked by tls.example.net",
        "554 5.7.1 blocked by ssl-check.example.net.",
        "550 5.7.1 MSG-TLS-17 rejected",
        "552 5.7.0 encrypted attachments must be asked for",
        "550 5.7.1 no",
    ],
)
def test_refusal_that_does_not_ask_for_tls_is_about_the_mail(text: str) -> None:
    assert not refusals.wants_tls(reply(text))
