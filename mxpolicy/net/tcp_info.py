"""Reads from the kernel what it knows of a TCP connection (tcp(7), Linux only)."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from mxpolicy.routing.evidence import SendState

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["send_state"]

# struct tcp_info of <linux/tcp.h>, which only ever grows at its end. The offsets are
# those of tcpi_retransmits and tcpi_notsent_bytes (Linux 4.6).
_RETRANSMITS = 2
_NOTSENT = 144
_LENGTH = 148


def send_state(
    sock: socket.socket, unacknowledged: Callable[[], int]
) -> SendState | None:
    """Return the state of our half of *sock*; None where the kernel does not tell.

    Args:
        sock: A connected TCP socket.
        unacknowledged: Reads SIOCOUTQ of the same socket, in bytes.
    """
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, option, 256)
    except OSError:
        return None
    if len(info) < _LENGTH:
        return None
    (unsent,) = struct.unpack_from("=I", info, _NOTSENT)
    return SendState(
        unsent=unsent,
        unacknowledged=unacknowledged(),
        retransmissions=info[_RETRANSMITS],
    )
