"""The thing that is tried, how far it came, and how it failed.

A candidate is one way to one address: (egress, host, address, port), its `Key`.
Everything that chooses (the plan, the race, the memory) speaks of candidates, phases
and verdicts; nothing here does I/O.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

__all__ = [
    "DIRECT",
    "Awaited",
    "Candidate",
    "Finding",
    "Key",
    "Phase",
    "Rank",
    "Scope",
    "Verdict",
    "Wait",
    "egress_of",
    "host_of",
    "rank_of",
    "shown_of",
]

DIRECT = "direct"


class Rank(NamedTuple):
    """How much a candidate is preferred; smaller is better.

    Attributes:
        egress: Place of the egress in its list, from 0.
        preference: MX preference, 0 to 65535 (RFC 5321 §5.1); for the second
            nexthop of a list it is counted on from the first one's.
    """

    egress: int
    preference: int


def rank_of(preference: int, nexthop_position: int, egress_position: int = 0) -> Rank:
    """Return the rank; a later nexthop of a list is worse than any MX of an earlier one."""
    return Rank(egress_position, preference + nexthop_position * 65536)


class Key(NamedTuple):
    """The identity of a candidate.

    As text it is the candidate's word in the journal and in outcomes: as shown, and
    behind it ``/egress`` unless that is `DIRECT`.
    """

    egress: str
    host: str
    address: str
    port: int

    @property
    def socket(self) -> str:
        """The same under all names of a host: the word in the memory's keys."""
        return f"{self.egress} {self.address} {self.port}"

    @property
    def shown(self) -> str:
        """The candidate as people see it: a sender need not know of our egresses."""
        return f"{self.host}[{self.address}]:{self.port}"

    def __str__(self) -> str:
        return self.shown if self.egress == DIRECT else f"{self.shown}/{self.egress}"


def shown_of(key: str) -> str:
    """Return `Key.shown` of a key as text; any other text stays as it is."""
    return "".join(_parted(key)[:2])


def egress_of(key: str) -> str:
    """Return the egress of a key as text; `DIRECT` for any other text."""
    return _parted(key)[2] or DIRECT


def host_of(key: str) -> str:
    """Return the host's name in a key as text: all its addresses are one host."""
    return key.rpartition("[")[0]


def _parted(key: str) -> tuple[str, str, str]:
    host, bracket, rest = key.rpartition("]")
    port, _, egress = rest.partition("/") if bracket else (rest, "", "")
    return host + bracket, port, egress


class Candidate(NamedTuple):
    """One thing that can be dialled.

    Attributes:
        host: The host's name, an A-label domain, or the address literal's text.
        address: An IPv4 or IPv6 address in its canonical text form.
        port: TCP port.
        preference: The host's MX preference.
        egress: Name of the way out; ``direct`` without proxy or relay.
        egress_position: Place of that egress in its list, from 0.
        nexthop_position: Place in the nexthop list, from 0.
    """

    host: str
    address: str
    port: int
    preference: int = 0
    egress: str = DIRECT
    egress_position: int = 0
    nexthop_position: int = 0

    @property
    def key(self) -> Key:
        """Its identity."""
        return Key(self.egress, self.host, self.address, self.port)

    @property
    def rank(self) -> Rank:
        """What decides the order."""
        return rank_of(self.preference, self.nexthop_position, self.egress_position)

    def shares_host(self, other: Candidate) -> bool:
        """Return whether both are at one host, by its name or by its address.

        Many domains at one provider have hosts with names of their own.
        """
        return self.host == other.host or self.key.socket == other.key.socket

    @property
    def is_ipv6(self) -> bool:
        """True for an IPv6 address."""
        return ":" in self.address

    def facts(self) -> dict[str, object]:
        """Return the members that say in JSON which candidate it is."""
        return {
            "egress": self.egress,
            "host": self.host,
            "preference": self.preference,
            "address": self.address,
            "port": self.port,
        }

    def __str__(self) -> str:
        return self.key.shown


