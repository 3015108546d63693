"""One message on its way: from the mail server's call to an outcome for each recipient.

A `Delivery` calls the parts in their order and decides nothing itself. Recipients that
go the same way are a group. For each group:

1. `Claims`: which recipients have it already, were refused, or are delivered to by
   another process (the journal).
2. `Stay.enter`: whether there is a place, or others wait for the same destination.
3. `Planner`: the hosts, in order of preference, or why there are none.
   `FailedLookups` says which better hosts could not be looked up. `DomainHistory` says
   whether a domain that DNS does not know took mail lately.
4. `consult`: the order by what is remembered, or that all failed a moment ago.
5. `Stay.dial`: whether those hosts may be dialled now. In a daemon, `Turn`: wait until
   they have a connection free, and look at what is remembered again.
6. `Attempt`: the race and the transactions. A `Learner` remembers what its events say of
   hosts. `Probes` dial, beside it, hosts whose pause is over.
7. `Settlement`: each outcome, as soon as it exists, is told to the door and the log
   (`Trace`), then to the journal.
8. `LateReplies`, in a daemon: a final dot that was not answered in time may still be.
   What comes is noted in the journal, for the next attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from hashlib import blake2b
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import AddressError, Mailbox, parse_mailbox, parse_reverse_path
from mxpolicy.delivery import events, journal, trouble
from mxpolicy.delivery.admission import Stay
from mxpolicy.delivery.attempt import Attempt
from mxpolicy.delivery.claims import Claims
from mxpolicy.delivery.consult import Consulted, consult
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.envelope import Envelope
from mxpolicy.delivery.events import Delays
from mxpolicy.delivery.learner import Learner
from mxpolicy.delivery.leases import Leases
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.offer import Message
from mxpolicy.delivery.plan import Plan, destination
from mxpolicy.delivery.probe import LINGER, Probes
from mxpolicy.delivery.settlement import Recipient, RecipientState, Settlement
from mxpolicy.delivery.trace import Trace
from mxpolicy.delivery.transaction import DOT_TIME
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Deferred, Outcome
from mxpolicy.routing.nexthop import NexthopError, nexthop_aim, parse_nexthop

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mxpolicy.delivery.connections import Turn
    from mxpolicy.delivery.late_reply import LateReply
    from mxpolicy.delivery.session import Session
    from mxpolicy.protocol.extensions import MailDsn, RcptDsn
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.known_hosts import KnownHosts

__all__ = ["Delivery", "Request"]


async def _always() -> bool:
    return True


class Request(NamedTuple):
    """What a door was asked to deliver, in the mail server's own words.

    Attributes:
        sender: Reverse-path; ``""`` or ``<>`` is the null one.
        recipients: Forward-paths, at least one.
        nexthop: ``""`` means each recipient's own domain.
        queue_id: The mail server's name for the message; may be empty.
        deadline: Seconds from now in which the final dot must be sent.
        ends: Seconds from now after which the mail server no longer listens.
        observe: Told everything that happens to the message; see
            `mxpolicy.delivery.events`.
        has_process: Whether a process of the mail server waits for the outcome, as with
            pipe(8). There are few of those (`mxpolicy.routing.places`). So the message
            needs a place for it, and does not wait for its turn at a host.
        dsn: What the sender wants to be told (RFC 3461); None where nothing was said.
        recipients_dsn: The same of recipients, by their number. A host that does not
            offer DSN hears of neither.
        may_send_dot: Asked before the mail data is sent, and again just before the final
            dot, which makes the message the host's (RFC 5321 §4.1.1.4). The message is
            deferred where it returns False.
    """

    sender: str
    recipients: tuple[str, ...]
    nexthop: str
    queue_id: str
    deadline: float
    ends: float = inf
    observe: events.Observe = lambda event: None
    dsn: MailDsn | None = None
    recipients_dsn: Mapping[int, RcptDsn] = MappingProxyType({})
    may_send_dot: Callable[[], Awaitable[bool]] = _always
    has_process: bool = True


class _Group:
    """Recipients that go the same way.

    Attributes:
        nexthop: Where they go.
        domain: Their destination domain; empty where the operator wrote the nexthop.
        numbers: The numbers of the recipients.
        task: Delivers to them.
        attempt: None until the hosts are known.
    """

    __slots__ = ("attempt", "domain", "nexthop", "numbers", "task")

    def __init__(self, nexthop: str, domain: str, numbers: list[int]) -> None:
        self.nexthop = nexthop
        self.domain = domain
        self.numbers = numbers
        self.task: asyncio.Task[None]
        self.attempt: Attempt | None = None


class Delivery:
    """One message on its way: its recipients, grouped by where they go.

    Each outcome is observed, as soon as it exists, as `events.RecipientSettled`.

    Attributes:
        task: Delivers. Cancelled, it settles all recipients at once: those that a host
            has, or may have, as such.
    """

    def __init__(self, context: Context, request: Request, mail_data: MailData) -> None:
        self._context = context
        self._trace = Trace(request.queue_id, context.clock, request.observe)
        self._request = request
        self._mail_data = mail_data
        self._envelope = Envelope(None, {})
        self._settlement = Settlement(request.recipients, self._report)
        self._journal_keys: dict[int, str] = {}
        self._owner = context.calls.begin()
        self._claims = Claims(
            context,
            self._settlement,
            self._journal_keys,
            self._owner,
            request.deadline + DOT_TIME,
            self._trace.trouble,
        )
        # By recipient, once its hosts are dialled: the learners are told, too.
        self._traces: dict[int, Trace] = {}
        self._groups: list[_Group] = []
        self._late: list[LateReply] = []
        self._opening: asyncio.Task[None] | None = None
        self._cancelled: Deferred | None = None
        self.task = asyncio.create_task(self._run())
        # Also where it is cancelled before it has begun to run.
        self.task.add_done_callback(lambda _: self._end())

    async def outcomes(self) -> list[Outcome]:
        """Return the outcome of each recipient, in their order, when all are known.

        Nothing that a host, a name server or a strange address does makes this raise. A
        bug of ours becomes a `Deferred`. When the calling task is cancelled, so is the
        delivery: recipients that are not settled yet are deferred at once, and
        `asyncio.CancelledError` goes on.
        """
        return await self.task

    def outcome(self, number: int) -> Outcome | None:
        """Return the outcome of the recipient *number*; None while it has none."""
        return self._settlement[number].outcome

    def settled(self) -> list[tuple[str, Outcome]] | None:
        """Return each recipient, printable, with its outcome; None until all have one."""
        texts = (one.text for one in self._settlement)
        outcomes = self._settlement.outcomes()
        return None if outcomes is None else list(zip(texts, outcomes, strict=True))

    def cancel(self, why: str) -> None:
        """Leave the message to the mail server, as far as that is still possible.

        No host is dialled and no final dot is sent any more. Recipients whose dot is out
        are settled by its reply, in `DOT_TIME` or less. All others are deferred at once.

        Args:
            why: For the text of those outcomes.
        """
        if self._cancelled is not None:
            return
        self._cancelled = trouble.cancelled(why)
        if not self._groups:
            if self._opening is not None:
                self._opening.cancel()
            self._settlement.settle_all(self._cancelled)
        for group in self._groups:
            if group.attempt is not None:
                group.attempt.cancel(self._cancelled)
            else:
                group.task.cancel()
                self._settlement.settle_all(self._cancelled, group.numbers)

    async def _run(self) -> list[Outcome]:
        try:
            if self._cancelled is None:
                async with asyncio.TaskGroup() as tasks:
                    self._opening = tasks.create_task(self._open(tasks))
        except asyncio.CancelledError:
            stopped = LocalTrouble("the delivery was cancelled")
            self._settlement.stop(trouble.own_trouble(stopped))
            await self._finish_journal()
            raise
        except Exception as error:
            self._trace.trouble(error)
            self._settlement.stop(trouble.own_trouble(error))
        await self._finish_journal()
        outcomes = self._settlement.outcomes()
        assert outcomes is not None, "every recipient has been settled"
        return outcomes

    def _end(self) -> None:
        """The mail server has its answer; late replies may follow."""
        for late in self._late:
            late.report_by(self._hear_late(late))
        if not self._late:
            self._context.calls.end(self._owner)

    async def _finish_journal(self) -> None:
        try:
            await self._claims.finish()
        except Exception as error:
            self._trace.trouble(error)

    async def _open(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to send to each group of recipients, unless the message goes nowhere."""
        try:
            reverse_path = parse_reverse_path(self._request.sender)
        except AddressError as error:
            self._settlement.settle_all(trouble.bad_sender(error))
            return
        digest = await self._mail_data.digest()
        hops = self._mail_data.received_count
        if hops >= self._context.options.limits.hops:
            self._settlement.settle_all(trouble.too_many_hops(hops))
            return
        request = self._request
        self._envelope = Envelope(
            reverse_path, self._mailboxes(), request.dsn, request.recipients_dsn
        )
        self._note_journal_keys(digest)
        for (nexthop, domain, _), numbers in self._grouped().items():
            group = _Group(nexthop, domain, numbers)
            self._begin(tasks, group, self._send_once(tasks, group))

    def _begin(
        self, tasks: asyncio.TaskGroup, group: _Group, work: Coroutine[None, None, None]
    ) -> None:
        group.task = tasks.create_task(work)
        self._groups.append(group)

    def _mailboxes(self) -> dict[int, Mailbox]:
        """Return the forward-paths; settle those that are no address."""
        mailboxes = {}
        for number, text in enumerate(self._request.recipients):
            try:
                mailboxes[number] = parse_mailbox(text)
            except AddressError as error:
                self._settlement.settle(number, trouble.bad_recipient(error))
        return mailboxes

    def _note_journal_keys(self, digest: bytes) -> None:
        """Give each recipient its key in the journal, if the journal is kept.

        It needs the mail server's name for the message, or the field that each mail
        server writes on top. Without both, two equal messages would be taken for one.
        """
        name = self._request.queue_id
        if not self._context.options.journal.keep or not (
            name or self._mail_data.has_received_on_top
        ):
            return
        for number, mailbox in self._envelope.recipients.items():
            nexthop, _ = destination(self._request.nexthop, mailbox.domain)
            aim = journal.aim_of(nexthop, self._context.options.port)
            self._journal_keys[number] = journal.entry_key(
                name, aim, digest, self._envelope.sender, mailbox.wire
            )

    def _grouped(self) -> dict[tuple[str, str, bool], list[int]]:
        """Return {(nexthop, destination domain, needs SMTPUTF8): numbers}.

        Recipients whose address needs SMTPUTF8 go by themselves: a host that does not
        offer it must not keep the message from the others.
        """
        groups: dict[tuple[str, str, bool], list[int]] = {}
        for number, mailbox in self._envelope.recipients.items():
            aim = destination(self._request.nexthop, mailbox.domain)
            groups.setdefault((*aim, mailbox.needs_smtputf8), []).append(number)
        return groups

    async def _send_once(self, tasks: asyncio.TaskGroup, group: _Group) -> None:
        """Send to the group, except where the journal has an outcome or another process."""
        await self._claims.claim(group.numbers)
        busy = self._settlement.those(RecipientState.ELSEWHERE, group.numbers)
        group.numbers = self._settlement.those(RecipientState.OPEN, group.numbers)
        if busy:
            later = _Group(group.nexthop, group.domain, busy)
            self._begin(tasks, later, self._send_after_others(later))
        if group.numbers:
            await self._send(group)

    async def _send_after_others(self, group: _Group) -> None:
        """Wait for the outcome of another process, then send to the rest of the group."""
        wait = self._context.options.journal.wait
        left = self._request.deadline - self._trace.now()
        await self._claims.claim_later(group.numbers, min(wait, left / 3))
        busy = self._settlement.those(RecipientState.ELSEWHERE, group.numbers)
        self._settlement.settle_all(trouble.under_way(), busy)
        group.numbers = self._settlement.those(RecipientState.OPEN, group.numbers)
        if group.numbers:
            await self._send(group)

    async def _send(self, group: _Group) -> None:
        """Plan and attempt for one group; handle all that fails in it."""
        deadline = self._request.deadline
        try:
            aim = nexthop_aim(parse_nexthop(group.nexthop, self._context.options.port))
            stay = Stay(
                self._context.admission,
                self._owner,
                aim,
                self._trace.now,
                deadline,
                self._trace.trouble,
                needs_place=self._request.has_process,
            )
            try:
                await self._send_from(stay, group)
            finally:
                await stay.leave()
        except NexthopError as error:
            self._settlement.settle_all(trouble.bad_nexthop(error), group.numbers)
        except Exception as error:
            self._trace.trouble(error)
            self._settlement.stop(trouble.own_trouble(error), group.numbers)

    async def _send_from(self, stay: Stay, group: _Group) -> None:
        """Plan and attempt, once there is a place for it."""
        refusal: Outcome | None = await stay.enter()
        if refusal is not None:
            self._settlement.settle_all(refusal, group.numbers)
            return
        plan = await self._plan(group)
        stay.planned()
        if plan.refusal is not None:
            domains = self._context.domains
            refusal = await domains.unless_stale(group.domain, plan.refusal)
            self._settlement.settle_all(plan.as_far_as_known(refusal), group.numbers)
            return
        if await self._attempt(stay, group, plan):
            await self._context.domains.took(group.domain, plan.lookups)

    async def _attempt(self, stay: Stay, group: _Group, plan: Plan) -> bool:
        """Attempt a delivery, unless all hosts failed a moment ago, or have no place.

        Returns whether any host took the message.
        """
        leases = Leases(self._context.store, self._context.utc)
        turn = self._turn(plan)
        try:
            consulted = await self._consult(turn, leases, plan)
            if consulted.refusal is not None:
                for number in group.numbers:
                    self._settlement.settle(
                        number, consulted.refusal, tried=consulted.tried
                    )
                return False
            known = consulted.known
            refusal = await stay.dial(known.order)
            if refusal is not None:
                self._settlement.settle_all(refusal, group.numbers)
                return False
            plan = plan._replace(candidates=known.order)
            return await self._dial(stay, turn, group, plan, known, consulted.due)
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

    async def _dial(
        self,
        stay: Stay,
        turn: Turn | None,
        group: _Group,
        plan: Plan,
        known: KnownHosts,
        due: Iterable[Candidate],
    ) -> bool:
        """Dial the candidates, and probe those that are *due*; learn from both.

        Returns whether any host took the message.
        """
        learner = Learner(
            self._context.memory,
            self._trace,
            self._context.chance,
            plan.aim,
            self._message_id(),
            known.of_tls,
        )
        probes = Probes(self._context, self._trace, learner)
        learners = [learner.learn, stay.learn]
        if turn is not None:
            learners.insert(0, turn.learn)  # the learner asks what it knows
        trace = self._trace.with_learners(*learners)
        self._traces.update(dict.fromkeys(group.numbers, trace))

        message = Message(
            trace,
            self._envelope,
            self._mail_data,
            self._settlement,
            self._claims,
            self._request.may_send_dot,
            self._request.deadline,
            self._request.ends,
            self._keep,
        )
        group.attempt = Attempt(self._context, message, plan, group.numbers, known)
        try:
            for candidate in due:
                probes.begin(candidate)
            await group.attempt.run()
            await probes.finish(LINGER)
        finally:
            await probes.finish(0.0)
            await learner.finish()
        states = [self._settlement[number].state for number in group.numbers]
        return RecipientState.DELIVERED in states

    def _keep(self, session: Session, numbers: Sequence[int]) -> bool:
        """See `Message.keep`. Without a journal no retry would know of a late reply."""
        late_replies = self._context.late_replies
        known = [number for number in numbers if number in self._journal_keys]
        if late_replies is None or not known:
            return False
        seconds = self._context.options.transaction.late_reply
        give_back = self._context.sessions.give_back
        late = late_replies.keep(session, seconds, give_back)
        if late is None:
            return False
        self._late.append(late)
        self._settlement.may_answer(known, str(session.candidate.key))
        return True

    async def _hear_late(self, late: LateReply) -> None:
        """Note a late reply, or that none will come, for the next attempt."""
        relay = str(late.candidate.key)
        try:
            heard = await late.heard()
            ended = self._settlement.answered_late(relay, heard.reply)
            for number in ended:
                recipient = self._settlement[number]
                self._trace.tell(
                    events.LateReplyEnded,
                    late.candidate,
                    recipient.text,
                    recipient.state is RecipientState.TAKEN_LATE,
                    heard.text,
                )
            await self._claims.finish_late(ended)
        except Exception as error:
            self._trace.trouble(error)
        finally:
            self._late.remove(late)
            if not self._late:
                self._context.calls.end(self._owner)

    def _message_id(self) -> str:
        """Return a name for the message, the same when it is tried again."""
        request = self._request
        name = request.queue_id or f"{request.sender} {request.recipients}"
        return blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()

    async def _plan(self, group: _Group) -> Plan:
        plan = await self._context.planner.plan(
            parse_nexthop(group.nexthop, self._context.options.port),
            destination_domain=group.domain,
            reverse_path=self._envelope.sender,
            forward_path=next(iter(self._envelope.recipients.values())).wire,
        )
        plan = plan._replace(unresolved=await self._context.failed_lookups.recent(plan))
        self._trace.tell(events.Planned, group.nexthop, plan.candidates, plan.remarks)
        return plan

    def _report(self, recipient: Recipient) -> None:
        """Tell the door and the log, then the journal, what became of *recipient*."""
        try:
            self._tell_outcome(recipient)
        except Exception as error:  # no second copy for that
            self._trace.trouble(error)
        self._claims.note_outcome(recipient)

    def _tell_outcome(self, recipient: Recipient) -> None:
        assert recipient.outcome is not None
        trace = self._traces.get(recipient.number, self._trace)
        trace.tell(
            events.RecipientSettled,
            recipient=recipient.text,
            outcome=recipient.outcome,
            delays=recipient.delays or Delays(dns=self._trace.now()),
            tried=recipient.tried,
        )
