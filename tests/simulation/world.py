"""A world of mail: domains, their hosts and what these do, messages, and what goes wrong.

A world is made from a seed and is plain data; nothing here runs. `hosts` brings its
hosts to life, `queue` its mail server, `story` prints it for a person.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

__all__ = [
    "AGAIN",
    "DOMAIN",
    "FOREVER",
    "OUR_ADDRESS",
    "OUR_NAME",
    "TOO_MANY",
    "TRANSIENT",
    "TURNED_AWAY",
    "Act",
    "Alone",
    "Cancel",
    "Domain",
    "Door",
    "Host",
    "Kill",
    "Message",
    "Most",
    "Place",
    "Step",
    "Storage",
    "World",
    "at_rest",
    "host_for_sessions",
    "make_world",
    "make_world_of_sessions",
    "messages_for_sessions",
    "own_preference",
    "slice_of",
    "story",
]

DOMAIN = "example.com"
FOREVER = 10 * 86400.0

# As Postfix's default rule.
GAPS = (300.0, 600.0, 1200.0, 2400.0, *[4000.0] * 9)

OUR_NAME = "client.example.net"
OUR_ADDRESS = "198.51.100.25"


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
    # A patient sender never comes to these: it has a session for each message.
    IDLE = "idle"  # after a dot that was answered
    RSET = "rset"
    AGAIN = "again"  # MAIL, in a session that has had a transaction


class Act(Enum):
    """What it does there."""

    REPLY = "replies"
    SILENT = "is silent"
    CLOSE = "closes"
    DROP = "drops SYNs"  # CONNECT
    REFUSE = "refuses connections"  # CONNECT
    BUSY = "has one session at a time"  # GREETING: it closes a second one
    FAIL = "fails"  # LOOKUP: SERVFAIL; TLS: the handshake
    MISSING = "does not exist"  # LOOKUP
    GREYLIST = "greylists"  # RCPT
    TLS_ONLY = "refuses clear text"  # MAIL
    STRAY = "says 250 once more"  # DATA: behind its 354; IDLE: for the same dot
    EARLY = "says 250 when it has the body"  # BODY: and DOT's answer after it
    TAKE_AND_CLOSE = "takes it and closes"  # DOT
    TAKE_IN_SILENCE = "takes it and is silent"  # DOT


class Door(Enum):
    """How the mail server calls the engine that delivers all messages."""

    WHOLE = "one answer for all recipients"
    LMTP = "LMTP"
    HANDED_OVER = "handed-over pipes"


class Storage(Enum):
    """How the state file does."""

    WELL = "well"
    SLOW = "slow and busy"
    HANGING = "hanging for minutes"
    BREAKING = "breaking in the middle"
    LOSING = "losing rows"
    FULL = "full"
    GONE = "gone"


class Step(NamedTuple):
    """One deviation of one host.

    Attributes:
        place: Where.
        act: What.
        delay: Seconds before it.
        reply: With `Act.REPLY`: the line, without its end.
        until: Seconds from the world's beginning at which it ends.
        since: The same, at which it begins.
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
    since: float = 0.0


class Most(NamedTuple):
    """How much a host takes (RFC 9422).

    Attributes:
        recipients: In a transaction.
        messages: In a session.
        is_said: Whether its EHLO reply says so.
        reply: To a recipient too many.
    """

    recipients: int
    messages: int
    is_said: bool
    reply: str


class Host(NamedTuple):
    """One MX host; what *steps* do not say goes well.

    Attributes:
        round_trip: Seconds there and back.
        most: What it takes; see `Most`.
    """

    name: str
    preference: int
    addresses: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    offers_tls: bool = True
    pipelining: bool = True
    round_trip: float = 0.02
    most: Most | None = None

    def at(
        self, place: Place, now: float, recipient: str = "", address: str = ""
    ) -> Step | None:
        """Return what it does at *place*, *now* seconds after the beginning."""
        for step in self.steps:
            if step.place is place and step.since <= now < step.until:
                if step.address not in ("", address):
                    continue
                if place is Place.RCPT and not recipient.startswith(step.only):
                    continue
                return step
        return None

    @property
    def is_ourselves(self) -> bool:
        """Whether mail sent there would come back to us."""
        return self.name == OUR_NAME or OUR_ADDRESS in self.addresses

    @property
    def dialable(self) -> tuple[str, ...]:
        """The addresses that are not of this machine, this network or nobody's."""
        return tuple(one for one in self.addresses if _is_global(one))


