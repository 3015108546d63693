"""The recovery kick: when a host can be reached again, the mail server is told.

Mail that was deferred waits for the mail server's own schedule, for an hour and more.
This daemon knows sooner when its hosts are back. It remembers the queue ids of deferred
mail (`mxpolicy.routing.deferred_mail`), looks after the hosts, and runs the operator's
command for each queue id: ``postqueue -i`` or ``exim -M``.

No host is dialled more often than without this: at most once in each of its pauses, by
the holder of its lease. No more than `KickOptions.rate` commands begin in a second, the
first ones after a moment by chance: several machines may have waited for the same host.
Before each one, what is remembered of its hosts is asked once more.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery import events
from mxpolicy.delivery.command import CommandFailed, run_command
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.delivery.learner import Learner
from mxpolicy.delivery.leases import Leases
from mxpolicy.delivery.probe import Probes
from mxpolicy.delivery.trace import Trace
from mxpolicy.outcome import Deferred
from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Phase
from mxpolicy.routing.deferred_mail import DeferredMail, Next, Waiting
from mxpolicy.routing.host_record import NOTHING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mxpolicy.delivery.context import Context
    from mxpolicy.options import KickOptions
    from mxpolicy.routing.candidate import Candidate

__all__ = ["AFTER_FAILURE", "Kick"]

# Seconds up to which the first command after a recovery waits, by chance.
JITTER = 2.0

# Seconds that a probe may take, as in `mxpolicy.delivery.leases`, and how many go on at
# once: the hosts of a network come back together.
PROBE_TIME = 45.0
PROBES = 4

# Messages whose hosts are remembered, for when they are deferred: the last ones planned.
# And hosts of all of them together: a message may have a thousand domains.
UNDER_WAY = 10_000
HOSTS_UNDER_WAY = 50_000

# Seconds without a command after one that failed.
AFTER_FAILURE = 60.0

# What a queue id is made of. It is an argument of a command, so it is no option.
_QUEUE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")


class _HostsTried:
    """The hosts of some recipients of one message.

    Attributes:
        candidates: In their order.
        was_ready: One of them was ready in this attempt.
    """

    __slots__ = ("candidates", "was_ready")

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.was_ready = False


def _hosts_of(groups: Sequence[_HostsTried]) -> int:
    return sum(len(one.candidates) for one in groups)


class _Released(NamedTuple):
    """A message that the mail server is to be told of, and its host that is back."""

    queue_id: str
    recipients: Sequence[Waiting]
    candidate: Candidate


class Kick:
    """Tells the mail server of deferred mail whose hosts can be reached again.

    Give every event of every message to `observe`, and let `run` run.

    Args:
        context: Returns the engine's, whose options may change. While they have no
            command, nothing is remembered.
        tell: Told which hosts are back, and of trouble with the command.
        command: Runs a program with arguments; `run_command` does.
    """

    def __init__(
        self,
        context: Callable[[], Context],
        tell: events.Observe,
        command: Callable[[Sequence[str]], Awaitable[None]] | None = None,
    ) -> None:
        self._get_context = context
        self._trace = Trace("", context().clock, tell)
        self._command = command or run_command
        self._mail = DeferredMail()
        self._under_way: OrderedDict[str, list[_HostsTried]] = OrderedDict()
        self._hosts_under_way = 0
        self._released: deque[_Released] = deque()
        self._news = asyncio.Event()
        self._has_released = asyncio.Event()
        self._probing: set[str] = set()

    @property
    def _context(self) -> Context:
        return self._get_context()

    @property
    def _options(self) -> KickOptions:
        return self._get_context().options.kick

    # -- what happens ---------------------------------------------------------

    def observe(self, event: events.Event) -> None:
        """Learn from what happens to a message; never waits."""
        if not self._options.command:
            return
        match event:
            case events.Planned(_, _, candidates, _, queue_id):
                self._planned(queue_id, candidates)
            case events.PhaseReached(_, candidate, phase, queue_id):
                if phase is Phase.READY:
                    self._ready(queue_id, candidate)
            case events.RecipientSettled():
                self._settled(event)
            case _:
                pass

    def _planned(self, queue_id: str, candidates: Sequence[Candidate]) -> None:
        if not _QUEUE_ID.fullmatch(queue_id) or not candidates:
            return
        groups = self._under_way.setdefault(queue_id, [])
        before = _hosts_of(groups)
        # The same hosts again are another attempt.
        groups[:] = [one for one in groups if one.candidates != candidates]
        groups.append(_HostsTried(candidates))
        self._hosts_under_way += _hosts_of(groups) - before
        self._under_way.move_to_end(queue_id)
        while (
            len(self._under_way) > UNDER_WAY or self._hosts_under_way > HOSTS_UNDER_WAY
        ):
            _, oldest = self._under_way.popitem(last=False)
            self._hosts_under_way -= _hosts_of(oldest)

    def _ready(self, queue_id: str, candidate: Candidate) -> None:
        for group in self._under_way.get(queue_id, ()):
            group.was_ready = group.was_ready or candidate in group.candidates
        self._mail.ready(candidate, self._context.utc())
        self._news.set()

    def _settled(self, event: events.RecipientSettled) -> None:
        groups = self._under_way.get(event.queue_id, [])
        hosts = [
            one for group in groups if not group.was_ready for one in group.candidates
        ]
        outcome, waiting = event.outcome, Waiting(event.queue_id, event.recipient)
        # RFC 3463 §3.5: X.4.1, no answer from host; X.4.2, bad connection. A reply, DNS
        # trouble and a full machine have others, and no host's recovery changes them.
        is_network = outcome.status[1:] in {(4, 1), (4, 2)}
        if isinstance(outcome, Deferred) and is_network and hosts:
            self._mail.deferred(waiting, hosts, self._context.utc())
            self._news.set()
        else:
            self._mail.settled(waiting)

    # -- what follows -----------------------------------------------------------

    async def run(self) -> None:
        """Look after the hosts, and tell the mail server; ends by being cancelled."""
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._look_after_hosts(tasks))
                    tasks.create_task(self._tell_mail_server())
            except* Exception as errors:
                self._trace.trouble(errors)
            await asyncio.sleep(AFTER_FAILURE)

    async def _look_after_hosts(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._wait_for_look()
            now = self._context.utc()
            for candidate in self._mail.due(now):
                known = await self._context.memory.advise("", [candidate])
                record = known.of_host.get(candidate, NOTHING)
                options = self._context.memory.options
                match self._mail.look(candidate, record, now, options):
                    case Next.READY:
                        self._release(candidate)
                    case Next.PROBE if len(self._probing) < PROBES:
                        if candidate.key.socket not in self._probing:
                            self._probing.add(candidate.key.socket)
                            tasks.create_task(self._probe(candidate))
                    case _:
                        pass

    async def _wait_for_look(self) -> None:
        """Wait until a host is due to be looked at."""
        while True:
            now = self._context.utc()
            at = self._mail.next_look(now)
            if at is not None and at <= now:
                return
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else at - now):
                    await self._news.wait()

    def _release(self, candidate: Candidate) -> None:
        mail = self._mail.release(candidate)
        self._trace.tell(events.HostRecovered, candidate, len(mail))
        self._released.extend(_Released(*one, candidate) for one in mail.items())
        self._has_released.set()

    async def _probe(self, candidate: Candidate) -> None:
        """Dial *candidate*, unless another process does; what comes of it is remembered."""
        context = self._context
        leases = Leases(context.store, context.utc)
        learner = Learner(context.memory, self._trace, context.chance, "", "", {})
        probes = Probes(context, self._trace, learner)
        try:
            if await leases.take(host_key(candidate)):
                probes.begin(candidate)
                await probes.finish(PROBE_TIME)
        except Exception as error:
            self._trace.trouble(error)
        finally:
            await probes.finish(0.0)
            await learner.finish()
            await leases.release()
            self._probing.discard(candidate.key.socket)
            self._mail.ready(candidate, context.utc())
            self._news.set()

    async def _tell_mail_server(self) -> None:
        while True:
            if not self._options.command:
                self._released.clear()
            if not self._released:
                self._has_released.clear()
                await self._has_released.wait()
                await asyncio.sleep(JITTER * self._context.chance())
            queue_id, recipients, candidate = self._released.popleft()
            if await self._has_failed_again(candidate):
                for one in recipients:
                    self._mail.deferred(one, [candidate], self._context.utc())
                self._news.set()
                continue
            try:
                await self._command([*self._options.command, queue_id])
            except CommandFailed as failed:
                text = f"{self._options.command[0]} {queue_id}: {failed}"
                self._trace.tell(events.Trouble, printable(text))
                await asyncio.sleep(AFTER_FAILURE)
            await asyncio.sleep(1 / self._options.rate)

    async def _has_failed_again(self, candidate: Candidate) -> bool:
        known = await self._context.memory.advise("", [candidate])
        return known.is_hopeless
