"""A plan for a Postfix as it comes about, and what was seen of that Postfix. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.setup.cf_text import entries, find
from mxpolicy.setup.postfix_domains import Own
from mxpolicy.setup.postfix_lines import TABLE
from mxpolicy.setup.steps import MAIN, MASTER, Plan, Step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "INSTANCES",
    "PROTOCOLS",
    "RELAY",
    "SENDER",
    "SENDERS",
    "SENDER_RELAYS",
    "SENDER_TRANSPORTS",
]
__all__ += ["Draft", "Seen"]

RELAY = "smtpd_relay_restrictions"
SENDER = "smtpd_sender_restrictions"

# What says before default_transport and relayhost where a sender's mail goes.
SENDER_RELAYS = "sender_dependent_relayhost_maps"
SENDER_TRANSPORTS = "sender_dependent_default_transport_maps"
SENDERS = (SENDER_RELAYS, SENDER_TRANSPORTS)

# Of further instances (postmulti(1)); empty but in the first one.
INSTANCES = "multi_instance_directories"

# Without "ipv4" or "all" Postfix has no 127.0.0.1.
PROTOCOLS = "inet_protocols"


class Seen(NamedTuple):
    """What is there.

    Attributes:
        directory: That of main.cf.
        main, master: The text of the two files.
        table: The text of our transport table; None where there is none.
        effective: Values of main.cf as Postfix understands them.
        routed: What transport_maps say of a domain that was asked for, by domain:
            ``TRANSPORT:NEXTHOP (TABLE)``.
        local: Which of our own domains one that was asked for would take.
        is_taken: Whether another program listens at `FALLBACK_AT`.
        inward: Our own domains that a table sends to a host by the client for the world,
            ``DOMAIN TRANSPORT:NEXTHOP (TABLE)`` each.
        unlisted: Tables of transport_maps that do not say what is in them.
    """

    directory: str
    main: str
    master: str
    table: str | None = None
    effective: Mapping[str, str] = {}
    routed: Mapping[str, str] = {}
    local: Mapping[str, Own] = {}
    is_taken: bool = False
    inward: Sequence[str] = ()
    unlisted: Sequence[str] = ()

    @property
    def services(self) -> str:
        """The lines of master.cf as ``postconf -M`` prints them."""
        return "".join(f"{one.value}\n" for one in entries(MASTER, self.master))

    @property
    def table_path(self) -> str:
        """Where our transport table is."""
        return f"{self.directory}/{TABLE}"


class Draft:
    """Steps, refusals and notes, in the order in which they are found."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self._texts = {MAIN: seen.main, MASTER: seen.master}
        self._steps: list[Step] = []
        self._refusals: list[str] = []
        self._notes: list[str] = []

    def made(self) -> Plan:
        """Return what it has become."""
        return Plan(tuple(self._steps), tuple(self._refusals), tuple(self._notes))

    def refuse(self, text: str) -> None:
        """Have nothing done because of *text*."""
        self._refusals.append(text)

    def note(self, text: str) -> None:
        """Tell *text*."""
        self._notes.append(text)

    def there(self, file: str, key: str) -> str | None:
        """Return the value of *key*, None where there is none; refuse where it is twice."""
        found = find(file, self._texts[file], key)
        if len(found) > 1:
            lines = ", ".join(str(one.first + 1) for one in found)
            self.refuse(
                f"{self.seen.directory}/{file} has {key} more than once, in lines"
                f" {lines}: leave one of them"
            )
        return found[-1].value if found else None

    def set(self, file: str, key: str, after: str) -> None:
        """Change an entry of main.cf or master.cf."""
        before = find(file, self._texts[file], key)
        text = before[0].text if before else None
        self._steps.append(Step(file, key, after, text))

    def write(self, step: Step) -> None:
        """Write a file of our own."""
        self._steps.append(step)
