"""The failures of one attempt, and the outcome they make where no host took the message.

`mxpolicy.delivery.trouble` judges each of them. `Failures` collects them, and `combine`
makes an outcome of all: a final refusal bounces, anything else defers. The text begins
with the failure that says most, and then names every host that was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mxpolicy.delivery import refusals, trouble
from mxpolicy.options import GreetingPolicy
from mxpolicy.outcome import Bounced, Deferred, Tried
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import Reply, printable
from mxpolicy.routing.candidate import (
    Candidate,
    Finding,
    Phase,
    Rank,
    Scope,
    Verdict,
)
from mxpolicy.routing.race import GiveUpReason

__all__ = ["Failure", "Failures", "combine"]

# Characters of what one host said, in the list of those tried.
_MAX_SAID = 80

_GAVE_UP = {
    GiveUpReason.EXHAUSTED: "",
    GiveUpReason.DEADLINE: "; out of time",
    GiveUpReason.CAPPED: "; others are not asked this time",
}


class Failure:
    """One thing that went wrong at one candidate, and what it means."""

    __slots__ = ("candidate", "finding", "judgement")

    def __init__(
        self, candidate: Candidate, finding: Finding, judgement: trouble.Judgement
    ) -> None:
        self.candidate = candidate
        self.finding = finding
        self.judgement = judgement


class Failures:
    """The failures of one attempt, for each recipient.

    Args:
        is_overruled: Whether a refusal by this candidate is not final, because a
            better one is still to be heard, or to be looked up.
        greeting_5xx: Whether a 5yz greeting is final.
    """

    def __init__(
        self,
        is_overruled: Callable[[Candidate], bool],
        greeting_5xx: GreetingPolicy = GreetingPolicy.NEXT,
    ) -> None:
        self._is_overruled = is_overruled
        self._greeting_5xx = greeting_5xx
        # Each with the number of its recipient; None is all.
        self._failures: list[tuple[int | None, Failure]] = []

    def failed(
        self, candidate: Candidate, finding: Finding, reply: Reply | None = None
    ) -> None:
        """*candidate* failed for all recipients that it has not settled."""
        judgement = trouble.judge_finding(
            finding, str(candidate.key), reply, self._greeting_5xx
        )
        self._failures.append((None, Failure(candidate, finding, judgement)))

    def unfit(self, candidate: Candidate, why: trouble.Misfit) -> Finding:
        """*candidate*'s EHLO reply rules the message out; return what the race is told."""
        judgement = trouble.judge_misfit(why, str(candidate.key))
        finding = Finding(
            Verdict.UNFIT, Phase.TRANSACTION, 0.0, Scope.MESSAGE, text=why.value
        )
        self._failures.append((None, Failure(candidate, finding, judgement)))
        return finding

    def refused(
        self,
        candidate: Candidate,
        number: int,
        verb: Verb,
        reply: Reply,
        *,
        waited: float,
        sole_recipient: bool,
    ) -> Bounced | None:
        """*candidate* refused this recipient; return the bounce that a 5yz makes.

        It is to be given where it `is_final`. After any other refusal (None) further
        hosts are asked, and `combine` settles it in the end. Arguments as in `refusals.judge_reply`.
        """
        judgement = refusals.judge_reply(
            verb, reply, str(candidate.key), sole_recipient=sole_recipient
        )
        verdict = refusals.verdict_of(reply, judgement)
        finding = Finding(
            verdict, Phase.TRANSACTION, waited, judgement.scope, text=reply.text
        )
        self._failures.append((number, Failure(candidate, finding, judgement)))
        if judgement.next_step is not trouble.NextStep.SETTLE:
            return None
        assert isinstance(judgement.outcome, Bounced)
        return judgement.outcome

    def is_final(self, candidate: Candidate) -> bool:
        """Return whether no better host is still to be heard, or to be looked up."""
        return not self._is_overruled(candidate)

    def combine(self, number: int, reason: GiveUpReason) -> Deferred | Bounced:
        """Return the outcome of a recipient that no host took; see `failures.combine`."""
        return combine(self._of(number), reason=reason, is_overruled=self._is_overruled)

    def tried(self, number: int) -> tuple[str, ...]:
        """Return one text for each failure that concerns this recipient, for the log."""
        return tuple(_tried(one, str(one.candidate.key)) for one in self._of(number))

    def _of(self, number: int) -> list[Failure]:
        return [failure for of, failure in self._failures if of in (None, number)]


