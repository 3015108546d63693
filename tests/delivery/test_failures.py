from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.delivery import refusals, trouble
from mxpolicy.delivery.failures import Failure, Failures, combine
from mxpolicy.delivery.trouble import Misfit
from mxpolicy.options import GreetingPolicy
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import Reply
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Scope, Verdict
from mxpolicy.routing.race import GiveUpReason

BEST = Candidate("a.example", "192.0.2.1", 25, preference=10)
MIDDLE = Candidate("b.example", "192.0.2.2", 25, preference=20)
WORST = Candidate("c.example", "192.0.2.3", 25, preference=30)
EVERYBODY = (BEST, MIDDLE, WORST)
EXHAUSTED = GiveUpReason.EXHAUSTED

FILTERED = Finding(Verdict.FILTERED, Phase.CONNECT, 6.0)
SILENT = Finding(Verdict.SILENT, Phase.GREETING, 30.0)
NO_FILES = Finding(Verdict.CLOSED, Phase.CONNECT, 0.0, Scope.SITE, text="no files")


def reply(text: str) -> Reply:
    return Reply(int(text[:3]), (text[4:],))


def refuse(
    failures: Failures, candidate: Candidate, text: str, index: int = 0
) -> Bounced | None:
    bounced = failures.refused(
        candidate, index, Verb.RCPT, reply(text), waited=0.5, sole_recipient=True
    )
    return bounced if failures.is_final(candidate) else None


def nobody_better(_: Candidate) -> bool:
    return False


@pytest.fixture
def failures() -> Failures:
    return Failures(nobody_better)


# --- one thing after the other


def test_a_refusal_that_stands_is_final_at_once(failures: Failures) -> None:
    outcome = refuse(failures, BEST, "550 5.1.1 unknown")
    assert isinstance(outcome, Bounced)
    assert outcome.relay == str(BEST)


def test_a_deferral_goes_on_with_any_other_host(failures: Failures) -> None:
    assert refuse(failures, BEST, "450 4.2.1 busy") is None


def test_a_refusal_out_of_turn_is_final_when_the_better_host_was_heard() -> None:
    better_pending = {MIDDLE}
    failures = Failures(better_pending.__contains__)
    assert refuse(failures, MIDDLE, "550 5.1.1 unknown") is None
    assert isinstance(failures.combine(0, EXHAUSTED), Deferred)
    better_pending.clear()
    assert isinstance(failures.combine(0, EXHAUSTED), Bounced)


def test_what_is_said_to_one_recipient_concerns_no_other(failures: Failures) -> None:
    failures.failed(BEST, FILTERED)
    refuse(failures, MIDDLE, "450 4.2.1 busy", index=1)
    assert str(failures.combine(0, EXHAUSTED).status) == "4.4.1"
    assert str(failures.combine(1, EXHAUSTED).status) == "4.2.1"
    assert len(failures.tried(0)) == 1
    assert failures.tried(1) == (
        "a.example[192.0.2.1]:25 filtered 6.0s",
        "b.example[192.0.2.2]:25 transient 0.5s (450 4.2.1 busy)",
    )


def test_a_5xx_greeting_is_final_where_the_operator_says_so() -> None:
    failures = Failures(nobody_better, GreetingPolicy.BOUNCE)
    greeting = Finding(Verdict.GREETING_5XX, Phase.GREETING, 0.1)
    failures.failed(BEST, greeting, reply("554 5.7.1 go away"))
    assert isinstance(failures.combine(0, EXHAUSTED), Bounced)


# --- all of it together


@pytest.mark.parametrize("overruled", [False, True], ids=["heard", "overruled"])
@pytest.mark.parametrize("reason", GiveUpReason, ids=lambda one: one.value)
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(None, id="no_other"),
        pytest.param(FILTERED, id="other_out_of_reach"),
        pytest.param("503 5.5.1 what?", id="other_says_it_too"),
        pytest.param("450 4.2.0 greylisted", id="other_says_come_again"),
        pytest.param("421 4.3.2 busy", id="other_is_busy"),
    ],
)
def test_a_refusal_of_our_session_is_final_when_all_were_heard(
    other: Finding | str | None, reason: GiveUpReason, overruled: bool
) -> None:
    failures = Failures(lambda candidate: overruled)
    assert refuse(failures, BEST, "503 5.5.1 EHLO first") is None
    if isinstance(other, Finding):
        failures.failed(MIDDLE, other)
    elif other is not None:
        refuse(failures, MIDDLE, other)
    outcome = failures.combine(0, reason)
    final = reason is EXHAUSTED and not overruled
    assert isinstance(outcome, Bounced if final else Deferred)
    assert outcome.status.class_ == (5 if final else 4)


