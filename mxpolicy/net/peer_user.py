"""Which local user is at the other end of a TCP connection; Linux only.

The kernel is asked for the very socket at the other end (sock_diag(7)), without any
privilege. A connection from another machine, or from another network namespace, has no
socket here.
"""

from __future__ import annotations

import errno
import socket
import struct

__all__ = ["NOT_HERE", "peer_user"]

NOT_HERE = -1
"""The other end has no owner in this network namespace: it is elsewhere, or closed."""

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST = 1  # NLM_F_REQUEST
_ERROR = 2  # NLMSG_ERROR
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
# struct inet_diag_msg: family, state, timer, retrans, inet_diag_sockid (48 bytes),
# expires, rqueue, wqueue, uid, inode.
_ANSWER = struct.Struct("=BBBB48xIIIII")


def peer_user(connection: socket.socket) -> int:
    """Return the user id that owns the other end of *connection*, or `NOT_HERE`.

    Raises:
        OSError: The kernel cannot be asked (no permission for netlink, no descriptors),
            or the connection has ended.
    """
    ours, theirs = connection.getsockname(), connection.getpeername()
    request = _request(connection.family, theirs[:2], ours[:2])
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)  # it answers before send returns
        netlink.sendto(request, (0, 0))
        answer = netlink.recv(4096)
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if -code == errno.ENOENT:
            return NOT_HERE
        raise OSError(-code, "sock_diag")
    if kind != _BY_FAMILY:
        raise OSError(f"sock_diag answers with a message of type {kind}")
    *_, user, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    # One that its process has closed belongs to no user, and says 0, which is root.
    return user if inode else NOT_HERE


def _request(family: int, source: tuple[str, int], target: tuple[str, int]) -> bytes:
    """Return the question for the socket whose own address is *source*."""
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES)
    body += struct.pack(">HH", source[1], target[1])
    body += _packed(family, source[0]) + _packed(family, target[0])
    body += struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
    size = _HEADER.size + len(body)
    return _HEADER.pack(size, _BY_FAMILY, _REQUEST, 1, 0) + body


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(family, address.partition("%")[0]).ljust(16, b"\0")
