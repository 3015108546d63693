"""What a delivery needs of this machine: a user, a place for its state, a log."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from mxpolicy.check.access import ADD_USER, EXECUTE, READ, WRITE, objection
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.delivery.log import JOURNAL_SOCKET, SYSLOG_SOCKET
from mxpolicy.errors import StoreError
from mxpolicy.state.opening import inspect, state_file
from mxpolicy.state.sqlite import MAX_BYTES, MAX_JOURNAL_BYTES, journal_file
from mxpolicy.state.store import StoreDistrusted
from mxpolicy.state.trust import files, removal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.access import Account
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options

__all__ = ["look", "over_bound", "takes_no_row"]

_UNUSED = "nothing is remembered, and there is no journal"
_LOST = "log lines are lost, mail goes on"


def look(options: Options, environ: Mapping[str, str], user: Account) -> list[Item]:
    """Judge the surroundings of deliveries made by *user*."""
    return said(
        first(
            warn(
                user.uid == 0,
                "no transport names a user, and there is no user mxpolicy: what follows"
                " is judged for root, as which no delivery should run",
                ADD_USER,
            ),
            ok(True, f"deliveries run as {user.name}"),
        ),
        _look_at_state(state_file(options.state, environ), user),
        _look_at_log(options.log.to, user),
    )


def _owner(user: Account) -> str:
    """Return the owner for what is made. Never root: deliveries do not run as root."""
    return user.name if user.uid else "mxpolicy"


def _look_at_state(file: str, user: Account) -> Item | None:
    path, trouble = os.path.dirname(file), ""
    try:
        inspect(file, user.uid)
    except StoreDistrusted as error:
        return fail(True, f"{_UNUSED}: {error.reason}", error.mend)
    except (StoreError, OSError) as error:
        if os.geteuid() not in {0, user.uid}:
            why = getattr(error, "strerror", None) or error
            text = f"the state of {user.name} cannot be seen ({why}); try as root"
            return warn(True, text)
        trouble = str(error)
    why_not = objection(user, path, WRITE | EXECUTE)
    if not why_not and not trouble:
        trouble = takes_no_row(file, user, os.statvfs(path))
    return first(
        warn(
            why_not,
            f"nothing can be kept in {path} between two messages: {why_not}",
            f"install -d -o {_owner(user)} -m 0750 {path}",
        ),
        fail(trouble, f"{_UNUSED}: {trouble}"),
        *(over_bound(one, most) for one, most in _bounds(file).items()),
        ok(True, f"{path} can be written by {user.name}"),
    )


def _bounds(file: str) -> dict[str, int]:
    return {file: MAX_BYTES, journal_file(file): MAX_JOURNAL_BYTES}


def over_bound(file: str, most: int) -> Item | None:
    """Say so where *file* is larger than our own processes let it become.

    Args:
        file: One of SQLite's.
        most: Bytes. A daemon's log comes beside it, and rows that have just expired.
    """
    size = max(
        (os.path.getsize(one) for one in files(file) if os.path.exists(one)), default=0
    )
    what = f"{size >> 20} MiB, and never grows beyond {most >> 20} MiB by itself"
    return warn(
        size > 2 * most,
        f"{file}, with what is beside it, has {what}: something else wrote there, or"
        " nothing is taken out any more. What is remembered goes with it",
        removal(file),
    )


def takes_no_row(file: str, user: Account, system: os.statvfs_result) -> str:
    """Return why nothing can be written into the files, or nothing when it can.

    Args:
        file: The state file; the journal's is beside it.
        user: Deliveries run as it.
        system: The file system that they are on.
    """
    path = os.path.dirname(file)
    if system.f_flag & os.ST_RDONLY:
        return f"{path} is on a file system that is read-only"
    if system.f_blocks and not system.f_bavail:
        return f"{path} is on a file system that is full"
    there = filter(os.path.exists, (file, journal_file(file)))
    return next(filter(None, (objection(user, one, READ | WRITE) for one in there)), "")


def _look_at_log(to: str, user: Account) -> Item | None:
    match to:
        case "syslog":
            return _look_at_socket(SYSLOG_SOCKET, "syslog", user)
        case "journald":
            return _look_at_socket(JOURNAL_SOCKET, "the journal", user)
        case "stderr":
            text = "the log goes to stderr, which is closed under pipe(8): nothing is"
            return warn(True, f"{text} logged", "log: {to: syslog}")
        case path:
            exists = os.path.lexists(path)
            where = path if exists else str(Path(path).parent)
            why_not = objection(user, where, WRITE if exists else WRITE | EXECUTE)
            return first(
                warn(
                    why_not,
                    f"the log {path} cannot be written: {why_not}; its lines are lost",
                    f"install -o {_owner(user)} -m 0640 /dev/null {path}",
                ),
                ok(True, f"the log {path} can be written by {user.name}"),
            )


def _look_at_socket(path: str, name: str, user: Account) -> Item | None:
    trouble = None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except OSError as error:
        trouble = error.strerror
    why_not = objection(user, path, WRITE)
    return first(
        warn(
            trouble,
            f"{name} does not listen on {path} ({trouble}): {_LOST}",
            "log: {to: /var/log/mxpolicy.log}",
        ),
        warn(why_not, f"{name} listens on {path}, but {why_not}: {_LOST}"),
        ok(True, f"{name} listens on {path}"),
    )
