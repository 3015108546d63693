"""The mail server's side of one try: it waits for an answer, until it is killed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.process import Answer

__all__ = ["Client"]


class Client:
    """Who has called the engine, and hears its answers.

    Args:
        heard: Told of each answer that comes before all of them are there.

    Attributes:
        is_there: It has not been killed.
        lives: The mail server that it belongs to has not been killed either.
        has_gone: Set when it is killed.
        on_leave: Called then.
    """

    def __init__(self, heard: Callable[[str, Answer], None]) -> None:
        self._heard = heard
        self._known: set[str] = set()
        self.is_there = self.lives = True
        self.has_gone = asyncio.Event()
        self.on_leave: Callable[[], None] = lambda: None

    def hear(self, recipient: str, answer: Answer) -> None:
        """Hear, once, what became of *recipient*, if it is still there."""
        if self.is_there and recipient not in self._known:
            self._known.add(recipient)
            self._heard(recipient, answer)

    def leave(self) -> None:
        """Be killed: its connection is closed."""
        if self.is_there:
            self.is_there = self.lives = False
            self.has_gone.set()
            self.on_leave()
