"""What process 1 owes to processes that it has not started (wait(2)).

It becomes the parent of each process whose own parent has ended: what a command of the
option ``kick`` has left behind, or a shell that somebody ran in the container. When such a
process ends, the kernel keeps its number until the parent takes its status, and a
container may have few numbers (``pids.max``).
"""

from __future__ import annotations

import os
from contextlib import suppress

from mxpolicy.processes import look_at

__all__ = ["Orphans"]


class Orphans:
    """Takes the status of processes that have ended, and that nobody else waits for."""

    def __init__(self) -> None:
        self._ended: frozenset[tuple[int, int]] = frozenset()

    def reap(self) -> None:
        """Let go of those that had ended when this was last called.

        Let the event loop run in between: then it has taken the status of those that it
        waits for (`asyncio.subprocess`), and they are gone.
        """
        ended = _ended()
        for pid, _ in ended & self._ended:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._ended = ended


def _ended() -> frozenset[tuple[int, int]]:
    """Return number and start of each child of ours that ends; none without ``/proc``."""
    found = set()
    with suppress(OSError):
        for name in os.listdir("/proc"):
            seen = look_at(int(name)) if name.isdigit() else None
            if seen and seen.parent == os.getpid() and seen.is_ending:
                found.add((int(name), seen.started))
    return frozenset(found)
