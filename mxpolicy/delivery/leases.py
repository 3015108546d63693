"""The leases of one message: while it holds one, no other message probes that host.

A lease is a row with the time at which it was taken. It ends by itself, as its process
may die. The store is shared, and so are the leases of all processes and machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.routing.host_record import SKEW
from mxpolicy.state.change import New, change
from mxpolicy.state.store import HEAVY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mxpolicy.state.store import Store

__all__ = ["LEASED", "LENGTH", "Leases"]

# What the keys begin with; the key of what is leased follows.
LEASED = "lease "

# Seconds. A probe takes 45 at most; the lease of a process that has died is free then.
LENGTH = 60.0


class Leases:
    """Takes leases and gives them back.

    Args:
        store: No method of it may raise.
        utc: Seconds, as `time.time`.
    """

    def __init__(self, store: Store, utc: Callable[[], float]) -> None:
        self._store = store
        self._utc = utc
        self._held: dict[str, bytes] = {}

    async def take(self, key: str) -> bool:
        """Take the lease of *key*; return False when it is taken."""
        now = self._utc()
        # Heavy: it ends before all else, and would be the first to go from a full store.
        new = New(b"%.3f" % now, now + LENGTH, HEAVY)

        def step(value: bytes | None) -> New | None:
            return new if value is None or _is_stale(value, now) else None

        changed = await change(self._store, LEASED + key, step, tries=1)
        if not changed.is_ours:
            return False
        self._held[LEASED + key] = new.value
        return True

    async def take_all(self, keys: Iterable[str]) -> bool:
        """Take the leases of all *keys*, or none.

        They are taken in the order of the keys. So of two messages that want the same,
        one gets ahead.
        """
        for key in sorted(set(keys)):
            if not await self.take(key):
                await self.release()
                return False
        return True

    async def release(self) -> None:
        """Give all of them back; one that is over may be another message's now."""
        while self._held:
            await self._store.delete(*self._held.popitem())


def _is_stale(value: bytes, now: float) -> bool:
    """Return whether a lease is over, though the store has kept it.

    The clock was set back: the store would keep it until that time comes again.

    Args:
        value: When it was taken, UTC seconds in decimal.
        now: UTC seconds.
    """
    try:
        age = now - float(value)
    except ValueError:
        return True
    return not -SKEW <= age < LENGTH
