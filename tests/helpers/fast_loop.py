"""An event loop on which waiting takes no time: a clock that jumps.

Whenever nothing is ready, the loop's clock moves to the next timer at once. For
code that waits on timers and on other tasks only; a socket that is awaited would
never become ready.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["FastLoop", "run_fast"]

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting, tell the loop how long it would have waited."""

    def __init__(self, jump: Any) -> None:
        super().__init__()
        self._jump = jump

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:  # callbacks are due: no need to ask the kernel before them
            return []
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and no timer is set"
            self._jump(timeout)
        return ready


class FastLoop(asyncio.SelectorEventLoop):
    """A loop whose time begins at 1000 and is moved by its own timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_JumpingSelector(self._jump))

    def _jump(self, seconds: float) -> None:
        # Rounded up, or a timer could be missed by less than the clock can tell.
        if seconds > 0:
            self.now += seconds + 1e-9

    def time(self) -> float:
        return self.now


def run_fast(main: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """Run *main*; return its result and how many seconds it believes to have taken."""
    loop = FastLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        began = loop.time()
        result = runner.run(main)
        return result, loop.time() - began
