"""The hand-over, as it is: the script, the client, and a daemon that runs.

Where the daemon is to misbehave, or to be of another version, the test speaks for it
(`tests.helpers.speaking`). What must hold is in `mxpolicy.protocol.handover_request`.
"""

from __future__ import annotations

import contextlib
import os
import posix
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mxpolicy import doors, outcome, pipe, pipe_command, processes
from mxpolicy import handover as client
from mxpolicy.protocol import handover_request, pipe_answer
from tests.helpers.handing_over import PYTHON, Command, child_of, command, in_perl
from tests.helpers.piping import (
    CHECKOUT,
    MESSAGE,
    TIMEOUT,
    Ended,
    Host,
    all_answers,
    assert_answer,
    host,
)
from tests.helpers.serving import Runner, serving
from tests.helpers.speaking import Speaking, speaking

__all__ = ["command", "host", "serving", "speaking"]

TAKEN = r"2\.0\.0 \S+ said: 250 2\.0\.0 Ok: taken"
ON_THE_WIRE = MESSAGE.replace(b"\n", b"\r\n")
BY_THE_DAEMON = "EHLO mail.example.com"
BY_ITSELF = "EHLO alone.example.com"

# More than a pipe holds, so that its writer waits for who reads.
LARGE = b"Received: from a by b\n\n" + b"A line of text.\n" * 20_000


def wait_for(happens: Callable[[], object]) -> None:
    """Return when it has happened."""
    ends = time.monotonic() + TIMEOUT
    while not happens():
        assert time.monotonic() < ends
        time.sleep(0.001)


def as_user(number: int) -> list[str]:
    """Return what runs a program as another user, who may read our files."""
    capabilities = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", f"--reuid={number}", "--clear-groups", *capabilities]


def test_what_the_client_has_copied_is_as_in_the_modules_that_it_does_not_import() -> (
    None
):
    assert client.OPTIONS == pipe_command._OPTIONS
    assert client.UNSEEN_DEATH == pipe.UNSEEN_DEATH
    assert list(processes.ENDING) == client.ENDING
    assert client._EXITING == processes._EXITING
    assert f"{doors.DEFAULT_DIRECTORY}/pipe" == client.DEFAULT_SOCKET
    assert client.EXIT_DEFER == outcome.EXIT_DEFER
    assert client.VERSION == handover_request.VERSION
    assert client.MAX_REQUEST == handover_request.MAX_REQUEST
    assert client.MAX_ANSWER == pipe_answer.MAX_ANSWER
    assert {int(status): number for status, number in client.CLASSES.items()} == {
        outcome.EXIT_DELIVERED: b"2.",
        outcome.EXIT_BOUNCE: b"5.",
        outcome.EXIT_DEFER: b"4.",
    }


# -- what is answered is what a process that works alone answers -------------------


@pytest.mark.parametrize("path", ["daemon", "alone"])
@pytest.mark.parametrize(
    ("script", "status", "text"),
    [
        pytest.param({}, 0, TAKEN, id="delivered"),
        pytest.param(
            {"RCPT": "550 5.1.1 No such user"}, 69, r"5\.1\.1 .*No such", id="bounced"
        ),
        pytest.param(
            {"DOT": "450 5.7.1 Later"}, 75, r"4\.0\.0 .*450 5\.7\.1 L", id="deferred"
        ),
    ],
)
def test_answer_is_the_same_with_a_daemon_and_without(
    path: str,
    script: dict[str, str],
    status: int,
    text: str,
    command: Command,
    serving: Runner,
    host: Callable[..., Host],
) -> None:
    there = host(**script)
    with serving.started() as daemon:
        at = daemon.run / "pipe" if path == "daemon" else Path("/nowhere")
        ended = command.run(command.argv(at, there.nexthop))
    assert_answer(ended, status, text)
    assert there.messages == ([] if "RCPT" in script else [ON_THE_WIRE])
    assert there.commands[0] == (BY_THE_DAEMON if path == "daemon" else BY_ITSELF)


