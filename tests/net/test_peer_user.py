from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mxpolicy.net.peer_user import NOT_HERE, peer_user

FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@contextmanager
def listening(family: int, host: str) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError as error:
            pytest.skip(str(error))
        listener.settimeout(10)
        listener.listen()
        yield listener


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_user_of_a_client_here(family: int, host: str) -> None:
    with listening(family, host) as listener, socket.socket(family) as client:
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            assert peer_user(server) == os.getuid()
            assert peer_user(client) == os.getuid()
            client.shutdown(socket.SHUT_WR)
            assert peer_user(server) == os.getuid()


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_a_client_that_has_closed_is_nobody(family: int, host: str) -> None:
    with listening(family, host) as listener:
        with socket.socket(family) as client:
            client.connect(listener.getsockname())
            server, _ = listener.accept()
        with server:  # the kernel calls such a socket's owner root
            assert peer_user(server) == NOT_HERE


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_user_of_another_process() -> None:
    with listening(*FAMILIES[0]) as listener:
        host, port = listener.getsockname()
        words = f"import socket; socket.create_connection(('{host}', {port})).recv(1)"
        other = subprocess.Popen(["/usr/bin/python3", "-Sc", words], user=65534)
        try:
            server, _ = listener.accept()
            with server:
                assert peer_user(server) == 65534
        finally:
            other.kill()
            other.wait()


def test_connection_that_has_ended() -> None:
    with listening(*FAMILIES[0]) as listener:
        client = socket.create_connection(listener.getsockname())
        client.close()
        with pytest.raises(OSError, match="descriptor"):
            peer_user(client)
