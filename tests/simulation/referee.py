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
from tests.simulation.daemon_worlds import make_world_of_a_daemon
from tests.simulation.limit_worlds import make_world_of_limits
from tests.simulation.patient import DOT, POSTFIX, TWO_HOSTS, UNLIMITED, End, orders
from tests.simulation.queue import play_ours, play_patiently
from tests.simulation.world import (
    FOREVER,
    GAPS,
    Act,
    Door,
    Place,
    Storage,
    make_world,
    make_world_of_sessions,
    own_preference,
    slice_of,
    story,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.hosts import Taken
    from tests.simulation.patient import Limits
    from tests.simulation.queue import Played
    from tests.simulation.world import Message, Step, World

__all__ = [
    "WORLDS",
    "Fault",
    "judge",
    "tell",
    "world_of",
    "world_of_a_daemon",
    "world_of_limits",
    "world_of_sessions",
]

# Seconds that mail of a domain that is well waits for what is not.
LONGEST_WAIT = 20.0
# Seconds from the reply to the final dot until a process must have kept it.
KEPT_WITHIN, KEPT_WITHIN_SLOWLY = 0.5, 20.0

# Seconds in which few tries of a message are made, and not the same number by all senders.
SOME = 60.0

# Seconds for which a daemon listens to a host that has not answered the dot in time.
LISTENS = 3600.0

# Seconds after which a host counts as down, as far as the product says.
_DOWN = {Place.CONNECT: 5.0, Place.GREETING: 29.0, Place.EHLO: 29.0, Place.TLS: 29.0}

_COPY, _UNSETTLED = "a copy too many", "never settled"

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


def world_of_sessions(seed: int) -> World:
    """Return the world with this number in which sessions are used again."""
    return make_world_of_sessions(Random(seed), seed)


def world_of_a_daemon(seed: int) -> World:
    """Return the world with this number in which a daemon is called."""
    return make_world_of_a_daemon(Random(seed), seed)


def world_of_limits(seed: int) -> World:
    """Return the world with this number of many recipients and hosts that take few."""
    return make_world_of_limits(Random(seed), seed)


WORLDS = {
    "all": world_of,
    "sessions": world_of_sessions,
    "daemons": world_of_a_daemon,
    "limits": world_of_limits,
}
"""{kind: what returns the world with a number}."""


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
    faults: list[Fault] = _harm(world, ours)
    steps = [step for host in world.hosts for step in host.steps]
    is_fooling = any(step.act is Act.EARLY for step in steps)
    # Of equal hosts each sender chooses one, each has limits of its own, and to be slow
    # is luck where a host recovers meanwhile. One of all patient senders at least must
    # have fared as we have.
    senders = [TWO_HOSTS, UNLIMITED]
    if any(host.most is not None for host in world.hosts):
        senders += [one._replace(splits=True) for one in senders]
    if world.storage in _FORGETFUL:  # then nobody knows how long a lookup has failed
        senders += [one._replace(lookups=0.0) for one in senders]
    others, bounced = _compare(world, ours, suspects, senders, is_fooling=is_fooling)
    # Who never comes to a host that refuses may defer for ever; no more than that.
    others = [one for one in others if one.recipient not in bounced]
    if _is_session_refused(world):
        bounced = []
    more, _ = _compare(world, ours, bounced, [POSTFIX], is_fooling=is_fooling)
    return faults + others + more


def _is_session_refused(world: World) -> bool:
    """Return whether a host refuses our session, and at least two others put off.

    The patient sender bounces by the first one's word. We ask the others first, and two
    that put off are enough for one try.
    """
    replies = [{step.reply[:1] for step in host.steps} for host in world.hosts]
    is_refused = any(
        step.reply.startswith("503") for host in world.hosts for step in host.steps
    )
    return is_refused and sum("4" in those for those in replies) >= 2


def _compare(
    world: World,
    ours: Played,
    suspects: list[str],
    senders: list[Limits],
    *,
    is_fooling: bool,
) -> tuple[list[Fault], list[str]]:
    """Compare with each patient sender that there may be.

    Returns the faults that all of them find, the last one's words; and of whom we defer
    for ever where the last one has bounced.
    """
    (domain,) = world.domains
    faults: list[Fault] = []
    bounced: list[str] = []
    for order, limits, at_once, queue in product(
        orders(domain), senders, (False, True), list(_queues(world, ours))
    ):
        if not suspects:
            return [], []
        patients, _ = run_fast(play_patiently(queue, limits, order, at_once=at_once))
        faults = [
            Fault(kind, one, _told(ours, one), _told(patients, one))
            for one in suspects
            if (kind := _kind(world, ours, patients, one, is_fooling=is_fooling))
        ]
        suspects = [fault.recipient for fault in faults]
        bounced = [
            fault.recipient
            for fault in faults
            if fault.kind == _UNSETTLED
            and patients.ends[fault.recipient] is End.BOUNCED
        ]
    return faults, bounced


def _queues(world: World, ours: Played) -> Iterator[World]:
    """Yield the queues that a patient sender may have where it is luck who comes when."""
    yield world
    steps = [step for host in world.hosts for step in host.steps]
    if any(step.act is Act.BUSY for step in steps):
        yield world._replace(messages=world.messages[::-1])
        if all(step.until == FOREVER and not step.since for step in steps):
            # Each has the host for itself.
            apart = tuple(
                one._replace(begins=number * sum(world.gaps))
                for number, one in enumerate(world.messages)
            )
            yield world._replace(messages=apart)
    for since in sorted({step.since for step in steps} - {0.0}):
        # Whatever is lost comes again after that, or comes just then: from then on, so
        # many tries meet the host as it is.
        for after in (
            {one.queue_id: one.begins + since for one in world.messages},
            {one.queue_id: max(one.begins, since) for one in world.messages},
        ):
            yield _begun_at(world, after)
    # Of whose try nothing was heard comes again, when a host may have got worse.
    for number in range(max(map(len, ours.begun_anew.values()), default=0)):
        yield _begun_at(
            world,
            {
                one: begun[min(number, len(begun) - 1)]
                for one, begun in ours.begun_anew.items()
            },
        )
    if any(step.since or step.until < FOREVER for step in steps):
        # One that has waited for a host comes to the next one when that has changed.
        ends = {
            one.queue_id: max(ours.settled_at.get(who, 0.0) for who in one.recipients)
            for one in world.messages
        }
        yield _begun_at(world, ends)


def _begun_at(world: World, begins: dict[str, float]) -> World:
    """Return *world* with other beginnings, by queue id."""
    return world._replace(
        messages=tuple(
            one._replace(begins=begins.get(one.queue_id, one.begins))
            for one in world.messages
        )
    )


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
    if world.crashes or world.crash_operations or world.stops or world.hang_ups:
        return []
    # What others keep may be most places, but never the last quarter of them.
    alone = world._replace(processes=world.processes // 4)
    order = next(orders(domain))
    patients, _ = run_fast(play_patiently(alone, UNLIMITED, order))
    cancelled = {one.queue_id for one in world.cancels}
    faults = []
    for message in world.messages:
        for who in message.recipients:
            if message.is_cut or message.queue_id in cancelled:
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
    most = _most_copies(world, patients, one)
    if end is End.DELIVERED and not copies:
        return "delivered, and no host has it"
    price = _price(world, ours, patients, one, is_fooling=is_fooling)
    # By a host that says 250 and has nothing.
    is_fooled = theirs is End.DELIVERED and all(
        taken.heard_at == inf for taken in their_copies
    )
    if len(copies) > max(1, most) + price and not is_fooled:
        return _COPY
    if len(copies) > 1 and _is_always_heard(world):
        return "a copy, though the 250 for the first one came"
    is_forgotten = world.storage in _FORGETFUL
    if end is End.BOUNCED and copies and not (is_forgotten or _is_named(ours, one)):
        return "bounced, and no word of the host that may have it"
    if is_fooled:
        return ""
    if end is End.BOUNCED and theirs is End.DELIVERED:
        is_luck = _is_crowded_out(world, ours, patients)
        is_asked_again = (
            is_forgotten and _is_asked_again(world, one) and _is_heard_once(copies)
        )
        if not (_is_had(ours, one) or is_luck or is_asked_again):
            return "bounced"
    if end is End.DEFERRED and theirs is not End.DEFERRED:
        return _UNSETTLED
    if _is_steady(world, one) and _is_put_off_more(world, ours, patients, one):
        return "put off once too often"
    return ""


def _most_copies(world: World, patients: Played, one: str) -> int:
    """Return how many copies the patient sender makes of *one*.

    Where a host has one session at a time it is luck whose tries it sees, and if it does
    not answer the dot, each of them makes a copy. Then those that the patient sender
    makes of any recipient count, whoever that is.
    """
    steps = [step for host in world.hosts for step in host.steps]
    is_luck = any(step.act is Act.BUSY for step in steps)
    if not is_luck or not any(_leaves_doubt(step) for step in steps):
        return len(patients.copies(one))
    who = [each for message in world.messages for each in message.recipients]
    return max(len(patients.copies(each)) for each in who)


def _is_crowded_out(world: World, ours: Played, patients: Played) -> bool:
    """Return whether it is luck who is bounced: no more are than by the patient sender.

    Where a host has one session at a time, others go to a worse one, which refuses.
    """
    if not any(step.act is Act.BUSY for host in world.hosts for step in host.steps):
        return False
    who = [each for message in world.messages for each in message.recipients]
    mine = sum(ours.ends[each] is End.BOUNCED for each in who)
    return mine <= sum(patients.ends[each] is End.BOUNCED for each in who)


def _is_heard_once(copies: list[Taken]) -> bool:
    """Return whether the mail server was told of one of them.

    If it asks again for all recipients, and nothing was kept, another host may refuse.
    """
    return any(_is_heard(taken) for taken in copies)


def _is_had(ours: Played, one: str) -> bool:
    """Return whether a host has what was bounced, did not say so, and is named for it.

    One that would have said so to a process that was killed is to be asked again.
    """
    copies = ours.copies(one)
    is_silent = any(
        taken.heard_at == inf or taken.process is None or not taken.process.is_dead
        for taken in copies
    )
    return is_silent and not _is_heard_once(copies) and _is_named(ours, one)


def _is_named(ours: Played, one: str) -> bool:
    return "may have been delivered by" in ours.texts[one][-1]


def _is_heard(taken: Taken) -> bool:
    is_killed = taken.process is not None and taken.process.is_dead
    return taken.heard_at < inf and not is_killed


def _is_put_off_more(world: World, ours: Played, patients: Played, one: str) -> bool:
    """Return whether *one* is put off more often than by the patient sender.

    Where a host has one session at a time it is luck who gets it. There as many as with
    the patient sender, which may even bounce them, may be put off so often, whoever they
    are; and one more for each process that is killed, which comes again. A race may have
    sessions with several addresses of such hosts for a moment, and so keep another
    message out once. So may a message that begins in the same moment, once more than a
    patient sender's: their next tries begin together again. And so may a session that
    waits in the daemon, as smtp(8)'s cached ones do, where a process is alone.
    """
    often = ours.deferrals[one]
    busy = [
        host for host in world.hosts if any(step.act is Act.BUSY for step in host.steps)
    ]
    begins = [one.begins for one in world.messages]
    is_together = len({*begins}) < len(begins)
    is_raced = sum(len(host.addresses) for host in busy) > 1
    often -= is_together or is_raced or bool(world.alone and busy)
    if often <= patients.deferrals[one]:
        return False
    if not busy:
        return True
    who = [each for message in world.messages for each in message.recipients]
    mine = sum(ours.deferrals[each] >= often for each in who)
    theirs = sum(
        patients.deferrals[each] >= often or patients.ends[each] is End.BOUNCED
        for each in who
    )
    return mine > theirs + len(world.kills)


def _is_steady(world: World, one: str) -> bool:
    """Return whether each try meets the same, and none ends in doubt.

    What is remembered may put off a message once that would meet a host just mended, or
    one so slow that it counts as down. And a first doubt at the final dot ends a try.
    """
    if world.storage is not Storage.WELL or world.restarts or _is_killed(world, one):
        return False
    if world.stops or world.hang_ups:
        return False
    (domain,) = world.domains
    steps = [step for host in domain.hosts for step in host.steps]
    return not (
        domain.fails_until
        or any(step.until < FOREVER or _leaves_doubt(step) for step in steps)
        or any(step.delay > _DOWN.get(step.place, inf) for step in steps)
        or any(one.is_cut for one in world.messages)
        or world.gaps != GAPS
    )


def _is_always_heard(world: World) -> bool:
    """Return whether a daemon hears the 250 to each dot, in its time or after it.

    A host that has one session at a time may turn another message away meanwhile. Then
    that one comes first.
    """
    steps = [step for host in world.hosts for step in host.steps]
    return (
        world.is_one_engine
        and world.storage is Storage.WELL
        and not (world.restarts or world.crashes or world.crash_operations)
        and not (world.stops or world.alone)
        and not any(step.act is Act.BUSY for step in steps)
        and all(
            step.act is Act.REPLY and not step.reply and step.delay < DOT + LISTENS
            for step in steps
            if step.place in (Place.BODY, Place.DOT)
        )
    )


def _leaves_doubt(step: Step) -> bool:
    is_late = step.act is Act.REPLY and step.delay > DOT
    is_unheard = step.act is not Act.REPLY
    return step.place is Place.DOT and (is_late or is_unheard)


def _price(
    world: World, ours: Played, patients: Played, one: str, *, is_fooling: bool
) -> int:
    """Return how many copies more than the patient sender's are no fault.

    A race may be won by a host to which the patient sender never came, and that host
    may leave the final dot unanswered. To bounce what a host may have costs no copy, so
    each such host may be asked once more before it comes to that; nor does it to believe
    a 250 that comes before the final dot (*is_fooling*). Who is killed before the reply
    is read begins anew: so a patient sender makes all its copies again, and so does a
    race. Who is killed between the note and the dot leaves a doubt at that host, which
    has nothing; then another one, that never answers the dot, may be asked once more
    before it. A restart is one more try, at hosts that do not answer the dot or without
    an answer of the store. Where nothing is kept, a try may leave a copy at each host
    that does not answer the dot before another one takes the message. Where a host
    answers no dot for some seconds, it is luck how many tries meet it then: ours are
    sooner over.
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
    anew = _is_asked_anew(world, one)
    restarted = anew if unheard or is_slow else 0
    if world.storage in _FORGETFUL and (_is_asked_again(world, one) or unheard):
        tries = len(ours.texts[one]) + anew + killed
        is_heard = any(taken.heard_at < inf for taken in copies)
        each = max(1, len(patients.copies(one)), elsewhere, len(unheard) + is_heard)
        return bounced + is_fooling + tries * each
    again = max(1, len(theirs)) + elsewhere
    in_doubt = {host for who, host in ours.cut_off if who == one}
    if unheard and not killed and in_doubt - unheard:
        restarted += 1
    price = elsewhere + bounced + is_fooling + killed * again + restarted
    steps = [step for host in world.hosts for step in host.steps]
    if any(_leaves_doubt(step) and step.until - step.since < SOME for step in steps):
        tries = min(sum(taken.heard_at == inf for taken in copies), ours.deferrals[one])
        price = max(price, tries - len(patients.copies(one)) + 1)
    return price


def _is_asked_again(world: World, one: str) -> bool:
    """Return whether the mail server asks again for one that was settled.

    So it does for all recipients when one is deferred, and when it heard no answer. Only
    the journal keeps them from a copy then.
    """
    is_shared = _message(world, one).is_shared
    is_shared = is_shared and world.door is not Door.LMTP
    return bool(is_shared or _is_asked_anew(world, one) or _is_killed(world, one))


def _is_asked_anew(world: World, one: str) -> int:
    """Return how often the mail server asks again as it was killed, or its client."""
    mine = _message(world, one).queue_id
    return len(world.restarts) + sum(each.queue_id == mine for each in world.hang_ups)


def _is_killed(world: World, one: str) -> bool:
    """Return whether a process that delivers to *one* is killed."""
    killed = {kill.queue_id for kill in world.kills}
    is_crash = bool(world.crashes or world.crash_operations)
    return is_crash or _message(world, one).queue_id in killed


def _message(world: World, one: str) -> Message:
    return next(each for each in world.messages if one in each.recipients)


def tell(world: World, faults: list[Fault]) -> str:
    """Return the world and its faults as a short story."""
    lines = [story(world)]
    for fault in faults:
        lines.append(f"  {fault.kind}: {fault.recipient}")
        lines += [f"    ours: {fault.ours}"] if fault.ours else []
        if fault.patients:
            lines.append(f"    the patient sender's: {fault.patients}")
    return "\n".join(lines)
