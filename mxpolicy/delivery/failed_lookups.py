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
    from collections.abc import Callable

    from mxpolicy.delivery.plan import Plan
    from mxpolicy.routing.unresolved import FailedSince, Unresolved
    from mxpolicy.state.store import Store

__all__ = ["LOOKUP", "FailedLookups"]

# What the keys begin with.
LOOKUP = "lookup "

# Seconds for a store that is slow: a bounce may depend on it.
_PATIENCE = 10.0


class FailedLookups:
    """What is remembered of lookups that failed.

    Without a memory that outlives this process nothing is known of them.

    Args:
        store: Where; no method of it may raise.
        utc: Seconds, as `time.time`.
    """

    def __init__(self, store: Store, *, utc: Callable[[], float] = time.time) -> None:
        self._store = store
        self._utc = utc

    async def note(self, plan: Plan) -> tuple[Unresolved, ...]:
        """Remember what *plan* has met; return the hosts that are to be waited for.

        These are the unresolved ones whose lookups have not failed for long. A failure
        that the store does not keep does not count: waiting for it would never end.
        """
        if self._store.is_memory_only or not (plan.unresolved or _has_several(plan)):
            return ()
        for key in await self._store.get_many(_resolved(plan)):
            await self._store.delete(key)
        now = self._utc()
        soft = []
        for one in that_matter(plan.unresolved, plan.candidates):
            since = await self._note_failure(one, now)
            if since is not None and is_soft(since, now):
                soft.append(one)
        # A store may turn out to be away only when it is asked.
        return () if self._store.is_memory_only else tuple(soft)

    async def would_note(self, plan: Plan) -> tuple[Unresolved, ...]:
        """Return what `note` would, and write nothing."""
        if self._store.is_memory_only:
            return ()
        now = self._utc()
        keys = {
            one: _key(one.rdtype, one.name)
            for one in that_matter(plan.unresolved, plan.candidates)
        }
        rows = await self._store.get_many(keys.values())
        return tuple(
            one
            for one, key in keys.items()
            if is_soft(after_failure(decode(rows.get(key)), now), now)
        )

    async def _note_failure(self, one: Unresolved, now: float) -> FailedSince | None:
        """Return since when it fails; None when that cannot be kept."""

        def step(value: bytes | None) -> New | None:
            before = decode(value)
            after = after_failure(before, now)
            return New(encode(after), now + KEPT) if is_news(before, after) else None

        store = self._store.patient(_PATIENCE)
        return decode((await change(store, _key(one.rdtype, one.name), step)).value)


def _key(rdtype: str, name: str) -> str:
    return f"{LOOKUP}{rdtype} {name}"


def _has_several(plan: Plan) -> bool:
    """Return whether more than one host was looked up; else nothing can be better."""
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
