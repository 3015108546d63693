"""A world for one domain's mail: its hosts, what they do, and who writes to it.

A world is made from a seed and is plain data; nothing here runs. `hosts` brings it to
life, `story` prints it for a person.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

__all__ = [
    "DOMAIN",
    "Act",
    "Host",
    "Message",
    "Place",
    "Step",
    "Storage",
    "World",
    "make_world",
    "story",
]

DOMAIN = "example.com"
FOREVER = 10 * 86400.0


class Place(Enum):
    """Where in a session a host may do something of its own."""

    LOOKUP = "lookup"  # of its addresses
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    TLS = "tls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"
    DOT = "dot"


class Act(Enum):
    """What it does there."""

    REPLY = "replies"
    SILENT = "is silent"
    CLOSE = "closes"
    DROP = "drops SYNs"  # CONNECT
    REFUSE = "refuses connections"  # CONNECT
    FAIL = "fails"  # LOOKUP: SERVFAIL; TLS: the handshake
    MISSING = "does not exist"  # LOOKUP
    GREYLIST = "greylists"  # RCPT
    TLS_ONLY = "refuses clear text"  # MAIL
    STRAY = "says 250 once more"  # DATA: behind its 354
    EARLY = "says 250 when it has the body"  # BODY: and DOT's answer after it
    TAKE_AND_CLOSE = "takes it and closes"  # DOT
    TAKE_IN_SILENCE = "takes it and is silent"  # DOT


class Storage(Enum):
    """How the state file does."""

    WELL = "well"
    SLOW = "slow and busy"
    GONE = "gone"


class Step(NamedTuple):
    """One deviation of one host.

    Attributes:
        place: Where.
        act: What.
        delay: Seconds before it.
        reply: With `Act.REPLY`: the line, without its end.
        until: Seconds from the world's beginning at which it ends.
        only: At RCPT: for those whose address begins with it.
        address: Of the host, where it is not so at all of them; never at LOOKUP.
    """

    place: Place
    act: Act
    delay: float = 0.0
    reply: str = ""
    until: float = FOREVER
    only: str = ""
    address: str = ""


class Host(NamedTuple):
    """One MX host; what *steps* do not say goes well."""

    name: str
    preference: int
    addresses: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    offers_tls: bool = True
    pipelining: bool = True

    def at(
        self, place: Place, now: float, recipient: str = "", address: str = ""
    ) -> Step | None:
        """Return what it does at *place*, *now* seconds after the beginning."""
        for step in self.steps:
            if step.place is place and now < step.until:
                if step.address not in ("", address):
                    continue
                if place is Place.RCPT and not recipient.startswith(step.only):
                    continue
                return step
        return None


class Message(NamedTuple):
    """One message of the mail server's queue, handed over when *begins* has come."""

    queue_id: str
    recipients: tuple[str, ...]
    begins: float


class World(NamedTuple):
    """All of it."""

    seed: int
    hosts: tuple[Host, ...]
    messages: tuple[Message, ...]
    storage: Storage = Storage.WELL


GOOD = {
    Place.GREETING: "220 {name} ESMTP",
    Place.MAIL: "250 2.1.0 Ok",
    Place.RCPT: "250 2.1.5 Ok",
    Place.DATA: "354 go ahead",
    Place.DOT: "250 2.0.0 taken",
}

TRANSIENT = (
    "450 4.2.0 try again later",
    "451 4.3.0 try again later",
    "451 4.7.1 not from you, not now",
    "421 4.7.0 too many",
    "421 4.3.2 shutting down",
)
REFUSALS = {
    Place.MAIL: ("550 5.7.1 not from you",),
    Place.RCPT: ("550 5.1.1 no such user", "550 5.7.1 relaying denied"),
    Place.DATA: ("554 5.5.0 no valid recipients",),
    Place.DOT: ("554 5.7.1 spam", "550 5.7.1 client.example.net fails DMARC"),
}


def make_world(rng: Random, seed: int) -> World:
    """Make a world; the same one for the same state of *rng*."""
    count = rng.choice((1, 2, 2, 2, 2, 3, 3, 3, 4, 7))
    # Every order of equals is a patient sender's: few of them where there are many hosts.
    of = (10, 20, 20, 30) if count < 5 else range(10, 80, 10)
    preferences = sorted(rng.choice(of) for _ in range(count))
    hosts = tuple(_host(rng, place, pref) for place, pref in enumerate(preferences))
    messages = tuple(
        Message(
            f"Q{number}",
            tuple(f"{who}@{DOMAIN}" for who in _who(rng, number)),
            0.0 if number == 0 else rng.choice((0.0, 1.0, 30.0, 400.0, 4000.0)),
        )
        for number in range(rng.choice((1, 1, 1, 2, 3)))
    )
    well = (Storage.WELL,) * 6
    return World(seed, hosts, messages, rng.choice((*well, *Storage)))


def _who(rng: Random, number: int) -> tuple[str, ...]:
    return (f"a{number}",) if rng.random() < 0.5 else (f"a{number}", f"b{number}")


def _host(rng: Random, number: int, preference: int) -> Host:
    addresses = tuple(f"192.0.2.{10 * number + one}" for one in (1, 2))
    steps = tuple(_step(rng) for _ in range(rng.choice((0, 0, 1, 1, 1, 2))))
    return Host(
        f"mx{number}.{DOMAIN}",
        preference,
        addresses if rng.random() < 0.2 else addresses[:1],
        steps,
        rng.random() < 0.5,
        rng.random() < 0.7,
    )


