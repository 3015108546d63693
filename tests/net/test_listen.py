"""Listening sockets, with real files, ports and clients."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import grp
import os
import resource
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from mxpolicy.errors import ListenError
from mxpolicy.net import listen
from mxpolicy.net.listen import Acceptor, Socket, listen_at, listen_at_given

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

TIMEOUT = 20


@contextlib.contextmanager
def listening_at(path: Path, group: str = "") -> Iterator[Socket]:
    one = listen_at(str(path), group)
    try:
        yield one
    finally:
        one.close()


def client_of(path: Path | str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    try:
        client.connect(str(path))
    except BaseException:
        client.close()
        raise
    return client


# -- files ------------------------------------------------------------------


def test_socket_file_is_for_owner_and_group_and_goes_with_the_socket(
    tmp_path: Path,
) -> None:
    path = tmp_path / "one"
    before = os.umask(0o077)
    try:
        with listening_at(path):
            found = path.stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o660
            assert found.st_gid == os.getegid()
    finally:
        os.umask(before)
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has groups to give")
def test_socket_file_has_the_group_that_is_asked_for(tmp_path: Path) -> None:
    first, second = [one for one in grp.getgrall() if one.gr_gid != os.getegid()][:2]
    with listening_at(tmp_path / "one", first.gr_name) as one:
        assert (tmp_path / "one").stat().st_gid == first.gr_gid
        one.give(second.gr_name)
        assert (tmp_path / "one").stat().st_gid == second.gr_gid
        one.give("")
        assert (tmp_path / "one").stat().st_gid == os.getegid()


def test_group_that_does_not_exist_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="there is no group 'no-such-group'"):
        listen_at(str(tmp_path / "one"), "no-such-group")
    assert not (tmp_path / "one").exists()


def test_file_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "one"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()
    with pytest.raises(ConnectionRefusedError):
        client_of(path)
    with listening_at(path):
        client_of(path).close()
    assert not path.exists()


def test_socket_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "one"
    with listening_at(path):
        with pytest.raises(ListenError, match="another process listens there"):
            listen_at(str(path))
        client_of(path).close()


def test_socket_whose_process_does_not_accept_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "one"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy,
        contextlib.ExitStack() as waiting,
    ):
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting.enter_context(client_of(path))
        with pytest.raises(ListenError, match="another process listens there"):
            listen_at(str(path))


def test_who_locks_the_directory_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "LOCKED_WITHIN", 0.02)
    path = tmp_path / "one"
    stranger = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(stranger, fcntl.LOCK_EX)
        with listening_at(path):
            client_of(path).close()
        assert not path.exists()
    finally:
        os.close(stranger)


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "one"
    match kind:
        case "file":
            path.write_text("mine")
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case _:
            path.mkdir()
    with pytest.raises(ListenError, match="there is a file that is no socket"):
        listen_at(str(path))
    assert path.is_symlink() or path.exists()


def test_file_that_is_another_ones_by_now_stays(tmp_path: Path) -> None:
    path = tmp_path / "one"
    with listening_at(path) as one:
        assert one.is_reachable
        path.unlink()
        assert not one.is_reachable
        theirs = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.bind(str(path))
        assert not one.is_reachable
    with theirs:
        assert path.is_socket()


def test_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ListenError) as caught:
        listen_at(str(tmp_path / "run" / "one"))
    assert str(caught.value) == (
        f"cannot listen at {tmp_path}/run/one: there is no directory {tmp_path}/run;"
        " make it, owned by mxpolicy's user"
    )


# -- ports ------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_port_is_listened_at_and_taken_only_once(host: str) -> None:
    one = listen_at(f"{host}:0")
    try:
        assert not one.is_local
        port = one.socket.getsockname()[1]
        with pytest.raises(ListenError, match="another process listens there"):
            listen_at(f"{host}:{port}")
    finally:
        one.close()


def test_address_of_another_machine_is_no_place_to_listen() -> None:
    with pytest.raises(ListenError, match="Cannot assign requested address"):
        listen_at("192.0.2.1:2424")


# -- given by systemd -------------------------------------------------------


def test_given_socket_keeps_its_path(tmp_path: Path) -> None:
    path = tmp_path / "one"
    given = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    given.bind(str(path))
    given.listen()
    one = listen_at_given(given)
    assert one.at == str(path)
    one.give("no-such-group")  # it is not ours to give, and nothing happens
    one.close()
    assert path.is_socket()


@pytest.mark.parametrize(
    ("kind", "listens", "text"),
    [
        pytest.param(socket.SOCK_DGRAM, False, "no stream socket", id="datagrams"),
        pytest.param(socket.SOCK_STREAM, False, "does not listen", id="connected"),
    ],
)
def test_given_socket_that_cannot_serve_is_refused(
    kind: socket.SocketKind, listens: bool, text: str
) -> None:
    with socket.socket(socket.AF_INET, kind) as given:
        given.bind(("127.0.0.1", 0))
        port = given.getsockname()[1]
        with pytest.raises(ListenError, match=text) as caught:
            listen_at_given(given)
        assert caught.value.at == f"127.0.0.1:{port}"


# -- accepting --------------------------------------------------------------


class Site:
    """A acceptor, and what it told."""

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
    monkeypatch.setattr(listen, "PAUSE", 0.01)
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
