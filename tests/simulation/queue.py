"""The mail server: a queue that hands each message over until it is settled.

As Postfix and Exim do it with a pipe transport: a process for each try, so many at
once, and the same gaps between the tries of a message.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation import patient
from tests.simulation.hosts import Site
from tests.simulation.patient import End
from tests.simulation.process import Answer, Machine
from tests.simulation.stores import File

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.simulation.hosts import Taken
    from tests.simulation.patient import Limits
    from tests.simulation.process import Process
    from tests.simulation.world import Host, Message, World

__all__ = ["Played", "play_ours", "play_patiently"]

UTC = 1_800_000_000.0
# Seconds until a mail server that was restarted hands its messages over again.
RESTART = 0.2


class Played(NamedTuple):
    """One way through a world.

    Attributes:
        ends: By recipient.
        taken: What hosts have, in the order in which they took it.
        dialled: Addresses, in their order.
        texts: What was said each time, by recipient; the story for a person.
        deferrals: How often it was put off, by recipient.
        breaches: What was wrong whatever a patient sender does, by recipient.
    """

    ends: dict[str, End]
    taken: list[Taken]
    dialled: list[str]
    texts: dict[str, list[str]]
    deferrals: Counter[str]
    breaches: dict[str, str]

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
    daemons = [await machine.start()] if world.is_one_engine else []
    kills = {(one.queue_id, one.attempt): one.operation for one in world.kills}
    cancels = {(one.queue_id, one.attempt): one.after for one in world.cancels}
    tries: Counter[str] = Counter()
    is_up = asyncio.Event()  # a daemon is; where there are none, always
    is_up.set()

    async def attempt(message: Message) -> dict[str, Answer] | None:
        number = tries[message.queue_id]
        tries[message.queue_id] += 1
        key = message.queue_id, number
        await is_up.wait()
        process = daemons[-1] if daemons else await machine.start(kills.get(key, inf))
        is_cut = message.is_cut and not number and not daemons
        try:
            answers = await process.deliver(
                message, is_cut=is_cut, cancel_after=cancels.get(key, inf)
            )
        finally:
            if not daemons:
                process.exit()
        queue.check(message, answers, process)
        return None if is_cut else answers

    async def crash(at: float) -> None:
        await asyncio.sleep(at)
        daemons[-1].die()
        is_up.clear()
        daemons.append(await machine.start())
        is_up.set()

    async with asyncio.TaskGroup() as crashes:
        for at in world.crashes:
            crashes.create_task(crash(at))
        return await queue.run(attempt)


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

    async def attempt(message: Message) -> dict[str, Answer]:
        who = message.recipients
        site.as_of = None
        site.as_of = site.now() if at_once else None
        ends = await patient.send(site, message.queue_id, who, order, limits)
        return {
            one: Answer(end, "", "", 1, end is End.DEFERRED)
            for one, end in ends.items()
        }

    calm = world._replace(restarts=(), crashes=())
    return await _Queue(calm, site).run(attempt, by_recipient=True)


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
        self._played = Played(ends, site.taken, site.dialled, texts, Counter(), {})

    async def run(
        self,
        attempt: Callable[[Message], Awaitable[dict[str, Answer] | None]],
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
        attempt: Callable[[Message], Awaitable[dict[str, Answer] | None]],
        by_recipient: bool,
    ) -> None:
        await asyncio.sleep(message.begins)
        gaps = [*self._world.gaps]
        while True:
            async with self._places:
                answers, was_restarted = await self._try(message, attempt)
            if was_restarted:
                await asyncio.sleep(RESTART)
                continue
            if _is_lost(answers):
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
        attempt: Callable[[Message], Awaitable[dict[str, Answer] | None]],
    ) -> tuple[dict[str, Answer] | None, bool]:
        if not self._world.restarts:
            return await attempt(message), False
        restarted = asyncio.ensure_future(self._restarted.wait())
        trying = asyncio.ensure_future(attempt(message))
        await asyncio.wait({restarted, trying}, return_when=asyncio.FIRST_COMPLETED)
        if trying.done():
            restarted.cancel()
            return trying.result(), False
        self._orphans.add(trying)
        trying.add_done_callback(self._orphans.discard)
        return None, True

    def _note(
        self, message: Message, answers: dict[str, Answer] | None
    ) -> tuple[str, ...]:
        """Return who is to be tried again."""
        played = self._played
        if answers is None:
            return message.recipients
        for who, answer in answers.items():
            played.ends[who] = answer.end
            played.texts[who].append(answer.text)
            played.deferrals[who] += answer.is_deferral
        ends = [played.ends[who] for who in message.recipients]
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
