"""What a delivery needs of this machine: a user, a place for its state, a log.

Whether that user may use a file is judged by owners and modes. Access control lists,
capabilities, read-only mounts and security modules are not seen: where they matter, the
answer may be wrong either way.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.delivery.log import JOURNAL_SOCKET, SYSLOG_SOCKET
from mxpolicy.errors import StoreError
from mxpolicy.state.opening import inspect, state_file
from mxpolicy.state.sqlite import journal_file
from mxpolicy.state.store import StoreDistrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.report import Item
    from mxpolicy.options import Options

__all__ = [
    "EXECUTE",
    "READ",
    "Account",
    "account",
    "current",
    "look",
    "objection",
    "takes_no_row",
]

READ, WRITE, EXECUTE = 4, 2, 1


_UNUSED = "nothing is remembered, and there is no journal"
_LOST = "log lines are lost, mail goes on"


def look(options: Options, environ: Mapping[str, str], user: Account) -> list[Item]:
    """Judge the surroundings of deliveries made by *user*."""
    return said(
        first(
            warn(
                user.uid == 0,
                "deliveries would run as root, which they do not need; Postfix refuses"
                " to do that (user=)",
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
        ok(True, f"{path} can be written by {user.name}"),
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


# Whether a user may use a file


class Account(NamedTuple):
    """A user and the groups that a process of this user has."""

    name: str
    uid: int
    gids: frozenset[int]


def account(user: str) -> Account | None:
    """Return the account in ``name``, or in pipe(8)'s ``name:group``; None if unknown."""
    name, _, group = user.partition(":")
    try:
        entry = pwd.getpwnam(name)
        # pipe(8) gives the command this one group and no other.
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        return None
    return Account(name, entry.pw_uid, frozenset((gid,)))


def current() -> Account:
    """Return the account that runs this."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Account(name, uid, frozenset((os.getegid(), *os.getgroups())))


def objection(user: Account, path: str, wanted: int) -> str:
    """Return why *user* may not do *wanted* with *path*; empty when that is allowed.

    Args:
        user: The account.
        path: Absolute.
        wanted: Of `READ`, `WRITE`, `EXECUTE`, added up.
    """
    try:
        real = Path(os.path.realpath(path))
        for ancestor in reversed(real.parents):
            if not _allows(os.stat(ancestor), user, EXECUTE):
                return f"{user.name} may not enter {ancestor}"
        if not _allows(os.stat(real), user, wanted):
            return f"{user.name} has no permission for {path}"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _allows(status: os.stat_result, user: Account, wanted: int) -> bool:
    mode = stat.S_IMODE(status.st_mode)
    if user.uid == 0:
        # root may do all but execute a file without any execute permission.
        return (
            not wanted & EXECUTE or stat.S_ISDIR(status.st_mode) or bool(mode & 0o111)
        )
    if status.st_uid == user.uid:
        mode >>= 6
    elif status.st_gid in user.gids:
        mode >>= 3
    return mode & wanted == wanted
