"""The store: small values by key, each with an end; shared by all processes that open it.

Values are bytes. Pure modules know what they mean (`mxpolicy.routing.host_record`). One
contract (tests/state/test_store.py) holds for all implementations.

A store is an aid: a row may be gone at any time. Rows go when they expire, when there
is no room, and when an operator clears them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from mxpolicy.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

__all__ = [
    "HEAVY",
    "JOURNAL",
    "LIGHT",
    "MEDIUM",
    "WEIGHTS",
    "Operation",
    "Replacement",
    "Store",
    "StoreAbsent",
    "StoreBusy",
    "StoreDamaged",
    "StoreDistrusted",
    "Stored",
    "Submitted",
    "is_of_journal",
]

T = TypeVar("T")

# The keys of the journal's rows begin with it. The journal has a bound of its own, so
# that neither it nor what is remembered of hosts takes the other's room.
JOURNAL = "journal/"

# When there is no room, light rows go first, and of those the ones that expire first.
LIGHT, MEDIUM, HEAVY = WEIGHTS = (1, 2, 3)


class StoreBusy(StoreError):
    """Another process used the store for too long: this operation was not done."""


class StoreAbsent(StoreError):
    """The store does not exist, and was not to be made."""


class StoreDistrusted(StoreError):
    """Another user may have written what is there, or it is damaged (`StoreDamaged`).

    Args:
        reason: Why: a clause that names the path.
        mend: A shell command that mends it; may be empty.
    """

    def __init__(self, reason: str, mend: str = "") -> None:
        super().__init__(reason, mend)
        self.reason = reason
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.reason} (mend it: {self.mend})" if self.mend else self.reason


class StoreDamaged(StoreDistrusted):
    """A file is no database of SQLite's, or broken inside."""


class Stored(NamedTuple):
    """One row.

    Attributes:
        key: Printable text.
        value: What was put there.
        expires: When it ends, UTC seconds.
        weight: See `Store`; None where it is not known.
    """

    key: str
    value: bytes
    expires: float
    weight: int | None = None


class Replacement(NamedTuple):
    """One row to be replaced; see `Store.replace_all`.

    Attributes:
        key: As of `Stored`.
        old: The value that must be there, None for no row.
        new: The value to write.
        expires: As of `Stored`.
        weight: See `Store`.
    """

    key: str
    old: bytes | None
    new: bytes
    expires: float
    weight: int | None = None


def is_of_journal(key: str) -> bool:
    """Return whether the row of *key* belongs to the journal."""
    return key.startswith(JOURNAL)


class Operation(NamedTuple, Generic[T]):
    """One call of a method of `Store`, as a value that wrappers pass on.

    Attributes:
        name: Of the method. An implementation has an object of rows with a method of
            this name, which takes *arguments*.
        key: Its key, its prefix or its first key; see `JOURNAL`.
        arguments: All of them, in the order of the method's signature.
        undone: What a store that must not raise returns when it was not done.
        may_wait: Nothing waits for it: a store may do it with what is given next, up to
            10 ms later.
    """

    name: str
    key: str
    arguments: tuple[Any, ...]
    undone: T
    may_wait: bool = False

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return self.name in {"get_many", "scan"}

    @property
    def is_durable(self) -> bool:
        """Whether it is to survive a loss of power."""
        return self.name in {"put", "replace_all"} and bool(self.arguments[-1])

    def on(self, rows: object) -> T:
        """Do it, and return what it returns."""
        return cast("T", getattr(rows, self.name)(*self.arguments))


class Submitted:
    """An operation that was given to a store, as long as its answer is waited for."""

    def give_up(self) -> None:
        """Stop waiting: nothing is told any more. The operation is perhaps done."""
        raise NotImplementedError


