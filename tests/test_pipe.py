"""The pipe door, run as a mail server runs it: a process, a pipe, an exit status.

What goes wrong inside is provoked by code that runs in the process before mxpolicy
does (`before`); what goes wrong around it, by what a mail server or a kernel can do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mxpolicy.options import Options
from mxpolicy.pipe import ALARM_INTERVAL
from mxpolicy.pipe_command import (
    ALARM_SLACK,
    DEFAULT_LIMIT,
    time_needed,
)
from tests.helpers.piping import (
    CHECKOUT,
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
from tests.helpers.scripted_smtp import End
from tests.test_pipe_command import WRONG

__all__ = ["host", "pipe"]  # fixtures

# -- ends of deliveries ------------------------------------------------------------


def test_delivered_message_is_0_and_whole(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    ended = pipe.run(pipe.argv(there.nexthop, "b@b.example"))
    assert_answer(ended, 0, r"2\.0\.0 \S+ said: 250 2\.0\.0 Ok: taken")
    assert there.messages == [MESSAGE.replace(b"\n", b"\r\n")]
    assert there.commands[0] == "EHLO mail.example.com"
    assert " QID: to=<b@b.example>, " in pipe.log.read_text()


@pytest.mark.parametrize(
    ("script", "status", "text"),
    [
        ({"RCPT": "550 5.1.1 No such user"}, 69, r"5\.1\.1 .*550 5\.1\.1 No such user"),
        ({"RCPT": "452 4.2.2 Full"}, 75, r"4\.2\.2 .*452 4\.2\.2 Full"),
        ({"DOT": "554 5.7.1 Spam"}, 69, r"5\.7\.1 .*554 5\.7\.1 Spam"),
        ({"DOT": "450 5.7.1 Later"}, 75, r"4\.0\.0 .*450 5\.7\.1 Later"),
        ({"DOT": "451 \x1b[2J\x85 4.1.1"}, 75, r"4\.\d\.\d .*451 \?\[2J"),
    ],
)
def test_refusal_has_its_status_and_its_text(
    script: dict[str, str],
    status: int,
    text: str,
    pipe: Runner,
    host: Callable[..., Host],
) -> None:
    there = host(**script)
    assert_answer(pipe.run(pipe.argv(there.nexthop, "b@b.example")), status, text)


def test_addresses_are_utf8_in_every_locale(
    pipe: Runner, host: Callable[..., Host], tmp_path: Path
) -> None:
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-f", "ISO-8859-1", "-i", "de_DE", tmp_path / "de_DE"],
        capture_output=True,
        check=False,
    )
    if not made or not (tmp_path / "de_DE").exists():
        pytest.skip("no localedef, or no sources of locales")
    there = host()
    latin = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "de_DE"}
    argv = pipe.argv(there.nexthop, "\u00fc@b\u00fc.example", sender="\u00e9@a.example")
    ended = pipe.run(argv, env=latin)
    assert_answer(ended, 0, r"2\.0\.0 ")
    assert there.mail_from == ["<\u00e9@a.example> SMTPUTF8"]
    assert there.rcpt_to == ["<\u00fc@xn--b-eha.example>"]


def test_several_recipients_have_one_answer(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    many = [f"b{number}@b.example" for number in range(50)]
    assert_answer(pipe.run(pipe.argv(there.nexthop, *many)), 0, r"2\.0\.0 <b0@b\.exa")
    assert there.rcpt_to == [f"<{one}>" for one in many]
    assert len(there.messages) == 1


@pytest.mark.parametrize(
    ("sender", "wire"),
    [
        ("", "<>"),
        ("<>", "<>"),
        ("MAILER-DAEMON", "<>"),
        ("mailer-daemon@a.example", "<mailer-daemon@a.example>"),
        ("-f@a.example", "<-f@a.example>"),
        ("--", "<-->"),
        ('"a b"@a.example', '<"a b"@a.example>'),
    ],
)
def test_sender_is_said_as_it_was_given(
    sender: str, wire: str, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example", sender=sender)
    assert_answer(pipe.run(argv), 0, "2")
    assert [one.split()[0] for one in there.mail_from] == [wire.split()[0]]
    assert there.mail_from[0].startswith(wire)


@pytest.mark.parametrize(
    ("recipient", "wire"),
    [
        ("-b@b.example", "<-b@b.example>"),
        ("--@b.example", "<--@b.example>"),
        ("--nexthop=x@b.example", "<--nexthop=x@b.example>"),
        ('"a b"@b.example', '<"a b"@b.example>'),
        ('"a@c"@b.example', '<"a@c"@b.example>'),
        (r'"a\\b\"c"@b.example', r'<"a\\b\"c"@b.example>'),
        ("a b@b.example", '<"a b"@b.example>'),
        ("b@B.Example.", "<b@b.example>"),
        ("b@[192.0.2.1]", "<b@[192.0.2.1]>"),
        ("büro@b.example", "<büro@b.example>"),
    ],
)
def test_recipient_is_said_as_it_was_given(
    recipient: str, wire: str, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    assert_answer(pipe.run(pipe.argv(there.nexthop, recipient)), 0, "2")
    assert there.rcpt_to == [wire]


@pytest.mark.parametrize(
    "address",
    [b"a\r\nRCPT TO:<c@c.example>@b.example", b"\xff\xfe@b.example", b"x" * 3000],
    ids=["line_end", "no_utf8", "long"],
)
def test_impossible_recipient_reaches_no_host(
    address: bytes, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, os.fsdecode(address))
    assert_answer(pipe.run(argv), 69, r"5\.1\.3 ")
    assert there.commands == []


@pytest.mark.parametrize(
    "sender", ["a\r\nRCPT TO:<c@c.example>@b.example", "a> SIZE=1", "<a@b.example>"]
)
def test_sender_that_would_end_the_command_reaches_no_host(
    sender: str, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example", sender=sender)
    assert_answer(pipe.run(argv), 69, r"5\.1\.7 ")
    assert there.commands == []


@pytest.mark.parametrize(
    "sender",
    ["root@483920174635", "root@host (none)", "root@web-.example.net", "x" * 3000],
)
def test_sender_that_nobody_can_be_is_judged_by_the_host(
    sender: str, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example", sender=sender)
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    assert there.mail_from[0].startswith(f"<{sender}>")


def test_sender_that_is_no_utf8_is_said_as_it_is(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example", sender="m\udce9@b.example")
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    assert there.mail_from[0].startswith("<m\udce9@b.example>")


def test_sender_whose_domain_has_no_a_labels_here_needs_smtputf8(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example", sender="me@straße.example")
    without_idna = "import sys; sys.modules['idna'] = None"
    assert_answer(pipe.run(argv, before=without_idna), 0, r"2\.0\.0 ")
    assert there.mail_from[0].startswith("<me@straße.example> ")
    assert there.mail_from[0].endswith(" SMTPUTF8")


def test_cr_that_ends_no_line_is_a_space_and_the_size_is_right(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host(EHLO="250-host.example\n250 SIZE 9999")
    message = b"Subject: a\rb\r\r\n\rReceived: c\n\r\n\r.\r\n.\r.\nlast\r"
    argv = pipe.argv(there.nexthop, "b@b.example")
    assert_answer(pipe.run(argv, message), 0, r"2\.0\.0 ")
    [arrived] = there.messages
    assert arrived == b"Subject: a b \r\n Received: c\r\n\r\n .\r\n.. .\r\nlast \r\n"
    [mail] = there.mail_from
    assert mail.endswith(f" SIZE={len(arrived) - len(b'.')}")


# -- the mail server's side ---------------------------------------------------------


@pytest.mark.parametrize(("argv", "said"), WRONG)
def test_wrong_arguments_are_deferred(argv: list[str], said: str, pipe: Runner) -> None:
    del said
    assert_answer(pipe.run(argv), 75, r"4\.3\.5 mxpolicy: ")


@pytest.mark.parametrize(
    ("closing", "status"),
    [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), ("<&-", 75), ("<&- >&- 2>&-", 75)],
)
def test_closed_descriptors_do_no_harm(
    closing: str, status: int, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    wrap = ["sh", "-c", f'exec "$@" {closing}', "sh"]
    ended = pipe.run(pipe.argv(there.nexthop, "b@b.example"), wrap=wrap)
    assert ended.status == status
    assert len(there.messages) == (status == 0)
    heard = ">&-" not in closing.split()
    assert len(ended.answers) == heard


def test_standard_input_that_is_closed_is_named(pipe: Runner) -> None:
    wrap = ["sh", "-c", 'exec "$@" <&-', "sh"]
    ended = pipe.run(pipe.argv("[127.0.0.1]:1", "b@b.example"), wrap=wrap)
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: no message: standard input is closed")


def test_empty_message_is_deferred(pipe: Runner) -> None:
    ended = pipe.run(pipe.argv("[127.0.0.1]:1", "b@b.example"), b"")
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: no message: standard input is empty")


def test_standard_input_that_cannot_be_read_is_deferred(pipe: Runner) -> None:
    file = os.open(pipe.directory / "message", os.O_WRONLY | os.O_CREAT)
    ended = pipe.run(pipe.argv("[127.0.0.1]:1", "b@b.example"), stdin=file)
    os.close(file)
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: cannot read the message: Bad file d")


def test_message_from_a_file_is_delivered(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    file = pipe.directory / "message"
    file.write_bytes(MESSAGE)
    with file.open("rb") as stdin:
        ended = pipe.run(pipe.argv(there.nexthop, "b@b.example"), stdin=stdin)
    assert_answer(ended, 0, "2")
    assert len(there.messages) == 1


def test_pipe_that_is_full_costs_the_text_only(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host(RCPT="550 5.1.1 No such user")
    reads, writes = os.pipe()
    os.set_blocking(writes, False)  # as Postfix's is
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writes, b"x" * 4096)
    argv = [sys.executable, "-m", "mxpolicy", "pipe"]
    argv += pipe.argv(there.nexthop, "b@b.example")
    ended = subprocess.run(
        argv, input=MESSAGE, stdout=writes, stderr=writes, timeout=TIMEOUT, check=False
    )
    os.close(reads)
    os.close(writes)
    assert ended.returncode == 69


def test_message_is_not_delivered_when_nobody_hears_the_answer(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    # pipe(8), killed, looks so to what it had started through a shell.
    there = host()
    reads, writes = os.pipe()
    os.close(reads)
    argv = [sys.executable, "-m", "mxpolicy", "pipe"]
    argv += pipe.argv(there.nexthop, "b@b.example")
    ended = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *argv],
        input=MESSAGE,
        stdout=writes,
        timeout=TIMEOUT,
        check=False,
    )
    os.close(writes)
    assert ended.returncode == 75
    assert there.messages == []


def test_mail_server_that_cannot_be_seen_gets_time_to_show_its_end(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    hidden = (
        "from mxpolicy import pipe\n"
        "pipe.look_at = lambda pid: None\n"  # proc(5) with hidepid
        "pipe.UNSEEN_DEATH = 2.0"
    )
    began = time.monotonic()
    ended = pipe.run(pipe.argv(there.nexthop, "b@b.example"), before=hidden)
    assert_answer(ended, 0, r"2\.0\.0 ")
    assert time.monotonic() - began >= 2


def test_message_cut_short_by_the_end_of_the_mail_server_is_not_delivered(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    wrap = ["sh", "-c", '"$@"; exit $?', "sh"]
    with pipe.started(argv, signal_when_spooling(), wrap=wrap) as (shell, answers):
        assert shell.stdin is not None
        shell.stdin.write(MESSAGE)
        shell.stdin.flush()
        assert answers.recv(10) == b"reading"
        shell.kill()
        shell.wait(TIMEOUT)
        shell.stdin.close()
        [line] = all_answers(answers)
    assert line.startswith(b"4.3.0 mxpolicy: the mail server that started us has gone")
    assert there.commands == []


def test_final_dot_is_not_sent_once_the_mail_server_has_ended(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host("DATA")
    argv = pipe.argv(there.nexthop, "b@b.example")
    wrap = ["sh", "-c", '"$@"; exit $?', "sh"]
    with pipe.started(argv, wrap=wrap) as (shell, answers):
        assert shell.stdin is not None
        shell.stdin.write(MESSAGE)
        shell.stdin.close()
        assert there.reached.wait(TIMEOUT)
        shell.kill()
        shell.wait(TIMEOUT)
        there.release.set()
        [line] = all_answers(answers)
    assert line.startswith(b"4.3.0 ")
    there.close()
    assert there.messages == []


def as_child_of_process_1(script: str) -> list[str]:
    """Return what runs a command in a shell that is process 1 to it, or skip."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*alone, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no process namespaces for users here")
    return [*alone, "sh", "-c", script, "sh"]


