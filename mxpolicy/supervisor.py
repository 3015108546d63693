"""A parent that outlives the delivery, for a mail server that bounces on signals.

To Exim, a command that a signal kills has failed for good: ``temp_errors`` knows exit
statuses only, and ``freeze_signal`` keeps the message until an operator thaws it. The
out-of-memory killer sends such a signal. So ``mxpolicy pipe --exim`` is two processes.
The parent waits and takes next to no memory. The child delivers; the kernel kills it
first. If the child ends without an answer, the parent answers 75, try later.

`look_at` reads in proc(5) which process is the mail server, and whether it still lives.

This module is imported before anything else, and imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["ENDING", "ProcessSeen", "look_at", "supervise"]

# As in mxpolicy.outcome: delivered, bounce, try later.
_ANSWERS = frozenset({0, 69, 75})
_EXIT_DEFER = 75

# Each of them ends a process that has no handler for it, and Exim bounces the message.
ENDING = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,  # comes with a limit on processor time
    signal.SIGALRM,  # an alarm outlives exec (alarm(2)); a child does not inherit it
)

# The kernel's PF_EXITING: set before a process that ends lets go of its descriptors.
_EXITING = 0x4


def supervise() -> int | None:
    """Go on in a child process; in this one, wait for it and leave as it left.

    Returns:
        In the child, the process id of the mail server: the parent of its parent,
        as long as both live. None without ``/proc``, and then without a child: it could
        not see the mail server's death. Half a message sent as a whole one is worse than
        a frozen message.

    Raises:
        OSError: There can be no child.
    """
    mail_server = os.getppid()
    if look_at(os.getpid()) is None:
        return None
    # Blocked until each process has its own handlers.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    child = os.fork()
    if child:
        _wait(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return mail_server


class ProcessSeen(NamedTuple):
    """What proc(5) tells of a process.

    Attributes:
        parent: Its parent's process id.
        is_ending: It is about to end, or has ended and its parent does not know yet.
        started: When it started, in clock ticks since boot.
    """

    parent: int
    is_ending: bool
    started: int


def look_at(pid: int) -> ProcessSeen | None:
    """Return what ``/proc/PID/stat`` says of process *pid*.

    None when it is gone, when proc(5) hides it (``hidepid``, another user's), or when
    there is no ``/proc``.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name is in parentheses, and may hold some. State and parent follow.
            fields = file.read().rpartition(b")")[2].split()
        state, parent, flags = fields[0], int(fields[1]), int(fields[6])
        started = int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
    return ProcessSeen(parent, state in b"ZXx" or bool(flags & _EXITING), started)


def _wait(child: int) -> NoReturn:
    """Leave as *child* leaves, or with 75 if it ends without an answer."""

    def forward(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    status = -1
    try:
        for number in ENDING:
            signal.signal(number, forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        # The process id is the child's until it is reaped. Then nothing is forwarded.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if status in _ANSWERS:
            os._exit(status)
        try:
            how = f"ended with status {status}"
            if status < 0:
                how = f"was killed by signal {-status}"
            os.write(1, f"4.3.0 mxpolicy: the delivery {how}".encode("ascii"))
        finally:
            os._exit(_EXIT_DEFER)
