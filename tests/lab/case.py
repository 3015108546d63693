"""What a case is: a domain, what stands in the way to it, and what must become of mail.

The cases themselves are tables in `cases_greeting`, `cases_transaction`, `cases_order`
and `cases_names`; `cases` joins them, `judge` says whether one came out as expected.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from .firewall import Treatment
from .smtp_host import Behaviour

GOOD = Behaviour()

ALIKE = {
    "mxpolicy-exim": ("mxpolicy",),
    "handed": ("mxpolicy", "hasty"),
    "handed-exim": ("mxpolicy", "hasty"),
    "handed-many": ("many",),
    "postfix-lmtp": ("many", "mxpolicy", "hasty"),
    "mxlmtp": ("many", "mxpolicy", "hasty"),
    "exim-lmtp": ("many", "mxpolicy", "hasty"),
}
"""Of these transports the same is expected as of others, the first that there is, if
nothing else is said."""

# Classes of time, in seconds. Where many start at once on a machine that has other work,
# a Python may need two to come up; what is told apart here is several times as long.
AT_ONCE = 5.0
"""Nothing was waited for but, perhaps, an answer to a SYN."""
FIRST_PATIENCE = (7.5, 12.0)
"""A host that had its SYN-ACK was waited for alone (8 s), then the next one begun."""
SILENCE = (58.0, 72.0)
"""A host fell silent in the transaction, and another was there to be asked (60 s)."""


@dataclass(frozen=True)
class Host:
    """A host of a case's domain.

    It is an MX of the domain at `preference`, or no MX where that is None. `families`
    are those it has an address of ("4", "6", "46"); `firewall` is how packets to it are
    treated, those of `firewalled` families only.
    """

    name: str
    preference: int | None
    behaviour: Behaviour = GOOD
    firewall: Treatment = ""
    families: str = "4"
    firewalled: str = "46"


@dataclass(frozen=True)
class Mail:
    """The message: to whom, with which parameters of MAIL, and its mail data."""

    local_parts: tuple[str, ...] = ("user",)
    options: tuple[str, ...] = ()
    data: bytes = b"Subject: from the lab\n\nOne line of text.\n"


@dataclass(frozen=True)
class Expected:
    """What must be seen after the first attempt, for each recipient of it.

    `copies` is how many each host got whole and did not refuse; hosts not named, none.
    `one_of` is for when chance decides: one of these got one. `visits` is how many
    sessions a host had; those not named may have had any number. `data` is a regular
    expression that mail data that arrived must match (as Latin-1); `tls` says whether
    it came encrypted.

    `status`, `dsn` and `text` (a regular expression) are of Postfix's log; "2.0.0" is all
    that pipe(8) logs on success, smtp(8) logs the host's code. The attempt ends within
    `within` seconds, and not before `after`. A bounce reaches the sender once, and only
    then.
    """

    status: str
    dsn: str
    within: float
    copies: Mapping[str, int] = field(default_factory=dict)
    after: float = 0.0
    text: str = ""
    one_of: tuple[str, ...] = ()
    visits: Mapping[str, int] = field(default_factory=dict)
    data: str = ""
    tls: bool | None = None

    def __post_init__(self) -> None:
        re.compile(self.text)
        re.compile(self.data)

    def __str__(self) -> str:
        where = [f"{count} at {host}" for host, count in self.copies.items()]
        where += [f"1 at one of {', '.join(self.one_of)}"] if self.one_of else []
        when = f"{self.after:g} to {self.within:g} s"
        return f"{self.status} {self.dsn}, {' and '.join(where) or 'nowhere'}, {when}"


@dataclass(frozen=True)
class Case:
    """A domain, the hosts in its way, and what comes of a message to it.

    `expected` is by transport (see `ALIKE`); those not named are not judged. `records` are further
    lines of a master file: their owner relative to the case's domain ("@" is the domain
    itself), and after that "{domain}" for the domain and "{NAME}" for the (first) address
    of the host NAME. `forged` are owners whose records have a wrong signature.
    """

    name: str
    story: str
    hosts: tuple[Host, ...]
    expected: Mapping[str, Expected]
    records: tuple[str, ...] = ()
    forged: tuple[str, ...] = ()
    mail: Mail = Mail()

    def expected_with(self, transport: str) -> Expected | None:
        """Return what must be seen with a transport, None where it is not known."""
        names = (transport, *ALIKE.get(transport, ()))
        known = (self.expected[name] for name in names if name in self.expected)
        return next(known, None)


@dataclass(frozen=True)
class Placed:
    """A case with a domain and addresses of its own, for one transport.

    It `is_judged` only with a transport that something is expected of.

    *number*, from 1, chooses 198.18.0.0/15 and 2001:db8:18::/48 addresses; no two
    placed cases of a lab share one.
    """

    case: Case
    transport: str
    number: int

    @property
    def name(self) -> str:
        """What tests and tables call it."""
        return f"{self.case.name}-{self.transport}"

    @property
    def domain(self) -> str:
        """The domain that mail is sent to."""
        return f"{self.case.name}.{self.transport}.lab.test"

    @property
    def recipients(self) -> tuple[str, ...]:
        """Who gets the message."""
        return tuple(f"{part}@{self.domain}" for part in self.case.mail.local_parts)

    @property
    def recipient(self) -> str:
        """The first of them."""
        return self.recipients[0]

    @property
    def sender(self) -> str:
        """Who sends it, and receives its bounce at a host that is always good."""
        return f"{self.name}@home.lab.test"

    @property
    def is_judged(self) -> bool:
        """Whether it is known what must be seen with this transport."""
        return self.case.expected_with(self.transport) is not None

    @property
    def expected(self) -> Expected:
        """What must be seen with this transport; KeyError where it is not known."""
        expected = self.case.expected_with(self.transport)
        if expected is None:
            raise KeyError(self.name)
        return expected

    def host_name(self, host: Host) -> str:
        """Return the host's name in DNS and in its greeting."""
        return f"{host.name}.{self.domain}"

    def addresses(self, host: Host) -> list[str]:
        """Return the host's addresses, IPv4 first."""
        place = self.case.hosts.index(host) + 1
        found = []
        if "4" in host.families:
            found.append(str(_FIRST + self.number * _PLACE + place))
        if "6" in host.families:
            found.append(f"2001:db8:18:{self.number:x}::{place:x}")
        return found

    def firewalled(self, host: Host) -> list[str]:
        """Return those of its addresses that the firewall treats in its way."""
        return [
            address
            for address in self.addresses(host)
            if ("6" if ":" in address else "4") in host.firewalled
        ]

    def records(self) -> list[str]:
        """Return its lines for the zone `lab.test`, names in full."""
        lines = []
        for host in self.case.hosts:
            name = self.host_name(host)
            if host.preference is not None:
                lines.append(f"{self.domain}. MX {host.preference} {name}.")
            for address in self.addresses(host):
                kind = "AAAA" if ":" in address else "A"
                lines.append(f"{name}. {kind} {address}")
        return lines + [self._absolute(record) for record in self.case.records]

    def forged(self) -> list[str]:
        """Return the names whose records have a wrong signature, in full."""
        return [self._owner(name) for name in self.case.forged]

    def _absolute(self, record: str) -> str:
        owner, rest = record.split(maxsplit=1)
        known = {host.name: self.addresses(host)[0] for host in self.case.hosts}
        return f"{self._owner(owner)} {rest.format(domain=self.domain, **known)}"

    def _owner(self, name: str) -> str:
        return f"{self.domain}." if name == "@" else f"{name}.{self.domain}."


