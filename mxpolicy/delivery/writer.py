"""Writes that a delivery does not wait for, one after the other, in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Job = Callable[[], Awaitable[None]]

__all__ = ["Writer"]


class Writer:
    """Does its jobs in one task, which lasts as long as there are any.

    What a job raises is told, and the next job is done.

    Args:
        tell: Given what a job raised.
    """

    def __init__(self, tell: Callable[[Exception], None]) -> None:
        self._tell = tell
        self._jobs: deque[Job] = deque()
        self._task: asyncio.Task[None] | None = None

    def do_later(self, job: Job) -> None:
        """Do *job* after all that was given before."""
        self._jobs.append(job)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    async def wait(self) -> None:
        """Return when all is done. The jobs go on when this is cancelled."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while self._jobs:
            try:
                await self._jobs.popleft()()
            except Exception as error:
                self._tell(error)
