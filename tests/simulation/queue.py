"""The mail server: a queue that hands each message over until it is settled.

As Postfix and Exim do it with a pipe transport: a process for each try, so many at
once, and the same gaps between the tries of a message.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation import patient
from tests.simulation.client import Client
from tests.simulation.hosts import Site
from tests.simulation.patient import End
from tests.simulation.process import Answer, Machine
from tests.simulation.stores import File
from tests.simulation.world import Door, Message

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from tests.simulation.hosts import Taken
    from tests.simulation.patient import Limits
    from tests.simulation.process import Process
    from tests.simulation.world import Host, World

__all__ = ["Played", "play_ours", "play_patiently"]

UTC = 1_800_000_000.0
# Seconds until a mail server that was restarted hands its messages over again.
RESTART = 0.2


class Played(NamedTuple):
    """One way through a world.

    Attributes:
        ends: By recipient.
        taken: What hosts have, in the order in which they took it.
        cut_off: See `tests.simulation.hosts.Site`.
        dialled: Addresses, in their order.
        texts: What was said each time, by recipient; the story for a person.
        deferrals: How often it was put off, by recipient.
        breaches: What was wrong whatever a patient sender does, by recipient.
        begun_anew: When a message was tried anew, as nothing was heard of the try before.
            In seconds from the beginning, by queue id.
        settled_at: When its end was first told, by recipient.
    """

    ends: dict[str, End]
    taken: list[Taken]
    cut_off: list[tuple[str, str]]
    dialled: list[str]
    texts: dict[str, list[str]]
    deferrals: Counter[str]
    breaches: dict[str, str]
    begun_anew: dict[str, list[float]]
    settled_at: dict[str, float]

    def copies(self, recipient: str) -> list[Taken]:
        """Return those of one recipient."""
        return [one for one in self.taken if one.recipient == recipient]


async def play_ours(world: World) -> Played:
    """Play *world* by the engine."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    def utc() -> float:
        return UTC + loop.time() - began

    site = Site(world)
    machine = Machine(site, File(world.storage, world.seed, utc), loop.time)
    queue = _Queue(world, site)
    daemons = _Daemons(machine, world)
    kills = {(one.queue_id, one.attempt): one.operation for one in world.kills}
    cancels = {(one.queue_id, one.attempt): one.after for one in world.cancels}
    hang_ups = {(one.queue_id, one.attempt): one.after for one in world.hang_ups}
    alone = {(one.queue_id, one.attempt) for one in world.alone}
    tries: Counter[str] = Counter()

    async def attempt(message: Message, client: Client) -> dict[str, Answer] | None:
        number = tries[message.queue_id]
        tries[message.queue_id] += 1
        key = message.queue_id, number
        if key in hang_ups:
            loop.call_later(hang_ups[key], client.leave)
        process = await daemons.take(is_away=key in alone)
        if not client.is_there:
            return None  # killed while no daemon was there
        is_new = process is None
        if process is None:
            process = await machine.start(kills.get(key, inf))
        has_client = world.door is not Door.WHOLE or is_new
        is_cut = message.is_cut and not number and has_client
        after = cancels.get(key, inf)
        try:
            answers = await process.deliver(
                message, client, is_cut=is_cut, cancel_after=after
            )
        finally:
            if is_new:
                process.exit()
        queue.check(message, answers, process)
        return None if is_cut else answers

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(one) for one in daemons.work()]
        await daemons.has_begun()
        played = await queue.run(attempt, by_recipient=world.door is Door.LMTP)
        for task in running:
            task.cancel()
    return played


