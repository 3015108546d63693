"""Judges senders and recipients for the mail server, before it takes the message.

With the engine's own plan and memory, so that what is refused is what would bounce, or
be deferred from memory; nobody is dialled, and nothing is remembered for it. Findings and rules are `mxpolicy.routing.access_rules`'s; this is their
shell: it waits for DNS, for a bounded time, and answers DUNNO whatever goes wrong.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, parse_mailbox
from mxpolicy.delivery.events import DUNNO, AccessJudged, Trouble
from mxpolicy.options import AccessAbout
from mxpolicy.outcome import Deferred
from mxpolicy.protocol.access_policy import AccessRequest, Action, parse_action
from mxpolicy.reply import printable
from mxpolicy.routing.access_rules import (
    AccessRules,
    Situation,
    finding,
    unreachable,
    words,
)
from mxpolicy.routing.mx import DIRECTORY_FAILURE

if TYPE_CHECKING:
    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.options import AccessFinding, Options

__all__ = ["Judge"]

# Judgements under way at once. A plan asks DNS through some descriptors, of which
# a process has 1024 by default; one that waits for its turn does so within its own time.
MAX_AT_ONCE = 100


class Judge:
    """Answers requests, any number, also at the same time.

    Args:
        engine: Whose plans and memory tell.
        options: The configuration.
        observe: Told every judgement, and every trouble.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: A rule cannot be understood.
    """

    def __init__(
        self,
        engine: Engine,
        options: Options,
        observe: Observe,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._rules = AccessRules(options.policy.rules)
        self._timeout = options.policy.timeout
        self._observe = observe
        self._clock = clock
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def judge(self, request: AccessRequest) -> str:
        """Return the action for *request*, within ``policy.timeout`` seconds.

        Nothing that DNS does, and no fault of ours, makes it raise or answer
        anything but DUNNO.
        """
        began = self._clock()
        tasks = [
            asyncio.create_task(self._situation(request, about, address))
            for about, address in _addresses(request)
        ]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self._timeout)
            if not all(task.done() for task in tasks):
                self._trouble(began, f"no judgement within {self._timeout:g} s")
            found = [one for task in tasks if task.done() and (one := task.result())]
        finally:
            for task in tasks:
                task.cancel()
        action = self._action(found)
        self._observe(_judged(self._clock() - began, request, found, action))
        return action

    async def _situation(
        self, request: AccessRequest, about: AccessAbout, address: str
    ) -> Situation | None:
        """Return what is found about the domain of *address*; None for any trouble."""
        began = self._clock()
        try:
            domain = parse_mailbox(address).domain
            found, detail = await self._finding(domain, address, began)
        except AddressError:
            return None  # Postfix has its own checks for that
        except Exception:
            self._trouble(began, traceback.format_exc())
            return None
        if found is None:
            return None
        return Situation(
            found,
            about,
            domain,
            request.protocol_state,
            request.client_address,
            request.sasl_username,
            detail,
        )

    async def _finding(
        self, domain: str, address: str, began: float
    ) -> tuple[AccessFinding | None, str]:
        """Return what is found about *domain*, and in which detail."""
        # The names of this very system are local, whatever DNS says about them.
        if self._engine.is_own_name(domain):
            return None, ""
        async with self._places:
            forecast = await self._engine.forecast("", "", address, self._timeout)
        plan, known = forecast
        match plan.refusal:
            case Deferred(status, text) if status == DIRECTORY_FAILURE:
                self._trouble(began, text)
        found = finding(plan.refusal, plan.lookups, is_hopeless=known.is_hopeless)
        if not known.is_hopeless:
            return found, ""
        detail = unreachable(plan.candidates, known.of_host, known.at)
        if plan.unresolved:
            detail += f"; {plan.unresolved[0].name} cannot be looked up"
        return found, detail

    def _action(self, situations: list[Situation]) -> str:
        """Return the answer to all that was found: a refusal goes before the rest."""
        actions = [
            _with_words(parse_action(text), situation)
            for situation in situations
            if (text := self._rules.action(situation)) is not None
        ]
        said = [one for one in actions if one.verb != DUNNO]
        refusals = [one for one in said if one.class_]
        return str(next(iter(refusals or said), DUNNO))

    def _trouble(self, began: float, text: str) -> None:
        self._observe(Trouble(self._clock() - began, f"{text}; answered {DUNNO}"))


def _addresses(request: AccessRequest) -> Iterator[tuple[AccessAbout, str]]:
    """Yield what is to be judged: both, or what main.cf says in policy_context."""
    addresses = {
        AccessAbout.RECIPIENT: request.recipient,
        AccessAbout.SENDER: request.sender,
    }
    only = request.policy_context.strip().lower()
    for about, address in addresses.items():
        if address and only in {"", about.value}:
            yield about, address


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
        at=seconds,
        queue_id=printable(request.queue_id),
        protocol_state=printable(request.protocol_state, 20),
        client=request.client_address,
        sender=printable(request.sender),
        recipient=printable(request.recipient),
        found=tuple(
            f"{one.about.value} {one.domain} {one.finding.value}" for one in situations
        ),
        action=action,
    )