# 198.18.0.0/15 in /26; those of the last /24 are not for cases (see `names`).
_FIRST = IPv4Address("198.18.0.0")
_PLACE = 64
_PLACES = 2043


def place(cases: Sequence[Case], transports: Sequence[str]) -> tuple[Placed, ...]:
    """Give every case its place, once for each transport.

    Raises ValueError where there are not so many places.
    """
    return _place((case, transport) for transport in transports for case in cases)


def place_judged(
    cases: Sequence[Case], transports: Sequence[str]
) -> tuple[Placed, ...]:
    """The same, where something is expected of the case with the transport."""
    return _place(
        (case, transport)
        for transport in transports
        for case in cases
        if case.expected_with(transport) is not None
    )


def _place(pairs: Iterable[tuple[Case, str]]) -> tuple[Placed, ...]:
    placed = tuple(Placed(*pair, number) for number, pair in enumerate(pairs, 1))
    if len(placed) > _PLACES:
        raise ValueError(f"{len(placed)} cases have no room in {_PLACES} networks")
    return placed


# --- shapes that many cases have


def either(expected: Expected) -> dict[str, Expected]:
    """The same for mxpolicy and for smtp(8)."""
    return {"mxpolicy": expected, "smtp": expected}


def ours(expected: Expected) -> dict[str, Expected]:
    """For mxpolicy only."""
    return {"mxpolicy": expected}


def sent_by(host: str, *, mxpolicy: float, smtp: float) -> dict[str, Expected]:
    """Delivered once, to *host*, each transport within its own number of seconds.

    smtp(8) must also take at least nine tenths of its: that is what is compared with.
    """
    copies = {host: 1}
    after = 0.9 * smtp - 1 if smtp > 5 else 0.0
    return {
        "mxpolicy": Expected("sent", "2.0.0", mxpolicy, copies),
        "smtp": Expected("sent", "2.0.0", smtp, copies, after),
    }


def sent(
    host: str,
    within: float = AT_ONCE,
    after: float = 0.0,
    *,
    visits: Mapping[str, int] | None = None,
    data: str = "",
    tls: bool | None = None,
) -> Expected:
    """Delivered once, to *host*."""
    copies = {host: 1}
    return Expected(
        "sent", "2.0.0", within, copies, after, visits=visits or {}, data=data, tls=tls
    )


def deferred(
    dsn: str,
    within: float = AT_ONCE,
    after: float = 0.0,
    *,
    copies: Mapping[str, int] | None = None,
    text: str = "",
    visits: Mapping[str, int] | None = None,
) -> Expected:
    """To be tried later."""
    return Expected(
        "deferred", dsn, within, copies or {}, after, text, visits=visits or {}
    )


def bounced(
    dsn: str,
    within: float = AT_ONCE,
    after: float = 0.0,
    *,
    text: str = "",
    visits: Mapping[str, int] | None = None,
) -> Expected:
    """Refused for good, and the sender told."""
    return Expected("bounced", dsn, within, {}, after, text, visits=visits or {})


def first_then_good(
    name: str,
    story: str,
    behaviour: Behaviour,
    expected: Mapping[str, Expected],
    mail: Mail = Mail(),
    firewall: Treatment = "",
) -> Case:
    """The commonest shape: the first MX is as *behaviour* says, the second is good."""
    hosts = (Host("mx1", 10, behaviour, firewall), Host("mx2", 20))
    return Case(name, story, hosts, expected, mail=mail)


def alone(
    name: str,
    story: str,
    behaviour: Behaviour,
    expected: Mapping[str, Expected],
    mail: Mail = Mail(),
    firewall: Treatment = "",
) -> Case:
    """A domain with one MX."""
    hosts = (Host("mx1", 10, behaviour, firewall),)
    return Case(name, story, hosts, expected, mail=mail)
