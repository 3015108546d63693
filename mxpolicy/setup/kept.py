"""The file that keeps what was there before set-up, and how it is written and believed.

It lies beside the mail server's own configuration, not in the state directory: that one
belongs to the account of deliveries, and what is read here is written into main.cf by
root. It is JSON::

    {"format": 1, "mail_server": "postfix", "version": "0.1",
     "files": {PATH: {"before": TEXT or null, "is_whole": true, "after": SHA-256 or null,
                      "owner": [UID, GID, MODE] or null}},
     "steps": [{"file": ..., "key": ..., "after": ..., "before": ...}, ...]}

``before`` is the whole file as the first set-up found it. ``is_whole`` is false once
something else was changed between two set-ups: then only the steps can be undone.
``after`` is the file as set-up left it, null while it is at work. ``owner`` is there
because ``postconf -e`` makes every file root's and 0644.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from mxpolicy import __version__
from mxpolicy.errors import MxPolicyError
from mxpolicy.setup.steps import Step

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FORMAT",
    "Kept",
    "KeptFile",
    "SetupError",
    "alone",
    "digest",
    "give_back",
    "is_unfinished",
    "load",
    "owner_of",
    "read_text",
    "replace",
    "save",
    "sweep",
]

FORMAT = 1

# What a file ends with while it is written.
NEW = ".mxpolicy-new"

# A main.cf of some size, several times.
MAX_SIZE = 64 * 1024 * 1024


class SetupError(MxPolicyError):
    """Set-up cannot go on; the text says what, where and what to do."""


class KeptFile(NamedTuple):
    """What is kept of one file; see the module."""

    before: str | None
    is_whole: bool = True
    after: str | None = None
    owner: tuple[int, int, int] | None = None


class Kept(NamedTuple):
    """What is kept.

    Attributes:
        mail_server: ``postfix`` or ``exim``.
        files: By absolute path.
        steps: All that were made, oldest first.
    """

    mail_server: str
    files: dict[str, KeptFile]
    steps: tuple[Step, ...]


def digest(text: str | None) -> str:
    """Return what tells one text from another; also for a file that is not there."""
    data = b"" if text is None else text.encode("utf-8", "surrogateescape")
    return hashlib.sha256((b"-" if text is None else b"+") + data).hexdigest()


def load(path: str) -> Kept | None:
    """Return what is kept in *path*, None where there is no such file.

    Raises:
        SetupError: It cannot be read, is not to be believed, or is of another format.
    """
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022:
            raise SetupError(
                f"{path}: is no file, or others may write it, and what it says would be"
                " written into the mail server's configuration: take it away"
            )
        if status.st_uid not in {0, os.geteuid()}:
            raise SetupError(f"{path}: belongs to user {status.st_uid}, not to root")
        text = read_text(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
    return _parsed(path, text or "")


def _parsed(path: str, text: str) -> Kept:
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise SetupError(
                f"{path}: is of format {found['format']}, this is mxpolicy {__version__}"
                f" and knows {FORMAT}: use the mxpolicy that made it"
                f" ({found.get('version')})"
            )
        files = {name: _file(**one) for name, one in found["files"].items()}
        steps = tuple(Step(**one) for one in found["steps"])
        return Kept(found["mail_server"], files, steps)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SetupError(
            f"{path}: is damaged ({error}): restore it from a copy, or take the lines"
            " out by hand and remove it"
        ) from error


def _file(owner: list[int] | None, **rest: Any) -> KeptFile:
    if owner is None:
        return KeptFile(**rest)
    uid, gid, mode = map(int, owner)
    return KeptFile(**rest, owner=(uid, gid, mode))


def is_unfinished(kept: Kept | None) -> bool:
    """Return whether the set-up that *kept* this was killed before its end."""
    return kept is not None and any(not one.after for one in kept.files.values())


def save(path: str, kept: Kept) -> None:
    """Write *kept* into *path*, for root alone."""
    found = {
        "format": FORMAT,
        "mail_server": kept.mail_server,
        "version": __version__,
        "files": {name: one._asdict() for name, one in kept.files.items()},
        "steps": [one._asdict() for one in kept.steps],
    }
    replace(path, json.dumps(found, indent=1) + "\n", 0o600)


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


def replace(path: str, text: str | None, mode: int = 0o644) -> None:
    """Have *path* say *text*, at once and for good, or remove it where that is None.

    A file that is there keeps its owner and its mode; *mode* is for a new one.

    Raises:
        OSError: It could not be written; it is as it was before.
    """
    directory = os.path.dirname(path)
    if text is None:
        if os.path.lexists(path):
            os.unlink(path)
            _sync(directory)
        return
    made = f"{path}{NEW}"
    try:
        _write(made, path, text, mode)
        os.rename(made, path)
    except OSError as error:
        with suppress(FileNotFoundError):
            os.unlink(made)
        # A write has no name in its error.
        raise OSError(error.errno, error.strerror, path) from error
    _sync(directory)


def _write(made: str, path: str, text: str, mode: int) -> None:
    """Write *text* into *made*, with owner and mode of *path*."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    # Only a run that was killed can have left it.
    if os.path.lexists(made):
        os.unlink(made)
    with open(os.open(made, flags, 0o600), "wb") as file:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            os.fchmod(file.fileno(), mode)
        else:
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())


def owner_of(path: str) -> tuple[int, int, int] | None:
    """Return user, group and mode of *path*; None where there is no such file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def give_back(path: str, owner: tuple[int, int, int] | None) -> None:
    """Give *path* to its *owner* again, where it has another by now."""
    if owner is None or owner_of(path) in {None, owner}:
        return
    uid, gid, mode = owner
    os.chown(path, uid, gid)
    os.chmod(path, mode)


@contextmanager
def alone(directory: str) -> Iterator[None]:
    """Keep a second set-up of the mail server in *directory* out.

    What a run that was killed left half written is removed.

    Raises:
        SetupError: There is one already, or we may not write there.
    """
    if not os.access(directory, os.W_OK):
        mend = "try as root" if os.geteuid() else "is its file system read-only?"
        raise SetupError(f"{directory}: cannot be written: {mend}")
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SetupError(f"another set-up of {directory} runs") from error
        _sweep(directory)
        yield
    finally:
        os.close(descriptor)


def sweep(directory: str) -> None:
    """Remove what a run that was killed at its very beginning left in *directory*."""
    with alone(directory):
        pass


def _sweep(directory: str) -> None:
    for parent, _, names in os.walk(directory):
        for name in names:
            if name.endswith(NEW):
                os.unlink(os.path.join(parent, name))


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
