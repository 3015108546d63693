"""Mail data in memory: in blocks, and with a bound for all messages together."""

from __future__ import annotations

__all__ = ["BLOCK", "Blocks", "SpoolMemory"]

# Bytes. With one size the heap of a daemon has fewer holes: a thousand messages of 1 MiB
# that grew at a time took 96 MiB beside its own 25, and by a buffer each 123.
BLOCK = 64 * 1024


class Blocks:
    """Bytes that grow at their end.

    Attributes:
        size: How many.
        pieces: They, in their order. All but the last one have `BLOCK` bytes.
    """

    __slots__ = ("pieces", "size")

    def __init__(self) -> None:
        self.size = 0
        self.pieces: list[bytearray] = []

    def append(self, data: bytes) -> None:
        """Add *data*, of any length."""
        taken = 0
        while taken < len(data):
            if self.size % BLOCK == 0:
                self.pieces.append(bytearray())
            piece = data[taken : taken + BLOCK - self.size % BLOCK]
            self.pieces[-1] += piece
            taken += len(piece)
            self.size += len(piece)

    def read(self, position: int, size: int) -> bytes:
        """Return 1 to *size* bytes from *position*, which is less than the size."""
        number, begin = divmod(position, BLOCK)
        return bytes(memoryview(self.pieces[number])[begin : begin + size])


class SpoolMemory:
    """The memory that the mail data of several messages share.

    Each message may have a part of what is free. So the large ones give way first, and
    small ones find some as long as there is any (dynamic thresholds, Choudhury and Hahne
    1998).

    Attributes:
        total: Bytes that they may have together.
        used: Bytes that they have.
    """

    # The messages of a thousand clients at once have 64 KiB each of 64 MiB.
    _PART = 8

    def __init__(self, total: int = 1 << 62) -> None:
        self.total = total
        self.used = 0

    def share(self) -> int:
        """Return how many bytes one message may have, now."""
        return max(0, self.total - self.used) // self._PART
