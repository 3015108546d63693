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

from mxpolicy.errors import EXHAUSTED, LocalTrouble, MxPolicyError
from mxpolicy.net.own_address import source_for
from mxpolicy.net.stream import Stream
from mxpolicy.routing.candidate import Candidate, Verdict

__all__ = ["ConnectError", "dial"]

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


class ConnectError(MxPolicyError):
    """A candidate failed before any byte of SMTP.

    Attributes:
        verdict: How it failed.
        reason: The system's words, ``Connection refused``.
    """

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(verdict, reason)
        self.verdict = verdict
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


async def dial(
    candidate: Candidate, *, source: str | None = None, mss: int | None = None
) -> Stream:
    """Connect directly to *candidate*; return the stream once the SYN-ACK is there.

    Args:
        source: Own address to connect from, of the candidate's family.
        mss: Largest TCP segment to send and to ask for, in bytes. It must be
            set before connect: after it, Linux ignores it.

    Raises:
        ConnectError: With the verdict ``refused``, ``prohibited``, ``no_route``
            or ``filtered``.
        LocalTrouble: No descriptor, memory or local port is left, or *source* is not
            an address of this machine. It says nothing of the candidate.
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
        # Python's connect would ask DNS for anything else, and wait for it.
        socket.inet_pton(family, address)
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise LocalTrouble(error.strerror or str(error)) from error
        # EAFNOSUPPORT: this machine has no IPv6.
        raise ConnectError(Verdict.NO_ROUTE, error.strerror or str(error)) from error


def _prepare(sock: socket.socket, source: str | None, mss: int | None) -> None:
    try:
        if mss is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        if source is not None:
            # The kernel chooses the port at connect, when the peer is known. Else
            # 28,000 connections exhaust a source address for all hosts together.
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
        raise _failed_at_once(number, address)
    try:
        peer = sock.getpeername()
    except OSError as error:  # ENOTCONN: reset as soon as it was there
        raise ConnectError(Verdict.REFUSED, error.strerror or str(error)) from error
    if sock.getsockname() == peer:
        # TCP's simultaneous open: our own port is the one that we called.
        raise ConnectError(Verdict.REFUSED, "connected to itself")


def _failed_at_once(number: int, address: str) -> ConnectError | LocalTrouble:
    text = os.strerror(number)
    # EADDRNOTAVAIL means that all local ports are taken, or that IPv6 is switched off
    # by sysctl. Only in the latter case UDP, which has ports of its own, fails too.
    if number == errno.EADDRNOTAVAIL and source_for(address) is None:
        return ConnectError(Verdict.NO_ROUTE, text)
    if number in EXHAUSTED or number in (
        errno.EADDRNOTAVAIL,  # no local port left towards this address
        errno.EADDRINUSE,
        errno.EAGAIN,
    ):
        return LocalTrouble(text)
    # ENETUNREACH, EHOSTUNREACH, EINVAL (a blackhole route), ENETDOWN, ...
    return ConnectError(_AT_ONCE.get(number, Verdict.NO_ROUTE), text)


def _failed_later(number: int) -> ConnectError | LocalTrouble:
    text = os.strerror(number)
    if number in EXHAUSTED:
        return LocalTrouble(text)
    # All others are ICMP messages, whatever their words: EHOSTUNREACH, ENETUNREACH,
    # EACCES and ENOPROTOOPT were seen.
    return ConnectError(_LATER.get(number, Verdict.PROHIBITED), text)
