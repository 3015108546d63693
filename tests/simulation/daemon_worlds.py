"""Worlds of a daemon: called by LMTP or by handed-over pipes, beside what may befall it.

Most messages find a session that waits, and go the fast path. Then the host gets into
trouble, the daemon is killed or stopped, the mail server is started again, a client is
killed, a try goes to a process alone, or the state file is in trouble. The mail server
asks again within seconds, while other messages are on their way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.world import (
    DOMAIN,
    GAPS,
    TRANSIENT,
    TURNED_AWAY,
    Act,
    Alone,
    Cancel,
    Domain,
    Door,
    Host,
    Place,
    Step,
    Storage,
    World,
    host_for_sessions,
    messages_for_sessions,
)

if TYPE_CHECKING:
    from random import Random

    from tests.simulation.world import Message

__all__ = ["make_world_of_a_daemon", "with_trouble"]


def make_world_of_a_daemon(rng: Random, seed: int) -> World:
    """Make a world; the same one for the same state of *rng*."""
    count = rng.choice((1, 1, 2, 2, 3))
    preferences = sorted(rng.choice((10, 20, 20)) for _ in range(count))
    hosts = tuple(_host(rng, number, rank) for number, rank in enumerate(preferences))
    messages, ends = messages_for_sessions(rng)
    messages = tuple(
        one._replace(is_cut=True) if rng.random() < 0.03 else one for one in messages
    )
    world = World(
        seed,
        (Domain(DOMAIN, hosts),),
        messages,
        is_one_engine=True,
        door=rng.choice((Door.LMTP, Door.LMTP, Door.HANDED_OVER)),
        gaps=rng.choice((GAPS, (1.0, 3.0, 10.0, *GAPS), (0.1, 2.0, 4.0, *GAPS))),
    )
    ends = max(0.5, ends)
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        world = with_trouble(rng, world, ends)
    if rng.random() < 0.15:
        others = (*Storage, Storage.SLOW, Storage.SLOW)
        world = world._replace(storage=rng.choice(others))
    return world


def with_trouble(rng: Random, world: World, ends: float) -> World:
    """Return it with one trouble more, of another kind than those that it has."""
    at = round(rng.uniform(0, ends), 3)
    match rng.randrange(8):
        case 0:
            return world._replace(restarts=(at,))
        case 1:
            return world._replace(crashes=(at,))
        case 2:
            operations = 20 * len(world.messages)
            number = rng.choice((1, 1, 2))
            some = tuple(rng.randrange(5, operations) for _ in range(number))
            return world._replace(crash_operations=some)
        case 3:
            return world._replace(stops=(at,))
        case 4:
            return world._replace(hang_ups=_hang_ups(rng, world.messages))
        case 5 if world.door is Door.HANDED_OVER:
            return world._replace(alone=_alone(rng, world.messages))
        case 6 if world.door is Door.HANDED_OVER:
            # What the daemon still has is handed over to processes alone.
            again = tuple(Alone(one.queue_id, 1) for one in world.messages)
            return world._replace(restarts=(at,), alone=again)
        case 7:
            # The daemon is not told, as from a machine that has lost its power.
            again = tuple(Alone(one.queue_id, 1) for one in world.messages)
            return world._replace(door=Door.WHOLE, restarts=(at,), alone=again)
        case _:  # only one that hands over has a process of its own
            return world


def _hang_ups(rng: Random, messages: tuple[Message, ...]) -> tuple[Cancel, ...]:
    after = (0.01, 0.05, 0.1, 0.15, 0.2, 0.5, 3.0, 40.0)
    return tuple(
        Cancel(one.queue_id, 0, round(rng.choice(after) * rng.uniform(0.5, 1.5), 3))
        for one in messages
        if rng.random() < 0.5
    )


def _alone(rng: Random, messages: tuple[Message, ...]) -> tuple[Alone, ...]:
    return tuple(
        Alone(one.queue_id, rng.choice((0, 0, 1)))
        for one in messages
        if rng.random() < 0.5
    )


def _host(rng: Random, number: int, preference: int) -> Host:
    """Make one that may be well at first."""
    host = host_for_sessions(rng, number, preference)
    if rng.random() < 0.3:
        # Else few messages find a session that waits.
        host = host._replace(steps=(), offers_tls=False)
    if rng.random() < 0.6:
        later = _later(rng)
        is_fooling = any(step.act is Act.STRAY for step in host.steps)
        # Nobody can tell a second 250 for the last dot from one for this dot.
        if not (is_fooling and later.place is Place.DOT):
            host = host._replace(steps=(later, *host.steps))
    if rng.random() < 0.05:
        busy = Step(Place.GREETING, Act.BUSY, reply=rng.choice(TURNED_AWAY))
        host = host._replace(steps=(*host.steps, busy), round_trip=0.001)
    return host


def _later(rng: Random) -> Step:
    """Return what a host does from some moment on, but not for ever."""
    place = rng.choice(
        (Place.MAIL, Place.RCPT, Place.RCPT, Place.DATA, *(Place.DOT,) * 6)
    )
    act = rng.choice((Act.REPLY, Act.CLOSE, Act.SILENT))
    reply = rng.choice(TRANSIENT) if act is Act.REPLY else ""
    delay = 0.0
    if place is Place.DOT:
        act = rng.choice(
            (act, Act.TAKE_AND_CLOSE, Act.TAKE_IN_SILENCE, Act.REPLY, Act.REPLY)
        )
        if act is Act.REPLY and rng.random() < 0.5:
            reply, delay = "", rng.choice((1.5, 1.5, 5.0, 20.0, 601.0, 1200.0))
    if rng.random() < 0.1:
        place, act = rng.choice(((Place.DATA, Act.STRAY), (Place.BODY, Act.CLOSE)))
        reply, delay = "", 0.0
    since = round(rng.uniform(0.1, 6.0), 2)
    only = rng.choice(("", "a", "b")) if place is Place.RCPT else ""
    until = since + rng.choice((3.0, 10.0, 20.0, 500.0, 3000.0))
    return Step(place, act, delay, reply, until, only, since=since)
