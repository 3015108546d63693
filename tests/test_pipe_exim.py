"""``mxpolicy pipe --exim``, run as Exim's pipe transport runs it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mxpolicy.errors import UsageError
from mxpolicy.pipe_command import parse_arguments
from mxpolicy.processes import look_at
from tests.helpers.handing_over import Command, command
from tests.helpers.piping import (
    MESSAGE,
    TIMEOUT,
    Ended,
    Host,
    Runner,
    all_answers,
    assert_answer,
    host,
    pipe,
)

__all__ = ["command", "host", "pipe"]  # fixtures


def environment(**more: str) -> dict[str, str]:
    """Return what Exim gives, with *more*."""
    given = {"PATH": "/bin:/usr/bin", "MESSAGE_ID": "1wNG1T-0005Un-1x", **more}
    return {"RETURN_PATH": "me@a.example", **given}


def arguments(pipe: Runner, there: Host, *recipients: str) -> list[str]:
    """Return what Exim's transport says."""
    options = ["--nexthop", there.nexthop, "--config", str(pipe.config)]
    return ["--exim", *options, "--", *(recipients or ["b@b.example"])]


@contextlib.contextmanager
def at_work(
    command: Command, there: Host, **more: Any
) -> Iterator[tuple[subprocess.Popen[bytes], int, Any]]:
    """Start a delivery and wait until its host is where it holds.

    Yields the process that was started, the id of its child (the script's is the one that
    delivers), and where the answers come.
    """
    options = ["--nexthop", there.nexthop, "--config", str(command.config)]
    argv = ["pipe", "--exim", *options, "--", "b@b.example"]
    with command.started(argv, environ=environment(), **more) as (started, answers):
        assert started.stdin is not None
        started.stdin.write(MESSAGE)
        started.stdin.close()
        assert there.reached.wait(TIMEOUT)
        [child] = children(started.pid)
        yield started, child, answers


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


