"""A process of the mail server's: an engine, and what it can reach, until it is killed.

Only reads, writes, lookups and visits to the store can be seen from outside, so a
process is killed before one of them: each moment that makes a difference is one of
these. What a host has read is not taken back by that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.delivery import Request
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.late_reply import LateReplies
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.owner import Calls, Owner
from mxpolicy.options import LimitOptions, Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from tests.simulation.hosts import Line, text_of
from tests.simulation.patient import End
from tests.simulation.stores import View
from tests.simulation.world import OUR_ADDRESS, OUR_NAME, Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.outcome import Outcome
    from tests.simulation.hosts import Connection, Site
    from tests.simulation.stores import File
    from tests.simulation.world import Message

__all__ = ["Answer", "Machine", "Process"]

DEADLINE = 2900.0
# Seconds.
START = 0.03


class Answer(NamedTuple):
    """What a delivery came to for one recipient.

    Attributes:
        relay: Who has it, says the outcome.
        told: How many outcomes were observed.
        is_deferral: It is one, and not for a cancel.
    """

    end: End
    text: str
    relay: str
    told: int
    is_deferral: bool


class Machine:
    """What all processes have in common."""

    def __init__(self, site: Site, file: File, clock: Callable[[], float]) -> None:
        self.site = site
        self.file = file
        self.clock = clock
        self.processes: list[Process] = []
        self._is_free_at = 0.0

    async def start(self, dies_at: float = inf) -> Process:
        """Start a process, which dies before its operation of this number.

        Python takes its time, and there are few processors: no two deliveries begin at
        the same moment.
        """
        begins = max(self._is_free_at, self.clock()) + START
        self._is_free_at = begins
        await asyncio.sleep(begins - self.clock())
        process = Process(self, len(self.processes), dies_at)
        self.processes.append(process)
        return process

    def lives(self, owner: Owner) -> bool:
        """Return whether a process is still there."""
        return not self.processes[owner.pid].is_gone


class Process:
    """One of them.

    Attributes:
        connections: All that it has made.
        is_gone: It has ended, or was killed.
        died_at: When it was killed.
        cancelled_at: When its delivery was cancelled.
        after_cancel: What it has done since, and must not.
    """

    def __init__(self, machine: Machine, pid: int, dies_at: float) -> None:
        self._machine = machine
        self._pid = pid
        self._calls = 0
        self._operations = 0
        self._dies_at = dies_at
        self._tasks: set[asyncio.Task[list[Outcome]]] = set()
        self.connections: list[Connection] = []
        self.is_gone = False
        self.died_at = inf
        self.cancelled_at = inf
        self.after_cancel = ""
        self._engine = self._make_engine()

    def _make_engine(self) -> Engine:
        machine, line = self._machine, Line(self._machine.site, self)
        file, memory = machine.file, MemoryStore(machine.file.utc)
        view = None if file.storage is Storage.GONE else View(file, self)
        context = Context(
            Options(
                helo=OUR_NAME,
                limits=LimitOptions(
                    processes=machine.site.world.processes,
                    connections_per_host=2,
                ),
            ),
            store=FallbackStore(view, lambda trouble: None, memory),
            clock=machine.clock,
            utc=file.utc,
            resolver=line,
            dial=line.dial,  # type: ignore[arg-type]
            is_own_address=lambda address: address == OUR_ADDRESS,
            chance=file.rng.random,
            keeps_sessions=machine.site.world.is_one_engine,
            calls=Calls(
                self._owner,
                machine.lives,
                keeps_claims=machine.site.world.is_one_engine,
            ),
            late_replies=LateReplies() if machine.site.world.is_one_engine else None,
        )
        return Engine(context)

    def _owner(self) -> Owner:
        self._calls += 1
        return Owner("machine", "boot", "pids", self._pid, 1, f"{self._calls}")

    # -- dying --------------------------------------------------------------------

    @property
    def is_dead(self) -> bool:
        """Whether it was killed."""
        return self.died_at < inf

    def operate(self) -> None:
        """Be about to do what can be seen from outside; raise `CancelledError` if dead."""
        if self._operations >= self._dies_at and not self.is_dead:
            self.die()
        self._operations += 1
        self.check()

    def check(self) -> None:
        """Raise `CancelledError` if dead."""
        if self.is_dead:
            raise asyncio.CancelledError

    def note(self, done: str) -> None:
        """Note that this is done, which must not be after a cancel."""
        if self._machine.clock() > self.cancelled_at:
            self.after_cancel = done

    def die(self) -> None:
        """Be killed."""
        self.died_at = self._machine.clock()
        self.is_gone = True
        for connection in self.connections:
            connection.close()
        for task in self._tasks:
            task.cancel()

    # -- what it is for -----------------------------------------------------------

    async def deliver(
        self, message: Message, *, is_cut: bool = False, cancel_after: float = inf
    ) -> dict[str, Answer] | None:
        """Deliver once; return what the mail server hears, None when it is killed."""
        data = MailData()
        text = text_of(message.queue_id)
        data.append(text[: len(text) // 2] if is_cut else text)
        data.finish()

        told: Counter[str] = Counter()

        def observe(event: events.Event) -> None:
            if isinstance(event, events.RecipientSettled):
                told[event.recipient] += 1

        async def may_send_dot() -> bool:
            return not is_cut

        request = Request(
            "alice@example.net",
            message.recipients,
            "",
            message.queue_id,
            DEADLINE,
            observe=observe,
            has_process=not self._machine.site.world.is_one_engine,
            may_send_dot=may_send_dot,
            is_wanted=lambda: not is_cut,
        )
        loop = asyncio.get_running_loop()
        delivery = self._engine.begin(request, data)
        task = loop.create_task(delivery.outcomes())
        self._tasks.add(task)
        done, _ = await asyncio.wait({task}, timeout=min(cancel_after, 10 * DEADLINE))
        if not done and not self.is_dead:
            self.cancelled_at = self._machine.clock()
            delivery.cancel("as the world has it")
        await asyncio.wait({task})
        self._tasks.discard(task)
        data.close()
        if self.is_dead:
            return None
        outcomes = task.result()
        return {
            who: Answer(
                _end(outcome),
                outcome.text,
                outcome.relay,
                told[who],
                isinstance(outcome, Deferred) and self.cancelled_at == inf,
            )
            for who, outcome in zip(message.recipients, outcomes, strict=True)
        }

    def exit(self) -> None:
        """End; what hosts were told with the last words has left."""
        self.is_gone = True


def _end(outcome: Outcome) -> End:
    match outcome:
        case Delivered():
            return End.DELIVERED
        case Bounced():
            return End.BOUNCED
        case Deferred():
            return End.DEFERRED
