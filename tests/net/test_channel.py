"""`mxpolicy.net.channel`: what needs no waiting, and the end."""

from __future__ import annotations

import asyncio
import errno
import gc
import os

import pytest

from mxpolicy.errors import EXHAUSTED, LocalTrouble
from mxpolicy.net import channel
from mxpolicy.net.channel import StreamClosed
from mxpolicy.net.stream import Stream
from tests.net.pairs import Pair, connected_pair, fill, pair, receive_all

__all__ = ["pair"]  # a fixture


@pytest.mark.parametrize("number", sorted(EXHAUSTED))
def test_our_own_shortage_is_not_the_peers_fault(number: int) -> None:
    error = channel._translate(OSError(number, os.strerror(number)))
    assert isinstance(error, LocalTrouble)


def test_any_other_error_closes() -> None:
    error = channel._translate(OSError(errno.EHOSTUNREACH, ""))
    assert isinstance(error, StreamClosed)
    assert str(error) == "No route to host"


class TestTheEnd:
    async def test_closing_says_last_words(self, pair: Pair) -> None:
        stream, peer = pair
        stream.close(b"QUIT\r\n")
        assert await receive_all(peer, 100) == b"QUIT\r\n"
        stream.close()

    async def test_closing_delivers_what_the_kernel_holds(self, pair: Pair) -> None:
        stream, peer = pair
        await stream.write(b"x" * 5000)
        stream.close()
        assert await receive_all(peer, 10_000) == b"x" * 5000

    async def test_no_last_words_after_half_a_command(self, pair: Pair) -> None:
        stream, peer = pair
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await fill(stream)
        stream.close(b"QUIT\r\n")
        assert (await receive_all(peer, 1 << 30)).strip(b"\0") == b""

    async def test_aborting_resets(self, pair: Pair) -> None:
        stream, peer = pair
        await stream.write(b"message")
        stream.abort()
        with pytest.raises(ConnectionResetError):
            await receive_all(peer, 100)

    async def test_nothing_works_afterwards(self, pair: Pair) -> None:
        stream, _ = pair
        stream.close()
        assert stream.unacknowledged() == 0
        with pytest.raises(StreamClosed):
            await stream.read()
        with pytest.raises(StreamClosed):
            await stream.write(b"x")
        with pytest.raises(StreamClosed):
            await stream.ready(reading=True)

    async def test_a_stream_that_ended_leaves_nothing_open(self) -> None:
        before = set(os.listdir("/proc/self/fd"))
        for end in (Stream.close, Stream.abort):
            stream, peer = connected_pair()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await stream.read()
            end(stream)
            peer.close()
        gc.collect()  # an unclosed socket would warn, and a warning is an error
        assert set(os.listdir("/proc/self/fd")) == before
