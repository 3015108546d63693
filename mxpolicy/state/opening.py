"""Which store is used: the files in the state directory, else memory."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from mxpolicy.errors import StoreError
from mxpolicy.state.fallback import FallbackStore, never

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mxpolicy.state.fallback import Prevails
    from mxpolicy.state.reading import ReadingStore

__all__ = [
    "DEFAULT_DIRECTORY",
    "FILE",
    "inspect",
    "open_store",
    "open_to_read",
    "state_file",
]

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
    path: str,
    tell: Callable[[str], None],
    prevails: Prevails = never,
    *,
    stays: bool = False,
) -> FallbackStore:
    """Return the store; this process's memory when *path* cannot serve.

    Where *path*'s directory is missing, nothing is imported or made.

    Args:
        path: From `state_file`.
        tell: See `FallbackStore`.
        prevails: See `FallbackStore`.
        stays: See `mxpolicy.state.sqlite_connection.Terms`.
    """
    directory = os.path.dirname(path)
    try:
        os.stat(directory)
    except OSError as error:
        tell(f"nothing outlives this process: {directory}: {error.strerror}")
        return FallbackStore(None, tell)
    from mxpolicy.state.sqlite import SqliteStore

    return FallbackStore(SqliteStore(path, stays=stays), tell, prevails=prevails)


def open_to_read(
    path: str, tell: Callable[[str], None], *, acts: bool = False
) -> ReadingStore:
    """Return the store for a process that changes nothing.

    Args:
        path: From `state_file`; the file may come later.
        tell: Takes one line when it cannot be read.
        acts: Mail depends on what is read: then only the owner may write it.
    """
    # A delivery does not need it, and each import costs time in every process.
    from mxpolicy.state.reading import ReadingStore
    from mxpolicy.state.sqlite import SqliteStore
    from mxpolicy.state.trust import Trust

    trust = Trust.UNSHARED if acts else Trust.READ
    return ReadingStore(
        SqliteStore(path, create=False, read_only=True, trust=trust), tell
    )


def inspect(path: str, uid: int) -> None:
    """Raise `StoreError` where a delivery by user *uid* would not use the files.

    A missing file is no error: the delivery will make it. Root may call this; nothing
    is made or changed.

    Raises:
        StoreDamaged: A file is broken; all of it was read for that.
        OSError: There is no directory, or it may not be looked at.
    """
    import sqlite3

    from mxpolicy.state.sqlite import journal_file
    from mxpolicy.state.sqlite_connection import Terms
    from mxpolicy.state.sqlite_file import File
    from mxpolicy.state.store import StoreAbsent, StoreBusy, StoreDamaged
    from mxpolicy.state.trust import Trust, examine, removal

    for one in (path, journal_file(path)):
        examine(one, Trust.OURS, uid)
        file = File(Terms(one, 0, time.time, False, True, Trust.READ))
        try:
            file.check_pages()
        except (StoreAbsent, StoreBusy):
            continue
        except StoreError as error:
            # Its kinds say that something else is away: the disk, memory, permission.
            if type(error.__cause__) is not sqlite3.DatabaseError:
                raise
            raise StoreDamaged(str(error), removal(one)) from error
        finally:
            file.close()
