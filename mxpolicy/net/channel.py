"""One TCP connection, in clear or under TLS, as far as nothing is waited for.

asyncio's transports hide the socket, and we need it. The number of bytes that the peer
has acknowledged decides how long the mail data may take, and whether a host can have the
message. A reset in place of a normal end is a socket option. So this is a non-blocking
socket, with TLS by `mxpolicy.net.tls.TlsLayer`.

`mxpolicy.net.stream.Stream` is a channel that can be waited for.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.errors import EXHAUSTED, LocalTrouble, MxPolicyError
from mxpolicy.net.tcp_info import send_state, unacknowledged
from mxpolicy.net.tls import words_of

if TYPE_CHECKING:
    from mxpolicy.net.tls import TlsLayer
    from mxpolicy.routing.evidence import SendState

__all__ = ["READ_SIZE", "Channel", "StreamClosed"]

# Bytes of one read from the kernel, and the most that is kept until `Channel.take`.
READ_SIZE = 65536

# Bytes of TLS records one after the other that hold no data: session tickets and key
# updates. Servers send a few tickets of some 250 bytes each. Without an end they would
# keep the loop busy.
_MAX_WITHOUT_DATA = 64 * 1024

# <linux/net_tstamp.h>, <asm-generic/socket.h>: announce when all of a write is
# acknowledged, without a copy of its bytes. Any user may ask for it.
_SO_TIMESTAMPING = 37
_TX_ACK, _OPT_TSONLY = 1 << 9, 1 << 11


class StreamClosed(MxPolicyError):
    """The peer, or something on the way, ended the connection.

    Its text is the system's or OpenSSL's: ``Connection reset by peer``.
    """


class Channel:
    """A connected, non-blocking socket that this object owns from now on.

    TCP_NODELAY is set: what has a `give` of its own leaves in a segment of its own,
    above all the final dot.

    Attributes:
        socket: It.
        tls: True once a TLS handshake is complete.
        handed_over: How many bytes our own kernel has taken; it only grows.
        announced: Writes whose acknowledgement may still be announced.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.tls = False
        self.handed_over = 0
        self.announced = 0
        self._layer: TlsLayer | None = None
        self._received = b""  # taken from the kernel, not yet read by our caller
        self._without_data = 0  # bytes of TLS records since the last one with data
        self._at_eof = False
        self._failure: MxPolicyError | None = None
        self._outgoing = bytearray()  # accepted from our caller, not by the kernel
        self._is_torn = False  # a write was cut short: the next would be garbage
        self._is_announcing = False

    # --- reading

    def take(self, limit: int = READ_SIZE) -> bytes | None:
        """Return what has come, at most *limit* bytes; None where nothing has.

        ``b""`` is the end, with TLS or without. A TLS connection that was cut short
        counts as ended: a reply itself tells where it ends.

        Raises:
            StreamClosed: reset, or broken otherwise, and nothing left to read.
            LocalTrouble: our own kernel is out of something.
        """
        if not self.has_input():
            self._send_what_tls_owes()
            if self._failure is None:
                return None
        if self._received:
            taken, self._received = self._received[:limit], self._received[limit:]
            return taken
        if self._at_eof:
            return b""
        assert self._failure is not None
        raise self._failure

    def has_input(self) -> bool:
        """Take what the kernel has; return whether `take` has something, or raises."""
        while not self._has_read():
            if not self._receive():
                return False
        return True

    def _has_read(self) -> bool:
        """Return whether something is here, without asking the kernel."""
        if self._layer is not None and not self._received:
            self._unwrap(self._layer)
        return bool(self._received or self._at_eof or self._failure)

    def _receive(self) -> bool:
        """Read the socket once; False when nothing is there yet."""
        try:
            data = self.socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._failure = _translate(error)
            return True
        if self._layer is not None:
            self._layer.feed(data)
            self._without_data += len(data)
        elif data:
            self._received = data
        else:
            self._at_eof = True
        return True

    def _unwrap(self, layer: TlsLayer) -> None:
        """Move decrypted bytes from *layer* to where `take` finds them."""
        if self._at_eof or self._failure:
            return
        try:
            data = layer.decrypt(READ_SIZE)
        except ssl.SSLError as error:
            self._failure = StreamClosed(words_of(error))
            return
        if data is not None:
            self._received, self._without_data = data, 0
            self._at_eof = not data
        elif self._without_data > _MAX_WITHOUT_DATA:
            self._failure = StreamClosed("more and more TLS records without data")

    def _send_what_tls_owes(self) -> None:
        """Answer the peer's key update.

        The rest of a write that was cut short stays here: a peer that has refused the
        message takes no more of it, and we read its reply to the end.
        """
        if self._layer is not None and not self._is_torn:
            self._outgoing += self._layer.outgoing()
            with suppress(StreamClosed, LocalTrouble):  # kept for `take` to raise
                if self._outgoing:
                    self._send()

    # --- writing

    def give(self, data: bytes) -> bool:
        """Hand *data* to the kernel; return whether it has taken all.

        If it has not, `mxpolicy.net.stream.Stream.resume` is due.

        Raises:
            StreamClosed: reset or closed. What the peer said before that (a 5yz
                in the middle of DATA) is kept: `take` returns it first.
            LocalTrouble: our own kernel is out of something.
        """
        self._accept(data)
        self._is_torn = True
        if self._layer is not None:
            self._outgoing += self._layer.outgoing()
        while self._outgoing and self._send():
            pass
        self._is_torn = bool(self._outgoing)
        return not self._is_torn

    def _accept(self, data: bytes) -> None:
        if self._is_torn:
            raise StreamClosed("an earlier write was cut short")
        if self._layer is not None:
            try:
                self._layer.encrypt(data)
            except ssl.SSLError as error:
                raise StreamClosed(words_of(error)) from error
        else:
            self._outgoing += data

    def _send(self) -> bool:
        """Give the kernel what it takes; False when its buffer is full."""
        try:
            count = self.socket.send(self._outgoing)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            # The receive queue outlives a reset, and may hold the reply of a host that
            # refuses a message by 552 and closes.
            self.has_input()
            failure = _translate(error)
            self._failure = self._failure or failure
            raise failure from error
        self.handed_over += count
        self.announced += self._is_announcing
        del self._outgoing[:count]
        return True

    # --- what has arrived

    @property
    def acknowledged(self) -> int:
        """How many bytes the peer's kernel has confirmed; it only grows."""
        return self.handed_over - self.unacknowledged()

    def unacknowledged(self) -> int:
        """Return how many bytes the kernel holds, sent or not, without an ACK (SIOCOUTQ).

        0 where the system cannot tell.
        """
        with suppress(OSError, ValueError):  # ValueError: closed by ourselves
            return unacknowledged(self.socket)
        return 0

    def send_state(self) -> SendState | None:
        """Return what the kernel knows of what we send; None where it does not tell."""
        with suppress(OSError, ValueError):
            return send_state(self.socket)
        return None

    def announce(self, is_on: bool) -> None:
        """Have the kernel say when what is written from now on is acknowledged.

        It puts that into the socket's error queue, which wakes the loop. Meant for the
        last large write, and to be ended right after it. Some systems know no such thing.
        """
        flags = _TX_ACK | _OPT_TSONLY if is_on else 0
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, flags)
        except OSError:
            is_on = False
        self._is_announcing = is_on

    def hear_announcement(self) -> None:
        """Take one off the error queue, which would go on waking us.

        It is a hint only: `unacknowledged` says exactly what has arrived.
        """
        with suppress(OSError):
            self.socket.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            self.announced -= 1

    # --- the rest

    def tls_words(self) -> str:
        """Return protocol and cipher, as ``TLSv1.3/TLS_AES_256_GCM_SHA384``; empty in clear."""
        return self._layer.words() if self._layer is not None else ""

    def keep_alive(self) -> None:
        """Send something now and then, so that no firewall forgets the connection.

        It also shows when the peer is not there any more (TCP keep-alive, RFC 9293
        §3.8.4): after ten minutes without any answer the stream is closed.
        """
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                self.socket.setsockopt(socket.IPPROTO_TCP, option, 60)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 10)

    def close(self, last_words: bytes = b"") -> None:
        """End the connection normally: what the kernel holds is still delivered.

        *last_words* (a QUIT) are sent if that needs no waiting. It never waits, never
        raises, and may be called twice.
        """
        if not self._is_torn:
            with suppress(OSError):  # also OpenSSL's
                self.socket.send(self._wrap_farewell(last_words))
        self._release()

    def _wrap_farewell(self, last_words: bytes) -> bytes:
        if self._layer is None:
            return last_words
        if self.tls:
            self._layer.encrypt(last_words)
            self._layer.say_goodbye()
        return self._layer.outgoing()

    def abort(self) -> None:
        """Reset the connection: the peer receives no more of what we have sent.

        Without the reset the kernel goes on delivering for minutes after `close`: a
        message given to another host would arrive twice.
        """
        with suppress(OSError):
            self.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self._release()

    def _release(self) -> None:
        self._failure = self._failure or StreamClosed("closed by ourselves")
        self.socket.close()


def _translate(error: OSError) -> MxPolicyError:
    """Return the error of ours for one that send or recv gave."""
    kind = LocalTrouble if error.errno in EXHAUSTED else StreamClosed
    return kind(os.strerror(error.errno) if error.errno else str(error))
