"""Reads from the kernel what it knows of a TCP connection (tcp(7)).

Both functions raise OSError or ValueError for a socket that is closed.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

from mxpolicy.routing.evidence import SendState

__all__ = ["send_state", "unacknowledged"]

# struct tcp_info of <linux/tcp.h>, which only ever grows at its end. The offsets are
# those of tcpi_retransmits and tcpi_notsent_bytes (Linux 4.6).
_RETRANSMITS = 2
_NOTSENT = 144
_LENGTH = 148


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the kernel holds, sent or not, without an ACK (SIOCOUTQ)."""
    # tcp(7): SIOCOUTQ is TIOCOUTQ under another name, on every architecture.
    found = fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4)
    return int(struct.unpack("i", found)[0])


def send_state(sock: socket.socket) -> SendState | None:
    """Return the state of our half of *sock*; None where the kernel does not tell."""
    option = getattr(socket, "TCP_INFO", None)  # Linux only
    if option is None:
        return None
    info = sock.getsockopt(socket.IPPROTO_TCP, option, 256)
    if len(info) < _LENGTH:
        return None
    (unsent,) = struct.unpack_from("=I", info, _NOTSENT)
    return SendState(
        unsent=unsent,
        unacknowledged=unacknowledged(sock),
        retransmissions=info[_RETRANSMITS],
    )
