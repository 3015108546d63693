"""What process 1 owes to processes that it has not started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from mxpolicy.orphans import Orphans


def has_ended(pid: int) -> bool:
    """Whether it is a child of ours that has ended, and that nobody has asked for."""
    try:
        return (
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        )
    except ChildProcessError:
        return False


def ended() -> int:
    """Return a child that has ended."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def test_who_has_ended_is_let_go_of_at_the_second_look() -> None:
    orphans = Orphans()
    pids = [ended() for _ in range(3)]
    orphans.reap()
    later = ended()
    assert [has_ended(pid) for pid in (*pids, later)] == [True] * 4
    orphans.reap()
    assert [has_ended(pid) for pid in (*pids, later)] == [False] * 3 + [True]
    orphans.reap()
    assert not has_ended(later)


def test_who_lives_or_is_not_ours_is_left_alone() -> None:
    orphans = Orphans()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as lives:
        for _ in range(3):
            orphans.reap()
        assert Path(f"/proc/{lives.pid}").exists()
        assert lives.poll() is None
        assert lives.stdin is not None
        lives.stdin.close()
        assert lives.wait() == 0
