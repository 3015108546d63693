"""`Stream.drain` where the kernel announces acknowledgements, on both event loops."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from mxpolicy.net import channel
from mxpolicy.net import stream as stream_module
from mxpolicy.net.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

BODY = b"x" * 500


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    """Return what runs a coroutine on the one loop or the other, for 10 s at most."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(main, 10))

    return run


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request: pytest.FixtureRequest) -> Any:
    """Yield a stream, and the other end, which keeps acknowledgements back."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listener:
        near = socket.create_connection(listener.getsockname()[:2])
        peer, _ = listener.accept()
    stream = Stream(near)
    peer.setblocking(False)
    yield stream, peer
    stream.abort()
    peer.close()


async def command(stream: Stream, peer: socket.socket) -> None:
    """Have the peer answer something: from then on it keeps acknowledgements back."""
    loop = asyncio.get_running_loop()
    await stream.write(b"DATA\r\n")
    assert (await loop.sock_recv(peer, 65536)).endswith(b"DATA\r\n")
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    await loop.sock_sendall(peer, b"354\r\n")
    assert await stream.read() == b"354\r\n"


def acknowledge(peer: socket.socket) -> None:
    """Have the peer read, and acknowledge that at once."""
    assert peer.recv(65536)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Looks:
    """What `drain` asks; counts how often."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def suffices(self, unacknowledged: int) -> bool:
        self.left.append(unacknowledged)
        return not unacknowledged


def test_announcement_ends_the_wait(
    run: Any, ends: tuple[Stream, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_ANNOUNCED_LOOK", 1000.0)
    stream, peer = ends

    async def main() -> Looks:
        looks = Looks()
        await command(stream, peer)
        stream.announce(True)
        await stream.write(BODY)
        stream.announce(False)
        assert await stream.drain(heed_input=True, suffices=looks.suffices)
        return looks

    assert run(main()).left == [len(BODY), 0]


def test_wait_ends_without_the_announcement(
    run: Any, ends: tuple[Stream, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_ANNOUNCED_LOOK", 0.01)
    stream, peer = ends

    async def main() -> None:
        await command(stream, peer)
        stream.announce(True)
        await stream.write(BODY)
        acknowledge(peer)
        stream.socket.recvmsg(0, 512, socket.MSG_ERRQUEUE)  # now there is none
        stream.announce(False)
        await command(stream, peer)
        await stream.write(BODY)
        assert await stream.drain(heed_input=True)
        assert stream.unacknowledged() == 0

    run(main())


def test_kernel_that_announces_nothing_is_looked_at(
    run: Any, ends: tuple[Stream, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_TX_ACK", 1 << 30)  # what no kernel knows
    monkeypatch.setattr(stream_module, "_ANNOUNCED_LOOK", 1000.0)
    stream, peer = ends

    async def main() -> None:
        await command(stream, peer)
        stream.announce(True)
        await stream.write(BODY)
        stream.announce(False)
        assert await stream.drain(heed_input=True)

    run(main())


def test_late_announcement_neither_spins_nor_keeps_a_reply_back(
    run: Any, ends: tuple[Stream, socket.socket]
) -> None:
    """The dot may leave before the acknowledgement of all that was to be announced."""
    stream, peer = ends
    waits = 0
    ready = stream._readiness.ready

    async def counted(**how: Any) -> None:
        nonlocal waits
        waits += 1
        await ready(**how)

    stream._readiness.ready = counted  # type: ignore[method-assign]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await command(stream, peer)
        stream.announce(True)
        await stream.write(BODY)
        stream.announce(False)
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)  # it waits
        acknowledge(peer)
        for _ in range(100):
            await asyncio.sleep(0)
        assert 2 <= waits <= 3, "an announcement that is not taken wakes for ever"
        await loop.sock_sendall(peer, b"250\r\n")
        assert await reading == b"250\r\n"

    run(main())


def test_reply_ends_the_wait(run: Any, ends: tuple[Stream, socket.socket]) -> None:
    stream, peer = ends
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    async def main() -> None:
        await command(stream, peer)
        stream.announce(True)
        await stream.write(bytes(1 << 20))  # more than the peer's window
        stream.announce(False)
        peer.send(b"552 no\r\n")
        assert await stream.drain(heed_input=True) is False
        assert await stream.read() == b"552 no\r\n"

    run(main())


@pytest.mark.parametrize("heeds", [True, False], ids=["heeds input", "does not"])
def test_large_body_is_announced_however_many_writes_it_takes(
    run: Any,
    ends: tuple[Stream, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    heeds: bool,
) -> None:
    monkeypatch.setattr(stream_module, "_ANNOUNCED_LOOK", 1000.0)
    stream, peer = ends
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        size = 1 << 20
        await command(stream, peer)

        async def take() -> None:
            left = size
            while left:
                left -= len(await loop.sock_recv(peer, 65536))

        async with asyncio.TaskGroup() as group:
            group.create_task(take())
            stream.announce(True)
            assert await stream.write(b"x" * size, heed_input=heeds)
            stream.announce(False)
            assert await stream.drain(heed_input=heeds)
        assert stream.unacknowledged() == 0

    run(main())


def test_socket_is_watched_from_one_wait_to_the_next(
    run: Any, ends: tuple[Stream, socket.socket]
) -> None:
    stream, peer = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(2):
            reading = asyncio.create_task(stream.read())
            await asyncio.sleep(0)
            assert stream._readiness._watched_by is loop
            peer.send(b"250 ok\r\n")
            assert await reading == b"250 ok\r\n"
            assert stream._readiness._watched_by is loop, (
                "it would be watched anew for each reply"
            )
        peer.send(b"421 bye\r\n")
        for _ in range(10):
            await asyncio.sleep(0)
        assert stream._readiness._watched_by is None, (
            "unread input would wake the loop for ever"
        )
        assert await stream.wait_for_input(1000.0)
        assert await stream.read() == b"421 bye\r\n"

    run(main())