def test_process_1_may_be_the_mail_server(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    wrap = as_child_of_process_1('"$@"; exit $?')
    ended = pipe.run(pipe.argv(there.nexthop, "b@b.example"), wrap=wrap)
    assert_answer(ended, 0, r"2\.0\.0 ")
    assert len(there.messages) == 1


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('"$@" >file; exit $?', id="nobody_need_read_it"),
        pytest.param(
            # It ends at once, and cannot have read what comes after.
            'mkfifo gone; true <gone & exec 3>gone; wait; "$@" >&3; exit $?',
            id="nobody_reads_it",
        ),
    ],
)
def test_process_1_may_have_got_us_from_a_mail_server_that_ended(
    script: str, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    wrap = as_child_of_process_1(f"cd {pipe.directory}; {script}")
    argv = pipe.argv(there.nexthop, "b@b.example")
    path = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    assert pipe.run(argv, wrap=wrap, env=path) == (75, [])
    assert there.messages == []


def signal_when_spooling() -> str:
    """Return code that says so on stdout when the first of the message is read."""
    return (
        "import os\n"
        "out, read = os.dup(1), os.read\n"
        "def first(descriptor, size):\n"
        "    data = read(descriptor, size)\n"
        "    if descriptor == 0:\n"
        "        os.read = read\n"
        "        os.write(out, b'reading')\n"
        "        os.close(out)\n"
        "    return data\n"
        "os.read = first"
    )


# -- signals ---------------------------------------------------------------------------

ENDING = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"]


@pytest.mark.parametrize("name", ENDING)
def test_signal_is_deferred(name: str, pipe: Runner, host: Callable[..., Host]) -> None:
    there = host("CONNECT")
    with pipe.started(pipe.argv(there.nexthop, "b@b.example")) as (process, answers):
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        assert there.reached.wait(TIMEOUT)
        process.send_signal(signal.Signals[name])
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, rf"4\.3\.0 mxpolicy: ended by {name}")
    assert there.messages == []


