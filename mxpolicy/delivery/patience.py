"""How long a delivery waits for its journal.

A disk may be slow, and only the journal prevents a second copy. So the store is asked
again, after a final dot for longer than before it. Then it counts as away.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mxpolicy.state.store import Store

__all__ = ["ANSWER", "ANSWER_AFTER_DOT", "Patience", "after_dot", "before_dot"]

# Seconds for one answer of the store, before a final dot and after one. After it, only
# the journal can prevent a second copy.
ANSWER, ANSWER_AFTER_DOT = 10.0, 60.0
# The same for all answers of one call, which has a deadline.
_ALL, _ALL_AFTER_DOT = 30.0, 60.0
# The same for one answer while the last one did not come.
_HARDLY = 1.0
# Seconds until the next try when another process has changed what we were to change.
_RETRY = 0.1

T = TypeVar("T")


class Patience:
    """How long a call waits for its store: for one answer, and for all of them.

    Args:
        answer: Seconds for one, while the last one came in its time.
        left: Seconds for all.
    """

    def __init__(self, answer: float, left: float) -> None:
        self._answer = answer
        self._left = left
        self._was_answered = True

    async def ask(self, store: Store, question: Callable[[Store], Awaitable[T]]) -> T:
        """Return what *question* to *store* returns; see `Store.patient`."""
        clock = asyncio.get_running_loop().time
        seconds = self._answer if self._was_answered else _HARDLY
        began, seconds = clock(), min(seconds, self._left)
        try:
            return await question(store.patient(seconds))
        finally:
            spent = clock() - began
            self._was_answered = spent < seconds
            self._left = max(0.0, self._left - spent)

    async def goes_on(self) -> bool:
        """Wait a moment and return True; return False when the store does not answer."""
        if self._was_answered:
            await asyncio.sleep(_RETRY)
        return self._was_answered


def before_dot(deadline: float) -> Patience:
    """Return that of a call until a dot may be out; it ends *deadline* seconds from now."""
    return Patience(ANSWER, min(_ALL, deadline / 3))


def after_dot() -> Patience:
    """Return that of what follows a dot."""
    return Patience(ANSWER_AFTER_DOT, _ALL_AFTER_DOT)
