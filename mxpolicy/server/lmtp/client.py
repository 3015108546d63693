"""One client of the LMTP server: bytes and events between its connection and the machine.

A protocol class and no task: a message costs little here. `mxpolicy.protocol.lmtp_server`
says what the client wants, and what is written.
"""

from __future__ import annotations

import asyncio
import select
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from mxpolicy.delivery.events import Delays, RecipientSettled, Trouble
from mxpolicy.protocol.lmtp_server import (
    DataBegun,
    DataCame,
    DataEnded,
    Left,
    LmtpReply,
    LmtpServer,
    Offers,
    RecipientNamed,
    TransactionDropped,
)
from mxpolicy.reply import EnhancedStatus, printable
from mxpolicy.server.lmtp.message import Message, reply_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.outcome import Outcome
    from mxpolicy.protocol.lmtp_server import Event
    from mxpolicy.server.lmtp.recipients import Recipients

__all__ = ["CLIENT_SILENCE", "DATA_SILENCE", "Client"]

# Seconds without a byte of the mail data after which it is given up (RFC 5321
# §4.5.3.2.7). lmtp(8) gives up a write after 180 s (lmtp_data_xfer_timeout).
DATA_SILENCE = 300.0
# Seconds of silence after which a client counts as gone. lmtp(8) keeps an idle
# connection for seconds, and no mail server waits so long without a word.
CLIENT_SILENCE = 3600.0

# Bytes that may wait behind a command that is being answered, before no more are read.
MAX_BUFFERED = 64 * 1024

_HAS_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL

_ACCEPTED = LmtpReply(250, EnhancedStatus(2, 1, 5), "Ok")


