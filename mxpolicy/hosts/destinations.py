"""What is remembered, by destination: whose mail suffers where a host is out of reach.

A destination is a domain that took mail in the last 14 days, with its MX records of
then. It is also a nexthop for which a host is remembered as failing. A host stands under
each domain whose MX record has the name under which it was last met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.domain_history import DOMAIN
from mxpolicy.hosts.remembered import (
    EMPTY,
    SCHEMA,
    address_and_port,
    candidate_json,
    sentences,
    time_json,
)
from mxpolicy.reply import printable
from mxpolicy.routing.domain_record import decode
from mxpolicy.terminal import BOLD, age

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.hosts.remembered import Remembered
    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.domain_record import DomainRecord
    from mxpolicy.state.store import Store
    from mxpolicy.terminal import Terminal

__all__ = ["Destination", "DestinationHost", "as_json", "read", "show", "sort_out"]

NOT_MET = "nothing is remembered of it"


class DestinationHost(NamedTuple):
    """A host of a destination.

    Attributes:
        host: Its name.
        preference: Of its MX record; None without one.
        known: What is remembered; None where nothing is.
    """

    host: str
    preference: int | None = None
    known: Remembered | None = None


class Destination(NamedTuple):
    """A domain or a nexthop; its name is empty for hosts of none that is known.

    Attributes:
        name: The domain, or the nexthop as it is remembered.
        taken, missing: As of `DomainRecord`.
        entries: Its hosts, in order of preference.
    """

    name: str
    taken: float | None = None
    missing: float | None = None
    entries: tuple[DestinationHost, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether one of its hosts is remembered as failing."""
        known = (one.known for one in self.entries)
        return any(one and one.record.verdict is not None for one in known)


async def read(store: Store) -> dict[str, DomainRecord]:
    """Return {domain: what is remembered of it}."""
    rows = await store.scan(DOMAIN)
    return {row.key.removeprefix(DOMAIN): decode(row.value) for row in rows}


def sort_out(
    found: Mapping[str, Remembered], domains: Mapping[str, DomainRecord]
) -> list[Destination]:
    """Return the destinations, those with a failing host first.

    Args:
        found: What is remembered of hosts.
        domains: What is remembered of domains.
    """
    by_name: dict[str, list[Remembered]] = {}
    by_nexthop: dict[str, list[DestinationHost]] = {}
    for one in found.values():
        host = one.candidate.host
        if one.nexthop:
            by_nexthop.setdefault(one.nexthop, []).append(
                DestinationHost(host, None, one)
            )
        else:
            by_name.setdefault(host, []).append(one)
    made = [
        Destination(name, record.taken, record.missing, _entries(name, record, by_name))
        for name, record in domains.items()
    ]
    made += [
        Destination(name, entries=tuple(entries))
        for name, entries in by_nexthop.items()
    ]
    named = {entry.host for one in made for entry in one.entries}
    others = tuple(
        DestinationHost(host, None, one)
        for host in sorted(by_name.keys() - named)
        for one in by_name[host]
    )
    made.sort(key=lambda one: (not one.fails, one.name))
    return [*made, Destination("", entries=others)] if others else made


def _entries(
    domain: str, record: DomainRecord, by_name: Mapping[str, list[Remembered]]
) -> tuple[DestinationHost, ...]:
    # Without MX records the domain itself was the host (RFC 5321 section 5.1).
    exchanges = sorted(record.exchanges, key=lambda one: one.preference)
    hosts: list[tuple[str, int | None]] = [
        (one.exchange.lower(), one.preference) for one in exchanges
    ]
    entries: list[DestinationHost] = []
    for host, preference in hosts or [(domain, None)]:
        met = by_name.get(host, [])
        entries += [DestinationHost(host, preference, one) for one in met]
        if not met:
            entries.append(DestinationHost(host, preference))
    return tuple(entries)


def show(
    sorted_out: list[Destination],
    now: float,
    options: MemoryOptions,
    terminal: Terminal,
) -> None:
    """Write the destinations with their hosts."""
    if not sorted_out:
        terminal.line(EMPTY)
    for place, one in enumerate(sorted_out):
        if place:
            terminal.line()
        terminal.line(terminal.paint(_title(one, now), BOLD))
        rows = [_row(entry, now, options) for entry in one.entries]
        terminal.table(rows, right=(0,))


def _title(one: Destination, now: float) -> str:
    if not one.name:
        return "of no destination that is remembered"
    words = [f"took mail {age(now - one.taken)} ago"] if one.taken is not None else []
    if one.missing is not None:
        words.append(f"missing in DNS for {age(now - one.missing)}")
    return printable(f"{one.name}: {', '.join(words)}" if words else one.name)


def _row(entry: DestinationHost, now: float, options: MemoryOptions) -> tuple[str, ...]:
    known = entry.known
    return (
        "-" if entry.preference is None else str(entry.preference),
        printable(entry.host or "-"),
        address_and_port(known.candidate) if known else "-",
        printable("; ".join(sentences(known, now, options))) if known else NOT_MET,
    )


def as_json(
    sorted_out: list[Destination], now: float, options: MemoryOptions
) -> dict[str, object]:
    """Return the destinations, each with candidates in the shape of route and hosts."""
    return {
        "schema": SCHEMA,
        "destinations": [
            {
                "destination": one.name or None,
                "taken": time_json(one.taken),
                "missing": time_json(one.missing),
                "hosts": [_host_json(entry, now, options) for entry in one.entries],
            }
            for one in sorted_out
        ],
    }


def _host_json(
    entry: DestinationHost, now: float, options: MemoryOptions
) -> dict[str, object]:
    known = entry.known and candidate_json(entry.known, now, options)
    return {"host": entry.host, "preference": entry.preference, "known": known}