class Domain(NamedTuple):
    """Where the mail of some recipients goes.

    Attributes:
        hosts: By preference.
        is_null: Whether DNS has a null MX, alone or beside the hosts (RFC 7505).
        fails_until: Until when its MX cannot be looked up.
    """

    name: str
    hosts: tuple[Host, ...]
    is_null: bool = False
    fails_until: float = 0.0


class Message(NamedTuple):
    """One message of the mail server's queue, handed over when *begins* has come.

    Attributes:
        is_cut: The mail server is killed while it hands it over for the first time.
        is_shared: It has several recipients, here or in another domain.
    """

    queue_id: str
    recipients: tuple[str, ...]
    begins: float
    is_cut: bool = False
    is_shared: bool = False

    def to(self, domain: Domain) -> Message:
        """Return it as the mail server of a sender by domain has it."""
        of = tuple(one for one in self.recipients if one.endswith("@" + domain.name))
        return self._replace(recipients=of, is_shared=len(self.recipients) > 1)


class Kill(NamedTuple):
    """The end of a process by SIGKILL, at a moment that others can tell from another.

    Attributes:
        queue_id: Of its message.
        attempt: Which one, from 0.
        operation: Before which of its reads, writes, lookups and visits to the store,
            from 0.
    """

    queue_id: str
    attempt: int
    operation: int


class Cancel(NamedTuple):
    """A delivery that is cancelled (`mxpolicy.delivery.delivery.Delivery.cancel`).

    Attributes:
        queue_id: Of its message.
        attempt: Which one, from 0.
        after: Seconds from its beginning.
    """

    queue_id: str
    attempt: int
    after: float


class Alone(NamedTuple):
    """A try that a process makes alone, as it does not get to the daemon.

    Attributes:
        queue_id: Of its message.
        attempt: Which one, from 0.
    """

    queue_id: str
    attempt: int


