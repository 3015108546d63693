"""The file that keeps what was there before set-up, and when it is believed.

It lies beside the mail server's own configuration, not in the state directory: that one
belongs to the account of deliveries, and what is read here is written into main.cf by
root. It is JSON::

    {"format": 1, "mail_server": "postfix", "version": "0.1",
     "files": {PATH: {"before": TEXT or null, "is_whole": true, "after": SHA-256 or null,
                      "owner": [UID, GID, MODE] or null, "attributes": {NAME: HEX}}},
     "steps": [{"file": ..., "key": ..., "after": ..., "before": ...}, ...]}

``before`` is the whole file as the first set-up found it. ``is_whole`` is false once
something else was changed between two set-ups: then only the steps can be undone.
``after`` is the file as set-up left it, null while it is at work. ``owner`` and
``attributes`` are there because ``postconf -e`` makes a new file, root's and 0644.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from mxpolicy import __version__
from mxpolicy.setup.disk import Labels, SetupError, read_text
from mxpolicy.setup.steps import Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.setup.disk import Disk

__all__ = ["FORMAT", "Kept", "KeptFile", "Stage", "digest", "load", "save", "stage"]

FORMAT = 1


class Stage(Enum):
    """How far set-up is; see `mxpolicy.setup.mail_server`."""

    NOTHING_KEPT = "nothing kept"
    UNFINISHED = "unfinished"
    SET_UP = "set up"
    HALF_UNDONE = "half undone"


class KeptFile(NamedTuple):
    """What is kept of one file; see the module."""

    before: str | None
    is_whole: bool = True
    after: str | None = None
    labels: Labels | None = None


class Kept(NamedTuple):
    """What is kept.

    Attributes:
        mail_server: ``postfix`` or ``exim``.
        files: By absolute path.
        steps: All that were made, oldest first.
    """

    mail_server: str
    files: Mapping[str, KeptFile]
    steps: tuple[Step, ...]


def digest(text: str | None) -> str:
    """Return what tells one text from another; also for a file that is not there."""
    data = b"" if text is None else text.encode("utf-8", "surrogateescape")
    return hashlib.sha256((b"-" if text is None else b"+") + data).hexdigest()


def stage(kept: Kept | None, there: Mapping[str, str | None]) -> Stage:
    """Return how far set-up is.

    Args:
        kept: From `load`.
        there: What each file of *kept* is now, by its path.
    """
    if kept is None:
        return Stage.NOTHING_KEPT
    if not all(one.after for one in kept.files.values()):
        return Stage.UNFINISHED
    is_undone = any(
        there[path] == one.before and digest(one.before) != one.after
        for path, one in kept.files.items()
    )
    return Stage.HALF_UNDONE if is_undone else Stage.SET_UP


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
        beside = os.path.join(os.path.dirname(path), "")
        if others := [name for name in files if not name.startswith(beside)]:
            raise SetupError(
                f"{path}: is a copy, and about {others[0]}: take it away, and the lines"
                " of mxpolicy in the files beside it"
            )
        steps = tuple(Step(**one) for one in found["steps"])
        return Kept(found["mail_server"], files, steps)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SetupError(
            f"{path}: is damaged ({error}): restore it from a copy, or take the lines"
            " out by hand and remove it"
        ) from error


def _file(
    owner: list[int] | None, attributes: Mapping[str, str] = {}, **rest: Any
) -> KeptFile:
    if owner is None:
        return KeptFile(**rest)
    uid, gid, mode = map(int, owner)
    values = {name: bytes.fromhex(one) for name, one in attributes.items()}
    return KeptFile(**rest, labels=Labels(uid, gid, mode, values))


def save(path: str, kept: Kept, disk: Disk) -> None:
    """Write *kept* into *path*, for root alone."""
    found = {
        "format": FORMAT,
        "mail_server": kept.mail_server,
        "version": __version__,
        "files": {name: _as_json(one) for name, one in kept.files.items()},
        "steps": [one._asdict() for one in kept.steps],
    }
    disk.replace(path, json.dumps(found, indent=1) + "\n", 0o600)


def _as_json(one: KeptFile) -> dict[str, object]:
    found: dict[str, object] = one._asdict()
    del found["labels"]
    values = one.labels.attributes if one.labels else {}
    found["owner"] = one.labels[:3] if one.labels else None
    return found | {"attributes": {name: value.hex() for name, value in values.items()}}
