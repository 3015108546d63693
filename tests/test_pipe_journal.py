"""A message comes again: nobody gets it twice, and the sender hears the truth."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

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

__all__ = ["host", "pipe"]  # fixtures

Hosts = Callable[..., Host]

SENT, LATER, NEVER = "250 2.1.5 Ok", "452 4.2.2 Full", "550 5.1.1 Who?"
NAMES = ("a@b.example", "b@b.example", "c@b.example")
NO_NAME = b"Subject: one\n\nOne line.\n"


def answers_to(names: tuple[str, ...], replies: tuple[str, ...]) -> dict[str, str]:
    """Return what a host says to RCPT, for `Host.will`."""
    return {f"RCPT {name}": reply for name, reply in zip(names, replies, strict=True)}


def without_id(argv: list[str]) -> list[str]:
    """Return the arguments of a mail server that does not name its messages."""
    at = argv.index("--queue-id")
    return argv[:at] + argv[at + 2 :]


def start_and_reach(pipe: Runner, there: Host, *recipients: str) -> Ended:
    """Deliver until *there* holds, kill it there, and say how it ended."""
    argv = pipe.argv(there.nexthop, *recipients)
    with pipe.started(argv) as (process, answers):
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        assert there.reached.wait(TIMEOUT)
        process.kill()
        return Ended(process.wait(TIMEOUT), all_answers(answers))


def test_message_that_comes_again_is_not_sent_again(pipe: Runner, host: Hosts) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    connections = there.commands.count("QUIT")
    again = pipe.run(argv)
    assert_answer(again, 0, r"2\.0\.0 2?5?0? ?.*Ok: taken \(delivered earlier\)")
    assert len(there.messages) == 1
    assert there.commands.count("QUIT") == connections
    other_sender = pipe.argv(there.nexthop, "b@b.example", sender="you@a.example")
    assert_answer(pipe.run(other_sender), 0, r"2\.0\.0 ")
    assert_answer(pipe.run(argv, MESSAGE + b"More."), 0, r"2\.0\.0 ")
    assert_answer(pipe.run(pipe.argv(there.nexthop, "c@b.example")), 0, r"2\.0\.0 ")
    assert len(there.messages) == 4


@pytest.mark.parametrize(("message", "copies"), [(MESSAGE, 1), (NO_NAME, 2)])
def test_equal_messages_are_one_only_where_a_mail_server_has_marked_them(
    message: bytes, copies: int, pipe: Runner, host: Hosts
) -> None:
    there = host()
    argv = without_id(pipe.argv(there.nexthop, "b@b.example"))
    for _ in range(2):
        assert_answer(pipe.run(argv, message), 0, r"2\.0\.0 ")
    assert len(there.messages) == copies


def test_same_recipient_by_two_nexthops_gets_a_copy_by_each(
    pipe: Runner, host: Hosts
) -> None:
    # Exim's `unseen` router sends one to the archive, and the ordinary one the other.
    archive, real = host(), host(address="127.0.0.2")
    spelt = real.nexthop.replace("[127.0.0.2]", "127.0.0.2")
    for _ in range(2):
        for nexthop in (archive.nexthop, real.nexthop, spelt):
            argv = pipe.argv(nexthop, "b@b.example")
            assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    assert (len(archive.messages), len(real.messages)) == (1, 1)


def test_equal_messages_of_two_names_are_two(pipe: Runner, host: Hosts) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    for name in ("4ZbX3k0Qz", "4ZbX3k0Qy"):
        named = [name if word == "QID" else word for word in argv]
        assert_answer(pipe.run(named, NO_NAME), 0, r"2\.0\.0 ")
    assert len(there.messages) == 2


@pytest.mark.parametrize(
    "replies", list(itertools.product((SENT, LATER, NEVER), repeat=2))
)
def test_any_mixture_over_retries_reaches_each_recipient_once(
    replies: tuple[str, str], pipe: Runner, host: Hosts
) -> None:
    # Two as the product says, and a third who is deferred at first.
    there = host()
    argv = pipe.argv(there.nexthop, *NAMES)
    there.will(answers_to(NAMES, (*replies, LATER)))
    first = pipe.run(argv)
    assert_answer(first, 75, r"4\.")
    settled = [
        name for name, reply in zip(NAMES, replies, strict=False) if reply is not LATER
    ]
    asked = len(there.rcpt_to)
    assert_answer(pipe.run(argv), 75, r"4\.")
    assert there.rcpt_to[asked:] == [
        f"<{name}>" for name in NAMES if name not in settled
    ]
    asked = len(there.rcpt_to)
    there.will(answers_to(NAMES, (SENT, SENT, SENT)))
    last = pipe.run(argv)
    assert there.rcpt_to[asked:] == [
        f"<{name}>" for name in NAMES if name not in settled
    ]
    refused = [
        name for name, reply in zip(NAMES, replies, strict=False) if reply is NEVER
    ]
    assert_answer(last, 69 if refused else 0, r"5\.1\.1 " if refused else r"2\.")
    text = last.answers[0].decode()
    told, _, delivered = text.partition("; delivered: ")
    assert re.findall(r"<(.+?)>:", told if refused else "") == refused
    if refused:
        assert re.findall(r"<(.+?)>", delivered) == [
            name for name in NAMES if name not in refused
        ]
    # The answer was lost, or made a deferral of: those refused are asked for again.
    asked = len(there.rcpt_to)
    there.will(answers_to(NAMES, (SENT, SENT, SENT)))
    assert_answer(pipe.run(argv), 0, r"2\.")
    assert there.rcpt_to[asked:] == [f"<{name}>" for name in refused]


def test_killed_before_the_dot_it_is_sent_once(pipe: Runner, host: Hosts) -> None:
    there = host(holds="DATA")
    assert start_and_reach(pipe, there, "b@b.example") == (-signal.SIGKILL, [])
    there.release.set()
    argv = pipe.argv(there.nexthop, "b@b.example")
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    assert len(there.messages) == 1


def test_killed_between_dot_and_reply_another_host_is_asked_first(
    pipe: Runner, host: Hosts
) -> None:
    better = host(CONNECT="421 4.3.2 closing")
    worse = host(holds="DOT", address="127.0.0.2")
    hosts = f"{better.nexthop}, {worse.nexthop}"
    argv = pipe.argv(hosts, "b@b.example")
    with pipe.started(argv) as (process, _):
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        assert worse.reached.wait(TIMEOUT)
        process.kill()
        process.wait(TIMEOUT)
    worse.release.set()
    better.will({"CONNECT": "220 host.example ESMTP"})
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    # It may have it, and that cannot be known: but who did not answer once may never.
    assert (len(better.messages), len(worse.messages)) == (1, 1)


def test_two_processes_at_the_same_time_deliver_once(pipe: Runner, host: Hosts) -> None:
    there = host(holds="DOT")
    argv = pipe.argv(there.nexthop, "b@b.example")
    with pipe.started(argv) as (first, said), pipe.started(argv) as (second, heard):
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write(MESSAGE)
            process.stdin.close()
        assert there.reached.wait(TIMEOUT)
        there.release.set()
        ends = [
            Ended(first.wait(TIMEOUT), all_answers(said)),
            Ended(second.wait(TIMEOUT), all_answers(heard)),
        ]
    for ended in ends:
        assert_answer(ended, 0, r"2\.0\.0 ")
    assert sum(b"delivered earlier" in ended.answers[0] for ended in ends) == 1
    assert len(there.messages) == 1


def test_second_process_defers_when_the_first_takes_long(
    pipe: Runner, host: Hosts
) -> None:
    there = host(holds="DOT")
    pipe.configure("journal: {wait: 1s}")
    argv = pipe.argv(there.nexthop, "b@b.example")
    with pipe.started(argv) as (first, said):
        assert first.stdin is not None
        first.stdin.write(MESSAGE)
        first.stdin.close()
        assert there.reached.wait(TIMEOUT)
        busy = r"4\.3\.0 another delivery of this message is under way"
        assert_answer(pipe.run(argv), 75, busy)
        there.release.set()
        assert_answer(Ended(first.wait(TIMEOUT), all_answers(said)), 0, r"2\.0\.0 ")
    assert len(there.messages) == 1


def test_journal_that_is_not_kept_sends_again(pipe: Runner, host: Hosts) -> None:
    there = host()
    pipe.configure("journal: {keep: no}")
    argv = pipe.argv(there.nexthop, "b@b.example")
    for _ in range(2):
        assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    assert len(there.messages) == 2


def spoil(directory: Path, name: str, damage: str) -> None:
    """Take a file away, or put something else in its place."""
    for file in directory.glob(f"{name}*"):
        file.unlink()
    match damage:
        case "corrupt":
            (directory / name).write_bytes(os.urandom(8192))
        case "directory":
            (directory / name).mkdir()
        case _:
            pass


@pytest.mark.parametrize("damage", ["corrupt", "directory", "missing"])
def test_broken_disk_is_no_journal_and_mail_goes_on(
    damage: str, pipe: Runner, host: Hosts
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    spoil(pipe.state, "journal.sqlite3", damage)
    if damage == "missing":
        shutil.rmtree(pipe.state)
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    assert len(there.messages) == 2
    assert "nothing outlives this process: " in pipe.log.read_text()


@pytest.mark.parametrize("damage", ["corrupt", "directory", "missing"])
def test_broken_file_of_hosts_takes_nothing_from_the_journal(
    damage: str, pipe: Runner, host: Hosts
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    spoil(pipe.state, "state.sqlite3", damage)
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 .*delivered earlier")
    assert len(there.messages) == 1


def plant(pipe: Runner, how: str) -> None:
    """Do what a stranger does who may write the directory."""
    file = pipe.state / "journal.sqlite3"
    match how:
        case "trigger":
            with closing(sqlite3.connect(file)) as db:
                entry = "1\tdelivered\t\t\t\t0\t0\t\t0\t\t2.0.0\tOk\t"
                db.execute(
                    "CREATE TRIGGER t AFTER INSERT ON rows BEGIN UPDATE rows"
                    f" SET value = CAST('{entry}' AS BLOB) WHERE key = NEW.key; END"
                )
        case "directory":
            pipe.state.chmod(0o777)
        case "file":
            file.chmod(0o666)
        case _:
            file.rename(pipe.directory / "elsewhere")
            file.symlink_to(pipe.directory / "elsewhere")


@pytest.mark.parametrize("how", ["trigger", "directory", "file", "link"])
def test_journal_that_a_stranger_may_have_written_is_not_believed(
    how: str, pipe: Runner, host: Hosts
) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    plant(pipe, how)
    for number in (2, 3):
        ended = pipe.run(argv)
        assert_answer(ended, 0, r"2\.0\.0 ")
        assert b"earlier" not in ended.answers[0]
        assert len(there.messages) == number
    told = [line for line in pipe.log.read_text().splitlines() if "outlives" in line]
    assert len(told) == 2  # one of each process
    assert "(mend it: " in told[0]


def test_damaged_rows_defer_nothing(pipe: Runner, host: Hosts) -> None:
    there = host()
    argv = pipe.argv(there.nexthop, "b@b.example")
    assert_answer(pipe.run(argv), 0, r"2\.0\.0 ")
    for damage in ("value = 5", "value = CAST(x'ff' AS TEXT)", "expires = 'later'"):
        for file in pipe.state.glob("*.sqlite3"):
            with closing(sqlite3.connect(file)) as db:
                db.execute(f"UPDATE rows SET {damage}")
                db.commit()
        assert_answer(pipe.run(argv), 0, r"2\.0\.0 .*taken")
    assert len(there.messages) == 4
    assert "outlives" not in pipe.log.read_text()