# Where a host may be slow and be waited for; seconds at the most.
_SLOW = {
    Place.CONNECT: 25.0,
    Place.GREETING: 280.0,
    Place.EHLO: 280.0,
    Place.MAIL: 280.0,
    Place.RCPT: 280.0,
    Place.DATA: 110.0,
    Place.DOT: 550.0,
}


def _step(rng: Random) -> Step:
    until = rng.choice((FOREVER, FOREVER, FOREVER, 20.0, 500.0, 5000.0))
    if rng.random() < 0.3:
        place = rng.choice(tuple(_SLOW))
        longest = rng.choice((3.0, 30.0, _SLOW[place], _SLOW[place]))
        return Step(place, Act.REPLY, round(rng.uniform(0.1, longest), 1), "", until)
    if rng.random() < 0.2:
        place = rng.choice(tuple(REFUSALS))
        only = rng.choice(("", "", "a", "b")) if place is Place.RCPT else ""
        return Step(place, Act.REPLY, 0.0, rng.choice(REFUSALS[place]), only=only)
    place = rng.choice(tuple(Place))
    act, delay, reply = rng.choice(_CHOICES[place](rng))
    only = rng.choice(("", "", "a", "b")) if place is Place.RCPT else ""
    step = Step(place, act, delay, reply, until, only)
    # Who comes later must not be spared what ends the message: it would be luck.
    is_final = step.act is Act.MISSING or step.reply.startswith("5")
    return step._replace(until=FOREVER) if is_final else step


_Choice = tuple[Act, float, str]


def _at_connect(rng: Random) -> list[_Choice]:
    slow = round(rng.uniform(0.1, 25.0), 1)
    return [
        (Act.DROP, 0.0, ""),
        (Act.DROP, 0.0, ""),
        (Act.REFUSE, 0.1, ""),
        (Act.REPLY, slow, ""),
    ]


def _at_greeting(rng: Random) -> list[_Choice]:
    return [
        (Act.SILENT, 0.0, ""),
        (Act.CLOSE, rng.choice((0.0, 12.0, 200.0)), ""),
        (Act.REPLY, rng.choice((0.0, 40.0)), rng.choice(TRANSIENT)),
        (Act.REPLY, 0.0, "554 5.3.2 no service here"),
    ]


def _at_ehlo(rng: Random) -> list[_Choice]:
    return [
        (Act.SILENT, 0.0, ""),
        (Act.CLOSE, rng.choice((0.0, 50.0)), ""),
        (Act.REPLY, 0.0, "421 4.3.2 not now"),
    ]


def _at_tls(rng: Random) -> list[_Choice]:
    return [
        (Act.SILENT, 0.0, ""),
        (Act.FAIL, rng.choice((0.0, 5.0)), ""),
        (Act.REPLY, 0.0, "454 4.7.0 TLS not available"),
    ]


def _in_transaction(place: Place) -> Callable[[Random], list[_Choice]]:
    def choices(rng: Random) -> list[_Choice]:
        slow = rng.choice((0.0, 0.0, 0.0, 30.0, 100.0))
        found: list[_Choice] = [
            (Act.SILENT, 0.0, ""),
            (Act.CLOSE, slow, ""),
            (Act.REPLY, slow, rng.choice(TRANSIENT)),
            (Act.REPLY, slow, rng.choice(TRANSIENT)),
            (Act.REPLY, slow, rng.choice(REFUSALS[place])),
            (Act.REPLY, slow, rng.choice(REFUSALS[place])),
        ]
        if place is Place.RCPT:
            found.append((Act.GREYLIST, 0.0, ""))
        if place is Place.DATA:
            found.append((Act.STRAY, 0.0, ""))
        if place is Place.MAIL:
            found.append((Act.TLS_ONLY, 0.0, ""))
        if place is Place.DOT:
            late = rng.choice((300.0, 601.0, 1500.0))
            found += [
                (Act.TAKE_AND_CLOSE, 0.0, ""),
                (Act.TAKE_IN_SILENCE, 0.0, ""),
                (Act.REPLY, late, ""),
            ]
        return found

    return choices


_CHOICES: dict[Place, Callable[[Random], list[_Choice]]] = {
    Place.LOOKUP: lambda rng: [(Act.FAIL, 0.0, ""), (Act.MISSING, 0.0, "")],
    Place.CONNECT: _at_connect,
    Place.GREETING: _at_greeting,
    Place.EHLO: _at_ehlo,
    Place.TLS: _at_tls,
    Place.BODY: lambda rng: [(Act.CLOSE, 0.0, ""), (Act.EARLY, 0.0, "")],
    **{
        place: _in_transaction(place)
        for place in (Place.MAIL, Place.RCPT, Place.DATA, Place.DOT)
    },
}


def story(world: World) -> str:
    """Return *world* as a person would tell it."""
    lines = [f"world {world.seed}, its state file {world.storage.value}"]
    for host in world.hosts:
        words = "; ".join(map(_words, host.steps)) or "is well"
        tls = "" if host.offers_tls else ", no TLS"
        lines.append(
            f"  {host.preference} {host.name}[{', '.join(host.addresses)}]{tls}: {words}"
        )
    lines += [
        f"  {one.queue_id} at {one.begins:g}s to {', '.join(one.recipients)}"
        for one in world.messages
    ]
    return "\n".join(lines)


def _words(step: Step) -> str:
    after = f" after {step.delay:g}s" if step.delay else ""
    until = "" if step.until == FOREVER else f" (for {step.until:g}s)"
    said = f" {step.reply or 'well'}" if step.act is Act.REPLY else ""
    only = f" to {step.only}…" if step.only else ""
    only += f" at {step.address}" if step.address else ""
    return f"{step.place.value}{only}: {step.act.value}{said}{after}{until}"