@pytest.mark.parametrize(
    "inherited",
    [
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_IGN)", id="ignored"),
        pytest.param("signal.pthread_sigmask(0, {signal.SIGTERM})", id="blocked"),
    ],
)
def test_signal_that_is_ignored_or_blocked_at_the_start_is_deferred_too(
    inherited: str, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host("CONNECT")
    program = (
        f"import os, signal, sys; {inherited}; os.execv(sys.argv[1], sys.argv[1:])"
    )
    wrap = [sys.executable, "-c", program]
    argv = pipe.argv(there.nexthop, "b@b.example")
    with pipe.started(argv, wrap=wrap) as (process, answers):
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        assert there.reached.wait(TIMEOUT)
        process.terminate()
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: ended by SIGTERM")


# Code that stands for the delivery: settles, then something happens.
SETTLE = (
    "from mxpolicy.delivery.delivery import Delivery\n"
    "from mxpolicy.outcome import Delivered, Bounced, Deferred\n"
    "from mxpolicy.reply import EnhancedStatus, Reply\n"
    "from mxpolicy import pipe\n"
    "import asyncio, os, signal, sys, time\n"
    "def settle(self, *recipients):\n"
    "    for one in self.settlement:\n"
    "        reply = Reply(250, ('Ok',))\n"
    "        got = Delivered(EnhancedStatus(2, 0, 0), '250 Ok', reply, 'h')\n"
    "        if not recipients or one.text in recipients:\n"
    "            self.settlement.settle(one.number, got)\n"
    "async def outcomes(self):\n"
    "    {}\n"
    "    await asyncio.sleep(3600)\n"
    "Delivery.outcomes = outcomes\n"
    "Delivery._run = lambda self, work: asyncio.sleep(3600)\n"
)


@pytest.mark.parametrize(
    "does",
    [
        pytest.param("os.kill(os.getpid(), signal.SIGTERM)", id="signal"),
        pytest.param("raise ValueError", id="exception"),
        pytest.param("raise MemoryError", id="out_of_memory"),
        pytest.param("raise SystemExit(2)", id="exit"),
        pytest.param("raise KeyboardInterrupt", id="interrupt"),
        pytest.param("raise asyncio.CancelledError", id="cancelled"),
        pytest.param("return", id="return"),
        pytest.param(
            "asyncio.get_running_loop().call_soon([].pop)", id="callback_that_fails"
        ),
        pytest.param("time.sleep(3600)", id="hangs"),
        pytest.param("await asyncio.sleep(3600)", id="waits_for_nothing"),
    ],
)
class TestTrouble:
    """The same troubles, with all, some or none of the outcomes known."""

    # With --deadline 2s, and 600 s more for the dot: rings after 0.8 s.
    quick = "pipe.ALARM_SLACK, pipe.ALARM_INTERVAL = -601.2, 0.2\n"

    def run(self, pipe: Runner, does: str) -> Ended:
        argv = ["--deadline", "2s", *pipe.argv("x.example", "b@b", "c@c")]
        return pipe.run(argv, before=SETTLE.format(does) + self.quick)

    def test_after_all_are_settled_leaves_with_their_outcome(
        self, does: str, pipe: Runner
    ) -> None:
        ended = self.run(pipe, f"settle(self); {does}")
        assert_answer(ended, 0, r"2\.0\.0 <b@b>: h said: 250 Ok; <c@c>: h said: 250 Ok")

    def test_before_all_are_settled_is_deferred(self, does: str, pipe: Runner) -> None:
        ended = self.run(pipe, f"settle(self, 'b@b'); {does}")
        assert_answer(ended, 75, r"4\.3\.0 mxpolicy: [^:]")


def test_exception_is_named_with_its_place(pipe: Runner) -> None:
    before = SETTLE.format("raise ExceptionGroup('x', [ValueError('\\x1b bad\\n')])")
    ended = pipe.run(pipe.argv("x.example", "b@b"), before=before)
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: ValueError: \? bad\?")
    ended = pipe.run(pipe.argv("x.example", "b@b"), before=SETTLE.format("1 / 0"))
    assert_answer(
        ended, 75, r"4\.3\.0 mxpolicy: ZeroDivisionError: .* \(<string>:\d+\)"
    )


def test_callback_that_fails_ends_the_wait_for_it(pipe: Runner) -> None:
    before = SETTLE.format("asyncio.get_running_loop().call_soon([].pop)")
    ended = pipe.run(pipe.argv("x.example", "b@b"), before=before)
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: IndexError: pop from empty list")


def test_exception_whose_text_fails_is_deferred(pipe: Runner) -> None:
    before = "class Bad(Exception):\n    def __str__(self): raise MemoryError\n"
    before += SETTLE.format("raise Bad")
    ended = pipe.run(pipe.argv("x.example", "b@b"), before=before)
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy")


def test_what_is_written_by_others_does_not_come_before_the_answer(
    pipe: Runner,
) -> None:
    says = (
        "os.write(2, b'warning\\n'), os.write(1, b'x'), print('y'), os.system('echo z')"
    )
    before = SETTLE.format(f"{says}; settle(self); return")
    ended = pipe.run(pipe.argv("x.example", "b@b"), before=before)
    assert_answer(ended, 0, r"2\.0\.0 h said: 250 Ok")


def test_second_signal_does_not_make_a_second_answer(pipe: Runner) -> None:
    # The first one's answer is under way when the second arrives.
    before = SETTLE.format("os.kill(os.getpid(), signal.SIGTERM)") + (
        "write = os.write\n"
        "def slow(descriptor, data):\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "    return write(descriptor, data)\n"
        "os.write = slow\n"
    )
    ended = pipe.run(pipe.argv("x.example", "b@b"), before=before)
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: ended by SIGTERM")


def test_answer_that_cannot_be_written_is_cut_short_by_the_alarm(pipe: Runner) -> None:
    before = SETTLE.format("settle(self); return") + TestTrouble.quick
    before += "os.write = lambda descriptor, data: time.sleep(3600)\n"
    argv = ["--deadline", "2s", *pipe.argv("x.example", "b@b")]
    assert pipe.run(argv, before=before) == (0, [])


def test_reply_to_the_dot_counts_that_came_while_the_process_was_stopped(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host(holds="DOT")
    argv = ["--deadline", "2s", *pipe.argv(there.nexthop, "b@b.example")]
    before = "from mxpolicy import pipe, pipe_command as command\n"
    before += "pipe.ALARM_SLACK = 0.1 - command.DOT_TIME"
    with pipe.started(argv, before) as (process, answers):
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        assert there.reached.wait(TIMEOUT)
        os.kill(process.pid, signal.SIGSTOP)
        there.release.set()
        time.sleep(3)  # its deadline passes, and its alarm rings
        os.kill(process.pid, signal.SIGCONT)
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 0, r"2\.0\.0 \S+ said: 250 2\.0\.0 Ok: taken")


def test_exception_that_keeps_nobody_waiting_ends_nothing(pipe: Runner) -> None:
    does = (
        "lost = asyncio.get_running_loop().create_future(); "
        "lost.set_exception(ValueError()); del lost; settle(self); return"
    )
    ended = pipe.run(pipe.argv("x.example", "b@b"), before=SETTLE.format(does))
    assert_answer(ended, 0, r"2\.0\.0 h said: 250 Ok")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        pytest.param(["--deadline", "2s"], "61[67]", id="given"),
        pytest.param(["--deadline", "2900s"], "351[45]", id="contrib"),
        pytest.param([], "98[45]", id="by_default"),
    ],
)
def test_alarm_rings_only_after_the_dot_has_had_its_time_beyond_the_deadline(
    options: list[str], left: str, pipe: Runner
) -> None:
    does = "raise ValueError(int(signal.getitimer(signal.ITIMER_REAL)[0]))"
    argv = [*options, *pipe.argv("x.example", "b@b")]
    ended = pipe.run(argv, before=SETTLE.format(does))
    assert_answer(ended, 75, rf"4\.3\.0 mxpolicy: ValueError: {left} ")


