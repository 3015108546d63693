"""The state of each recipient of one message, from the mail server's call to its outcome.

Only this module changes such a state, and one table says how. It does no I/O and has no
clock. `mxpolicy.delivery.claims` tells it what the journal knows, and
`mxpolicy.delivery.attempt` what hosts have said.

Theory of operation
    A recipient is known by its *number* on the mail server's list, from 0. The same
    address may be there twice.

    UNCLAIMED   the journal has not been asked
    ELSEWHERE   another process is delivering to it
    OPEN        it is ours, and no host has the message for it
    ACCEPTED    a host has said 2yz to its RCPT; no dot was sent
    DOT_SENT    the final dot is out, or may be; the host has not answered
    TAKEN       a host has said 2yz to the dot; the outcome is not told yet
    WAITING     deferred, and a host may still answer the dot
    TAKEN_LATE  deferred, and since then a host has said 2yz to the dot

    DELIVERED, DEFERRED and BOUNCED are final: the recipient is *settled*. It is settled
    in WAITING, too. Its outcome is told and stays a deferral. What a host says after that
    is for the next attempt. Nothing but DELIVERED follows TAKEN, whatever goes wrong on our
    side, and DELIVERED follows only that. One exception: the journal knows of an earlier
    delivery (from UNCLAIMED or ELSEWHERE).

    Three facts stay with a recipient that is OPEN again. *past*: which hosts may have
    the message, and how long others were waited for, also in earlier attempts.
    *refused_by*: a refusal that is not final, because a better host is still to be
    heard. Only better hosts are asked from then on. *doubt*: since this attempt a host
    may have the message, and others are asked all the same.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from mxpolicy.delivery import trouble
from mxpolicy.delivery.journal import NO_PAST
from mxpolicy.errors import LocalProtocolError
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Awaited, Finding, Phase, Scope, Verdict, host_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mxpolicy.delivery.events import Delays
    from mxpolicy.delivery.journal import Past
    from mxpolicy.outcome import Outcome
    from mxpolicy.reply import Reply
    from mxpolicy.routing.candidate import Candidate, Rank
    from mxpolicy.routing.race_timing import Entrant

__all__ = ["TRANSITIONS", "Input", "Recipient", "RecipientState", "Settlement"]


class RecipientState(Enum):
    """How far one recipient has come; see the module's *Theory of operation*."""

    UNCLAIMED = "unclaimed"
    ELSEWHERE = "elsewhere"
    OPEN = "open"
    ACCEPTED = "accepted"
    DOT_SENT = "dot-sent"
    TAKEN = "taken"
    WAITING = "waiting"
    TAKEN_LATE = "taken-late"
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    BOUNCED = "bounced"

    __hash__ = object.__hash__  # Enum's own is written in Python


class Input(Enum):
    """What may happen to a recipient."""

    CLAIMED = "claimed"  # the journal gives it to us
    BUSY = "busy"  # the journal says that another process has it
    ACCEPTED = "accepted"  # 2yz to RCPT
    DOT = "dot"  # the dot leaves now
    RELEASED = "released"  # the host does not have the message for it
    DOUBTED = "doubted"  # the host may have it, and is not listened to any more
    TAKEN = "taken"  # 2yz to the dot
    PUT_OFF = "put-off"  # deferred, and a host may still answer the dot
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    BOUNCED = "bounced"

    __hash__ = object.__hash__


_UNSETTLED = {
    Input.DEFERRED: RecipientState.DEFERRED,
    Input.BOUNCED: RecipientState.BOUNCED,
}
_NOT_OURS = {
    Input.CLAIMED: RecipientState.OPEN,
    Input.BUSY: RecipientState.ELSEWHERE,
    Input.DELIVERED: RecipientState.DELIVERED,  # earlier
    **_UNSETTLED,
}

