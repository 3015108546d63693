"""A store of which some visits fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mxpolicy.errors import StoreError
from mxpolicy.state.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.state.store import Operation

__all__ = ["FailingStore"]

T = TypeVar("T")


class FailingStore(MemoryStore):
    """Fails where *fails* says so of a visit's number, from 0, and of the operation.

    Args:
        error: What is raised.
        clock: UTC seconds.
    """

    def __init__(
        self,
        error: Exception | None = None,
        fails: Callable[[int, Operation[Any]], bool] = lambda number, operation: True,
        clock: Callable[[], float] = lambda: 1_000_000.0,
    ) -> None:
        super().__init__(clock)
        self._error = error or StoreError("disk full")
        self._fails = fails
        self._visits = 0

    async def do(self, operation: Operation[T]) -> T:
        number, self._visits = self._visits, self._visits + 1
        if self._fails(number, operation):
            raise self._error
        return await super().do(operation)
