"""One TCP connection as a byte stream, in clear or under TLS, close to the kernel.

asyncio's transports hide the socket, and we need it. The number of bytes that the peer
has acknowledged decides how long the mail data may take, and whether a host can have the
message. A reset in place of a normal end is a socket option. So this is a non-blocking
socket with the loop's readiness calls, and TLS by `mxpolicy.net.tls.TlsLayer`.

Before the mail data it sets no limits of its own: the caller bounds the time
(`Stream.wait_at_most`, or `asyncio.timeout`). A cancelled coroutine leaves no task and no
registered descriptor behind. A `Stream` belongs to one task at a time.

It does not interpret bytes (see `mxpolicy.protocol`), and does not connect (see
`mxpolicy.net.dial`).
"""

from __future__ import annotations

import asyncio
import errno
import operator
import os
import socket
import ssl
import struct
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.errors import (
    LocalTrouble,
    MxPolicyError,
    RemoteProtocolError,
    TLSError,
)
from mxpolicy.net.ack_watch import AckWatch
from mxpolicy.net.tcp_info import send_state, unacknowledged
from mxpolicy.net.tls import TlsLayer, words_of
from mxpolicy.routing.evidence import SendState

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OWN_TROUBLE", "Stream", "StreamClosed"]

# Our own machine, never the peer: descriptors and memory have run out.
OWN_TROUBLE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Bytes of one read from the kernel, and the most that is kept until `Stream.read`.
_READ_SIZE = 65536

# Seconds between two looks for acknowledgements where the kernel does not announce them.
# The first millisecond matters where the peer is near. A peer that delays the last
# acknowledgement by 40 ms (RFC 9293 §3.8.6.3) is noticed 10 ms late at most.
_FIRST_LOOK = 0.001
_LATER_LOOK = 1.25  # times the one before
_LONGEST_LOOK = 0.25
# Where it does: an announcement is a hint, and could be missing.
_ANNOUNCED_LOOK = 0.2

# <linux/net_tstamp.h>, <asm-generic/socket.h>: announce when all of a write is
# acknowledged, without a copy of its bytes. Any user may ask for it.
_SO_TIMESTAMPING = 37
_TX_ACK, _OPT_TSONLY = 1 << 9, 1 << 11


class StreamClosed(MxPolicyError):
    """The peer, or something on the way, ended the connection.

    Its text is the system's or OpenSSL's: ``Connection reset by peer``.
    """


