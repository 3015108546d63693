"""What proc(5) tells of a process, and which signals end one.

A mail server may be killed while it writes a message to us. Then our input ends as it
always does, and the mail server sends the whole message again. `look_at` tells whether it
still lives.

This module is imported before anything else, and imports nothing of ours.
"""

from __future__ import annotations

import signal
from typing import NamedTuple

__all__ = ["ENDING", "ProcessSeen", "look_at"]

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