def test_a_refusal_of_the_mail_tells_more_than_one_of_our_session(
    failures: Failures,
) -> None:
    refuse(failures, BEST, "503 5.5.1 EHLO first")
    outcome = refuse(failures, MIDDLE, "550 5.1.1 unknown")
    assert isinstance(outcome, Bounced)


def test_a_message_that_fits_nowhere_bounces(failures: Failures) -> None:
    for candidate in EVERYBODY:
        finding = failures.unfit(candidate, Misfit.TOO_LARGE)
        assert finding.verdict is Verdict.UNFIT
    outcome = failures.combine(0, EXHAUSTED)
    assert isinstance(outcome, Bounced)
    assert str(outcome.status) == "5.3.4"


@pytest.mark.parametrize(
    "reason", [GiveUpReason.DEADLINE, GiveUpReason.CAPPED], ids=lambda r: r.value
)
def test_a_message_that_fits_nowhere_we_asked_is_deferred(
    failures: Failures, reason: GiveUpReason
) -> None:
    failures.unfit(BEST, Misfit.TOO_LARGE)
    assert isinstance(failures.combine(0, reason), Deferred)


@pytest.mark.parametrize("other", [FILTERED, NO_FILES], ids=["filtered", "own_trouble"])
def test_a_message_that_may_fit_elsewhere_is_deferred(
    failures: Failures, other: Finding
) -> None:
    failures.unfit(BEST, Misfit.NO_SMTPUTF8)
    failures.failed(MIDDLE, other)
    outcome = failures.combine(0, EXHAUSTED)
    assert isinstance(outcome, Deferred)
    assert str(outcome.status) == "4.6.7"


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        pytest.param([(BEST, FILTERED), (MIDDLE, SILENT)], "4.4.2", id="furthest"),
        pytest.param([(BEST, FILTERED), (MIDDLE, NO_FILES)], "4.3.0", id="ourselves"),
        pytest.param([], "4.4.1", id="nobody_was_asked"),
    ],
)
def test_the_failure_that_tells_most_gives_the_status(
    failures: Failures, seen: Sequence[tuple[Candidate, Finding]], status: str
) -> None:
    for candidate, finding in seen:
        failures.failed(candidate, finding)
    assert str(failures.combine(0, EXHAUSTED).status) == status


def test_what_was_said_about_the_mail_tells_more_than_anything(
    failures: Failures,
) -> None:
    failures.failed(BEST, NO_FILES)
    refuse(failures, WORST, "451 4.7.1 greylisted")
    failures.failed(MIDDLE, SILENT)
    outcome = failures.combine(0, GiveUpReason.CAPPED)
    assert outcome.text == (
        "host c.example[192.0.2.3]:25 said: 451 4.7.1 greylisted (in reply to RCPT"
        " command); others are not asked this time; tried:"
        " a.example[192.0.2.1]:25 closed 0.0s (no files),"
        " c.example[192.0.2.3]:25 transient 0.5s (451 4.7.1 greylisted),"
        " b.example[192.0.2.2]:25 silent 30.0s"
    )


def test_one_failure_is_not_told_twice(failures: Failures) -> None:
    failures.failed(BEST, FILTERED)
    outcome = failures.combine(0, GiveUpReason.DEADLINE)
    assert outcome.text == (
        "a.example[192.0.2.1]:25 did not answer the connection attempt"
        " (connect, 6.0s); out of time"
    )


def test_a_hundred_failures_stay_one_line_under_1000_bytes(failures: Failures) -> None:
    for number in range(100):
        candidate = Candidate(f"{'x' * 60}{number}.example", "2001:db8::1", 25)
        failures.failed(candidate, FILTERED)
    text = failures.combine(0, EXHAUSTED).text
    assert len(text) <= trouble.MAX_OUTCOME_TEXT
    named = text.count("filtered")
    assert 5 < named < 100
    assert text.endswith(f"and {100 - named} more")


# --- whatever comes

