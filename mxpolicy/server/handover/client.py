"""The connection to one client of the hand-over: bytes, and the message's descriptor."""

from __future__ import annotations

import asyncio
import os
import socket
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.protocol.handover_request import Handover, HandoverState

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.protocol.handover_request import HandoverRequest

__all__ = ["Client"]

_READ_SIZE = 65536

# More than one, so that a client that sends more is seen, and not cut short.
_DESCRIPTORS = 4
_INT = 4  # bytes of a descriptor in SCM_RIGHTS


class Client:
    """The connection to a client, and the bytes on it.

    Attributes:
        handover: Where the hand-over is.
        news: Set when the client has said something, and by others to wake `wait`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.handover = Handover()
        self.news = asyncio.Event()
        self._connection = connection
        self._hear: Callable[[], None] | None = None

    async def request(self) -> HandoverRequest:
        """Return the request; raise as `receive`."""
        while self.handover.request is None:
            self.news.clear()
            self.receive()
            if self.handover.state is HandoverState.REQUEST:
                await self.wait()
        return self.handover.request

    async def wait(self) -> None:
        """Wait until there is something to receive, or `news` is set."""
        self.hear(self.news.set)
        await self.news.wait()

    def hear(self, told: Callable[[], None]) -> None:
        """Let *told* be called from now on, as long as there is something to receive."""
        if self._hear is None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._connection.fileno(), self._is_readable)
        self._hear = told

    def hear_no_more(self) -> None:
        """Call nothing any more; what is not received would be told for ever."""
        if self._hear is not None:
            self._hear = None
            asyncio.get_running_loop().remove_reader(self._connection.fileno())

    def _is_readable(self) -> None:
        if self._hear is not None:
            self._hear()

    def receive(self) -> int | None:
        """Take what is there; return the message's descriptor when it came.

        There may be more, and then the loop says so again.

        Raises:
            EOFError: The client has closed the connection.
            RemoteProtocolError: It broke the protocol.
            OSError: The connection is broken.
        """
        room = socket.CMSG_SPACE(_DESCRIPTORS * _INT)
        flags = socket.MSG_CMSG_CLOEXEC
        try:
            data, ancillary, cut, _ = self._connection.recvmsg(_READ_SIZE, room, flags)
        except BlockingIOError:
            return None
        descriptors = _received(ancillary)
        # The kernel has closed those that we have no room for, or no more descriptors.
        # Then it was never one: whatever is missing may have been the message.
        count = len(descriptors) + (2 if cut & socket.MSG_CTRUNC else 0)
        try:
            if not data:
                self.handover.receive_eof()
                raise EOFError
            self.handover.receive_data(data, count)
            return descriptors.pop() if descriptors else None  # or it would have raised
        finally:
            for one in descriptors:
                os.close(one)

    def accept(self, seconds: float) -> None:
        """Say that there is a place."""
        self._send(self.handover.accept(seconds))

    def refuse(self, reason: str) -> None:
        """Have the client deliver by itself; nothing happens if it has gone."""
        with suppress(OSError):
            self._send(self.handover.refuse(reason))

    def ask(self) -> None:
        """Ask whether its mail server lives."""
        self._send(self.handover.ask())

    def answer(self, status: int, line: bytes) -> None:
        """Answer, unless it has gone."""
        if self.handover.state is not HandoverState.ENDED:
            with suppress(OSError):
                self._send(self.handover.answer(status, line))

    def _send(self, data: bytes) -> None:
        # All of it fits into the socket's buffer, or the client has read nothing for long.
        self._connection.sendall(data)


def _received(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors that came with some data."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            ints = array("i")
            ints.frombytes(data[: len(data) - len(data) % ints.itemsize])
            found.extend(ints)
    return found
