"""Compare-and-set: one row changed by many writers, and no change lost.

A *step* is a pure function from the value that is there to the row that shall be there.
`change` reads, takes the step, and writes only if the row is still the one that was
read. When another writer was faster, it begins again.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.state.store import Store

    Step = Callable[[bytes | None], "New | None"]

__all__ = ["TRIES", "Change", "Changed", "New", "change", "compare_and_set"]

# Of several writers at the same time one wins each time.
TRIES = 4


class New(NamedTuple):
    """A row that shall be there.

    Attributes:
        value: What it holds.
        expires: When it ends, UTC seconds.
        weight: See `mxpolicy.state.store.Store`.
    """

    value: bytes
    expires: float
    weight: int | None = None


class Change(Enum):
    """What came of a change."""

    DONE = "written by us"
    UNNEEDED = "the step left the row as it was"
    FAILED = "not written: others were faster each time, or the store gives no answer"


class Changed(NamedTuple):
    """What came of a change, and what is there now.

    Attributes:
        change: What came of it.
        value: What is there, as far as it is known; None for no row.
    """

    change: Change
    value: bytes | None


async def compare_and_set(store: Store, key: str, old: bytes | None, new: New) -> bool:
    """Write *new* if *old* is there, or nothing where *old* is None.

    Returns:
        Whether it was written. A `mxpolicy.state.fallback.FallbackStore` says no also
        for what it has perhaps written.
    """
    value, expires, weight = new
    if old is None:
        return await store.add(key, value, expires, weight=weight)
    return await store.replace(key, old, value, expires, weight=weight)


async def change(store: Store, key: str, step: Step, tries: int = TRIES) -> Changed:
    """Replace the row of *key* by what *step* makes of its value.

    Args:
        store: Where.
        key: Of the row.
        step: Takes the value, None for no row; returns the new row, None to leave it as
            it is. It may be called *tries* times. A write without an answer counts as
            not done. So the step may meet what it made itself, and should leave that.
        tries: How often at most.
    """
    value = None
    for _ in range(tries):
        value = await store.get(key)
        new = step(value)
        if new is None:
            return Changed(Change.UNNEEDED, value)
        if await compare_and_set(store, key, value, new):
            return Changed(Change.DONE, new.value)
    return Changed(Change.FAILED, value)
