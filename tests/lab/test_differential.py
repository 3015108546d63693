"""mxpolicy beside real Postfix and real Exim: whom each tries for hundreds of domains.

Compared are the addresses that are tried and their preferences, the order of the
preferences (hosts of one preference are shuffled by all three, and families interleaved
in three ways), and where nobody is tried, whether the message is deferred or bounced,
and Postfix's status code. Where mxpolicy differs, `DIFFERENCES` says so and why; what it
says must be found, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from .domains import MIXTURE, PLACES, SUBDOMAIN, Domain, generate, records
from .exim import Exim
from .names import NameService
from .packages import LabUnavailable
from .postfix import Postfix
from .routes import (
    POSTFIX_ENTRY,
    TRANSPORT,
    Answer,
    ask_exim,
    ask_mxpolicy,
    ask_postfix,
)
from .world import World

pytestmark = pytest.mark.lab

SEED = 7505
DOMAINS = generate(SEED, each=2, mixtures=220)

# What Postfix may take for all of them; some are addresses that never answer.
PATIENCE = 60.0

POSTFIX, EXIM = "postfix", "exim"

# What can be different, seen from mxpolicy.
MORE, FEWER, OTHERS, AGAIN = "tries more", "tries fewer", "tries others", "tries again"
TRIES, DEFERS, BOUNCES = "tries", "defers", "bounces"


@dataclass(frozen=True)
class Difference:
    """What a mail server does otherwise, and why mxpolicy does not do the same.

    `places` says what, by the place of the oddity among ordinary exchangers (see
    `domains`), `whole` where the oddity is the shape of the whole domain; a status code
    is the server's where only that differs. Where nothing is said there is none.
    """

    server: str
    oddities: tuple[str, ...]
    reason: str
    places: Mapping[str, str] = field(default_factory=dict)
    whole: str = ""

    def by_kind(self) -> Iterator[tuple[str, str]]:
        """Return what differs for each kind of domain."""
        for oddity in self.oddities:
            if self.whole:
                yield oddity, self.whole
            for place, what in self.places.items():
                yield f"{oddity} {place}", what


def beside_others(what: str, *, only: str) -> dict[str, str]:
    """Return the same for every place but one."""
    return {**dict.fromkeys(PLACES, what), "only": only}


def everywhere(what: str) -> dict[str, str]:
    """Return the same for every place."""
    return dict.fromkeys(PLACES, what)


DIFFERENCES = (
    Difference(
        POSTFIX,
        ("null MX",),
        "RFC 7505 §3: a domain that takes no mail has no other MX record; one that has "
        "others wants its mail, and the dot is a mistake. The code is that of §5.1.",
        beside_others(BOUNCES, only="5.1.0"),
    ),
    Difference(
        POSTFIX,
        ("null MX twice", "implicit, null MX", "domain alias of null MX"),
        "RFC 7505 §5.1 has a code of its own for it, 5.1.10.",
        whole="5.1.0",
    ),
    Difference(
        POSTFIX,
        ("no such domain", "domain alias of nothing"),
        "RFC 3463 §3.2 has a code for a domain that does not exist, 5.1.2.",
        whole="5.4.4",
    ),
    Difference(
        POSTFIX,
        ("loopback", "IPv6 loopback", "loopback as name"),
        "127.0.0.1 is this machine, and to Postfix this mail system, so that the domain "
        "loops. Nobody can mean us by it: left out, as Exim does; the others are asked.",
        {"first": BOUNCES, "beside": BOUNCES, "middle": FEWER, "only": "5.4.6"},
    ),
    Difference(
        POSTFIX,
        ("partly loopback",),
        "The same, and the host's other address is one to be asked at.",
        {**everywhere(BOUNCES), "middle": FEWER, "last": FEWER},
    ),
    Difference(
        POSTFIX,
        ("implicit loopback",),
        "The same: no loop, but no address either.",
        whole="5.4.6",
    ),
    Difference(
        POSTFIX,
        ("other loopback", "mapped loopback", "this network"),
        "Never dialled. Postfix does not see by these addresses that they are its own: "
        "it dials them, and knows itself by its own greeting.",
        {
            "first": BOUNCES,
            "beside": BOUNCES,
            "middle": MORE,
            "last": DEFERS,
            "only": "5.4.6",
        },
    ),
    Difference(
        POSTFIX,
        ("link-local", "IPv6 link-local", "multicast", "reserved", "broadcast"),
        "Never dialled: no mail server can be there, but services of the mail server's "
        "own network can (169.254.169.254), and bounces would tell who listens.",
        beside_others(MORE, only=TRIES),
    ),
    Difference(
        POSTFIX,
        ("shared address", "twice"),
        "An address is dialled once in an attempt, as the better of its hosts.",
        everywhere(AGAIN),
    ),
    Difference(
        POSTFIX,
        ("backup of lame",),
        "Both defer. The code says why the better exchanger is not known: DNS.",
        whole="4.4.4",
    ),
    Difference(
        POSTFIX,
        ("crowd",),
        "100 of the 112 addresses, here as there. Ours are the first addresses of every "
        "host before the second of any, so that no host is left out altogether.",
        whole=OTHERS,
    ),
    Difference(
        EXIM,
        ("crowd",),
        "Exim lists all 112 addresses; mxpolicy keeps 100, as Postfix does.",
        whole=MORE,
    ),
    Difference(
        EXIM,
        ("address", "IPv6 address"),
        "Exim takes no address for an MX unless `allow_mx_to_ip` is set. RFC 5321 §5.1 "
        "forbids it, but it can mean one thing only: tried, as Postfix does.",
        beside_others(FEWER, only=BOUNCES),
    ),
    Difference(
        EXIM,
        ("own address as name",),
        "The same: Exim does not see that it is its own.",
        {"first": TRIES, "beside": TRIES, "middle": MORE},
    ),
    Difference(
        EXIM,
        ("private",),
        "Debian's `ignore_target_hosts` leaves out private networks. A mail server may "
        "well have hosts there; `never_dial: [private]` does the same.",
        beside_others(FEWER, only=BOUNCES),
    ),
    Difference(
        EXIM,
        ("multicast", "reserved"),
        "Never dialled; Debian's `ignore_target_hosts` does not name them.",
        beside_others(MORE, only=TRIES),
    ),
    Difference(
        EXIM,
        ("own name", "own address", "own IPv6 address", "partly own"),
        "By default (`self = freeze`) Exim keeps such a message for the postmaster. A "
        "pipe command cannot freeze: bounced with 5.4.6, as Postfix does.",
        dict.fromkeys(("first", "beside", "only"), DEFERS),
    ),
    Difference(EXIM, ("implicit own address",), "The same.", whole=DEFERS),
    Difference(
        EXIM,
        ("backup of missing",),
        "The domain chose this system to wait for a better exchanger, and the record that "
        "is missing is somebody else's: deferred, as Postfix does.",
        whole=BOUNCES,
    ),
)


@dataclass(frozen=True)
class Answers:
    """What each said, by the domain's name."""

    mxpolicy: Mapping[str, Answer]
    servers: Mapping[str, Mapping[str, Answer]]


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    """All answers; skips where there can be no lab."""
    names = [domain.name for domain in DOMAINS]
    forged = [owner for domain in DOMAINS for owner in domain.forged]
    try:
        world = World()
    except LabUnavailable as why:
        pytest.skip(str(why))
    with world:
        NameService(world, records(DOMAINS), forged)
        routes = [(f".{SUBDOMAIN}", f"{TRANSPORT}:")]
        postfix = Postfix(world, routes, {TRANSPORT: POSTFIX_ENTRY})
        servers = {
            POSTFIX: ask_postfix(postfix, names, PATIENCE),
            EXIM: ask_exim(Exim(world), names),
        }
        yield Answers(ask_mxpolicy(world, names), servers)


