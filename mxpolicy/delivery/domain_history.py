"""Domains that took our mail: the shell of `mxpolicy.routing.domain_record`."""

from __future__ import annotations

import time
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.delivery import trouble
from mxpolicy.outcome import Bounced
from mxpolicy.routing.domain_record import (
    KEPT,
    UNKNOWN_DOMAIN,
    after_delivery,
    after_missing,
    decode,
    encode,
    is_missing,
    is_news,
    is_stale_usable,
    stale_mx,
)
from mxpolicy.routing.mx import Lookup, LookupStatus
from mxpolicy.state.change import New, change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mxpolicy.delivery.plan import Lookups
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.domain_record import DomainRecord
    from mxpolicy.routing.mx import MxRecord
    from mxpolicy.state.store import Store

__all__ = ["DOMAIN", "DomainHistory", "StaleMx"]

# What the keys begin with.
DOMAIN = "domain "

# Seconds for which what was read or written last stands for the row in the store: a
# domain that takes mail all day is read once in that time.
_FRESH = 60.0
# Domains of which that is known; all are forgotten when there are more.
_MAX_KNOWN = 10_000


class DomainHistory:
    """What is remembered of domains.

    Args:
        store: Where; no method of it may raise.
        utc: Seconds, as `time.time`.
    """

    def __init__(self, store: Store, *, utc: Callable[[], float] = time.time) -> None:
        self._store = store
        self._utc = utc
        # The domain, what was read or written last, and when: UTC seconds.
        self._known: dict[str, tuple[DomainRecord, float]] = {}

    async def record(self, domain: str) -> DomainRecord:
        """Return what is remembered of *domain*."""
        return decode(await self._store.get(DOMAIN + domain))

    async def stale_mx(self, domain: str) -> tuple[MxRecord, ...]:
        """Return the MX records to use while DNS does not answer; may be empty."""
        return stale_mx(await self.record(domain), self._utc())

    async def took(self, domain: str, lookups: Iterable[Lookup]) -> None:
        """Remember that *domain* has taken a message, by its MX records in *lookups*."""
        now = self._utc()
        for one in lookups:
            if one.rdtype == "MX" and one.name == domain:
                step = partial(after_delivery, lookup=one, now=now)
                known, at = self._known.get(domain, (UNKNOWN_DOMAIN, -inf))
                is_fresh = 0 <= now - at < _FRESH
                if not is_fresh or is_news(known, step(known)):
                    await self._change(domain, step)

    async def unless_stale(
        self, domain: str, refusal: Outcome, *, note: bool = True
    ) -> Outcome:
        """Return *refusal*, as a deferral where *domain* took mail lately.

        Args:
            domain: The domain in the plan; empty where the operator wrote the nexthop.
            refusal: The plan's.
            note: Whether to remember that the domain is missing.
        """
        if not domain or not isinstance(refusal, Bounced) or not is_missing(refusal):
            return refusal
        now = self._utc()
        record = await self.record(domain)
        if note and record.taken is not None:
            record = await self._change(domain, partial(after_missing, now=now))
        if not is_stale_usable(after_missing(record, now), now):
            return refusal
        text = (
            f"{refusal.text}; it took mail not long ago, so this is doubted for a day"
        )
        return trouble.soft(refusal)._replace(text=trouble.one_line(text))

    async def _change(
        self, domain: str, after: Callable[[DomainRecord], DomainRecord]
    ) -> DomainRecord:
        """Return the record after the change, or the last one seen."""

        def step(value: bytes | None) -> New | None:
            before = decode(value)
            record = after(before)
            if not is_news(before, record):
                return None
            # The time counts from the last mail that it took, not from this write.
            return New(encode(record), (record.taken or self._utc()) + KEPT)

        record = decode((await change(self._store, DOMAIN + domain, step)).value)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[domain] = record, self._utc()
        return record


class StaleMx:
    """Lookups that give the last MX records where DNS does not answer.

    Only such an answer is FOUND and has a reason: that of the failure.
    """

    def __init__(self, lookups: Lookups, domains: DomainHistory) -> None:
        self._lookups = lookups
        self._domains = domains

    async def lookup(
        self, name: str, rdtype: str, within: float | None = None
    ) -> Lookup:
        """See `mxpolicy.delivery.plan.Lookups`."""
        found = await self._lookups.lookup(name, rdtype, within)
        if rdtype != "MX" or found.status is not LookupStatus.FAILED:
            return found
        records = await self._domains.stale_mx(name)
        if not records:
            return found
        reason = found.reason or "no answer"
        return found._replace(status=LookupStatus.FOUND, records=records, reason=reason)
