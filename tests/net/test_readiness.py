"""`mxpolicy.net.readiness`, by the stream that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mxpolicy.net.channel import StreamClosed
from mxpolicy.net.stream import Stream
from tests.net.pairs import (
    Pair,
    connected_pair,
    expect,
    fill,
    pair,
    watched_descriptors,
)

__all__ = ["pair"]  # a fixture


async def hear_later(pair: Pair) -> None:
    """Hear what was not there at once."""
    stream, peer = pair
    reading = asyncio.create_task(stream.read())
    await asyncio.sleep(0.001)
    assert not reading.done()
    peer.sendall(b"at last")
    assert await reading == b"at last"


class TestLimit:
    """Of the time for all that waits, with milliseconds for seconds."""

    async def test_whoever_waits_longer_is_told_and_may_go_on(self, pair: Pair) -> None:
        stream, peer = pair
        stream.wait_at_most(0.01)
        with pytest.raises(TimeoutError):
            await stream.read()
        with pytest.raises(TimeoutError):  # it is over, also for the next one
            await stream.read()
        with pytest.raises(TimeoutError):
            await fill(stream)
        assert watched_descriptors() == set()
        stream.wait_at_most(None)
        peer.sendall(b"late")
        assert await stream.read() == b"late"

    async def test_which_is_put_off_or_brought_forward_counts_from_then_on(
        self, pair: Pair
    ) -> None:
        stream, _ = pair
        clock = asyncio.get_running_loop().time
        for seconds in (0.5, 60.0):
            stream.wait_at_most(seconds)
            await hear_later(pair)
        began = clock()
        stream.wait_at_most(0.55)  # the timer of 0.5 rings before it
        with pytest.raises(TimeoutError):
            await stream.read()
        assert 0.54 <= clock() - began < 30
        stream.wait_at_most(60.0)
        await hear_later(pair)
        stream.wait_at_most(0.01)  # sooner than the timer of 60
        with pytest.raises(TimeoutError):
            await stream.read()

    async def test_a_shorter_wait_inside_it_ends_by_itself(self, pair: Pair) -> None:
        stream, _ = pair
        stream.wait_at_most(60.0)
        assert not await stream.wait_for_input(0.001)
        stream.wait_at_most(0.01)
        with pytest.raises(TimeoutError):
            await stream.wait_for_input(60.0)

    async def test_stream_that_has_ended_has_no_timer(self, pair: Pair) -> None:
        stream, _ = pair
        loop: Any = asyncio.get_running_loop()
        stream.wait_at_most(60.0)
        await hear_later(pair)
        timers = [*loop._scheduled]
        assert timers
        stream.close()
        assert all(one.cancelled() for one in timers)


class TestTheEnd:
    @pytest.mark.parametrize("end", [Stream.close, Stream.abort])
    async def test_whoever_still_waits_is_told(
        self, pair: Pair, end: Callable[[Stream], None]
    ) -> None:
        stream, _ = pair
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(expect(StreamClosed, stream.read()))
            await asyncio.sleep(0)
            end(stream)
            await reading
        assert watched_descriptors() == set()

    async def test_a_descriptor_used_again_at_once_is_not_confused(
        self, pair: Pair
    ) -> None:
        stream, _ = pair
        task = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        number = stream.socket.fileno()
        stream.close()
        other, peer = connected_pair()
        try:
            assert number in (other.socket.fileno(), peer.fileno())
            peer.sendall(b"for the new one")
            assert await other.read() == b"for the new one"
        finally:
            other.close()
            peer.close()
