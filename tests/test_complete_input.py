"""The end of stdin, and whether the mail server that wrote to it still lives.

A round is what a kill in mid-write comes to: a writer, who is the parent of who reads,
is ended by SIGKILL, and the reader asks at the very end of its stdin. Its stdout is open
for reading somewhere else, so that it cannot tell.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

# Prints a letter for each round: was the input "c"omplete or "i"ncomplete?
ROUNDS = """
import ctypes, os, signal, sys, time
from mxpolicy.pipe import UNSEEN_DEATH, WayOut

rounds, end, who, sight = sys.argv[1:]
PR_SET_DUMPABLE = 4

def behind_another():
    if not os.path.exists("/proc/self/stat"):
        return None  # the script does not stay either
    mail_server = os.getppid()
    if child := os.fork():  # as the script, which waits
        os.waitpid(child, 0)
        os._exit(0)
    return mail_server

def read():
    if sight == "hidden":
        os.setgroups([])
        os.setgid(65534)  # hidepid hides nothing from group 0
        os.setuid(65534)
        # As after exec: else it could not see its own parent (prctl(2)).
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)
    door = WayOut(behind_another() if who == "behind another" else None)
    os.write(told, b"r")
    while os.read(0, 65536):
        pass
    assert door.sees_the_mail_server() == (sight == "seen")
    if sight != "seen":
        time.sleep(UNSEEN_DEATH)
    os.write(told, b"c" if door.is_watched() else b"i")
    os._exit(0)

def write():
    reads, writes = os.pipe()
    if os.fork() == 0:
        os.dup2(reads, 0)
        os.dup2(out, 1)
        os.closerange(writes, writes + 1)
        read()
    os.close(reads)
    os.write(writes, b"x" * 1000)
    if end == "closed":
        os.close(writes)
    signal.pause()

signal.alarm(60)  # a reader that failed says nothing
hears, told = os.pipe()
_, out = os.pipe()
for _ in range(int(rounds)):
    writer = os.fork()
    if writer == 0:
        write()
    assert os.read(hears, 1) == b"r"
    if end == "closed":
        print(os.read(hears, 1).decode(), end="")
    os.kill(writer, signal.SIGKILL)
    if end == "killed":
        print(os.read(hears, 1).decode(), end="")
    os.waitpid(writer, 0)
"""

# In a mount namespace of its own: other users' processes are not to be seen, or none.
HIDING = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c")
HIDE = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
# The guard of the tests wants to know the namespace, and learns that it is another.
HIDE_ALL = """mount -t tmpfs none /proc && mkdir -p /proc/self/ns &&
touch /proc/self/ns/mnt && exec "$@"
"""


def answers(
    rounds: int, end: str, who: str, sight: str = "seen", wrap: tuple[str, ...] = ()
) -> str:
    done = subprocess.run(
        [*wrap, sys.executable, "-uc", ROUNDS, str(rounds), end, who, sight],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("who", ["alone", "behind another"])
def test_input_of_a_killed_writer_is_never_complete_at_its_very_end(who: str) -> None:
    assert answers(300, "killed", who) == 300 * "i"


@pytest.mark.parametrize("who", ["alone", "behind another"])
def test_input_of_a_writer_that_closed_it_and_lives_is_complete(who: str) -> None:
    assert answers(20, "closed", who) == 20 * "c"


@pytest.mark.parametrize("who", ["alone", "behind another"])
@pytest.mark.parametrize(("end", "answer"), [("killed", "i"), ("closed", "c")])
def test_input_of_a_writer_that_cannot_be_seen_is_judged_later(
    end: str, answer: str, who: str
) -> None:
    wrap = (*HIDING, HIDE, "sh")
    if os.geteuid() or subprocess.run([*wrap, "true"], check=False).returncode:
        pytest.skip("needs root, and a mount namespace")
    assert answers(10, end, who, "hidden", wrap) == 10 * answer


@pytest.mark.parametrize("who", ["alone", "behind another"])
@pytest.mark.parametrize(("end", "answer"), [("killed", "i"), ("closed", "c")])
def test_input_of_a_killed_writer_is_not_complete_without_proc(
    end: str, answer: str, who: str
) -> None:
    wrap = (*HIDING, HIDE_ALL, "sh")
    if os.geteuid() or subprocess.run([*wrap, "true"], check=False).returncode:
        pytest.skip("needs root, and a mount namespace")
    assert answers(10, end, who, "missing", wrap) == 10 * answer
