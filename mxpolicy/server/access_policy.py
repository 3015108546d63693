"""The access policy server: what smtpd(8) asks before it takes the mail.

SMTPD_POLICY_README. A client asks about each recipient, waits for the answer, and asks
again over the same connection for as long as it lives. Bytes that it did not ask for
are a broken connection to it. So:

- Each question is answered once, in the order in which they came. Questions of one
  client are judged at the same time, so that each has its answer in time.
- A question is answered within ``policy.timeout`` seconds. Postfix waits for 100 s by
  default (``smtpd_policy_service_timeout``), and then refuses mail for now.
- Trouble of ours is answered DUNNO, and told to the log.
- An idle client is never disconnected, and what one client sends takes bounded memory.

What is known about a domain comes from the engine's own plan and memory. So a refusal
here is what would have bounced, or been deferred from memory. No host is dialled, and
nothing is remembered. `mxpolicy.routing.access_rules` has the findings and the rules.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from mxpolicy.address import AddressError, parse_mailbox
from mxpolicy.delivery.events import AccessJudged, Trouble
from mxpolicy.options import AccessAbout
from mxpolicy.outcome import Deferred
from mxpolicy.protocol.access_policy import (
    DUNNO,
    AccessRequest,
    Action,
    RequestError,
    answer,
    parse_action,
    parse_request,
)
from mxpolicy.protocol.attributes import AttributeReader, Malformed
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
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.options import Options

__all__ = ["AccessPolicyServer", "Reader", "Writer"]

# Forecasts under way at once, for all clients: each may have some descriptors open for
# DNS, and a process has 1024 by default. Time spent waiting for a place counts, too.
MAX_AT_ONCE = 100

# Questions of one client that are not answered yet. While there are so many, no more is
# read from it. smtpd(8) has one at a time.
MAX_UNANSWERED = 250

# Postfix's requests have some hundred bytes. The shortest malformed one has a single byte,
# and each takes a task for a moment: so not more at once.
READ_SIZE = 4096


class Reader(Protocol):
    """Where questions come from: `asyncio.StreamReader`."""

    async def read(self, n: int, /) -> bytes:
        """Return some bytes, at most *n*; none at the end."""
        ...


class Writer(Protocol):
    """Where answers go to: `asyncio.StreamWriter`."""

    def write(self, data: bytes, /) -> None:
        """Send *data*, or as much as the client takes at once."""
        ...

    async def drain(self) -> None:
        """Wait until the client has taken the rest."""
        ...


class AccessPolicyServer:
    """Answers any number of clients, also at the same time.

    Args:
        engine: Its forecasts decide. It may be delivering at the same time.
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

    async def serve(self, reader: Reader, writer: Writer) -> None:
        """Answer one client until it closes the connection.

        The caller closes the streams. When the caller cancels this, every open question
        is answered DUNNO at once; what the client does not take at once is dropped.
        """
        requests = AttributeReader()
        owed: deque[asyncio.Task[str]] = deque()
        reading = asyncio.create_task(reader.read(READ_SIZE))
        is_open = True
        try:
            while is_open or owed:
                awaited: set[asyncio.Task[str] | asyncio.Task[bytes]]
                awaited = set(islice(owed, 1))
                if is_open and len(owed) < MAX_UNANSWERED:
                    awaited.add(reading)
                done, _ = await asyncio.wait(
                    awaited, return_when=asyncio.FIRST_COMPLETED
                )
                if reading in done:
                    data = reading.result()
                    for one in requests.receive_data(data):
                        owed.append(asyncio.create_task(self._answer_to(one)))
                    if is_open := bool(data):
                        reading = asyncio.create_task(reader.read(READ_SIZE))
                while owed and owed[0].done():
                    writer.write(answer(owed.popleft().result()))
                await writer.drain()
            if requests:
                self._trouble("the connection ended in the middle of a request")
        except OSError:
            return  # the client has gone
        except asyncio.CancelledError:
            with suppress(OSError):
                for task in owed:
                    writer.write(answer(task.result() if task.done() else DUNNO))
            raise
        finally:
            for each in (reading, *owed):
                each.cancel()
            await asyncio.gather(reading, *owed, return_exceptions=True)

    async def _answer_to(self, one: dict[str, str] | Malformed) -> str:
        """Return the action; never raise."""
        try:
            if isinstance(one, Malformed):
                raise RequestError(one.reason)  # noqa: TRY301 - one place answers both
            return await self.action_for(parse_request(one))
        except RequestError as error:
            self._trouble(f"not a request: {error}")
        except Exception:
            self._trouble(traceback.format_exc())
        return DUNNO

    async def action_for(self, request: AccessRequest) -> str:
        """Return the action for *request*, within ``policy.timeout`` seconds.

        When that time is over, what is known of one address counts without the other.
        Trouble with DNS and faults of our own are answered DUNNO; nothing raises.
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
                self._trouble(f"no judgement within {self._timeout:g} s", began)
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
            return await self._found(request, about, address, began)
        except AddressError:
            pass  # Postfix has its own checks for that
        except Exception:
            self._trouble(traceback.format_exc(), began)
        return None

    async def _found(
        self, request: AccessRequest, about: AccessAbout, address: str, began: float
    ) -> Situation | None:
        domain = parse_mailbox(address).domain
        # Our own names are local, whatever DNS says about them.
        if self._engine.context.identity.has_name(domain):
            return None
        async with self._places:
            forecast = await self._engine.forecast("", "", address, self._timeout)
        plan, known = forecast
        match plan.refusal:
            case Deferred(status, text) if status == DIRECTORY_FAILURE:
                self._trouble(text, began)
        detail = ""
        if known.is_hopeless:
            detail = unreachable(plan.candidates, known.of_host, known.at)
            if plan.unresolved:
                detail += f"; {plan.unresolved[0].name} cannot be looked up"
        found = finding(plan.refusal, plan.lookups, is_hopeless=known.is_hopeless)
        state, client = request.protocol_state, request.client_address
        user = request.sasl_username
        return found and Situation(found, about, domain, state, client, user, detail)

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


def _addresses(request: AccessRequest) -> list[tuple[AccessAbout, str]]:
    """Return the addresses to judge: both, or the one that policy_context names."""
    both = (
        (AccessAbout.RECIPIENT, request.recipient),
        (AccessAbout.SENDER, request.sender),
    )
    only = request.policy_context.strip().lower()
    return [one for one in both if one[1] and only in {"", one[0].value}]


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
