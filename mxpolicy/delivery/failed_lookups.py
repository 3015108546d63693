"""Lookups of hosts that fail: the shell of `mxpolicy.routing.unresolved`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mxpolicy.routing.unresolved import (
    KEPT,
    after_failure,
    decode,
    encode,
    is_news,
    is_soft,
    that_matter,
)
from mxpolicy.state.change import New, change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mxpolicy.delivery.plan import Plan
    from mxpolicy.routing.unresolved import Unresolved
    from mxpolicy.state.store import Store

__all__ = ["LOOKUP", "FailedLookups"]

# What the keys begin with.
LOOKUP = "lookup "

# Seconds to wait for a slow store: a bounce may depend on it.
_PATIENCE = 10.0


class FailedLookups:
    """What is remembered of lookups that failed.

    Without a memory that outlives this process none is known.

    Args:
        store: Where; no method of it may raise.
        utc: Seconds, as `time.time`.
    """

    def __init__(self, store: Store, *, utc: Callable[[], float] = time.time) -> None:
        self._store = store
        self._utc = utc

    async def recent(self, plan: Plan, *, note: bool = True) -> tuple[Unresolved, ...]:
        """Return the unresolved hosts of *plan* whose lookups began to fail lately.

        They are waited for. A failure that the store does not keep is not: that wait
        would never end.

        Args:
            plan: A fresh one.
            note: Whether to write its failures to the store.
        """
        if not self._store.is_kept(LOOKUP):
            return ()
        now = self._utc()
        matter = that_matter(plan.unresolved, plan.candidates)
        keys = {one: _key(one.rdtype, one.name) for one in matter}
        if note:
            await self._note(plan, keys.values(), now)
        rows = await self._store.patient(_PATIENCE).get_many(keys.values())
        recent = tuple(
            one
            for one, key in keys.items()
            if (key in rows or not note)
            and is_soft(after_failure(decode(rows.get(key)), now), now)
        )
        # A store may turn out to be away only when it is asked.
        return recent if self._store.is_kept(LOOKUP) else ()

    async def _note(self, plan: Plan, failed: Iterable[str], now: float) -> None:
        def step(value: bytes | None) -> New | None:
            before = decode(value)
            after = after_failure(before, now)
            return New(encode(after), now + KEPT) if is_news(before, after) else None

        if plan.unresolved or _has_several(plan):
            for key in await self._store.get_many(_resolved(plan)):
                await self._store.delete(key)
        for key in failed:
            await change(self._store.patient(_PATIENCE), key, step)


def _key(rdtype: str, name: str) -> str:
    return f"{LOOKUP}{rdtype} {name}"


def _has_several(plan: Plan) -> bool:
    """Return whether more than one host was looked up; else none can be better."""
    names: dict[str, set[str]] = {"MX": set(), "A": set(), "AAAA": set()}
    for lookup in plan.lookups:
        names[lookup.rdtype].add(lookup.name)
    return any(len(each) > 1 for each in names.values())


def _resolved(plan: Plan) -> set[str]:
    """Return the keys of all that was looked up with success."""
    failed = {_key(one.rdtype, one.name) for one in plan.unresolved}
    asked = {
        _key("MX" if one.rdtype == "MX" else "A", one.name) for one in plan.lookups
    }
    return asked - failed
