"""The LMTP server: Postfix's lmtp(8) or Exim hands a message over, and hears of each recipient.

RFC 2033. What is said when:

- At RCPT: what is known without dialling a host, by the engine's forecast. So no mail data
  comes for nothing. `stop` is said there, too.
- At DATA: 354 at once, as lmtp(8) waits for it for 120 s only. The host is sent the mail
  data while it still comes.
- Behind the mail data: each recipient's outcome, with status and text, in the order of
  RCPT. A reply leaves when it and all before it are known.

A client is never told 421, and its connection is never closed while it may still use it:
qmgr(8) takes both for a dead destination, and stops all mail that goes by this service.

What becomes of mail when a client goes away:

- Before the end of the mail data: nothing is delivered to any host.
- After it, and before the host's dot: the same. The mail server will send it again.
- After the host's dot: the delivery is finished, and noted in the journal. The next try of
  the mail server is answered from there.
"""

from __future__ import annotations

import asyncio
import select
import socket
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from mxpolicy.address import AddressError, parse_mailbox
from mxpolicy.delivery.delivery import Request
from mxpolicy.delivery.events import RecipientSettled, Trouble
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.transaction import DOT_TIME
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.protocol.lmtp_server import (
    DataBegun,
    DataCame,
    DataEnded,
    Left,
    LmtpReply,
    Offers,
    RecipientNamed,
    TransactionDropped,
)
from mxpolicy.protocol.lmtp_server import LmtpServer as Conversation
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.candidate import shown_of
from mxpolicy.routing.mx import DIRECTORY_FAILURE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Event, Observe
    from mxpolicy.options import LmtpOptions
    from mxpolicy.outcome import Outcome
    from mxpolicy.protocol.lmtp_server import Event as Wish

__all__ = ["LmtpServer", "reply_of"]

# Seconds for the forecast of a recipient's domain. Where it takes longer, the recipient is
# accepted, and the delivery finds out.
FORECAST_TIME = 5.0
# Forecasts under way at once, as in the access policy: each may have descriptors open.
MAX_FORECASTS = 100
# Seconds for which a domain without a refusal is not looked at again. A refusal is never
# kept: a host may have come back.
FORECAST_KEPT = 5.0
MAX_KEPT = 10_000

# Seconds without a byte of the mail data after which it is given up (RFC 5321
# §4.5.3.2.7). lmtp(8) gives up a write after 180 s (lmtp_data_xfer_timeout).
DATA_SILENCE = 300.0
# Seconds of silence after which a client is no client any more. lmtp(8) keeps an idle
# connection for seconds, and no mail server waits for so long without a word.
CLIENT_SILENCE = 3600.0

# Bytes that may wait behind a command that is being answered, before no more are read.
MAX_BUFFERED = 64 * 1024

_HAS_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL

_ACCEPTED = LmtpReply(250, EnhancedStatus(2, 1, 5), "Ok")
_STOPPING = LmtpReply(451, EnhancedStatus(4, 3, 2), "mxpolicy is stopping; try again")
_OWN_TROUBLE = LmtpReply(
    451, EnhancedStatus(4, 3, 0), "trouble of our own; see the log"
)


def reply_of(outcome: Outcome) -> LmtpReply:
    """Return what the mail server is told: the host's code, where it fits, and status.

    421 would end the session, so it becomes 451. What a host has taken is 250.
    """
    said = outcome.reply.code if outcome.reply else 0
    match outcome:
        case Delivered():
            text = f"{shown_of(outcome.relay)} said: {outcome.text}"
            return LmtpReply(250, outcome.status, text)
        case Deferred():
            code = said if said // 100 == 4 and said != 421 else 451
        case Bounced():
            code = said if said // 100 == 5 else 550
    return LmtpReply(code, outcome.status, outcome.text)