# state -> input -> next state. Any other input is a bug of ours.
TRANSITIONS: Mapping[RecipientState, Mapping[Input, RecipientState]] = {
    RecipientState.UNCLAIMED: _NOT_OURS,
    RecipientState.ELSEWHERE: _NOT_OURS,
    RecipientState.OPEN: {
        Input.ACCEPTED: RecipientState.ACCEPTED,
        Input.RELEASED: RecipientState.OPEN,
        Input.PUT_OFF: RecipientState.WAITING,
        **_UNSETTLED,
    },
    RecipientState.ACCEPTED: {
        Input.DOT: RecipientState.DOT_SENT,
        Input.RELEASED: RecipientState.OPEN,
        Input.PUT_OFF: RecipientState.WAITING,
        **_UNSETTLED,
    },
    RecipientState.DOT_SENT: {
        Input.RELEASED: RecipientState.OPEN,
        Input.DOUBTED: RecipientState.OPEN,
        Input.TAKEN: RecipientState.TAKEN,
        Input.PUT_OFF: RecipientState.WAITING,
        **_UNSETTLED,
    },
    RecipientState.TAKEN: {Input.DELIVERED: RecipientState.DELIVERED},
    RecipientState.WAITING: {
        Input.RELEASED: RecipientState.DEFERRED,
        Input.DOUBTED: RecipientState.DEFERRED,
        Input.TAKEN: RecipientState.TAKEN_LATE,
    },
    RecipientState.TAKEN_LATE: {},
    RecipientState.DELIVERED: {},
    RecipientState.DEFERRED: {},
    RecipientState.BOUNCED: {},
}


class Recipient:
    """One forward-path of the message, and all that is known of its delivery.

    Attributes:
        number: Its number on the mail server's list, from 0.
        text: The forward-path as the mail server wrote it, printable.
        state: See `RecipientState`.
        outcome: None until it is settled.
        past: What earlier attempts have left behind, and what this one adds.
        relay: The relay that the last dot was sent to.
        awaited: The relays that may still answer a dot, though its time is over.
        refused_by: The rank of the best host whose refusal is not final.
        doubt: Its deferral, if no host does better.
        taken: Its outcome, once a host has said 2yz to the dot; that may come late.
        delays: Where the time went, for the log; None when no host was asked.
        tried: One printable text for each candidate that failed, for the log.
        tls: Protocol and cipher of the relay's session, for the log; empty in clear.
    """

    __slots__ = (
        "awaited",
        "delays",
        "doubt",
        "number",
        "outcome",
        "past",
        "refused_by",
        "relay",
        "state",
        "taken",
        "text",
        "tls",
        "tried",
    )

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self.state = RecipientState.UNCLAIMED
        self.outcome: Outcome | None = None
        self.past: Past = NO_PAST
        self.relay = ""
        self.awaited: set[str] = set()
        self.refused_by: Rank | None = None
        self.doubt: Deferred | None = None
        self.taken: Delivered | None = None
        self.delays: Delays | None = None
        self.tried: tuple[str, ...] = ()
        self.tls = ""

    def take(self, what: Input) -> None:
        """Go on to the next state.

        Raises:
            LocalProtocolError: *what* cannot happen in this state.
        """
        after = TRANSITIONS[self.state].get(what)
        if after is None:
            raise LocalProtocolError(
                f"{self.text}: {what.value} when {self.state.value}"
            )
        self.state = after