class _Daemons:
    """The processes of the one engine: at most one at a time."""

    def __init__(self, machine: Machine, world: World) -> None:
        self._machine = machine
        self._world = world
        self._process: Process | None = None
        self._is_up = asyncio.Event()

    async def take(self, *, is_away: bool) -> Process | None:
        """Return the one that is called, None where a process of its own is needed.

        A mail server waits for LMTP. A client that hands over does not.

        Args:
            is_away: The client does not get to the daemon.
        """
        world = self._world
        is_handed_over = world.door is Door.HANDED_OVER
        is_down = is_handed_over and not self._is_up.is_set()
        if not world.is_one_engine or is_down or is_away:
            return None
        await self._is_up.wait()
        return self._process

    async def has_begun(self) -> None:
        """Wait until the first one is there, where there is to be one."""
        if self._world.is_one_engine:
            await self._is_up.wait()

    def work(self) -> Iterator[Coroutine[None, None, None]]:
        """Yield all that is to be done beside the mail server's work."""
        if self._world.is_one_engine:
            yield self._run()
            for at in self._world.crashes:
                yield self._crash(at)
            for at in self._world.stops:
                yield self._stop(at)

    async def _run(self) -> None:
        for dies_at in chain(self._world.crash_operations, repeat(inf)):
            self._process = await self._machine.start(dies_at, is_daemon=True)
            self._is_up.set()
            await self._process.has_ended.wait()
            self._is_up.clear()

    async def _crash(self, at: float) -> None:
        await asyncio.sleep(at)
        if self._process is not None:
            self._process.die()
            self._is_up.clear()

    async def _stop(self, at: float) -> None:
        await asyncio.sleep(at)
        if self._process is not None and not self._process.is_gone:
            self._is_up.clear()
            await self._process.stop()


async def play_patiently(
    world: World,
    limits: Limits,
    order: Sequence[tuple[Host, str]],
    *,
    at_once: bool = False,
) -> Played:
    """Play a world of one domain by the patient sender, which is never restarted.

    Args:
        limits: How far it goes.
        order: In which it dials.
        at_once: Whether every attempt meets the hosts as they are at its beginning.
    """
    site = Site(world)

    async def attempt(message: Message, client: Client) -> dict[str, Answer]:
        who = message.recipients
        site.as_of.set(None)
        site.as_of.set(site.now() if at_once else None)
        ends = await patient.send(site, message.queue_id, who, order, limits)
        return {
            one: Answer(end, "", "", 1, end is End.DEFERRED)
            for one, end in ends.items()
        }

    calm = world._replace(restarts=(), hang_ups=(), door=Door.WHOLE)
    return await _Queue(calm, site).run(attempt, by_recipient=True)


_Attempt = Callable[[Message, Client], Awaitable[dict[str, Answer] | None]]