class Client(asyncio.Protocol):
    """Serves one client.

    Args:
        engine: Returns the engine that delivers from now on.
        recipients: Looks at recipients.
        observe: Told everything that happens.
        connection: The client's; a transport owns it later.
        refusal: The outcome of all its recipients, where it may not send.

    Attributes:
        has_ended: Done when the connection is closed.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        recipients: Recipients,
        observe: Observe,
        connection: socket.socket,
        refusal: Outcome | None = None,
    ) -> None:
        self._engine = engine
        self._recipients = recipients
        self._observe = observe
        self._refusal = refusal
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLRDHUP)
        context = engine().context
        options = context.options.lmtp
        offers = Offers(context.helo, options.message_size, options.dsn)
        self._conversation = LmtpServer(offers)
        self._transport: asyncio.Transport | None = None
        self._message: Message | None = None
        self._draining: asyncio.Task[None] | None = None
        self._may_write = True
        self._is_reading = True
        self._will_act = False
        self._is_acting = False
        self._heard = self._loop.time()
        self._watch = self._loop.call_later(DATA_SILENCE, self._look_at_clock)
        self.has_ended: asyncio.Future[None] = self._loop.create_future()

    def hang_up(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    # -- called by the loop -------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        # uvloop's is no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        self._act()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        self._heard = self._loop.time()
        self._conversation.receive_data(data)
        self._act()

    def pause_writing(self) -> None:
        """Obey no more commands: the client does not read its replies."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Go on."""
        self._may_write = True
        self._act_soon()

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone."""
        self._end()

    # -- inside ---------------------------------------------------------------

    def _end(self) -> None:
        if self.has_ended.done():
            return
        self.has_ended.set_result(None)
        self._watch.cancel()
        if self._message is not None:
            self._message.abandon("the mail server has hung up")
            self._message = None

    def _act_soon(self) -> None:
        """Act in the loop's next turn: several recipients may be settled in this one.

        What comes up while it acts is seen in this one.
        """
        if not self._will_act and not self._is_acting:
            self._will_act = True
            self._loop.call_soon(self._act)

    def _act(self) -> None:
        """Do what the client wants, and write what is to be said."""
        self._will_act = False
        if self.has_ended.done() or self._transport is None:
            return
        self._is_acting = True
        try:
            while self._may_write and self._draining is None:
                event = self._conversation.next_event()
                if event is None:
                    break
                self._obey(event)
            self._say(self._transport)
        except Exception:  # a bug of ours: the mail server tries again later
            self._tell(traceback.format_exc())
            self.hang_up()
            return
        finally:
            self._is_acting = False
        self._read_on(self._transport)

    def _say(self, transport: asyncio.Transport) -> None:
        if leaving := self._conversation.data_to_send():
            transport.write(leaving)

    def _read_on(self, transport: asyncio.Transport) -> None:
        """Read from the client, unless much of what it sent is waiting."""
        is_clogged = self._conversation.buffered > MAX_BUFFERED
        may_read = self._may_write and self._draining is None and not is_clogged
        if may_read is not self._is_reading and not transport.is_closing():
            self._is_reading = may_read
            (transport.resume_reading if may_read else transport.pause_reading)()

    def _obey(self, event: Event) -> None:
        match event:
            case RecipientNamed():
                told = partial(self._answer, event, self._loop.time())
                if self._refusal is not None:
                    told(self._refusal)
                else:
                    self._recipients.look_at(event.recipient.forward_path, told)
            case DataBegun():
                self._message = Message(
                    self._engine(), event, self._observe, self.is_there, self._settle
                )
            case DataCame(data):
                assert self._message is not None, "the machine has told of its begin"
                self._message.append(data)
                if self._message.is_full:
                    self._draining = asyncio.create_task(self._drain(self._message))
            case DataEnded():
                assert self._message is not None, "the machine has told of its begin"
                self._message.complete()
            case TransactionDropped():
                pass  # nothing has been begun for it
            case Left():
                assert self._transport is not None, "it has said QUIT"
                self._say(self._transport)
                self._transport.close()

    async def _drain(self, message: Message) -> None:
        """Read no more until the disk has taken what came."""
        await message.drain()
        self._draining = None
        self._act_soon()

    def _answer(
        self, named: RecipientNamed, began: float, refusal: Outcome | None
    ) -> None:
        """Answer RCPT. One that is refused has its outcome, and so a line in the log."""
        if self.has_ended.done():
            return
        reply = _ACCEPTED
        if refusal is not None:
            reply = reply_of(refusal)
            event = RecipientSettled(
                at=self._loop.time() - began,
                recipient=printable(named.recipient.forward_path),
                outcome=refusal,
                delays=Delays(dns=self._loop.time() - began),
                tried=(),
                queue_id=printable(named.queue_id),
            )
            with suppress(Exception):
                self._observe(event)
        self._conversation.answer(named.number, reply)
        self._act_soon()

    def is_there(self) -> bool:
        """Return whether the client is still connected, by the kernel's word."""
        if self.has_ended.done():
            return False
        return not any(seen & _HAS_GONE for _, seen in self._poll.poll(0))

    def _settle(self, recipient: int, outcome: Outcome) -> None:
        if self.has_ended.done() or self._transport is None:
            return
        self._conversation.settle(recipient, reply_of(outcome))
        if self._conversation.owes or self._conversation.buffered:
            self._act_soon()
        elif not self._is_acting:
            self._say(self._transport)

    def _look_at_clock(self) -> None:
        """See whether the client has been silent for too long."""
        silent = self._loop.time() - self._heard
        is_sending = self._message is not None and not self._message.is_complete
        if silent >= DATA_SILENCE and is_sending and self._message is not None:
            self._message.give_up("the mail server has stopped sending")
        if silent >= CLIENT_SILENCE and not self._conversation.owes:
            self.hang_up()
            return
        wait = DATA_SILENCE - silent if silent < DATA_SILENCE else DATA_SILENCE
        self._watch = self._loop.call_later(wait, self._look_at_clock)

    def _tell(self, text: str) -> None:
        with suppress(Exception):
            self._observe(Trouble(0.0, text))
