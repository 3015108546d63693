"""Plays a world twice, by the engine and by the patient sender, and compares.

The law: racing and remembering only ever make delivery sooner. So for each recipient:
no bounce and no deferral without end where the patient sender has delivered, no
delivery that no host has, no second copy where the patient sender has made none, no
deferral without end where the patient sender has bounced.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import permutations, product
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.engine import Engine, Request
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.options import Options
from mxpolicy.outcome import Bounced, Delivered
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from tests.helpers.fast_loop import run_fast
from tests.simulation import patient
from tests.simulation.hosts import Site
from tests.simulation.patient import POSTFIX, UNLIMITED, End
from tests.simulation.stores import SlowStore
from tests.simulation.world import Act, Storage, make_world, story

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.simulation.patient import Limits
    from tests.simulation.world import Message, World

__all__ = ["Fault", "judge", "tell", "world_of"]

# Seconds from one try of a mail server to the next, as Postfix's default rule.
GAPS = (300.0, 600.0, 1200.0, 2400.0, *[4000.0] * 9)
DEADLINE = 2900.0
UTC = 1_800_000_000.0

_COPY = "a copy too many"


class Fault(NamedTuple):
    """A breach of the law: what became of *recipient*, and what would have."""

    kind: str
    recipient: str
    ours: str
    patients: str


class Played(NamedTuple):
    """One way through a world.

    Attributes:
        ends: By recipient.
        copies: How often hosts have taken the message, by recipient.
        hosts: Who has taken it, by recipient.
        texts: What was said last, by recipient; the story for a person.
    """

    ends: dict[str, End]
    copies: Counter[str]
    hosts: dict[str, set[str]]
    texts: dict[str, list[str]]


def world_of(seed: int) -> World:
    """Return the world with this number."""
    return make_world(Random(seed), seed)


def judge(world: World) -> list[Fault]:
    """Play *world* both ways and return what the law forbids; most often nothing."""
    ours, _ = run_fast(_play_ours(world))
    suspects, faults = list(ours.ends), []
    steps = [step for host in world.hosts for step in host.steps]
    is_fooling = any(step.act is Act.EARLY for step in steps)
    # Of equal hosts each sender chooses one, each has limits of its own, and to be slow
    # is luck where a host recovers meanwhile. One of all patient senders at least must
    # have fared as we have.
    for order, limits, at_once in product(
        _orders(world), (POSTFIX, UNLIMITED), (False, True)
    ):
        patients, _ = run_fast(_play_patiently(order, limits, at_once=at_once))
        faults = [
            _fault(kind, one, ours, patients)
            for one in suspects
            if (kind := _kind(ours, patients, one, is_fooling=is_fooling))
            # What nobody can write down is sent again to all when one is deferred.
            and not (kind == _COPY and world.storage is Storage.GONE)
        ]
        suspects = [fault.recipient for fault in faults]
        if not faults:
            break
    return faults


def _orders(world: World) -> Iterator[World]:
    """Yield *world* with its hosts in every order that their preferences allow."""
    for hosts in permutations(world.hosts):
        preferences = [host.preference for host in hosts]
        if preferences == sorted(preferences):
            yield world._replace(hosts=hosts)


def _fault(kind: str, one: str, ours: Played, patients: Played) -> Fault:
    said = " | ".join(dict.fromkeys(ours.texts[one]))
    return Fault(
        kind,
        one,
        f"{ours.ends[one].value}, {ours.copies[one]} copies: {said}",
        f"{patients.ends[one].value}, {patients.copies[one]} copies",
    )


def _kind(ours: Played, patients: Played, one: str, *, is_fooling: bool) -> str:
    end, theirs = ours.ends[one], patients.ends[one]
    if end is End.DELIVERED and not ours.copies[one]:
        return "delivered, and no host has it"
    price = _price(ours, patients, one, is_fooling=is_fooling)
    if ours.copies[one] > max(1, patients.copies[one]) + price:
        return _COPY
    if theirs is End.DELIVERED and not patients.copies[one]:
        return ""  # it was fooled by a host that says 250 and has nothing
    if end is End.BOUNCED and theirs is End.DELIVERED:
        return "bounced"
    if end is End.DEFERRED and theirs is not End.DEFERRED:
        return "never settled"
    return ""


def _price(ours: Played, patients: Played, one: str, *, is_fooling: bool) -> int:
    """Return how many copies more than the patient sender's are no fault.

    A race may be won by a host to which the patient sender never came, and that host
    may leave the final dot unanswered. To bounce what a host may have costs no copy, nor
    does it to believe a 250 that comes before the final dot (*is_fooling*).
    """
    elsewhere = len(ours.hosts.get(one, set()) - patients.hosts.get(one, set()))
    bounced = patients.ends[one] is End.BOUNCED
    return elsewhere + bounced + is_fooling


def tell(world: World, faults: list[Fault]) -> str:
    """Return the world and its faults as a short story."""
    lines = [story(world)]
    for fault in faults:
        lines.append(f"  {fault.kind}: {fault.recipient}")
        lines.append(f"    ours: {fault.ours}")
        lines.append(f"    the patient sender's: {fault.patients}")
    return "\n".join(lines)


async def _play_ours(world: World) -> Played:
    site = Site(world)
    loop = asyncio.get_running_loop()
    began = loop.time()

    def utc() -> float:
        return UTC + loop.time() - began

    shared = MemoryStore(utc)
    rng = Random(world.seed)

    def opened() -> FallbackStore:
        if world.storage is Storage.GONE:
            return FallbackStore(None, lambda trouble: None, MemoryStore(utc))
        store = SlowStore(shared, world.storage, rng)
        return FallbackStore(store, lambda trouble: None, MemoryStore(utc))

    async def attempt(message: Message) -> dict[str, tuple[End, str]]:
        # A process for each try, as pipe(8) has it; they share the store.
        engine = Engine(
            Options(helo="client.example.net"),
            lambda event: None,
            store=opened(),
            clock=loop.time,
            utc=utc,
            lookups=site,
            dial=site.dial,  # type: ignore[arg-type]
            is_own_address=lambda address: False,
        )
        data = MailData()
        data.append(f"X-Message: {message.queue_id}\r\n\r\ntext\r\n".encode())
        data.finish()
        request = Request(
            "alice@example.net", message.recipients, "", message.queue_id, DEADLINE
        )
        try:
            outcomes = await engine.deliver(request, data)
        finally:
            data.close()
        ends: dict[str, tuple[End, str]] = {}
        for who, outcome in zip(message.recipients, outcomes, strict=True):
            match outcome:
                case Delivered():
                    end = End.DELIVERED
                case Bounced():
                    end = End.BOUNCED
                case _:
                    end = End.DEFERRED
            ends[who] = (end, outcome.text)
        return ends

    return await _play(world, site, attempt)


async def _play_patiently(world: World, limits: Limits, *, at_once: bool) -> Played:
    """Play it by the patient sender.

    Args:
        at_once: Whether every attempt meets the hosts as they are at its beginning.
    """
    site = Site(world)

    async def attempt(message: Message) -> dict[str, tuple[End, str]]:
        who = message.recipients
        site.as_of = None
        site.as_of = site.now() if at_once else None
        ends = await patient.send(site, message.queue_id, who, limits)
        return {one: (end, "") for one, end in ends.items()}

    return await _play(world, site, attempt, by_recipient=True)


async def _play(
    world: World,
    site: Site,
    attempt: Callable[[Message], Awaitable[dict[str, tuple[End, str]]]],
    *,
    by_recipient: bool = False,
) -> Played:
    """Let the mail server try each message until it is settled.

    Args:
        by_recipient: Whether only those deferred are tried again; a pipe process has
            one answer for all its recipients, so there all are.
    """
    ends: dict[str, End] = {}
    texts: dict[str, list[str]] = {
        who: [] for message in world.messages for who in message.recipients
    }

    async def keep_trying(message: Message) -> None:
        await asyncio.sleep(message.begins)
        for gap in (*GAPS, None):
            for who, (end, text) in (await attempt(message)).items():
                ends[who] = end
                texts[who].append(text)
            deferred = [w for w in message.recipients if ends[w] is End.DEFERRED]
            if not deferred or gap is None:
                return
            if by_recipient:
                message = message._replace(recipients=tuple(deferred))
            await asyncio.sleep(gap)

    async with asyncio.TaskGroup() as group:
        for message in world.messages:
            group.create_task(keep_trying(message))
    await asyncio.sleep(3600)  # until the last late reply has come
    hosts: dict[str, set[str]] = {}
    for who, _, name in site.taken:
        hosts.setdefault(who, set()).add(name)
    return Played(ends, Counter(who for who, _, _ in site.taken), hosts, texts)
