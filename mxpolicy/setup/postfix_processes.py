"""Processes of a running Postfix, and ports of this machine, that set-up must know of.

master(8) ends the processes of a service that has gone from master.cf, also in the midst
of a delivery (``master_delete_children``). What a host took by then arrives twice. And
master(8) itself ends where it cannot listen.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

from mxpolicy.setup.disk import SetupError, read_text

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

__all__ = ["at_work", "is_taken"]


def at_work(pid_file: str, services: AbstractSet[str]) -> list[int]:
    """Return the process ids of *services* of one Postfix.

    Args:
        pid_file: Of its master(8). Where it does not run, there are none.
        services: By their names in master.cf.

    Raises:
        SetupError: This system does not show its processes.
    """
    master = (read_text(pid_file) or "").strip()
    if not master.isdigit():
        return []
    if not os.path.exists("/proc/self/stat"):
        raise SetupError(
            "/proc is not mounted, so deliveries under way cannot be seen: mount it"
        )
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name of the command may have blanks and brackets in it.
                parent = file.read().rpartition(b")")[2].split()[1].decode()
            if parent != master:
                continue
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                argv = file.read().decode("utf-8", "replace").split("\0")
        except OSError:
            # It has ended.
            continue
        # PROGRAM -n NAME -t TYPE ...
        name = next((word for one, word in pairwise(argv) if one == "-n"), "")
        if name in services:
            found.append(int(pid))
    return found


def is_taken(host: str, port: int) -> bool:
    """Return whether something listens at *host* and *port* of this machine already."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as one:
        # As master(8) does.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
            one.listen(1)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