# -- sender and id ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("return_path", "wire"),
    [
        ("me@a.example", "<me@a.example>"),
        ("", "<>"),
        (" ", "<>"),
        ("-f@a.example", "<-f@a.example>"),
        ('"a b"@a.example', '<"a b"@a.example>'),
        ("a:PYTHONPATH=/x@a.example", '<"a:PYTHONPATH=/x"@a.example>'),
    ],
)
def test_sender_is_taken_from_the_environment(
    return_path: str, wire: str, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    env = environment(RETURN_PATH=return_path, SENDER="not@this.example")
    ended = pipe.run(arguments(pipe, there), env=env)
    assert_answer(ended, 0, r"2\.0\.0 \S+ said: 250 2\.0\.0 Ok: taken")
    assert there.mail_from[0].startswith(wire)


def test_id_in_the_log_is_that_of_exim(pipe: Runner, host: Callable[..., Host]) -> None:
    pipe.run(arguments(pipe, host()), env=environment())
    assert " 1wNG1T-0005Un-1x: to=<b@b.example>, " in pipe.log.read_text()


def test_id_on_the_command_line_goes_first() -> None:
    argv = ["--exim", "--queue-id", "mine", "--", "b@b.example"]
    assert parse_arguments(argv, environment()).queue_id == "mine"


def test_sender_unset_is_deferred_with_the_line_that_is_missing(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    env = environment()
    del env["RETURN_PATH"]
    ended = pipe.run(arguments(pipe, there), env={**env, "SENDER": "me@a.example"})
    text = "no sender: the transport needs environment = RETURN_PATH=${listquote{:}"
    assert_answer(ended, 75, re.escape(f"4.3.5 mxpolicy: {text}"))
    assert there.commands == []


def test_sender_in_both_places_is_refused() -> None:
    with pytest.raises(UsageError, match="-f and --exim exclude each other"):
        parse_arguments(["--exim", "-f", "a@b", "--", "b@b"], environment())


def test_recipient_of_that_name_is_a_recipient() -> None:
    given = parse_arguments(["-f", "", "--", "--exim"], environment())
    assert given.recipients == ("--exim",)
    assert given.sender == ""


# -- refusals have their status -------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "status", "text"),
    [("550 5.1.1 Who?", 69, r"5\.1\.1 "), ("450 4.2.0 Later", 75, r"4\.2\.0 ")],
)
def test_refusal_has_its_status(
    reply: str, status: int, text: str, pipe: Runner, host: Callable[..., Host]
) -> None:
    ended = pipe.run(arguments(pipe, host(RCPT=reply)), env=environment())
    assert_answer(ended, status, text)


# -- whatever kills the delivery -------------------------------------------------------


@pytest.mark.parametrize("phase", ["CONNECT", "EHLO", "RCPT", "DATA"])
def test_delivery_that_is_killed_is_deferred(
    phase: str, command: Command, host: Callable[..., Host]
) -> None:
    there = host(phase)
    with at_work(command, there) as (script, child, answers):
        os.kill(child, signal.SIGKILL)
        ended = Ended(script.wait(TIMEOUT), all_answers(answers))
    text = r"4\.3\.0 mxpolicy: the delivery ended with status 137"
    assert_answer(ended, 75, text)
    assert there.messages == []


def test_whole_group_that_is_asked_to_stop_answers_once(
    command: Command, host: Callable[..., Host]
) -> None:
    more = {"start_new_session": True}
    with at_work(command, host("CONNECT"), **more) as (script, _, answers):
        os.killpg(script.pid, signal.SIGTERM)
        ended = Ended(script.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: ended by SIGTERM")


# -- the mail server gone --------------------------------------------------------------


def test_final_dot_is_not_sent_once_the_script_is_killed(
    command: Command, host: Callable[..., Host]
) -> None:
    there = host("DATA")
    with at_work(command, there) as (script, _, answers):
        script.kill()
        script.wait(TIMEOUT)
        there.release.set()
        [line] = all_answers(answers)
    assert line.startswith(b"4.3.0 local trouble: the mail server that started us")
    there.close()
    assert there.messages == []


def test_final_dot_is_not_sent_once_the_mail_server_is_killed(
    command: Command, host: Callable[..., Host]
) -> None:
    # The shell is the mail server; the script lives on.
    there = host("DATA")
    wrap = ["sh", "-c", '"$@"; exit $?', "sh"]
    with at_work(command, there, wrap=wrap) as (shell, script, answers):
        [child] = children(script)
        seen = look_at(child)
        assert seen is not None
        assert (seen.parent, seen.is_ending) == (script, False)
        shell.kill()
        shell.wait(TIMEOUT)
        there.release.set()
        [line] = all_answers(answers)
    assert line.startswith(b"4.3.0 local trouble: the mail server that started us")
    there.close()
    assert there.messages == []


def test_process_with_an_odd_name_is_seen_until_nobody_waits_for_it(
    tmp_path: Path,
) -> None:
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "60"]) as process:
        seen = look_at(process.pid)
        assert seen is not None
        assert seen[:2] == (os.getpid(), False)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert look_at(process.pid) == (os.getpid(), True, seen.started)
    assert look_at(process.pid) is None


# -- inherited from whoever started us ---------------------------------------------------


def starting_with(does: str) -> list[str]:
    """Return what runs a command in a process that *does* something about signals first."""
    program = f"import os, signal, sys; {does}; os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", program]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(["sh", "-c", """trap '' CHLD; exec "$@\"""", "sh"], id="ignored"),
        pytest.param(
            starting_with("signal.pthread_sigmask(0, {signal.SIGCHLD})"), id="blocked"
        ),
        pytest.param(
            starting_with("signal.pthread_sigmask(0, signal.valid_signals())"),
            id="everything_blocked",
        ),
        pytest.param(
            starting_with(
                "[signal.signal(one, signal.SIG_IGN) for one in range(1, 32)"
                " if one not in (signal.SIGKILL, signal.SIGSTOP)]"
            ),
            id="everything_ignored",
        ),
    ],
)
@pytest.mark.parametrize(
    ("reply", "status", "text"),
    [
        ("250 2.0.0 Ok", 0, r"2\.0\.0 "),
        ("554 5.7.0 No", 69, r"5\.7\.0 "),
        ("451 4.3.0 Later", 75, r"4\.3\.0 "),
    ],
)
def test_answer_is_the_delivery_s_whatever_signals_were_inherited_ignored_or_blocked(
    wrap: list[str],
    reply: str,
    status: int,
    text: str,
    pipe: Runner,
    host: Callable[..., Host],
) -> None:
    there = host(DOT=reply)
    ended = pipe.run(arguments(pipe, there), env=environment(), wrap=wrap)
    assert_answer(ended, status, text)
