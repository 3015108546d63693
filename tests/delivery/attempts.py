"""Plays one attempt against scripted hosts, and looks for what it leaves behind."""

from __future__ import annotations

import asyncio
import os
from math import inf
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, TypeVar

from mxpolicy.address import parse_mailbox, parse_reverse_path
from mxpolicy.delivery.attempt import Attempt
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.journal import Past
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.message import Envelope, Message
from mxpolicy.delivery.plan import Plan
from mxpolicy.delivery.settlement import Recipient, Settlement
from mxpolicy.delivery.trace import Trace
from mxpolicy.options import Options
from mxpolicy.routing.candidate import host_of
from tests.helpers.scripted_smtp import ScriptedHost, serve
from tests.helpers.socket_loop import run_with_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Any

    from mxpolicy.delivery.events import Event
    from mxpolicy.outcome import Outcome

__all__ = [
    "HELO",
    "MESSAGE",
    "Journal",
    "Played",
    "deliver",
    "envelope",
    "mail_data",
    "play",
]

HELO = "client.example.net"
MESSAGE = b"Subject: test\r\n\r\nHello.\r\n"

E = TypeVar("E")
P = ParamSpec("P")
T = TypeVar("T")


class Played(NamedTuple):
    """What came of an attempt.

    Attributes:
        outcomes: By recipient.
        tried: By recipient: what was said to have been tried.
        tls: By recipient: protocol and cipher, as told.
        events: As observed.
        seconds: What the clock says it took.
    """

    outcomes: list[Outcome]
    tried: list[tuple[str, ...]]
    tls: list[str]
    events: list[Event]
    seconds: float

    @property
    def outcome(self) -> Outcome:
        """The only recipient's."""
        (only,) = self.outcomes
        return only

    def all(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


def envelope(*recipients: str, sender: str = "alice@example.net") -> Envelope:
    """Make an envelope."""
    mailboxes = dict(enumerate(map(parse_mailbox, recipients)))
    return Envelope(parse_reverse_path(sender), mailboxes)


def mail_data(data: bytes = MESSAGE) -> MailData:
    """Make mail data."""
    made = MailData()
    made.append(data)
    made.finish()
    return made


class Journal:
    """What an attempt is told of its message's past, and tells.

    Attributes:
        dots: (relay, recipients) of each final dot.
        noted: (recipient, host) of each doubt.
        waited: {(candidate's text, what for): seconds} by recipient; what was waited
            for before, and what is added.
    """

    def __init__(self, *doubts: Mapping[str, int], seconds: float = 0.0) -> None:
        """Take {host name: doubts} for each recipient, as far as there were any.

        They were at another address of the host. A dot takes *seconds* to be noted.
        """
        self._doubts = [
            {f"{host}[192.0.2.99]:25": times for host, times in one.items()}
            for one in doubts
        ]
        self.waited: dict[int, Mapping[tuple[str, str], float]] = {}
        self._seconds = seconds
        self.dots: list[tuple[str, list[int]]] = []
        self.noted: list[tuple[int, str]] = []

    def claim(self, settlement: Settlement) -> None:
        """Tell *settlement* of the past."""
        for number in settlement.unsettled():
            doubts = self._doubts[number] if number < len(self._doubts) else {}
            settlement.claimed(number, Past(doubts, self.waited.get(number, {})))

    def note(self, settlement: Settlement) -> None:
        """Note what has been added to the past."""
        for recipient in settlement:
            number, past = recipient.number, recipient.past
            before = self._doubts[number] if number < len(self._doubts) else {}
            for relay, times in past.doubts.items():
                added = times - before.get(relay, 0)
                self.noted += [(number, host_of(relay))] * added
            if past.waits:
                self.waited[number] = past.waits

    def has_memory(self) -> bool:
        return True

    async def dot_is_next(self, relay: str, numbers: Sequence[int]) -> None:
        """See `mxpolicy.delivery.message.Journal`."""
        self.dots.append((relay, list(numbers)))
        await asyncio.sleep(self._seconds)


class _Trace(Trace):
    """Lets through what an observer raises."""

    def tell(
        self,
        kind: Callable[Concatenate[float, P], Event],
        *facts: P.args,
        **named_facts: P.kwargs,
    ) -> None:
        """See `Trace`."""
        self._observe(kind(self.now(), *facts, **named_facts))


async def play(
    *hosts: ScriptedHost,
    recipients: Sequence[str] = ("bob@example.com",),
    sender: str = "alice@example.net",
    preferences: Sequence[int] | None = None,
    data: bytes = MESSAGE,
    options: Options | None = None,
    deadline: float = 900.0,
    ends: float = inf,
    is_complete: Callable[[], bool] = lambda: True,
    observe: Callable[[Event], None] = lambda event: None,
    helo: str = HELO,
    spoil: Callable[[MailData], None] = lambda message: None,
    settled: dict[int, Outcome] | None = None,
    journal: Journal | None = None,
) -> Played:
    """Attempt a delivery to *hosts*, which are open.

    Args:
        hosts: In the order of trying.
        preferences: Theirs; 10, 20, 30 and so on if not given.
        observe: Told everything too. What it raises is as a bug in the attempt.
        spoil: Done to the mail data.
        settled: Filled, for who will not get an answer.
        journal: By default there is no past.
    """
    settled = {} if settled is None else settled
    if preferences is None:
        preferences = [10 * (number + 1) for number in range(len(hosts))]
    loop = asyncio.get_running_loop()
    began = loop.time()
    happened: list[Event] = []
    tried: dict[int, tuple[str, ...]] = {}
    tls: dict[int, str] = {}
    journal = journal or Journal()

    def note(event: Event) -> None:
        happened.append(event)
        observe(event)

    def report(recipient: Recipient) -> None:
        assert recipient.outcome is not None
        assert recipient.number not in settled, "a recipient is settled once"
        tried[recipient.number] = recipient.tried
        tls[recipient.number] = recipient.tls
        settled[recipient.number] = recipient.outcome

    message = mail_data(data)

    async def may_send_dot() -> bool:
        return is_complete()

    options = (options or Options())._replace(helo=helo)
    settlement = Settlement(recipients, report)
    journal.claim(settlement)
    attempt = Attempt(
        Context(options, clock=loop.time),
        Message(
            _Trace("Q", loop.time, note),
            envelope(*recipients, sender=sender),
            message,
            settlement,
            journal,
            may_send_dot,
            deadline,
            ends,
        ),
        Plan(
            "example.com",
            tuple(map(ScriptedHost.candidate, hosts, preferences)),
        ),
        range(len(recipients)),
    )
    try:
        await message.drain()
        spoil(message)
        await attempt.run()
    finally:
        message.close()
        journal.note(settlement)
    outcomes = [settled[index] for index in range(len(recipients))]
    what = [tried[index] for index in range(len(recipients))]
    how = [tls[index] for index in range(len(recipients))]
    return Played(outcomes, what, how, happened, loop.time() - began)


def deliver(*hosts: ScriptedHost, **more: Any) -> Played:
    """`play`, on a loop of its own; see there for the arguments."""
    return run(*hosts, work=lambda: play(*hosts, **more))


def run(*hosts: ScriptedHost, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Serve *hosts* while *work* runs; no task and no descriptor may be left by it."""

    async def main() -> T:
        before = _descriptors()
        async with serve(*hosts):
            try:
                return await work()
            finally:
                theirs = {task for host in hosts for task in host.tasks()}
                ours = asyncio.all_tasks() - theirs - {asyncio.current_task()}
                await asyncio.sleep(1)  # until the hosts have seen the end of it
                for host in hosts:
                    await host.close()
                assert not ours, "tasks are left behind"
                assert _descriptors() == before, "descriptors are left behind"

    return run_with_sockets(main())


def _descriptors() -> set[str]:
    own = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        return set(os.listdir(own)) - {str(own)}
    finally:
        os.close(own)