def test_postfix_does_not_kill_by_default_before_the_last_alarm_has_rung() -> None:
    last = time_needed(None, Options()) + ALARM_SLACK + 2 * ALARM_INTERVAL
    assert last < DEFAULT_LIMIT == 1000.0


# -- limits ------------------------------------------------------------------------------


def test_own_deadline_is_deferred(pipe: Runner, host: Callable[..., Host]) -> None:
    there = host(CONNECT=End.SILENT)
    began = time.monotonic()
    argv = ["--deadline", "1s", *pipe.argv(there.nexthop, "b@b.example")]
    assert_answer(pipe.run(argv), 75, r"4\.4\.\d ")
    assert time.monotonic() - began < 60


def test_mail_server_that_writes_slowly_uses_up_the_deadline(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = ["--deadline", "300ms", *pipe.argv(there.nexthop, "b@b.example")]
    with pipe.started(argv, signal_when_spooling()) as (process, answers):
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.flush()
        assert answers.recv(10) == b"reading"
        time.sleep(0.4)  # the deadline is on the other process's clock
        process.stdin.close()
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, r"4\.")
    assert there.messages == []


def limits(**values: int) -> str:
    """Return code that sets these resource limits."""
    lines = [f"resource.setrlimit(resource.{k}, ({v}, {v}))" for k, v in values.items()]
    return "\n".join(["import resource", *lines])


