"""Listening sockets.

A unix socket is made with mode 0660 and the group that is asked for. Before that no
client can connect. The socket file of a process that has died is replaced. One that is listened
at is left alone, and so is any other file. What systemd opened keeps its path, and is
never unlinked (`mxpolicy.net.service_manager`).

`mxpolicy.net.acceptor` accepts the clients.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import socket
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mxpolicy.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Socket", "listen_at", "listen_at_given"]

# Clients that wait to be accepted; the kernel has a bound of its own (listen(2)).
BACKLOG = 1024
MODE = 0o660

# Seconds for which the lock of a directory is waited for. Ours hold it for milliseconds.
# But who may read the directory may lock it, too, and all clients would wait for that.
LOCKED_WITHIN = 1.0


class Socket:
    """A socket that listens.

    Attributes:
        at: The path, or ``ADDRESS:PORT``.
        socket: It; not blocking.
    """

    def __init__(
        self,
        at: str,
        listening: socket.socket,
        file: tuple[int, int] | None = None,
        *,
        is_ours: bool = True,
    ) -> None:
        self.at = at
        self.socket = listening
        self._file = file  # device and inode, where there is one
        self._is_ours = is_ours  # to give and to remove

    @property
    def is_local(self) -> bool:
        """Whether clients come through a file, whose mode and group keep others away."""
        return self.socket.family == socket.AF_UNIX

    @property
    def is_reachable(self) -> bool:
        """Whether clients find it: its file may have been removed."""
        return self._file is None or _file_at(self.at) == self._file

    def give(self, group: str) -> None:
        """Give the file, if there is one that we have made, to *group*.

        Args:
            group: Its name; empty is that of the process.

        Raises:
            ListenError: That group is not ours to give.
        """
        if self._file is not None and self._is_ours:
            _give(self.at, group)

    def close(self) -> None:
        """Close it; remove its file where we have made that, and it is still ours."""
        self.socket.close()
        if self._file is None or not self._is_ours:
            return
        with suppress(OSError), _locked(os.path.dirname(self.at)):
            if _file_at(self.at) == self._file:
                os.unlink(self.at)


def listen_at(at: str, group: str = "") -> Socket:
    """Return a socket that listens at *at*.

    Args:
        at: A path, or ``ADDRESS:PORT``, with brackets around an IPv6 address.
        group: Of the file; by default that of the process.

    Raises:
        ListenError: It cannot be; the text says what to do.
    """
    try:
        return _at_path(at, group) if at.startswith("/") else _at_port(at)
    except OSError as error:
        raise ListenError(at, _reason(error, at)) from error


def listen_at_given(listening: socket.socket) -> Socket:
    """Return *listening*, which another process has opened: its path stays.

    Raises:
        ListenError: It is no stream socket that listens.
    """
    at = _address_of(listening)
    if listening.family not in {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6}:
        raise ListenError(at, "it is neither a unix nor an internet socket")
    if listening.type != socket.SOCK_STREAM:
        raise ListenError(at, "it is no stream socket (ListenStream=)")
    if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ListenError(at, "it does not listen (Accept=no)")
    listening.setblocking(False)
    file = _file_at(at) if at.startswith("/") else None
    return Socket(at, listening, file, is_ours=False)


def _file_at(path: str) -> tuple[int, int] | None:
    """Return device and inode, None where there is nothing."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _address_of(listening: socket.socket) -> str:
    name = listening.getsockname()
    if not isinstance(name, tuple):
        return os.fsdecode(name)
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: OSError, at: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another process listens there"
        case errno.ENOENT:
            directory = os.path.dirname(at)
            return (
                f"there is no directory {directory}; make it, owned by mxpolicy's user"
            )
        case _:
            return error.strerror or str(error)


def _at_port(at: str) -> Socket:
    host, _, port = at.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, int(port)))
        return _listening(at, listening)
    except BaseException:
        listening.close()
        raise


def _at_path(path: str, group: str) -> Socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux takes over the mode: no client can connect before the group is right.
        os.fchmod(listening.fileno(), 0o600)
        with _locked(os.path.dirname(path)):
            _clear(path)
            listening.bind(path)
            file = _file_at(path)
            try:
                if group:
                    _give(path, group)
                os.chmod(path, MODE)
                return _listening(path, listening, file)
            except BaseException:
                os.unlink(path)
                raise
    except BaseException:
        listening.close()
        raise


def _listening(
    at: str, listening: socket.socket, file: tuple[int, int] | None = None
) -> Socket:
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return Socket(at, listening, file)


def _give(path: str, group: str) -> None:
    try:
        gid = grp.getgrnam(group).gr_gid if group else os.getegid()
    except KeyError:
        raise ListenError(path, f"there is no group '{group}'") from None
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        raise ListenError(
            path,
            f"it cannot be given the group '{group}': mxpolicy's user is no member"
            " (with systemd: SupplementaryGroups= in the unit)",
        ) from None
    except OSError as error:
        raise ListenError(path, error.strerror or str(error)) from error


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Keep other processes of ours from the socket files in *directory*.

    When the lock cannot be had, it goes on without.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + LOCKED_WITHIN
        while not _lock(descriptor) and time.monotonic() < until:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(path: str) -> None:
    """Remove the socket file of a process that listens no more; leave any other."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(path, "there is a file that is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # it listens, and does not accept
    raise ListenError(path, "another process listens there")