def combine(
    failures: Sequence[Failure],
    *,
    reason: GiveUpReason,
    is_overruled: Callable[[Candidate], bool],
) -> Deferred | Bounced:
    """Return the outcome of a recipient after all candidates have failed for it.

    A refusal bounces unless it is overruled. A refusal of our session bounces only when
    every host was heard (RFC 5321 §4.2.1), whatever the others said: smtp(8) would not
    have asked them. A message that no host can take bounces when every host was heard.
    Otherwise it is deferred, with the status of the failure that says most. The text
    begins with that failure, and then names every host that was tried.
    """
    final = [trouble.NextStep.SETTLE]
    if reason is GiveUpReason.EXHAUSTED:
        final.append(trouble.NextStep.LAST_RESORT)
    for action in final:
        for failure in sorted(failures, key=lambda one: one.candidate.rank):
            is_final = failure.judgement.next_step is action
            if is_final and not is_overruled(failure.candidate):
                return _with_tried(failure.judgement.outcome, failures, reason)
    if not failures:
        return Deferred(trouble.UNREACHABLE, "no host was asked" + _GAVE_UP[reason])
    chosen = min(failures, key=_by_weight).judgement.outcome
    if (
        reason is GiveUpReason.EXHAUSTED
        and all(map(_is_misfit, failures))
        and not all(is_overruled(failure.candidate) for failure in failures)
    ):
        return _with_tried(chosen, failures, reason)
    return _with_tried(trouble.soft(chosen), failures, reason)


def _is_misfit(failure: Failure) -> bool:
    judgement = failure.judgement
    return judgement.next_step is trouble.NextStep.NEXT_HOST and isinstance(
        judgement.outcome, Bounced
    )


def _by_weight(failure: Failure) -> tuple[int, int, Rank]:
    """Order by how much a failure says about why this recipient waits.

    First what a host said about the mail, then trouble of our own, then the host that we
    got furthest with.
    """
    scope, phase = failure.judgement.scope, failure.finding.phase
    about = {Scope.RECIPIENT: 0, Scope.MESSAGE: 0, Scope.SITE: 1, Scope.HOST: 2}[scope]
    return about, -phase, failure.candidate.rank


def _with_tried(
    outcome: Deferred | Bounced, failures: Sequence[Failure], reason: GiveUpReason
) -> Deferred | Bounced:
    """Append to the text why others were not asked, and every host that was tried."""
    text = outcome.text
    if isinstance(outcome, Deferred):
        text += _GAVE_UP[reason]
    if len(failures) > 1:
        tried = [_tried(one, str(one.candidate)) for one in failures]
        text = _listed(f"{text}; tried: ", tried)
    return outcome._replace(text=trouble.one_line(text))


def _listed(text: str, items: Sequence[str]) -> str:
    """Append as many *items* as there is room for, and the number of the others."""
    for index, item in enumerate(items):
        left = f"and {len(items) - index} more"
        room = trouble.MAX_OUTCOME_TEXT - len(text) - len(", ") - len(left)
        if len(item) > room:
            return text + left
        text += item + (", " if index + 1 < len(items) else "")
    return text


def _tried(failure: Failure, name: str) -> str:
    finding = failure.finding
    said = printable(finding.text, _MAX_SAID)
    return str(Tried(name, finding.verdict.value, finding.waited, said))