class Stream:
    """A connected, non-blocking socket that this object owns from now on.

    TCP_NODELAY is set: what has a `write` of its own leaves in a segment of its own,
    above all the final dot.

    Attributes:
        tls: True once a TLS handshake is complete.
        handed_over: How many bytes our own kernel has taken; it only grows.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = False
        self._socket = sock
        self._layer: TlsLayer | None = None
        self._received = b""  # taken from the kernel, not yet read by our caller
        self._at_eof = False
        self._failure: MxPolicyError | None = None
        self._outgoing = bytearray()  # accepted from our caller, not by the kernel
        self.handed_over = 0
        self._is_torn = False  # a write was cut short: the next would be garbage
        # Kept while *heed_input* stops a write: a reply is no progress.
        self._watch: AckWatch | None = None
        self._woken: asyncio.Future[None] | None = None
        self._waits_for_input = False
        self._told: Callable[[], None] | None = None  # in its place: `watch`
        # Where the socket is watched for input: also from one wait to the next.
        self._watched_by: asyncio.AbstractEventLoop | None = None
        self._is_unwanted = False  # input has come after the last wait
        self._is_announcing = False
        self._announced = 0  # writes whose acknowledgement may still be announced
        # When waiting for the peer ends, on the loop's clock, and the one timer for it.
        self._until = inf
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = inf

    # --- reading

    async def read(self, limit: int = _READ_SIZE) -> bytes:
        """Return what has come, 1 to *limit* bytes, waiting for the first.

        ``b""`` is the end, with TLS or without. A TLS connection that was cut short
        counts as ended: a reply itself tells where it ends.

        Raises:
            StreamClosed: reset, or broken otherwise, and nothing left to read.
            LocalTrouble: our own kernel is out of something.
        """
        while not self.has_input():
            self._send_what_tls_owes()
            if self._failure is None:
                await self.ready(reading=True)
        return self._taken(limit)

    def take(self, limit: int = _READ_SIZE) -> bytes | None:
        """Return what `read` would, without waiting; None where it would wait."""
        if not self.has_input():
            self._send_what_tls_owes()
            if self._failure is None:
                return None
        return self._taken(limit)

    def _taken(self, limit: int) -> bytes:
        if self._received:
            taken, self._received = self._received[:limit], self._received[limit:]
            return taken
        if self._at_eof:
            return b""
        assert self._failure is not None
        raise self._failure

    def watch(self, told: Callable[[], None]) -> None:
        """Call *told* whenever there may be something to `take`, until `unwatch`.

        Nothing may wait for the stream meanwhile.
        """
        assert self._woken is None, "a stream belongs to one task at a time"
        self._told = told
        self._begin_watching(asyncio.get_running_loop())

    def unwatch(self) -> None:
        """End `watch`; may be called twice."""
        self._told, self._is_unwanted = None, False

    async def wait_for_input(self, seconds: float) -> bool:
        """Wait for at most *seconds*; then return `has_input`."""
        if not self._has_read():  # else the kernel says when to look
            await self._pause(seconds, reading=True)
        return self.has_input()

    def has_input(self) -> bool:
        """Take what the kernel has; return whether `read` would return or raise at once."""
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
            data = self._socket.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._failure = _translate(error)
            return True
        if self._layer is not None:
            self._layer.feed(data)
        elif data:
            self._received = data
        else:
            self._at_eof = True
        return True

    def _unwrap(self, layer: TlsLayer) -> None:
        """Move decrypted bytes from *layer* to where `read` finds them."""
        if self._at_eof or self._failure:
            return
        try:
            data = layer.decrypt(_READ_SIZE)
        except ssl.SSLError as error:
            self._failure = StreamClosed(words_of(error))
            return
        if data is not None:
            self._received = data
            self._at_eof = not data

    def _send_what_tls_owes(self) -> None:
        """Answer the peer's key update, without waiting.

        The rest of a write that was cut short stays here: a peer that has refused the
        message takes no more of it, and we read its reply to the end.
        """
        if self._layer is not None and not self._is_torn:
            self._outgoing += self._layer.outgoing()
            with suppress(StreamClosed, LocalTrouble):  # kept for `read` to raise
                if self._outgoing:
                    self._send()

    # --- writing

    async def write(
        self,
        data: bytes,
        *,
        progress_timeout: float | None = None,
        heed_input: bool = False,
    ) -> bool:
        """Hand all of *data* to the kernel; return True when that is done.

        With *heed_input* it returns False as soon as the peer has sent something or has
        closed; *data* is then written in part or not at all. Then `read`, and `resume`,
        or write no more.

        Give large data in chunks of moderate size (64 KiB), a call for each.

        Args:
            progress_timeout: Seconds in which the peer acknowledges no byte. What our
                kernel takes into its buffer is no progress, except on systems that
                cannot tell the two apart.

        Raises:
            StreamClosed: reset or closed. What the peer said before that (a 5yz
                in the middle of DATA) is kept: `read` returns it first.
            StreamSilent: *progress_timeout* went by.
            StreamStalled: The same, sooner, because nothing arrives there: only
                with a *progress_timeout*, see `mxpolicy.routing.evidence`.
            LocalTrouble: our own kernel is out of something.
        """
        self._accept(data)
        return await self.resume(
            progress_timeout=progress_timeout, heed_input=heed_input
        )

    def give(self, data: bytes) -> bool:
        """Hand *data* to the kernel without waiting; return whether it has taken all.

        If it has not, `resume` is due. Raises what `write` does.
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

    async def resume(
        self,
        *,
        progress_timeout: float | None = None,
        heed_input: bool = False,
    ) -> bool:
        """Go on with a `write` that *heed_input* had stopped; see there."""
        self._is_torn = True  # until all of it is gone, also when cancelled
        done = await self._flush(progress_timeout, heed_input)
        self._is_torn = not done
        return done

    async def drain(
        self,
        *,
        progress_timeout: float | None = None,
        heed_input: bool = False,
        suffices: Callable[[int], bool] = operator.not_,
    ) -> bool:
        """Wait until what was written is acknowledged; then return True.

        True at once where the system cannot tell. *progress_timeout*,
        *heed_input*, the result False and the errors are those of `write`.

        Args:
            suffices: Whether the wait may end with so many bytes not acknowledged. By
                default with none.
        """
        # An unread byte would wake us all the time.
        is_told = self._announced > 0 and heed_input
        look = _ANNOUNCED_LOOK if is_told else _FIRST_LOOK
        while not suffices(self.unacknowledged()):
            self._begin_watch(progress_timeout)
            # Looked at in any case: after a reset the count stays as it was.
            if self.has_input() and heed_input:
                return False
            if self._failure is not None:
                raise self._failure
            if self._watch is not None:
                self._watch.check()
            await self._pause(look, reading=heed_input)
            look = min(_LATER_LOOK * look, _LONGEST_LOOK)
        self._watch = None
        return True

    def announce(self, is_on: bool) -> None:
        """Have the loop wake us when what is written from now on is acknowledged.

        So `drain` ends at once. Meant for the last large write, and to be ended right
        after it. Where the kernel knows no such thing, `drain` looks now and then.
        """
        flags = _TX_ACK | _OPT_TSONLY if is_on else 0
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, flags)
        except OSError:
            is_on = False
        self._is_announcing = is_on

    def _hear_announcement(self) -> None:
        """Take one off the error queue, which would go on waking us.

        It is a hint only: SIOCOUTQ says exactly what is acknowledged. One may come after
        the end of `drain`, so every wait looks for it.
        """
        with suppress(OSError):
            self._socket.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            self._announced -= 1

    def unacknowledged(self) -> int:
        """Return how many bytes the kernel holds, sent or not, without an ACK (SIOCOUTQ).

        0 where the system cannot tell.
        """
        with suppress(OSError, ValueError):  # ValueError: closed by ourselves
            return unacknowledged(self._socket)
        return 0

    def send_state(self) -> SendState | None:
        """Return what the kernel knows of what we send; None where it does not tell."""
        with suppress(OSError, ValueError):
            return send_state(self._socket)
        return None

    async def _flush(
        self, progress_timeout: float | None = None, heed_input: bool = False
    ) -> bool:
        """Give the kernel all that waits; return False when *heed_input* stopped it."""
        if self._layer is not None:
            self._outgoing += self._layer.outgoing()
        while self._outgoing:
            if heed_input and self.has_input():
                return False
            while self._outgoing and self._send():
                pass
            if not self._outgoing:
                break
            self._begin_watch(progress_timeout)
            if self._watch is None:
                await self.ready(reading=heed_input, writing=True)
            else:
                self._watch.check()
                await self._pause(_LONGEST_LOOK, reading=heed_input, writing=True)
        self._watch = None
        return True

    def _send(self) -> bool:
        """Give the kernel what it takes; False when its buffer is full."""
        try:
            count = self._socket.send(self._outgoing)
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
        self._announced += self._is_announcing
        del self._outgoing[:count]
        return True

    def _begin_watch(self, progress_timeout: float | None) -> None:
        if self._watch is None and progress_timeout is not None:
            self._watch = AckWatch(self, progress_timeout)

    @property
    def acknowledged(self) -> int:
        """How many bytes the peer's kernel has confirmed; it only grows."""
        return self.handed_over - self.unacknowledged()

    # --- TLS

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Do a TLS handshake as the client (RFC 3207 §4).

        Args:
            server_name: For SNI, and for the check of the certificate where
                *context* asks for one. A name that cannot be sent as SNI is left
                out when nothing is checked.

        Raises:
            RemoteProtocolError: Bytes came before the handshake began: they may have
                been added on the way, and must not be believed.
            TLSError: It failed; close the connection.
        """
        if self.has_input() and self._received:
            raise RemoteProtocolError("bytes in clear before the TLS handshake")
        self._layer = TlsLayer(context, server_name)
        try:
            await self._handshake(self._layer)
        except ssl.SSLError as error:
            with suppress(StreamClosed, LocalTrouble):
                self._outgoing += self._layer.outgoing()  # the alert
                self._send()
            raise TLSError(words_of(error)) from error
        except StreamClosed as error:
            raise TLSError(str(error)) from error
        self.tls = True

    def tls_words(self) -> str:
        """Return protocol and cipher, as ``TLSv1.3/TLS_AES_256_GCM_SHA384``; empty in clear."""
        return self._layer.words() if self._layer is not None else ""

    async def _handshake(self, layer: TlsLayer) -> None:
        while not layer.handshake():
            await self._flush()
            while not self._receive():
                await self.ready(reading=True)
            if self._failure is not None:
                raise self._failure
        await self._flush()

    # --- waiting

    def wait_at_most(self, seconds: float | None) -> None:
        """Let all that waits for the peer raise TimeoutError, *seconds* from now on.

        None is as long as it takes. One timer serves many such limits: it rings seldom,
        and looks whether the limit was put off.
        """
        if seconds is None:
            self._until = inf
        else:
            self._until = asyncio.get_running_loop().time() + seconds

    async def ready(self, *, reading: bool = False, writing: bool = False) -> None:
        """Wait until the socket can be read or written, whichever is asked for.

        Raises:
            TimeoutError: See `wait_at_most`.
        """
        loop = asyncio.get_running_loop()
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise StreamClosed("closed by ourselves")
        assert self._woken is None, "a stream belongs to one task at a time"
        self._woken = woken = loop.create_future()
        self._waits_for_input, self._is_unwanted = reading, False
        try:
            if reading:
                self._begin_watching(loop)
            if writing:
                loop.add_writer(descriptor, _wake, woken)
            self._set_alarm(loop)
            await woken
        except BaseException:
            self._stop_watching()
            raise
        finally:
            self._woken = None
            # Not in a callback of the future, as in sock_recv: by then the number may
            # belong to another socket.
            if writing and self._socket.fileno() == descriptor:
                loop.remove_writer(descriptor)
                if self._announced:
                    self._hear_announcement()
                    self._stop_watching()

    def _begin_watching(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._watched_by is None:
            loop.add_reader(self._socket.fileno(), self._has_come)
            self._watched_by = loop

    def _has_come(self) -> None:
        """There is input, or something in the error queue.

        Where nothing waits for input, it is looked for no longer: it would wake us all
        the time. But asyncio calls this once more, before the input is read.

        BUGS: After anything in the error queue, and after a reset, libuv looks for
        nothing more. A reset that came together with input is noticed under uvloop only
        by the next read or write, or when a wait ends.
        """
        if self._announced:
            self._hear_announcement()
            loop = self._stop_watching()
            if loop is not None:
                self._begin_watching(loop)
        if self._told is not None:
            self._told()
        elif self._woken is not None and self._waits_for_input:
            _wake(self._woken)
        elif self._is_unwanted:
            self._stop_watching()
        else:
            self._is_unwanted = True

    def _stop_watching(self) -> asyncio.AbstractEventLoop | None:
        """Look for no input any more; return where it was looked for."""
        loop, self._watched_by = self._watched_by, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._socket.fileno())
        return loop

    async def _pause(
        self, seconds: float, *, reading: bool = False, writing: bool = False
    ) -> None:
        """Like `ready`, for at most *seconds*."""
        until, end = self._until, asyncio.get_running_loop().time() + seconds
        if until <= end:
            await self.ready(reading=reading, writing=writing)
            return
        self._until = end
        try:
            with suppress(TimeoutError):
                await self.ready(reading=reading, writing=writing)
        finally:
            self._until = until

    def _set_alarm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ring when the time to wait is over, or before."""
        if self._until < self._rings_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._rings_at = self._until
            self._alarm = loop.call_at(self._until, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm, self._rings_at = None, inf
        if self._woken is None:
            return  # the next one that waits sets the alarm
        if loop.time() < self._until:
            self._set_alarm(loop)
        elif not self._woken.done():
            self._woken.set_exception(TimeoutError())

    # --- the end

    def close(self, last_words: bytes = b"") -> None:
        """End the connection normally: what the kernel holds is still delivered.

        *last_words* (a QUIT) are sent if that needs no waiting. It never waits, never
        raises, and may be called twice.
        """
        if not self._is_torn:
            with suppress(OSError):  # also OpenSSL's
                self._socket.send(self._wrap_farewell(last_words))
        self._release()

    def _wrap_farewell(self, last_words: bytes) -> bytes:
        if self._layer is None:
            return last_words
        if self.tls:
            self._layer.encrypt(last_words)
            self._layer.say_goodbye()
        return self._layer.outgoing()

    def keep_alive(self) -> None:
        """Send something now and then, so that no firewall forgets the connection.

        It also shows when the peer is not there any more (TCP keep-alive, RFC 9293
        §3.8.4): after ten minutes without any answer the stream is closed.
        """
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                self._socket.setsockopt(socket.IPPROTO_TCP, option, 60)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 10)

    def abort(self) -> None:
        """Reset the connection: the peer receives no more of what we have sent.

        Without the reset the kernel goes on delivering for minutes after `close`: a
        message given to another host would arrive twice.
        """
        with suppress(OSError):
            self._socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self._release()

    def _release(self) -> None:
        self.unwatch()
        self._stop_watching()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._rings_at = None, inf
        woken = self._woken
        if woken is not None:
            woken.get_loop().remove_writer(self._socket.fileno())
            if not woken.done():
                woken.set_exception(StreamClosed("closed by ourselves"))
        self._failure = self._failure or StreamClosed("closed by ourselves")
        self._socket.close()


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _translate(error: OSError) -> MxPolicyError:
    """Return the error of ours for one that send or recv gave."""
    kind = LocalTrouble if error.errno in OWN_TROUBLE else StreamClosed
    return kind(os.strerror(error.errno) if error.errno else str(error))
