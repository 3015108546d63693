"""Open a TCP connection to a candidate, and say exactly how that failed.

The errno of connect(2) has two meanings. When connect returns it at once, our own kernel
speaks. When it comes later, in SO_ERROR, something on the way or the host speaks. The
two tables below were checked against nftables on Linux 6 (the tests do it again):

* A RST and ICMP "port unreachable" both end as ECONNREFUSED, so ``refused`` means
  either. The latter is what iptables' REJECT sends by default.
* The other ICMP refusals end as EHOSTUNREACH, ENETUNREACH or, with IPv6, EACCES.
* A neighbour that does not answer ARP is EHOSTUNREACH as well, after some seconds.

There is no timer here: without a SYN-ACK the kernel gives up after two minutes, and the
race lets go long before.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

from mxpolicy.errors import ConnectError, LocalTrouble
from mxpolicy.net.stream import OWN_TROUBLE, Stream
from mxpolicy.routing.candidate import Candidate, Verdict

__all__ = ["dial"]

# Linux's number; the name is in the socket module only since Python 3.12.
_IP_BIND_ADDRESS_NO_PORT = 24

# What connect(2) itself says, before any packet has left.
_AT_ONCE = {
    errno.EPERM: Verdict.PROHIBITED,
    errno.EACCES: Verdict.PROHIBITED,
    errno.ECONNREFUSED: Verdict.REFUSED,  # loopback answers that fast
    errno.ECONNRESET: Verdict.REFUSED,
}

# What SO_ERROR says after the SYN went out.
_LATER = {
    errno.ECONNREFUSED: Verdict.REFUSED,
    errno.ECONNRESET: Verdict.REFUSED,
    errno.ETIMEDOUT: Verdict.FILTERED,
}


async def dial(
    candidate: Candidate, *, source: str | None = None, mss: int | None = None
) -> Stream:
    """Connect directly to *candidate*; return the stream once the SYN-ACK is there.

    Args:
        source: Own address to connect from, of the candidate's family.
        mss: Largest TCP segment to send and to ask for, in bytes. It must be
            set before connect: after it, Linux ignores it.

    Raises:
        ConnectError: with the verdict ``refused``, ``prohibited``, ``no_route``
            or ``filtered``.
        LocalTrouble: no descriptor, memory or local port left, or *source* is no
            address of this machine. It says nothing of the candidate.
    """
    family = socket.AF_INET6 if candidate.is_ipv6 else socket.AF_INET
    sock = _open(family, candidate.address)
    try:
        _prepare(sock, source, mss)
        stream = Stream(sock)
        await _connect(stream, sock, candidate.address, candidate.port)
    except BaseException:
        sock.close()
        raise
    return stream


def _open(family: socket.AddressFamily, address: str) -> socket.socket:
    try:
        # connect(2) in Python asks DNS, and waits for it, for anything else.
        socket.inet_pton(family, address)
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno in OWN_TROUBLE:
            raise LocalTrouble(error.strerror or str(error)) from error
        # EAFNOSUPPORT: this machine does without IPv6 altogether.
        raise ConnectError(Verdict.NO_ROUTE, error.strerror or str(error)) from error


def _prepare(sock: socket.socket, source: str | None, mss: int | None) -> None:
    try:
        if mss is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        if source is not None:
            # Choose the port at connect, when the other end is known: else
            # 28,000 connections exhaust a source address for all hosts at once.
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
    except OSError as error:
        where = f"from {source}: " if source else ""
        raise LocalTrouble(f"{where}{error.strerror or error}") from error


async def _connect(
    stream: Stream, sock: socket.socket, address: str, port: int
) -> None:
    number = sock.connect_ex((address, port))
    if number == errno.EINPROGRESS:
        await stream.ready(writing=True)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise _failed_later(number)
    elif number:
        raise _failed_at_once(number, sock, address)
    try:
        peer = sock.getpeername()
    except OSError as error:  # ENOTCONN: reset as soon as it was there
        raise ConnectError(Verdict.REFUSED, error.strerror or str(error)) from error
    if sock.getsockname() == peer:
        # TCP's simultaneous open: the port we were given was the one we called.
        raise ConnectError(Verdict.REFUSED, "connected to itself")


def _failed_at_once(
    number: int, sock: socket.socket, address: str
) -> ConnectError | LocalTrouble:
    text = os.strerror(number)
    if number == errno.EADDRNOTAVAIL and not _has_source(sock.family, address):
        return ConnectError(Verdict.NO_ROUTE, text)
    if number in OWN_TROUBLE or number in (
        errno.EADDRNOTAVAIL,  # no local port left towards this address
        errno.EADDRINUSE,
        errno.EAGAIN,
    ):
        return LocalTrouble(text)
    # ENETUNREACH, EHOSTUNREACH, EINVAL (a blackhole route), ENETDOWN, ...
    return ConnectError(_AT_ONCE.get(number, Verdict.NO_ROUTE), text)


def _failed_later(number: int) -> ConnectError | LocalTrouble:
    text = os.strerror(number)
    if number in OWN_TROUBLE:
        return LocalTrouble(text)
    # Everything else here is an ICMP message, whatever its words: EHOSTUNREACH,
    # ENETUNREACH, EACCES, ENOPROTOOPT were seen.
    return ConnectError(_LATER.get(number, Verdict.PROHIBITED), text)


def _has_source(family: int, address: str) -> bool:
    """Return whether this machine has an address to reach *address* from.

    The kernel says so without a packet.

    Where IPv6 is switched off by sysctl, connect gives the same EADDRNOTAVAIL as
    when all ports are taken; but then UDP, whose ports are others, has it too.
    """
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return True
    return False
