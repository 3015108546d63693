"""Answers that a store tells in the event loop: soon, or when a task has them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mxpolicy.state.store import Store, Submitted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mxpolicy.state.store import Operation

__all__ = ["SubmittingStore", "ToldByTask", "ToldSoon"]

T = TypeVar("T")


class ToldSoon(Submitted):
    """An operation that is over, and is told in the next turn of the event loop."""

    def __init__(self, result: T, told: Callable[[T], None]) -> None:
        self._handle = asyncio.get_running_loop().call_soon(told, result)

    def give_up(self) -> None:
        self._handle.cancel()


class ToldByTask(Submitted):
    """An operation that a task waits for, in a store that has only coroutines."""

    def __init__(
        self,
        answer: Coroutine[Any, Any, T],
        told: Callable[[T | BaseException], None],
    ) -> None:
        self._told: Callable[[T | BaseException], None] | None = told
        self._task = asyncio.get_running_loop().create_task(answer)
        self._task.add_done_callback(self._tell)

    def give_up(self) -> None:
        self._told = None
        self._task.cancel()

    def _tell(self, task: asyncio.Task[Any]) -> None:
        if self._told is not None and not task.cancelled():
            self._told(task.exception() or task.result())


class SubmittingStore(Store):
    """A store that has `submit`; its `do` waits for what that tells."""

    async def do(self, operation: Operation[T]) -> T:
        """See `Store.do`."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting = self.submit(operation, partial(_set_answer, answer))
        try:
            return await answer
        finally:
            waiting.give_up()


def _set_answer(answer: asyncio.Future[T], result: T | BaseException) -> None:
    if answer.done():  # nothing waits for it any more
        return
    if isinstance(result, BaseException):
        answer.set_exception(result)
    else:
        answer.set_result(result)
