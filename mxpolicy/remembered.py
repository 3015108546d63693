"""What is remembered of a candidate, in words and as JSON, for ``hosts`` and ``route``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.broken_tls import BELIEVED
from mxpolicy.routing.host_record import NOTHING
from mxpolicy.routing.reachability import Standing, standing
from mxpolicy.terminal import age

if TYPE_CHECKING:
    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.broken_tls import BrokenTls
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.host_record import HostRecord

__all__ = ["SCHEMA", "Remembered", "address_and_port", "candidate_json", "sentences"]

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
        return f"STARTTLS fails, left out for {age(tls.since + BELIEVED - now)}"
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
    record = one.record
    found: dict[str, object | None] = {
        **one.candidate.facts(),
        "tls": tls_level,
        "nexthop": one.nexthop,
        "connect_time": record.connect_time,
        "greeting_latency": record.greeting_latency,
        "last_ready": _time(record.last_ready),
        "starttls": _word_for_tls(one.broken_tls, now),
        "small_segments": record.needs_small_segments(now) or None,
    }
    if record.verdict is not None:
        found |= {
            "verdict": record.verdict.value,
            "phase": record.phase.word,
            "full": record.full,
            "since": _time(record.since),
            "until": _time(record.since + record.pause),
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


def _word_for_tls(tls: BrokenTls | None, now: float) -> str | None:
    if tls is None:
        return None
    return "broken" if tls.is_believed(now) else "failed"


def _time(utc: float | None) -> str | None:
    """Return a time as RFC 3339 writes it, None for one that is not in the calendar."""
    if utc is None:
        return None
    try:
        return datetime.fromtimestamp(utc, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None