class Phase(IntEnum):
    """How far a candidate has come; it never goes back.

    The value grows, so ``phase >= Phase.GREETING`` means "the SYN-ACK was seen".
    """

    CONNECT = 0  # our SYN is out
    GREETING = 1  # SYN-ACK seen, the 220 is awaited
    EHLO = 2  # greeted, EHLO (or HELO) is awaited
    TLS = 3  # STARTTLS sent, its reply or the handshake is awaited
    READY = 4  # has answered EHLO and meets the TLS level: reachable
    TRANSACTION = 5  # MAIL, RCPT, DATA
    DOT = 6  # the final dot is out: the outcome may be unknown

    @property
    def word(self) -> str:
        """The phase's name for logs and JSON."""
        return self.name.lower()


class Awaited(Enum):
    """What is awaited of a host; a patient sender has a time for each of these.

    The value is the journal's word.
    """

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    TLS = "tls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"  # that bytes of the mail data are acknowledged

    # Enum's own is written in Python, and each step of a race looks one up.
    __hash__ = object.__hash__


class Wait(NamedTuple):
    """A wait that ended because our patience did: the host has not failed.

    Attributes:
        awaited: What was awaited.
        seconds: How long.
    """

    awaited: Awaited
    seconds: float


class Verdict(Enum):
    """How a candidate failed. The value is the word that logs and JSON show."""

    # connect
    FILTERED = "filtered"  # no SYN-ACK
    REFUSED = "refused"  # RST
    PROHIBITED = "prohibited"  # ICMP, or the local firewall's EPERM, EACCES
    NO_ROUTE = "no_route"  # said at once by our own kernel
    PROXY_FAILED = "proxy_failed"
    # any phase after it
    CLOSED = "closed"
    SILENT = "silent"
    STALLED = "stalled"  # our bytes are not acknowledged: an MTU black hole
    # greeting
    NOT_SMTP = "not_smtp"
    GREETING_4XX = "greeting_4xx"
    GREETING_5XX = "greeting_5xx"
    # ehlo
    EHLO_REFUSED = "ehlo_refused"
    LOOPS_TO_MYSELF = "loops_to_myself"
    # tls
    STARTTLS_MISSING = "starttls_missing"
    STARTTLS_REFUSED = "starttls_refused"
    TLS_FAILED = "tls_failed"
    TLS_SILENT = "tls_silent"
    CERTIFICATE_REJECTED = "certificate_rejected"
    # transaction: the host is reachable and spoke; its reply settles recipients
    TRANSIENT = "transient"  # a 4yz ended the session or left recipients unsettled
    PERMANENT = "permanent"  # a 5yz to a recipient or the message
    UNFIT = "unfit"  # not for this message (SIZE, SMTPUTF8), or not from this session


class Scope(Enum):
    """What a finding is about, and so what else is affected (as Postfix's smtp_trouble)."""

    RECIPIENT = "recipient"  # this recipient only
    MESSAGE = "message"  # any recipient of this message at this host
    HOST = "host"  # any message to this candidate
    SITE = "site"  # ourselves or the way out: no host is blamed


class Finding(NamedTuple):
    """One failure of one candidate.

    Attributes:
        verdict: How it failed.
        phase: In which phase it was.
        waited: Seconds from the phase's beginning to the failure.
        scope: What is affected.
        full: True after a definite answer, or after the full time without one (6 s
            without SYN-ACK, 30 s in a later phase). False when only our patience ended.
        text: What the host or the system said, printable, for the log.
        is_transient: The host said 4yz (RFC 5321 §4.2.1): not now.
        wait: The wait that ended the session with *our* patience; None when the host
            answered or failed. (Before *ready* the race itself ends the waits.)
    """

    verdict: Verdict
    phase: Phase
    waited: float
    scope: Scope = Scope.HOST
    full: bool = True
    text: str = ""
    is_transient: bool = False
    wait: Wait | None = None
