"""A parent that outlives the delivery, for a mail server that bounces on signals.

To Exim a command that was killed by a signal has failed for good: ``temp_errors``
knows exit statuses only, and ``freeze_signal`` leaves the message lying until somebody
thaws it. The out-of-memory killer asks nobody. So ``mxpolicy pipe --exim`` is two
processes: this one, which waits and holds next to nothing, and its child, which
delivers and is by far the better prey. What the child's end does not say, this one
answers: 75, try later.

Who the mail server is, and whether it still lives, is told by proc(5) (`look_at`).

It is imported before anything else is, and imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["ProcessSeen", "look_at", "supervise"]

# As in mxpolicy.outcome: delivered, bounce, try later.
_ANSWERS = frozenset({0, 69, 75})
_EXIT_DEFER = 75

_FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
    signal.SIGALRM,  # an alarm outlives exec (alarm(2)); a child does not inherit it
)

# The kernel's PF_EXITING: set before a process that ends lets go of its descriptors.
_EXITING = 0x4


def supervise() -> int | None:
    """Go on in a child process; in this one wait for its end and leave as it left.

    Returns:
        In the child, the process id of the mail server: the parent of its parent,
        as long as both live. None where the kernel does not tell (no ``/proc``): then
        there is no child, because a parent's death is all that can be seen, and a half
        message that is sent as a whole one is worse than a frozen one.

    Raises:
        OSError: There can be no child.
    """
    mail_server = os.getppid()
    if look_at(os.getpid()) is None:
        return None
    # Blocked until it is settled which of the two processes answers to them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child:
        _wait(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return mail_server


class ProcessSeen(NamedTuple):
    """What proc(5) tells of a process.

    Attributes:
        parent: Its parent's process id.
        is_ending: It is about to end, or has ended and nobody has asked for its status.
    """

    parent: int
    is_ending: bool


def look_at(pid: int) -> ProcessSeen | None:
    """Return what can be seen of process *pid* in ``/proc/PID/stat``.

    None when nothing can: it is gone, or is another user's and proc(5) is mounted with
    ``hidepid``, or there is no ``/proc``.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name stands in parentheses and may hold some; state and parent follow.
            fields = file.read().rpartition(b")")[2].split()
        state, parent, flags = fields[0], int(fields[1]), int(fields[6])
    except (OSError, ValueError, IndexError):
        return None
    return ProcessSeen(parent, state in b"ZXx" or bool(flags & _EXITING))


def _wait(child: int) -> NoReturn:
    """Leave as *child* leaves, with 75 if it does not get to say how."""

    def forward(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    status = -1
    try:
        for number in _FORWARDED:
            signal.signal(number, forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        # Its process id is its own until it has been reaped; by then nothing is sent.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if status in _ANSWERS:
            os._exit(status)
        try:
            os.write(1, f"4.3.0 mxpolicy: {_how(status)}\n".encode("ascii"))
        finally:
            os._exit(_EXIT_DEFER)


def _how(status: int) -> str:
    if status < 0:
        return f"the delivery was killed by signal {-status}"
    return f"the delivery ended with status {status}"
