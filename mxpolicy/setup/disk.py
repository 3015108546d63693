"""How set-up changes files: each whole, at once, durably, and with its labels.

A new text is written beside the old one, labelled and synced. Then it is renamed, and the
directory is synced. A process that dies on the way leaves the old text or the new one,
and perhaps a file that ends with `NEW`, which the next run removes.

`Disk.act` is the one place by which anything here changes a file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.errors import MxPolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

__all__ = ["Disk", "Labels", "SetupError", "fixed", "labels_of", "read_text"]

# What a file ends with while it is written.
NEW = ".mxpolicy-new"

# A main.cf of some size, several times.
MAX_SIZE = 64 * 1024 * 1024

# Extended attributes that a new file in the place of an old one must have, too: access
# control lists, labels of security modules, and the postmaster's own. Not those that hold
# for the old bytes alone (security.ima, security.evm).
# Where we may not set one, it is told, and set-up goes on.
_LISTS = ("system.posix_acl_access", "system.nfs4_acl")
_NOT_OURS = {errno.EPERM, errno.EACCES, errno.ENOTSUP}
_KEPT = (*_LISTS, "security.selinux", "security.SMACK64", "user.")


# What keeps root out.
_SHUT = (
    "its file system is read-only (findmnt -T), or it is immutable (lsattr, chattr -i)"
)


class SetupError(MxPolicyError):
    """Set-up cannot go on; the text says what, where and what to do."""


class Labels(NamedTuple):
    """What a file has beside its text.

    Attributes:
        uid, gid, mode: As stat(2) says.
        attributes: Value of each extended attribute (xattr(7)) that is kept, by name.
    """

    uid: int
    gid: int
    mode: int
    attributes: Mapping[str, bytes] = {}


def read_text(path: str) -> str | None:
    """Return the text of *path*, every byte kept; None where there is no such file.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(MAX_SIZE).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def labels_of(file: str | int) -> Labels | None:
    """Return the labels of a path or descriptor; None where there is no such file."""
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(status.st_mode)
    return Labels(status.st_uid, status.st_gid, mode, _attributes(file))


def _attributes(file: str | int) -> dict[str, bytes]:
    try:
        names = [one for one in os.listxattr(file) if one.startswith(_KEPT)]
    except (AttributeError, OSError):  # the system, or the file system, has none
        return {}
    return {name: os.getxattr(file, name) for name in names}


def fixed(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """Return why root cannot put another file in the place of *path*; mostly empty.

    Args:
        path: Absolute, without links.
        mounts: What is mounted where (proc(5)).
    """
    lines = (read_text(mounts) or "").splitlines()
    # A blank, and a few more, are written as three octal digits.
    points = (
        re.sub(r"\\([0-7]{3})", lambda hit: chr(int(hit[1], 8)), line.split()[4])
        for line in lines
    )
    if path in points:
        return (
            f"{path} is mounted by itself, so no program can put another file in its"
            " place: mount its directory, or make the change in the file that it is"
        )
    if not os.geteuid() and os.path.exists(path) and not os.access(path, os.W_OK):
        return f"{path} cannot be changed even by root: {_SHUT}"
    return ""


class Disk:
    """The files of this machine."""

    def act(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Make one change of a file; see the module."""
        return call(*arguments)

    def replace(self, path: str, text: str | None, mode: int = 0o644) -> list[str]:
        """Have *path* say *text*, at once and for good, or remove it where that is None.

        A file that is there keeps its labels; *mode* is for a new one.

        Returns:
            The attributes that the system does not let us give to it.

        Raises:
            OSError: It could not be written; it is as it was before.
        """
        if text is None:
            if os.path.lexists(path):
                self.act(os.unlink, path)
                self._sync(os.path.dirname(path))
            return []
        made = f"{path}{NEW}"
        try:
            lost = self._write(made, text, labels_of(path), mode)
            self.act(os.rename, made, path)
        except OSError as error:
            with suppress(OSError):
                self.act(os.unlink, made)
            # A write has no name in its error.
            raise OSError(error.errno, error.strerror, path) from error
        self._sync(os.path.dirname(path))
        return lost

    def _write(
        self, made: str, text: str, labels: Labels | None, mode: int
    ) -> list[str]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        # Only a run that was killed can have left it.
        if os.path.lexists(made):
            self.act(os.unlink, made)
        data = memoryview(text.encode("utf-8", "surrogateescape"))
        with open(self.act(os.open, made, flags, 0o600), "wb") as file:
            while data:
                data = data[self.act(os.write, file.fileno(), data) :]
            lost = []
            if labels is None:
                self.act(os.fchmod, file.fileno(), mode)
            else:
                lost = self._give(file.fileno(), labels)
            self.act(os.fsync, file.fileno())
        return lost

    def give_back(self, path: str, labels: Labels | None) -> list[str]:
        """Give *path*, which another program has written, its *labels* again; sync it.

        Returns:
            The attributes that the system does not let us give to it.
        """
        if labels is None or not os.path.exists(path):
            return []
        with open(path, "rb") as file:
            lost = self._give(file.fileno(), labels)
            self.act(os.fsync, file.fileno())
        self._sync(os.path.dirname(path))
        return lost

    def _give(self, descriptor: int, labels: Labels) -> list[str]:
        now = labels_of(descriptor)
        assert now is not None
        if now[:2] != labels[:2]:
            self.act(os.fchown, descriptor, labels.uid, labels.gid)
        lost = []
        for name in {**now.attributes, **labels.attributes}:
            value = labels.attributes.get(name)
            if now.attributes.get(name) == value:
                continue
            try:
                if value is None:
                    self.act(os.removexattr, descriptor, name)
                else:
                    self.act(os.setxattr, descriptor, name, value)
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
                lost.append(name)
        # Beside an access control list the bits of the group are its mask, and without
        # it they would let all of the group in.
        mode = labels.mode & ~(stat.S_IRWXG if set(lost) & set(_LISTS) else 0)
        # Last: chown(2) takes bits away.
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            self.act(os.fchmod, descriptor, mode)
        return lost

    def _sync(self, directory: str) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.act(os.fsync, descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def alone(self, directory: str) -> Iterator[int]:
        """Keep a second set-up of the mail server in *directory* out.

        What a run that was killed left half written is removed.

        Yields:
            The descriptor that holds the lock. A program that inherits it holds it, too.

        Raises:
            SetupError: There is one already, or we may not write there.
        """
        if not os.access(directory, os.W_OK):
            mend = "try as root" if os.geteuid() else _SHUT
            raise SetupError(f"{directory}: cannot be written: {mend}")
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SetupError(f"another set-up of {directory} runs") from error
            self._sweep(directory)
            yield descriptor
        finally:
            os.close(descriptor)

    def _sweep(self, directory: str) -> None:
        for parent, _, names in os.walk(directory):
            for name in names:
                if name.endswith(NEW):
                    self.act(os.unlink, os.path.join(parent, name))
