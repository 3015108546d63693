"""Recipients of one message that go the same way, from their claims to an outcome for each.

The steps 1 to 6 of the recipe in `mxpolicy.delivery.delivery`. A `Group` calls the parts
in their order and decides nothing itself.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery import events, own_outcomes
from mxpolicy.delivery.attempt import Attempt
from mxpolicy.delivery.attempt_sessions import Begun
from mxpolicy.delivery.claims import Claims
from mxpolicy.delivery.consult import Consulted, consult
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.learner import Learner
from mxpolicy.delivery.leases import Leases
from mxpolicy.delivery.message import Message
from mxpolicy.delivery.plan import Plan
from mxpolicy.delivery.settlement import RecipientState
from mxpolicy.delivery.trace import Trace
from mxpolicy.errors import LocalTrouble
from mxpolicy.routing.nexthop import NexthopError, nexthop_aim, parse_nexthop
from mxpolicy.routing.order import shuffle_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.delivery.admission import Stay
    from mxpolicy.delivery.connections import Turn
    from mxpolicy.delivery.destinations import Destination, Destinations
    from mxpolicy.delivery.probe import Probes
    from mxpolicy.delivery.request import Request
    from mxpolicy.outcome import Deferred, Outcome
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.known_hosts import KnownHosts

__all__ = ["Call", "Group"]


class Call(NamedTuple):
    """What the groups of one call of the mail server share.

    Attributes:
        context: What all messages share.
        request: What was asked.
        claims: Whose each recipient is, by the journal.
        message: It, with a trace that no learner listens to.
        stay_at: Returns the place of those that go to an aim (`nexthop_aim`).
        traces: By recipient: where its events are told once its hosts are dialled. The
            groups fill it in.
    """

    context: Context
    request: Request
    claims: Claims
    message: Message
    stay_at: Callable[[str], Stay]
    traces: dict[int, Trace]


class Group:
    """Some recipients, sent to once.

    Call `claim`, then `send` if any of *numbers* are left. Or call `send_after_others`,
    for those that `claim` returns, or `send_begun`. All recipients are settled then.

    Args:
        call: What all groups share.
        nexthop: Where they go.
        domain: Their destination domain; empty where the operator wrote the nexthop.
        numbers: Of the recipients.
        begun: What the fast path has begun for all of them.

    Attributes:
        numbers: Those that are still to be sent to.
        task: Sends to them. `cancel` cancels it, until there is an attempt; a group with
            *begun* has none.
    """

    def __init__(
        self,
        call: Call,
        nexthop: str,
        domain: str,
        numbers: list[int],
        begun: Begun | None = None,
    ) -> None:
        self._call = call
        self._context = call.context
        self._request = call.request
        self._trace = call.message.trace
        self._settlement = call.message.settlement
        self._nexthop = nexthop
        self._domain = domain
        self.numbers = numbers
        self._begun = begun
        self._attempt: Attempt | None = None
        self._cancelled: Deferred | None = None
        self.task: asyncio.Task[None] | None = None

    def cancel(self, outcome: Deferred) -> None:
        """Leave the recipients to the mail server; see `Attempt.cancel`."""
        self._cancelled = outcome
        if self._attempt is not None:
            self._attempt.cancel(outcome)
        elif self._begun is None:  # else as soon as there is an attempt
            assert self.task is not None, "it has begun to send"
            self.task.cancel()
            self._settlement.settle_all(outcome, self.numbers)

    # -- whose they are -----------------------------------------------------

    async def claim(self) -> Group | None:
        """Keep those that are ours; return the others, if another process has any.

        A recipient is settled where the journal has an outcome.
        """
        await self._call.claims.claim(self.numbers)
        busy = self._settlement.those(RecipientState.ELSEWHERE, self.numbers)
        self.numbers = self._settlement.those(RecipientState.OPEN, self.numbers)
        return Group(self._call, self._nexthop, self._domain, busy) if busy else None

    async def send_after_others(self) -> None:
        """Wait for the outcome of another process, then send to the rest."""
        wait = self._context.options.journal.wait
        left = self._request.deadline - self._trace.now()
        await self._call.claims.claim_later(self.numbers, min(wait, left / 3))
        busy = self._settlement.those(RecipientState.ELSEWHERE, self.numbers)
        self._settlement.settle_all(own_outcomes.under_way(), busy)
        self.numbers = self._settlement.those(RecipientState.OPEN, self.numbers)
        if self.numbers:
            await self.send()

    # -- from the plan to the attempt ---------------------------------------

    async def send(self) -> None:
        """Plan and attempt; handle all that fails in it."""
        try:
            aim = nexthop_aim(parse_nexthop(self._nexthop, self._context.options.port))
            stay = self._call.stay_at(aim)
            try:
                await self._send_from(stay)
            finally:
                await stay.leave()
        except NexthopError as error:
            self._settlement.settle_all(own_outcomes.bad_nexthop(error), self.numbers)
        except Exception as error:
            self._fail(error)

    async def send_begun(self, destination: Destination) -> None:
        """Go on with what is begun, by what is known of the *destination*."""
        assert self._begun is not None, "the fast path has begun it"
        session = self._begun.session
        envelope, context = self._call.message.envelope, self._context
        first = next(iter(envelope.recipients.values())).wire
        now = context.utc()
        plan, known = destination.of_message(
            session.candidate,
            shuffle_seed(envelope.sender, first, self._domain, now),
            now,
            context.options.memory,
        )
        self._trace.tell(events.Planned, plan.nexthop, plan.candidates, plan.remarks)
        stay = self._call.stay_at(plan.aim)
        turn = self._turn(plan)
        if turn is not None:
            turn.adopt(session.candidate)
        try:
            await self._dial(stay, turn, plan, known, due=())
        except Exception as error:
            self._fail(error)
        finally:
            if turn is not None:
                turn.leave()
            if self._attempt is None:
                session.abort()
                self._context.sessions.give_back(session)
            await stay.leave()

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, LocalTrouble):
            self._trace.trouble(error)
        self._settlement.stop(own_outcomes.own_trouble(error), self.numbers)

    async def _send_from(self, stay: Stay) -> None:
        """Plan and attempt, once there is a place for it."""
        refusal: Outcome | None = await stay.enter()
        if refusal is not None:
            self._settlement.settle_all(refusal, self.numbers)
            return
        plan = await self._plan()
        stay.planned()
        if plan.refusal is not None:
            domains = self._context.domains
            refusal = await domains.unless_stale(self._domain, plan.refusal)
            self._settlement.settle_all(plan.as_far_as_known(refusal), self.numbers)
            return
        await self._send_by(plan, stay)

    async def _plan(self) -> Plan:
        envelope = self._call.message.envelope
        plan = await self._context.planner.plan(
            parse_nexthop(self._nexthop, self._context.options.port),
            destination_domain=self._domain,
            reverse_path=envelope.sender,
            forward_path=next(iter(envelope.recipients.values())).wire,
        )
        soft = await self._context.failed_lookups.recent(plan)
        plan = plan._replace(unresolved=soft)
        self._trace.tell(events.Planned, self._nexthop, plan.candidates, plan.remarks)
        return plan

    async def _send_by(self, plan: Plan, stay: Stay) -> None:
        """Attempt a delivery, unless all hosts failed a moment ago, or have no place."""
        leases = Leases(self._context.store, self._context.utc)
        turn = self._turn(plan)
        try:
            consulted = await self._consult(turn, leases, plan)
            if consulted.refusal is not None:
                for number in self.numbers:
                    self._settlement.settle(
                        number, consulted.refusal, tried=consulted.tried
                    )
                return
            known = consulted.known
            refusal = await stay.dial(known.order)
            if refusal is not None:
                self._settlement.settle_all(refusal, self.numbers)
                return
            plan = plan._replace(candidates=known.order)
            self._note_destination(self._context.destinations, plan, known)
            await self._dial(stay, turn, plan, known, consulted.due)
        finally:
            if turn is not None:
                turn.leave()
            await leases.release()

    async def _consult(
        self, turn: Turn | None, leases: Leases, plan: Plan
    ) -> Consulted:
        """Return how *plan* is carried out, when it is the message's turn."""
        while True:
            consulted = await consult(
                self._context.memory,
                leases,
                plan,
                now=self._trace.now,
                chance=self._context.chance(),
                deadline=self._request.deadline,
            )
            if turn is None or consulted.refusal is not None:
                return consulted
            order = turn.ask(consulted.known.order)
            if order == consulted.known.order and not consulted.due:
                return consulted  # as nearly always: nothing is to be changed
            if order is not None:
                known = consulted.known._replace(order=order)
                due = tuple(one for one in consulted.due if one != order[0])
                return consulted._replace(known=known, due=due)
            await leases.release()  # another message may probe meanwhile
            refusal = await turn.wait()
            if refusal is not None:
                return consulted._replace(refusal=refusal, due=())

    def _turn(self, plan: Plan) -> Turn | None:
        """Return the turn of a message by *plan*; None where nothing is limited."""
        if self._context.connections is None:
            return None
        return self._context.connections.turn(
            plan.aim,
            self._trace.now,
            self._request.deadline,
            may_wait=not self._request.has_process,
        )

    def _note_destination(
        self, destinations: Destinations | None, plan: Plan, known: KnownHosts
    ) -> None:
        """Note how the group goes, for later messages on the fast path."""
        if destinations is None:
            return
        now, utc = self._context.clock(), self._context.utc()
        due = known.better_is_due(plan.candidates[0]) - utc
        destinations.learn(
            self._nexthop,
            self._domain,
            plan,
            known,
            known_until=now + min(plan.ttl, due),
            now=now,
            tls=self._context.options.tls.default,
        )

    # -- the attempt --------------------------------------------------------

    async def _dial(
        self,
        stay: Stay,
        turn: Turn | None,
        plan: Plan,
        known: KnownHosts,
        due: Sequence[Candidate],
    ) -> None:
        """Dial the candidates, and probe those that are *due*; learn from both."""
        context = self._context
        learner = Learner(
            context.memory,
            self._trace,
            context.chance,
            plan.aim,
            _message_id(self._request),
            known.of_tls,
        )
        learners = [learner.learn, stay.learn]
        if turn is not None:
            learners.insert(0, turn.learn)  # the learner asks what it knows
        trace = self._trace.with_learners(*learners)
        self._call.traces.update(dict.fromkeys(self.numbers, trace))
        message = self._call.message._replace(trace=trace)
        self._attempt = Attempt(
            context, message, plan, self.numbers, known, self._begun
        )
        if self._cancelled is not None:
            self._attempt.cancel(self._cancelled)
        probes = self._probes(due, learner)
        try:
            await self._attempt.run()
            if probes is not None:
                await probes.finish()
        finally:
            if probes is not None:
                await probes.finish(0.0)
            await learner.finish()
        if self._settlement.those(RecipientState.DELIVERED, self.numbers):
            await context.domains.took(self._domain, plan.lookups)

    def _probes(self, due: Sequence[Candidate], learner: Learner) -> Probes | None:
        """Begin to probe the candidates that are *due*, as rarely any is."""
        if not due:
            return None
        from mxpolicy.delivery.probe import Probes

        probes = Probes(self._context, self._trace, learner)
        for candidate in due:
            probes.begin(candidate)
        return probes


def _message_id(request: Request) -> str:
    """Return a name for the message, the same when it is tried again."""
    name = request.queue_id or f"{request.sender} {request.recipients}"
    return blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()
