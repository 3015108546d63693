"""What is answered to a question: by the plan, the memory and the operator's rules.

What is known about a domain is found out by `mxpolicy.delivery.inquiry`. No host is
dialled, and nothing is remembered. `mxpolicy.routing.access_rules` has the findings and
the rules. What was found is kept, and then a question is answered at once.

Trouble with DNS and faults of our own are answered DUNNO, and told to the log.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, domain_of
from mxpolicy.delivery.events import AccessJudged, Trouble
from mxpolicy.delivery.inquiry import MAX_INQUIRIES, Inquiries
from mxpolicy.options import AccessAbout
from mxpolicy.protocol.access_policy import DUNNO, Action, parse_action
from mxpolicy.routing.access_rules import AccessRules, Situation, words
from mxpolicy.routing.kept_findings import NOTHING_FOUND

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.protocol.access_policy import AccessRequest
    from mxpolicy.routing.kept_findings import Found
    from mxpolicy.routing.own import OwnIdentity

__all__ = [
    "Judge",
    "addresses_of",
    "domain_to_judge",
    "situation_of",
]


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
        told = self._trouble
        self._inquiries = Inquiries(engine, self._timeout, told, clock, unanswered=told)
        self._kept = self._inquiries.kept

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
                if (inquiry := self._inquiries.join(domain, one))
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
                    self._inquiries.leave(one)
            if late:
                seconds = self._clock() - began
                self._trouble(f"no judgement within {self._timeout:g} s", seconds)
            for about, one in inquiries.items():
                found = NOTHING_FOUND if one.task in late else one.task.result()
                if situation := situation_of(request, about, one.domain, found):
                    situations.append(situation)
            return self._judge(request, situations, began)
        except Exception:
            self._trouble(traceback.format_exc(), self._clock() - began)
            return DUNNO

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

    def _trouble(self, text: str, seconds: float = 0.0) -> None:
        self._observe(Trouble(seconds, f"{text}; answered {DUNNO}"))


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
