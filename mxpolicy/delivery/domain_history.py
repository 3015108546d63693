"""DomainHistory that took our mail: the shell of `mxpolicy.routing.domain_record`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mxpolicy.routing.domain_record import (
    KEPT,
    after_delivery,
    after_missing,
    decode,
    encode,
    is_news,
    is_stale_usable,
    stale_mx,
)
from mxpolicy.routing.mx import Lookup, LookupStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.plan import Lookups
    from mxpolicy.routing.domain_record import DomainRecord
    from mxpolicy.state.store import Store

__all__ = ["DOMAIN", "DomainHistory", "StaleMx"]

# What the keys begin with.
DOMAIN = "domain "


class DomainHistory:
    """What is remembered of domains.

    Args:
        store: Where; no method of it may raise.
        utc: Seconds, as `time.time`.
    """

    def __init__(self, store: Store, *, utc: Callable[[], float] = time.time) -> None:
        self.store = store
        self.utc = utc

    async def record(self, domain: str) -> DomainRecord:
        """Return what is remembered of *domain*."""
        return decode(await self.store.get(DOMAIN + domain))

    async def took(self, domain: str, lookup: Lookup) -> None:
        """Remember that *domain* has taken a message, by the answer *lookup*."""
        before = await self.record(domain)
        await self._write(domain, before, after_delivery(before, lookup, self.utc()))

    async def is_stale_usable(self, domain: str) -> bool:
        """Return whether *domain*, missing in DNS, is not yet believed to be gone."""
        now = self.utc()
        before = await self.record(domain)
        if before.taken is None:
            return False
        after = after_missing(before, now)
        await self._write(domain, before, after)
        return is_stale_usable(after, now)

    async def would_be_usable(self, domain: str) -> bool:
        """Return what `is_stale_usable` would, and write nothing."""
        now = self.utc()
        before = await self.record(domain)
        return is_stale_usable(after_missing(before, now), now)

    async def _write(
        self, domain: str, before: DomainRecord, after: DomainRecord
    ) -> None:
        if is_news(before, after):
            # It is forgotten so long after it last took mail, whatever is written.
            expires = (after.taken or self.utc()) + KEPT
            await self.store.put(DOMAIN + domain, encode(after), expires)


class StaleMx:
    """Lookups in which the last MX records stand in for those that cannot be had.

    Such an answer has the failure's reason, which no other found one has.
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
        record = await self._domains.record(name)
        records = stale_mx(record, self._domains.utc())
        if not records:
            return found
        reason = found.reason or "no answer"
        return found._replace(status=LookupStatus.FOUND, records=records, reason=reason)
