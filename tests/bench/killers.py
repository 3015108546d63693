"""Threads that kill with SIGKILL at random moments: commands that deliver, or the daemon."""

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from tests.lab.lab import Lab

LIFE = 0.5
"""Seconds from its start in which a command is killed, if at all."""
SHARE = 0.8
"""How many of all commands are to be killed, if they live long enough."""
LOOK = 0.005

DAEMON_LIFE = 3.0
"""Seconds from its start within which the daemon is killed."""


class Kill(NamedTuple):
    """Who was being delivered to ("": all), and when, in seconds since the epoch."""

    recipient: str
    at: float


class Killer:
    """A thread that does its work as long as it is entered as a context.

    Args:
        seed: Of its chance.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        """Work until `_is_over` is set."""
        raise NotImplementedError


class Killings(Killer):
    """One that notes whom it has hit."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.kills: list[Kill] = []


class CommandKiller(Killings):
    """A thread that kills commands that deliver, until it is told to stop.

    Four of five, at a moment drawn uniformly from the half second that each may live.
    """

    def __init__(self, lab: Lab, seed: int) -> None:
        super().__init__(seed)
        self._namespace = os.readlink(f"/proc/{lab.world.pid}/ns/pid")
        self._due: dict[int, tuple[float, str]] = {}
        self._seen: set[int] = set()

    def _run(self) -> None:
        while not self._is_over.wait(LOOK):
            for pid, recipient in self._delivering():
                self._seen.add(pid)
                if self._random.random() < SHARE:
                    at = time.time() + self._random.uniform(0, LIFE)
                    self._due[pid] = at, recipient
            now = time.time()
            for pid in [pid for pid, (at, _) in self._due.items() if at <= now]:
                _, recipient = self._due.pop(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills.append(Kill(recipient, time.time()))

    def _delivering(self) -> list[tuple[int, str]]:
        """Return (process, recipient) of those not seen before that deliver."""
        found: dict[int, tuple[int, list[bytes]]] = {}
        for entry in os.scandir("/proc"):
            with suppress(OSError):
                if entry.name.isdigit() and self._is_ours(entry.path):
                    words = Path(f"{entry.path}/cmdline").read_bytes().split(b"\0")[:-1]
                    stat = Path(f"{entry.path}/stat").read_text().rpartition(")")[2]
                    if b"pipe" in words and b"--" in words and b"@" in words[-1]:
                        found[int(entry.name)] = int(stat.split()[1]), words
        return [
            (pid, words[-1].decode())
            for pid, (parent, words) in found.items()
            # The first is the script, and the second delivers.
            if pid not in self._seen and parent in found
        ]

    def _is_ours(self, path: str) -> bool:
        return os.readlink(f"{path}/ns/pid") == self._namespace


class DaemonKiller(Killings):
    """A thread that kills the daemon and starts it again, until it is told to stop.

    At a moment drawn uniformly from its first seconds. What it delivers then is hit, each
    message somewhere else on its way.
    """

    def __init__(self, lab: Lab, seed: int) -> None:
        super().__init__(seed)
        self._daemon = lab.daemon

    def _run(self) -> None:
        while not self._is_over.wait(self._random.uniform(0, DAEMON_LIFE)):
            self._daemon.kill()
            self.kills.append(Kill("", time.time()))
            self._daemon.start()
