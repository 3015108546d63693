"""Whether a daemon runs, and who may use it.

Its sockets are looked at as files; `mxpolicy pipe` asks no more of the first one. No
message is handed over, and no question asked.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from mxpolicy.check.access import WRITE, login, objection
from mxpolicy.check.report import first, ok, said, warn
from mxpolicy.doors import DOORS, runtime_directory, socket_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.access import Account
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options

__all__ = ["look", "paths"]

# The users of the mail servers, as Debian and others have them.
MAIL_SERVERS = ("postfix", "Debian-exim", "exim")

# Seconds until a socket that accepts no client counts as dead.
_PATIENCE = 2.0


def look(options: Options, environ: Mapping[str, str], user: Account) -> list[Item]:
    """Judge the sockets of ``mxpolicy serve``, for deliveries made by *user*."""
    by_door = {name: paths(options, environ, name)[:1] for name in DOORS}
    pipe = by_door.pop("pipe")
    servers = [one for name in MAIL_SERVERS if (one := login(name))]
    return said(
        *(_look_at_pipe(path, user) for path in pipe),
        *(
            _look_at(name, path, servers)
            for name, one in by_door.items()
            for path in one
        ),
    )


def paths(options: Options, environ: Mapping[str, str], name: str) -> list[str]:
    """Return the unix sockets of a door."""
    words = getattr(options.listen, name).at
    found = (socket_address(name, one, runtime_directory(environ)) for one in words)
    return [one for one in found if one.startswith("/")]


def _trouble(path: str) -> str:
    """Return why no daemon answers at *path*, as the system says; empty if one does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PATIENCE)
            probe.connect(path)
    except PermissionError:
        return ""  # one does, but not to us
    except OSError as error:
        return error.strerror or "it does not accept"
    return ""


def _look_at_pipe(path: str, user: Account) -> Item | None:
    alone = "mxpolicy pipe delivers each message by a process of its own"
    trouble = _trouble(path)
    if trouble:
        return ok(True, f"no daemon at {path} ({trouble}): {alone}")
    why_not = objection(user, path, WRITE)
    owner = os.stat(path).st_uid
    return first(
        warn(
            why_not,
            f"a daemon answers at {path}, but {why_not}: {alone}",
            f"listen: {{pipe: {{group: {user.name}}}}}",
        ),
        warn(
            owner not in {0, user.uid},
            f"the daemon at {path} runs as user {owner}, and {user.name} hands messages"
            f" over to its own user or root only: {alone}",
            f"User={user.name}",
        ),
        ok(True, f"a daemon answers at {path}: {user.name} hands its messages over"),
    )


def _look_at(name: str, path: str, servers: list[Account]) -> Item | None:
    """Say which mail servers may use the socket of *name*; they need not use it."""
    if _trouble(path):
        return None
    may = [one.name for one in servers if not objection(one, path, WRITE)]
    return first(
        ok(may, f"{path} is open to {' and '.join(may)}"),
        ok(
            servers,
            f"{path} is closed to {' and '.join(one.name for one in servers)};"
            f" listen: {{{name}: {{group: GROUP}}}} opens it, or SocketGroup= where"
            " systemd has made it",
        ),
    )