class World(NamedTuple):
    """All of it.

    Attributes:
        processes: How many the mail server starts at once.
        is_one_engine: One engine delivers all messages; else each has a process.
        kills: At most one of a message.
        restarts: When the mail server is started again, and forgets its deliveries;
            their processes live on.
        gaps: Seconds from one try of the mail server to the next.
        cancels: At most one of a message, and only where each has a process.
        crashes: When the one engine's process is killed; another one begins at once.
        door: How the one engine is called.
        crash_operations: Its first process is killed before its operation of the first
            number, the next one by the second number, and so on; see `Kill`.
        stops: When it is stopped (SIGTERM); another one begins when it has ended.
        hang_ups: Clients that are killed, of `Door.LMTP` and `Door.HANDED_OVER`.
        alone: Tries of `Door.HANDED_OVER`.
    """

    seed: int
    domains: tuple[Domain, ...]
    messages: tuple[Message, ...]
    storage: Storage = Storage.WELL
    processes: int = 60
    is_one_engine: bool = False
    kills: tuple[Kill, ...] = ()
    restarts: tuple[float, ...] = ()
    gaps: tuple[float, ...] = GAPS
    cancels: tuple[Cancel, ...] = ()
    crashes: tuple[float, ...] = ()
    door: Door = Door.WHOLE
    crash_operations: tuple[int, ...] = ()
    stops: tuple[float, ...] = ()
    hang_ups: tuple[Cancel, ...] = ()
    alone: tuple[Alone, ...] = ()

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Those of all domains."""
        return tuple(host for domain in self.domains for host in domain.hosts)

    def domain_of(self, recipient: str) -> Domain:
        """Return the domain of *recipient*."""
        name = recipient.rpartition("@")[2]
        return next(one for one in self.domains if one.name == name)


def own_preference(domain: Domain) -> float:
    """Return from which preference on no host may be dialled (RFC 5321 §5.1)."""
    mine = [one.preference for one in domain.hosts if one.is_ourselves]
    return min(mine, default=float("inf"))


def slice_of(world: World, domain: Domain) -> World:
    """Return the mail for one domain, which a patient sender treats by itself."""
    messages = tuple(
        mine for one in world.messages if (mine := one.to(domain)).recipients
    )
    return world._replace(domains=(domain,), messages=messages)


def _is_global(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address.is_reserved)
    )


GOOD = {
    Place.GREETING: "220 {name} ESMTP",
    Place.MAIL: "250 2.1.0 Ok",
    Place.RCPT: "250 2.1.5 Ok",
    Place.DATA: "354 go ahead",
    Place.DOT: "250 2.0.0 taken",
    Place.RSET: "250 2.0.0 Ok",
    Place.AGAIN: "250 2.1.0 Ok",
}

TRANSIENT = (
    "450 4.2.0 try again later",
    "451 4.3.0 try again later",
    "451 4.7.1 not from you, not now",
    "421 4.7.0 too many",
    "421 4.3.2 shutting down",
    "452 4.2.2 mailbox full, too many messages",
)
REFUSALS = {
    Place.MAIL: ("550 5.7.1 not from you", "503 5.5.1 say hello first"),
    Place.RCPT: (
        "550 5.1.1 no such user",
        "550 5.7.1 relaying denied",
        "552 5.2.2 mailbox full, too many messages",
    ),
    Place.DATA: ("554 5.5.0 no valid recipients",),
    Place.DOT: ("554 5.7.1 spam", f"550 5.7.1 {OUR_NAME} fails DMARC"),
}

# What is said to a recipient too many (RFC 5321 §4.5.3.1.10). 552 for it is of old.
TOO_MANY = ("452 4.5.3 too many recipients", "452 too many", "552 too many recipients")

TURNED_AWAY = ("", "421 4.7.0 too many", "554 5.7.0 too many")


def make_world(rng: Random, seed: int) -> World:
    """Make a world; the same one for the same state of *rng*."""
    kind = rng.random()
    if kind < 0.03:
        return _crowd(rng, seed)
    if kind < 0.06:
        return _burst(rng, seed)
    if kind < 0.075:
        return _equals(rng, seed)
    if kind < 0.1:
        return _getting_worse(rng, seed)
    if kind < 0.14:
        return _late(rng, seed)
    count = rng.choice((1, 1, 1, 2, 2, 3))
    domains = tuple(_domain(rng, number, count) for number in range(count))
    messages = tuple(
        Message(
            f"Q{number}",
            _recipients(rng, number, domains),
            0.0
            if number == 0
            else rng.choice((0.0, 0.3, 1.0, 30.0, 70.0, 400.0, 4000.0)),
            rng.random() < 0.03,
        )
        for number in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 6)))
    )
    others = (*Storage, Storage.SLOW, Storage.SLOW)
    world = World(seed, domains, messages, rng.choice((Storage.WELL,) * 20 + others))
    if rng.random() < 0.25:
        return world._replace(is_one_engine=True)
    if rng.random() < 0.3:
        world = world._replace(kills=_kills(rng, messages))
    if rng.random() < 0.1:
        at = rng.choice((0.05, 0.1, 1.0, 5.0, 40.0, 300.5, 901.0))
        world = world._replace(restarts=(round(at * rng.uniform(0.5, 1.5), 3),))
    if rng.random() < 0.07:
        world = world._replace(cancels=_cancels(rng, messages))
    return world


def _cancels(rng: Random, messages: tuple[Message, ...]) -> tuple[Cancel, ...]:
    return tuple(
        Cancel(
            one.queue_id,
            rng.choice((0, 0, 1)),
            round(rng.choice((0.02, 0.1, 0.2, 0.4, 5.0, 40.0)) * rng.uniform(0, 2), 3),
        )
        for one in messages
        if rng.random() < 0.7
    )


def _kills(rng: Random, messages: tuple[Message, ...]) -> tuple[Kill, ...]:
    return tuple(
        Kill(
            one.queue_id,
            rng.choice((0, 0, 0, 1, 2)),
            int(rng.triangular(0, 90, 40)),
        )
        for one in messages
        if rng.random() < 0.7
    )


def _crowd(rng: Random, seed: int) -> World:
    """Make one with few processes, a domain that keeps many of them, and a good one."""
    bad = Domain("bad.example", (_stuck_host(rng),))
    good = Domain("good.example", (_good_host(rng),))
    burst = rng.choice((0.0, 0.0, 0.2, 1.0))
    messages = [
        Message(f"B{number}", (f"b{number}@bad.example",), number * burst)
        for number in range(rng.choice((12, 24, 40)))
    ]
    gap = rng.choice((0.0, 0.1, 0.5, 3.0))
    begins = rng.choice((0.1, 5.0, 20.0, 320.0))
    messages += [
        Message(f"G{number}", (f"g{number}@good.example",), begins + number * gap)
        for number in range(rng.choice((1, 4, 16)))
    ]
    in_turn = sorted(messages, key=lambda one: one.begins)
    return World(
        seed,
        (bad, good),
        tuple(in_turn),
        processes=rng.choice((8, 16, 20)),
        gaps=GAPS[:3],
    )


def _burst(rng: Random, seed: int) -> World:
    """Make one with many messages for a host that has one session at a time."""
    at = (0.0, 0.0, 0.3, 15.0, 17.0, 20.0, 40.0, 41.0, 45.0, 70.0, 90.0)
    begins = sorted(rng.choice(at) for _ in range(rng.choice((4, 6, 8, 10))))
    messages = tuple(
        Message(f"Q{number}", (f"a{number}@{DOMAIN}",), seconds)
        for number, seconds in enumerate(begins)
    )
    steps = [Step(Place.GREETING, Act.BUSY, reply=rng.choice(TURNED_AWAY))]
    place = rng.choice((Place.EHLO, Place.MAIL, Place.DOT))
    if slow := rng.choice((0.0, 0.2, 4.0, 20.0)):
        steps.append(Step(place, Act.REPLY, slow))
    one = Host(f"mx0.{DOMAIN}", 10, ("192.0.2.1",), tuple(steps), rng.random() < 0.5)
    world = World(seed, (Domain(DOMAIN, (one,)),), messages)
    if rng.random() < 0.5:
        killed = rng.choice(messages[1:])
        kill = Kill(killed.queue_id, 0, rng.randrange(4, 24))
        return world._replace(kills=(kill,))
    return world


def _equals(rng: Random, seed: int) -> World:
    """Make one with more equal hosts than one try visits, which greylist."""
    hosts = tuple(
        Host(
            f"mx{number}.{DOMAIN}",
            10,
            (f"192.0.2.{5 * number + 1}",),
            (Step(Place.RCPT, Act.GREYLIST),),
            rng.random() < 0.5,
        )
        for number in range(rng.choice((3, 4, 5)))
    )
    messages = tuple(
        Message(f"Q{number}", (f"a{number}@{DOMAIN}",), 10.0 * number)
        for number in range(rng.choice((1, 2, 3)))
    )
    return World(seed, (Domain(DOMAIN, hosts),), messages)


def _getting_worse(rng: Random, seed: int) -> World:
    """Make one whose best host is in trouble by the next try; processes are killed."""
    later = rng.choice(
        (
            Step(Place.CONNECT, Act.DROP, since=250.0),
            Step(Place.CONNECT, Act.REFUSE, since=250.0),
            Step(Place.GREETING, Act.SILENT, since=250.0),
            Step(Place.RCPT, Act.REPLY, 0.0, "450 4.2.0 try again later", since=250.0),
            Step(Place.RCPT, Act.REPLY, 0.0, "550 5.1.1 no such user", since=250.0),
        )
    )
    dot = rng.choice(
        (
            Step(Place.DOT, Act.REPLY, rng.choice((0.0, 5.0, 100.0))),
            Step(Place.DOT, Act.TAKE_AND_CLOSE),
            Step(Place.DOT, Act.TAKE_IN_SILENCE),
        )
    )
    best = Host(f"mx0.{DOMAIN}", 10, ("192.0.2.1",), (later, dot), False)
    place = rng.choice((Place.RCPT, Place.DOT))
    reply = rng.choice((*REFUSALS[place], *TRANSIENT))
    steps = rng.choice(((Step(place, Act.REPLY, 0.0, reply),), ()))
    other = Host(f"mx1.{DOMAIN}", 20, ("192.0.2.6",), steps, False)
    hosts = rng.choice(((best,), (best, other), (best, other)))
    messages = (Message("Q0", (f"a0@{DOMAIN}",), 0.0),)
    kills = (Kill("Q0", 0, int(rng.triangular(15, 60, 32))),)
    return World(seed, (Domain(DOMAIN, hosts),), messages, kills=kills)


def _late(rng: Random, seed: int) -> World:
    """Make one with a daemon, and hosts that answer the dot when its time is over."""
    count = rng.choice((1, 1, 1, 2, 2, 3))
    hosts = tuple(_late_host(rng, number) for number in range(count))
    who = rng.choice((("a",), ("a", "b")))
    messages = tuple(
        Message(
            f"Q{number}",
            tuple(f"{one}{number}@{DOMAIN}" for one in who),
            rng.choice((0.0, 100.0, 1000.0)),
        )
        for number in range(rng.choice((1, 1, 2, 4)))
    )
    world = World(seed, (Domain(DOMAIN, hosts),), messages, is_one_engine=True)
    if rng.random() < 0.35:
        at = rng.choice((300.0, 700.0, 1000.0, 2000.0, 4000.0))
        return world._replace(crashes=(round(at * rng.uniform(0.5, 1.5), 1),))
    if rng.random() < 0.1:
        return world._replace(restarts=(round(rng.uniform(1.0, 2000.0), 1),))
    return world


def _late_host(rng: Random, number: int) -> Host:
    steps: list[Step] = []
    if rng.random() < 0.15:
        steps.append(Step(Place.GREETING, Act.BUSY, reply=rng.choice(TURNED_AWAY)))
    if rng.random() < 0.2:
        reply = rng.choice((*TRANSIENT[:3], REFUSALS[Place.RCPT][0]))
        steps.append(Step(Place.RCPT, Act.REPLY, 0.0, reply, only="b"))
    seconds = rng.choice((601.0, 650.0, 1200.0, 3000.0, 4100.0, 4400.0))
    reply = rng.choice(("", "", "", *TRANSIENT[:4], REFUSALS[Place.DOT][0]))
    until = FOREVER if reply.startswith("5") else rng.choice((FOREVER, 500.0, 5000.0))
    if number == 0 or rng.random() < 0.5:
        steps.append(Step(Place.DOT, Act.REPLY, seconds, reply, until))
    elif rng.random() < 0.3:
        steps.append(Step(Place.DOT, rng.choice((Act.TAKE_AND_CLOSE, Act.CLOSE))))
    rank = 10 * number + 10
    return Host(f"mx{number}.{DOMAIN}", rank, (f"192.0.2.{5 * number + 1}",), (*steps,))


AGAIN = (
    "421 4.7.0 one message a session",
    "450 4.7.1 one message a session",
    "503 5.5.1 sender already given",
    "550 5.7.1 come again",
)


def make_world_of_sessions(rng: Random, seed: int) -> World:
    """Make one in which sessions are used for several messages, as far as hosts let us.

    One engine delivers all of them, soon one after the other. Its process may be killed
    meanwhile, and its state file may be in trouble.
    """
    count = rng.choice((1, 1, 2, 2, 3))
    preferences = sorted(rng.choice((10, 20, 20)) for _ in range(count))
    hosts = tuple(
        host_for_sessions(rng, number, pref) for number, pref in enumerate(preferences)
    )
    if count == 1 and rng.random() < 0.2:
        (only,) = hosts
        reply = rng.choice(TURNED_AWAY)
        busy = Step(Place.GREETING, Act.BUSY, reply=reply)
        # Else it is luck who gets the only place: a slow session keeps it from others.
        steps = [
            step
            for step in only.steps
            if step.act is not Act.SILENT
            and (step.place is Place.IDLE or not step.delay)
        ]
        hosts = (only._replace(steps=(*steps, busy), round_trip=0.001),)
    messages, begins = messages_for_sessions(rng)
    world = World(seed, (Domain(DOMAIN, hosts),), messages, is_one_engine=True)
    trouble = rng.random()
    if trouble < 0.15:
        at = rng.uniform(0, max(0.5, begins))
        world = world._replace(crashes=(round(at, 3),))
    elif trouble < 0.3:
        world = world._replace(storage=rng.choice([*Storage]))
    return world


def messages_for_sessions(rng: Random) -> tuple[tuple[Message, ...], float]:
    """Return some that come soon one after the other, and when they are all there."""
    messages, begins = [], 0.0
    for number in range(rng.choice((2, 3, 4, 6, 8))):
        who = rng.choice((("a",), ("b",), ("a", "b"), ("b", "a"), ("a", "b", "c")))
        recipients = tuple(f"{one}{number}@{DOMAIN}" for one in who)
        messages.append(Message(f"Q{number}", recipients, round(begins, 2)))
        begins += rng.choice((0.0, 0.05, 0.3, 0.5, 1.0, 2.0, 3.0, 4.9, 6.0))
        begins += rng.choice((0.0, round(rng.uniform(0, 1.5), 2)))
    return tuple(messages), begins


def host_for_sessions(rng: Random, number: int, preference: int) -> Host:
    """Make a host that takes mail most often, and not each session for another message."""
    steps = []
    if rng.random() < 0.5:
        steps.append(rng.choice(at_rest(rng)))
    if rng.random() < 0.4:
        reply = rng.choice(AGAIN)
        act = rng.choice((Act.REPLY, Act.REPLY, Act.CLOSE, Act.SILENT))
        steps.append(Step(Place.AGAIN, act, 0.0, reply if act is Act.REPLY else ""))
    if rng.random() < 0.15:
        reply = rng.choice(("421 4.4.2 idle", "502 5.5.1 no such command", "250 1"))
        act = rng.choice((Act.REPLY, Act.REPLY, Act.CLOSE, Act.SILENT))
        steps.append(Step(Place.RSET, act, 0.0, reply if act is Act.REPLY else ""))
    if rng.random() < 0.6:
        place = rng.choice((Place.MAIL, Place.RCPT, Place.RCPT, Place.RCPT, Place.DATA))
        reply = rng.choice((*REFUSALS[place], rng.choice(TRANSIENT)))
        only = rng.choice(("a", "b", "c")) if place is Place.RCPT else ""
        steps.append(Step(place, Act.REPLY, 0.0, reply, only=only))
    if rng.random() < 0.15:
        steps.append(Step(Place.RCPT, Act.GREYLIST))
    if rng.random() < 0.2:
        place = rng.choice((Place.CONNECT, Place.GREETING, Place.MAIL, Place.DOT))
        steps.append(Step(place, Act.REPLY, rng.choice((0.3, 1.0, 8.0))))
    if any(step.reply.startswith("5") for step in steps):
        steps = [step for step in steps if step.act is not Act.GREYLIST]
    return Host(
        f"mx{number}.{DOMAIN}",
        preference,
        (f"192.0.2.{5 * number + 1}",),
        tuple(steps),
        rng.random() < 0.3,
        rng.random() < 0.7,
        rng.choice((0.02, 0.02, 0.001, 0.3, 0.3)),
    )


def at_rest(rng: Random) -> list[Step]:
    """Return what a host may do in a session that waits, or seems to."""
    soon = rng.choice((0.0, 0.01, 0.04, 0.05, 0.3, 0.5, 1.0, 2.0, 3.0))
    return [
        Step(Place.IDLE, Act.CLOSE, soon),
        Step(Place.IDLE, Act.REPLY, soon, "421 4.4.2 idle for too long"),
        Step(Place.IDLE, Act.STRAY, soon),
        Step(Place.IDLE, Act.STRAY, round(rng.uniform(0.1, 2.0), 2)),
    ]


def _stuck_host(rng: Random) -> Host:
    steps = rng.choice(
        (
            Step(Place.CONNECT, Act.DROP),
            Step(Place.GREETING, Act.SILENT),
            Step(Place.EHLO, Act.SILENT),
            Step(Place.RCPT, Act.SILENT),
            Step(Place.DOT, Act.REPLY, 400.0, "451 4.3.0 try again later"),
        )
    )
    return Host("mx.bad.example", 10, ("192.0.2.200",), (steps,))


def _good_host(rng: Random) -> Host:
    slow = rng.choice((0.0, 0.0, 0.3, 1.0))
    places = (Place.GREETING, Place.EHLO, Place.MAIL, Place.RCPT, Place.DATA, Place.DOT)
    steps = tuple(Step(place, Act.REPLY, slow) for place in places) if slow else ()
    return Host("mx.good.example", 10, ("192.0.2.201",), steps, offers_tls=False)


def _domain(rng: Random, number: int, of: int) -> Domain:
    name = DOMAIN if number == 0 else f"example{number}.com"
    count = rng.choice((1, 2, 2, 2, 2, 3, 3, 3, 4, 7) if of == 1 else (1, 2, 3))
    # Every order of equals is a patient sender's: few of them where there are many hosts.
    those = (10, 20, 20, 30) if count < 5 else range(10, 300, 10)
    preferences = sorted(rng.choice(those) for _ in range(count))
    is_grim = rng.random() < 0.35  # each of its hosts has a trouble
    hosts = tuple(
        _host(rng, name, 10 * number + place, pref, is_grim=is_grim)
        for place, pref in enumerate(preferences)
    )
    if rng.random() < 0.03:
        steps = (Step(Place.RCPT, Act.GREYLIST),)
        hosts = tuple(one._replace(steps=steps) for one in hosts)
    if rng.random() < 0.12:
        hosts = _with_one_not_to_be_dialled(rng, hosts)
    domain = Domain(name, hosts, is_null=rng.random() < 0.02)
    if rng.random() < 0.02:
        return domain._replace(hosts=(), is_null=True)
    if rng.random() < 0.03:
        return domain._replace(fails_until=rng.choice((20.0, 500.0, 5000.0)))
    return domain


NOT_DIALABLE = ("127.0.0.1", "169.254.169.254", "0.0.0.0", "240.0.0.1", "224.0.0.9")
NOT_DIALABLE_V6 = ("::1", "fe80::1", "::ffff:127.0.0.1", "ff02::1")


def _with_one_not_to_be_dialled(
    rng: Random, hosts: tuple[Host, ...]
) -> tuple[Host, ...]:
    place = rng.randrange(len(hosts))
    one = hosts[place]
    match rng.randrange(4):
        case 0:
            one = one._replace(addresses=(*one.addresses, rng.choice(NOT_DIALABLE)))
        case 1:
            one = one._replace(addresses=(rng.choice(NOT_DIALABLE_V6), *one.addresses))
        case 2:
            # Its lookup fails as little as our own does.
            steps = tuple(step for step in one.steps if step.place is not Place.LOOKUP)
            one = one._replace(addresses=(OUR_ADDRESS,), steps=steps)
        case _:
            one = one._replace(name=OUR_NAME, steps=())
    return (*hosts[:place], one, *hosts[place + 1 :])


def _recipients(
    rng: Random, number: int, domains: tuple[Domain, ...]
) -> tuple[str, ...]:
    """Return those of one message: in one of *domains*, or in several of them."""
    several = rng.random() < 0.5
    those = [one for one in domains if not several or rng.random() < 0.7]
    those = those if several and those else [rng.choice(domains)]
    who = ("a",) if rng.random() < 0.5 else ("a", "b")
    return tuple(f"{one}{number}@{domain.name}" for domain in those for one in who)


def _host(
    rng: Random, domain: str, number: int, preference: int, *, is_grim: bool
) -> Host:
    addresses = tuple(f"192.0.2.{5 * number + one}" for one in (1, 2))
    if is_grim or rng.random() < 0.3:
        steps = _character(rng)
    else:
        steps = tuple(_step(rng) for _ in range(rng.choice((0, 0, 1, 1, 1, 2))))
    if any(step.reply.startswith("5") for step in steps):
        # Who is killed and comes later must not meet a refusal for that.
        steps = tuple(step for step in steps if step.act is not Act.GREYLIST)
    if rng.random() < 0.3:
        if rng.random() < 0.3:
            addresses = (addresses[0], f"2001:db8::{number}:2")
        if rng.random() < 0.5:
            steps = tuple(_at_one(rng, step, addresses) for step in steps)
    else:
        addresses = addresses[:1]
    return Host(
        f"mx{number}.{domain}",
        preference,
        addresses,
        steps,
        rng.random() < 0.5,
        rng.random() < 0.7,
        rng.choice((0.02, 0.02, 0.02, 0.001, 0.3, 1.5)),
    )


def _character(rng: Random) -> tuple[Step, ...]:
    """Return what a host does that has one trouble, and has it for long."""
    slow = rng.choice((Place.EHLO, Place.MAIL, Place.RCPT, Place.DATA))
    refusing = rng.choice(tuple(REFUSALS))
    putting_off = rng.choice(tuple(REFUSALS))
    cutting = rng.choice((Act.TAKE_AND_CLOSE, Act.CLOSE, Act.TAKE_IN_SILENCE))
    chosen = rng.choice(
        (
            (Step(Place.LOOKUP, Act.FAIL, until=rng.choice((20.0, 500.0, 2000.0))),),
            (Step(slow, Act.REPLY, round(rng.uniform(20.0, _SLOW[slow]), 1)),),
            (Step(refusing, Act.REPLY, 0.0, rng.choice(REFUSALS[refusing])),),
            (Step(refusing, Act.REPLY, 0.0, rng.choice(REFUSALS[refusing])),),
            (Step(putting_off, Act.REPLY, 0.0, rng.choice(TRANSIENT)),),
            (Step(Place.DOT, cutting),),
            (Step(Place.DOT, cutting, until=5000.0),),
            (Step(Place.DATA, Act.STRAY),),
            (Step(Place.GREETING, Act.BUSY, reply=rng.choice(TURNED_AWAY)),),
            # Its TLS fails, or did so once, and it insists on it.
            (
                Step(Place.TLS, Act.FAIL, until=rng.choice((20.0, 500.0, FOREVER))),
                Step(Place.MAIL, Act.TLS_ONLY),
            ),
        )
    )
    if chosen[0].act is Act.STRAY and rng.random() < 0.7:
        # Nor does it take what it seems to have taken.
        act = rng.choice((Act.REPLY, Act.REPLY, Act.CLOSE))
        reply = rng.choice((*REFUSALS[Place.DOT], *TRANSIENT[:3]))
        at_dot = Step(Place.DOT, act, 0.0, reply if act is Act.REPLY else "")
        return Step(Place.BODY, Act.EARLY), at_dot
    return chosen


def _at_one(rng: Random, step: Step, addresses: tuple[str, ...]) -> Step:
    """Return *step* at one of the *addresses* only, where that makes a difference."""
    if step.place is Place.LOOKUP or step.act is Act.GREYLIST:
        return step
    return step._replace(address=rng.choice(addresses))


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
    until = rng.choice((*(FOREVER,) * 5, 20.0, 500.0, 5000.0))
    if rng.random() < 0.3:
        place = rng.choice(tuple(_SLOW))
        longest = rng.choice((3.0, 30.0, _SLOW[place], _SLOW[place]))
        return Step(place, Act.REPLY, round(rng.uniform(0.1, longest), 1), "", until)
    if rng.random() < 0.2:
        place = rng.choice(tuple(REFUSALS))
        only = rng.choice(("", "", "a", "b")) if place is Place.RCPT else ""
        return Step(place, Act.REPLY, 0.0, rng.choice(REFUSALS[place]), only=only)
    place = rng.choice(_PLACES)
    act, delay, reply = rng.choice(_CHOICES[place](rng))
    only = rng.choice(("", "", "a", "b")) if place is Place.RCPT else ""
    step = Step(place, act, delay, reply, until, only)
    # Who comes later must not be spared what ends the message: it would be luck.
    is_final = step.act is Act.MISSING or step.reply.startswith("5")
    return step._replace(until=FOREVER) if is_final else step


# What comes late in a session is harder to judge, and more of it is tried.
_PLACES = (
    *(one for one in Place if one not in (Place.IDLE, Place.RSET, Place.AGAIN)),
    Place.CONNECT,
    Place.TLS,
    *(Place.MAIL, Place.RCPT, Place.DATA, Place.DOT),
    *(Place.RCPT, Place.DOT, Place.DOT),
)

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
        (Act.BUSY, 0.0, rng.choice(TURNED_AWAY)),
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
    engine = "one engine" if world.is_one_engine else f"{world.processes} processes"
    if world.door is not Door.WHOLE:
        engine += f", called by {world.door.value}"
    if world.gaps[0] != GAPS[0]:
        engine += f", tries {', '.join(f'{one:g}' for one in world.gaps[:3])}s apart"
    lines = [f"world {world.seed}, {engine}, its state file is {world.storage.value}"]
    for domain in world.domains:
        null = ", a null MX" if domain.is_null else ""
        until = domain.fails_until
        fails = f", no DNS answer for {until:g}s" if until else ""
        lines.append(f"  {domain.name}{null}{fails}")
        lines += map(_of_host, domain.hosts)
    lines += [
        f"  {one.queue_id} at {one.begins:g}s to {', '.join(one.recipients)}"
        f"{', cut short the first time' if one.is_cut else ''}"
        for one in world.messages
    ]
    for kill in world.kills:
        lines.append(
            f"  attempt {kill.attempt} of {kill.queue_id} is killed"
            f" before its operation {kill.operation}"
        )
    lines += [
        f"  attempt {one.attempt} of {one.queue_id} is cancelled after {one.after:g}s"
        for one in world.cancels
    ]
    lines += [f"  the mail server is restarted at {at:g}s" for at in world.restarts]
    lines += [f"  the engine's process is killed at {at:g}s" for at in world.crashes]
    lines += [
        f"  the engine's process {number} is killed before its operation {operation}"
        for number, operation in enumerate(world.crash_operations)
    ]
    lines += [f"  the engine's process is stopped at {at:g}s" for at in world.stops]
    lines += [
        f"  the client of attempt {one.attempt} of {one.queue_id} is killed"
        f" after {one.after:g}s"
        for one in world.hang_ups
    ]
    lines += [
        f"  attempt {one.attempt} of {one.queue_id} is a process alone"
        for one in world.alone
    ]
    return "\n".join(lines)


def _of_host(host: Host) -> str:
    words = "; ".join(map(_words, host.steps)) or "is well"
    tls = "" if host.offers_tls else ", no TLS"
    far = "" if host.round_trip == 0.02 else f", {host.round_trip:g}s away"
    if host.most is not None:
        said = "says that it" if host.most.is_said else "it"
        words += f"; {said} takes {host.most.recipients} recipients a message,"
        words += f" {host.most.messages} messages a session; {host.most.reply}"
    addresses = ", ".join(host.addresses)
    return f"    {host.preference} {host.name}[{addresses}]{tls}{far}: {words}"


def _words(step: Step) -> str:
    after = f" after {step.delay:g}s" if step.delay else ""
    until = "" if step.until == FOREVER else f" (for {step.until:g}s)"
    until += f" (from {step.since:g}s on)" if step.since else ""
    said = f" {step.reply or 'well'}" if step.act is Act.REPLY else ""
    only = f" to {step.only}…" if step.only else ""
    only += f" at {step.address}" if step.address else ""
    return f"{step.place.value}{only}: {step.act.value}{said}{after}{until}"
