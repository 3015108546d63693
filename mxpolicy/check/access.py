"""Whether a user may use a file, judged by owners and modes.

Access control lists, capabilities, read-only mounts and security modules are not seen:
where they matter, the answer may be wrong either way. What this process itself may not
look at is taken for well.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ADD_USER",
    "EXECUTE",
    "READ",
    "WRITE",
    "Account",
    "Stop",
    "account",
    "current",
    "login",
    "objection",
    "stop",
]

READ, WRITE, EXECUTE = 4, 2, 1

# What makes the account of deliveries.
ADD_USER = "adduser --system --group --no-create-home mxpolicy"

MAX_LINKS = 40  # as path_resolution(7)


class Account(NamedTuple):
    """A user and the groups that a process of this user has."""

    name: str
    uid: int
    gids: frozenset[int]


class Stop(NamedTuple):
    """What keeps a user from a file.

    Attributes:
        at: The first directory that may not be entered, or the file itself.
        why: A clause that names it.
    """

    at: str
    why: str


def account(user: str) -> Account | None:
    """Return the account in ``name``, or in pipe(8)'s ``name:group``; None if unknown.

    pipe(8), spawn(8) and Exim's transports give a command one group and no other.
    """
    name, _, group = user.partition(":")
    try:
        entry = pwd.getpwnam(name)
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        return None
    return Account(name, entry.pw_uid, frozenset((gid,)))


def login(name: str) -> Account | None:
    """Return the account *name* with all of its groups, as Postfix's own processes run."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


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
    found = stop(user, path, wanted)
    return found.why if found else ""


def stop(user: Account, path: str, wanted: int) -> Stop | None:
    """Return what keeps *user* from doing *wanted* with *path*; see `objection`."""
    *entered, last = "/", path
    try:
        *entered, last = _way(path)
        for directory in entered:
            if not _allows(os.stat(directory), user, EXECUTE):
                return Stop(directory, f"{user.name} may not enter {directory}")
        if not _allows(os.stat(last), user, wanted):
            return Stop(last, f"{user.name} has no permission for {path}")
    except PermissionError:
        return None
    except OSError as error:
        return Stop(path, f"{path}: {error.strerror}")
    return None


def _way(path: str) -> Iterator[str]:
    """Yield each directory that the system looks into for *path*, then what it finds.

    A link is followed where it stands: its own directory must be entered, too.
    """
    here, links = "/", 0
    rest = path.split("/")[::-1]
    while rest:
        part = rest.pop()
        if part in {"", "."}:
            continue
        yield here
        if part == "..":
            here = os.path.dirname(here)
            continue
        entry = os.path.join(here, part)
        if not stat.S_ISLNK(os.lstat(entry).st_mode):
            here = entry
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(entry)
        rest += target.split("/")[::-1]
        here = "/" if target.startswith("/") else here
    yield here


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
