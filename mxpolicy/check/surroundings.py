"""What a delivery needs of this machine: a user, a place for its state, a log."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from mxpolicy.check.access import EXECUTE, READ, WRITE, objection
from mxpolicy.check.report import fail, ok, warn
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

_UNUSED = "nothing is remembered, and there is no journal"


def look(options: Options, environ: Mapping[str, str], who: Account) -> list[Item]:
    """Judge the surroundings of deliveries made by *who*."""
    return [
        _judge_user(who),
        _judge_state(options, environ, who),
        _judge_log(options, who),
    ]


def _owner(who: Account) -> str:
    """Who shall own what is made: never root, as whom no delivery is to run."""
    return who.name if who.uid else "mxpolicy"


def _judge_user(who: Account) -> Item:
    if who.uid == 0:
        text = "deliveries would run as root, which they need for nothing; Postfix"
        return warn(f"{text} refuses to do that (user=)")
    return ok(f"deliveries run as {who.name}")


def _judge_state(options: Options, environ: Mapping[str, str], who: Account) -> Item:
    file = state_file(options.state, environ)
    path = os.path.dirname(file)
    trouble: Exception | None = None
    try:
        inspect(file, who.uid)
    except StoreDistrusted as error:
        return fail(f"{_UNUSED}: {error.reason}", error.mend)
    except (StoreError, OSError) as error:
        trouble = error
    why_not = objection(who, path, WRITE | EXECUTE)
    if why_not:
        text = f"nothing can be kept in {path} between two messages: {why_not}"
        return warn(text, f"install -d -o {_owner(who)} -m 0750 {path}")
    if trouble is None:
        why_not = takes_no_row(file, who, os.statvfs(path))
    if trouble is not None or why_not:
        return fail(f"{_UNUSED}: {trouble or why_not}")
    return ok(f"{path} can be written by {who.name}")


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


def _judge_log(options: Options, who: Account) -> Item:
    match options.log.to:
        case "syslog":
            return _judge_socket(SYSLOG_SOCKET, "syslog", who)
        case "journald":
            return _judge_socket(JOURNAL_SOCKET, "the journal", who)
        case "stderr":
            text = "the log goes to stderr, which is closed under pipe(8): nothing is"
            return warn(f"{text} logged", "log: {to: syslog}")
        case path:
            return _judge_file(path, who)


def _judge_socket(path: str, name: str, who: Account) -> Item:
    lost = "log lines are lost, mail goes on"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except OSError as error:
        text = f"{name} does not listen on {path} ({error.strerror}): {lost}"
        return warn(text, "log: {to: /var/log/mxpolicy.log}")
    why_not = objection(who, path, WRITE)
    if why_not:
        return warn(f"{name} listens on {path}, but {why_not}: {lost}")
    return ok(f"{name} listens on {path}")


def _judge_file(path: str, who: Account) -> Item:
    exists = os.path.lexists(path)
    where = path if exists else str(Path(path).parent)
    why_not = objection(who, where, WRITE if exists else WRITE | EXECUTE)
    if why_not:
        text = f"the log {path} cannot be written: {why_not}; its lines are lost"
        return warn(text, f"install -o {_owner(who)} -m 0640 /dev/null {path}")
    return ok(f"the log {path} can be written by {who.name}")
