"""A stream and the socket at its other end, over real TCP, and other clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from mxpolicy.net.stream import Stream

__all__ = [
    "Pair",
    "client_of",
    "connected_pair",
    "expect",
    "fill",
    "pair",
    "receive_all",
    "watched_descriptors",
]

Pair = tuple[Stream, socket.socket]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Return a stream and the socket at its other end, over real TCP."""
    stream, peer = connected_pair()
    yield stream, peer
    stream.abort()
    peer.close()


def connected_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Small, so that a peer that does not read is felt soon.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        near = socket.create_connection(listener.getsockname())
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        peer, _ = listener.accept()
    peer.setblocking(False)
    return Stream(near), peer


def watched_descriptors() -> set[int]:
    """Return the descriptors that the running loop waits for, but for its own."""
    loop: Any = asyncio.get_running_loop()
    return set(loop._selector.get_map()) - {loop._ssock.fileno()}


async def receive_all(peer: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < count:
        data = await loop.sock_recv(peer, 65536)
        if not data:
            break
        received += data
    return received


async def fill(stream: Stream, **how: Any) -> bool:
    """Write until somebody objects."""
    while await stream.write(bytes(65536), **how):
        pass
    return False


async def expect(error: type[Exception], work: Awaitable[object]) -> None:
    with pytest.raises(error):
        await work


def client_of(path: Path | str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    try:
        client.connect(str(path))
    except BaseException:
        client.close()
        raise
    return client
