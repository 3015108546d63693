"""What is remembered of hosts: read from the store, cleared, and put into words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.host_memory import HOST, NEXTHOP, TLS
from mxpolicy.delivery.journal import aim_of
from mxpolicy.delivery.leases import LEASED
from mxpolicy.reply import printable
from mxpolicy.routing import broken_tls
from mxpolicy.routing.candidate import DIRECT, Candidate
from mxpolicy.routing.host_record import NOTHING, decode
from mxpolicy.routing.reachability import Standing, standing
from mxpolicy.terminal import BOLD, age, milliseconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.broken_tls import BrokenTls
    from mxpolicy.routing.host_record import HostRecord
    from mxpolicy.state.store import Store, Stored
    from mxpolicy.terminal import Terminal

__all__ = [
    "EMPTY",
    "SCHEMA",
    "Remembered",
    "address_and_port",
    "as_json",
    "candidate_json",
    "clear",
    "read",
    "sentences",
    "show",
    "time_json",
]

EMPTY = "Nothing is remembered."

# Of the JSON that route and hosts show.
SCHEMA = 1


class Remembered(NamedTuple):
    """A candidate, and what is remembered of it.

    Attributes:
        candidate: Its host may be empty; its preference is meant only with a plan.
        record: What is remembered.
        nexthop: What *record* is limited to; empty for what holds for all mail.
        broken_tls: What is known of broken STARTTLS.
    """

    candidate: Candidate
    record: HostRecord = NOTHING
    nexthop: str = ""
    broken_tls: BrokenTls | None = None


# -- the store -----------------------------------------------------------------


async def read(store: Store) -> dict[str, Remembered]:
    """Return {key: what is remembered} about hosts; first what holds for all mail."""
    prefixes = HOST, NEXTHOP, TLS
    rows = [row for prefix in prefixes for row in await store.scan(prefix)]
    found = {row.key: _remembered(row) for row in rows}
    return {key: one for key, one in found.items() if one is not None}


def _remembered(row: Stored) -> Remembered | None:
    head, _, tail = row.key.rpartition(HOST)
    words = tail.split(" ")
    if len(words) != 3 or not words[2].isdecimal():
        return None
    candidate = Candidate("", words[1], int(words[2]), egress=words[0])
    if head.startswith(TLS):
        candidate = candidate._replace(host=head.removeprefix(TLS).rstrip(" "))
        return Remembered(candidate, broken_tls=broken_tls.decode(row.value))
    record = decode(row.value)
    nexthop = head.removeprefix(NEXTHOP).rstrip(" ")
    return Remembered(candidate._replace(host=record.name), record, nexthop)


async def clear(store: Store, name: str | None) -> int:
    """Forget what *name* means, or everything; return how much that was."""
    found = await read(store)
    chosen = [key for key, one in found.items() if name is None or _means(name, one)]
    for key in chosen:
        await store.delete(key)
        await store.delete(LEASED + key)
    return len(chosen)


def _means(name: str, one: Remembered) -> bool:
    """Return whether *name* names *one*: its host, its address or its nexthop."""
    name, candidate = name.lower().rstrip("."), one.candidate
    names = candidate.host, candidate.address, address_and_port(candidate)
    is_nexthop = one.nexthop in {name, aim_of(name, candidate.port)}
    return bool(name) and (name in names or is_nexthop)


# -- what is shown ---------------------------------------------------------------


def show(
    found: Mapping[str, Remembered],
    now: float,
    options: MemoryOptions,
    terminal: Terminal,
) -> None:
    """Write what was `read` as a table, the hosts that fail first."""
    if not found:
        terminal.line(EMPTY)
        return
    failing = {key for key, one in found.items() if one.record.verdict is not None}
    text = f"{len(found)} remembered, {len(failing)} of them as failing"
    terminal.line(terminal.paint(text, BOLD))
    ordered = sorted(found, key=lambda key: (key not in failing, key))
    heads = ("host", "address", "connects", "greets", "what is known")
    rows = [heads, *(_row(found[key], now, options) for key in ordered)]
    terminal.table(rows, right=(2, 3))


def _row(one: Remembered, now: float, options: MemoryOptions) -> tuple[str, ...]:
    candidate, record = one.candidate, one.record
    way = "" if candidate.egress == DIRECT else f" by {candidate.egress}"
    times = record.connect_time, record.greeting_latency
    return (
        candidate.host or "-",
        f"{address_and_port(candidate)}{way}",
        *("-" if time is None else milliseconds(time) for time in times),
        printable("; ".join(sentences(one, now, options))),
    )


def as_json(
    found: Mapping[str, Remembered], now: float, options: MemoryOptions
) -> dict[str, object]:
    """Return what was `read` in the shape that ``route`` has, too."""
    candidates = [candidate_json(one, now, options) for one in found.values()]
    return {"schema": SCHEMA, "candidates": candidates}


# -- one candidate, for `mxpolicy.route`, too -------------------------------------


def sentences(one: Remembered, now: float, options: MemoryOptions) -> list[str]:
    """Return what is known of *one* and what follows from it, at least one sentence.

    Args:
        one: What is remembered.
        now: UTC seconds.
        options: For the pauses.
    """
    record = one.record
    known = []
    if record.verdict is not None:
        where = f" for {one.nexthop}" if one.nexthop else ""
        doubt = "" if record.full else ", in doubt"
        known.append(
            f"{record.verdict.value} ({record.phase.word}, {record.waited:.1f}s)"
            f"{doubt}{where} {age(now - record.since)} ago"
        )
        known.append(_meaning(record, now, options))
        if record.said:
            known.append(f"said: {record.said}")
    elif record.last_ready is not None:
        known.append(f"ready {age(now - record.last_ready)} ago")
    if one.broken_tls is not None:
        known.append(_meaning_of_tls(one.broken_tls, now))
    if record.needs_small_segments(now):
        known.append("needs small segments")
    return known or ["nothing bad"]


def _meaning(record: HostRecord, now: float, options: MemoryOptions) -> str:
    if record.is_lone_doubt:
        return "asked in its turn until another message meets the same"
    match standing(record, now, options):
        case Standing.PAUSED:
            return f"asked last for {age(record.since + record.pause - now)}"
        case Standing.DUE:
            return "asked last, the next message looks after it"
        case Standing.UNKNOWN:
            return "too long ago to matter"


def _meaning_of_tls(tls: BrokenTls, now: float) -> str:
    if tls.is_believed(now):
        return (
            f"STARTTLS fails, left out for {age(tls.since + broken_tls.BELIEVED - now)}"
        )
    return f"STARTTLS failed {age(now - tls.since)} ago, tried again"


def candidate_json(
    one: Remembered, now: float, options: MemoryOptions, tls_level: str | None = None
) -> dict[str, object]:
    """Return *one* in the shape of route and hosts, without empty members.

    Args:
        one: The candidate, and what is remembered of it.
        now: UTC seconds.
        options: For the pauses.
        tls_level: By the plan; None where there is no plan.
    """
    record, tls = one.record, one.broken_tls
    found: dict[str, object | None] = {
        **one.candidate.facts(),
        "tls": tls_level,
        "nexthop": one.nexthop,
        "connect_time": record.connect_time,
        "greeting_latency": record.greeting_latency,
        "last_ready": time_json(record.last_ready),
        "starttls": tls and ("broken" if tls.is_believed(now) else "failed"),
        "small_segments": record.needs_small_segments(now) or None,
    }
    if record.verdict is not None:
        found |= {
            "verdict": record.verdict.value,
            "phase": record.phase.word,
            "full": record.full,
            "since": time_json(record.since),
            "until": time_json(record.since + record.pause),
            "standing": standing(record, now, options).value,
            "text": record.said,
        }
    if tls_level is None:
        del found["preference"]
    return {name: value for name, value in found.items() if value not in (None, "")}


def address_and_port(candidate: Candidate) -> str:
    """Return ``192.0.2.1:25``, or ``[2001:db8::1]:25``."""
    address = f"[{candidate.address}]" if candidate.is_ipv6 else candidate.address
    return f"{address}:{candidate.port}"


def time_json(utc: float | None) -> str | None:
    """Return a time as RFC 3339 writes it, None for one that is not in the calendar."""
    if utc is None:
        return None
    try:
        return datetime.fromtimestamp(utc, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None
