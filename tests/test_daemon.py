"""``mxpolicy serve``, run as systemd runs it."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mxpolicy import __version__
from mxpolicy.doors import DOORS
from tests.helpers.handing_over import Command, command
from tests.helpers.piping import MESSAGE, Host, all_answers, host
from tests.helpers.serving import TIMEOUT, Runner, serving

__all__ = ["command", "host", "serving"]

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


def test_it_may_be_started_without_standard_descriptors(serving: Runner) -> None:
    def close() -> None:
        for descriptor in range(3):
            os.close(descriptor)

    serving.configure("log: {to: stderr}")
    with serving.started(preexec_fn=close) as daemon:
        for descriptor in range(3):
            there = daemon.proc(f"fd/{descriptor}").readlink()
            assert str(there) == os.devnull
        with daemon.connect("policy") as client:
            assert ask(client) == DUNNO
        assert daemon.end() == 0


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
        r".*/serve\.yaml:4:24: listen\.policy\.at\[0\]: 'policy' is no socket; write"
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


def test_name_that_systemd_gives_is_that_of_a_door(
    serving: Runner, tmp_path: Path
) -> None:
    path = tmp_path / "given"
    with (
        given_socket(path) as given,
        serving.started(given=[("http", given)], wait=False, stderr=-1) as daemon,
    ):
        _, said = daemon.process.communicate(timeout=TIMEOUT)
        assert daemon.process.returncode == 1
    assert said.decode().startswith(
        f"mxpolicy: cannot listen at {path}: its FileDescriptorName= is 'http'; write"
    )


def test_socket_for_pipe_that_is_no_unix_socket_is_refused(serving: Runner) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        serving.started(given=[("pipe", given)], wait=False, stderr=-1) as daemon,
    ):
        _, said = daemon.process.communicate(timeout=TIMEOUT)
        assert daemon.process.returncode == 1
    assert said.endswith(b": no message can be handed over by TCP\n")


def test_socket_unit_without_a_name_is_known_by_its_path(serving: Runner) -> None:
    path = serving.run / "policy"
    with (
        given_socket(path) as given,
        serving.started(given=[("mxpolicy.socket", given)]) as daemon,
        daemon.connect("policy") as client,
    ):
        assert ask(client) == DUNNO


# -- reading the configuration again ------------------------------------------

REFUSES = "policy: {rules: [{finding: [never_dialled], action: REJECT no}]}"


def test_reload_counts_for_clients_that_are_connected(serving: Runner) -> None:
    serving.configure("allow_dial: []")
    question = b"request=smtpd_access_policy\nrecipient=a@[127.0.0.1]\n\n"
    with serving.started() as daemon, daemon.connect("policy") as client:
        client.sendall(question)
        assert client.recv(4096) == DUNNO
        serving.configure(REFUSES, "allow_dial: []")
        daemon.reload()
        client.sendall(question)
        assert client.recv(4096) == b"action=REJECT no\n\n"
        assert re.match(r"RELOADING=1\nMONOTONIC_USEC=[0-9]+$", daemon.told[-2])
        assert "(configuration read again; serves " in daemon.log()


def test_bad_configuration_is_refused_and_the_old_one_goes_on(serving: Runner) -> None:
    with serving.started() as daemon, daemon.connect("policy") as client:
        serving.configure("policy: {rules: [{finding: [nul_mx], action: REJECT}]}")
        daemon.reload()
        wrong = f"{serving.config}:4:29: policy.rules[0].finding[0]: 'nul_mx'"
        assert f"the old one goes on: {wrong}" in daemon.log()
        assert ask(client) == DUNNO
        with daemon.connect("policy") as another:
            assert ask(another) == DUNNO
        serving.configure()
        daemon.reload()
        assert "configuration read again" in daemon.log()


def test_reload_opens_and_closes_sockets_and_keeps_the_others(serving: Runner) -> None:
    more, port = serving.directory / "more", free_port()
    with serving.started() as daemon, daemon.connect("policy") as client:
        inode = (daemon.run / "policy").stat().st_ino
        serving.configure(f"listen: {{policy: {{at: [unix, {more}, '[::1]:{port}']}}}}")
        daemon.reload()
        assert (daemon.run / "policy").stat().st_ino == inode
        with socket.create_connection(("::1", port), TIMEOUT) as over_tcp:
            assert ask(over_tcp) == DUNNO
            serving.configure(f"listen: {{policy: {{at: [{more}]}}}}")
            daemon.reload()
            assert not (daemon.run / "policy").exists()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("::1", port), TIMEOUT)
            assert ask(over_tcp) == DUNNO  # it was served before
        assert ask(client) == DUNNO
        with daemon.connect(str(more)) as another:
            assert ask(another) == DUNNO
        assert daemon.end() == 0
        assert not more.exists()


def test_reload_brings_back_a_socket_file_that_was_removed(serving: Runner) -> None:
    with serving.started() as daemon, daemon.connect("policy") as client:
        (daemon.run / "policy").unlink()
        daemon.reload()
        with daemon.connect("policy") as another:
            assert ask(another) == DUNNO
        assert ask(client) == DUNNO
        assert daemon.end() == 0
        assert list(daemon.run.iterdir()) == []


def test_removed_socket_file_is_made_anew_without_a_reload(serving: Runner) -> None:
    environ = {"WATCHDOG_USEC": "100000"}
    with serving.started(environ=environ) as daemon, daemon.connect("policy") as client:
        path = daemon.run / "policy"
        path.unlink()
        path.write_text("in its place")
        daemon.wait_for_log("socket files were removed, and stay away")
        path.unlink()
        daemon.wait_for_log(f"socket files were removed, made anew: policy at {path}")
        with daemon.connect("policy") as another:
            assert ask(another) == DUNNO
        assert ask(client) == DUNNO
        assert daemon.log().count("stay away") == 1
        assert daemon.end() == 0
        assert list(daemon.run.iterdir()) == []


def test_removed_file_of_a_socket_from_systemd_is_told_once(
    serving: Runner, tmp_path: Path
) -> None:
    path = tmp_path / "given"
    environ = {"WATCHDOG_USEC": "50000"}
    with (
        given_socket(path) as given,
        serving.started(given=[("policy", given)], environ=environ) as daemon,
    ):
        daemon.wait_for("WATCHDOG=1", 3)
        assert "of systemd's" not in daemon.log()
        path.unlink()
        text = f"socket files of systemd's were removed: policy at {path}; "
        daemon.wait_for_log(text)
        daemon.wait_for("WATCHDOG=1", len(daemon.told) + 3)
        assert daemon.log().count(text) == 1
        path.write_text("in its place")
        assert daemon.end() == 0
        assert path.exists()


def test_group_of_a_socket_from_systemd_is_told_to_have_no_effect(
    serving: Runner, tmp_path: Path
) -> None:
    serving.configure("listen: {policy: {group: mail}}")
    with (
        given_socket(tmp_path / "given") as given,
        serving.started(given=[("policy", given)]) as daemon,
    ):
        daemon.wait_for_log("listen.policy.group has no effect")


def free_port() -> int:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as one:
        return int(one.getsockname()[1])


def test_reload_is_done_as_a_whole_or_not_at_all(serving: Runner) -> None:
    good, bad = serving.directory / "good", serving.directory / "none" / "bad"
    with serving.started() as daemon:
        serving.configure(REFUSES, f"listen: {{policy: {{at: [{good}, {bad}]}}}}")
        daemon.reload()
        assert "there is no directory" in daemon.log()
        assert not good.exists()
        with daemon.connect("policy") as client:
            assert ask(client) == DUNNO


def test_reload_begins_a_new_log_and_says_what_waits_for_a_restart(
    serving: Runner,
) -> None:
    with serving.started() as daemon:
        serving.log.rename(serving.log.with_suffix(".1"))
        serving.configure(f"state: {serving.directory}")
        daemon.reload()
        assert "; 'state' stays as it was until a restart)" in daemon.log()


def test_networks_that_may_connect_are_read_again(serving: Runner) -> None:
    port = free_port()
    at = f"at: ['[::1]:{port}']"
    serving.configure(f"listen: {{policy: {{{at}, allow: [10.0.0.0/8]}}}}")
    with serving.started() as daemon:
        with socket.create_connection(("::1", port), TIMEOUT) as client:
            assert client.recv(1) == b""
        daemon.wait_for_log("::1 may not connect (listen: allow)")
        serving.configure(f"listen: {{policy: {{{at}}}}}")
        daemon.reload()
        with socket.create_connection(("::1", port), TIMEOUT) as client:
            assert ask(client) == DUNNO


# -- where it runs ------------------------------------------------------------


def test_log_on_standard_error(serving: Runner) -> None:
    serving.configure("log: {to: stderr}")
    with serving.started(stderr=-1) as daemon:
        assert daemon.end() == 0
        assert daemon.process.stderr is not None
        lines = daemon.process.stderr.read().decode().splitlines()
    pid = daemon.process.pid
    assert [line.partition(" (")[0].partition(", at=")[0] for line in lines] == [
        f"mxpolicy[{pid}]: NOQUEUE: notice"
    ] * 3
    assert lines[-1].endswith("(has ended)")


def test_terminal_is_told_where_the_log_goes(serving: Runner) -> None:
    serving.configure()
    ours, theirs = pty.openpty()
    try:
        with serving.started(stderr=theirs) as daemon:
            assert daemon.end() == 0
        said = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert said.startswith(f"mxpolicy {__version__} serves pipe at {serving.run}/pipe")
    assert said.endswith(f"; the log goes to {serving.log}\r\n")


def test_signal_before_it_serves_ends_it(serving: Runner) -> None:
    before = """
