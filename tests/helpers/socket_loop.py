"""An event loop on which waiting takes no time, though sockets are read and written.

For tests in which both ends of every connection are in this process, on loopback:
there a byte that was sent has arrived. So when nothing is ready for `SETTLING` real
seconds, everybody waits for a timer, and the clock jumps to the next one.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["let_pass", "run_with_sockets"]

# Real seconds. The kernel may hand a segment over a little later when it is busy.
SETTLING = 0.004

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Wait for the settling time only; then tell the loop to jump."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            return super().select(0)
        ready = super().select(SETTLING)
        if not ready:
            assert timeout is not None, "everybody waits, and no timer is set"
            self._jump(timeout)
        return ready


class _SocketLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_JumpingSelector(self.let_pass))

    def let_pass(self, seconds: float) -> None:
        # Rounded up, or a timer could be missed by less than the clock can tell.
        self._now += seconds + 1e-9

    def time(self) -> float:
        return self._now


def run_with_sockets(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* on such a loop; ``loop.time`` is its clock."""
    with asyncio.Runner(loop_factory=_SocketLoop) as runner:
        return runner.run(main)


def let_pass(seconds: float) -> None:
    """Move the running loop's clock, as when the process was held up for so long."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _SocketLoop)
    loop.let_pass(seconds)
