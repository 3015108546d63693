"""Whether a file may be believed: who could have written it, by owners and modes.

What the state file says ends deliveries ("delivered earlier"). A stranger who can
write it, or its directory, could have mail vanish. So for whoever acts upon it,
directory and files must belong to ourselves or to root, and nobody else may write
them but the owner's own group. For whoever only looks, any owner will do.

Access control lists are seen; what a security module allows beside is not.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from enum import Enum

from mxpolicy.state.store import StoreDistrusted

__all__ = ["Trust", "examine", "files", "may_group_write", "removal"]

# What SQLite has beside a file, by what its name is longer (https://sqlite.org/tempfiles.html).
BESIDE = ("-wal", "-shm", "-journal")

_ACL = "system.posix_acl_access"  # acl(5)


class Trust(Enum):
    """What is asked of directory and files.

    In any case the files are regular ones.
    """

    OURS = "ours or root's, written by nobody else"
    UNSHARED = "anybody's, written by nobody else"
    READ = "anybody's"


def examine(path: str, trust: Trust, uid: int) -> None:
    """Raise `StoreDistrusted` unless the file *path* and its directory may be believed.

    A file that is not there may be. To be called before the file is opened and once
    more afterwards: what was exchanged in between is seen by the second look.

    Args:
        path: Of the database; what SQLite has beside it is looked at, too.
        trust: How much is asked.
        uid: Who we are, or whom we judge for.

    Raises:
        OSError: There is no directory, or it may not be looked at.
    """
    directory = os.path.dirname(path) or "."
    # Of a link, the owner says where it leads.
    for found in (os.lstat(directory), os.stat(directory)):
        objection = _owner_objection(found, trust, uid)
        if objection:
            mend = shlex.join(["chown", "-h", _name(uid), directory])
            raise StoreDistrusted(f"{directory} {objection}", mend)
    if not stat.S_ISDIR(found.st_mode):
        raise StoreDistrusted(f"{directory} is no directory")
    objection, how = _mode_objection(directory, found, trust, uid)
    if objection:
        raise StoreDistrusted(f"{directory} {objection}", shlex.join([*how, directory]))
    for name in files(path):
        try:
            found = os.lstat(name)
        except FileNotFoundError:
            continue
        objection = (
            _kind_objection(found)
            or _owner_objection(found, trust, uid)
            or _mode_objection(name, found, trust, uid)[0]
        )
        if objection:
            raise StoreDistrusted(f"{name} {objection}", removal(path))


def files(path: str) -> list[str]:
    """Return *path* and what may be beside it."""
    return [path + suffix for suffix in ("", *BESIDE)]


def removal(path: str) -> str:
    """Return the command that removes a file of which nothing can be believed."""
    return shlex.join(["rm", "-f", *files(path)])


def _kind_objection(found: os.stat_result) -> str:
    return "" if stat.S_ISREG(found.st_mode) else "is no regular file"


def _owner_objection(found: os.stat_result, trust: Trust, uid: int) -> str:
    if trust is not Trust.OURS or found.st_uid in {uid, 0}:
        return ""
    us = "root" if uid == 0 else f"{_name(uid)} or root"
    return f"belongs to {_name(found.st_uid)}, not to {us}"


def _mode_objection(
    path: str, found: os.stat_result, trust: Trust, uid: int
) -> tuple[str, tuple[str, ...]]:
    """Return why it may be written by whom it should not, and the mending command."""
    if trust is Trust.READ:
        return "", ()
    if found.st_mode & stat.S_IWOTH:
        return "may be written by everybody", ("chmod", "o-w")
    if not found.st_mode & stat.S_IWGRP:
        return "", ()
    if not may_group_write(found, uid):
        group = f"group {found.st_gid}, which is not its owner's own"
        return f"may be written by {group}", ("chmod", "g-w")
    if _has_list(path):
        return "may be written by others (access control list)", ("setfacl", "-b")
    return "", ()


def may_group_write(found: os.stat_result, uid: int) -> bool:
    """Return whether the group is one that shares everything with its user anyway.

    It is the own group (passwd(5)) of the file's owner, or of *uid*.
    """
    return found.st_gid in {_own_group(found.st_uid), _own_group(uid)}


def _own_group(uid: int) -> int | None:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        # In a container, a user may be but a number.
        return os.getegid() if uid == os.geteuid() else None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _has_list(path: str) -> bool:
    """Return whether more than owner, group and others are named (acl(5))."""
    try:
        return _ACL in os.listxattr(path)
    except (AttributeError, OSError):  # another system, or a file system without
        return False