class Store:
    """What every implementation does. It has `do` and `submit`; all else calls those.

    Times are UTC seconds, as `time.time` gives them. Several machines have no other
    clock in common, nor has one before and after a restart. At *expires* a row is gone.

    Every method raises `StoreBusy` when it was not done and may be tried again. It
    raises `StoreError` when the store is away or broken. A damaged row counts as no
    row: it is not read, and it is overwritten.

    *weight* (`LIGHT`, `MEDIUM`, `HEAVY`) says which rows go first when there is no room.
    Without it a row is light, and medium from the second time that it is written.
    """

    def is_kept(self, key: str) -> bool:
        """Whether a row of *key* outlives this process, as far as is known."""
        return True

    async def do(self, operation: Operation[T]) -> T:
        """Return what *operation* does."""
        raise NotImplementedError

    def submit(
        self, operation: Operation[T], told: Callable[[T | BaseException], None]
    ) -> Submitted:
        """Have *operation* done; no coroutine waits for it.

        Operations that are submitted in one turn of the event loop, or while the store
        is at work, share a transaction.

        Args:
            operation: What is to be done.
            told: Called in the event loop, once and never before this returns. Takes
                what `do` returns, or the exception that it raises: a `StoreError`, or a
                bug. It is not called when the answer was given up.
        """
        raise NotImplementedError

    def patient(self, seconds: float) -> Store:
        """Return the same store, for one question that is worth *seconds* of waiting.

        It makes a difference to a store that never raises (`mxpolicy.state.fallback`).
        Without it, that one does not wait while the real store is busy or slow. When
        there is no answer after that time, the row was *perhaps* written: read it
        again. Operations are done in turn, so the next answer takes account of it.
        """
        return self

    async def close(self) -> None:
        """Close the store. Its rows stay, where this kind of store keeps them."""

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return {key: value} of the *keys* that are there, in one operation.

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
        """Write *value*, whatever was there before.

        Once this has returned, the row survives a crash of the process. With *durable*
        it survives a loss of power too.
        """
        row = key, value, expires, weight, durable
        await self.do(Operation("put", key, row, None))

    async def replace(
        self,
        key: str,
        old: bytes | None,
        new: bytes,
        expires: float,
        weight: int | None = None,
    ) -> bool:
        """Write *new* if *old* is there, None for no row; return whether it was written.

        Of several writers that replace the same at the same time, one gets True.

        A `mxpolicy.state.fallback.FallbackStore` returns False also when it was perhaps
        written.
        """
        row = Replacement(key, old, new, expires, weight)
        return (await self.do(_replacing([row], durable=False)))[0]

    async def replace_all(
        self, rows: Sequence[Replacement], *, durable: bool = False
    ) -> list[bool]:
        """Replace all *rows*, or none; return whether each could have been.

        Only where all are True the rows were written, and then in one transaction. A
        `mxpolicy.state.fallback.FallbackStore` returns False of each also when they
        were perhaps written. Either all keys are the journal's, or none is.

        Args:
            rows: At least one, each of another key.
            durable: See `put`.
        """
        return await self.do(_replacing(rows, durable))

    def submit_replace(
        self,
        rows: Sequence[Replacement],
        told: Callable[[list[bool] | BaseException], None],
        *,
        durable: bool = False,
    ) -> Submitted:
        """Replace all *rows*, or none, as `replace_all` does; see `submit`.

        Example:
            ``store.patient(10.0).submit_replace(rows, told)`` waits ten seconds at most.
            ``told([True])`` says that the one row is written and committed.
        """
        return self.submit(_replacing(rows, durable), told)

    async def delete(self, key: str, old: bytes | None = None) -> bool:
        """Delete the row, with *old* only if that is there; return whether it was."""
        return await self.do(Operation("delete", key, (key, old), False))

    async def scan(self, prefix: str) -> list[Stored]:
        """Return the rows whose key begins with *prefix*, by key.

        Only a prefix that begins with `JOURNAL` finds rows of the journal.
        """
        return await self.do(Operation("scan", prefix, (prefix,), []))


def _replacing(rows: Sequence[Replacement], durable: bool) -> Operation[list[bool]]:
    undone = [False] * len(rows)
    return Operation("replace_all", rows[0].key, (rows, durable), undone)