class Settlement:
    """The recipients of one message.

    Args:
        recipients: Forward-paths in the mail server's words, by number.
        report: Called for each recipient once, right after it is settled.
    """

    def __init__(
        self, recipients: Sequence[str], report: Callable[[Recipient], None]
    ) -> None:
        self._recipients = tuple(
            Recipient(number, printable(text)) for number, text in enumerate(recipients)
        )
        self._report = report

    def __getitem__(self, number: int) -> Recipient:
        return self._recipients[number]

    def __iter__(self) -> Iterator[Recipient]:
        return iter(self._recipients)

    def unsettled(self, numbers: Iterable[int] | None = None) -> list[int]:
        """Return those of *numbers*, by default of all, that have no outcome."""
        chosen = range(len(self._recipients)) if numbers is None else numbers
        return [one for one in chosen if self._recipients[one].outcome is None]

    def those(self, state: RecipientState, numbers: Iterable[int]) -> list[int]:
        """Return those of *numbers* that are in *state*."""
        return [one for one in numbers if self[one].state is state]

    def outcomes(self) -> list[Outcome] | None:
        """Return the outcome of each recipient by number; None until all have one."""
        outcomes = [one.outcome for one in self._recipients if one.outcome is not None]
        return outcomes if len(outcomes) == len(self._recipients) else None

    # -- what the journal says --------------------------------------------------

    def claimed(self, number: int, past: Past = NO_PAST) -> None:
        """It is ours to deliver; *past* is what earlier attempts have left behind."""
        recipient = self[number]
        recipient.take(Input.CLAIMED)
        recipient.past = past

    def busy(self, number: int) -> None:
        """Another process is delivering to it."""
        self[number].take(Input.BUSY)

    # -- what hosts say ---------------------------------------------------------

    def open_to(self, rank: Rank, numbers: Iterable[int]) -> list[int]:
        """Return those of *numbers* that may be offered to a host of *rank*.

        A recipient that a host has refused for good is offered to better hosts only. A
        patient sender would have asked them before, and no others after.
        """
        return [
            number
            for number in self.unsettled(numbers)
            if (refused_by := self[number].refused_by) is None or rank < refused_by
        ]

    def accepted(self, numbers: Iterable[int]) -> None:
        """A host has said 2yz to their RCPT."""
        for number in numbers:
            self[number].take(Input.ACCEPTED)

    def dot_sent(self, numbers: Iterable[int], relay: str) -> None:
        """The final dot leaves now for *relay*."""
        for number in numbers:
            self[number].take(Input.DOT)
            self[number].relay = relay

    def taken(self, numbers: Iterable[int], reply: Reply) -> None:
        """A host has said 2yz to the dot: it has the message for all of *numbers*.

        They are delivered, whatever goes wrong on our side after it.
        """
        for number in numbers:
            recipient = self[number]
            recipient.take(Input.TAKEN)
            recipient.taken = trouble.delivered(reply, recipient.relay)

    def delivered(self, number: int) -> Delivered:
        """Return the outcome of a recipient in TAKEN; for the next attempt, TAKEN_LATE."""
        taken = self[number].taken
        assert taken is not None, "a host has taken it"
        return taken

    def released(self, numbers: Iterable[int]) -> None:
        """The host does not have the message for *numbers*."""
        for number in numbers:
            self[number].take(Input.RELEASED)

    def withdrawn(self, numbers: Iterable[int]) -> None:
        """No dot will be sent for those of *numbers* that were accepted."""
        self.released(self.those(RecipientState.ACCEPTED, numbers))

    def refused(self, number: int, rank: Rank) -> None:
        """A host of *rank* has refused it; a better one is still to be heard."""
        recipient = self[number]
        recipient.take(Input.RELEASED)
        best = recipient.refused_by
        recipient.refused_by = rank if best is None else min(best, rank)

    def doubted(self, number: int, outcome: Deferred, has_memory: bool) -> bool:
        """The dot was not answered; return whether the caller settles it by *outcome*.

        It does so the first time, as another host would get a second copy. A host that
        does not answer the second time may never do so. Then others are asked, and
        *outcome* is kept for the end. Without a memory each time would be the first. Then
        others are asked at once, as smtp(8) does it.
        """
        recipient = self[number]
        hosts = map(host_of, recipient.past.unanswered)
        is_first = has_memory and host_of(recipient.relay) not in hosts
        recipient.past = recipient.past.doubted(recipient.relay)
        if not is_first:
            recipient.take(Input.DOUBTED)
            recipient.doubt = outcome
        return is_first

    def may_answer(self, numbers: Iterable[int], relay: str) -> None:
        """*relay* did not answer their dot in time, and is still listened to.

        `answered_late` is due when that has ended.
        """
        for number in self.those(RecipientState.DOT_SENT, numbers):
            self[number].awaited.add(relay)

    def answered_late(self, relay: str, reply: Reply | None) -> list[int]:
        """*relay* has answered the dot late; None: it is not listened to any more.

        All are settled by then. Returns those that were WAITING and are so no longer. A
        refusal takes the doubt back.
        """
        return [
            recipient.number
            for recipient in self._recipients
            if relay in recipient.awaited and self._hear_late(recipient, relay, reply)
        ]

    def _hear_late(self, recipient: Recipient, relay: str, reply: Reply | None) -> bool:
        """Return whether *recipient* has left the state WAITING."""
        recipient.awaited.remove(relay)
        if recipient.state is not RecipientState.WAITING:
            return False  # another host has decided
        if reply is not None and reply.is_positive:
            recipient.take(Input.TAKEN)
            recipient.taken = trouble.delivered(reply, relay)
            return True
        if reply is not None:
            recipient.past = recipient.past.refused_late(relay, reply.text)
        if recipient.awaited:
            return False
        recipient.take(Input.DOUBTED if reply is None else Input.RELEASED)
        return True

    def waited(
        self,
        numbers: Iterable[int],
        waits: Mapping[Candidate, Mapping[Awaited, float]],
    ) -> None:
        """Candidates were waited for in vain, so many seconds for each thing awaited."""
        for number in self.unsettled(numbers):
            recipient = self[number]
            for candidate, seconds in waits.items():
                for awaited, more in seconds.items():
                    recipient.past = recipient.past.waited(
                        str(candidate.key), awaited.value, more
                    )

    def met_before(self, entrant: Entrant, numbers: Iterable[int]) -> Entrant:
        """Return *entrant* with what its candidate has left behind with *numbers*."""
        pasts = [self[number].past for number in numbers]
        host = entrant.candidate.host
        doubts = [past.doubts_at(entrant.candidate) for past in pasts]
        waits = {}
        if all(past.waits for past in pasts):  # else the least of each is none
            relay = str(entrant.candidate.key)
            waits = {
                awaited: min(
                    past.waits.get((relay, awaited.value), 0.0) for past in pasts
                )
                for awaited in Awaited
            }
        at_host, here = max(doubts)
        return entrant._replace(
            doubts=at_host,
            doubts_here=here,
            silences_of_all=min(past.silences_at(host) for past in pasts),
            waits=waits,
        )

    # -- the end ----------------------------------------------------------------

    def settle(
        self,
        number: int,
        outcome: Outcome,
        delays: Delays | None = None,
        tried: tuple[str, ...] = (),
        tls: str = "",
    ) -> None:
        """Give a recipient its outcome; *delays*, *tried* and *tls* are for the log.

        A deferral begins with the host that may have the message, and ends with what a
        host has said too late. A bounce names all hosts that may have it. What a host has
        taken is delivered, whatever *outcome* is.
        """
        recipient = self[number]
        is_taken = recipient.state is RecipientState.TAKEN
        if is_taken and not isinstance(outcome, Delivered):
            outcome = self.delivered(number)
        match outcome:
            case Delivered():
                what = Input.DELIVERED
            case Deferred():
                what = Input.PUT_OFF if recipient.awaited else Input.DEFERRED
                doubt = recipient.doubt
                if doubt is not None and doubt != outcome:
                    text = trouble.one_line(f"{doubt.text}; {outcome.text}")
                    outcome = doubt._replace(text=text)
                if said := recipient.past.said:
                    text = trouble.one_line(f"{outcome.text}; {said}")
                    outcome = outcome._replace(text=text)
            case Bounced():
                what = Input.BOUNCED
                hosts = set(map(host_of, recipient.past.doubts))
                outcome = trouble.with_doubts(outcome, hosts)
        recipient.take(what)
        recipient.outcome = outcome
        recipient.delays, recipient.tried, recipient.tls = delays, tried, tls
        self._report(recipient)

    def settle_all(
        self, outcome: Outcome, numbers: Iterable[int] | None = None
    ) -> None:
        """Give *outcome* to those of *numbers*, by default of all, that have none."""
        for number in self.unsettled(numbers):
            self.settle(number, outcome)

    def stop(self, outcome: Deferred, numbers: Iterable[int] | None = None) -> None:
        """Settle *numbers*, by default all: nothing more is asked or heard.

        Recipients that a host may have are in doubt. The others are deferred by
        *outcome*.
        """
        for number in self.unsettled(numbers):
            self.settle(number, self.stopped(number) or outcome)

    def stopped(self, number: int) -> Delivered | Deferred | None:
        """We stop; return the outcome of a recipient that a host has, or may have.

        The caller settles it by that. A dot that is out is noted as a doubt.
        """
        recipient = self[number]
        if recipient.state is RecipientState.TAKEN:
            return self.delivered(number)
        if recipient.state is not RecipientState.DOT_SENT:
            return recipient.doubt
        recipient.past = recipient.past.cut_off(recipient.relay)
        return trouble.in_doubt(_STOPPED, recipient.relay)


_STOPPED = Finding(
    Verdict.CLOSED, Phase.DOT, 0.0, Scope.SITE, text="stopped by ourselves"
)
