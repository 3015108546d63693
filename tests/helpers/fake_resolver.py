"""A resolver that is a table."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["FakeResolver"]


class FakeResolver:
    """Answers from its tables; what is in none of them does not exist.

    Args:
        mx: Domain -> (preference, exchange) pairs.
        a: Name -> IPv4 addresses.
        aaaa: Name -> IPv6 addresses.
        empty: Names that exist without any of these.
        fail: ``"MX example.com"``: lookups that fail.
        slow: ``"AAAA mx.example.com"`` -> seconds until the answer.
    """

    def __init__(
        self,
        mx: Mapping[str, Sequence[tuple[int, str]]] | None = None,
        a: Mapping[str, Sequence[str]] | None = None,
        aaaa: Mapping[str, Sequence[str]] | None = None,
        *,
        empty: Collection[str] = (),
        fail: Collection[str] = (),
        slow: Mapping[str, float] | None = None,
    ) -> None:
        self.mx = dict(mx or {})
        self.addresses = {"A": dict(a or {}), "AAAA": dict(aaaa or {})}
        self.empty = frozenset(empty)
        self.fail = frozenset(fail)
        self.slow = dict(slow or {})
        self.asked: list[str] = []
        self.most_at_once = 0
        self._at_once = 0

    async def lookup(
        self, name: str, rdtype: str, within: float | None = None
    ) -> Lookup:
        """Answer from the tables."""
        question = f"{rdtype} {name}"
        self.asked.append(question)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(self.slow.get(question, 0))
        finally:
            self._at_once -= 1
        if question in self.fail:
            return Lookup(name, rdtype, LookupStatus.FAILED, reason="SERVFAIL")
        records = self._records(name, rdtype)
        if records:
            return Lookup(name, rdtype, LookupStatus.FOUND, records)
        exists = (
            name in self.empty
            or name in self.mx
            or any(name in table for table in self.addresses.values())
        )
        status = LookupStatus.NODATA if exists else LookupStatus.NXDOMAIN
        return Lookup(name, rdtype, status)

    def _records(
        self, name: str, rdtype: str
    ) -> tuple[MxRecord, ...] | tuple[str, ...]:
        if rdtype == "MX":
            return tuple(MxRecord(*pair) for pair in self.mx.get(name, ()))
        return tuple(self.addresses[rdtype].get(name, ()))