def differs(ours: Answer, theirs: Answer) -> str:
    """Return what they do otherwise, in the words above; nothing when it is the same."""
    if ours.action != theirs.action:
        return {"deliver": TRIES, "defer": DEFERS, "bounce": BOUNCES}[theirs.action]
    if theirs.status not in ("", ours.status):
        return theirs.status
    mine, yours = set(ours.addresses), set(theirs.addresses)
    if mine != yours:
        return MORE if mine < yours else FEWER if yours < mine else OTHERS
    if len(theirs.addresses) != len(yours):
        return AGAIN
    return _differs_in_order(ours, theirs)


def _differs_in_order(ours: Answer, theirs: Answer) -> str:
    preference = {one.address: one.preference for one in ours.attempts}
    for one in theirs.attempts:
        if one.preference not in (None, preference[one.address]):
            return f"{one.address} is of preference {one.preference}"
    order = [preference[address] or 0 for address in theirs.addresses]
    return "" if order == sorted(order) else f"order of preferences is {order}"


def report(domain: Domain, what: str, ours: Answer, theirs: Answer) -> str:
    """Return what one must know about a difference that nobody expected."""
    lines = [f"{domain.name}, {domain.kind} {domain.oddities}: {what or 'the same'}"]
    lines += [f"    {line}" for line in domain.records]
    for who, answer in (("mxpolicy", ours), ("server", theirs)):
        tried = ", ".join(f"{one.preference} {one.address}" for one in answer.attempts)
        said = f"{answer.action} {answer.status} [{tried}] {answer.text}"
        lines.append(f"  {who}: {said}")
    return "\n".join(lines)


