"""An event loop on which waiting takes no time, though sockets are read and written.

For tests in which both ends of every connection are in this process, on loopback:
there a byte that was sent has arrived. So when nothing is ready and nothing is on its
way any more, everybody waits for a timer, and the clock jumps to the next one.

What this processor has sent on loopback it hands over in order. So a datagram that we
send to ourselves, and get, was behind everything else, as long as the thread stays on
one processor. Acknowledgements that the kernel would delay are asked for.

The clock stands still while a thread works for `run_in_executor`.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from concurrent.futures import Executor

__all__ = ["let_pass", "run_with_sockets"]

# Real seconds in which another thread, or a busy kernel, may have something for us.
SETTLING = 0.004
# Real seconds for which such a thread is waited for at most, each time.
LONGEST_JOB = 10.0

# SYN, SYN-ACK, ACK and what is sent upon that: each may be behind one datagram.
ROUNDS = 4

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _JumpingSelector(selectors.DefaultSelector):
    """Wait for what is on its way; then tell the loop to jump."""

    def __init__(self, jump: Callable[[float], None], *, is_patient: bool) -> None:
        super().__init__()
        self._jump = jump
        self._is_patient = is_patient
        self.jobs = 0  # that threads of the loop do
        self._seen: set[int] = set()
        self._echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._echo.bind(("127.0.0.1", 0))
        self._echo.connect(self._echo.getsockname())

    def register(
        self, fileobj: Any, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        self._seen.add(key.fd)
        return key

    def close(self) -> None:
        self._echo.close()
        super().close()

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        for fd in self._seen:
            _acknowledge(fd)
        for _ in range(ROUNDS):
            self._echo.send(b".")
            self._echo.recv(1)
        if self.jobs:
            return super().select(LONGEST_JOB)
        others = [one for one in threading.enumerate() if one.name[:7] != "asyncio"]
        waits = self._is_patient or len(others) > 1
        ready = super().select(SETTLING if waits else 0)
        if not ready:
            assert timeout is not None, "everybody waits, and no timer is set"
            self._jump(timeout)
        return ready


def _acknowledge(fd: int) -> None:
    """Have the kernel send what it still owes the peer of this socket."""
    with suppress(OSError):  # closed, or no TCP
        one = socket.socket(fileno=fd)
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        finally:
            one.detach()


class _SocketLoop(asyncio.SelectorEventLoop):
    def __init__(self, *, is_patient: bool) -> None:
        self._now = 1000.0
        self._jumping = _JumpingSelector(self.let_pass, is_patient=is_patient)
        super().__init__(self._jumping)

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._jumping.jobs += 1
        future.add_done_callback(self._job_is_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        # It waits for the threads in another thread, without a timer.
        self._jumping.jobs += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._jumping.jobs -= 1

    def _job_is_done(self, future: asyncio.Future[Any]) -> None:
        self._jumping.jobs -= 1

    def let_pass(self, seconds: float) -> None:
        # Rounded up, or a timer could be missed by less than the clock can tell.
        self._now += seconds + 1e-9

    def time(self) -> float:
        return self._now


def run_with_sockets(main: Coroutine[Any, Any, T], *, is_patient: bool = False) -> T:
    """Run *main* on such a loop; ``loop.time`` is its clock.

    Where it matters to the byte what a full window has taken, *is_patient* lets
    `SETTLING` pass before each jump.
    """
    loop = partial(_SocketLoop, is_patient=is_patient)
    with _on_one_processor(), asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


@contextmanager
def _on_one_processor() -> Iterator[None]:
    usual = os.sched_getaffinity(0)
    with open("/proc/thread-self/stat") as stat:
        here = int(stat.read().rpartition(")")[2].split()[36])
    os.sched_setaffinity(0, {here})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)


def let_pass(seconds: float) -> None:
    """Move the running loop's clock, as when the process was held up for so long."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _SocketLoop)
    loop.let_pass(seconds)
