"""The store: small values by key, each with an end; shared by all processes that open it.

Values are bytes, and what they mean is the business of pure modules
(`mxpolicy.routing.reachability`). One contract (tests/state/test_store.py) holds
for all implementations.

A store is an aid. What was put into it may be gone: rows go
when they expire, when there is no room, and when an operator clears them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

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
    "Operation",
    "Store",
    "StoreAbsent",
    "StoreBusy",
    "StoreDistrusted",
    "Stored",
    "is_of_journal",
]

T = TypeVar("T")

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
    """Another user may have written what is there.

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
        weight: See `Store`; None where it is not told.
    """

    key: str
    value: bytes
    expires: float
    weight: int | None = None


def is_of_journal(key: str) -> bool:
    """Return whether the row of *key* is in the journal's room."""
    return key.startswith(JOURNAL)


class Operation(NamedTuple, Generic[T]):
    """One call of a method of `Store`, as a value that wrappers pass on.

    Attributes:
        name: The method's. An implementation has rows: an object with a method of this
            name that takes *arguments*.
        key: The key, prefix or first key that it is about; see `JOURNAL`.
        arguments: All of them, in the order of the method's signature.
        undone: What the method returns where it was not done and must not raise.
    """

    name: str
    key: str
    arguments: tuple[Any, ...]
    undone: T

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return self.name in {"get_many", "scan"}

    def on(self, rows: object) -> T:
        """Do it, and return what it returns."""
        return cast("T", getattr(rows, self.name)(*self.arguments))


class Store:
    """What every implementation does. It has one method, `do`; the others call that.

    Times are UTC seconds as `time.time` gives them: several machines, or one before
    and after a restart, have no other clock in common. A row is gone from the
    moment *expires*.

    Every method raises `StoreBusy` when it was not done and may be tried again,
    and `StoreError` when the store is away or broken. A row that is damaged, or that
    no store has written, is none: it is not read, and it is overwritten.

    A *weight* (`LIGHT`, `MEDIUM`, `HEAVY`) says what goes first when there is no room.
    Without it a row is light, and medium from the second time on that it is written.
    """

    @property
    def is_memory_only(self) -> bool:
        """Whether something that should outlive this process does not now."""
        return False

    async def do(self, operation: Operation[T]) -> T:
        """Return what *operation* does."""
        raise NotImplementedError

    def patient(self, seconds: float) -> Self:
        """Return the same store, for one question that is worth *seconds* of waiting.

        For a store that never raises (`mxpolicy.state.fallback`), where else one that
        is busy or slow would not be waited for. No answer after that time means that
        it is not known, and that what was to be written is *perhaps* written: read
        again. Whatever was begun before is done before the next question is answered.
        """
        return self

    async def close(self) -> None:
        """Let go of it. What was put is kept, as far as this kind of store keeps."""

    async def get(self, key: str) -> bytes | None:
        """Return the value, None when there is none."""
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the values of those that are there, by key; one visit for all.

        Either all of *keys* are the journal's, or none is.
        """
        if not keys:
            return {}
        one = next(iter(keys))
        return await self.do(Operation("get_many", one, (keys,), {}))

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
        row = key, value, expires, weight, durable
        await self.do(Operation("put", key, row, None))

    async def add(
        self, key: str, value: bytes, expires: float, *, weight: int | None = None
    ) -> bool:
        """Keep *value* if nothing is there; return whether it was kept.

        Of any number of writers that add one key at the same time, one is told True.
        """
        row = key, value, expires, weight
        return await self.do(Operation("add", key, row, False))

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
        row = key, old, new, expires, weight
        return await self.do(Operation("replace", key, row, False))

    async def delete(self, key: str) -> bool:
        """Forget *key*; return whether there was anything."""
        return await self.do(Operation("delete", key, (key,), False))

    async def count(self, key: str, n: int, expires: float) -> int:
        """Add *n* to a number, which begins with 0, and return the sum.

        *expires* is that of the first addition; later ones do not move it.
        """
        return await self.do(Operation("count", key, (key, n, expires), n))

    async def scan(self, prefix: str) -> list[Stored]:
        """Return the rows whose key begins with *prefix*, by key.

        Those of the journal are found by a prefix that begins with `JOURNAL` only.
        """
        return await self.do(Operation("scan", prefix, (prefix,), []))
