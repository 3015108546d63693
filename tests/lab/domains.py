"""Domains by the hundred: what a stranger's DNS can hold, put together by chance.

For `test_differential`. A domain has one peculiarity, its `kind`, among otherwise
ordinary records that chance chose: how many hosts, which preferences, which families.
Or it is a mixture of several. The same seed makes the same domains.

An `Exchange` makes the target of one odd MX record; such a record stands at one of
five places: `first` (better than all ordinary ones), `beside` (as good as the best of
them), `middle`, `last` (worse than all), `only` (there are no others). A shape is what a whole
domain can be instead. Every address is one at which nobody listens, or one of those
that nobody else can have.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .names import LAME, NAME_SERVER

SUBDOMAIN = "differ.lab.test"

PLACES = ("first", "beside", "middle", "last", "only")

MIXTURE = "mixture"

MOST = 1020
"""Domains that have room in 198.18.0.0/15, 127 addresses each (see also `names`)."""

# What ordinary MX records have; twice the same is common in the world, and matters.
_PREFERENCES = (10, 10, 10, 15, 20, 20, 30, 50, 32767)
_FAMILIES = ("4", "4", "4", "6", "46", "46", "44", "446", "4466")


@dataclass
class Domain:
    """A generated domain.

    `oddities` are the exchanges or the shape in it; `kind` is the one with its place,
    or `MIXTURE`. `records` are lines for the zone `lab.test`, `forged` owners whose
    records get a wrong signature, `hosts` how many ordinary ones it has.
    """

    number: int
    kind: str
    oddities: tuple[str, ...]
    chance: random.Random = field(repr=False)
    records: list[str] = field(default_factory=list)
    forged: list[str] = field(default_factory=list)
    hosts: int = 0
    _addresses: int = 0

    @property
    def name(self) -> str:
        """Without the final dot."""
        return f"d{self.number}.{SUBDOMAIN}"

    # --- what shapes and exchanges are made with ---

    def below(self, label: str) -> str:
        """Return an absolute name in the domain."""
        return f"{label}.{self.name}."

    def add(self, owner: str, *records: str) -> None:
        """Add records of an absolute owner."""
        self.records += [f"{owner} {record}" for record in records]

    def address(self, family: str) -> str:
        """Return an address that no other host has; *family* is "4" or "6"."""
        self._addresses += 1
        if family == "4":
            network, half = divmod(self.number, 2)
            block, subnet = divmod(network, 256)
            return f"198.{18 + block}.{subnet}.{half * 128 + self._addresses}"
        return f"2001:db8:18:{self.number:x}::{self._addresses:x}"

    def give_addresses(self, owner: str, families: str = "") -> None:
        """Give a name one address for each of *families*, chosen by chance if empty."""
        for family in families or self.chance.choice(_FAMILIES):
            kind = "A" if family == "4" else "AAAA"
            self.add(owner, f"{kind} {self.address(family)}")

    def fresh(self, stem: str) -> str:
        """Return an absolute name in the domain that is not used yet."""
        return self.below(f"{stem}{len(self.records)}")

    def host(self, families: str = "") -> str:
        """Add an ordinary host; return its name."""
        self.hosts += 1
        name = self.below(f"mx{self.hosts}")
        self.give_addresses(name, families)
        return name

    def ordinary(self, owner: str = "") -> list[int]:
        """Give *owner* (default: the domain) one to four MX; return preferences."""
        count = self.chance.randint(1, 4)
        preferences = self.chance.choices(_PREFERENCES, k=count)
        for preference in preferences:
            self.add(owner or f"{self.name}.", f"MX {preference} {self.host()}")
        return preferences


Exchange = Callable[[Domain], str]
Shape = Callable[[Domain], None]


def generate(seed: int, each: int, mixtures: int) -> tuple[Domain, ...]:
    """Return *each* domains of every kind, and *mixtures* of several oddities."""
    chance = random.Random(seed)
    numbers = iter(range(1, MOST))
    kinds = [(name, "") for name in SHAPES]
    kinds += [(name, place) for name in EXCHANGES for place in PLACES]
    found = [
        _of_kind(next(numbers), oddity, place, chance)
        for oddity, place in kinds
        for _ in range(each)
    ]
    return (*found, *(_mixture(next(numbers), chance) for _ in range(mixtures)))


def _of_kind(number: int, oddity: str, place: str, chance: random.Random) -> Domain:
    if not place:
        domain = Domain(number, oddity, (oddity,), chance)
        SHAPES[oddity](domain)
        return domain
    domain = Domain(number, f"{oddity} {place}", (oddity,), chance)
    ordinary = domain.ordinary() if place != "only" else [10]
    preference = {
        "first": chance.randrange(min(ordinary)),
        "beside": min(ordinary),
        "middle": max(ordinary) + 1,
        "last": max(ordinary) + chance.randint(1, 90),
        "only": chance.choice(_PREFERENCES),
    }[place]
    if place == "middle":
        domain.add(f"{domain.name}.", f"MX {preference + 1} {domain.host()}")
    target = EXCHANGES[oddity](domain)
    domain.add(f"{domain.name}.", f"MX {preference} {target}")
    return domain


def _mixture(number: int, chance: random.Random) -> Domain:
    oddities = tuple(chance.sample(sorted(EXCHANGES), chance.randint(2, 4)))
    domain = Domain(number, MIXTURE, oddities, chance)
    domain.ordinary()
    for oddity in oddities:
        preference = chance.choice((5, *_PREFERENCES))
        target = EXCHANGES[oddity](domain)
        domain.add(f"{domain.name}.", f"MX {preference} {target}")
    return domain


# --- exchanges: targets of one MX record


def _at(*records: str) -> Exchange:
    """A host with these records and no others."""

    def exchange(domain: Domain) -> str:
        name = domain.fresh("odd")
        domain.add(name, *records)
        return name

    return exchange


def _called(text: str) -> Exchange:
    """This very name, absolute or below the domain, with no record of its own."""
    return lambda domain: text if text.endswith(".") else domain.below(text)


def _well(label: str) -> Exchange:
    """A host of an unusual name, with addresses."""

    def exchange(domain: Domain) -> str:
        name = domain.below(label)
        domain.give_addresses(name)
        return name

    return exchange


def _families(families: str) -> Exchange:
    return lambda domain: domain.host(families)


def _upper_case(domain: Domain) -> str:
    return domain.host().upper()


def _domain_itself(domain: Domain) -> str:
    domain.give_addresses(f"{domain.name}.")
    return f"{domain.name}."


def _empty_non_terminal(domain: Domain) -> str:
    name = domain.fresh("empty")
    domain.give_addresses(f"below.{name}")
    return name


def _alias(*, links: int = 1, dangling: bool = False) -> Exchange:
    def exchange(domain: Domain) -> str:
        target = domain.below("nowhere") if dangling else domain.host()
        for _ in range(links):
            name = domain.fresh("alias")
            domain.add(name, f"CNAME {target}")
            target = name
        return target

    return exchange


def _alias_loop(domain: Domain) -> str:
    first, second = domain.below("round"), domain.below("and-round")
    domain.add(first, f"CNAME {second}")
    domain.add(second, f"CNAME {first}")
    return first


def _literal(family: str) -> Exchange:
    return lambda domain: f"{domain.address(family)}."


def _bogus(domain: Domain) -> str:
    name = domain.host()
    domain.forged.append(name)
    return name


def _below_zone_of(name_server: str) -> Exchange:
    """A name in a zone of this server's, which does not serve it."""

    def exchange(domain: Domain) -> str:
        zone = domain.fresh("zone")
        _delegate(domain, zone, name_server)
        return f"mx.{zone}"

    return exchange


