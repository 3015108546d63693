"""What is remembered of a domain that took our mail, for when DNS says otherwise. Pure.

A mishap at a registrar or a name server must not bounce a day of mail. A domain took our
mail lately, and now DNS says that it does not exist, has no address or takes no mail. Its
mail is deferred for a day. Only then DNS is believed.

When DNS does not answer at all, the MX records by which mail was last taken serve for a
day. A refusal by a host does not bounce then, as the domain may have left that host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.outcome import Bounced
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.mx import LookupStatus, MxRecord
from mxpolicy.routing.record_format import WHOLE, Field, RecordFormat, optional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.mx import Lookup

__all__ = [
    "KEPT",
    "UNKNOWN_DOMAIN",
    "DomainRecord",
    "after_delivery",
    "after_missing",
    "decode",
    "encode",
    "is_missing",
    "is_news",
    "is_stale",
    "is_stale_usable",
    "stale_mx",
]

DAY = 86400.0

# Seconds for which a domain that took our mail is trusted to be there.
KEPT = 14 * DAY
# Seconds for which it may be missing before it is believed to be gone.
DOUBTED = DAY
# Seconds for which its last MX records are used while DNS does not answer.
STALE = DAY

# Seconds after which a domain that takes mail all day is written again.
NEWS_EVERY = 3600.0

MAX_RECORDS = 20

# No such domain; null MX; no host with an address. Not 5.4.6: a loop is our own.
_MISSING = frozenset(
    {EnhancedStatus(5, 1, 2), EnhancedStatus(5, 1, 10), EnhancedStatus(5, 4, 4)}
)


class DomainRecord(NamedTuple):
    """What is remembered of a domain.

    Attributes:
        taken: When it last took our mail, UTC seconds; None when it never did.
        missing: Since when DNS says that it takes none.
        seen: When DNS last gave the MX records by which mail was taken.
        exchanges: These records; empty for an implicit MX.
    """

    taken: float | None = None
    missing: float | None = None
    seen: float | None = None
    exchanges: tuple[MxRecord, ...] = ()


UNKNOWN_DOMAIN = DomainRecord()


def is_missing(refusal: Outcome | None) -> bool:
    """Return whether *refusal* of a plan says that the domain takes no mail at all."""
    return isinstance(refusal, Bounced) and refusal.status in _MISSING


def after_delivery(record: DomainRecord, lookup: Lookup, now: float) -> DomainRecord:
    """Return what is remembered after the domain has taken a message.

    Args:
        record: What was remembered before.
        lookup: The answer about its MX records that led there.
        now: UTC seconds.
    """
    record = record._replace(taken=now, missing=None)
    if is_stale(lookup):
        return record
    usable = [one for one in lookup.exchanges if _is_plain(one.exchange)]
    return record._replace(seen=now, exchanges=tuple(usable[:MAX_RECORDS]))


def _is_plain(exchange: str) -> bool:
    return exchange.isascii() and exchange.isprintable() and not set(exchange) & {*" ,"}


def after_missing(record: DomainRecord, now: float) -> DomainRecord:
    """Return what is remembered after DNS has said that the domain takes no mail."""
    since = now if record.missing is None else min(record.missing, now)
    return record._replace(missing=since)


def is_news(before: DomainRecord, after: DomainRecord) -> bool:
    """Return whether the difference is worth a write."""
    if (before.missing, before.exchanges) != (after.missing, after.exchanges):
        return True
    return abs((after.taken or 0.0) - (before.taken or 0.0)) >= NEWS_EVERY


def is_stale_usable(record: DomainRecord, now: float) -> bool:
    """Return whether a domain that is missing in DNS still counts as being there."""
    if record.taken is None or not 0 <= now - record.taken < KEPT:
        return False
    return record.missing is None or now - record.missing < DOUBTED


def stale_mx(record: DomainRecord, now: float) -> tuple[MxRecord, ...]:
    """Return the MX records to use while DNS gives none; may be empty."""
    if record.seen is None or not 0 <= now - record.seen < STALE:
        return ()
    return record.exchanges


def is_stale(lookup: Lookup) -> bool:
    """Return whether *lookup* was made from memory: it is found, and says why it failed."""
    return lookup.status is LookupStatus.FOUND and bool(lookup.reason)


# -- bytes ----------------------------------------------------------------------


def _write_exchanges(exchanges: Iterable[MxRecord]) -> str:
    return ",".join(f"{one.preference}:{one.exchange}" for one in exchanges)


def _read_exchanges(word: str) -> tuple[MxRecord, ...]:
    if not _is_plain(word.replace(",", "")):
        raise ValueError(word)
    pairs = [one.partition(":") for one in word.split(",") if one]
    return tuple(MxRecord(int(preference), name) for preference, _, name in pairs)


_EXCHANGES = Field(_write_exchanges, _read_exchanges)
_FORMAT = RecordFormat(DomainRecord, "1", *[optional(WHOLE)] * 3, _EXCHANGES)

encode: Callable[[DomainRecord], bytes] = _FORMAT.encode


def decode(value: bytes | None) -> DomainRecord:
    """Return what was encoded; `UNKNOWN_DOMAIN` for what cannot be understood."""
    return _FORMAT.decode(value) or UNKNOWN_DOMAIN
