"""Whether another user may use a file, by owners and modes, without becoming that user.

Access control lists, capabilities, read-only mounts and security modules are not seen:
where they matter, the answer may be wrong either way.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

__all__ = ["EXECUTE", "READ", "WRITE", "Account", "account", "current", "objection"]

READ, WRITE, EXECUTE = 4, 2, 1


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
    """Return the user who runs this."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Account(name, uid, frozenset((os.getegid(), *os.getgroups())))


def objection(who: Account, path: str, wanted: int) -> str:
    """Return why *who* may not do *wanted* with *path*; empty when that is allowed.

    Args:
        who: The account.
        path: Absolute.
        wanted: Of `READ`, `WRITE`, `EXECUTE`, added up.
    """
    try:
        real = Path(os.path.realpath(path))
        for ancestor in reversed(real.parents):
            if not _allows(os.stat(ancestor), who, EXECUTE):
                return f"{who.name} may not enter {ancestor}"
        if not _allows(os.stat(real), who, wanted):
            return f"{who.name} has no permission for {path}"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _allows(status: os.stat_result, who: Account, wanted: int) -> bool:
    mode = stat.S_IMODE(status.st_mode)
    if who.uid == 0:
        # root may do all but execute a file without any execute permission.
        return (
            not wanted & EXECUTE or stat.S_ISDIR(status.st_mode) or bool(mode & 0o111)
        )
    if status.st_uid == who.uid:
        mode >>= 6
    elif status.st_gid in who.gids:
        mode >>= 3
    return mode & wanted == wanted
