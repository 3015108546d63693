"""Listening sockets, with real files and ports."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from mxpolicy.errors import ListenError
from mxpolicy.net import listen
from mxpolicy.net.listen import Socket, listen_at, listen_at_given
from tests.net.pairs import client_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT = 20


@contextlib.contextmanager
def listening_at(path: Path, group: str = "") -> Iterator[Socket]:
    one = listen_at(str(path), group)
    try:
        yield one
    finally:
        one.close()


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