CODES = st.one_of(
    st.integers(200, 599), st.sampled_from([421, 452, 503, 550, 552, 554])
)
TEXTS = st.sampled_from(
    ["", "4.7.1 x", "5.1.1 x", "5.5.3 x", "HELO is bad", "\x1b[2J\r\n" * 9, "y" * 600]
)
REPLIES = st.builds(lambda code, text: Reply(code, (text,)), CODES, TEXTS)
CANDIDATES = st.sampled_from(EVERYBODY)
FINDINGS = st.builds(
    Finding,
    st.sampled_from(Verdict),
    st.sampled_from(Phase),
    st.floats(0, 1000),
    st.sampled_from(Scope),
    st.booleans(),
    TEXTS,
)
REFUSALS = st.tuples(
    st.sampled_from([Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.DOT]), REPLIES, st.booleans()
)
SEEN = st.lists(
    st.tuples(
        CANDIDATES,
        st.one_of(
            REFUSALS, st.tuples(FINDINGS, st.none() | REPLIES), st.sampled_from(Misfit)
        ),
    ),
    max_size=8,
)


@settings(max_examples=200)
@given(
    SEEN,
    st.sets(CANDIDATES),
    st.sampled_from(GiveUpReason),
    st.sampled_from(GreetingPolicy),
)
def test_it_bounces_only_for_a_refusal_of_the_mail_that_stands(
    seen: list[tuple[Candidate, object]],
    overruled: set[Candidate],
    reason: GiveUpReason,
    policy: GreetingPolicy,
) -> None:
    failures = Failures(overruled.__contains__, policy)
    stands = greeting_stands = about_session = False
    for candidate, what in seen:
        match what:
            case (Verb() as verb, Reply() as answer, bool(sole_recipient)):
                about_session |= candidate not in overruled and (
                    refusals.is_about_the_session(verb, answer)
                )
                bounced = failures.refused(
                    candidate,
                    0,
                    verb,
                    answer,
                    waited=1.0,
                    sole_recipient=sole_recipient,
                )
                if bounced is not None and failures.is_final(candidate):
                    assert answer.is_permanent
                    assert not refusals.is_about_the_session(verb, answer)
                    assert candidate not in overruled
                    stands = True
            case (Finding() as finding, answer):
                assert answer is None or isinstance(answer, Reply)
                failures.failed(candidate, finding, answer)
                greeting_stands |= (
                    policy is GreetingPolicy.BOUNCE
                    and finding.verdict is Verdict.GREETING_5XX
                    and finding.scope is not Scope.SITE
                    and answer is not None
                    and candidate not in overruled
                )
            case _:
                assert isinstance(what, Misfit)
                failures.unfit(candidate, what)
    fits_nowhere = (
        bool(seen)
        and reason is EXHAUSTED
        and all(what in (Misfit.TOO_LARGE, Misfit.NO_SMTPUTF8) for _, what in seen)
        and any(candidate not in overruled for candidate, _ in seen)
    )
    last_resort = about_session and reason is EXHAUSTED
    outcome = failures.combine(0, reason)
    assert isinstance(outcome, Bounced) == (
        stands or greeting_stands or fits_nowhere or last_resort
    )
    assert outcome.status.class_ == (5 if isinstance(outcome, Bounced) else 4)
    assert outcome.text
    assert outcome.text.isascii()
    assert outcome.text.isprintable()
    assert len(outcome.text) <= trouble.MAX_OUTCOME_TEXT < 1000
    assert len(failures.tried(0)) == len(seen)


@given(st.permutations(range(4)))
def test_the_order_of_events_changes_no_status(order: list[int]) -> None:
    failures = [
        Failure(BEST, FILTERED, trouble.judge_finding(FILTERED, str(BEST))),
        Failure(MIDDLE, SILENT, trouble.judge_finding(SILENT, str(MIDDLE))),
        Failure(WORST, NO_FILES, trouble.judge_finding(NO_FILES, str(WORST))),
        Failure(
            WORST,
            SILENT,
            refusals.judge_reply(Verb.MAIL, reply("450 4.7.1 later"), str(WORST)),
        ),
    ]
    outcome = combine(
        [failures[number] for number in order],
        reason=EXHAUSTED,
        is_overruled=nobody_better,
    )
    assert str(outcome.status) == "4.7.1"
