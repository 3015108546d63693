"""Which store is used: the file in the state directory, else memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mxpolicy.state.fallback import FallbackStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mxpolicy.state.reading import ReadingStore

__all__ = ["DEFAULT_DIRECTORY", "FILE", "open_store", "open_to_read", "state_file"]

DEFAULT_DIRECTORY = "/var/lib/mxpolicy"
FILE = "state.sqlite3"


def state_file(directory: str, environ: Mapping[str, str]) -> str:
    """Return the path of the state file.

    Args:
        directory: The option ``state``; may be empty.
        environ: ``STATE_DIRECTORY`` is what systemd made for the service
            (systemd.exec(5)), the first of several separated by colons.
    """
    given = directory or environ.get("STATE_DIRECTORY", "").split(":")[0]
    return os.path.join(given or DEFAULT_DIRECTORY, FILE)


def open_store(
    path: str, tell: Callable[[str], None], *, create: bool = True
) -> FallbackStore:
    """Return the store; this process's memory when *path* cannot serve.

    Nothing is imported, made or told here unless *path*'s directory is there.

    Args:
        path: From `state_file`.
        tell: Given one line when nothing will outlive this process.
        create: Whether the file may be made.
    """
    directory = os.path.dirname(path)
    try:
        os.stat(directory)
    except OSError as error:
        tell(f"nothing outlives this process: {directory}: {error.strerror}")
        return FallbackStore(None, tell)
    from mxpolicy.state.sqlite import SqliteStore

    return FallbackStore(SqliteStore(path, create=create), tell)


def open_to_read(path: str, tell: Callable[[str], None]) -> ReadingStore:
    """Return the store for who changes nothing; see `mxpolicy.state.reading`.

    Args:
        path: From `state_file`; the file may come later.
        tell: Given one line when it cannot be read.
    """
    from mxpolicy.state.reading import ReadingStore
    from mxpolicy.state.sqlite import SqliteStore

    return ReadingStore(SqliteStore(path, create=False, read_only=True), tell)
