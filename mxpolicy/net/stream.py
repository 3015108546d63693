"""One TCP connection as a byte stream: reading, writing and TLS that wait for the peer.

What needs no waiting is a `mxpolicy.net.channel.Channel`'s; how is waited, a
`mxpolicy.net.readiness.Readiness`'s.

Before the mail data it sets no limits of its own: the caller bounds the time
(`Stream.wait_at_most`, or `asyncio.timeout`). A cancelled coroutine leaves no task and no
registered descriptor behind. A `Stream` belongs to one task at a time.

It does not interpret bytes (see `mxpolicy.protocol`), and does not connect (see
`mxpolicy.net.dial`).
"""

from __future__ import annotations

import operator
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.errors import LocalTrouble, RemoteProtocolError, TLSError
from mxpolicy.net.ack_watch import AckWatch
from mxpolicy.net.channel import READ_SIZE, Channel, StreamClosed
from mxpolicy.net.readiness import Readiness
from mxpolicy.net.tls import TlsLayer, words_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["Stream"]

# Seconds between two looks for acknowledgements where the kernel does not announce them.
# The first millisecond matters where the peer is near. A peer that delays the last
# acknowledgement by 40 ms (RFC 9293 §3.8.6.3) is noticed 10 ms late at most.
_FIRST_LOOK = 0.001
_LATER_LOOK = 1.25  # times the one before
_LONGEST_LOOK = 0.25
# Where it does: an announcement is a hint, and could be missing.
_ANNOUNCED_LOOK = 0.2


class Stream(Channel):
    """A channel that can be waited for."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._readiness = Readiness(self)
        # Kept while *heed_input* stops a write: a reply is no progress.
        self._watch: AckWatch | None = None

    # --- waiting

    def wait_at_most(self, seconds: float | None) -> None:
        """Let all that waits for the peer raise TimeoutError, *seconds* from now on.

        None is as long as it takes. One timer serves many such limits: it rings seldom,
        and looks whether the limit was put off.
        """
        self._readiness.wait_at_most(seconds)

    async def ready(self, *, reading: bool = False, writing: bool = False) -> None:
        """Wait until the socket can be read or written, whichever is asked for.

        Raises:
            TimeoutError: See `wait_at_most`.
        """
        await self._readiness.ready(reading=reading, writing=writing)

    def watch(self, told: Callable[[], None]) -> None:
        """Call *told* whenever there may be something to `take`, until `unwatch`.

        Nothing may wait for the stream meanwhile.
        """
        self._readiness.watch(told)

    def unwatch(self) -> None:
        """End `watch`; may be called twice."""
        self._readiness.unwatch()

    def _release(self) -> None:
        self._readiness.end()
        super()._release()

    # --- reading

    async def read(self, limit: int = READ_SIZE) -> bytes:
        """Return what `take` does, 1 to *limit* bytes or the end, waiting for it."""
        while (taken := self.take(limit)) is None:
            await self._readiness.ready(reading=True)
        return taken

    async def wait_for_input(self, seconds: float) -> bool:
        """Wait for at most *seconds*; then return `has_input`."""
        if not self._has_read():  # else the kernel says when to look
            await self._readiness.pause(seconds, reading=True)
        return self.has_input()

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
            StreamClosed: See `give`.
            StreamSilent: *progress_timeout* went by.
            StreamStalled: The same, sooner, because nothing arrives there: only
                with a *progress_timeout*, see `mxpolicy.routing.evidence`.
            LocalTrouble: our own kernel is out of something.
        """
        self._accept(data)
        return await self.resume(
            progress_timeout=progress_timeout, heed_input=heed_input
        )

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
                await self._readiness.ready(reading=heed_input, writing=True)
            else:
                self._watch.check()
                await self._readiness.pause(
                    _LONGEST_LOOK, reading=heed_input, writing=True
                )
        self._watch = None
        return True

    async def drain(
        self,
        *,
        progress_timeout: float | None = None,
        heed_input: bool = False,
        suffices: Callable[[int], bool] = operator.not_,
    ) -> bool:
        """Wait until what was written is acknowledged; then return True.

        It ends at once where `announce` was on, and looks now and then where the kernel
        knows no such thing. True at once where the system cannot tell at all.
        *progress_timeout*, *heed_input*, the result False and the errors are those of
        `write`.

        Args:
            suffices: Whether the wait may end with so many bytes not acknowledged. By
                default with none.
        """
        # An unread byte would wake us all the time.
        is_told = self.announced > 0 and heed_input
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
            await self._readiness.pause(look, reading=heed_input)
            look = min(_LATER_LOOK * look, _LONGEST_LOOK)
        self._watch = None
        return True

    def _begin_watch(self, progress_timeout: float | None) -> None:
        if self._watch is None and progress_timeout is not None:
            self._watch = AckWatch(self, progress_timeout)

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
        self.tls, self._without_data = True, 0

    async def _handshake(self, layer: TlsLayer) -> None:
        while not layer.handshake():
            await self._flush()
            while not self._receive():
                await self._readiness.ready(reading=True)
            if self._failure is not None:
                raise self._failure
        await self._flush()
