"""Plays a world twice, by the engine and by the patient sender, and compares.

The law: racing and remembering only ever make delivery sooner. So for each recipient:
no bounce and no deferral without end where the patient sender has delivered, no
delivery that no host has, no second copy where the patient sender has made none, no
deferral without end where the patient sender has bounced. No host is dialled that must
not be, and nobody's mail is put off, or kept waiting, by another domain's hosts.
"""

from __future__ import annotations

from itertools import product
from math import inf
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from tests.helpers.fast_loop import run_fast
from tests.simulation.patient import DOT, POSTFIX, UNLIMITED, End, orders
from tests.simulation.queue import play_ours, play_patiently
from tests.simulation.world import (
    FOREVER,
    GAPS,
    Act,
    Place,
    Storage,
    make_world,
    own_preference,
    slice_of,
    story,
)

if TYPE_CHECKING:
    from tests.simulation.hosts import Taken
    from tests.simulation.queue import Played
    from tests.simulation.world import Step, World

__all__ = ["Fault", "judge", "tell", "world_of"]

# Seconds that mail of a domain that is well waits for what is not.
LONGEST_WAIT = 20.0
# Seconds from the reply to the final dot until a process must have kept it.
KEPT_WITHIN, KEPT_WITHIN_SLOWLY = 0.5, 20.0

_BEFORE_READY = (Place.CONNECT, Place.GREETING, Place.EHLO, Place.TLS)

_COPY = "a copy too many"

# What nobody can write down, or read again, is sent again to all when one is deferred.
_FORGETFUL = {
    Storage.HANGING,
    Storage.BREAKING,
    Storage.LOSING,
    Storage.FULL,
    Storage.GONE,
}


class Fault(NamedTuple):
    """A breach of the law: what became of *recipient*, and what would have."""

    kind: str
    recipient: str
    ours: str
    patients: str


def world_of(seed: int) -> World:
    """Return the world with this number."""
    return make_world(Random(seed), seed)


def judge(world: World) -> list[Fault]:
    """Play *world* both ways and return what the law forbids; most often nothing."""
    ours, _ = run_fast(play_ours(world))
    faults = [
        Fault(kind, one, _told(ours, one), "") for one, kind in ours.breaches.items()
    ]
    faults += [
        Fault("dialled, and must not be", address, "", "")
        for address in sorted(set(ours.dialled) - _may_be_dialled(world))
    ]
    for domain in world.domains:
        faults += _judge_domain(slice_of(world, domain), ours)
    return faults


def _may_be_dialled(world: World) -> set[str]:
    return {
        address
        for domain in world.domains
        for host in domain.hosts
        if host.preference < own_preference(domain)
        for address in host.dialable
    }


def _judge_domain(world: World, ours: Played) -> list[Fault]:
    """Judge what became of the mail for the one domain of *world*."""
    suspects = [who for one in world.messages for who in one.recipients]
    (domain,) = world.domains
    faults: list[Fault] = _harm(world, ours)
    steps = [step for host in world.hosts for step in host.steps]
    is_fooling = any(step.act is Act.EARLY for step in steps)
    others: list[Fault] = []
    # Of equal hosts each sender chooses one, each has limits of its own, and to be slow
    # is luck where a host recovers meanwhile. One of all patient senders at least must
    # have fared as we have.
    senders = [POSTFIX, UNLIMITED]
    if world.storage in _FORGETFUL:  # then nobody knows how long a lookup has failed
        senders += [one._replace(lookups=0.0) for one in senders]
    queues = [world]
    if any(step.act is Act.BUSY for step in steps):  # who comes first is luck, too
        queues.append(world._replace(messages=world.messages[::-1]))
    for order, limits, at_once, queue in product(
        orders(domain), senders, (False, True), queues
    ):
        if not suspects:
            break
        patients, _ = run_fast(play_patiently(queue, limits, order, at_once=at_once))
        others = [
            Fault(kind, one, _told(ours, one), _told(patients, one))
            for one in suspects
            if (kind := _kind(world, ours, patients, one, is_fooling=is_fooling))
        ]
        suspects = [fault.recipient for fault in others]
    return faults + others


