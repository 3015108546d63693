"""What is answered to a question: by the plan, the memory and the operator's rules.

What is known about a domain comes from the engine's own plan and memory. So a refusal
here is what would have bounced, or been deferred from memory. No host is dialled, and
nothing is remembered. `mxpolicy.routing.access_rules` has the findings and the rules.

What was found about a domain is kept (`mxpolicy.routing.kept_findings`), and then a
question is answered at once. Several questions about one domain share one inquiry, which
ends when it has its result or when none of them waits any more.

Trouble with DNS and faults of our own are answered DUNNO, and told to the log.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, domain_of
from mxpolicy.delivery.events import AccessJudged, Trouble
from mxpolicy.options import AccessAbout
from mxpolicy.outcome import Deferred
from mxpolicy.protocol.access_policy import DUNNO, Action, parse_action
from mxpolicy.routing.access_rules import (
    AccessRules,
    Situation,
    finding,
    unreachable,
    words,
)
from mxpolicy.routing.kept_findings import (
    NOTHING_FOUND,
    Found,
    Kept,
    KeptFindings,
    memory_holds,
    plan_holds,
)
from mxpolicy.routing.mx import DIRECTORY_FAILURE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.delivery.forecast import Forecast
    from mxpolicy.delivery.plan import Plan
    from mxpolicy.protocol.access_policy import AccessRequest
    from mxpolicy.routing.own import OwnIdentity

__all__ = [
    "MAX_AT_ONCE",
    "MAX_INQUIRIES",
    "Judge",
    "addresses_of",
    "domain_to_judge",
    "found_by",
    "situation_of",
]

# Plans under way at once, for all clients: each may have some descriptors open for DNS,
# and a process has 1024 by default. Time spent waiting for a place counts, too.
MAX_AT_ONCE = 100

# Inquiries at once, those that wait for a place included. Postfix has 100 smtpd(8) by
# default, each with one question about two domains.
MAX_INQUIRIES = 2000


class Judge:
    """Judges by one engine; with another configuration there is another judge.

    Args:
        engine: Its forecasts decide. It may be delivering at the same time.
        observe: Told every judgement, and every trouble.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: A rule cannot be understood.
    """

    def __init__(
        self, engine: Engine, observe: Observe, clock: Callable[[], float]
    ) -> None:
        options = engine.context.options
        self.engine = engine
        self._identity = engine.context.identity
        self._rules = AccessRules(options.policy.rules)
        self._timeout = options.policy.timeout
        self._observe = observe
        self._clock = clock
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._kept: KeptFindings[Plan] = KeptFindings()
        self._inquiries: dict[str, _Inquiry] = {}

    def action_for(self, request: AccessRequest) -> str | asyncio.Task[str]:
        """Return the action for *request*: itself, or who finds it out.

        It takes ``policy.timeout`` seconds at most. When that time is over, what is
        known of one address counts without the other. Nothing raises.
        """
        began = self._clock()
        situations = []
        for about, address in addresses_of(request):
            domain = domain_to_judge(self._identity, address)
            if not domain:
                continue
            found = self._kept.found(domain, began)
            if found is None:
                return asyncio.create_task(self._find_out(request, began))
            if situation := situation_of(request, about, domain, found):
                situations.append(situation)
        return self._judge(request, situations, began)

    # -- finding out ------------------------------------------------------------------

    async def _find_out(self, request: AccessRequest, began: float) -> str:
        situations: list[Situation] = []
        try:
            named = [
                (about, address, domain)
                for about, address in addresses_of(request)
                if (domain := domain_to_judge(self._identity, address))
            ]
            inquiries = {
                about: inquiry
                for about, one, domain in named
                if (inquiry := self._join(one, domain))
            }
            if len(inquiries) < len(named):
                self._trouble(f"over {MAX_INQUIRIES} domains asked about at once")
            if not inquiries:
                return self._judge(request, situations, began)
            try:
                tasks = {one.task for one in inquiries.values()}
                left = began + self._timeout - self._clock()
                _, late = await asyncio.wait(tasks, timeout=max(0.0, left))
            finally:
                for one in inquiries.values():
                    self._leave(one)
            if late:
                self._trouble(f"no judgement within {self._timeout:g} s", began)
            for about, one in inquiries.items():
                found = NOTHING_FOUND if one.task in late else one.task.result()
                if situation := situation_of(request, about, one.domain, found):
                    situations.append(situation)
            return self._judge(request, situations, began)
        except Exception:
            self._trouble(traceback.format_exc(), began)
            return DUNNO

    def _join(self, address: str, domain: str) -> _Inquiry | None:
        """Return the inquiry about *domain*, and count who waits for it.

        None when there are too many others.
        """
        inquiry = self._inquiries.get(domain)
        if inquiry is None:
            if len(self._inquiries) >= MAX_INQUIRIES:
                return None
            task = asyncio.create_task(self._inquire(address, domain))
            inquiry = self._inquiries[domain] = _Inquiry(domain, task)
            task.add_done_callback(lambda _: self._end(inquiry))
        inquiry.waiting += 1
        return inquiry

    def _leave(self, inquiry: _Inquiry) -> None:
        inquiry.waiting -= 1
        if not inquiry.waiting and not inquiry.task.done():
            inquiry.task.cancel()
            self._end(inquiry)

    def _end(self, inquiry: _Inquiry) -> None:
        if self._inquiries.get(inquiry.domain) is inquiry:
            del self._inquiries[inquiry.domain]

    async def _inquire(self, address: str, domain: str) -> Found:
        """Return what is found about *domain*, and keep it; never raise."""
        began = self._clock()
        try:
            kept = self._kept.plan(domain, began)
            if kept is not None:
                plan, plan_until = kept.plan, kept.plan_until
            else:
                async with self._places:
                    began = self._clock()
                    plan = await self.engine.plan("", "", address, self._timeout)
                plan_until = began + plan_holds(plan.lookups)
            now = self._clock()
            forecast = await self.engine.forecast_of(plan, address)
            found = found_by(forecast)
            holds = memory_holds(
                forecast.known.of_host.values(),
                self.engine.context.utc(),
                self.engine.context.memory.options,
            )
            hosts = len(plan.candidates)
            self._kept.keep(domain, Kept(found, plan, hosts, plan_until, now + holds))
        except Exception:
            self._trouble(traceback.format_exc(), began)
            return NOTHING_FOUND
        match forecast.plan.refusal:
            case Deferred(status, text) if status == DIRECTORY_FAILURE:
                if kept is None:
                    self._trouble(text, began)
        return found

    # -- judging ----------------------------------------------------------------------

    def _judge(
        self, request: AccessRequest, situations: list[Situation], began: float
    ) -> str:
        action = self._action(situations) if situations else DUNNO
        self._observe(_judged(self._clock() - began, request, situations, action))
        return action

    def _action(self, situations: list[Situation]) -> str:
        """Return the one answer to all *situations*: a refusal, if there is one."""
        actions = [
            _with_words(parse_action(text), situation)
            for situation in situations
            if (text := self._rules.action(situation)) is not None
        ]
        said = [one for one in actions if one.verb != DUNNO]
        refusals = [one for one in said if one.class_]
        return str(next(iter(refusals or said), DUNNO))

    def _trouble(self, text: str, began: float | None = None) -> None:
        seconds = 0.0 if began is None else self._clock() - began
        self._observe(Trouble(seconds, f"{text}; answered {DUNNO}"))


class _Inquiry:
    """What is found out about a domain, for all questions that wait for it.

    Attributes:
        domain: It.
        task: Finds out; never raises.
        waiting: How many questions wait.
    """

    __slots__ = ("domain", "task", "waiting")

    def __init__(self, domain: str, task: asyncio.Task[Found]) -> None:
        self.domain = domain
        self.task = task
        self.waiting = 0


def addresses_of(request: AccessRequest) -> list[tuple[AccessAbout, str]]:
    """Return the addresses to judge: both, or the one that policy_context names."""
    found = []
    only = request.policy_context.strip().lower()
    if request.recipient and only in ("", "recipient"):
        found.append((AccessAbout.RECIPIENT, request.recipient))
    if request.sender and only in ("", "sender"):
        found.append((AccessAbout.SENDER, request.sender))
    return found


def domain_to_judge(own: OwnIdentity, address: str) -> str:
    """Return the domain of *address*; empty when it is not judged.

    Postfix has its own checks for what is no address. Our *own* names are local,
    whatever DNS says about them.
    """
    try:
        domain = domain_of(address)
    except AddressError:
        return ""
    return "" if own.has_name(domain) else domain


def found_by(forecast: Forecast) -> Found:
    """Return what is certain about the domain of *forecast*, whose plan is of an address."""
    plan, known = forecast
    detail = ""
    if known.is_hopeless:
        detail = unreachable(plan.candidates, known.of_host, known.at)
        if plan.unresolved:
            detail += f"; {plan.unresolved[0].name} cannot be looked up"
    found = finding(plan.refusal, plan.lookups, is_hopeless=known.is_hopeless)
    return Found(found, detail)


def situation_of(
    request: AccessRequest, about: AccessAbout, domain: str, found: Found
) -> Situation | None:
    """Return what the rules are asked about; None when nothing was found."""
    if found.finding is None:
        return None
    return Situation(
        found.finding,
        about,
        domain,
        request.protocol_state,
        request.client_address,
        request.sasl_username,
        found.detail,
    )


def _with_words(action: Action, situation: Situation) -> Action:
    """Return *action* with a text, where it may have one and the operator gave none."""
    if situation.is_passing:
        action = action.for_now()
    if action.text or action.verb == DUNNO:
        return action
    return action._replace(text=words(situation, action.class_))


def _judged(
    seconds: float, request: AccessRequest, situations: list[Situation], action: str
) -> AccessJudged:
    return AccessJudged(
        seconds,
        request.queue_id,
        request.protocol_state,
        request.client_address,
        request.sender,
        request.recipient,
        tuple(
            [
                f"{one.about.value} {one.domain} {one.finding.value}"
                for one in situations
            ]
        ),
        action,
    )
