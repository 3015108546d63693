"""Whether a file may be believed, by the owners and modes that allow writing it.

The state file can end a delivery ("delivered earlier"). A stranger able to write it, or
its directory, could make mail vanish. So a process that acts upon it asks that directory
and files belong to its own user or to root. Only the owner and the owner's own group
may write them. A process that only reads takes files of any owner.

Access control lists are seen. What a security module allows is not.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from enum import Enum

from mxpolicy.state.store import StoreDistrusted

__all__ = ["Trust", "examine", "files", "may_group_write", "removal"]

# The suffixes of what SQLite has beside a file (https://sqlite.org/tempfiles.html).
BESIDE = ("-wal", "-shm", "-journal")

_ACL = "system.posix_acl_access"  # acl(5)


class Trust(Enum):
    """What is asked of directory and files; the files are regular ones in any case."""

    OURS = "of our user or root, and not written by others"
    UNSHARED = "of any owner, and not written by others"
    READ = "of any owner"


def examine(path: str, trust: Trust, uid: int) -> None:
    """Raise `StoreDistrusted` unless the file *path* and its directory may be believed.

    A missing file may be believed. Call this before the file is opened and once more
    afterwards: the second look sees what was exchanged in between.

    Args:
        path: Of the database; what SQLite has beside it is looked at, too.
        trust: How much is asked.
        uid: Of the user that acts upon it.

    Raises:
        OSError: There is no directory, or it may not be looked at.
    """
    directory = os.path.dirname(path) or "."
    # The owner of a link decides where it leads.
    for found in (os.lstat(directory), os.stat(directory)):
        objection = _owner_objection(found, trust, uid)
        if objection:
            mend = _owner_mend(directory, found, uid)
            raise StoreDistrusted(f"{directory} {objection}", mend)
    if not stat.S_ISDIR(found.st_mode):
        raise StoreDistrusted(f"{directory} is no directory")
    objection, how = _mode_objection(directory, found, trust, uid)
    if objection:
        raise StoreDistrusted(f"{directory} {objection}", _command(*how, directory))
    for name in files(path):
        try:
            found = os.lstat(name)
        except FileNotFoundError:
            continue
        objection = (
            ("" if stat.S_ISREG(found.st_mode) else "is no regular file")
            or _owner_objection(found, trust, uid)
            or _mode_objection(name, found, trust, uid)[0]
        )
        if objection:
            raise StoreDistrusted(f"{name} {objection}", removal(path))


def files(path: str) -> list[str]:
    """Return *path* and what may be beside it."""
    return [path + suffix for suffix in ("", *BESIDE)]


def removal(path: str) -> str:
    """Return the command that removes a file that cannot be believed."""
    return _command("rm", "-f", *files(path))


def _command(*words: str) -> str:
    import shlex  # only where something is wrong

    return shlex.join(words)


def _owner_objection(found: os.stat_result, trust: Trust, uid: int) -> str:
    if trust is not Trust.OURS or found.st_uid in {uid, 0}:
        return ""
    us = "root" if uid == 0 else f"{_name(uid)} or root"
    return f"belongs to {_name(found.st_uid)}, not to {us}"


def _owner_mend(directory: str, found: os.stat_result, uid: int) -> str:
    if uid:
        return _command("chown", "-h", _name(uid), directory)
    # A daemon that root has started by hand: not the directory is wrong, but its user.
    name = _name(found.st_uid)
    groups = "--clear-groups" if name.isdigit() else "--init-groups"
    program = os.path.join(sys.prefix, "bin", "mxpolicy")
    ids = f"--reuid={name}", f"--regid={found.st_gid}"
    return _command("setpriv", *ids, groups, program, "serve")


def _mode_objection(
    path: str, found: os.stat_result, trust: Trust, uid: int
) -> tuple[str, tuple[str, ...]]:
    """Return which stranger may write it, as a clause, and the mending command."""
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
    """Return whether the group is the own group (passwd(5)) of its owner or of *uid*."""
    return found.st_gid in {_own_group(found.st_uid), _own_group(uid)}


def _own_group(uid: int) -> int | None:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        # In a container, a user may have no name.
        return os.getegid() if uid == os.geteuid() else None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _has_list(path: str) -> bool:
    """Return whether there is an access control list (acl(5))."""
    try:
        return _ACL in os.listxattr(path)
    except (AttributeError, OSError):  # the system, or the file system, has none
        return False
