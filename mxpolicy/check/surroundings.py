"""What a delivery needs of this machine: a user, a place for its state, a log."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import EXECUTE, READ, WRITE, objection
from mxpolicy.check.report import (
    Level,
    Table,
    fail,
    first,
    judge,
    ok,
    otherwise,
    tell,
    warn,
)
from mxpolicy.delivery.log import JOURNAL_SOCKET, SYSLOG_SOCKET
from mxpolicy.errors import StoreError
from mxpolicy.state.opening import inspect, state_file
from mxpolicy.state.sqlite import journal_file
from mxpolicy.state.store import StoreDistrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.access import Account
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options

__all__ = ["look", "takes_no_row"]


class _Writer(NamedTuple):
    """Who runs deliveries, and a file that is to be written.

    Attributes:
        who: The account.
        path: The file, or the directory of the state.
        name: Of a log daemon.
        trouble: Why the system does not let anybody in.
        why_not: Why *who* may not write it.
    """

    who: Account
    path: str = ""
    name: str = ""
    trouble: str = ""
    why_not: str = ""

    @property
    def owner(self) -> str:
        """Who shall own what is made: never root, as whom no delivery is to run."""
        return self.who.name if self.who.uid else "mxpolicy"


_UNUSED = "nothing is remembered, and there is no journal"
_LOST = "log lines are lost, mail goes on"

_USER: Table[_Writer] = (
    first(
        warn(
            lambda it: it.who.uid == 0,
            "deliveries would run as root, which they need for nothing; Postfix refuses"
            " to do that (user=)",
        ),
        ok(otherwise, "deliveries run as {who.name}"),
    ),
)

_STATE: Table[_Writer] = (
    first(
        warn(
            lambda it: it.why_not,
            "nothing can be kept in {path} between two messages: {why_not}",
            "install -d -o {owner} -m 0750 {path}",
        ),
        fail(lambda it: it.trouble, f"{_UNUSED}: {{trouble}}"),
        ok(otherwise, "{path} can be written by {who.name}"),
    ),
)

_STDERR: Table[_Writer] = (
    warn(
        otherwise,
        "the log goes to stderr, which is closed under pipe(8): nothing is logged",
        "log: {{to: syslog}}",
    ),
)

_SOCKET: Table[_Writer] = (
    first(
        warn(
            lambda it: it.trouble,
            f"{{name}} does not listen on {{path}} ({{trouble}}): {_LOST}",
            "log: {{to: /var/log/mxpolicy.log}}",
        ),
        warn(
            lambda it: it.why_not,
            f"{{name}} listens on {{path}}, but {{why_not}}: {_LOST}",
        ),
        ok(otherwise, "{name} listens on {path}"),
    ),
)

_FILE: Table[_Writer] = (
    first(
        warn(
            lambda it: it.why_not,
            "the log {path} cannot be written: {why_not}; its lines are lost",
            "install -o {owner} -m 0640 /dev/null {path}",
        ),
        ok(otherwise, "the log {path} can be written by {who.name}"),
    ),
)


def look(options: Options, environ: Mapping[str, str], who: Account) -> list[Item]:
    """Judge the surroundings of deliveries made by *who*."""
    return [
        *judge(_USER, _Writer(who)),
        *_look_at_state(options, environ, who),
        *_look_at_log(options.log.to, who),
    ]


def _look_at_state(
    options: Options, environ: Mapping[str, str], who: Account
) -> list[Item]:
    file = state_file(options.state, environ)
    path, trouble = os.path.dirname(file), ""
    try:
        inspect(file, who.uid)
    except StoreDistrusted as error:
        return [tell(Level.FAIL, f"{_UNUSED}: {error.reason}", error.mend)]
    except (StoreError, OSError) as error:
        trouble = str(error)
    why_not = objection(who, path, WRITE | EXECUTE)
    if not why_not and not trouble:
        trouble = takes_no_row(file, who, os.statvfs(path))
    return judge(_STATE, _Writer(who, path, trouble=trouble, why_not=why_not))


def takes_no_row(file: str, who: Account, system: os.statvfs_result) -> str:
    """Return why nothing can be written into the files, or nothing when it can.

    Args:
        file: The state file; the journal's is beside it.
        who: Runs deliveries.
        system: The file system that they are on.
    """
    path = os.path.dirname(file)
    if system.f_flag & os.ST_RDONLY:
        return f"{path} is on a file system that is read-only"
    if system.f_blocks and not system.f_bavail:
        return f"{path} is on a file system that is full"
    there = filter(os.path.exists, (file, journal_file(file)))
    return next(filter(None, (objection(who, one, READ | WRITE) for one in there)), "")


def _look_at_log(to: str, who: Account) -> list[Item]:
    match to:
        case "syslog":
            return _look_at_socket(SYSLOG_SOCKET, "syslog", who)
        case "journald":
            return _look_at_socket(JOURNAL_SOCKET, "the journal", who)
        case "stderr":
            return judge(_STDERR, _Writer(who))
        case path:
            exists = os.path.lexists(path)
            where = path if exists else str(Path(path).parent)
            why_not = objection(who, where, WRITE if exists else WRITE | EXECUTE)
            return judge(_FILE, _Writer(who, path, why_not=why_not))


def _look_at_socket(path: str, name: str, who: Account) -> list[Item]:
    trouble = ""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except OSError as error:
        trouble = error.strerror or str(error)
    why_not = objection(who, path, WRITE)
    return judge(_SOCKET, _Writer(who, path, name, trouble, why_not))
