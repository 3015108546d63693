"""A socket of the daemon's at which the test speaks for the daemon; `speaking` is one."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.piping import TIMEOUT

__all__ = ["Speaking", "speaking"]


class Speaking:
    """A socket of a daemon's, whose words are the test's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.settimeout(TIMEOUT)
        self._listening.bind(str(path))
        self._listening.listen()
        self._client: socket.socket | None = None
        self.descriptors: list[int] = []

    def say(self, words: bytes) -> None:
        """Say it to the client, which has said what it had to."""
        assert self._client is not None
        self._client.sendall(words)

    def accept(self, *, blocking: bool = True) -> socket.socket:
        """Return the connection to a client."""
        if not blocking:
            self._listening.setblocking(False)
        client, _ = self._listening.accept()
        client.settimeout(TIMEOUT)
        return client

    def hear(self) -> bytes:
        """Return what the client says, none when it has gone."""
        if self._client is None:
            self._client = self.accept()
        room = socket.CMSG_SPACE(64)
        data, ancillary, _, _ = self._client.recvmsg(65536, room)
        for _, _, ints in ancillary:
            self.descriptors += array.array("i", ints)
        return data

    def hear_no_more(self) -> None:
        """Let what the client sends from now on fail."""
        assert self._client is not None
        self._client.shutdown(socket.SHUT_RD)

    def hang_up(self) -> None:
        """Close the connection, and what came over it."""
        if self._client is not None:
            self._client.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def close(self) -> None:
        self.hang_up()
        self._listening.close()


@pytest.fixture
def speaking(tmp_path: Path) -> Iterator[Speaking]:
    one = Speaking(tmp_path / "socket")
    yield one
    one.close()
