"""`mxpolicy.net.acceptor`, with real sockets and clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from mxpolicy.net import acceptor as acceptor_module
from mxpolicy.net.acceptor import Acceptor
from mxpolicy.net.listen import listen_at, listen_at_given
from tests.net.pairs import client_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

TIMEOUT = 20


class Site:
    """An acceptor, and what it told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self.serve: Callable[[socket.socket], Awaitable[None]] = echo
        self._acceptors: list[Acceptor] = []

    def begin(self, at: str = "", most: int = 10_000, allow: str = "") -> Acceptor:
        networks = [allow] if allow else []
        one = Acceptor(
            listen_at(at or str(self.path)),
            lambda connection: self.serve(connection),
            self.told.append,
            most=most,
            allow=networks,
        )
        self._acceptors.append(one)
        return one

    async def close(self) -> None:
        for one in self._acceptors:
            one.close()
            await one.finish(0.0)


async def echo(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(connection, 100):
        await loop.sock_sendall(connection, data)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    one = Site(tmp_path / "one")
    yield one
    await one.close()


async def answer(client: socket.socket, said: bytes = b"x") -> bytes:
    """Return what comes back of *said*."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT):
        await loop.sock_sendall(client, said)
        return await loop.sock_recv(client, 100)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)


async def test_clients_are_served_at_the_same_time(site: Site) -> None:
    acceptor = site.begin()
    with client_of(site.path) as first, client_of(site.path) as second:
        assert await answer(second) == b"x"
        assert await answer(first) == b"x"
        assert acceptor.clients == 2
    await until(lambda: not acceptor.clients)
    assert site.told == []


async def test_fault_of_ours_ends_one_client_and_is_told(site: Site) -> None:
    async def fail(connection: socket.socket) -> None:
        raise LookupError("a bug")

    site.begin()
    site.serve = fail
    with client_of(site.path) as client:
        await turns()
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    [told] = site.told
    assert told.startswith(f"{site.path}: Traceback")
    assert told.endswith("LookupError: a bug\n")
    site.serve = echo
    with client_of(site.path) as client:
        assert await answer(client) == b"x"


async def test_client_that_vanishes_is_no_news(site: Site) -> None:
    async def fail(connection: socket.socket) -> None:
        raise BrokenPipeError

    acceptor = site.begin()
    site.serve = fail
    client_of(site.path).close()
    await turns()
    assert (acceptor.clients, site.told) == (0, [])


async def test_client_beyond_the_bound_waits_until_another_goes(site: Site) -> None:
    acceptor = site.begin(most=2)
    with client_of(site.path) as first, client_of(site.path) as second:
        assert [await answer(first), await answer(second)] == [b"x", b"x"]
        with client_of(site.path) as third:
            third.send(b"late")
            await turns()
            assert acceptor.clients == 2
            assert await answer(first) == b"x"
            second.close()
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(TIMEOUT):
                assert await loop.sock_recv(third, 100) == b"late"
    assert site.told == [f"{site.path}: 2 clients at once: more must wait"]


@contextlib.contextmanager
def descriptors(free: int) -> Iterator[None]:
    """Let this process open so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as filling:
        # All below the next one are taken, so that the limit counts what is opened.
        for _ in range(max(map(int, os.listdir("/proc/self/fd")))):
            filling.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        probe = os.dup(0)
        os.close(probe)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + free, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_clients_wait_and_others_are_served(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor_module, "PAUSE", 0.01)
    acceptor = site.begin()
    with client_of(site.path) as first, client_of(site.path) as second:
        assert await answer(first) == b"x"
        with client_of(site.path) as third, descriptors(free=0):
            third.send(b"late")
            for _ in range(10):
                await asyncio.sleep(0.01)
                assert await answer(first) == b"x"
            assert acceptor.clients == 2
            assert site.told == [f"{site.path}: clients must wait: Too many open files"]
            second.close()
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(TIMEOUT):
                assert await loop.sock_recv(third, 100) == b"late"
    assert len(site.told) == 1


@pytest.mark.parametrize(
    ("allow", "is_served"),
    [
        pytest.param("127.0.0.0/8", True, id="network"),
        pytest.param("127.0.0.1", True, id="address"),
        pytest.param("10.0.0.0/8", False, id="another"),
        pytest.param("::/0", False, id="another family"),
        pytest.param("", False, id="none"),
    ],
)
async def test_who_may_connect_by_tcp_is_on_the_list(
    site: Site, allow: str, is_served: bool
) -> None:
    acceptor = site.begin("127.0.0.1:0", allow=allow)
    address = acceptor.listening.socket.getsockname()
    with socket.create_connection(address) as client:
        client.setblocking(False)
        if is_served:
            assert await answer(client) == b"x"
        else:
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    with socket.create_connection(address):
        await turns()
    forbidden = ["127.0.0.1:0: 127.0.0.1 may not connect (listen: allow)"]
    assert site.told == ([] if is_served else forbidden)
    acceptor.allow(["127.0.0.1"])
    with socket.create_connection(address) as client:
        client.setblocking(False)
        assert await answer(client) == b"x"


async def test_ipv4_client_of_an_ipv6_socket_counts_as_ipv4(site: Site) -> None:
    given = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    given.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    given.bind(("::", 0))
    given.listen()
    acceptor = Acceptor(
        listen_at_given(given), echo, site.told.append, most=9, allow=["127.0.0.1"]
    )
    with socket.create_connection(("127.0.0.1", given.getsockname()[1])) as client:
        client.setblocking(False)
        assert await answer(client) == b"x"
    acceptor.close()
    await acceptor.finish(0.0)


async def test_closed_listener_serves_its_clients_to_their_end(site: Site) -> None:
    acceptor = site.begin()
    with client_of(site.path) as client:
        assert await answer(client) == b"x"
        acceptor.close()
        with pytest.raises(FileNotFoundError):
            client_of(site.path)
        assert await answer(client) == b"x"
        ending = asyncio.create_task(acceptor.finish(TIMEOUT))
        await turns()
        assert not ending.done()
    async with asyncio.timeout(TIMEOUT):
        await ending


async def test_client_that_stays_is_cancelled_in_the_end(site: Site) -> None:
    acceptor = site.begin()
    with client_of(site.path) as client:
        assert await answer(client) == b"x"
        acceptor.close()
        await acceptor.finish(0.001)
        assert acceptor.clients == 0
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
