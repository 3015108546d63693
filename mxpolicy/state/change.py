"""Compare-and-set: one row changed by many writers, and no change lost.

A *step* is a pure function from the value that is there to the row to be written.
`change` reads, takes the step, and writes only if the row is still the one that it
read. When another writer was faster, it begins again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.state.store import Store

    Step = Callable[[bytes | None], "New | None"]

__all__ = ["TRIES", "Changed", "New", "change"]

# Of several writers at the same time, one wins each time.
TRIES = 4


class New(NamedTuple):
    """A row to be written; attributes as of `mxpolicy.state.store.Stored`."""

    value: bytes
    expires: float
    weight: int | None = None


class Changed(NamedTuple):
    """What came of a change.

    Attributes:
        is_ours: The new row was written. Else the step left the row as it was, another
            writer was faster each time, or the store gives no answer.
        value: What is there, as far as it is known.
    """

    is_ours: bool
    value: bytes | None


async def change(store: Store, key: str, step: Step, tries: int = TRIES) -> Changed:
    """Replace the row of *key* by what *step* makes of its value.

    Args:
        step: Takes the value, None for no row. Returns the new row, or None to leave
            it as it is. It may be called *tries* times. A write without an answer counts
            as not done. So the step may meet its own row, and should leave that.
    """
    value = None
    for _ in range(tries):
        value = await store.get(key)
        new = step(value)
        if new is None:
            break
        if await store.replace(key, value, *new):
            return Changed(True, new.value)
    return Changed(False, value)