def _harm(world: World, ours: Played) -> list[Fault]:
    """Return who was put off, or kept waiting, though nothing is wrong where it goes."""
    (domain,) = world.domains
    is_well = all(
        step.act is Act.REPLY and not step.reply and step.delay < 2
        for host in domain.hosts
        for step in host.steps
    )
    if not is_well or domain.is_null or domain.fails_until or not domain.hosts:
        return []
    if world.storage is not Storage.WELL or world.kills or world.restarts:
        return []
    # What others keep may be most places, but never the last quarter of them.
    alone = world._replace(processes=world.processes // 4)
    order = next(orders(domain))
    patients, _ = run_fast(play_patiently(alone, UNLIMITED, order))
    faults = []
    for message in world.messages:
        for who in message.recipients:
            if message.is_cut:
                continue
            longer = _taken_at(ours, who) - _taken_at(patients, who)
            if ours.deferrals[who]:
                kind = "put off for no fault of its hosts"
            elif longer > LONGEST_WAIT:
                kind = f"kept waiting {longer:.0f}s for no fault of its hosts"
            else:
                continue
            faults.append(Fault(kind, who, _told(ours, who), ""))
    return faults


def _taken_at(played: Played, one: str) -> float:
    return min((taken.at for taken in played.copies(one)), default=inf)


def _told(played: Played, one: str) -> str:
    said = " | ".join(dict.fromkeys(played.texts[one]))
    end, copies = played.ends[one], len(played.copies(one))
    return f"{end.value}, {copies} copies: {said}"


def _kind(
    world: World, ours: Played, patients: Played, one: str, *, is_fooling: bool
) -> str:
    end, theirs = ours.ends[one], patients.ends[one]
    copies, their_copies = ours.copies(one), patients.copies(one)
    if end is End.DELIVERED and not copies:
        return "delivered, and no host has it"
    if world.storage not in _FORGETFUL:
        price = _price(world, ours, patients, one, is_fooling=is_fooling)
        if len(copies) > max(1, len(their_copies)) + price:
            return _COPY
    if theirs is End.DELIVERED and not their_copies:
        return ""  # it was fooled by a host that says 250 and has nothing
    if end is End.BOUNCED and theirs is End.DELIVERED and not _is_had(ours, one):
        return "bounced"
    if end is End.DEFERRED and theirs is not End.DEFERRED:
        return "never settled"
    if _is_steady(world) and ours.deferrals[one] > patients.deferrals[one]:
        return "put off once too often"
    return ""


def _is_had(ours: Played, one: str) -> bool:
    """Return whether a host has what was bounced, did not say so, and is named for it."""
    copies = ours.copies(one)
    return (
        bool(copies)
        and not any(_is_heard(taken) for taken in copies)
        and "may have been delivered by" in ours.texts[one][-1]
    )


def _is_heard(taken: Taken) -> bool:
    is_killed = taken.process is not None and taken.process.is_dead
    return taken.heard_at < inf and not is_killed


def _is_steady(world: World) -> bool:
    """Return whether each try meets the same, and none ends in doubt.

    What is remembered may put off a message once that would meet a host just mended, or
    one so slow that it counts as down. And a first doubt at the final dot ends a try.
    """
    if world.storage is not Storage.WELL or world.kills or world.restarts:
        return False
    (domain,) = world.domains
    steps = [step for host in domain.hosts for step in host.steps]
    return not (
        domain.fails_until
        or any(step.until < FOREVER or _leaves_doubt(step) for step in steps)
        or any(step.place in _BEFORE_READY and step.delay > 5 for step in steps)
        or any(one.is_cut for one in world.messages)
        or world.gaps != GAPS
    )


def _leaves_doubt(step: Step) -> bool:
    is_late = step.act is Act.REPLY and not step.reply and step.delay > DOT
    is_unheard = step.act is not Act.REPLY
    return step.place is Place.DOT and (is_late or is_unheard)


def _price(
    world: World, ours: Played, patients: Played, one: str, *, is_fooling: bool
) -> int:
    """Return how many copies more than the patient sender's are no fault.

    A race may be won by a host to which the patient sender never came, and that host
    may leave the final dot unanswered. To bounce what a host may have costs no copy, so
    each such host may be asked once more before it comes to that; nor does it to believe a 250 that
    comes before the final dot (*is_fooling*). Who is killed before the reply is read
    begins anew: so a patient sender makes all its copies again. A restart is one more
    try, at hosts that do not answer the dot or without an answer of the store.
    """
    copies = ours.copies(one)
    theirs = {taken.host for taken in patients.copies(one)}
    elsewhere = len({taken.host for taken in copies} - theirs)
    unheard = {taken.host for taken in copies if taken.heard_at == inf}
    bounced = max(1, len(unheard)) if patients.ends[one] is End.BOUNCED else 0
    is_slow = world.storage is Storage.SLOW
    within = KEPT_WITHIN_SLOWLY if is_slow else KEPT_WITHIN
    killed = sum(
        taken.process is not None and taken.process.died_at < taken.heard_at + within
        for taken in copies
    )
    restarted = len(world.restarts) if unheard or is_slow else 0
    return elsewhere + bounced + is_fooling + killed * max(1, len(theirs)) + restarted


def tell(world: World, faults: list[Fault]) -> str:
    """Return the world and its faults as a short story."""
    lines = [story(world)]
    for fault in faults:
        lines.append(f"  {fault.kind}: {fault.recipient}")
        lines += [f"    ours: {fault.ours}"] if fault.ours else []
        if fault.patients:
            lines.append(f"    the patient sender's: {fault.patients}")
    return "\n".join(lines)