def _delegate(domain: Domain, zone: str, name_server: str) -> None:
    server = f"ns.{zone}"
    domain.add(zone, f"NS {server}")
    domain.add(server, f"A {name_server}")


_lame = _below_zone_of(LAME)


def _shared(domain: Domain) -> str:
    """Two hosts with one address, at two preferences; and one more."""
    name, other = domain.fresh("shared"), domain.host("4")
    address = f"A {domain.address('4')}"
    domain.add(name, address)
    domain.add(other, address)
    domain.add(f"{domain.name}.", f"MX 40000 {other}")
    return name


def _twice(domain: Domain) -> str:
    """One host at two preferences."""
    name = domain.host()
    domain.add(f"{domain.name}.", f"MX 40000 {name}")
    return name


def _partly(record: str) -> Exchange:
    """A host with one address like others', and this one."""

    def exchange(domain: Domain) -> str:
        name = domain.host("4")
        domain.add(name, record)
        return name

    return exchange


EXCHANGES: dict[str, Exchange] = {
    "IPv4 only": _families("4"),
    "IPv6 only": _families("6"),
    "both families": _families("4466"),
    "many addresses": _families("4" * 9 + "6" * 7),
    "upper case": _upper_case,
    "domain itself": _domain_itself,
    "missing": _called("nowhere"),
    "without address": _at('TXT "no address"'),
    "names below only": _empty_non_terminal,
    "alias": _alias(),
    "alias of aliases": _alias(links=4),
    "alias of nothing": _alias(dangling=True),
    "alias loop": _alias_loop,
    "address": _literal("4"),
    "IPv6 address": _literal("6"),
    "address in brackets": lambda domain: f"[{domain.address('4')}].",
    "own address as name": _called("192.0.2.25."),
    "loopback as name": _called("127.0.0.1."),
    "mapped": lambda domain: _at(f"AAAA ::ffff:{domain.address('4')}")(domain),
    "number": _called("12345."),
    "one label": _called("mailhost."),
    "hyphen first": _well("-mx"),
    "underscore": _well("our_mx"),
    "blank": _well(r"our\032mx"),
    "null MX": _called("."),
    "bogus": _bogus,
    "lame": _lame,
    "referral to itself": _below_zone_of(NAME_SERVER),
    "shared address": _shared,
    "twice": _twice,
    "loopback": _at("A 127.0.0.1"),
    "other loopback": _at("A 127.0.0.2"),
    "IPv6 loopback": _at("AAAA ::1"),
    "mapped loopback": _at("AAAA ::ffff:127.0.0.1"),
    "partly loopback": _partly("A 127.0.0.1"),
    "this network": _at("A 0.0.0.0"),
    "link-local": _at("A 169.254.169.254"),
    "IPv6 link-local": _at("AAAA fe80::1"),
    "multicast": _at("A 224.0.0.1"),
    "reserved": _at("A 240.0.0.1"),
    "broadcast": _at("A 255.255.255.255"),
    "private": _at("A 10.1.2.3"),
    "own name": _called("mail.lab.test."),
    "own address": _at("A 192.0.2.25"),
    "own IPv6 address": _at("AAAA 2001:db8:2::25"),
    "partly own": _partly("A 192.0.2.25"),
}


