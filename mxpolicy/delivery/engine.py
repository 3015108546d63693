"""All that a door sees: one message in, an outcome for every recipient out.

The only wiring. Nothing about delivery is decided in a door, and nothing about doors
here. The way of a message, recipients grouped by nexthop:

1. `Claims`: who has it already, was refused, or is at it elsewhere (the journal).
2. `Stay.enter`: whether there is a place, or others wait for the same destination.
3. `Planner`: the hosts, in order of preference, or why there are none.
   `FailedLookups` says which better hosts could not be looked up, `DomainHistory` whether a
   domain that DNS does not know took mail lately.
4. `Visit.consult`: the order by what is remembered, or that all failed a moment ago.
5. `Stay.dial`: whether those hosts may be dialled now.
6. `Attempt`: the race and the transactions, while `Visit` learns from what happens.
7. Back again: each outcome goes to the journal and the door as soon as it exists.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from math import inf
from typing import NamedTuple

from mxpolicy.address import AddressError, parse_mailbox, parse_reverse_path
from mxpolicy.delivery import events, journal, trouble
from mxpolicy.delivery.admission import Admission, Stay
from mxpolicy.delivery.attempt import DOT_TIME, Attempt
from mxpolicy.delivery.claims import Claim, Claims
from mxpolicy.delivery.context import Context, Dial
from mxpolicy.delivery.domain_history import DomainHistory, StaleMx
from mxpolicy.delivery.envelope import Envelope, Recipient
from mxpolicy.delivery.events import Delays
from mxpolicy.delivery.failed_lookups import FailedLookups
from mxpolicy.delivery.forecast import Forecast, forecast
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.plan import Lookups, Plan, Planner
from mxpolicy.delivery.recall import Memory, Visit
from mxpolicy.errors import LocalTrouble
from mxpolicy.net.dial import dial as dial_directly
from mxpolicy.net.own_address import is_local_address
from mxpolicy.net.own_name import own_name
from mxpolicy.net.resolver import Resolver
from mxpolicy.options import Options
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.reply import printable
from mxpolicy.routing.candidate import DIRECT
from mxpolicy.routing.domain_record import is_missing, is_stale
from mxpolicy.routing.nexthop import NexthopError, nexthop_aim, parse_nexthop
from mxpolicy.routing.own import OwnIdentity
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import Store

__all__ = ["Engine", "Request"]


class Request(NamedTuple):
    """What a door was asked to deliver, in the mail server's own words.

    Attributes:
        sender: Reverse-path; ``""`` or ``<>`` is the null one.
        recipients: Forward-paths, at least one.
        nexthop: ``""`` means each recipient's own domain.
        queue_id: The mail server's name for the message; may be empty.
        deadline: Seconds from now, in which the final dot must be sent.
        ends: Seconds from now, after which the mail server does not listen any more.
    """

    sender: str
    recipients: tuple[str, ...]
    nexthop: str
    queue_id: str
    deadline: float
    ends: float = inf


class Engine:
    """Delivers messages, any number, also at the same time.

    Args:
        options: The configuration.
        observe: Told everything that happens; see `mxpolicy.delivery.events`.
        input_is_complete: Whether the mail data is known to be whole; asked
            just before the final dot.
        store: What is remembered, in a store that never raises; by default only as
            long as this engine lives.
        clock: Seconds, monotonic, in step with the event loop's.
        utc: Seconds since the epoch, in step with the store's.
        lookups: Asks DNS; by default the resolver of *options*.
        dial: Connects to a candidate.
        is_own_address: Whether an address is one of this machine's.
        owner: Returns which process this is.
        lives: Whether a process that shares the store may still be at work.
    """

    def __init__(
        self,
        options: Options,
        observe: events.Observe,
        input_is_complete: Callable[[], bool] = lambda: True,
        *,
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
        utc: Callable[[], float] = time.time,
        lookups: Lookups | None = None,
        dial: Dial = dial_directly,
        is_own_address: Callable[[str], bool] = is_local_address,
        owner: Callable[[], journal.Owner] = journal.myself,
        lives: Callable[[journal.Owner], bool] = journal.is_alive,
    ) -> None:
        self._port = options.port
        helo = options.helo or own_name()
        identity = OwnIdentity(
            (helo, *options.own_names), options.own_addresses, is_own_address
        )
        self._store = store or MemoryStore()
        self._utc = utc
        self._memory = Memory(self._store, options.memory, utc=utc)
        self._domains = DomainHistory(self._store, utc=utc)
        self._admission = Admission(
            self._store, options.limits.processes, utc=utc, owner=owner, lives=lives
        )
        self._failed_lookups = FailedLookups(self._store, utc=utc)
        asked = lookups or Resolver(options.resolver)
        self._planner = Planner(StaleMx(asked, self._domains), options, identity)
        self._context = Context(
            options,
            helo=helo,
            is_myself=lambda name: identity.has_name(name.lower().rstrip(".")),
            clock=clock,
            observe=_harmless(observe),
            input_is_complete=input_is_complete,
            dial=dial,
        )

    async def plan(
        self,
        nexthop: str,
        sender: str,
        recipient: str,
        within: float | None = None,
    ) -> Plan:
        """Return whom a message would be tried at, and why; nobody is dialled.

        As `deliver` goes about it, so that what is shown is what will happen.

        Args:
            nexthop: ``""`` means the recipient's own domain.
            sender: Reverse-path; ``""`` or ``<>`` is the null one.
            recipient: Forward-path; ``""`` when it is not known. Then the nexthop
                is taken for the operator's, whose trouble never bounces.
            within: Seconds for it, where there is less time than a message has.
        """
        try:
            reverse_path = parse_reverse_path(sender)
        except AddressError as error:
            return Plan(nexthop, (), refusal=trouble.bad_sender(error))
        try:
            mailbox = parse_mailbox(recipient) if recipient else None
        except AddressError as error:
            return Plan(nexthop, (), refusal=trouble.bad_recipient(error))
        nexthop, domain = _aim(nexthop, mailbox.domain if mailbox else "")
        try:
            plan = await self._planner.plan(
                parse_nexthop(nexthop, self._port),
                destination_domain=domain,
                reverse_path=reverse_path.wire if reverse_path else "",
                forward_path=mailbox.wire if mailbox else "",
                within=within,
            )
            return _with_remarks(plan)
        except NexthopError as error:
            return Plan(nexthop, (), refusal=trouble.bad_nexthop(error))
        except AddressError as error:  # an international name, see parse_nexthop
            return Plan(nexthop, (), refusal=trouble.own_trouble(error))

    async def forecast(
        self,
        nexthop: str,
        sender: str,
        recipient: str,
        within: float | None = None,
    ) -> Forecast:
        """Return what would become of a message now: the plan, and what is remembered.

        As `deliver` goes about it; nobody is dialled, and nothing is written.

        Args:
            nexthop: See `plan`.
            sender: See `plan`.
            recipient: See `plan`.
            within: See `plan`.
        """
        plan = await self.plan(nexthop, sender, recipient, within)
        soft = await self._failed_lookups.would_note(plan)
        plan = plan._replace(unresolved=soft)
        if plan.refusal is None:
            known = await self._memory.advise(plan.nexthop, plan.candidates)
            return forecast(plan, known, self._memory.options)
        refusal = plan.refusal
        if recipient and isinstance(refusal, Bounced) and is_missing(refusal):
            # It was understood, or there would be another refusal.
            domain = _aim(nexthop, parse_mailbox(recipient).domain)[1]
            if domain and await self._domains.is_stale_usable(domain, note=False):
                refusal = _doubted(refusal)
        return Forecast(plan._replace(refusal=_as_far_as_known(plan, refusal)))

    def is_own_name(self, domain: str) -> bool:
        """Return whether *domain* is the name given in EHLO or one of ``own_names``."""
        return self._context.is_myself(domain)

    async def deliver(self, request: Request, mail_data: MailData) -> list[Outcome]:
        """Deliver *mail_data* and return the outcome of each recipient, in their order.

        Each outcome is also observed, as soon as it exists, as
        `events.RecipientSettled`. Nothing a host, a name server or a strange
        address does makes this raise; our own bugs come out as `Deferred`. When the
        task is cancelled, whoever is not settled yet is deferred, and
        `asyncio.CancelledError` goes on.
        """
        parts = _Parts(
            self._context,
            self._planner,
            self._memory,
            self._domains,
            self._failed_lookups,
            self._store,
            self._port,
            self._utc,
            self._admission,
        )
        return await _Delivery(parts, request, mail_data).run()


class _Parts(NamedTuple):
    """What an engine's deliveries have in common."""

    context: Context
    planner: Planner
    memory: Memory
    domains: DomainHistory
    failed_lookups: FailedLookups
    store: Store
    port: int
    utc: Callable[[], float]
    admission: Admission