def test_exim_s_sender_and_id_arrive(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    with serving.started() as daemon:
        path = f"--socket={daemon.run / 'pipe'}"
        ended = command.run(
            ["pipe", "--exim", path, "--nexthop", there.nexthop, "--", "b@b.example"],
            environ={"RETURN_PATH": "ü@a.example", "MESSAGE_ID": "1wNG1T-0005Un-1x"},
        )
        assert " 1wNG1T-0005Un-1x: to=<b@b.example>, " in daemon.log()
    assert_answer(ended, 0, TAKEN)
    assert there.mail_from == ["<ü@a.example> SMTPUTF8"]


def test_arguments_that_are_no_utf8_arrive_as_they_are(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        sender = os.fsdecode(b"\xff\xfe@a.example")
        ended = command.run([sender if one == "me@a.example" else one for one in argv])
    assert_answer(ended, 0, TAKEN)
    said = there.mail_from[0].encode("utf-8", "surrogateescape")
    assert said.startswith(b"<\xff\xfe@a.example>")


def test_wrong_command_line_is_named(command: Command, serving: Runner) -> None:
    with serving.started() as daemon:
        argv = ["pipe", "--socket", str(daemon.run / "pipe"), "--", "b@b.example"]
        assert_answer(command.run(argv), 75, r"4\.3\.5 mxpolicy: no sender: give -f ")


@pytest.mark.parametrize(
    ("argv", "environ", "path"),
    [
        ("-f a@b -- b@b", {}, client.DEFAULT_SOCKET),
        ("--exim --deadline 5s -- b@b", {}, client.DEFAULT_SOCKET),
        ("-f a@b --socket /s -- b@b", {}, "/s"),
        ("-f a@b --socket=/s -- b@b", {}, "/s"),
        ("-f a@b --config /c -- b@b", {}, ""),
        ("-f a@b -- b@b", {b"MXPOLICY_CONFIG": b"/c"}, ""),
        ("-f a@b --config=/c --socket /s -- b@b", {b"MXPOLICY_CONFIG": b"/c"}, "/s"),
        ("-f --config --nexthop --socket -- b@b", {}, client.DEFAULT_SOCKET),
        ("-f a@b -- --socket /s", {}, client.DEFAULT_SOCKET),
        ("-f a@b --socket /s", {}, ""),  # it will be told what is wrong
    ],
)
def test_configuration_without_a_socket_means_alone(
    argv: str,
    environ: dict[bytes, bytes],
    path: str,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if command.client == PYTHON:
        monkeypatch.setattr(posix, "environ", environ)
        assert client.socket_path(argv.split()) == path
    else:
        words = ["1", "pipe", *argv.split()]
        assert in_perl("print socket_path()", words, environ) == path.encode()


def test_request_is_what_the_command_was_called_with(
    command: Command, speaking: Speaking
) -> None:
    words = ["", "=", "--x=", "-e", "a\nb", "$x @y %s", "ü€\U0001f600", "\udcff\udcfe"]
    argv = [
        "pipe",
        "-f",
        "",
        "--socket",
        str(speaking.path),
        *words,
        "--",
        "--",
        *words,
    ]
    environ = {"RETURN_PATH": "\udcff=ü\n", "MESSAGE_ID": ""}
    with command.started(argv, environ=environ) as (process, _):
        head, _, body = speaking.hear().partition(b"\n")
        process.kill()
    assert head == b"mxpolicy pipe 1 %d" % len(body)
    asked = handover_request.parse_request(body)
    assert list(asked.argv) == argv[1:]
    assert asked.environ == environ


@pytest.mark.parametrize("more", [0, 1], ids=["as_long_as_may_be", "longer"])
def test_request_has_its_bound(
    more: int, command: Command, speaking: Speaking, host: Callable[..., Host]
) -> None:
    there = host(RCPT="550 5.1.1 No such user")
    argv = command.argv(speaking.path, there.nexthop)
    # One argument alone cannot be longer than 128 KiB (execve(2)).
    argv += ["x" * 100_000, "x" * 100_000, "x" * 50_000]
    argv[-1] += "x" * (client.MAX_REQUEST + more - len(client.request(argv[1:])))
    asked = client.request(argv[1:])
    assert len(asked) == client.MAX_REQUEST + more
    with command.started(argv) as (process, _):
        assert process.stdin is not None
        if more:
            process.stdin.write(MESSAGE)
            process.stdin.close()
            assert process.wait(TIMEOUT) == outcome.EXIT_BOUNCE
            with pytest.raises(BlockingIOError):
                speaking.accept(blocking=False)
        else:
            heard = b""
            while len(heard) < client.MAX_REQUEST:
                heard += speaking.hear()
            assert heard == asked


# -- what is handed over ------------------------------------------------------------


def test_large_message_arrives_whole(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    with serving.started() as daemon:
        ended = command.run(command.argv(daemon.run / "pipe", there.nexthop), LARGE)
    assert_answer(ended, 0, TAKEN)
    assert there.messages == [LARGE.replace(b"\n", b"\r\n")]


def test_pipe_stays_as_it_was(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    reads, writes = os.pipe()
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        with command.started(argv, stdin=reads) as (process, answers):
            os.write(writes, LARGE)
            wait_for(lambda: there.commands)
            assert os.get_blocking(reads)
            os.close(writes)
            ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert os.get_blocking(reads)
    os.close(reads)
    assert_answer(ended, 0, TAKEN)
    assert there.commands[0] == BY_THE_DAEMON


def test_file_is_read_from_where_it_stands_and_left_there(
    command: Command, serving: Runner, host: Callable[..., Host], tmp_path: Path
) -> None:
    there = host()
    file = tmp_path / "message"
    file.write_bytes(b"not this\n" + LARGE)
    with serving.started() as daemon, file.open("rb") as stdin:
        os.lseek(stdin.fileno(), 9, os.SEEK_SET)
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        ended = command.run(argv, stdin=stdin)
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == 9
    assert_answer(ended, 0, TAKEN)
    assert there.messages == [LARGE.replace(b"\n", b"\r\n")]
    assert there.commands[0] == BY_THE_DAEMON


def test_named_pipe_is_handed_over(
    command: Command, serving: Runner, host: Callable[..., Host], tmp_path: Path
) -> None:
    there = host()
    os.mkfifo(tmp_path / "fifo")
    reads = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writes = os.open(tmp_path / "fifo", os.O_WRONLY)
    os.set_blocking(reads, True)
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        with command.started(argv, stdin=reads) as (process, answers):
            os.close(reads)
            with os.fdopen(writes, "wb") as file:
                file.write(LARGE)
            ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 0, TAKEN)
    assert there.messages == [LARGE.replace(b"\n", b"\r\n")]
    assert there.commands[0] == BY_THE_DAEMON


def test_terminal_is_not_handed_over(
    command: Command, speaking: Speaking, host: Callable[..., Host]
) -> None:
    there = host()
    ours, theirs = pty.openpty()
    argv = command.argv(speaking.path, there.nexthop)
    with command.started(argv, stdin=theirs) as (process, answers):
        os.close(theirs)
        os.write(ours, MESSAGE + b"\x04")
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    os.close(ours)
    assert_answer(ended, 0, TAKEN)
    assert there.commands[0] == BY_ITSELF


def test_closed_standard_input_is_named(command: Command, speaking: Speaking) -> None:
    argv = command.argv(speaking.path, "[127.0.0.1]:1")
    wrap = ["/bin/sh", "-c", 'exec "$0" "$@" <&-']
    ended = command.run(argv, stdin=None, wrap=wrap)
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: no message: standard input is closed")


def test_empty_message_is_deferred(command: Command, serving: Runner) -> None:
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", "[127.0.0.1]:1")
        ended = command.run(argv, b"")
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: no message: standard input is empty")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_output_does_no_harm(
    closed: str, command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    wrap = ["/bin/sh", "-c", f'exec "$0" "$@" {closed}']
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        ended = command.run(argv, wrap=wrap)
    assert ended.status == 0
    assert there.messages == [ON_THE_WIRE]
    assert there.commands[0] == BY_THE_DAEMON


# -- trouble before the commit: the command delivers ---------------------------------


def alone_after(
    command: Command,
    speaking: Speaking,
    there: Host,
    does: Callable[[], object],
) -> float:
    """The daemon *does*, and the command delivers; return how many seconds it took."""
    thread = threading.Thread(target=does)
    thread.start()
    began = time.monotonic()
    ended = command.run(command.argv(speaking.path, there.nexthop), LARGE)
    took = time.monotonic() - began
    thread.join(TIMEOUT)
    assert_answer(ended, 0, TAKEN)
    assert there.messages == [LARGE.replace(b"\n", b"\r\n")]
    assert there.commands[0] == BY_ITSELF
    assert speaking.descriptors == []
    return took


@pytest.mark.parametrize(
    "says",
    [
        pytest.param(b"-full\n", id="full"),
        pytest.param(b"-stopping\n", id="stopping"),
        pytest.param(b"-version 1, not 2\n", id="another_version"),
        pytest.param(b"+\n", id="no_time"),
        pytest.param(b"+0\n", id="no_second"),
        pytest.param(b"+-5\n", id="less_than_no_second"),
        pytest.param(b"+9999999999\n", id="too_many_seconds"),
        pytest.param(b"+10", id="half_a_word"),
        pytest.param(b"=0 2.0.0 delivered\n", id="an_answer_too_early"),
        pytest.param(b"?\n", id="a_question_too_early"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", id="something_else"),
        pytest.param(b"+" * 20_000, id="very_long"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_daemon_that_does_not_take_it_leaves_it_to_the_command(
    says: bytes, command: Command, speaking: Speaking, host: Callable[..., Host]
) -> None:
    def does() -> None:
        speaking.hear()
        with contextlib.suppress(OSError):
            speaking.say(says)
        speaking.hang_up()

    alone_after(command, speaking, host(), does)


def test_daemon_that_has_left_when_the_message_is_sent_leaves_it_to_the_command(
    command: Command, speaking: Speaking, host: Callable[..., Host]
) -> None:
    def does() -> None:
        speaking.hear()
        speaking.hear_no_more()
        speaking.say(b"+10\n")

    alone_after(command, speaking, host(), does)


@pytest.mark.parametrize("heard", [True, False], ids=["accepted", "not_accepted"])
def test_daemon_that_hangs_costs_two_seconds(
    heard: bool, command: Command, speaking: Speaking, host: Callable[..., Host]
) -> None:
    does = speaking.hear if heard else lambda: None
    assert alone_after(command, speaking, host(), does) >= 2.0


def test_daemon_that_is_stopped_costs_two_seconds(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    with serving.started() as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        ended = command.run(command.argv(daemon.run / "pipe", there.nexthop))
        assert_answer(ended, 0, TAKEN)
        daemon.process.send_signal(signal.SIGCONT)
        # It has the request by then, and must not do anything with it.
        assert daemon.end() == 0
    assert there.messages == [ON_THE_WIRE]


def test_more_than_a_daemon_hears_is_not_said(
    command: Command, speaking: Speaking
) -> None:
    many = [f"{'b' * 3000}{number}@b.example" for number in range(90)]
    argv = command.argv(speaking.path, "[127.0.0.1]:1", *many)
    assert_answer(command.run(argv), 69, r"5\.1\.3 90 of 90 recipients: ")
    with pytest.raises(BlockingIOError):
        speaking.accept(blocking=False)


def no_socket(path: Path) -> None:
    path.unlink()


def file(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"+10\n")


def socket_nobody_listens_at(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(str(path))


def socket_that_is_full(path: Path) -> None:
    path.unlink()
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.bind(str(path))
    one.listen(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.connect(str(path))
    os.set_inheritable(one.detach(), False)


def is_listening(path: Path) -> bool:
    return "00010000 0001 01 " in next(
        one
        for one in Path("/proc/net/unix").read_text().split("\n")
        if str(path) in one
    )


def stranger_s(path: Path) -> None:
    os.chown(path, 12345, -1)


# unix(7): the client sees the credentials of whoever has called listen(2).
STRANGER = """
import socket, sys
one = socket.socket(fileno=int(sys.argv[1]))
one.listen()
one.settimeout(60)
client, _ = one.accept()
assert client.recv(65536) == b""
"""


@pytest.mark.parametrize(
    "makes",
    [no_socket, file, socket_nobody_listens_at, socket_that_is_full, stranger_s],
)
def test_what_is_no_daemon_of_ours_is_left_alone(
    makes: Callable[[Path], None],
    command: Command,
    speaking: Speaking,
    host: Callable[..., Host],
) -> None:
    if makes is stranger_s and os.geteuid() != 0:
        pytest.skip("needs root")
    makes(speaking.path)
    alone_after(command, speaking, host(), lambda: None)


def test_stranger_who_listens_at_root_s_socket_is_told_nothing(
    command: Command, host: Callable[..., Host], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    there = host()
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(str(path))
        program = [sys.executable, "-c", STRANGER, str(one.fileno())]
        with subprocess.Popen(
            [*as_user(12345), *program], pass_fds=[one.fileno()]
        ) as stranger:
            wait_for(lambda: is_listening(path))
            assert_answer(command.run(command.argv(path, there.nexthop)), 0, TAKEN)
            assert stranger.wait(TIMEOUT) == 0
    assert there.commands[0] == BY_ITSELF


# -- trouble after the commit: never by itself ----------------------------------------


@contextlib.contextmanager
def committed(
    command: Command, speaking: Speaking, seconds: int = 600, **more: Any
) -> Iterator[tuple[Any, socket.socket]]:
    """A command that has committed; its message is `LARGE`, of which nothing is read."""
    argv = command.argv(speaking.path, "[127.0.0.1]:1")
    with command.started(argv, **more) as (process, answers):
        speaking.hear()
        speaking.say(b"+%d\n" % seconds)
        assert speaking.hear() == b"@"
        [descriptor] = speaking.descriptors
        name = Path(f"/proc/{child_of(process.pid)}/comm").read_text()
        assert name == f"{command.client}\n"
        assert process.stdin is not None
        assert os.fstat(descriptor).st_ino == os.fstat(process.stdin.fileno()).st_ino
        yield process, answers


def deferred(process: Any, answers: socket.socket, text: str) -> None:
    """The mail server can write all of it, and hears "try later"."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(LARGE)
        process.stdin.close()
    ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, rf"4\.3\.0 mxpolicy: {text}")


@pytest.mark.parametrize("keeps_it_open", [True, False])
@pytest.mark.parametrize(
    ("says", "text"),
    [
        pytest.param(b"", "the daemon has gone without an answer", id="nothing"),
        pytest.param(b"=0 2.0.", "the daemon has gone without an answer", id="half"),
        pytest.param(b"-stopping\n", "the daemon has gone without .*", id="a_refusal"),
        pytest.param(b"+10\n", "the daemon has gone without an answer", id="again"),
        pytest.param(b"=3 4.0.0 x\n", "the daemon's answer cannot .*", id="status"),
        pytest.param(b"=0 5.1.1 x\n", "the daemon's answer cannot .*", id="class"),
        pytest.param(b"=75 2.0.0 x\n", "the daemon's answer cannot .*", id="class_2"),
        pytest.param(b"=0\n", "the daemon's answer cannot .*", id="no_text"),
        pytest.param(b"=0 2.0.0 \xff\n", "the daemon's answer cannot .*", id="8bit"),
        pytest.param(b"=0 2.0.0 \t\n", "the daemon's answer cannot .*", id="control"),
        pytest.param(
            b"=0 2.0.0 " + b"x" * 4090 + b"\n", "the daemon's answer .*", id="long"
        ),
        pytest.param(
            b"=0 2.0.0 " + b"x" * 8182 + b"\n", "the daemon's answer .*", id="8192"
        ),
        pytest.param(
            b"=0 2.0.0 " + b"x" * 8183 + b"\n", "the daemon has gone .*", id="8193"
        ),
        pytest.param(b"x" * 20_000, "the daemon has gone .*", id="very_long"),
    ],
)
def test_what_is_no_answer_is_deferred(
    says: bytes, text: str, keeps_it_open: bool, command: Command, speaking: Speaking
) -> None:
    with committed(command, speaking) as (process, answers):
        with contextlib.suppress(OSError):
            speaking.say(says)
        # A daemon that was stopped keeps the pipe open, and reads nothing.
        kept = os.dup(speaking.descriptors[0])
        speaking.hang_up()
        if not keeps_it_open:
            os.close(kept)
        deferred(process, answers, text)
        if keeps_it_open:
            os.close(kept)


def test_question_is_answered_as_long_as_the_mail_server_lives(
    command: Command, speaking: Speaking
) -> None:
    with committed(command, speaking) as (process, answers):
        for _ in range(3):
            speaking.say(b"?\n")
            assert speaking.hear() == b"!"
        speaking.say(b"=69 5.1.1 no such user\n")
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 69, r"5\.1\.1 no such user")


def test_answer_may_stand_behind_a_question_that_is_open(
    command: Command, speaking: Speaking
) -> None:
    with committed(command, speaking) as (process, answers):
        speaking.say(b"?\n=0 2.0.0 delivered\n")
        speaking.hang_up()
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 0, r"2\.0\.0 delivered")


def test_time_without_an_answer_ends(command: Command, speaking: Speaking) -> None:
    with committed(command, speaking, seconds=1) as (process, answers):
        deferred(process, answers, "no answer from the daemon in its time")
        assert speaking.hear() == b""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1"])
@pytest.mark.parametrize("ignored", [False, True])
def test_signal_is_deferred_once_the_message_is_read(
    name: str, ignored: bool, command: Command, speaking: Speaking
) -> None:
    trap = f"trap '' {name[3:]}; " if ignored else ""
    wrap = ["/bin/sh", "-c", f'{trap}exec "$0" "$@"']
    with committed(command, speaking, wrap=wrap) as (process, answers):
        os.kill(child_of(process.pid), getattr(signal, name))
        assert speaking.hear() == b""  # first of all it hangs up
        deferred(process, answers, f"ended by {name}")


# As Exim may start its command.
BLOCKED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGALRM"])
def test_signal_may_have_been_blocked(
    name: str, command: Command, speaking: Speaking
) -> None:
    wrap = ["/usr/bin/env", "python3", "-c", BLOCKED]
    with committed(command, speaking, wrap=wrap) as (process, answers):
        os.kill(child_of(process.pid), getattr(signal, name))
        deferred(process, answers, "(ended by SIGTERM|no answer from the daemon)")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_daemon_that_is_killed_or_stopped_in_the_message_means_deferred(
    number: int, command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        with command.started(argv) as (process, answers):
            assert process.stdin is not None
            process.stdin.write(LARGE[:200_000])
            wait_for(lambda: there.commands)
            daemon.process.send_signal(number)
            if number == signal.SIGSTOP:
                os.kill(child_of(process.pid), signal.SIGTERM)
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(LARGE[200_000:])
            ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: (the daemon has|ended by SIGT)")
    assert there.messages == []


def test_daemon_that_is_killed_after_the_dot_means_deferred(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host(holds="DOT")
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        with command.started(argv) as (process, answers):
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(MESSAGE)
            assert there.reached.wait(TIMEOUT)
            daemon.process.kill()
            ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: the daemon has gone without an answer")


# -- the client, or its mail server, ends ---------------------------------------------


def test_client_that_is_killed_in_the_message_delivers_nothing(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        with command.started(argv) as (process, answers):
            assert process.stdin is not None
            process.stdin.write(LARGE)
            wait_for(lambda: there.commands)
            os.kill(child_of(process.pid), signal.SIGKILL)
            process.stdin.close()
            assert process.wait(TIMEOUT) == -signal.SIGKILL
            assert all_answers(answers) == []
            daemon.wait_for_log("the mail server that started us has gone away")
    assert there.messages == []


def test_client_that_is_killed_after_the_dot_has_its_outcome_kept(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host(holds="DOT")
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        with command.started(argv) as (process, _):
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(MESSAGE)
            assert there.reached.wait(TIMEOUT)
            os.kill(child_of(process.pid), signal.SIGKILL)
            process.wait(TIMEOUT)
        there.release.set()
        daemon.wait_for_log("status=sent")
        ended = command.run(argv)
    assert_answer(ended, 0, r"2\.0\.0 .*delivered earlier")
    assert len(there.messages) == 1


# A mail server, as far as a pipe goes: it starts the command, and writes for ever.
MAIL_SERVER = """
import os, subprocess, sys, time
command = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
line = b"A line of text, and it is not the last one.\\n"
os.write(command.stdin.fileno(), b"Received: from a by b\\n\\n")
while True:
    os.write(command.stdin.fileno(), line * 20)
    time.sleep(0.0002)
"""


def all_begun(number: int, there: Host) -> bool:
    return sum(one.startswith("EHLO") for one in there.commands) > number


@pytest.mark.parametrize("options", [[], ["--exim"]], ids=["postfix", "exim"])
def test_mail_server_that_is_killed_while_it_writes_delivers_nothing(
    options: list[str], command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    rounds = 12
    with serving.started() as daemon:
        argv = command.argv(daemon.run / "pipe", there.nexthop)
        if options:
            argv = ["pipe", "--exim", *argv[3:]]
        wrap = ["/usr/bin/env", "python3", "-c", MAIL_SERVER]
        for number in range(rounds):
            with command.started(
                argv, wrap=wrap, stdin=None, environ={"RETURN_PATH": ""}
            ) as (process, answers):
                while not all_begun(number, there):
                    time.sleep(0.001)
                time.sleep(0.004 * number)  # anywhere in the message
                process.kill()
                assert process.wait(TIMEOUT) == -signal.SIGKILL
                for line in all_answers(answers):
                    assert line.startswith(b"4.3.0 mxpolicy: ")
            daemon.wait_for_log("status=deferred", number + 1)
    assert there.messages == []


# -- the script -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--exim"]], ids=["postfix", "exim"])
def test_client_that_is_killed_is_try_later(
    options: list[str], command: Command, speaking: Speaking
) -> None:
    argv = ["pipe", "-f", "", *options, "--socket", str(speaking.path), "--", "b@b.e"]
    with command.started(argv) as (process, answers):
        speaking.hear()
        os.kill(child_of(process.pid), signal.SIGKILL)
        assert process.stdin is not None
        process.stdin.close()
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    if options:  # a signal bounces, and the text does not count
        text = r"4\.3\.0 mxpolicy: the delivery ended with status 137"
        assert_answer(ended, 75, text)
    else:  # a signal is "try later", and the text does not count
        assert ended == (-signal.SIGKILL, [])


def test_message_is_read_to_its_end_when_client_is_killed_and_the_daemon_stopped(
    command: Command, speaking: Speaking
) -> None:
    with committed(command, speaking) as (process, answers):
        os.kill(child_of(process.pid), signal.SIGKILL)
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(LARGE)
        assert process.wait(TIMEOUT) == -signal.SIGKILL
        assert all_answers(answers) == []


@pytest.mark.parametrize("options", [[], ["--exim"]], ids=["postfix", "exim"])
def test_client_that_is_killed_where_nothing_can_be_started_is_try_later(
    options: list[str], command: Command, speaking: Speaking
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    argv = ["pipe", "-f", "", *options, "--socket", str(speaking.path), "--", "b@b.e"]
    user = as_user(54322)
    limited = ["prlimit", "--nproc=2:2", *user]
    with command.started(argv, wrap=limited) as (process, answers):
        speaking.hear()
        with subprocess.Popen([*user, "sleep", str(TIMEOUT)]) as other:
            wait_for(lambda: os.stat(f"/proc/{other.pid}").st_uid == 54322)
            os.kill(child_of(process.pid), signal.SIGKILL)
            ended = Ended(process.wait(TIMEOUT), all_answers(answers))
            other.kill()
    if options:
        text = r"4\.3\.0 mxpolicy: the delivery ended with status 137"
        assert_answer(ended, 75, text)
    else:
        assert ended == (-signal.SIGKILL, [])


def test_output_that_may_not_be_written_does_not_end_the_script(
    command: Command, speaking: Speaking, tmp_path: Path
) -> None:
    argv = ["pipe", "--exim", "--socket", str(speaking.path), "--", "b@b.e"]
    limited = f'ulimit -f 0; exec "$0" "$@" >{tmp_path / "output"}'
    with command.started(argv, wrap=["/bin/sh", "-c", limited]) as (process, _):
        speaking.hear()
        speaking.say(b"+600\n=69 5.1.1 no such user\n")
        assert process.wait(TIMEOUT) == outcome.EXIT_BOUNCE


@pytest.mark.parametrize("says", [b"-full\n", b"+600\n=0 2.0.0 delivered\n"])
def test_script_that_is_written_over_is_run_as_it_was(
    says: bytes, command: Command, speaking: Speaking
) -> None:
    # As other shells than bash do too; this one reads on after the last command.
    if not (shell := shutil.which("bash")):
        pytest.skip("needs bash")
    text = command.program.read_bytes()
    argv = command.argv(speaking.path, "[127.0.0.1]:1")
    with command.started(argv, wrap=[shell]) as (process, answers):
        assert process.stdin is not None
        process.stdin.close()
        speaking.hear()
        command.program.write_bytes(
            b"\n" * len(text) + b"printf 5.5.5\nexit 69\n" * 100
        )
        speaking.say(says)
        if says.startswith(b"-"):
            speaking.hang_up()
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    if says.startswith(b"-"):
        assert_answer(ended, 75, r"4\.3\.0 mxpolicy: no message: .*empty")
    else:
        assert_answer(ended, 0, r"2\.0\.0 delivered")


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "ALRM", "TERM", "USR1", "PIPE"])
def test_signal_does_not_end_the_script(
    name: str, command: Command, speaking: Speaking
) -> None:
    with committed(command, speaking) as (process, answers):
        process.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.02)
        speaking.say(b"=0 2.0.0 delivered\n")
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 0, r"2\.0\.0 delivered")


def test_status_is_known_where_that_of_children_is_ignored(
    command: Command, host: Callable[..., Host]
) -> None:
    there = host(RCPT="550 5.1.1 No such user")
    wrap = ["/bin/sh", "-c", 'trap \'\' CHLD; exec "$0" "$@"']
    ended = command.run(command.argv("/nowhere", there.nexthop), wrap=wrap)
    assert_answer(ended, 69, r"5\.1\.1 .*No such")


@pytest.mark.parametrize("python", ["missing", "fails", "no_program"])
def test_python_that_does_not_run_is_try_later(python: str, command: Command) -> None:
    program = command.root / "bin" / "python3"
    program.unlink()
    if python == "fails":
        program.write_text("#!/bin/sh\necho trouble >&2\nexit 3\n")
    elif python == "no_program":
        program.write_bytes(b"\x7fELF")
    program.touch()
    program.chmod(0o755)
    if python == "missing":
        program.write_text("#!/nowhere/python\n")
    argv = command.argv("/nowhere", "[127.0.0.1]:1")
    text = r"4\.3\.0 mxpolicy: the delivery ended with status \d+"
    assert_answer(command.run(argv), 75, text)


def test_package_that_is_missing_is_named(command: Command, speaking: Speaking) -> None:
    [packages] = command.root.glob("lib/*/site-packages")
    (packages / "others.pth").unlink()
    (packages / "mxpolicy").unlink()
    argv = command.argv(speaking.path, "[127.0.0.1]:1")
    assert_answer(command.run(argv), 75, r"4\.3\.0 mxpolicy: the delivery ended with")


@pytest.mark.parametrize("options", [[], ["--exim"]], ids=["postfix", "exim"])
def test_without_proc_nothing_is_between_the_mail_server_and_who_delivers(
    options: list[str], command: Command, speaking: Speaking, host: Callable[..., Host]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    there = host(holds="DATA")
    argv = command.argv(speaking.path, there.nexthop)
    if options:
        argv = ["pipe", "--exim", *argv[3:]]
    hide = 'mount -t tmpfs none /proc; exec "$0" "$@"'
    wrap = ["unshare", "--mount", "/bin/sh", "-c", hide]
    with command.started(argv, wrap=wrap, environ={"RETURN_PATH": ""}) as started:
        process, answers = started
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(MESSAGE)
        assert there.reached.wait(TIMEOUT)
        assert Path(f"/proc/{process.pid}/comm").read_text() == "python3\n"
        assert not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        there.release.set()
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 0, TAKEN)
    assert there.commands[0] == BY_ITSELF


@pytest.mark.parametrize("path", ["daemon", "alone"])
def test_checkout_may_be_used_from_where_it_is(
    path: str, command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    [packages] = command.root.glob("lib/*/site-packages")
    (packages / "mxpolicy").unlink()  # as pip install -e leaves it
    (packages / "checkout.pth").write_text(f"{CHECKOUT}\n")
    there = host()
    with serving.started() as daemon:
        at = daemon.run / "pipe" if path == "daemon" else Path("/nowhere")
        assert_answer(command.run(command.argv(at, there.nexthop)), 0, TAKEN)
    assert there.commands[0] == (BY_THE_DAEMON if path == "daemon" else BY_ITSELF)


def test_script_is_found_through_a_link(
    command: Command, host: Callable[..., Host], tmp_path: Path
) -> None:
    there = host()
    link = tmp_path / "link"
    link.symlink_to(command.program)
    argv = command.argv("/nowhere", there.nexthop)
    wrap = ["/bin/sh", "-c", f'shift 0; program=$0; exec {link} "$@"']
    assert_answer(command.run(argv, wrap=wrap), 0, TAKEN)


def test_fork_that_fails_is_try_later(command: Command) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    limited = ["prlimit", "--nproc=1:1", *as_user(54321)]
    ended = command.run(command.argv("/nowhere", "[127.0.0.1]:1"), wrap=limited)
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: the delivery ended with status \d+")


# -- what a stranger in our group may send to the daemon --------------------------------


def test_daemon_keeps_no_descriptor_of_a_client_that_breaks_the_rules(
    serving: Runner,
) -> None:
    request = b"A-f\0A\0A--\0Ab@b.example\0"
    asked = b"mxpolicy pipe 1 %d\n%b" % (len(request), request)
    reads, writes = os.pipe()
    left, right = socket.socketpair()
    with serving.started() as daemon, left, right:

        def descriptors() -> int:
            return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

        def try_it(commit: bytes, given: list[int]) -> bytes:
            with daemon.connect("pipe") as client:
                client.sendall(asked)
                assert client.recv(100) == b"+990\n"
                socket.send_fds(client, [commit], given)
                said = b""
                with contextlib.suppress(ConnectionResetError):
                    while data := client.recv(100):
                        said += data
                return said

        try_it(b"@", [left.fileno()])
        before = descriptors()
        no_pipe = (
            b"=75 4.3.0 mxpolicy: the message is neither in a pipe nor in a file\n"
        )
        for _ in range(3):
            assert try_it(b"@", [left.fileno()]) == no_pipe
            assert try_it(b"@", [writes]).startswith(b"=75 4.3.0 mxpolicy: cannot read")
            assert try_it(b"@", [reads, reads]) == b""
            assert try_it(b"@", [reads] * 60) == b""
            assert try_it(b"@!", [reads]) == b""
            assert try_it(b"x", [reads]) == b""
            with daemon.connect("pipe") as client:
                client.sendall(asked)
                client.recv(100)
                client.sendall(b"@")
                assert client.recv(100) == b""
            with daemon.connect("pipe") as client:
                socket.send_fds(client, [asked], [reads])
                assert client.recv(100) == b""
        assert descriptors() == before
    os.close(reads)
    os.close(writes)


def test_daemon_that_stops_leaves_what_is_not_committed_to_the_client(
    serving: Runner, host: Callable[..., Host]
) -> None:
    there = host(holds="DOT")
    request = f"A-f\0A\0A--nexthop\0A{there.nexthop}\0A--\0Ab@b.example\0".encode()
    asked = b"mxpolicy pipe 1 %d\n%b" % (len(request), request)
    reads, writes = os.pipe()
    with (
        serving.started() as daemon,
        daemon.connect("pipe") as promised,
        daemon.connect("pipe") as working,
    ):
        for client in (promised, working):
            client.sendall(asked)
            assert client.recv(100) == b"+990\n"
        socket.send_fds(working, [b"@"], [reads])
        os.write(writes, MESSAGE)
        os.close(writes)
        os.close(reads)
        for _ in range(2):
            assert working.recv(100) == b"?\n"
            working.sendall(b"!")
        assert there.reached.wait(TIMEOUT)
        daemon.process.send_signal(signal.SIGTERM)
        assert promised.recv(100) == b"-stopping\n"
        with daemon.connect("pipe") as late:
            late.sendall(asked)
            assert late.recv(100) == b"-stopping\n"
        there.release.set()
        assert working.recv(100).endswith(b" said: 250 2.0.0 Ok: taken\n")
        assert daemon.process.wait(TIMEOUT) == 0


def test_no_dot_leaves_without_a_word_of_the_client(
    serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    request = f"A-f\0A\0A--nexthop\0A{there.nexthop}\0A--\0Ab@b.example\0".encode()
    asked = b"mxpolicy pipe 1 %d\n%b" % (len(request), request)
    reads, writes = os.pipe()
    quick = "from mxpolicy.server.handover import message; message.ASK_TIME = 0.2"
    with serving.started(before=quick) as daemon, daemon.connect("pipe") as client:
        client.sendall(asked)
        client.recv(100)
        socket.send_fds(client, [b"@"], [reads])
        os.write(writes, MESSAGE)
        os.close(writes)
        os.close(reads)
        assert client.recv(100) == b"?\n"
        # It says nothing, and then it is too late.
        assert client.recv(100) == b""
        daemon.wait_for_log("status=deferred")
    assert there.messages == []
