"""What is certain about a domain before there is mail for it, without dialling a host.

The doors that are asked before the mail comes ask here: LMTP at RCPT, and the access
policy. An inquiry makes the engine's forecast: the plan, and what is remembered of its
hosts. So what is said here is what would have bounced, or been deferred from memory.

- Those who ask about one domain at the same time share one inquiry.
- It is bounded in time. So is how many are under way, and how many wait for a place.
- What was found is kept for all doors, as long as it holds
  (`mxpolicy.routing.kept_findings`).

Each door has inquiries and places of its own. Strangers ask the access policy, by senders
that they choose, and must not take the places of mail that is on its way out.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

from mxpolicy.outcome import Deferred
from mxpolicy.routing.access_rules import finding, unreachable
from mxpolicy.routing.kept_findings import (
    NOTHING_FOUND,
    Found,
    Kept,
    memory_holds,
    plan_holds,
)
from mxpolicy.routing.mx import DIRECTORY_FAILURE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.forecast import Forecast

__all__ = ["MAX_AT_ONCE", "MAX_INQUIRIES", "Inquiries", "Inquiry", "found_by"]

# Plans under way at once, for all who ask: each may have some descriptors open for DNS,
# and a process has 1024 by default.
MAX_AT_ONCE = 100

# Inquiries at once, those that wait for a place included. Postfix has 100 smtpd(8) by
# default, each with one question about two domains.
MAX_INQUIRIES = 2000

# Characters of a domain (RFC 1035 §2.3.4). What is longer is none, and is not kept.
MAX_DOMAIN = 255


class Inquiry:
    """What is found out about a domain, for all who wait for it.

    Attributes:
        domain: It.
        task: Finds out; never raises.
        waiting: How many wait.
    """

    __slots__ = ("domain", "task", "waiting")

    def __init__(self, domain: str, task: asyncio.Task[Found]) -> None:
        self.domain = domain
        self.task = task
        self.waiting = 0


class Inquiries:
    """Finds out by one engine; with another configuration there are others.

    Args:
        engine: Its forecasts count. It may be delivering at the same time.
        within: Seconds for one plan.
        trouble: Takes a fault of ours: a text, and the seconds that it took.
        clock: Seconds, monotonic; the same for all who ask this engine.
        unanswered: Takes the same where DNS has not answered.
        place_within: Seconds for a place; without one nothing is found. None: as long
            as any wait for the inquiry.

    Attributes:
        engine: As given.
        kept: What was found, by whichever door. Ask it first, with the clock's time.
    """

    def __init__(
        self,
        engine: Engine,
        within: float,
        trouble: Callable[[str, float], None],
        clock: Callable[[], float],
        *,
        unanswered: Callable[[str, float], None] = lambda text, seconds: None,
        place_within: float | None = None,
    ) -> None:
        self.engine = engine
        self.kept = engine.findings
        self._within = within
        self._trouble = trouble
        self._unanswered = unanswered
        self._clock = clock
        self._place_within = place_within
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._under_way: dict[str, Inquiry] = {}

    def join(self, domain: str, address: str) -> Inquiry | None:
        """Return the inquiry about *domain*, and count who waits for it.

        Those who wait no longer say so to `leave`.

        Args:
            domain: That of *address*, as `mxpolicy.address.domain_of` has it.
            address: Any in that domain.

        Returns:
            None when there are too many others.
        """
        inquiry = self._under_way.get(domain)
        if inquiry is None:
            if len(self._under_way) >= MAX_INQUIRIES:
                return None
            task = asyncio.create_task(self._inquire(domain, address))
            inquiry = self._under_way[domain] = Inquiry(domain, task)
            task.add_done_callback(lambda _: self._end(inquiry))
        inquiry.waiting += 1
        return inquiry

    def leave(self, inquiry: Inquiry) -> None:
        """One waits no longer; when none does, *inquiry* ends."""
        inquiry.waiting -= 1
        if not inquiry.waiting and not inquiry.task.done():
            inquiry.task.cancel()
            self._end(inquiry)

    def _end(self, inquiry: Inquiry) -> None:
        if self._under_way.get(inquiry.domain) is inquiry:
            del self._under_way[inquiry.domain]

    async def _inquire(self, domain: str, address: str) -> Found:
        """Return what is found about *domain*, and keep it; never raise."""
        began = self._clock()
        try:
            kept = self.kept.plan(domain, began)
            if kept is not None:
                plan, plan_until = kept.plan, kept.plan_until
            elif await self._has_place():
                try:
                    began = self._clock()
                    plan = await self.engine.plan("", "", address, self._within)
                finally:
                    self._places.release()
                plan_until = began + plan_holds(plan.lookups)
            else:
                return NOTHING_FOUND
            now = self._clock()
            forecast = await self.engine.forecast_of(plan, address)
            found = found_by(forecast)
            context = self.engine.context
            holds = memory_holds(
                forecast.known.of_host.values(), context.utc(), context.memory.options
            )
            if len(domain) <= MAX_DOMAIN:
                hosts = len(plan.candidates)
                self.kept.keep(
                    domain, Kept(found, plan, hosts, plan_until, now + holds)
                )
        except Exception:
            self._trouble(traceback.format_exc(), self._clock() - began)
            return NOTHING_FOUND
        match forecast.plan.refusal:
            case Deferred(status, text) if status == DIRECTORY_FAILURE:
                if kept is None:
                    self._unanswered(text, self._clock() - began)
        return found

    async def _has_place(self) -> bool:
        """Wait for a place, and return whether it is there."""
        try:
            async with asyncio.timeout(self._place_within):
                return await self._places.acquire()
        except TimeoutError:
            return False


def found_by(forecast: Forecast) -> Found:
    """Return what is certain about the domain of *forecast*, whose plan is of an address."""
    plan, known = forecast
    detail = ""
    if known.is_hopeless:
        detail = unreachable(plan.candidates, known.of_host, known.at)
        if plan.unresolved:
            detail += f"; {plan.unresolved[0].name} cannot be looked up"
    found = finding(plan.refusal, plan.lookups, is_hopeless=known.is_hopeless)
    # A host that could not be looked up in so short a time may take the mail.
    refusal = None if plan.unresolved else plan.refusal
    if refusal is not None and refusal.status == DIRECTORY_FAILURE:
        refusal = None
    return Found(found, detail, refusal)
