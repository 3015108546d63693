"""What is remembered of a host, in words and as JSON: ``hosts`` and ``route`` show it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mxpolicy.routing.broken_tls import BELIEVED
from mxpolicy.routing.reachability import Standing, standing

if TYPE_CHECKING:
    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.broken_tls import BrokenTls
    from mxpolicy.routing.host_record import HostRecord

__all__ = ["facts", "sentences"]


def sentences(
    record: HostRecord,
    now: float,
    options: MemoryOptions,
    nexthop: str = "",
    tls: BrokenTls | None = None,
) -> list[str]:
    """Return what is known and what follows from it, at least one of each.

    Args:
        record: What is remembered.
        now: UTC seconds.
        options: For the pauses.
        nexthop: What it is limited to; empty for what holds for all mail.
        tls: What is known of broken STARTTLS.
    """
    known = []
    if record.verdict is not None:
        where = f" for {nexthop}" if nexthop else ""
        doubt = "" if record.full else ", in doubt"
        known.append(
            f"{record.verdict.value} ({record.phase.word}, {record.waited:.1f}s)"
            f"{doubt}{where} {_span(now - record.since)} ago"
        )
        known.append(_meaning(record, now, options))
        if record.said:
            known.append(f"said: {record.said}")
    elif record.last_ready is not None:
        known.append(f"ready {_span(now - record.last_ready)} ago")
    if tls is not None:
        known.append(_meaning_of_tls(tls, now))
    if record.needs_small_segments(now):
        known.append("needs small segments")
    return known or ["nothing bad"]


def _meaning(record: HostRecord, now: float, options: MemoryOptions) -> str:
    if record.is_lone_doubt:
        return "asked in its turn until another message meets the same"
    match standing(record, now, options):
        case Standing.PAUSED:
            return f"asked last for {_span(record.since + record.pause - now)}"
        case Standing.DUE:
            return "asked last, the next message looks after it"
        case Standing.UNKNOWN:
            return "too long ago to matter"


def _meaning_of_tls(tls: BrokenTls, now: float) -> str:
    if tls.is_believed(now):
        return f"STARTTLS fails, left out for {_span(tls.since + BELIEVED - now)}"
    return f"STARTTLS failed {_span(now - tls.since)} ago, tried again"


def _span(seconds: float) -> str:
    """Return a time in the largest unit of which it has two: ``90s``, ``3h``."""
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def facts(
    record: HostRecord, now: float, options: MemoryOptions, tls: BrokenTls | None = None
) -> dict[str, object]:
    """Return the members of a candidate's JSON object; what is not known is absent."""
    found: dict[str, object | None] = {
        "connect_time": record.connect_time,
        "greeting_latency": record.greeting_latency,
        "last_ready": _time(record.last_ready),
        "starttls": _word_for_tls(tls, now),
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
            "text": record.said or None,
        }
    return {name: value for name, value in found.items() if value is not None}


def _word_for_tls(tls: BrokenTls | None, now: float) -> str | None:
    if tls is None:
        return None
    return "broken" if tls.is_believed(now) else "failed"


def _time(utc: float | None) -> str | None:
    """Return a time as RFC 3339 says, None for what is no time of this calendar."""
    if utc is None:
        return None
    try:
        return datetime.fromtimestamp(utc, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None