class LmtpServer:
    """Serves any number of clients, also at the same time.

    Args:
        engine: Returns the engine that delivers from now on.
        observe: Told everything that happens.
    """

    def __init__(self, engine: Callable[[], Engine], observe: Observe) -> None:
        self._engine = engine
        self._observe = observe
        self._is_stopping = False
        self._forecasts = _Forecasts(engine, self.trouble)
        self._messages: set[asyncio.Task[None]] = set()

    async def serve(self, connection: socket.socket) -> None:
        """Serve one client until it hangs up.

        Messages whose final dot is out are finished also when this is cancelled.

        Args:
            connection: Accepted, and not blocking; it is closed in the end.
        """
        loop = asyncio.get_running_loop()
        client = _Client(self, connection)
        try:
            await loop.connect_accepted_socket(lambda: client, connection)
            await client.has_ended
        finally:
            client.hang_up()

    def stop(self) -> None:
        """Take no further message: every RCPT is answered 4.3.2 from now on."""
        self._is_stopping = True

    @property
    def options(self) -> LmtpOptions:
        """Those of the engine that delivers now."""
        return self._engine().context.options.lmtp

    def offers(self) -> Offers:
        """Return what a new client is offered."""
        context = self._engine().context
        return Offers(context.helo, context.options.lmtp.message_size)

    def look_at(self, recipient: str, told: Callable[[LmtpReply], None]) -> None:
        """Call *told*, now or later, with the answer to RCPT."""
        if self._is_stopping:
            told(_STOPPING)
        else:
            self._forecasts.look_at(recipient, told)

    def begin(self, client: _Client, begun: DataBegun) -> _Message:
        """Begin to deliver a message that is about to come."""
        message = _Message(self._engine(), client, begun, self._observe)
        task = asyncio.create_task(self._finish(message))
        self._messages.add(task)
        task.add_done_callback(self._messages.discard)
        return message

    async def _finish(self, message: _Message) -> None:
        try:
            await message.finish()
        except Exception:
            self.trouble(traceback.format_exc())

    def trouble(self, text: str) -> None:
        """Tell *text* to the log."""
        with suppress(Exception):
            self._observe(Trouble(0.0, text))


class _Client(asyncio.Protocol):
    """One client: moves bytes and events between its connection and the conversation.

    Attributes:
        has_ended: Done when the connection is closed.
    """

    def __init__(self, server: LmtpServer, connection: socket.socket) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLRDHUP)
        self._conversation = Conversation(server.offers())
        self._transport: asyncio.Transport | None = None
        self._message: _Message | None = None
        self._may_write = True
        self._is_reading = True
        self._will_act = False
        self._heard = self._loop.time()
        self._watch = self._loop.call_later(DATA_SILENCE, self._look_at_clock)
        self.has_ended: asyncio.Future[None] = self._loop.create_future()

    def is_there(self) -> bool:
        """Return whether the client is still connected, by the kernel's word."""
        if self.has_ended.done() or self._transport is None:
            return False
        return not any(seen & _HAS_GONE for _, seen in self._poll.poll(0))

    def settle(self, place: int, outcome: Outcome) -> None:
        """An accepted recipient has its outcome."""
        if self.has_ended.done():
            return
        self._conversation.settle(place, reply_of(outcome))
        self._act_soon()

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
        """Act in the loop's next turn: several recipients may be settled in this one."""
        if not self._will_act:
            self._will_act = True
            self._loop.call_soon(self._act)

    def _act(self) -> None:
        """Do what the client wants, and write what is to be said."""
        self._will_act = False
        if self.has_ended.done() or self._transport is None:
            return
        try:
            while self._may_write:
                event = self._conversation.next_event()
                if event is None:
                    break
                self._obey(event)
            if leaving := self._conversation.data_to_send():
                self._transport.write(leaving)
        except Exception:  # a bug of ours: the mail server tries again later
            self._server.trouble(traceback.format_exc())
            self.hang_up()
            return
        self._read_on(self._transport)

    def _read_on(self, transport: asyncio.Transport) -> None:
        """Read from the client, unless much of it is waiting."""
        may_read = self._may_write and self._conversation.buffered <= MAX_BUFFERED
        if may_read is not self._is_reading and not transport.is_closing():
            self._is_reading = may_read
            (transport.resume_reading if may_read else transport.pause_reading)()

    def _obey(self, event: Wish) -> None:
        match event:
            case RecipientNamed(number, recipient, _):
                told = partial(self._answer, number)
                self._server.look_at(recipient.forward_path, told)
            case DataBegun():
                self._message = self._server.begin(self, event)
            case DataCame(data):
                assert self._message is not None
                self._message.append(data)
            case DataEnded():
                assert self._message is not None
                self._message.complete()
            case TransactionDropped():
                pass  # nothing has been begun for it
            case Left():
                assert self._transport is not None
                self._transport.write(self._conversation.data_to_send())
                self._transport.close()

    def _answer(self, number: int, reply: LmtpReply) -> None:
        if not self.has_ended.done():
            self._conversation.answer(number, reply)
            self._act_soon()

    def _look_at_clock(self) -> None:
        """See whether the client has been silent for too long."""
        silent = self._loop.time() - self._heard
        is_waiting = self._message is not None and self._message.is_complete
        if silent >= DATA_SILENCE and self._message is not None and not is_waiting:
            self._message.abandon("the mail server has stopped sending")
        if silent >= CLIENT_SILENCE and not (is_waiting and self._conversation.owes):
            self.hang_up()
            return
        wait = DATA_SILENCE - silent if silent < DATA_SILENCE else DATA_SILENCE
        self._watch = self._loop.call_later(wait, self._look_at_clock)


