"""What is particular to the hand-over's client in Perl (handover.pl).

All that it has in common with Python's is tested in test_handover.py, for both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mxpolicy import handover
from tests.helpers.handing_over import PERL, PERL_CLIENT, Command, child_of, in_perl
from tests.helpers.piping import TIMEOUT, Ended, Host, all_answers, assert_answer, host
from tests.helpers.speaking import Speaking, speaking

__all__ = ["host", "speaking"]

pytestmark = pytest.mark.skipif(not shutil.which("perl"), reason="needs Perl")

TAKEN = r"2\.0\.0 \S+ said: 250 2\.0\.0 Ok: taken"


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def handed_over_by(command: Command, speaking: Speaking, **more: Any) -> str:
    """Hand a message over, and return the name of the program that did."""
    argv = command.argv(speaking.path, "[127.0.0.1]:1")
    with command.started(argv, **more) as (process, answers):
        speaking.hear()
        name = Path(f"/proc/{child_of(process.pid)}/comm").read_text()
        speaking.say(b"+600\n")
        assert speaking.hear() == b"@"
        assert len(speaking.descriptors) == 1
        speaking.say(b"?\n")
        assert speaking.hear() == b"!"
        speaking.say(b"=69 5.1.1 no such user\n")
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 69, r"5\.1\.1 no such user")
    return name.strip()


def changed(command: Command, *old_and_new: str) -> None:
    """Give the command a client in which each old text is the new one."""
    [package] = command.root.glob("lib/*/site-packages/mxpolicy")
    checkout = package.resolve()
    package.unlink()
    package.mkdir()
    for one in checkout.iterdir():
        (package / one.name).symlink_to(one)
    client = package / "handover.pl"
    text = client.read_text()
    for old, new in zip(old_and_new[::2], old_and_new[1::2], strict=True):
        assert text.count(old) == 1
        text = text.replace(old, new)
    client.unlink()
    client.write_text(text)


def search_with(command: Command, perl: str | None) -> None:
    """Let the PATH begin with a directory with such a ``perl``; None is an empty file."""
    directory = command.root / "search"
    directory.mkdir()
    (directory / "perl").write_text(perl or "")
    (directory / "perl").chmod(0o755)
    command.search = f"{directory}:{command.search}"


# -- what it is made of -----------------------------------------------------------


def test_it_is_clean_perl() -> None:
    strict = ["-Mstrict", "-Mwarnings=FATAL,all", "-c", str(PERL_CLIENT)]
    ended = subprocess.run(["perl", *strict], capture_output=True, check=False)
    assert ended.stderr == f"{PERL_CLIENT} syntax OK\n".encode()


def test_it_loads_nothing() -> None:
    assert in_perl("print keys %INC") == b""


def test_what_it_has_copied_is_as_in_the_other_client() -> None:
    names = ["VERSION", "MAX_REQUEST", "DEFAULT_SOCKET", "PATIENCE", "UNSEEN_DEATH"]
    names += ["EXIT_DEFER", "MAX_ANSWER"]
    found = in_perl(f"print map {{ qq($_\\n) }} {', '.join(f'${n}' for n in names)}")
    assert found.decode().split() == [
        f"{getattr(handover, name):g}"
        if isinstance(getattr(handover, name), float)
        else str(getattr(handover, name))
        for name in names
    ]
    assert in_perl("print $EXITING") == b"%d" % handover._EXITING
    assert in_perl("print sort keys %OPTIONS").decode() == "".join(
        sorted(handover.OPTIONS)
    )
    assert table("CLASSES") == {
        status.decode(): number.decode() for status, number in handover.CLASSES.items()
    }
    assert table("ENDING") == {
        name: str(int(number))
        for name, number in zip(handover.NAMES, handover.ENDING, strict=True)
    }


def table(name: str) -> dict[str, str]:
    """Return one of its tables."""
    words = in_perl(f"print join ' ', %{name}").decode().split(" ")
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize(
    ("header", "machines"),
    [
        ("x86_64-linux-gnu/asm/unistd_64.h", ["62"]),
        ("asm-generic/unistd.h", ["183", "243"]),  # aarch64 and riscv64 have these
    ],
)
def test_numbers_are_those_of_the_kernel(header: str, machines: list[str]) -> None:
    file = Path("/usr/include") / header
    if not file.exists():
        pytest.skip("needs the kernel's headers (linux-libc-dev)")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", file.read_text()))
    calls = [numbers[name] for name in ("sendmsg", "ppoll", "rt_sigprocmask")]
    for machine in machines:
        assert (
            in_perl(f"print join ' ', @{{$CALLS{{{machine}}}}}")
            == " ".join(calls).encode()
        )


def test_constants_are_those_of_the_kernel() -> None:
    names = (
        "AF_UNIX SOCK_STREAM SOL_SOCKET SCM_RIGHTS SO_PEERCRED SO_RCVTIMEO SO_SNDTIMEO"
    )
    wanted = {name: int(getattr(socket, name)) for name in names.split()}
    wanted["MSG_NOSIGNAL"] = socket.MSG_NOSIGNAL
    wanted["SIG_UNBLOCK"] = signal.SIG_UNBLOCK
    wanted |= {"EINTR": 4, "EAGAIN": 11}
    found = in_perl(f"print '[', join(',', {', '.join(f'${n}' for n in wanted)}), ']'")
    assert dict(zip(wanted, json.loads(found), strict=True)) == wanted


# -- where it runs, and where it does not ------------------------------------------


HOSTILE = {
    "PERL5OPT": "-MNowhere -w -T",
    "PERL5LIB": "/nowhere",
    "PERLLIB": "/nowhere",
    "PERL5DB": "BEGIN { exit 0 }",
    "PERLIO": ":utf8",
    "PERL_UNICODE": "SDAL",
    "PERL_SIGNALS": "neither",
    "PERL_HASH_SEED": "nonsense",
    "PERL_HASH_SEED_DEBUG": "1",
    "PERL_MEM_LOG": "1mst",
    "LC_ALL": "xx_XX.nonsense",
    "LANGUAGE": "xx",
}


def test_what_an_operator_wants_of_perl_changes_nothing(
    command: Command, speaking: Speaking
) -> None:
    assert handed_over_by(command, speaking, environ=HOSTILE) == PERL


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("$CALLS{$machine}", "$CALLS{0}", id="machine"),
        pytest.param(r'"\x7fELF\2\1"', r'"\x7fELF\1\1"', id="of_32_bits"),
        pytest.param("$] >= 5.020", "$] >= 6", id="old_perl"),
        pytest.param("syscall $SIGPROCMASK,", "die(),", id="without_syscall"),
    ],
)
def test_perl_that_cannot_hand_over_leaves_it_to_python(
    old: str, new: str, command: Command, speaking: Speaking
) -> None:
    changed(command, old, new)
    assert handed_over_by(command, speaking) == "python3"


@pytest.mark.parametrize(
    "perl",
    [
        pytest.param("#!/bin/sh\nexit 127\n", id="a_library_is_missing"),
        pytest.param("#!/bin/sh\nexit 126\n", id="of_another_machine"),
    ],
)
def test_perl_that_does_not_start_leaves_it_to_python(
    perl: str, command: Command, speaking: Speaking
) -> None:
    search_with(command, perl)
    assert handed_over_by(command, speaking) == "python3"


@pytest.mark.parametrize("status", [None, 0, 1, 2, 69, 75])
def test_status_that_is_not_of_the_client_is_try_later(
    status: int | None, command: Command
) -> None:
    # None: an empty file is a shell script that succeeds.
    search_with(command, None if status is None else f"#!/bin/sh\nexit {status}\n")
    ended = command.run(command.argv("/nowhere", "[127.0.0.1]:1"))
    text = r"4\.3\.0 mxpolicy: the delivery ended with status [12]"
    assert_answer(ended, 75, text)


@pytest.mark.parametrize("status", [204, 255])
def test_status_that_may_be_a_signal_is_try_later(
    status: int, command: Command
) -> None:
    search_with(command, f"#!/bin/sh\nexit {status}\n")
    ended = command.run(command.argv("/nowhere", "[127.0.0.1]:1"))
    assert ended == (-signal.SIGKILL, [])


def test_message_is_read_to_its_end_whatever_perl_ends_by(command: Command) -> None:
    # It may have died after the commit, while the daemon was stopped.
    search_with(command, "#!/bin/sh\nexit 1\n")
    with command.started(command.argv("/nowhere", "[127.0.0.1]:1")) as started:
        process, answers = started
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(b"x" * 200_000)  # more than a pipe holds
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: the delivery ended with status 1")


def test_trouble_of_its_own_is_left_to_the_command_before_the_commit(
    command: Command, speaking: Speaking, host: Callable[..., Host]
) -> None:
    changed(command, "commit() or return;", "die; commit() or return;")
    there = host()
    argv = command.argv(speaking.path, there.nexthop)
    with command.started(argv) as (process, answers):
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(b"Subject: one\n\nOne line.\n")
        speaking.hear()
        speaking.say(b"+600\n")
        assert speaking.hear() == b""
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 0, TAKEN)
    assert there.commands[0] == "EHLO alone.example.com"


def test_trouble_of_its_own_is_deferred_after_the_commit(
    command: Command, speaking: Speaking
) -> None:
    changed(command, "alarm shift;", r"die qq(t\xfcr\n\t);")
    argv = command.argv(speaking.path, "[127.0.0.1]:1")
    with command.started(argv) as (process, answers):
        speaking.hear()
        speaking.say(b"+600\n")
        assert speaking.hear() == b"@"
        assert speaking.hear() == b""
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(b"x" * 200_000)  # more than a pipe holds: it is read
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: t\?r\?\?.*")


@pytest.mark.parametrize(
    "name", ["-e 'die'", "a b\n$HOME;`exit`", "ü|", "<x> %s @ARGV"]
)
@pytest.mark.parametrize("is_relative", [False, True])
def test_directory_may_have_any_name(
    name: str, is_relative: bool, speaking: Speaking, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    command = Command(tmp_path / name)
    begins = "./venv/bin/mxpolicy" if is_relative else '"$0"'
    wrap = ["/bin/sh", "-c", f'exec {begins} "$@"']
    more = {"wrap": wrap, "cwd": str(tmp_path / name)}
    assert handed_over_by(command, speaking, **more) == PERL


@pytest.mark.parametrize("kind", ["socket", "device"])
def test_what_is_neither_a_pipe_nor_a_file_is_left_to_python(
    kind: str, command: Command, speaking: Speaking, host: Callable[..., Host]
) -> None:
    there = host()
    ours, theirs = socket.socketpair()
    argv = command.argv(speaking.path, there.nexthop)
    with ours, theirs, open(os.devnull, "rb") as null:
        stdin = theirs.fileno() if kind == "socket" else null.fileno()
        with command.started(argv, stdin=stdin) as (process, answers):
            ours.sendall(b"Subject: one\n\nOne line.\n")
            ours.shutdown(socket.SHUT_WR)
            ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    if kind == "socket":
        assert_answer(ended, 0, TAKEN)
    else:
        assert_answer(ended, 75, r"4\.3\.0 mxpolicy: no message: .*empty")
    with pytest.raises(BlockingIOError):
        speaking.accept(blocking=False)


# -- its times ----------------------------------------------------------------------

OF_THE_SOCKET = "pack('qq', $PATIENCE, 0)"
SHORT = "pack('qq', 0, 10_000)"


def test_socket_s_own_time_ends_what_the_alarm_has_missed(
    command: Command, speaking: Speaking
) -> None:
    changed(command, "alarm $PATIENCE;", "", OF_THE_SOCKET, SHORT)
    argv = command.argv(speaking.path, "[127.0.0.1]:1")
    with command.started(argv) as (process, answers):
        assert process.stdin is not None
        process.stdin.close()
        speaking.hear()
        assert speaking.hear() == b""
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 75, r"4\.3\.0 mxpolicy: no message: .*empty")


def test_socket_s_own_time_does_not_end_the_wait_for_the_answer(
    command: Command, speaking: Speaking
) -> None:
    changed(command, "alarm $PATIENCE;", "", OF_THE_SOCKET, SHORT)
    argv = command.argv(speaking.path, "[127.0.0.1]:1")
    with command.started(argv) as (process, answers):
        speaking.hear()
        speaking.say(b"+600\n")
        assert speaking.hear() == b"@"
        time.sleep(0.05)
        speaking.say(b"=0 2.0.")
        time.sleep(0.05)
        speaking.say(b"0 delivered\n")
        ended = Ended(process.wait(TIMEOUT), all_answers(answers))
    assert_answer(ended, 0, r"2\.0\.0 delivered")
