"""Several messages, one memory, real sockets on loopback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.delivery.learner import Learner
from mxpolicy.delivery.request import Request
from mxpolicy.delivery.trace import Trace
from mxpolicy.options import (
    LimitOptions,
    MemoryOptions,
    Options,
    TransactionOptions,
)
from mxpolicy.outcome import Outcome
from mxpolicy.routing.host_record import HostRecord, decode
from mxpolicy.routing.nexthop import nexthop_aim, parse_nexthop
from mxpolicy.state.memory import MemoryStore
from tests.delivery.attempts import MESSAGE, mail_data
from tests.helpers.scripted_smtp import ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mxpolicy.delivery.events import Event


START = 1_800_000_000.0


class Utc:
    """UTC that goes on with the loop's clock, and can be moved by the test."""

    def __init__(self) -> None:
        self.offset = START - asyncio.get_running_loop().time()

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.offset


class Sent(NamedTuple):
    """What became of a message."""

    outcomes: list[Outcome]
    seconds: float
    events: list[Event]

    @property
    def outcome(self) -> Outcome:
        """The only recipient's."""
        (only,) = self.outcomes
        return only

    @property
    def dialled(self) -> list[str]:
        return [
            one.candidate.address
            for one in self.events
            if isinstance(one, events.CandidateStarted)
        ]


class Site:
    """An engine whose memory outlives a message, and hosts by preference.

    Its messages may go the fast path, unless it is not *is_fast*. They are as if they
    came from a process of the mail server, unless it is *is_by_lmtp*.
    """

    def __init__(
        self,
        *hosts: ScriptedHost,
        options: MemoryOptions | None = None,
        store: type[MemoryStore] = MemoryStore,
        chance: Callable[[], float] = lambda: 0.0,
        keeps_sessions: bool = False,
        limits: LimitOptions | None = None,
        transaction: TransactionOptions | None = None,
        is_fast: bool = True,
        is_by_lmtp: bool = False,
    ) -> None:
        self._is_by_lmtp = is_by_lmtp
        self.hosts = hosts
        self.utc = Utc()
        self.store = store(self.utc)
        self.options = Options(
            helo="mail.example.com",
            allow_dial=("127.0.0.0/8",),
            memory=options or MemoryOptions(),
            limits=limits or LimitOptions(),
            transaction=transaction or TransactionOptions(),
        )
        self.happened: list[Event] = []
        self.context = Context(
            self.options,
            store=self.store,
            clock=asyncio.get_running_loop().time,
            utc=self.utc,
            chance=chance,
            keeps_sessions=keeps_sessions,
        )
        self.engine = Engine(self.context)
        if not is_fast:
            self.engine.fast_path = None
        self.memory = self.context.memory
        self.number = 0

    @property
    def nexthop(self) -> str:
        found = [one.candidate() for one in self.hosts]
        return ", ".join(f"[{one.address}]:{one.port}" for one in found)

    @property
    def aim(self) -> str:
        return nexthop_aim(parse_nexthop(self.nexthop, self.options.port))

    async def send(
        self,
        nexthop: str = "",
        recipients: Sequence[str] = ("bob@example.com",),
        data: bytes = MESSAGE,
        may_send_dot: Callable[[], Awaitable[bool]] | None = None,
    ) -> Sent:
        self.number += 1
        request = Request(
            "alice@example.net",
            tuple(recipients),
            nexthop or self.nexthop,
            f"Q{self.number}",
            900.0,
            observe=self.happened.append,
        )
        if may_send_dot is not None:
            request = request._replace(may_send_dot=may_send_dot)
        elif self._is_by_lmtp:
            request = request._replace(is_wanted=lambda: True, has_process=False)
        began, seen = asyncio.get_running_loop().time(), len(self.happened)
        message = mail_data(data)
        try:
            outcomes = await self.engine.deliver(request, message)
        finally:
            message.close()
        settled = [
            one.at
            for one in self.happened[seen:]
            if isinstance(one, events.RecipientSettled)
        ]
        assert asyncio.get_running_loop().time() - began < settled[-1] + 4
        return Sent(outcomes, settled[0], self.happened[seen:])

    def learner(self, aim: str, message_id: str) -> Learner:
        trace = Trace("", self.context.clock, self.happened.append)
        return Learner(self.memory, trace, lambda: 0.0, aim, message_id, {})

    async def record(self, host: ScriptedHost) -> HostRecord:
        return decode(await self.store.get(host_key(host.candidate())))

    def troubles(self) -> Sequence[Event]:
        return [one for one in self.happened if isinstance(one, events.Trouble)]
