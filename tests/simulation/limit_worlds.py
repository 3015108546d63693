"""Worlds of hosts that take few recipients a message, and few messages a session.

Messages have many recipients, which fare differently. Hosts get into trouble, and the
processes that deliver are killed, one message's perhaps several times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.daemon_worlds import with_trouble
from tests.simulation.world import (
    AGAIN,
    DOMAIN,
    GAPS,
    REFUSALS,
    TOO_MANY,
    TRANSIENT,
    Act,
    Domain,
    Door,
    Host,
    Kill,
    Message,
    Most,
    Place,
    Step,
    Storage,
    World,
    at_rest,
)

if TYPE_CHECKING:
    from random import Random

__all__ = ["make_world_of_limits"]


def make_world_of_limits(rng: Random, seed: int) -> World:
    """Make a world; the same one for the same state of *rng*."""
    count = rng.choice((1, 2, 2, 3))
    preferences = sorted(rng.choice((10, 20, 20)) for _ in range(count))
    hosts = tuple(_host(rng, number, rank) for number, rank in enumerate(preferences))
    messages = tuple(
        _message(rng, number) for number in range(rng.choice((1, 2, 3, 4)))
    )
    world = World(seed, (Domain(DOMAIN, hosts),), messages)
    if rng.random() < 0.1:
        world = world._replace(storage=rng.choice([*Storage]))
    if rng.random() < 0.6:
        world = world._replace(
            is_one_engine=True,
            door=rng.choice((Door.LMTP, Door.LMTP, Door.HANDED_OVER)),
            gaps=rng.choice((GAPS, (1.0, 3.0, 10.0, *GAPS))),
        )
        for _ in range(rng.choice((0, 1, 1, 2))):
            world = with_trouble(rng, world, 4.0)
    elif rng.random() < 0.6:
        world = world._replace(kills=_kills(rng, messages))
    return world


def _message(rng: Random, number: int) -> Message:
    who = rng.sample("abcdef", rng.choice((1, 2, 3, 4, 6)))
    begins = round(number * rng.choice((0.0, 0.3, 1.0, 5.0)), 2)
    return Message(
        f"Q{number}", tuple(f"{one}{number}@{DOMAIN}" for one in who), begins
    )


def _kills(rng: Random, messages: tuple[Message, ...]) -> tuple[Kill, ...]:
    return tuple(
        Kill(one.queue_id, attempt, int(rng.triangular(0, 90, 40)))
        for one in messages
        for attempt in range(rng.choice((0, 1, 2, 3)))
    )


def _host(rng: Random, number: int, preference: int) -> Host:
    steps = []
    for only in rng.sample("abcdef", rng.choice((0, 1, 1, 2, 3))):
        reply = rng.choice((*REFUSALS[Place.RCPT], *TRANSIENT))
        steps.append(Step(Place.RCPT, Act.REPLY, 0.0, reply, only=only))
    if rng.random() < 0.1:
        steps.append(Step(Place.RCPT, Act.GREYLIST))
    if rng.random() < 0.3:
        act, reply = rng.choice(
            (
                (Act.REPLY, "450 4.2.0 try again later"),
                (Act.REPLY, "554 5.7.1 spam"),
                (Act.CLOSE, ""),
                (Act.TAKE_AND_CLOSE, ""),
                (Act.TAKE_IN_SILENCE, ""),
                (Act.REPLY, ""),
            )
        )
        slow = rng.choice((1.5, 20.0, 601.0)) if (act, reply) == (Act.REPLY, "") else 0
        steps.append(Step(Place.DOT, act, slow, reply))
    if rng.random() < 0.3:
        steps.append(rng.choice(at_rest(rng)))
    if rng.random() < 0.3:
        reply = rng.choice(AGAIN)
        act = rng.choice((Act.REPLY, Act.REPLY, Act.CLOSE, Act.SILENT))
        steps.append(Step(Place.AGAIN, act, 0.0, reply if act is Act.REPLY else ""))
    if any(step.reply.startswith("5") for step in steps):
        steps = [step for step in steps if step.act is not Act.GREYLIST]
    most = None
    if rng.random() < 0.8:
        few, reply = rng.choice((1, 2, 2, 3)), rng.choice(TOO_MANY)
        most = Most(few, rng.choice((1, 2, 3, 9)), rng.random() < 0.5, reply)
    return Host(
        f"mx{number}.{DOMAIN}",
        preference,
        (f"192.0.2.{5 * number + 1}",),
        tuple(steps),
        rng.random() < 0.2,
        rng.random() < 0.7,
        most=most,
    )