class _Queue:
    def __init__(self, world: World, site: Site) -> None:
        self._world = world
        self._site = site
        self._places = asyncio.Semaphore(world.processes)
        self._restarted = asyncio.Event()
        self._orphans: set[asyncio.Task[dict[str, Answer] | None]] = set()
        who = [one for message in world.messages for one in message.recipients]
        texts: dict[str, list[str]] = {one: [] for one in who}
        ends = dict.fromkeys(who, End.DEFERRED)
        self._played = Played(
            ends, site.taken, site.cut_off, site.dialled, texts, Counter(), {}, {}, {}
        )

    async def run(
        self,
        attempt: _Attempt,
        *,
        by_recipient: bool = False,
    ) -> Played:
        """Let each message be tried until it is settled.

        Args:
            attempt: Makes one try; None when nothing was heard of it.
            by_recipient: Whether only those deferred are tried again; a pipe process
                has one answer for all its recipients, so there all are.
        """
        async with asyncio.TaskGroup() as group:
            for number, message in enumerate(self._world.messages):
                # Of those that begin together, the first one does so first.
                begins = message.begins + number * 1e-3
                message = message._replace(begins=begins)
                group.create_task(self._keep_trying(message, attempt, by_recipient))
            for at in self._world.restarts:
                group.create_task(self._restart(at))
        while self._orphans:
            await asyncio.wait(self._orphans)
        await asyncio.sleep(3600)  # until the last late reply has come
        return self._played

    async def _restart(self, at: float) -> None:
        await asyncio.sleep(at)
        event, self._restarted = self._restarted, asyncio.Event()
        event.set()

    async def _keep_trying(
        self,
        message: Message,
        attempt: _Attempt,
        by_recipient: bool,
    ) -> None:
        await asyncio.sleep(message.begins)
        gaps = [*self._world.gaps]
        is_anew = False
        while True:
            async with self._places:
                if is_anew:
                    begun = self._played.begun_anew.setdefault(message.queue_id, [])
                    begun.append(self._site.now())
                answers, was_restarted = await self._try(message, attempt)
            is_anew = was_restarted or _is_lost(answers)
            if was_restarted:
                await asyncio.sleep(RESTART)
                if self._world.door is Door.LMTP:
                    message = message._replace(recipients=self._note(message, None))
                    if not message.recipients:
                        return
                continue
            if is_anew:
                # It has as many tries as the patient sender's, and this was none.
                gaps.append(self._world.gaps[-1])
            left = self._note(message, answers)
            if not left or not gaps:
                return
            if by_recipient:
                message = message._replace(recipients=left)
            await asyncio.sleep(gaps.pop(0))

    async def _try(
        self,
        message: Message,
        attempt: _Attempt,
    ) -> tuple[dict[str, Answer] | None, bool]:
        """Return what is heard of one try, None for nothing; and whether that is why."""
        client = Client(self._hear)
        if not self._world.restarts and not self._world.hang_ups and not message.is_cut:
            return await attempt(message, client), False
        restarted = asyncio.ensure_future(self._restarted.wait())
        hung_up = asyncio.ensure_future(client.has_gone.wait())
        trying = asyncio.ensure_future(attempt(message, client))
        ends = {restarted, hung_up, trying}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        was_restarted = restarted.done()
        restarted.cancel()
        hung_up.cancel()
        if trying.done():
            return trying.result(), False
        self._orphans.add(trying)
        trying.add_done_callback(self._orphans.discard)
        if was_restarted and self._world.door is not Door.WHOLE:
            client.lives = False
            if self._world.door is Door.LMTP:
                client.leave()
        return None, was_restarted

    def _hear(self, who: str, answer: Answer) -> None:
        played = self._played
        if played.ends[who] is not answer.end:
            played.settled_at[who] = self._site.now()
        played.ends[who] = answer.end
        played.texts[who].append(answer.text)
        played.deferrals[who] += answer.is_deferral

    def _note(
        self, message: Message, answers: dict[str, Answer] | None
    ) -> tuple[str, ...]:
        """Return who is to be tried again."""
        if self._world.door is not Door.LMTP and answers is None:
            return message.recipients
        if self._world.door is not Door.LMTP and answers is not None:
            for who, answer in answers.items():
                self._hear(who, answer)
        ends = [self._played.ends[who] for who in message.recipients]
        return tuple(
            who
            for who, end in zip(message.recipients, ends, strict=True)
            if end is End.DEFERRED
        )

    def check(
        self,
        message: Message,
        answers: dict[str, Answer] | None,
        process: Process,
    ) -> None:
        """Note what is wrong whatever a patient sender does."""
        breaches = self._played.breaches
        for who in message.recipients:
            copies = self._played.copies(who)
            if not all(one.is_whole for one in copies):
                breaches[who] = "a part of it was taken for the whole"
            if answers is None:
                continue
            answer = answers[who]
            if process.after_cancel:
                breaches[who] = f"{process.after_cancel} after it was cancelled"
            if answer.told != 1:
                breaches[who] = f"{answer.told} outcomes were told"
            hosts = {one.host for one in copies}
            relay = answer.relay.rpartition("[")[0]
            if answer.end is End.DELIVERED and relay not in hosts:
                breaches[who] = f"delivered, and {relay} has not got it"


def _is_lost(answers: dict[str, Answer] | None) -> bool:
    """Return whether nothing was heard of a try, or that it was cancelled."""
    if answers is None:
        return True
    ends = answers.values()
    return any(one.end is End.DEFERRED and not one.is_deferral for one in ends)