class _Delivery:
    """One call of `Engine.deliver`: its recipients, grouped by where they go."""

    def __init__(self, parts: _Parts, request: Request, mail_data: MailData) -> None:
        self._context = parts.context
        self._planner = parts.planner
        self._memory = parts.memory
        self._domains = parts.domains
        self._failed_lookups = parts.failed_lookups
        self._store = parts.store
        self._port = parts.port
        self._request = request
        self._mail_data = mail_data
        self._began = parts.context.clock()
        self._outcomes: dict[int, Outcome] = {}
        self._recipients: list[Recipient] = []
        self._utc = parts.utc
        self._admission = parts.admission
        self._claims = self._make_claims({}, 0.0)

    async def run(self) -> list[Outcome]:
        try:
            await self._deliver()
        except asyncio.CancelledError:
            stopped = LocalTrouble("the delivery was cancelled")
            self._settle_all(trouble.own_trouble(stopped))
            await self._finish_journal()
            raise
        except Exception as error:
            self._observe_trouble(error)
            self._settle_all(trouble.own_trouble(_cause(error)))
        await self._finish_journal()
        return [self._outcomes[place] for place in range(len(self._request.recipients))]

    def _make_claims(self, keys: dict[int, str], until: float) -> Claims:
        admission = self._admission
        return Claims(
            self._store,
            keys,
            until,
            self._observe_trouble,
            self._utc,
            owner=admission.owner,
            lives=admission.lives,
        )

    async def _finish_journal(self) -> None:
        try:
            await self._claims.finish(self._outcomes.values())
        except Exception as error:
            self._observe_trouble(error)

    async def _deliver(self) -> None:
        try:
            reverse_path = parse_reverse_path(self._request.sender)
        except AddressError as error:
            self._settle_all(trouble.bad_sender(error))
            return
        hops = self._mail_data.received_count
        if hops >= self._context.options.limits.hops:
            self._settle_all(trouble.too_many_hops(hops))
            return
        self._understand_recipients()
        envelope = Envelope(
            reverse_path, tuple(self._recipients), self._request.queue_id
        )
        keys = self._journal_keys(envelope)
        until = self._request.deadline + DOT_TIME
        self._claims = self._make_claims(keys, until)
        async with asyncio.TaskGroup() as group:
            for (nexthop, domain, _), indices in self._groups().items():
                group.create_task(self._send_once(envelope, nexthop, domain, indices))

    def _journal_keys(self, envelope: Envelope) -> dict[int, str]:
        """Return the key of each recipient's entry in the journal, if there is one.

        Without the mail server's name for the message, and without the field that
        each mail server writes on top, two equal messages would be taken for one.
        """
        name = self._request.queue_id
        if not self._context.options.journal.keep or not (
            name or self._mail_data.has_received_on_top
        ):
            return {}
        digest = journal.digest_of(self._mail_data.chunks())
        sender = envelope.reverse_path.wire if envelope.reverse_path else ""
        return {
            index: journal.entry_key(
                name, self._aim_of(mailbox.domain), digest, sender, mailbox.wire
            )
            for index, (_, _, mailbox) in enumerate(envelope.recipients)
        }

    def _aim_of(self, domain: str) -> str:
        nexthop, _ = _aim(self._request.nexthop, domain)
        return journal.aim_of(nexthop, self._port)

    def _understand_recipients(self) -> None:
        """Fill the envelope; whoever cannot be written to is settled at once."""
        for place, text in enumerate(self._request.recipients):
            try:
                mailbox = parse_mailbox(text)
            except AddressError as error:
                self._settle(place, trouble.bad_recipient(error))
            else:
                self._recipients.append(Recipient(place, printable(text), mailbox))

    def _groups(self) -> dict[tuple[str, str, bool], list[int]]:
        """Return {(nexthop, destination domain, needs SMTPUTF8): recipients' indices}.

        Those whose address needs SMTPUTF8 go by themselves: a host that cannot
        take theirs is no reason to refuse the others.
        """
        groups: dict[tuple[str, str, bool], list[int]] = {}
        for index, recipient in enumerate(self._recipients):
            mailbox = recipient.mailbox
            aim = _aim(self._request.nexthop, mailbox.domain)
            groups.setdefault((*aim, mailbox.needs_smtputf8), []).append(index)
        return groups

    async def _send_once(
        self, envelope: Envelope, nexthop: str, domain: str, indices: list[int]
    ) -> None:
        """Send to those of a group who have not got it, or been refused, already."""
        claim = await self._claims.claim(indices)
        self._settle_earlier(claim)
        async with asyncio.TaskGroup() as group:
            if claim.ours:
                group.create_task(self._send(envelope, nexthop, domain, claim.ours))
            if claim.busy:
                group.create_task(
                    self._send_after_others(envelope, nexthop, domain, claim.busy)
                )

    async def _send_after_others(
        self, envelope: Envelope, nexthop: str, domain: str, indices: list[int]
    ) -> None:
        """Wait for what another process makes of the same message."""
        wait = self._context.options.journal.wait
        left = self._began + self._request.deadline - self._context.clock()
        claim = await self._claims.claim_later(indices, min(wait, left / 3))
        self._settle_earlier(claim)
        self._settle_group(claim.busy, trouble.under_way())
        if claim.ours:
            await self._send(envelope, nexthop, domain, claim.ours)

    async def _send(
        self, envelope: Envelope, nexthop: str, domain: str, indices: list[int]
    ) -> None:
        """Plan and attempt for one group; the owner of its whole trouble."""
        deadline = self._request.deadline
        try:
            aim = nexthop_aim(parse_nexthop(nexthop, self._port))
            stay = Stay(self._admission, aim, self._now, deadline)
            try:
                await self._send_from(stay, envelope, nexthop, domain, indices)
            finally:
                await stay.leave()
        except NexthopError as error:
            self._settle_group(indices, trouble.bad_nexthop(error))
        except Exception as error:
            self._observe_trouble(error)
            self._settle_group(indices, trouble.own_trouble(_cause(error)))

    async def _send_from(
        self,
        stay: Stay,
        envelope: Envelope,
        nexthop: str,
        domain: str,
        indices: list[int],
    ) -> None:
        """Plan and attempt, once there is a place for it."""
        refusal: Outcome | None = await stay.enter()
        if refusal is not None:
            self._settle_group(indices, refusal)
            return
        plan = await self._plan(envelope, nexthop, domain)
        stay.planned()
        if plan.refusal is not None:
            refusal = await self._unless_stale(domain, plan.refusal)
            self._settle_group(indices, _as_far_as_known(plan, refusal))
            return
        if await self._attempt(stay, envelope, plan, indices):
            await self._remember_domain(domain, plan)

    async def _attempt(
        self, stay: Stay, envelope: Envelope, plan: Plan, indices: list[int]
    ) -> bool:
        """Attempt a delivery, with what is remembered of the candidates.

        Returns whether anybody took the message.
        """
        visit = Visit(
            self._memory, self._context, plan.nexthop, self._message_id(), self._began
        )

        was_taken = False

        def observe(event: events.Event) -> None:
            visit.observe(event)
            stay.observe(event)
            self._context.observe(event)

        def settle(
            index: int, outcome: Outcome, delays: Delays, tried: tuple[str, ...]
        ) -> None:
            nonlocal was_taken
            outcome = _with_unresolved(plan, _as_far_as_known(plan, outcome))
            self._settle_recipient(index, outcome, delays, tried)
            visit.settled(outcome)
            was_taken = was_taken or isinstance(outcome, Delivered)

        linger = 0.0
        deadline = self._began + self._request.deadline
        try:
            advised = await visit.consult(plan.candidates, deadline)
            if advised.refusal is not None:
                for index in indices:
                    self._settle_recipient(index, advised.refusal, None, advised.tried)
                return False
            refusal = await stay.dial(advised.candidates)
            if refusal is not None:
                self._settle_group(indices, refusal)
                return False
            visit.probe()
            attempt = Attempt(
                self._context.observed_by(observe),
                plan._replace(candidates=advised.candidates),
                envelope,
                indices,
                self._mail_data,
                began=self._began,
                deadline=deadline,
                settle=settle,
                journal=self._claims,
                known=advised.known,
                ends=self._began + self._request.ends,
            )
            await attempt.run()
            linger = self._memory.linger
        finally:
            await visit.finish(linger)
        return was_taken

    async def _unless_stale(self, domain: str, refusal: Outcome) -> Outcome:
        """Return *refusal*, deferred where the domain took mail until just now."""
        if not domain or not isinstance(refusal, Bounced) or not is_missing(refusal):
            return refusal
        if not await self._domains.is_stale_usable(domain):
            return refusal
        return _doubted(refusal)

    async def _remember_domain(self, domain: str, plan: Plan) -> None:
        for lookup in plan.lookups:
            if lookup.rdtype == "MX" and lookup.name == domain:
                await self._domains.took(domain, lookup)

    def _message_id(self) -> str:
        """Return a name for the message, the same when it is tried again."""
        request = self._request
        name = request.queue_id or f"{request.sender} {request.recipients}"
        return blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()

    async def _plan(self, envelope: Envelope, nexthop: str, domain: str) -> Plan:
        plan = await self._planner.plan(
            parse_nexthop(nexthop, self._port),
            destination_domain=domain,
            reverse_path=envelope.reverse_path.wire if envelope.reverse_path else "",
            forward_path=envelope.recipients[0].mailbox.wire,
        )
        plan = _with_remarks(plan)
        plan = plan._replace(unresolved=await self._failed_lookups.note(plan))
        self._context.observe(
            events.Planned(self._now(), nexthop, plan.candidates, plan.remarks)
        )
        return plan

    # -- settling ---------------------------------------------------------

    def _settle_all(self, outcome: Outcome) -> None:
        for place in range(len(self._request.recipients)):
            self._settle(place, outcome)

    def _settle_earlier(self, claim: Claim) -> None:
        for index, outcome in claim.settled.items():
            self._settle_recipient(index, outcome, None, ())

    def _settle_group(self, indices: list[int], outcome: Outcome) -> None:
        for index in indices:
            self._settle_recipient(index, outcome, None, ())

    def _settle_recipient(
        self,
        index: int,
        outcome: Outcome,
        delays: Delays | None,
        tried: tuple[str, ...],
    ) -> None:
        place = self._recipients[index].place
        if isinstance(outcome, Bounced):
            hosts = set(map(journal.host_of, self._claims.doubts(index)))
            outcome = trouble.with_doubts(outcome, hosts)
        if place not in self._outcomes:
            self._claims.settled(index, outcome)
            self._settle(place, outcome, delays, tried)

    def _settle(
        self,
        place: int,
        outcome: Outcome,
        delays: Delays | None = None,
        tried: tuple[str, ...] = (),
    ) -> None:
        """Settle a recipient, once: what comes later is about something settled."""
        if place in self._outcomes:
            return
        self._outcomes[place] = outcome
        now = self._now()
        self._context.observe(
            events.RecipientSettled(
                at=now,
                recipient=printable(self._request.recipients[place]),
                outcome=outcome,
                delays=delays or Delays(dns=now),
                egress=DIRECT,
                tried=tried,
            )
        )

    def _observe_trouble(self, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        self._context.observe(events.Trouble(self._now(), text))

    def _now(self) -> float:
        return self._context.clock() - self._began


def _aim(nexthop: str, domain: str) -> tuple[str, str]:
    """Return the nexthop, and the destination domain of a recipient of *domain*.

    A nexthop that is not the recipient's own domain was written by the operator:
    then the destination domain is empty, and DNS trouble is the operator's to mend.
    """
    nexthop = nexthop or domain
    try:
        # Read as the recipient's was: it may be spelt in U-labels, or [ipv6:...].
        own = parse_mailbox(f"x@{nexthop.strip()}").domain == domain
    except AddressError:
        own = False
    return nexthop, domain if own else ""


def _with_remarks(plan: Plan) -> Plan:
    """Return *plan*, which tells what in it was remembered instead of looked up."""
    remarks = tuple(
        printable(f"remembered: MX of {one.name}; DNS says: {one.reason}")
        for one in plan.lookups
        if is_stale(one)
    )
    return plan._replace(remarks=plan.remarks + remarks)


def _doubted(refusal: Bounced) -> Outcome:
    text = f"{refusal.text}; it took mail not long ago, so this is doubted for a day"
    return trouble.soft(refusal)._replace(text=trouble.one_line(text))


def _as_far_as_known(plan: Plan, outcome: Outcome) -> Outcome:
    """Return *outcome*; a bounce is none where the hosts are those of yesterday."""
    if isinstance(outcome, Bounced) and any(map(is_stale, plan.lookups)):
        text = f"{outcome.text} (DNS fails; by MX records of before)"
        return trouble.soft(outcome)._replace(text=trouble.one_line(text))
    return outcome


def _with_unresolved(plan: Plan, outcome: Outcome) -> Outcome:
    """Return *outcome*; one that is put off says which hosts cannot be looked up."""
    if isinstance(outcome, Deferred) and plan.unresolved:
        names = ", ".join(dict.fromkeys(one.name for one in plan.unresolved))
        text = f"{outcome.text}; better, and cannot be looked up: {names}"
        return outcome._replace(text=trouble.one_line(text))
    return outcome


def _cause(error: Exception) -> Exception:
    """Return the first of those that a task group has put together."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _harmless(observe: events.Observe) -> events.Observe:
    """Return *observe*, unable to do harm: no mail is lost or doubled for a log line."""

    def tell(event: events.Event) -> None:
        with suppress(Exception):
            observe(event)

    return tell
