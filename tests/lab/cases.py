"""The cases: what stands in a domain's way, and what must become of its mail.

A case is data. To add one, add an entry to `CASES`; whatever it needs that no host,
treatment or record here can express belongs into `smtp_host` or `firewall` as data, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .firewall import Treatment
from .smtp_host import Behaviour, Step

GOOD = Behaviour()
CLOSES = Behaviour({"CONNECT": Step(end="close")})
SILENT = Behaviour({"CONNECT": Step(end="hush")})
GREETS_421 = Behaviour(
    {"CONNECT": Step("421 4.3.2 {name} too busy"), "QUIT": Step(end="close")}
)
GREETS_554 = Behaviour({"CONNECT": Step("554 5.3.2 {name} no SMTP service here")})
USER_UNKNOWN = Behaviour({"RCPT": Step("550 5.1.1 User unknown")})


@dataclass(frozen=True)
class Host:
    """A host of a case's domain.

    It is an MX of the domain at `preference`, or no MX where that is None. `firewall`
    is how packets to it are treated; `families` which addresses it has ("4", "6", "46").
    """

    name: str
    preference: int | None
    behaviour: Behaviour = GOOD
    firewall: Treatment = ""
    families: str = "4"


@dataclass(frozen=True)
class Expected:
    """What must be seen after the first attempt.

    `copies` is how many each host received whole; hosts not named, none. `status`, `dsn`
    and `text` (a regular expression) are of Postfix's log; "2.0.0" is all that pipe(8)
    logs on success, smtp(8) logs the host's code. The attempt ends within `within`
    seconds, and not before `after`. A bounce reaches the sender once, and only then.
    """

    status: str
    dsn: str
    within: float
    copies: Mapping[str, int] = field(default_factory=dict)
    after: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Case:
    """A domain, the hosts in its way, and what comes of a message to it.

    `expected` is by transport; `records` are further lines of a master file, relative to
    the case's domain ("@" is the domain itself).
    """

    name: str
    story: str
    hosts: tuple[Host, ...]
    expected: Mapping[str, Expected]
    records: tuple[str, ...] = ()


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


def either(expected: Expected) -> dict[str, Expected]:
    """The same for both transports."""
    return {"mxpolicy": expected, "smtp": expected}


def first_fails(
    name: str,
    story: str,
    behaviour: Behaviour = GOOD,
    firewall: Treatment = "",
    *,
    mxpolicy: float = 2.5,
    smtp: float = 2.5,
) -> Case:
    """The commonest shape: the first MX has a fault, the second is good."""
    hosts = (Host("mx1", 10, behaviour, firewall), Host("mx2", 20))
    return Case(name, story, hosts, sent_by("mx2", mxpolicy=mxpolicy, smtp=smtp))


CASES: tuple[Case, ...] = (
    Case(
        "good",
        "Nothing is in the way: the first MX gets it.",
        (Host("mx1", 10), Host("mx2", 20)),
        sent_by("mx1", mxpolicy=2.5, smtp=2.5),
    ),
    first_fails(
        "dropped",
        "The firewall drops every packet to the first MX.",
        firewall="drop",
        mxpolicy=2.5,
        smtp=32.0,
    ),
    first_fails("reset", "The firewall answers with RST.", firewall="reset"),
    first_fails(
        "prohibited",
        "The firewall answers with ICMP administratively prohibited.",
        firewall="prohibit",
    ),
    first_fails("closed", "The first MX accepts and closes.", CLOSES),
    first_fails(
        "silent",
        "The first MX accepts and says nothing.",
        SILENT,
        mxpolicy=10.0,
        smtp=302.0,
    ),
    first_fails("greets-421", "The first MX greets with 421.", GREETS_421),
    first_fails("greets-554", "The first MX greets with 554.", GREETS_554),
    Case(
        "all-dropped",
        "The firewall drops every packet to every MX.",
        (Host("mx1", 10, firewall="drop"), Host("mx2", 20, firewall="drop")),
        {
            "mxpolicy": Expected("deferred", "4.4.1", 45.0),
            "smtp": Expected("deferred", "4.4.1", 62.0, after=55.0),
        },
    ),
    Case(
        "null-mx",
        "The domain says that it takes no mail (RFC 7505).",
        (),
        {
            # RFC 7505 §4.2 gives it a code of its own; Postfix's does without.
            "mxpolicy": Expected("bounced", "5.1.10", 2.5, text="null MX"),
            "smtp": Expected("bounced", "5.1.0", 2.5, text="nullMX"),
        },
        records=("@ MX 0 .",),
    ),
    Case(
        "user-unknown",
        "The first MX refuses the recipient; the second would not, and is not asked.",
        (Host("mx1", 10, USER_UNKNOWN), Host("mx2", 20)),
        either(Expected("bounced", "5.1.1", 2.5, text="User unknown")),
    ),
    Case(
        "twelve-dropped",
        "The firewall drops every packet to twelve MX; the thirteenth is good.",
        (
            *(Host(f"mx{n}", 10 * n, firewall="drop") for n in range(1, 13)),
            Host("mx13", 130),
        ),
        {
            "mxpolicy": Expected("sent", "2.0.0", 30.0, {"mx13": 1}),
            "smtp": Expected("deferred", "4.4.1", 155.0, after=140.0),
        },
    ),
)


@dataclass(frozen=True)
class Placed:
    """A case with a domain and addresses of its own, for one transport.

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
    def recipient(self) -> str:
        """Who gets the message."""
        return f"user@{self.domain}"

    @property
    def sender(self) -> str:
        """Who sends it, and receives its bounce at a host that is always good."""
        return f"{self.name}@home.lab.test"

    @property
    def expected(self) -> Expected:
        """What must be seen with this transport."""
        return self.case.expected[self.transport]

    def host_name(self, host: Host) -> str:
        """Return the host's name in DNS and in its greeting."""
        return f"{host.name}.{self.domain}"

    def addresses(self, host: Host) -> list[str]:
        """Return the host's addresses, IPv4 first."""
        place = self.case.hosts.index(host) + 1
        block, subnet = divmod(self.number, 256)
        found = []
        if "4" in host.families:
            found.append(f"198.{18 + block}.{subnet}.{place}")
        if "6" in host.families:
            found.append(f"2001:db8:18:{self.number:x}::{place:x}")
        return found

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

    def _absolute(self, record: str) -> str:
        owner, rest = record.split(maxsplit=1)
        full = self.domain if owner == "@" else f"{owner}.{self.domain}"
        return f"{full}. {rest}"


def place(cases: tuple[Case, ...], transports: tuple[str, ...]) -> tuple[Placed, ...]:
    """Give every case its place, once for each transport."""
    pairs = [(case, transport) for transport in transports for case in cases]
    return tuple(Placed(*pair, number) for number, pair in enumerate(pairs, 1))
