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
    from typing import Self

__all__ = ["Store", "StoreAbsent", "StoreBusy", "Stored"]


class StoreBusy(StoreError):
    """Others kept the store for too long: this one operation was not done."""


class StoreAbsent(StoreError):
    """There is none, and none was to be made."""


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
    and `StoreError` when the store is away or broken.
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

    async def put(
        self, key: str, value: bytes, expires: float, *, durable: bool = False
    ) -> None:
        """Keep *value*, whatever was there before.

        With *durable* it survives a loss of power once this has returned; without,
        a crash of the process only.
        """
        ...

    async def add(self, key: str, value: bytes, expires: float) -> bool:
        """Keep *value* if nothing is there; return whether it was kept.

        Of any number who add one key at the same time, one is told True.
        """
        ...

    async def replace(self, key: str, old: bytes, new: bytes, expires: float) -> bool:
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
