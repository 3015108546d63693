"""Bytes from the peer, taken out line by line.

A line ends with LF; CRs before it belong to the end. RFC 5321 §2.3.8 asks for CRLF and
nothing else, but some hosts send a bare LF, and every mail server in use reads it. *We*
always send CRLF.

The cost is linear in the bytes received, however they are cut. The search for LF looks
at each byte once, and taking a line from the front of a bytearray moves nothing.
"""

from __future__ import annotations

__all__ = ["ReceiveBuffer"]


class ReceiveBuffer:
    """A queue of bytes that gives whole lines.

    Args:
        line_limit: Bytes of a line that are kept; the rest is dropped.
    """

    __slots__ = ("_data", "_line_limit", "_searched")

    def __init__(self, line_limit: int) -> None:
        self._data = bytearray()
        self._line_limit = line_limit
        # No LF among the first so many bytes.
        self._searched = 0

    def __len__(self) -> int:
        """How many bytes are kept that `next_line` has not returned."""
        return len(self._data)

    def append(self, data: bytes) -> None:
        """Take *data* from the wire. Call `next_line` until it gives None."""
        self._data += data

    def next_line(self) -> bytes | None:
        """Return the next line without its end, or None until more bytes come."""
        end = self._data.find(b"\n", self._searched)
        if end < 0:
            del self._data[self._line_limit :]
            self._searched = len(self._data)
            return None
        line = bytes(self._data[: min(end, self._line_limit)])
        del self._data[: end + 1]
        self._searched = 0
        return line.rstrip(b"\r")

    def peek(self, size: int) -> bytes:
        """Return the first *size* bytes that are kept, or as many as there are."""
        return bytes(self._data[:size])

    def take(self) -> bytes:
        """Return all that is kept, as it came: no lines are wanted of it."""
        data = bytes(self._data)
        self._data.clear()
        self._searched = 0
        return data
