"""Which local users may send mail through a TCP port.

A port has no mode and no group: each user of this machine may connect to it, and it is a
relay. So the kernel is asked which user did (`mxpolicy.net.peer_user`). For clients
from other machines the option ``listen.lmtp.allow`` decides, and for unix sockets their
mode and group.
"""

from __future__ import annotations

import os
import pwd
import socket
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from mxpolicy.net.own_address import is_local_address
from mxpolicy.net.peer_user import NOT_HERE, peer_user
from mxpolicy.outcome import Deferred
from mxpolicy.reply import EnhancedStatus, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["check_user"]

_NOT_ALLOWED = EnhancedStatus(4, 7, 1)  # RFC 3463 §3.8: delivery not authorized


# Seconds for which a user is not looked up again: all clients wait for a look-up, and a
# stranger may connect as often as it likes.
KEPT = 60.0
MAX_KEPT = 1000


def check_user(
    connection: socket.socket,
    users: Collection[str],
    clock: Callable[[], float] = time.monotonic,
) -> Deferred | None:
    """Return the outcome of all recipients where the client is not one of *users*.

    It is for now: where the option is wrong, the mail must not bounce. Root and our own
    user are always among *users*.

    Args:
        connection: The client's.
        users: Names, or numbers. A name that no user has here is skipped. What is found
            about a user holds for `KEPT` seconds at most.
        clock: Seconds, monotonic.
    """
    if connection.family == socket.AF_UNIX:
        return None
    try:
        user = peer_user(connection)
        if user == NOT_HERE and not is_local_address(connection.getpeername()[0]):
            return None
    except OSError as error:
        return _refused(f"a client whose user cannot be found out ({error})")
    if user == NOT_HERE:
        return _refused("a client whose user cannot be found out")
    if user in {0, os.geteuid()}:
        return None
    return _of_user(user, tuple(users), int(clock() // KEPT))


@lru_cache(maxsize=MAX_KEPT)
def _of_user(user: int, users: tuple[str, ...], period: int) -> Deferred | None:
    # A name that no user has is asked of every name service (nsswitch.conf(5)), and
    # all clients wait meanwhile. The mail server's own name is found in the first one.
    name = _name(user)
    if name in users or user in _numbers(users):
        return None
    return _refused(f"user {name}")


def _refused(who: str) -> Deferred:
    text = f"{who} may not send mail by this port (listen: lmtp: users)"
    return Deferred(_NOT_ALLOWED, printable(text))


def _numbers(users: Collection[str]) -> set[int]:
    found = set()
    for user in users:
        if user.isdecimal():
            found.add(int(user))
            continue
        try:
            found.add(pwd.getpwnam(user).pw_uid)
        except KeyError:
            continue
    return found


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
