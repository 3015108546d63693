"""An input read as decisions, so that one kind of fuzzing serves every target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Choices"]

T = TypeVar("T")


class Choices:
    """Decides by the bytes of *data*; when they are used up, always for the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """True while there are bytes."""
        return self._at < len(self._data)

    def number(self, below: int) -> int:
        """Return a number from 0; *below* is at most 256."""
        return self.take(1)[0] % below if self else 0

    def of(self, choices: Sequence[T]) -> T:
        """Return one of them."""
        return choices[self.number(len(choices))]

    def take(self, size: int) -> bytes:
        """Return at most *size* bytes."""
        self._at += size
        return self._data[self._at - size : self._at]

    def line(self) -> bytes:
        """Return what there is before the next line end, and drop that."""
        end = self._data.find(b"\n", self._at)
        end = len(self._data) if end < 0 else end
        found = self._data[self._at : end]
        self._at = end + 1
        return found

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))

    def pieces(self, times: int = 1) -> list[bytes]:
        """Return all that is left, *times* over, in pieces of four sizes in turn."""
        sizes = [one or 1 << 16 for one in self.take(4)] or [1]
        data = self.rest() * times
        pieces: list[bytes] = []
        while data:
            size = sizes[len(pieces) % len(sizes)]
            pieces.append(data[:size])
            data = data[size:]
        return pieces
