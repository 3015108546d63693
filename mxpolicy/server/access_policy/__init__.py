"""The access policy server: what smtpd(8) asks before it takes the mail.

SMTPD_POLICY_README. A client asks about each recipient, waits for the answer, and asks
again over the same connection for as long as it lives:

- Each question is answered once, in the order in which they came. Questions of one
  client are judged at the same time, so that each has its answer in time.
- A question is answered within ``policy.timeout`` seconds. Postfix waits for 100 s by
  default (``smtpd_policy_service_timeout``), and then refuses mail for now.
- A client is never disconnected before it has hung up. An idle one costs a descriptor
  and some 3 KiB, and what one client sends takes bounded memory.

`judge` has the answers, and `conversation` keeps them in order.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from mxpolicy.server.access_policy.conversation import Conversation
from mxpolicy.server.access_policy.judge import Judge

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.protocol.access_policy import AccessRequest

__all__ = ["READ_SIZE", "AccessPolicyServer"]

# Postfix's requests have some hundred bytes. The shortest malformed one has a single byte:
# so not more at once.
READ_SIZE = 4096


class AccessPolicyServer:
    """Answers any number of clients, also at the same time.

    Args:
        engine: Returns the engine whose forecasts decide. When it is another one than
            before, its configuration counts from the next question on.
        observe: Told every judgement, and every trouble.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: A rule cannot be understood. `mxpolicy.config` has looked at them.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        observe: Observe,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._observe = observe
        self._clock = clock
        self._judge = Judge(engine(), observe, clock)
        self._buffer = bytearray(READ_SIZE)

    async def serve(self, connection: socket.socket) -> None:
        """Answer one client until it has hung up.

        A client that closes only its sending side has its answers first
        (``${readsocket}``). When the caller cancels this, every open question is
        answered DUNNO at once; what the client does not take at once is dropped.

        Args:
            connection: Accepted, a stream; closed when this returns.
        """
        loop = asyncio.get_running_loop()
        client = _Client(self._conversation, self._buffer)
        await loop.connect_accepted_socket(lambda: client, connection)
        try:
            await asyncio.shield(client.ended)
        except asyncio.CancelledError:
            await client.give_up()
            raise

    def stop(self) -> None:
        """Go on: a mail server that has no answer may refuse mail for now."""

    def _conversation(self, send: Callable[[bytes], None]) -> Conversation:
        return Conversation(self.action_for, send, self._observe)

    def action_for(self, request: AccessRequest) -> str | asyncio.Task[str]:
        """See `Judge.action_for`."""
        engine = self._engine()
        if engine is not self._judge.engine:
            self._judge = Judge(engine, self._observe, self._clock)
        return self._judge.action_for(request)


class _Client(asyncio.BufferedProtocol):
    """One client's connection: reads while it may, writes what is ready.

    Args:
        conversation: Makes one that sends by the function given.
        buffer: Where what it sends is read to; all clients may share it, because it is
            taken from there before anything else is read.

    Attributes:
        ended: Done when the connection is closed.
    """

    def __init__(
        self,
        conversation: Callable[[Callable[[bytes], None]], Conversation],
        buffer: bytearray,
    ) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._conversation = conversation(self._send)
        self._buffer = buffer
        self._transport: asyncio.Transport
        self._watched: asyncio.Task[str] | None = None
        self._has_ended = False  # the client sends no more
        self._takes = True  # what is written to it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of it.
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._conversation.receive_data(bytes(memoryview(self._buffer)[:nbytes]))
        self._go_on()

    def eof_received(self) -> bool:
        self._has_ended = True
        self._conversation.receive_eof()
        self._go_on()
        return True  # its answers may come yet

    def pause_writing(self) -> None:
        self._takes = False
        self._go_on()

    def resume_writing(self) -> None:
        self._takes = True
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._conversation.cancel()
        if not self.ended.done():
            self.ended.set_result(None)

    async def give_up(self) -> None:
        """Answer DUNNO to all that waits, and hang up."""
        self._conversation.cancel()
        self._conversation.send_ready()
        self._transport.close()
        await asyncio.sleep(0)
        self._transport.abort()
        await self.ended

    def _send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _go_on(self) -> None:
        """Wait for the next answer; read, unless too much is owed; or hang up."""
        if self._transport.is_closing():
            return
        awaited = self._conversation.awaited
        if awaited is not None and awaited is not self._watched:
            self._watched = awaited
            awaited.add_done_callback(self._found_out)
        if self._has_ended:
            if not self._conversation.owed:
                self._transport.close()
        elif self._takes and not self._conversation.is_full:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _found_out(self, _: asyncio.Task[str]) -> None:
        self._conversation.send_ready()
        self._go_on()
