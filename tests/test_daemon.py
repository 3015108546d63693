"""``mxpolicy serve``, run as systemd runs it."""

from __future__ import annotations

import re
import signal
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from mxpolicy import __version__
from mxpolicy.doors import DOORS
from tests.helpers.serving import TIMEOUT, Runner, serving

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["serving"]

QUESTION = (
    b"request=smtpd_access_policy\nprotocol_state=RCPT\nrecipient=a@[192.0.2.1]\n\n"
)
DUNNO = b"action=DUNNO\n\n"


def ask(client: socket.socket) -> bytes:
    """Return the answer to a question that needs no name server."""
    client.sendall(QUESTION)
    return client.recv(4096)


def test_clients_are_served_as_soon_as_it_is_ready(serving: Runner) -> None:
    with serving.started() as daemon, daemon.connect("policy") as client:
        assert ask(client) == DUNNO
        assert ask(client) == DUNNO
        assert f"(mxpolicy {__version__} serves " in daemon.log()
        assert daemon.told[0].split("\n") == [
            "READY=1",
            "STATUS=serving; deliveries under way: 0",
        ]


def test_socket_is_for_owner_and_group_only(serving: Runner) -> None:
    with serving.started(umask=0o077) as daemon:
        mode = (daemon.run / "policy").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_and_removes_what_it_made(
    serving: Runner, number: signal.Signals
) -> None:
    with serving.started() as daemon:
        assert daemon.end(number) == 0
        daemon.wait_for("STOPPING=1")
        assert list(daemon.run.iterdir()) == []


def test_second_daemon_leaves_the_first_alone(serving: Runner) -> None:
    with serving.started() as daemon:
        with serving.started(wait=False, stderr=-1) as second:
            _, said = second.process.communicate(timeout=TIMEOUT)
            assert second.process.returncode == 1
        assert said.decode() == (
            f"mxpolicy: cannot listen at {daemon.run / next(iter(DOORS))}:"
            " another process listens there\n"
        )
        with daemon.connect("policy") as client:
            assert ask(client) == DUNNO


def test_socket_of_a_daemon_that_was_killed_is_replaced(serving: Runner) -> None:
    with serving.started() as daemon:
        daemon.process.kill()
        daemon.process.wait(TIMEOUT)
        assert (daemon.run / "policy").is_socket()
    with serving.started() as daemon, daemon.connect("policy") as client:
        assert ask(client) == DUNNO


def test_file_that_is_no_socket_is_left_alone(serving: Runner) -> None:
    (serving.run / "policy").write_text("mine")
    with serving.started(wait=False, stderr=-1) as daemon:
        _, said = daemon.process.communicate(timeout=TIMEOUT)
    assert b"there is a file that is no socket" in said
    assert (serving.run / "policy").read_text() == "mine"


def test_wrong_configuration_is_no_beginning(serving: Runner) -> None:
    serving.configure("listen: {policy: {at: [policy]}}")
    with serving.started(wait=False, stderr=-1) as daemon:
        _, said = daemon.process.communicate(timeout=TIMEOUT)
        assert daemon.process.returncode == 1
    assert re.fullmatch(
        r".*/serve\.yaml:3:24: listen\.policy\.at\[0\]: 'policy' is no socket; write"
        r" unix, an absolute path, 127\.0\.0\.1:2424 or \[::1\]:2424\n",
        said.decode(),
    )


def given_socket(path: Path) -> socket.socket:
    """Return what systemd opens."""
    given = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    given.bind(str(path))
    given.listen()
    return given


def test_sockets_from_systemd_are_served_and_their_paths_stay(
    serving: Runner, tmp_path: Path
) -> None:
    path = tmp_path / "given"
    with given_socket(path) as given, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(path))  # before there is a daemon
        with serving.started(given=[("policy", given)]) as daemon:
            assert ask(client) == DUNNO
            assert not (daemon.run / "policy").exists()
            assert daemon.end() == 0
        with socket.socket(socket.AF_UNIX) as later:
            later.settimeout(TIMEOUT)
            later.connect(str(path))
            with serving.started(given=[("policy", given)]):
                assert ask(later) == DUNNO
