"""The recipients of one attempt: what the hosts' answers mean for each of them.

`mxpolicy.delivery.attempt` owns the race and tells what a host has said. A recipient is
settled when the host has taken the message for it, has refused it finally, or has left it
in doubt for the first time. At the end `AttemptRecipients.settle_rest` settles those that
are left, from all failures.

Here is also what is told of a recipient with its outcome: where the time went, and which
hosts were tried before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery import refusals, trouble
from mxpolicy.delivery.events import Delays
from mxpolicy.delivery.failures import Failures
from mxpolicy.delivery.passed_over import PassedOver
from mxpolicy.delivery.settlement import RecipientState
from mxpolicy.routing.candidate import Finding, Phase, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mxpolicy.delivery.answers import Answers
    from mxpolicy.delivery.message import Message
    from mxpolicy.delivery.plan import Plan
    from mxpolicy.options import GreetingPolicy
    from mxpolicy.outcome import Deferred, Outcome
    from mxpolicy.protocol.smtp_states import Verb
    from mxpolicy.reply import Reply
    from mxpolicy.routing.candidate import Awaited, Candidate
    from mxpolicy.routing.known_hosts import KnownHosts
    from mxpolicy.routing.race import GiveUpReason
    from mxpolicy.routing.race_timing import Entrant

    _Waits = Mapping[Candidate, Mapping[Awaited, float]]

__all__ = ["AttemptRecipients"]


class AttemptRecipients:
    """Some recipients of *message*, and what hosts have said about them.

    Args:
        message: What is delivered.
        plan: By which they are delivered to.
        numbers: The recipients.
        known: What is remembered of the candidates.
        is_overruled: Whether a refusal by a candidate is not final, now.
        greeting_5xx: What a 5yz greeting means.

    Attributes:
        failures: How candidates have failed.
        passed_over: Those that have not failed, and did not win.
    """

    def __init__(
        self,
        message: Message,
        plan: Plan,
        numbers: Iterable[int],
        known: KnownHosts,
        is_overruled: Callable[[Candidate], bool],
        greeting_5xx: GreetingPolicy,
    ) -> None:
        self._settlement = message.settlement
        self._journal = message.journal
        self._now = message.trace.now
        self._plan = plan
        self._known = known
        self._numbers = sorted(numbers)
        self.failures = Failures(is_overruled, greeting_5xx)
        self.passed_over = PassedOver(known)
        self._planned = self._now()
        self._delays = Delays(dns=self._planned)
        self._transfer_began: float | None = None
        self._tls: dict[str, str] = {}  # by relay: protocol and cipher, for the log

    def entrant(self, candidate: Candidate) -> Entrant:
        """Return *candidate* with what is remembered, and what it has left with them."""
        return self._settlement.met_before(
            self._known.entrant(candidate), self._numbers
        )

    def unsettled(self) -> list[int]:
        """Return those without an outcome."""
        return self._settlement.unsettled(self._numbers)

    def open_to(self, candidate: Candidate) -> list[int]:
        """Return those that may be offered to *candidate*; see `Settlement.open_to`."""
        return self._settlement.open_to(candidate.rank, self._numbers)

    def are_accepted(self) -> bool:
        """Whether a host has accepted all that have no outcome."""
        numbers = self.unsettled()
        return self._settlement.those(RecipientState.ACCEPTED, numbers) == numbers

    # -- one offer ----------------------------------------------------------

    def reached(self, candidate: Candidate, tls: str) -> None:
        """There is a session with *candidate*, with so much TLS (`Session.tls`)."""
        self._tls[str(candidate.key)] = tls

    def transfer_begins(self, tls_seconds: float) -> None:
        """They are offered to a host now, over a session with so many seconds of TLS."""
        self._transfer_began = self._now()
        reach = self._transfer_began - self._planned - tls_seconds
        self._delays = Delays(dns=self._planned, reach=reach, tls=tls_seconds)

    def transfer_ends(self) -> None:
        """What is settled from now on is not settled by that host's answers."""
        self._delays = self._delays._replace(transfer=self._transfer_seconds())
        self._transfer_began = None

    def _transfer_seconds(self) -> float:
        assert self._transfer_began is not None, "they are offered to a host"
        return self._now() - self._transfer_began

    def settle_answered(
        self,
        candidate: Candidate,
        offered: Sequence[int],
        answers: Answers,
        ending: Finding | None,
    ) -> tuple[Finding, bool]:
        """Settle those of *offered* that can be, by the answers of *candidate*.

        Args:
            candidate: What they were offered to.
            offered: Those that it was asked about.
            answers: Its refusals.
            ending: How its session broke; None if it did not.

        Returns:
            How the offer has ended for the race, and whether a host may have the message
            for some of them, which the next attempt will know.
        """
        waited = self._transfer_seconds()
        in_doubt = self._settle_doubts(candidate, offered, ending)
        undecided = self._settle_refused(candidate, offered, answers, waited)
        if ending is None and undecided:
            sole_recipient = len(offered) == 1
            ending = refusals.ending(
                undecided, waited=waited, sole_recipient=sole_recipient
            )
        elif ending is None:
            # The rest was not offered: a better host has refused it.
            ending = Finding(Verdict.PERMANENT, Phase.TRANSACTION, waited)
        if in_doubt and not self._journal.has_memory():
            # As with smtp(8), each address counts by itself, and is asked once.
            return ending._replace(wait=None), False
        return ending, in_doubt

    def _settle_doubts(
        self, candidate: Candidate, offered: Sequence[int], ending: Finding | None
    ) -> bool:
        """Settle recipients whose dot was not answered; return whether there are any."""
        for number in self._settlement.those(RecipientState.TAKEN, offered):
            self.settle(number, self._settlement.delivered(number))  # telling it failed
        in_doubt = self._settlement.those(RecipientState.DOT_SENT, offered)
        has_memory = self._journal.has_memory()
        for number in in_doubt:
            assert ending is not None, "a dot without an answer is a broken session"
            outcome = trouble.in_doubt(ending, str(candidate.key))
            if self._settlement.doubted(number, outcome, has_memory):
                self.settle(number, outcome)
        return bool(in_doubt)

    def _settle_refused(
        self,
        candidate: Candidate,
        offered: Sequence[int],
        answers: Answers,
        waited: float,
    ) -> list[tuple[Verb, Reply]]:
        """Settle recipients whose refusal is final; return the refusals of the others."""
        undecided = []
        for number in self._settlement.unsettled(answers.refused):
            verb, reply = answers.refused[number]
            bounced = self.failures.refused(
                candidate,
                number,
                verb,
                reply,
                waited=waited,
                sole_recipient=len(offered) == 1,
            )
            if bounced is not None and self.failures.is_final(candidate):
                self.settle(number, bounced)
                continue
            undecided.append((verb, reply))
            if bounced is not None:
                self._settlement.refused(number, candidate.rank)
        return undecided

    # -- outcomes -----------------------------------------------------------

    def settle(self, number: int, outcome: Outcome) -> None:
        """Give a recipient its outcome, as far as the plan lets it be."""
        outcome = self._plan.with_unresolved(self._plan.as_far_as_known(outcome))
        if self._transfer_began is not None:
            self._delays = self._delays._replace(transfer=self._transfer_seconds())
        passed_over = self.passed_over.before(outcome.relay, self._now())
        tried = (*self.failures.tried(number), *passed_over)
        tls = self._tls.get(outcome.relay, "")
        self._settlement.settle(number, outcome, self._delays, tried, tls)

    def settle_rest(self, reason: GiveUpReason, waits: _Waits) -> None:
        """The attempt is over: settle all that are left, from all failures.

        Args:
            reason: Why no other host is asked.
            waits: How long hosts were waited for in vain (`Race.waits`).
        """
        self._settlement.waited(self._numbers, waits)
        for number in self.unsettled():
            self.settle(number, self.failures.combine(number, reason))

    def settle_cancelled(self, outcome: Deferred, waits: _Waits) -> bool:
        """Settle those whose dot is not out by *outcome*; return whether any others are left."""
        at_dot = self._settlement.those(RecipientState.DOT_SENT, self._numbers)
        others = [number for number in self.unsettled() if number not in at_dot]
        self._settlement.waited(others, waits)
        for number in others:
            self.settle(number, self._settlement[number].doubt or outcome)
        return bool(at_dot)

    def settle_stopped(self) -> None:
        """Settle only those that a host has, or may have: the attempt ends at once."""
        for number in self.unsettled():
            outcome = self._settlement.stopped(number)
            if outcome is not None:
                self.settle(number, outcome)