# --- shapes: whole domains


def _ordinary(domain: Domain) -> None:
    domain.ordinary()


def _crowd(domain: Domain) -> None:
    for number in range(14):
        owner = domain.host("4" * 8)
        domain.add(f"{domain.name}.", f"MX {number // 2 * 10} {owner}")


def _alias_of_domain(links: int) -> Shape:
    def shape(domain: Domain) -> None:
        names = [domain.below(f"alias{n}") for n in range(1, links)]
        target = domain.below("real")
        for owner, alias in zip(
            [f"{domain.name}.", *names], [*names, target], strict=True
        ):
            domain.add(owner, f"CNAME {alias}")
        domain.ordinary(target)

    return shape


def _alias_of_host(domain: Domain) -> None:
    domain.add(f"{domain.name}.", f"CNAME {domain.host()}")


def _itself(*records: str) -> Shape:
    """The domain itself has these records, and no others."""
    return lambda domain: domain.add(f"{domain.name}.", *records)


def _implicit(domain: Domain) -> None:
    domain.give_addresses(f"{domain.name}.")


def _bogus_mx(domain: Domain) -> None:
    domain.ordinary()
    domain.forged.append(f"{domain.name}.")


def _bogus_implicit(domain: Domain) -> None:
    _implicit(domain)
    domain.forged.append(f"{domain.name}.")


def _addresses_and_missing_mx(domain: Domain) -> None:
    _implicit(domain)
    domain.add(f"{domain.name}.", f"MX 10 {domain.below('nowhere')}")


def _addresses_and_null_mx(domain: Domain) -> None:
    _implicit(domain)
    domain.add(f"{domain.name}.", "MX 0 .")


def _own_after(better: str) -> Shape:
    """This system is the backup of an exchanger that cannot be found."""

    def shape(domain: Domain) -> None:
        target = _lame(domain) if better == "lame" else domain.below(better)
        owner = f"{domain.name}."
        domain.add(owner, f"MX 10 {target}", "MX 20 mail.lab.test.")
        domain.add(owner, f"MX 30 {domain.host()}")

    return shape


def _alias_loop_of_domain(domain: Domain) -> None:
    domain.add(f"{domain.name}.", f"CNAME {_alias_loop(domain)}")


def _alias_of_null_mx(domain: Domain) -> None:
    real = domain.below("real")
    domain.add(f"{domain.name}.", f"CNAME {real}")
    domain.add(real, "MX 0 .")


def _alias_of_lame(domain: Domain) -> None:
    domain.add(f"{domain.name}.", f"CNAME {_lame(domain)}")


def _lame_domain(domain: Domain) -> None:
    _delegate(domain, f"{domain.name}.", LAME)


def _missing(domain: Domain) -> None:
    """It has no record, so it does not exist."""


SHAPES: dict[str, Shape] = {
    "ordinary": _ordinary,
    "crowd": _crowd,
    "domain alias": _alias_of_domain(1),
    "domain alias of aliases": _alias_of_domain(4),
    "domain alias of host": _alias_of_host,
    "domain alias loop": _alias_loop_of_domain,
    "domain alias of null MX": _alias_of_null_mx,
    "domain alias of lame": _alias_of_lame,
    "domain alias of nothing": _itself(f"CNAME nowhere.{SUBDOMAIN}."),
    "implicit": _implicit,
    "implicit loopback": _itself("A 127.0.0.1"),
    "implicit own address": _itself("A 192.0.2.25"),
    "implicit bogus": _bogus_implicit,
    "backup of missing": _own_after("nowhere"),
    "backup of lame": _own_after("lame"),
    "implicit, missing MX": _addresses_and_missing_mx,
    "implicit, null MX": _addresses_and_null_mx,
    "null MX twice": _itself("MX 0 .", "MX 10 ."),
    "no records of use": _itself('TXT "nothing here"'),
    "no such domain": _missing,
    "lame domain": _lame_domain,
    "bogus MX": _bogus_mx,
}


def records(domains: Sequence[Domain]) -> Iterator[str]:
    """Return the lines of all for the zone `lab.test`."""
    for domain in domains:
        yield from domain.records
