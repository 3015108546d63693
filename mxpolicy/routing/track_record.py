"""What is remembered of a domain that took our mail, for when DNS says otherwise. Pure.

A registrar's or a name server's mishap must not bounce a day of mail: a domain that
has just taken some, and of which DNS now says that it does not exist, has no address
or takes no mail, is deferred for a day before that is believed. And while DNS does
not answer at all, the MX records by which mail was last taken serve for a day; what
a host refuses then is no bounce, for it may be theirs no more.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.outcome import Bounced
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.mx import LookupStatus, MxRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.mx import Lookup

__all__ = [
    "KEPT",
    "NO_TRACK",
    "TrackRecord",
    "after_delivery",
    "after_missing",
    "decode",
    "encode",
    "is_missing",
    "is_news",
    "is_reprieved",
    "is_stand_in",
    "stand_in",
]

DAY = 86400.0

# For so long a domain that took our mail is trusted to be there.
KEPT = 14 * DAY
# For so long it may be missing before it is believed to be gone.
REPRIEVE = DAY
# For so long its MX records stand in for those that cannot be had.
STAND_IN = DAY

# A domain that takes mail all day is written down again after this time.
NEWS_EVERY = 3600.0

MAX_RECORDS = 20

# No such domain; null MX; no host with an address. Not 5.4.6: a loop is our own.
_MISSING = frozenset(
    {EnhancedStatus(5, 1, 2), EnhancedStatus(5, 1, 10), EnhancedStatus(5, 4, 4)}
)


class TrackRecord(NamedTuple):
    """What is remembered of a domain.

    Attributes:
        taken: When it last took our mail, UTC seconds; None when it never did.
        missing: Since when DNS says that it takes none.
        seen: When DNS last gave the MX records by which mail was taken.
        exchanges: These; empty for an implicit MX.
    """

    taken: float | None = None
    missing: float | None = None
    seen: float | None = None
    exchanges: tuple[MxRecord, ...] = ()


NO_TRACK = TrackRecord()


def is_missing(refusal: Outcome | None) -> bool:
    """Return whether *refusal* of a plan says that the domain takes no mail at all."""
    return isinstance(refusal, Bounced) and refusal.status in _MISSING


def after_delivery(record: TrackRecord, lookup: Lookup, now: float) -> TrackRecord:
    """Return what is remembered after the domain has taken a message.

    Args:
        record: What was remembered before.
        lookup: The answer about its MX records that led there.
        now: UTC seconds.
    """
    record = record._replace(taken=now, missing=None)
    if is_stand_in(lookup):
        return record
    usable = [one for one in lookup.exchanges if _is_plain(one.exchange)]
    return record._replace(seen=now, exchanges=tuple(usable[:MAX_RECORDS]))


def _is_plain(exchange: str) -> bool:
    return exchange.isascii() and exchange.isprintable() and not set(exchange) & {*" ,"}


def after_missing(record: TrackRecord, now: float) -> TrackRecord:
    """Return what is remembered after DNS has said that the domain takes no mail."""
    since = now if record.missing is None else min(record.missing, now)
    return record._replace(missing=since)


def is_news(before: TrackRecord, after: TrackRecord) -> bool:
    """Return whether the difference is worth being written."""
    if (before.missing, before.exchanges) != (after.missing, after.exchanges):
        return True
    return abs((after.taken or 0.0) - (before.taken or 0.0)) >= NEWS_EVERY


def is_reprieved(record: TrackRecord, now: float) -> bool:
    """Return whether the domain is not yet believed to be gone."""
    if record.taken is None or not 0 <= now - record.taken < KEPT:
        return False
    return record.missing is None or now - record.missing < REPRIEVE


def stand_in(record: TrackRecord, now: float) -> tuple[MxRecord, ...]:
    """Return the MX records to use while DNS gives none; empty when there are none."""
    if record.seen is None or not 0 <= now - record.seen < STAND_IN:
        return ()
    return record.exchanges


def is_stand_in(lookup: Lookup) -> bool:
    """Return whether *lookup* was made from memory: found, and still a reason why not."""
    return lookup.status is LookupStatus.FOUND and bool(lookup.reason)


# -- bytes ----------------------------------------------------------------------

_VERSION = "1"


def encode(record: TrackRecord) -> bytes:
    """Return *record* as a store keeps it."""
    times = (record.taken, record.missing, record.seen)
    words = [_VERSION, *("-" if one is None else f"{one:.0f}" for one in times)]
    words.append(
        ",".join(f"{one.preference}:{one.exchange}" for one in record.exchanges)
    )
    return " ".join(words).encode("ascii", "replace")


def decode(value: bytes | None) -> TrackRecord:
    """Return what was encoded; `NO_TRACK` for what cannot be understood."""
    words = (value or b"").decode("ascii", "replace").split(" ")
    if len(words) != 5 or words[0] != _VERSION:
        return NO_TRACK
    try:
        taken, missing, seen = map(_time, words[1:4])
        return TrackRecord(taken, missing, seen, _records(words[4].split(",")))
    except ValueError:
        return NO_TRACK


def _time(word: str) -> float | None:
    if word == "-":
        return None
    value = float(word)
    if not isfinite(value):
        raise ValueError(word)
    return value


def _records(words: Sequence[str]) -> tuple[MxRecord, ...]:
    pairs = [word.partition(":") for word in words if word]
    return tuple(MxRecord(int(preference), name) for preference, _, name in pairs)