import mxpolicy.daemon, os, signal
load = mxpolicy.daemon.load
def load_late(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return load(*arguments)
mxpolicy.daemon.load = load_late
"""
    with serving.started(before=before, wait=False) as daemon:
        assert daemon.process.wait(TIMEOUT) == 0
    assert list(serving.run.iterdir()) == []


def test_reload_before_it_serves_is_done_when_it_does(serving: Runner) -> None:
    before = """
import mxpolicy.daemon, os, signal
load = mxpolicy.daemon.load
def load_early(*arguments):
    os.kill(os.getpid(), signal.SIGHUP)
    mxpolicy.daemon.load = load
    return load(*arguments)
mxpolicy.daemon.load = load_early
"""
    with serving.started(before=before) as daemon:
        daemon.wait_for_log("(configuration read again; ")
        assert daemon.end() == 0


def test_state_that_cannot_be_used_is_told_at_the_beginning(serving: Runner) -> None:
    serving.state.chmod(0o777)
    with serving.started() as daemon:
        assert "trouble, " in daemon.log()
        assert "(nothing outlives this process: " in daemon.log()
        assert daemon.told[-1].endswith("; nothing outlives it")
        with daemon.connect("policy") as client:
            assert ask(client) == DUNNO


def test_fault_in_the_background_reaches_the_log(serving: Runner) -> None:
    before = """
import asyncio, mxpolicy.daemon
async def fail(self):
    asyncio.create_task(fail_alone())
    await asyncio.sleep(0)
    raise LookupError("a bug in the kick")
async def fail_alone():
    raise LookupError("a bug in a task")
mxpolicy.daemon.Kick.run = fail
"""
    with serving.started(before=before) as daemon, daemon.connect("policy") as client:
        daemon.wait_for_log("LookupError: a bug in the kick")
        daemon.wait_for_log("LookupError: a bug in a task")
        assert ask(client) == DUNNO
        assert daemon.end() == 0


def test_trouble_of_a_moment_is_no_reason_to_be_killed(serving: Runner) -> None:
    before = """
import mxpolicy.daemon
mend = mxpolicy.daemon.Daemon._mend_sockets
def fail(self):
    mxpolicy.daemon.Daemon._mend_sockets = mend
    raise MemoryError
mxpolicy.daemon.Daemon._mend_sockets = fail
"""
    lively = {"WATCHDOG_USEC": "50000"}
    with serving.started(before=before, environ=lively) as daemon:
        daemon.wait_for_log("MemoryError")
        daemon.wait_for("WATCHDOG=1", len(daemon.told) + 5)


def test_end_begins_though_the_kick_hangs(serving: Runner) -> None:
    before = """
import asyncio, mxpolicy.daemon
async def hang(self):
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(3600)
mxpolicy.daemon.Kick.run = hang
"""
    with serving.started(before=before) as daemon:
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("STOPPING=1")
        daemon.wait_for_log("(has ended)")


def test_it_works_as_process_1(serving: Runner) -> None:
    wrap = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*wrap, "true"], check=False).returncode:
        pytest.skip("no new pid namespaces here")
    lively = {"WATCHDOG_USEC": "50000"}
    with serving.started(wrap=wrap, environ=lively) as daemon:
        with daemon.connect("policy") as client:
            assert ask(client) == DUNNO
        [pid] = children(daemon.process.pid)
        assert "\nNSpid:\t" in (text := Path(f"/proc/{pid}/status").read_text())
        assert re.search(r"\nNSpid:\t.*\t1\n", text)
        os.kill(pid, signal.SIGHUP)
        daemon.wait_for("READY=1", 2)
        # It ends after its parent has.
        enter = ["nsenter", "--target", str(pid), "--pid"]
        subprocess.run([*enter, "sh", "-c", "sleep 0.01 &"], check=True)
        daemon.wait_for("WATCHDOG=1", len(daemon.told) + 20)
        assert children(pid) == []
        os.kill(pid, signal.SIGTERM)
        assert daemon.process.wait(TIMEOUT) == 0
        assert "(has ended)" in daemon.log()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


# -- deliveries, and the end --------------------------------------------------


class Lmtp:
    """A client of the LMTP door."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unread = b""
        assert self.reply().startswith("220 ")
        self.say("LHLO client.example")

    def reply(self) -> str:
        """Return the last line of one reply."""
        while True:
            line, end, rest = self._unread.partition(b"\r\n")
            if not end:
                if not (data := self._connection.recv(4096)):
                    return ""
                self._unread += data
                continue
            self._unread = rest
            if line[3:4] != b"-":
                return line.decode()

    def say(self, line: str) -> str:
        """Send a command, and return its reply."""
        self._connection.sendall(f"{line}\r\n".encode())
        return self.reply()

    def send(self, recipient: str) -> None:
        """Send a message up to the end of its data."""
        assert self.say("MAIL FROM:<me@a.example>").startswith("250 ")
        assert self.say(f"RCPT TO:<{recipient}>").startswith("250 ")
        assert self.say("DATA").startswith("354 ")
        self._connection.sendall(b"Received: from a by b\r\n\r\nHello.\r\n.\r\n")


def to(host: Host) -> str:
    """Return the address of a recipient at *host*."""
    return f"you@[{host.nexthop[1:].partition(']')[0]}]"


Make = Callable[..., Host]


@pytest.fixture
def sends(serving: Runner) -> Callable[[Host], Runner]:
    """Have all mail go to the port of one host."""

    def configured(host: Host, *more: str) -> Runner:
        serving.configure(f"port: {host.nexthop.rpartition(':')[2]}", *more)
        return serving

    return configured


def test_message_is_delivered_by_lmtp(sends: Any, host: Make) -> None:
    one = host()
    with sends(one).started() as daemon, daemon.connect("lmtp") as connection:
        client = Lmtp(connection)
        client.send(to(one))
        assert client.reply().startswith("250 2.0.0 ")
        daemon.wait_for_log("status=sent")
    assert len(one.messages) == 1


def test_single_steps_are_in_the_log_while_the_configuration_asks_for_them(
    sends: Any, host: Make
) -> None:
    one = host()
    runner = sends(one)
    with runner.started() as daemon, daemon.connect("lmtp") as connection:
        client = Lmtp(connection)
        client.send(to(one))
        assert client.reply().startswith("250 2.0.0 ")
        assert "reached" not in daemon.log()
        port = f"port: {one.nexthop.rpartition(':')[2]}"
        runner.configure(port, f"log: {{to: {runner.log}, detail: events}}")
        daemon.reload()
        client.send(f"not.{to(one)}")  # else it was delivered earlier
        assert client.reply().startswith("250 2.0.0 ")
        for step in ("planned", "started", "reached", "taken", "left"):
            daemon.wait_for_log(f": {step}, at=")


def test_no_module_is_loaded_while_it_serves(
    sends: Any, host: Make, command: Command
) -> None:
    """An installation that is renewed meanwhile would give it those of another version."""
    one = host()
    runner = sends(one)
    late = runner.directory / "late"
    before = f"""
import sys
from mxpolicy.net.service_manager import ServiceManager
ready = ServiceManager.ready
def has_begun(self, status):
    ServiceManager.ready = ready
    ready(self, status)
    sys.addaudithook(hear)
def hear(event, arguments):
    if event == "import":
        with open({str(late)!r}, "a") as file:
            print(arguments[0], file=file)
ServiceManager.ready = has_begun
"""
    late.touch()
    with runner.started(before=before) as daemon:
        with daemon.connect("lmtp") as connection, daemon.connect("policy") as asking:
            client = Lmtp(connection)
            client.send(to(one))
            assert client.reply().startswith("250 2.0.0 ")
            assert ask(asking) == DUNNO
            daemon.reload()
            assert client.say("RSET").startswith("250 ")
            client.send(f"not.{to(one)}")
            assert client.reply().startswith("250 2.0.0 ")
            argv = command.argv(daemon.run / "pipe", one.nexthop)
            assert command.run(argv, b"x" * 2_000_000).status == 0
        assert len(one.messages) == 3
        assert "QID: to=<" in daemon.log()
    ours = [name for name in late.read_text().split() if name.startswith("mxpolicy")]
    assert ours == []


WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None"


@pytest.mark.parametrize("has_uvloop", [True, False], ids=["uvloop", "asyncio"])
def test_either_event_loop_serves_all_doors(
    sends: Any, host: Make, has_uvloop: bool
) -> None:
    if has_uvloop:
        pytest.importorskip("uvloop")
    one = host()
    before = "" if has_uvloop else WITHOUT_UVLOOP
    with sends(one).started(before=before) as daemon:
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        assert ("/uvloop/" in maps) == has_uvloop
        with daemon.connect("lmtp") as connection, daemon.connect("policy") as asking:
            client = Lmtp(connection)
            client.send(to(one))
            assert client.reply().startswith("250 2.0.0 ")
            assert ask(asking) == DUNNO
            daemon.reload()
            assert ask(asking) == DUNNO
            assert daemon.end() == 0
        assert "trouble" not in daemon.log()


def test_end_before_the_dot_defers_and_the_host_takes_nothing(
    sends: Any, host: Make
) -> None:
    one = host(holds="DATA")
    with sends(one).started() as daemon, daemon.connect("lmtp") as connection:
        client = Lmtp(connection)
        client.send(to(one))
        assert one.reached.wait(TIMEOUT)
        assert daemon.end() == 0
        assert re.match("4[0-9][0-9] 4\\.", client.reply())
        assert "status=deferred" in daemon.log()
    assert one.messages == []


def test_end_after_the_dot_waits_for_the_host_and_records_its_answer(
    sends: Any, host: Make
) -> None:
    one = host(holds="DOT")
    runner = sends(one)
    with runner.started() as daemon, daemon.connect("lmtp") as connection:
        client = Lmtp(connection)
        client.send(to(one))
        assert one.reached.wait(TIMEOUT)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("STOPPING=1")
        daemon.wait_for("STATUS=ending; deliveries under way: 1")
        # Who comes meanwhile is answered, and the others go on.
        with daemon.connect("lmtp") as second, daemon.connect("policy") as asking:
            late = Lmtp(second)
            late.say("MAIL FROM:<me@a.example>")
            assert late.say(f"RCPT TO:<{to(one)}>").startswith("451 4.3.2 ")
            assert ask(asking) == DUNNO
        daemon.process.send_signal(signal.SIGHUP)  # nothing
        one.release.set()
        assert client.reply().startswith("250 2.0.0 ")
        assert daemon.process.wait(TIMEOUT) == 0
        assert "status=sent" in daemon.log()
    assert len(one.messages) == 1


def test_second_signal_ends_the_wait_and_the_doubt_is_noted(
    sends: Any, host: Make
) -> None:
    one = host(holds="DOT")
    runner = sends(one)
    with runner.started() as daemon, daemon.connect("lmtp") as connection:
        client = Lmtp(connection)
        client.send(to(one))
        assert one.reached.wait(TIMEOUT)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("STOPPING=1")
        assert daemon.end() == 0
        assert "4.4.2" in client.reply()
        assert "ends without an answer to 1 final dots" in daemon.log()
        assert "message may be sent more than once" in daemon.log()


def test_end_defers_what_was_handed_over(
    sends: Any, host: Make, command: Command
) -> None:
    one = host(holds="DATA")
    with sends(one).started() as daemon:
        argv = command.argv(daemon.run / "pipe", one.nexthop)
        with command.started(argv) as (process, answers):
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(MESSAGE)
            assert one.reached.wait(TIMEOUT)
            assert daemon.end() == 0
            [answer] = all_answers(answers)
            assert answer.startswith(b"4.3.2 ")
            assert process.wait(TIMEOUT) == 75
    assert one.messages == []


def test_message_that_comes_while_it_ends_is_delivered_by_its_own_process(
    sends: Any, host: Make, command: Command
) -> None:
    slow, quick = host(holds="DOT"), host()
    with sends(slow).started() as daemon:
        path = daemon.run / "pipe"
        with command.started(command.argv(path, slow.nexthop)) as (process, answers):
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(MESSAGE)
            assert slow.reached.wait(TIMEOUT)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for("STOPPING=1")
            assert command.run(command.argv(path, quick.nexthop)).status == 0
            assert "status=sent" in command.log.read_text()
            slow.release.set()
            assert all_answers(answers)
            assert process.wait(TIMEOUT) == 0
            assert daemon.process.wait(TIMEOUT) == 0
    assert (len(slow.messages), len(quick.messages)) == (1, 1)


def test_its_own_bound_ends_the_wait_too(sends: Any, host: Make) -> None:
    one = host(holds="DOT")
    before = "import mxpolicy.daemon; mxpolicy.daemon.STOPS_WITHIN = 0.1"
    with sends(one).started(before=before) as daemon:
        with daemon.connect("lmtp") as connection:
            client = Lmtp(connection)
            client.send(to(one))
            assert one.reached.wait(TIMEOUT)
            assert daemon.end() == 0
            assert "4.4.2" in client.reply()
        assert "ends without an answer to 1 final dots" in daemon.log()


def test_service_manager_hears_that_it_lives_and_what_it_does(
    sends: Any, host: Make
) -> None:
    one = host(holds="DATA")
    environ = {"WATCHDOG_USEC": "100000"}
    with sends(one).started(environ=environ) as daemon:
        with daemon.connect("lmtp") as connection:
            Lmtp(connection).send(to(one))
            assert one.reached.wait(TIMEOUT)
            daemon.wait_for("STATUS=serving; deliveries under way: 1")
            daemon.wait_for("WATCHDOG=1", times=3)
        daemon.wait_for("STATUS=serving; deliveries under way: 0", times=2)


def test_loop_that_hangs_gives_no_sign_of_life(serving: Runner) -> None:
    before = """
import mxpolicy.daemon, time
def hang(*arguments):
    time.sleep(3600)
mxpolicy.daemon.Daemon._reload = hang
"""
    with serving.started(before=before, environ={"WATCHDOG_USEC": "100000"}) as daemon:
        daemon.wait_for("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_silence(seconds=0.5)


def test_reload_leaves_a_delivery_as_it_began(sends: Any, host: Make) -> None:
    one = host(holds="DATA")
    runner = sends(one)
    with runner.started() as daemon, daemon.connect("lmtp") as connection:
        client = Lmtp(connection)
        client.send(to(one))
        assert one.reached.wait(TIMEOUT)
        runner.configure("port: 1", "helo: another.example.com")
        daemon.reload()
        one.release.set()
        assert client.reply().startswith("250 2.0.0 ")
        client.send(to(one))
        assert re.match("4[0-9][0-9] 4\\.4\\.1", client.reply())
        assert daemon.end() == 0
    assert len(one.messages) == 1