class _Message:
    """One message, from DATA to the last reply.

    Attributes:
        is_complete: The mail data has come to its end.
    """

    def __init__(
        self, engine: Engine, client: _Client, begun: DataBegun, observe: Observe
    ) -> None:
        options = engine.context.options
        self.is_complete = False
        self._client = client
        self._observe = observe
        self._limit = options.lmtp.message_size
        self._size = 0
        self._told = 0  # recipients whose outcome the client has been given
        self._mail_data: MailData | None = MailData(
            memory_limit=options.limits.message_memory
        )
        ends = options.lmtp.timeout
        request = Request(
            begun.sender.reverse_path,
            tuple(one.forward_path for one in begun.recipients),
            "",
            begun.queue_id,
            deadline=min(options.deadline, max(0.0, ends - DOT_TIME)),
            ends=ends,
            observe=self._on_event,
            may_send_dot=self._may_send_dot,
        )
        self._count = len(request.recipients)
        self._delivery: Delivery = engine.begin(request, self._mail_data)

    def append(self, data: bytes) -> None:
        """Take some mail data. What comes for nothing is dropped."""
        if self._mail_data is None:
            return
        self._size += len(data)
        try:
            if self._size > self._limit:
                raise LocalTrouble("the message is larger than lmtp.message_size")  # noqa: TRY301
            self._mail_data.append(data)
        except LocalTrouble as trouble:
            self._give_up(trouble)

    def complete(self) -> None:
        """The mail data is complete."""
        self.is_complete = True
        if self._mail_data is not None:
            self._mail_data.finish()

    def abandon(self, why: str) -> None:
        """Nobody waits for the message any more: send it nowhere, if that can be."""
        if not self.is_complete:
            self._give_up(LocalTrouble(why))
        self._delivery.cancel(why)

    async def finish(self) -> None:
        """Wait for all outcomes, and free what the message takes."""
        try:
            await self._delivery.outcomes()
        finally:
            self._tell()
            if self._mail_data is not None:
                self._mail_data.close()
                self._mail_data = None

    def _give_up(self, trouble: LocalTrouble) -> None:
        if self._mail_data is not None:
            self._mail_data.give_up(trouble)

    def _on_event(self, event: Event) -> None:
        self._observe(event)
        if isinstance(event, RecipientSettled):
            self._tell()

    def _tell(self) -> None:
        """Give the client the outcomes that it does not have, in their order."""
        while self._told < self._count:
            outcome = self._delivery.outcome(self._told)
            if outcome is None:
                return
            self._told += 1
            self._client.settle(self._told - 1, outcome)

    async def _may_send_dot(self) -> bool:
        return self._client.is_there()


class _Forecasts:
    """What is known of recipients before their mail data comes.

    Only what is certain is said: what DNS did not answer, the delivery may still find out.
    """

    def __init__(
        self, engine: Callable[[], Engine], trouble: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._trouble = trouble
        self._places = asyncio.Semaphore(MAX_FORECASTS)
        self._under_way: dict[str, asyncio.Task[LmtpReply]] = {}
        self._kept: dict[str, float] = {}  # domain -> until when nothing is against it

    def look_at(self, recipient: str, told: Callable[[LmtpReply], None]) -> None:
        """Call *told*, now or later, with the answer to RCPT."""
        try:
            key = parse_mailbox(recipient).domain
        except AddressError:
            key = recipient  # it is in the forecast
        loop = asyncio.get_running_loop()
        if self._kept.get(key, 0.0) > loop.time():
            told(_ACCEPTED)
            return
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._answer(key, recipient))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        task.add_done_callback(lambda task: told(task.result()))

    async def _answer(self, key: str, recipient: str) -> LmtpReply:
        try:
            refusal = await self._refusal(recipient)
        except Exception:
            self._trouble(traceback.format_exc())
            return _ACCEPTED
        if refusal is not None:
            return reply_of(refusal)
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[key] = asyncio.get_running_loop().time() + FORECAST_KEPT
        return _ACCEPTED

    async def _refusal(self, recipient: str) -> Outcome | None:
        async with self._places:
            forecast = await self._engine().forecast("", "", recipient, FORECAST_TIME)
        plan = forecast.plan
        if plan.refusal is None or plan.unresolved:
            return None
        return None if plan.refusal.status == DIRECTORY_FAILURE else plan.refusal
