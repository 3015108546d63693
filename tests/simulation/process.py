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
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.late_reply import LateReplies
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.owner import Calls, Owner
from mxpolicy.delivery.replay import prevails
from mxpolicy.delivery.request import Request
from mxpolicy.errors import LocalTrouble
from mxpolicy.options import LimitOptions, Options
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from tests.simulation.hosts import Line, text_of
from tests.simulation.patient import End
from tests.simulation.stores import View
from tests.simulation.world import OUR_ADDRESS, OUR_NAME, Door, Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.outcome import Outcome
    from tests.simulation.client import Client
    from tests.simulation.hosts import Connection, Site
    from tests.simulation.stores import File
    from tests.simulation.world import Message

__all__ = ["Answer", "Machine", "Process"]

DEADLINE = 2900.0
# Seconds.
START = 0.03
# Seconds for a daemon's question whether the mail server lives.
ASK = 0.002
# Seconds from which on a client that is killed in mid-message has said half of it.
HALF = 0.05


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

    async def start(self, dies_at: float = inf, *, is_daemon: bool = False) -> Process:
        """Start a process, which dies before its operation of this number.

        Python takes its time, and there are few processors: no two deliveries begin at
        the same moment.
        """
        begins = max(self._is_free_at, self.clock()) + START
        self._is_free_at = begins
        await asyncio.sleep(begins - self.clock())
        process = Process(self, len(self.processes), dies_at, is_daemon=is_daemon)
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
        has_ended: Set then.
        died_at: When it was killed.
        cancelled_at: When its delivery was cancelled.
        after_cancel: What it has done since, and must not.
    """

    def __init__(
        self, machine: Machine, pid: int, dies_at: float, *, is_daemon: bool
    ) -> None:
        self._machine = machine
        self._is_daemon = is_daemon
        self._pid = pid
        self._calls = 0
        self._operations = 0
        self._dies_at = dies_at
        self._tasks: dict[asyncio.Task[list[Outcome]], None] = {}
        self.connections: list[Connection] = []
        self.is_gone = False
        self.has_ended = asyncio.Event()
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
            store=FallbackStore(view, lambda trouble: None, memory, prevails=prevails),
            clock=machine.clock,
            utc=file.utc,
            resolver=line,
            dial=line.dial,  # type: ignore[arg-type]
            is_own_address=lambda address: address == OUR_ADDRESS,
            chance=file.rng.random,
            keeps_sessions=self._is_daemon,
            calls=Calls(self._owner, machine.lives, keeps_claims=self._is_daemon),
            late_replies=LateReplies() if self._is_daemon else None,
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
        self.exit()
        for connection in self.connections:
            connection.close()
        for task in self._tasks:
            task.cancel()

    # -- what it is for -----------------------------------------------------------

    async def deliver(
        self,
        message: Message,
        client: Client,
        *,
        is_cut: bool = False,
        cancel_after: float = inf,
    ) -> dict[str, Answer] | None:
        """Deliver once; return what the mail server hears, None when it is killed.

        Args:
            message: What is delivered.
            client: Who has called.
            is_cut: The client is killed while it hands the message over.
            cancel_after: Seconds, to a cancel.
        """
        door = self._machine.site.world.door if self._is_daemon else Door.WHOLE
        data = MailData()
        text = text_of(message.queue_id)
        data.append(text[: len(text) // 2] if is_cut else text)
        if is_cut and door is Door.LMTP:
            asyncio.get_running_loop().call_later(HALF, client.leave)
        else:
            # The end of a pipe proves nothing.
            client.lives = client.lives and not is_cut
            data.finish()

        told: Counter[str] = Counter()

        def observe(event: events.Event) -> None:
            if isinstance(event, events.RecipientSettled):
                told[event.recipient] += 1
                if door is Door.LMTP and not self.is_dead:
                    self._tell(message, client, delivery, told)

        async def may_send_dot() -> bool:
            if door is Door.HANDED_OVER:
                await asyncio.sleep(ASK)
            return client.lives

        request = Request(
            "alice@example.net",
            message.recipients,
            "",
            message.queue_id,
            DEADLINE,
            observe=observe,
            has_process=not self._is_daemon or door is Door.HANDED_OVER,
            may_send_dot=may_send_dot,
            is_wanted=None if door is Door.HANDED_OVER else lambda: client.lives,
        )

        def leave() -> None:
            if data.size is None:
                data.give_up(LocalTrouble("the message was not taken"))
            delivery.cancel("the mail server has hung up")

        try:
            delivery = self._engine.begin(request, data)
        except asyncio.CancelledError:
            if not self.is_dead:
                raise
            return None
        if door is not Door.WHOLE:
            client.on_leave = leave
        task = asyncio.create_task(delivery.outcomes())
        self._tasks[task] = None
        done, _ = await asyncio.wait({task}, timeout=min(cancel_after, 10 * DEADLINE))
        if not done and not self.is_dead:
            self.cancelled_at = self._machine.clock()
            delivery.cancel("as the world has it")
        await asyncio.wait({task})
        self._tasks.pop(task, None)
        data.close()
        if self.is_dead:
            return None
        outcomes = zip(message.recipients, task.result(), strict=True)
        return {who: self._answer(outcome, told[who]) for who, outcome in outcomes}

    def _tell(
        self, message: Message, client: Client, delivery: Delivery, told: Counter[str]
    ) -> None:
        """Tell *client* each outcome that is there, in the order of the recipients."""
        for number, who in enumerate(message.recipients):
            outcome = delivery.outcome(number)
            if outcome is None:
                return
            client.hear(who, self._answer(outcome, told[who]))

    def _answer(self, outcome: Outcome, told: int) -> Answer:
        is_deferral = isinstance(outcome, Deferred) and self.cancelled_at == inf
        return Answer(_end(outcome), outcome.text, outcome.relay, told, is_deferral)

    async def stop(self) -> None:
        """Do what a daemon does at SIGTERM, and end."""
        try:
            await self._engine.stop("the daemon has been stopped")
        except asyncio.CancelledError:
            if not self.is_dead:
                raise
        self.exit()

    def exit(self) -> None:
        """End; what hosts were told with the last words has left."""
        self.is_gone = True
        self.has_ended.set()


def _end(outcome: Outcome) -> End:
    match outcome:
        case Delivered():
            return End.DELIVERED
        case Bounced():
            return End.BOUNCED
        case Deferred():
            return End.DEFERRED