def test_full_disk_is_deferred(pipe: Runner, host: Callable[..., Host]) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    before = limits(RLIMIT_FSIZE=1 << 20)
    ended = pipe.run(argv, MESSAGE + b"x\n" * (1 << 20), before=before)
    assert_answer(
        ended, 75, r"4\.3\.0 mxpolicy: cannot spool the message: File too lar"
    )
    assert there.commands == []


def test_message_memory_is_as_configured(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    pipe.configure("limits: {message_memory: 10MiB}", "tls: {default: none}")
    message = MESSAGE + b"x\n" * (1 << 20)
    ended = pipe.run(argv, message, before=limits(RLIMIT_FSIZE=1 << 20))
    assert_answer(ended, 0, r"2\.")
    assert there.messages == [message.replace(b"\n", b"\r\n")]


@pytest.mark.parametrize("files", [3, 4, 5, 6, 7, 8])
def test_too_few_descriptors_are_deferred(
    files: int, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    before = "import mxpolicy.delivery.engine\n" + limits(RLIMIT_NOFILE=files)
    ended = pipe.run(argv, before=before)
    assert_answer(ended, 75, r"4\.3\.\d ")
    assert there.messages == []


MIB = 1 << 20


def test_any_amount_of_memory_is_enough_or_deferred(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    message = MESSAGE + b"x" * 70 + b"\n"
    message += message[-71:] * 20_000
    ends: dict[int, int] = {}

    def deliver(limit: int) -> None:
        another = b"X-Limit: %d\n" % limit + message
        ended = pipe.run(argv, another, before=limits(RLIMIT_AS=limit))
        assert ended.status in {0, 75}, (limit / MIB, ended)
        assert len(ended.answers) <= 1, (limit / MIB, ended)
        ends[limit] = ended.status

    for limit in range(24 * MIB, 72 * MIB, 6 * MIB):
        deliver(limit)
    # Near where memory runs out it may do so anywhere, also in the store's thread.
    enough = min(limit for limit in ends if ends[limit] == 0)
    for limit in range(enough - 6 * MIB + MIB // 8, enough, MIB // 8):
        deliver(limit)
    assert set(ends.values()) == {0, 75}
    assert len(there.messages) == list(ends.values()).count(0)


def test_thread_that_dies_before_it_runs_does_not_keep_the_message(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    # As when there is memory for a thread's stack and then no more.
    before = (
        "import _thread, threading\n"
        "def dies(function, arguments): return 0\n"
        "_thread.start_new_thread = threading._start_new_thread = dies\n"
    )
    ended = pipe.run(pipe.argv(there.nexthop, "b@b.example"), before=before)
    assert_answer(ended, 0, r"2\.")
    assert len(there.messages) == 1
    assert pipe.log.read_text().count("its thread does not start") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "hello: mail.example.com\n",
            r"4\.3\.5 mxpolicy: .*mxpolicy\.yaml:1:1: hello: ",
        ),
        ("port: [\n", r"4\.3\.5 mxpolicy: .*mxpolicy\.yaml:\d:\d: "),
        ("\0", r"4\.3\.5 mxpolicy: .*mxpolicy\.yaml"),
        ("a: 1\n" * 5000, r"4\.3\.5 mxpolicy: "),
    ],
)
def test_invalid_configuration_is_deferred(text: str, said: str, pipe: Runner) -> None:
    pipe.config.write_text(text)
    assert_answer(pipe.run(pipe.argv("x.example", "b@b.example")), 75, said)


def test_missing_configuration_is_deferred(pipe: Runner) -> None:
    pipe.config.unlink()
    ended = pipe.run(pipe.argv("x.example", "b@b.example"))
    assert_answer(ended, 75, r"4\.3\.5 mxpolicy: .*cannot be read: No such file")


def test_missing_library_is_deferred(pipe: Runner) -> None:
    ended = pipe.run(
        pipe.argv("x.example", "b@b"), before="import sys; sys.modules['yaml'] = None"
    )
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: ModuleNotFoundError: .*yaml")


def test_socket_of_a_daemon_is_accepted_and_nobody_is_asked(
    pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    argv = ["--socket", "/nonexistent", *pipe.argv(there.nexthop, "b@b.example")]
    assert_answer(pipe.run(argv), 0, "2")
    assert len(there.messages) == 1


# -- imports -----------------------------------------------------------------------------

# Each is millions of instructions, or belongs to something that is not used here.
DEAR = {
    *("argparse", "difflib", "tempfile", "subprocess", "email", "urllib.request"),
    *("json", "sqlite3", "idna", "yaml", "http", "secrets", "ctypes"),
    *("dataclasses", "shlex"),
    *("dns", "mxpolicy.check"),
    *("mxpolicy.demo", "mxpolicy.route", "importlib.metadata", "multiprocessing"),
}


def test_delivery_imports_nothing_dear(pipe: Runner, host: Callable[..., Host]) -> None:
    there = host()
    modules = pipe.directory / "modules"
    before = (
        # Without a file there is no YAML, and no leave to dial loopback either.
        "from mxpolicy import config\n"
        "from mxpolicy.options import LogOptions, Options\n"
        "config.load = lambda *_: Options(allow_dial=('127.0.0.0/8',),\n"
        f"    log=LogOptions(to='/dev/null'), state={str(pipe.directory / 'none')!r})\n"
        "import os, sys\n"
        "def list_modules(status, leave=os._exit):\n"
        f"    with open({str(modules)!r}, 'w') as file:\n"
        "        file.write(' '.join(sys.modules))\n"
        "    leave(status)\n"
        "os._exit = list_modules\n"
    )
    assert_answer(pipe.run(pipe.argv(there.nexthop, "b@b"), before=before), 0, "2")
    found = set(modules.read_text().split())
    assert "mxpolicy.delivery.session" in found
    assert found & DEAR == imported_by_libraries() & DEAR


def imported_by_libraries() -> set[str]:
    """Return what asyncio cannot do without, here and now."""
    program = "import asyncio, ssl, sys; print(' '.join(sys.modules))"
    command = [sys.executable, "-c", program]
    return set(subprocess.check_output(command, text=True).split())


@pytest.mark.parametrize(("passed", "status"), [(49, 0), (50, 69), (3000, 69)])
def test_message_that_goes_in_circles_is_bounced(
    passed: int, status: int, pipe: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    message = b"Received: from a by b\nreceived : from b\n\tby a\n" * (passed // 2)
    message += b"Received: from a by b\n" * (passed % 2) + b"Subject: round\n\nx\n"
    ended = pipe.run(pipe.argv(there.nexthop, "b@b.example"), message)
    text = rf"5\.4\.6 mail loop: {passed} Received: fields" if status else r"2\.0\.0"
    assert_answer(ended, status, text)
    assert len(there.messages) == (status == 0)
