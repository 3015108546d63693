"""What ``mxpolicy check`` says of the daemon's sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mxpolicy.check import daemon
from mxpolicy.check.access import Account
from mxpolicy.check.report import Level
from mxpolicy.net.listen import listen_at
from mxpolicy.options import ListenOptions, LmtpSockets, Options, PipeSockets

if TYPE_CHECKING:
    from collections.abc import Iterator

ME = Account("me", os.geteuid(), frozenset((os.getegid(),)))
OTHER = Account("other", 54321, frozenset((54321,)))


@pytest.fixture
def run() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        directory.chmod(0o755)
        yield directory


def said(run: Path, user: Account = ME, options: Options | None = None) -> list[str]:
    """Return level and text of each row."""
    environ = {"RUNTIME_DIRECTORY": str(run)}
    items = daemon.look(options or Options(), environ, user)
    return [f"{one.level.value}: {one.text}" for one in items]


def test_without_a_daemon_each_message_is_a_process(run: Path) -> None:
    alone = "mxpolicy pipe delivers each message by a process of its own"
    none = "No such file or directory"
    assert said(run) == [f"ok: no daemon at {run}/pipe ({none}): {alone}"]


def test_daemon_that_has_died_is_told(run: Path) -> None:
    listen_at(f"{run}/pipe").socket.close()
    [item] = daemon.look(Options(), {"RUNTIME_DIRECTORY": str(run)}, ME)
    assert item.level is Level.WARN
    assert f"the socket {run}/pipe is there, and no daemon behind it" in item.text
    assert item.mend == "systemctl restart mxpolicy.service"


def test_daemon_with_a_full_queue_is_waited_for(run: Path) -> None:
    at = f"{run}/pipe"
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        listener, first, second = sockets
        listener.bind(at)
        listener.listen(0)
        first.connect(at)
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.connect(at)
        assert daemon.connect(at, "pipe", 0.001).trouble == "it does not accept"
        accepts = threading.Timer(0.005, lambda: listener.accept()[0].close())
        accepts.start()
        assert daemon.connect(at, "pipe").trouble == ""
        accepts.join()


def test_daemon_that_systemd_should_run_is_missed(run: Path) -> None:
    wants = run / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "mxpolicy.service").touch()
    (wants / "mxpolicy-exim-kick.path").touch()
    assert daemon.enabled_units(str(run)) == []  # systemd is not what runs here
    (run / "run/systemd/system").mkdir(parents=True)
    units = daemon.enabled_units(str(run))
    assert units == ["mxpolicy.service"]
    environ = {"RUNTIME_DIRECTORY": str(run)}
    [item] = daemon.look(Options(), environ, ME, units=units)
    assert item.level is Level.WARN
    assert "though systemd is to run mxpolicy.service" in item.text
    with contextlib.closing(listen_at(f"{run}/pipe")):
        [item] = daemon.look(Options(), environ, ME, units=units)
    assert item.level is Level.OK


@pytest.mark.parametrize("at", ["unix", "127.0.0.1:9"])
def test_mail_server_that_delivers_to_no_daemon_fails(run: Path, at: str) -> None:
    options = Options(listen=ListenOptions(lmtp=LmtpSockets(at=(at,))))
    environ = {"RUNTIME_DIRECTORY": str(run)}
    used = daemon.places(options, environ, "lmtp")
    items = daemon.look(options, environ, ME, used)
    [item] = [one for one in items if one.level is Level.FAIL]
    assert "where none answers" in item.text
    assert item.mend == "systemctl restart mxpolicy.service"
    assert Level.FAIL not in [one.level for one in daemon.look(options, environ, ME)]


def test_mail_server_that_is_shut_out_of_where_it_delivers_fails(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "MAIL_SERVERS", {"postfix": lambda name: OTHER})
    with contextlib.closing(listen_at(f"{run}/lmtp")):
        environ = {"RUNTIME_DIRECTORY": str(run)}
        _, item = daemon.look(Options(), environ, ME, [f"{run}/lmtp"])
    assert (item.level, item.mend) == (Level.FAIL, "listen: {lmtp: {group: other}}")
    assert "that mail is deferred" in item.text


def greet(listening: socket.socket) -> None:
    """Greet one client, and wait until it has gone."""
    with listening.accept()[0] as client:
        client.sendall(b"220 me\r\n")
        client.recv(1)


def test_mail_server_that_delivers_by_tcp_needs_no_unix_socket(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "MAIL_SERVERS", {"postfix": lambda name: OTHER})
    environ = {"RUNTIME_DIRECTORY": str(run)}
    with (
        contextlib.closing(listen_at(f"{run}/lmtp")),
        contextlib.closing(socket.create_server(("127.0.0.1", 0))) as tcp,
    ):
        at = f"127.0.0.1:{tcp.getsockname()[1]}"
        greeting = threading.Thread(target=greet, args=(tcp,))
        greeting.start()
        options = Options(listen=ListenOptions(lmtp=LmtpSockets(at=("unix", at))))
        items = daemon.look(options, environ, ME, [at])
        greeting.join()
    assert [one.level for one in items] == [Level.OK, Level.OK], items


def test_daemon_is_started_by_hand_where_systemd_does_not_run(run: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": str(run)}
    items = daemon.look(Options(), environ, ME, [f"{run}/lmtp"], has_systemd=False)
    [item] = [one for one in items if one.level is Level.FAIL]
    program = os.path.join(sys.prefix, "bin", "mxpolicy")
    assert item.mend == (
        f"install -d -o me -g me {run}; setpriv --reuid=me --regid=me --init-groups"
        f" {program} serve"
    )


def test_daemon_that_takes_messages(run: Path) -> None:
    with contextlib.closing(listen_at(f"{run}/pipe")):
        expected = f"ok: a daemon answers at {run}/pipe: me hands its messages over"
        assert said(run) == [expected]
        options = Options(listen=ListenOptions(pipe=PipeSockets(at=())))
        assert said(run, options=options) == []
    path = f"{run}/elsewhere"
    with contextlib.closing(listen_at(path)):
        options = Options(listen=ListenOptions(pipe=PipeSockets(at=(path,))))
        assert said(run, options=options)[0].startswith(
            f"ok: a daemon answers at {path}"
        )


@pytest.mark.parametrize(("later", "is_told"), [(60, True), (-60, False)])
def test_daemon_of_before_an_upgrade_is_told(
    run: Path, later: int, is_told: bool
) -> None:
    package = run / "__init__.py"
    package.touch()
    # We listen: the process is our own.
    began = daemon._began(os.getpid())
    assert began is not None
    os.utime(package, (0, began + later))
    environ = {"RUNTIME_DIRECTORY": str(run)}
    with contextlib.closing(listen_at(f"{run}/pipe")):
        _, *old = daemon.look(Options(), environ, ME, package=str(package))
    assert [one.mend for one in old] == ["systemctl restart mxpolicy.service"] * is_told
    assert all(f"(process {os.getpid()}) began before" in one.text for one in old)


def test_daemon_that_may_not_be_used(run: Path) -> None:
    with contextlib.closing(listen_at(f"{run}/pipe")):
        [item] = daemon.look(Options(), {"RUNTIME_DIRECTORY": str(run)}, OTHER)
    assert item.level is Level.WARN
    assert "other has no permission for" in item.text
    assert item.mend == "listen: {pipe: {group: other}}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_daemon_of_a_stranger_gets_no_messages(run: Path) -> None:
    with contextlib.closing(listen_at(f"{run}/pipe")):
        os.chown(run / "pipe", 54322, -1)
        (run / "pipe").chmod(0o666)
        [item] = daemon.look(Options(), {"RUNTIME_DIRECTORY": str(run)}, OTHER)
    assert item.level is Level.WARN
    assert "runs as user 54322" in item.text


def test_socket_that_accepts_nobody_is_no_daemon(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "_PATIENCE", 0.01)
    with (
        contextlib.ExitStack() as waiting,
        socket.socket(socket.AF_UNIX) as busy,
    ):
        busy.bind(f"{run}/pipe")
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(f"{run}/pipe")
        [text] = said(run)
    assert "(it does not accept)" in text or "temporarily unavailable" in text


def test_mail_server_that_may_not_connect_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = {"postfix": lambda name: OTHER._replace(name=name)}
    monkeypatch.setattr(daemon, "MAIL_SERVERS", accounts)
    options = Options(
        listen=ListenOptions(lmtp=LmtpSockets(at=("127.0.0.1:24", "unix")))
    )
    with contextlib.closing(listen_at(f"{run}/lmtp")):
        _, text = said(run, options=options)
        assert text == (
            f"ok: {run}/lmtp is closed to postfix; listen: {{lmtp: {{group: GROUP}}}}"
            " opens it, or SocketGroup= where systemd has made it"
        )
        (run / "lmtp").chmod(stat.S_IMODE(0o666))
        _, text = said(run, options=options)
        assert text == f"ok: {run}/lmtp is open to postfix"


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        (b"action=DUNNO\n\n", ""),
        (b"220 mx.example ESMTP\r\n\n\n", "it answers a question with '220 mx.example"),
        (b"action=DUNNO\n", "it answers a question with 'action=DUNNO"),
        (b"x" * 5000, "it answers a question with 'xxxx"),
        (b"", "it answers a question with ''"),
        (None, "no answer to a question within 0.1 s"),
    ],
)
def test_policy_service_is_one_only_if_it_answers_a_question(
    run: Path, said: bytes | None, trouble: str
) -> None:
    heard: list[bytes] = []
    ended = threading.Event()

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            heard.append(client.recv(4096))
            if said is None:
                ended.wait(60)
            else:
                client.sendall(said)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{run}/policy")
        listener.listen()
        serving = threading.Thread(target=serve)
        serving.start()
        patience = 0.1 if said is None else 60.0
        answer = daemon.connect(f"{run}/policy", "policy", patience)
        ended.set()
        serving.join()
    assert answer.trouble.startswith(trouble)
    assert bool(answer.trouble) is bool(trouble)
    assert heard == [b"request=smtpd_access_policy\n\n"]
    assert answer.owner == os.getuid()
