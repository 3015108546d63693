"""`mxpolicy.server.lmtp.users`: who may send by a TCP port."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.options import Options
from mxpolicy.server.lmtp import QUIET, LmtpServer
from mxpolicy.server.lmtp.users import KEPT, check_user
from tests.helpers.fake_resolver import FakeResolver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mxpolicy.delivery.events import Event

NOBODY = 65534


@contextmanager
def connected(user: int) -> Iterator[socket.socket]:
    """Yield our end of a connection that a process of *user* has made."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        host, port = listener.getsockname()
        address = f"('{host}', {port})"
        words = f"import socket; socket.create_connection({address}).makefile().read()"
        other = subprocess.Popen(["/usr/bin/python3", "-Sc", words], user=user)
        try:
            server, _ = listener.accept()
            with server:
                yield server
        finally:
            other.kill()
            other.wait()


def test_our_own_user_may() -> None:
    with connected(os.geteuid()) as server:
        assert check_user(server, ()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_another_user_must_be_named() -> None:
    name = pwd.getpwuid(NOBODY).pw_name
    with connected(NOBODY) as server:
        assert check_user(server, ("no-such-user", name)) is None
        assert check_user(server, (str(NOBODY),)) is None
        refusal = check_user(server, ("no-such-user", "daemon"))
    assert refusal is not None
    assert str(refusal.status) == "4.7.1"  # for now: the option may be wrong
    assert refusal.text == (
        f"user {name} may not send mail by this port (listen: lmtp: users)"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_other_names_are_not_looked_up_for_a_user_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def hangs(name: str) -> pwd.struct_passwd:
        asked.append(name)
        raise KeyError

    monkeypatch.setattr(pwd, "getpwnam", hangs)
    users = ("no-such-user", pwd.getpwuid(NOBODY).pw_name)
    with connected(NOBODY) as server:
        assert check_user(server, users) is None
    with connected(os.geteuid()) as server:
        assert check_user(server, users) is None
    assert asked == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_user_is_looked_up_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(user: int) -> pwd.struct_passwd:
        asked.append(user)
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", counted)
    now = 1e9
    with connected(NOBODY) as server:
        for _ in range(3):
            assert check_user(server, (), lambda: now) is not None
        assert asked == [NOBODY]
        now += KEPT
        assert check_user(server, (), lambda: now) is not None
    assert asked == [NOBODY, NOBODY]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
async def test_a_stranger_is_told_once_a_minute() -> None:
    async def greeted() -> None:
        with connected(NOBODY) as server:
            server.setblocking(False)
            serving = asyncio.create_task(lmtp.serve(server))
            await asyncio.sleep(0)
            serving.cancel()
            await asyncio.wait([serving])

    told: list[Event] = []
    now = 0.0
    engine = Engine(Context(Options(helo="us.example.net"), resolver=FakeResolver()))
    lmtp = LmtpServer(lambda: engine, told.append, clock=lambda: now)
    await greeted()
    await greeted()
    assert len(told) == 1
    now += QUIET
    await greeted()
    assert len(told) == 2


def test_a_client_that_cannot_be_known_may_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        client.close()
        with server:
            refusal = check_user(server, ())
    assert refusal is not None
    assert refusal.text.startswith("a client whose user cannot be found out")


def test_mode_and_group_decide_for_a_unix_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert check_user(ours, ()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
async def test_strangers_do_not_take_all_places() -> None:
    def greeted(user: int) -> asyncio.Task[None]:
        server = places.enter_context(connected(user))
        server.setblocking(False)
        return asyncio.create_task(lmtp.serve(server))

    engine = Engine(Context(Options(helo="us.example.net"), resolver=FakeResolver()))
    lmtp = LmtpServer(lambda: engine, lambda event: None, strangers=1)
    with ExitStack() as places:
        first = greeted(NOBODY)
        await asyncio.sleep(0)  # it has its place
        async with asyncio.timeout(20):
            await greeted(NOBODY)
        tasks = [first, greeted(os.geteuid())]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        first.cancel()
        await asyncio.wait([first])
        tasks.append(greeted(NOBODY))
        await asyncio.sleep(0)
        assert not tasks[-1].done()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