def test_more_than_three_hundred_domains_of_every_kind() -> None:
    assert len(DOMAINS) > 300
    assert len({domain.name for domain in DOMAINS}) == len(DOMAINS)
    kinds = {domain.kind for domain in DOMAINS}
    listed = {kind for one in DIFFERENCES for kind, _ in one.by_kind()}
    assert listed < kinds


def test_the_same_seed_makes_the_same_domains() -> None:
    again = generate(SEED, each=2, mixtures=220)
    assert list(records(again)) == list(records(DOMAINS))


@pytest.mark.parametrize("server", [POSTFIX, EXIM])
def test_same_hosts_and_outcome_but_for_documented_differences(
    answers: Answers, server: str
) -> None:
    expected = {
        kind: what
        for one in DIFFERENCES
        for kind, what in one.by_kind()
        if one.server == server
    }
    wrong = []
    for domain in DOMAINS:
        ours = answers.mxpolicy[domain.name]
        theirs = answers.servers[server][domain.name]
        what = differs(ours, theirs)
        if domain.kind != MIXTURE and what != expected.get(domain.kind, ""):
            wrong.append(report(domain, what, ours, theirs))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("server", [POSTFIX, EXIM])
def test_mixtures_differ_only_by_what_is_documented(
    answers: Answers, server: str
) -> None:
    # Several oddities can hide each other, so here a documented one need not be seen.
    # Which of several reasons a status code gives is a matter of taste.
    known = {
        oddity for one in DIFFERENCES if one.server == server for oddity in one.oddities
    }
    wrong = []
    for domain in DOMAINS:
        ours = answers.mxpolicy[domain.name]
        theirs = answers.servers[server][domain.name]
        what = differs(ours, theirs)
        if domain.kind != MIXTURE or not what or what == theirs.status:
            continue
        if known.isdisjoint(domain.oddities):
            wrong.append(report(domain, what, ours, theirs))
    assert not wrong, "\n".join(wrong)


def test_mxpolicy_goes_by_preference(answers: Answers) -> None:
    for domain in DOMAINS:
        order = [one.preference for one in answers.mxpolicy[domain.name].attempts]
        assert order == sorted(order, key=lambda one: one or 0), domain.records


@pytest.mark.parametrize("server", [POSTFIX, EXIM])
def test_servers_answers_are_of_all_sorts(answers: Answers, server: str) -> None:
    # Were a server misread, everything could look alike.
    given = answers.servers[server].values()
    assert {answer.action for answer in given} == {"deliver", "defer", "bounce"}
    assert max(len(answer.addresses) for answer in given) >= 100
