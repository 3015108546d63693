"""What a host's answers mean for each recipient of an attempt, without any host."""

from __future__ import annotations

import pytest

from mxpolicy.delivery import own_outcomes
from mxpolicy.delivery.answers import Answers
from mxpolicy.delivery.attempt_recipients import AttemptRecipients
from mxpolicy.delivery.message import Message
from mxpolicy.delivery.plan import Plan
from mxpolicy.delivery.settlement import Recipient, Settlement
from mxpolicy.delivery.trace import Trace
from mxpolicy.options import Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import Reply
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict
from mxpolicy.routing.known_hosts import NOTHING_KNOWN
from mxpolicy.routing.race import GiveUpReason
from tests.delivery.attempts import Journal, envelope, mail_data

BEST = Candidate("a.example", "192.0.2.1", 25, preference=10)
WORSE = Candidate("b.example", "192.0.2.2", 25, preference=20)
NAMES = ("bob@example.com", "eve@example.com")
OK = Reply(250, ("2.0.0 Ok",))
UNKNOWN = Reply(550, ("5.1.1 Who?",))
FULL = Reply(452, ("4.2.2 Full",))
GONE = Finding(Verdict.CLOSED, Phase.DOT, 3.0)


class Forgetful(Journal):
    """A journal that the next attempt will not have."""

    def has_memory(self) -> bool:
        return False


class Play:
    """Two recipients, a host of each preference, and a clock that is moved."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.now = 0.0
        self.settled: dict[int, Recipient] = {}
        self.overruled: set[Candidate] = set()
        self.settlement = Settlement(NAMES, self._note)
        journal = journal or Journal()
        journal.claim(self.settlement)
        trace = Trace("Q", lambda: self.now, lambda event: None)
        message = Message(
            trace,
            envelope(*NAMES),
            mail_data(),
            self.settlement,
            journal,
            self._may_send_dot,
            900.0,
            1000.0,
        )
        self.recipients = AttemptRecipients(
            message,
            Plan("example.com", (BEST, WORSE)),
            range(2),
            NOTHING_KNOWN,
            self.overruled.__contains__,
            Options().greeting_5xx,
        )

    def _note(self, recipient: Recipient) -> None:
        assert recipient.number not in self.settled, "a recipient is settled once"
        self.settled[recipient.number] = recipient

    async def _may_send_dot(self) -> bool:
        raise AssertionError("no host is offered anything here")

    def offer(self, candidate: Candidate, *, tls: float = 0.0) -> Answers:
        """Offer them to *candidate*, and return what it will have refused."""
        words = "TLSv1.3/X" if tls else ""
        self.recipients.reached(candidate, words)
        self.recipients.transfer_begins(tls)
        return Answers()

    def answered(
        self, candidate: Candidate, answers: Answers, ending: Finding | None = None
    ) -> tuple[Finding, bool]:
        ended = self.recipients.settle_answered(candidate, [0, 1], answers, ending)
        self.recipients.transfer_ends()
        return ended

    def send_dot(self, candidate: Candidate, numbers: list[int]) -> None:
        self.settlement.accepted(numbers)
        self.settlement.dot_sent(numbers, str(candidate.key))


def test_each_recipient_has_the_answer_that_was_for_it() -> None:
    play = Play()
    answers = play.offer(BEST)
    answers.refuse([1], Verb.RCPT, UNKNOWN)
    play.send_dot(BEST, [0])
    play.settlement.taken([0], OK)
    play.recipients.settle(0, play.settlement.delivered(0))
    play.answered(BEST, answers)
    assert isinstance(play.settled[0].outcome, Delivered)
    assert isinstance(play.settled[1].outcome, Bounced)
    assert play.recipients.unsettled() == []


def test_refusal_for_now_is_left_to_the_next_host() -> None:
    play = Play()
    answers = play.offer(BEST)
    answers.refuse([0, 1], Verb.RCPT, FULL)
    ending, in_doubt = play.answered(BEST, answers)
    assert ending.verdict is Verdict.TRANSIENT
    assert not in_doubt
    assert play.recipients.open_to(WORSE) == [0, 1]
    play.recipients.settle_rest(GiveUpReason.EXHAUSTED, {})
    outcomes = [play.settled[number].outcome for number in (0, 1)]
    assert all(isinstance(one, Deferred) and FULL.text in one.text for one in outcomes)


def test_refusal_by_a_worse_host_waits_for_the_better_one() -> None:
    play = Play()
    play.overruled.add(WORSE)
    answers = play.offer(WORSE)
    answers.refuse([0, 1], Verb.RCPT, UNKNOWN)
    play.answered(WORSE, answers)
    assert play.settled == {}
    # It was asked, and is not asked again; the better one may have it still.
    assert play.recipients.open_to(WORSE) == []
    assert play.recipients.open_to(BEST) == [0, 1]
    play.overruled.clear()
    play.recipients.settle_rest(GiveUpReason.EXHAUSTED, {})
    assert all(isinstance(one.outcome, Bounced) for one in play.settled.values())


@pytest.mark.parametrize("has_memory", [True, False])
def test_dot_without_an_answer_is_a_doubt_for_those_that_it_was_for(
    has_memory: bool,
) -> None:
    play = Play(None if has_memory else Forgetful())
    answers = play.offer(BEST)
    play.send_dot(BEST, [0])
    _, in_doubt = play.answered(BEST, answers, GONE)
    assert in_doubt is has_memory
    # Without memory each address of the host is asked once, as by smtp(8).
    assert list(play.settled) == ([0] if has_memory else [])
    play.recipients.settle_rest(GiveUpReason.EXHAUSTED, {})
    outcomes = [play.settled[number].outcome for number in (0, 1)]
    assert all(isinstance(one, Deferred) for one in outcomes)
    assert outcomes[0] is not None
    assert str(BEST.key) in outcomes[0].text


def test_cancel_leaves_those_whose_dot_is_out_to_its_reply() -> None:
    play = Play()
    play.offer(BEST)
    play.send_dot(BEST, [0])
    assert play.recipients.settle_cancelled(own_outcomes.cancelled("stop"), {})
    assert list(play.settled) == [1]
    play.recipients.settle_stopped()
    assert isinstance(play.settled[0].outcome, Deferred)
    assert str(BEST.key) in play.settled[0].outcome.text


def test_end_at_once_settles_only_what_a_host_may_have() -> None:
    play = Play()
    play.offer(BEST)
    play.recipients.settle_stopped()
    assert play.settled == {}


def test_log_hears_where_the_time_went_and_how_it_was_secured() -> None:
    play = Play()
    play.now = 3.0
    play.offer(BEST, tls=2.0)
    play.now = 7.0
    play.send_dot(BEST, [0])
    play.settlement.taken([0], OK)
    play.recipients.settle(0, play.settlement.delivered(0))
    delays = play.settled[0].delays
    assert delays is not None
    assert (delays.reach, delays.tls, delays.transfer) == (1.0, 2.0, 4.0)
    assert play.settled[0].tls == "TLSv1.3/X"
