"""The engine: one message in, an outcome for every recipient out.

All doors use it, and a door decides nothing about delivery. A `Context` is shared by all
messages, and a `Delivery` takes one message from call to outcome. The engine also says
what would happen to a message (`Engine.plan`, `Engine.forecast`).
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, parse_mailbox, parse_reverse_path
from mxpolicy.delivery import own_outcomes
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.delivery import Delivery
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.plan import Plan, destination
from mxpolicy.delivery.request import Request
from mxpolicy.outcome import Outcome
from mxpolicy.routing.domain_record import is_missing
from mxpolicy.routing.nexthop import NexthopError, parse_nexthop

if TYPE_CHECKING:
    from mxpolicy.delivery.fast_path import FastPath
    from mxpolicy.delivery.forecast import Forecast
    from mxpolicy.options import Options
    from mxpolicy.routing.kept_findings import KeptFindings

__all__ = ["Engine"]


def _fast_path() -> FastPath:
    # A process for one message does not need it.
    from mxpolicy.delivery.fast_path import FastPath

    return FastPath()


class _Deliveries(set[Delivery]):
    """Those that have not ended.

    Attributes:
        stops: Why each one is cancelled, also as it begins; None while none is.
    """

    stops: str | None = None


class Engine:
    """Delivers messages, also many at a time, and says what would happen to one.

    Args:
        context: What all messages share.

    Attributes:
        under_way: The deliveries that have not ended, those of `renewed` engines too.
        fast_path: What some messages go; None where no session waits for another.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.under_way = _Deliveries()
        self.fast_path = _fast_path() if context.destinations is not None else None

    def renewed(self, options: Options) -> Engine:
        """Return an engine by *options* that shares all else; see `Context.renewed`."""
        engine = Engine(self.context.renewed(options))
        engine.under_way = self.under_way
        engine.fast_path = self.fast_path
        return engine

    @cached_property
    def findings(self) -> KeptFindings[Plan]:
        """What was found about domains; see `mxpolicy.delivery.inquiry`."""
        # A process for one message does not need it.
        from mxpolicy.routing.kept_findings import KeptFindings

        return KeptFindings()

    async def plan(
        self,
        nexthop: str,
        sender: str,
        recipient: str,
        within: float | None = None,
    ) -> Plan:
        """Return which hosts a message would be tried at, and why; none is dialled.

        It uses what `deliver` uses, so that it shows what will happen.

        Args:
            nexthop: ``""`` means the recipient's own domain.
            sender: Reverse-path; ``""`` or ``<>`` is the null one.
            recipient: Forward-path; ``""`` when it is not known. Then the nexthop
                counts as written by the operator, so no failure of it bounces.
            within: Seconds, where there is less time than a message has.
        """
        try:
            reverse_path = parse_reverse_path(sender)
        except AddressError as error:
            return Plan(nexthop, (), refusal=own_outcomes.bad_sender(error))
        try:
            mailbox = parse_mailbox(recipient) if recipient else None
        except AddressError as error:
            return Plan(nexthop, (), refusal=own_outcomes.bad_recipient(error))
        nexthop, domain = destination(nexthop, mailbox.domain if mailbox else "")
        try:
            return await self.context.planner.plan(
                parse_nexthop(nexthop, self.context.options.port),
                destination_domain=domain,
                reverse_path=reverse_path.wire if reverse_path else "",
                forward_path=mailbox.wire if mailbox else "",
                within=within,
            )
        except NexthopError as error:
            return Plan(nexthop, (), refusal=own_outcomes.bad_nexthop(error))
        except AddressError as error:  # an international name, see parse_nexthop
            return Plan(nexthop, (), refusal=own_outcomes.own_trouble(error))

    async def forecast(
        self,
        nexthop: str,
        sender: str,
        recipient: str,
        within: float | None = None,
    ) -> Forecast:
        """Return what would happen to a message now: the plan, and what is remembered.

        It uses what `deliver` uses. No host is dialled, and nothing is written.

        Args:
            nexthop: See `plan`.
            sender: See `plan`.
            recipient: See `plan`.
            within: See `plan`.
        """
        plan = await self.plan(nexthop, sender, recipient, within)
        return await self.forecast_of(plan, recipient)

    async def forecast_of(self, plan: Plan, recipient: str) -> Forecast:
        """Return what would happen to a message with *plan* now; see `forecast`.

        Args:
            plan: Made for *recipient* not long ago: what DNS said still holds.
            recipient: See `plan`.
        """
        # A delivery does not need it, and each import costs time in every process.
        from mxpolicy.delivery.forecast import Forecast, forecast

        soft = await self.context.failed_lookups.recent(plan, note=False)
        plan = plan._replace(unresolved=soft)
        if plan.refusal is None:
            known = await self.context.memory.advise(plan.aim, plan.candidates)
            return forecast(plan, known, self.context.memory.options)
        refusal = plan.refusal
        if recipient and is_missing(refusal):
            # The recipient is an address, or there would be another refusal.
            _, domain = destination(plan.nexthop, parse_mailbox(recipient).domain)
            domains = self.context.domains
            refusal = await domains.unless_stale(domain, refusal, note=False)
        return Forecast(plan._replace(refusal=plan.as_far_as_known(refusal)))

    def new_mail_data(self) -> MailData:
        """Return mail data for `begin`; its memory is shared with all other messages."""
        limit = self.context.options.limits.message_memory
        return MailData(memory_limit=limit, memory=self.context.spool_memory)

    def begin(self, request: Request, mail_data: MailData) -> Delivery:
        """Begin to deliver *mail_data*, which stays open until the delivery has ended."""
        delivery = Delivery(self.context, request, mail_data)
        self.under_way.add(delivery)
        delivery.ended.add_done_callback(lambda _: self.under_way.discard(delivery))
        if self.under_way.stops is not None:
            delivery.start()
            delivery.cancel(self.under_way.stops)
        elif self.fast_path is not None:
            self.fast_path.begin(delivery)
        else:
            delivery.start()
        return delivery

    async def deliver(self, request: Request, mail_data: MailData) -> list[Outcome]:
        """Deliver *mail_data*; see `Delivery.outcomes`."""
        return await self.begin(request, mail_data).outcomes()

    async def stop(self, why: str) -> None:
        """Return when no delivery is under way; see `Delivery.cancel` for what they do.

        One that begins all the same is cancelled, too. No session waits any more, for
        another message or for a late reply.

        Args:
            why: For the text of the deferrals.
        """
        self.under_way.stops = why
        self.context.sessions.stop()
        while self.under_way:
            for delivery in self.under_way:
                delivery.cancel(why)
            await asyncio.wait([one.ended for one in self.under_way])
        if self.context.late_replies is not None:
            await self.context.late_replies.stop()

    async def abandon(self) -> None:
        """End all deliveries at once; a dot without an answer is noted as a doubt."""
        while self.under_way:
            for delivery in [*self.under_way]:
                delivery.abandon()
            await asyncio.wait([one.ended for one in self.under_way])
