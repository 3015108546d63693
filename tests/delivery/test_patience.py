"""`mxpolicy.delivery.patience`, on a moved clock."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.patience import Patience, after_dot, before_dot
from mxpolicy.state.memory import MemoryStore
from tests.helpers.socket_loop import run_with_sockets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mxpolicy.state.store import Store


class Asked(MemoryStore):
    """Notes how long it may take, and takes the seconds that are given."""

    def __init__(self, takes: list[float]) -> None:
        super().__init__()
        self.may_take: list[float] = []
        self._takes = takes

    def patient(self, seconds: float) -> Store:
        self.may_take.append(seconds)
        return self

    async def answer(self) -> None:
        await asyncio.sleep(min(self._takes.pop(0), self.may_take[-1]))


async def ask(patience: Patience, takes: list[float]) -> list[float]:
    """Ask once for each of *takes* seconds; return how long each one could have been."""
    store = Asked(takes)

    async def question(_: Store) -> None:
        await store.answer()

    while takes:
        await patience.ask(store, question)
    return store.may_take


def played(work: Callable[[], Awaitable[list[float]]]) -> list[float]:
    async def main() -> list[float]:
        return await work()

    return run_with_sockets(main())


@pytest.mark.parametrize(
    ("patience", "takes", "may_take"),
    [
        pytest.param(before_dot(900), [0, 0, 0], [10, 10, 10], id="quick"),
        pytest.param(before_dot(900), [10, 0, 0], [10, 1, 10], id="once silent"),
        pytest.param(before_dot(900), [10, 10], [10, 1], id="silent"),
        pytest.param(before_dot(900), [9] * 4, [10, 10, 10, 3], id="slow"),
        pytest.param(before_dot(15), [0], [5], id="little time"),
        pytest.param(after_dot(), [50, 50], [60, 10], id="after the dot"),
    ],
)
def test_one_answer_and_all_of_them_have_their_time(
    patience: Patience, takes: list[float], may_take: list[float]
) -> None:
    assert played(lambda: ask(patience, takes)) == pytest.approx(may_take)


def test_another_try_is_made_while_the_store_answers() -> None:
    async def main() -> list[float]:
        patience, clock = before_dot(900), asyncio.get_running_loop().time
        await ask(patience, [0])
        began = clock()
        assert await patience.goes_on()
        waited = clock() - began
        await ask(patience, [20])
        assert not await patience.goes_on()
        return [waited]

    assert played(main) == [pytest.approx(0.1)]
