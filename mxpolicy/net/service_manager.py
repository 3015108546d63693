"""What systemd and a service tell each other, without a library.

sd_notify(3): lines like ``READY=1`` in datagrams to ``$NOTIFY_SOCKET``. sd_listen_fds(3):
sockets that it has opened for us, from descriptor 3 on. sd_watchdog_enabled(3): how often
it wants to hear from us. Other supervisors (s6, podman, catatonit) speak some of it.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["ServiceManager", "given_sockets"]

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class ServiceManager:
    """Is told how we are, if there is one that wants to hear it. No method raises.

    Args:
        environ: The variables are taken out of it: processes that we start are not meant.

    Attributes:
        watchdog: Seconds within which it wants a sign of life, None where it does not.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        path = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        is_meant = pid in ("", str(os.getpid()))
        self.watchdog: float | None = None
        if microseconds.isdigit() and int(microseconds) and is_meant:
            self.watchdog = int(microseconds) / 1e6
        # An abstract name is written with @ (sd_notify(3)).
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._status = ""

    def ready(self, status: str) -> None:
        """We serve, from the beginning or again after `reloading`."""
        self._status = status
        self._tell("READY=1", _status_line(status))

    def reloading(self) -> None:
        """The configuration is read again; `ready` follows."""
        # Type=notify-reload tells by the time which of its signals is meant.
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """We end."""
        self._status = status
        self._tell("STOPPING=1", _status_line(status))

    def alive(self, status: str) -> None:
        """Give the sign of life, and *status* where it has changed."""
        lines = ["WATCHDOG=1"] if self.watchdog else []
        if status != self._status:
            self._status = status
            lines.append(_status_line(status))
        if lines:
            self._tell(*lines)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        ):
            notify.setblocking(False)
            notify.sendto("\n".join(lines).encode(), self._address)


def _status_line(status: str) -> str:
    return f"STATUS={printable(status)}"


def given_sockets(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """Return (name, socket) for each that systemd has opened for us.

    The name is that of ``FileDescriptorName=``, by default the socket unit's own.

    Args:
        environ: The variables are taken out of it: processes that we start are not meant.
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for number in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + number
        os.set_inheritable(descriptor, False)
        name = names[number] if number < len(names) else ""
        found.append((name, socket.socket(fileno=descriptor)))
    return found
