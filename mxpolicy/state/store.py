"""The store: small values by key, each with an end; shared by all who open it.

Values are bytes, and what they mean is the business of pure modules
(`mxpolicy.routing.reachability`). One contract (tests/state/test_store.py) holds
for all implementations.

A store is an aid. Nobody who uses one may rely on what was put into it: rows go
when they expire, when there is no room, and when an operator clears them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from mxpolicy.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Self

__all__ = [
    "HEAVY",
    "JOURNAL",
    "LIGHT",
    "MEDIUM",
    "WEIGHTS",
    "Store",
    "StoreAbsent",
    "StoreBusy",
    "StoreDistrusted",
    "Stored",
]

# What the keys of the journal's rows begin with. They have a bound of their own: what
# is remembered of hosts never takes their room, nor they that of the hosts.
JOURNAL = "journal/"

# When there is no room, light rows go first, and of those the ones that expire first.
LIGHT, MEDIUM, HEAVY = WEIGHTS = (1, 2, 3)


class StoreBusy(StoreError):
    """Others kept the store for too long: this one operation was not done."""


class StoreAbsent(StoreError):
    """There is none, and none was to be made."""


class StoreDistrusted(StoreError):
    """Somebody else may have written what is there.

    Args:
        reason: What gives rise to it: a clause with path and all.
        mend: A command for a shell that ends it; may be empty.
    """

    def __init__(self, reason: str, mend: str = "") -> None:
        super().__init__(reason, mend)
        self.reason = reason
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.reason} (mend it: {self.mend})" if self.mend else self.reason


class Stored(NamedTuple):
    """One row.

    Attributes:
        key: Printable text.
        value: What was put there.
        expires: When it will be gone, UTC seconds.
    """

    key: str
    value: bytes
    expires: float


class Store(Protocol):
    """What every implementation does.

    Times are UTC seconds as `time.time` gives them: several machines, or one before
    and after a restart, have no other clock in common. A row is gone from the
    moment *expires*.

    Every method raises `StoreBusy` when it was not done and may be tried again,
    and `StoreError` when the store is away or broken. A row that is damaged, or that
    no store has written, is none: it is not read, and it is overwritten.

    A *weight* (`LIGHT`, `MEDIUM`, `HEAVY`) says what goes first when there is no room.
    Without it a row is light, and medium from the second time on that it is written.
    """

    def patient(self, seconds: float) -> Self:
        """Return the same store, for one question that is worth *seconds* of waiting.

        For a store that never raises (`mxpolicy.state.fallback`), where else one that
        is busy or slow would not be waited for. No answer after that time means that
        nobody can tell, and that what was to be written is *perhaps* written: read
        again. Whatever was begun before is done before the next question is answered.
        """
        ...

    async def get(self, key: str) -> bytes | None:
        """Return the value, None when there is none."""
        ...

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the values of those that are there, by key; one visit for all.

        Either all of *keys* are the journal's, or none is.
        """
        ...

    async def put(
        self,
        key: str,
        value: bytes,
        expires: float,
        *,
        weight: int | None = None,
        durable: bool = False,
    ) -> None:
        """Keep *value*, whatever was there before.

        With *durable* it survives a loss of power once this has returned; without,
        a crash of the process only.
        """
        ...

    async def add(
        self, key: str, value: bytes, expires: float, *, weight: int | None = None
    ) -> bool:
        """Keep *value* if nothing is there; return whether it was kept.

        Of any number who add one key at the same time, one is told True.
        """
        ...

    async def replace(
        self,
        key: str,
        old: bytes,
        new: bytes,
        expires: float,
        *,
        weight: int | None = None,
    ) -> bool:
        """Keep *new* if *old* is what is there; return whether it was."""
        ...

    async def delete(self, key: str) -> bool:
        """Forget *key*; return whether there was anything."""
        ...

    async def count(self, key: str, n: int, expires: float) -> int:
        """Add *n* to a number, which begins with 0, and return the sum.

        *expires* is that of the first addition; later ones do not move it.
        """
        ...

    async def scan(self, prefix: str) -> list[Stored]:
        """Return the rows whose key begins with *prefix*, by key."""
        ...

    async def close(self) -> None:
        """Let go of it. What was put is kept, as far as this kind of store keeps."""
        ...
