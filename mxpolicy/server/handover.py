"""The hand-over server: ``mxpolicy pipe`` gives it messages, and waits for the answers.

`mxpolicy.protocol.handover_request` has the protocol, `mxpolicy.handover` is the client.
What is answered is what a process that works alone would have answered:

- The command line is understood by the same code. One that is not understood is refused,
  and the client then says what is wrong with it.
- The deadline runs from the moment in which the client came.
- Just before each final dot the client is asked whether its mail server lives. No final
  dot leaves without its word (`ASK_TIME`).

The engine is at work while the message still comes. When the client goes away before the
final dot, no host has the message, and the mail server tries again. After the dot the
delivery goes on to its outcome, and the journal keeps it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import traceback
from array import array
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.delivery.delivery import Request
from mxpolicy.delivery.events import Trouble
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.errors import LocalTrouble, RemoteProtocolError, UsageError
from mxpolicy.net.shared_descriptor import SharedDescriptors
from mxpolicy.outcome import EXIT_DEFER
from mxpolicy.pipe_command import ALARM_SLACK, parse_arguments, time_needed
from mxpolicy.protocol.handover_request import Handover, HandoverState
from mxpolicy.protocol.pipe_answer import answer, answer_line, deferral

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.outcome import Outcome
    from mxpolicy.pipe_command import Arguments
    from mxpolicy.protocol.handover_request import HandoverRequest

__all__ = ["HandoverServer"]

# Seconds until the request is here, and then until the descriptor is. The client gives
# all of it 2 s, and may have been stopped in between.
REQUEST_TIME = 10.0
COMMIT_TIME = 10.0

# Seconds for the word that the mail server lives. The client may have to read proc(5)
# on a machine that is out of breath.
ASK_TIME = 10.0

# Seconds that the client waits longer than we work.
CLIENT_SLACK = 5.0

# Messages at once. Each takes a process, a shell and two descriptors of the mail server's
# machine, and pipe transports have 60 to 200 of them. It is a bound, not a measure.
PLACES = 2000

_READ_SIZE = 65536

# More than one, so that a client that sends more is seen, and not cut short.
_DESCRIPTORS = 4
_INT = 4  # bytes of a descriptor in SCM_RIGHTS

_GONE = "the mail server that started us has gone away"


class HandoverServer:
    """Takes messages from any number of clients, also at the same time.

    Args:
        engine: Returns the engine that is to be used for the next message.
        observe: Told everything that happens to the messages, and every trouble.
        places: Messages at once; beyond, clients deliver by themselves.
        clock: Seconds, monotonic, in step with the event loop's.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        observe: Observe,
        places: int = PLACES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._observe = observe
        self._places = places
        self._clock = clock
        self._descriptors = SharedDescriptors()
        self._taken = 0
        self._is_stopping = False
        # Those that have a place, and have not given their message yet.
        self._promised: set[_Client] = set()

    def stop(self) -> None:
        """Take no message any more: clients that have not given theirs keep it."""
        self._is_stopping = True
        for client in self._promised:
            client.news.set()

    async def serve(self, connection: socket.socket) -> None:
        """Serve one client to its end; the caller closes *connection*.

        When the caller cancels this, recipients without an outcome are deferred.

        Args:
            connection: A unix stream, non-blocking.
        """
        client = _Client(connection)
        try:
            await self._serve(client)
        finally:
            client.hear_no_more()

    async def _serve(self, client: _Client) -> None:
        began = self._clock()
        try:
            async with asyncio.timeout(REQUEST_TIME):
                request = await client.request()
            arguments = parse_arguments(request.argv, request.environ)
        except RemoteProtocolError as error:
            if client.handover.state is HandoverState.REQUEST:
                client.refuse(str(error))
            return
        except UsageError:
            client.refuse("its command line is wrong")
            return
        except (OSError, EOFError, TimeoutError):
            return
        if self._is_stopping or self._taken >= self._places:
            client.refuse("stopping" if self._is_stopping else "full")
            return
        self._taken += 1
        try:
            await self._take(client, arguments, began)
        finally:
            self._taken -= 1

    async def _take(self, client: _Client, arguments: Arguments, began: float) -> None:
        """Say that there is a place; deliver what comes, and answer."""
        engine = self._engine()
        options = engine.context.options
        ends = time_needed(arguments.deadline, options)
        try:
            client.accept(ends + ALARM_SLACK + CLIENT_SLACK)
            async with asyncio.timeout(COMMIT_TIME):
                descriptor = await self._descriptor(client)
        except (RemoteProtocolError, OSError, EOFError, TimeoutError):
            return
        if descriptor is None:
            return
        request = Request(
            sender=arguments.sender,
            recipients=arguments.recipients,
            nexthop=arguments.nexthop,
            queue_id=arguments.queue_id,
            deadline=began + (arguments.deadline or options.deadline) - self._clock(),
            ends=began + ends - self._clock(),
            observe=self._observe,
        )
        message = _Message(client, engine, request)
        status, text = EXIT_DEFER, "4.3.0 mxpolicy: the daemon has stopped"
        try:
            async with asyncio.timeout(request.ends + ALARM_SLACK):
                await message.deliver(self._descriptors.chunks(descriptor))
        except TimeoutError:
            text = "4.3.0 mxpolicy: out of time: its own deadline has passed"
        except Exception as error:
            text = deferral(error)
            if not isinstance(error, LocalTrouble):
                trouble = traceback.format_exc()
                self._observe(Trouble(0.0, trouble, arguments.queue_id))
        finally:
            os.close(descriptor)
            if outcomes := message.outcomes():
                status, text = answer(outcomes)
            client.answer(status, answer_line(status, text))

    async def _descriptor(self, client: _Client) -> int | None:
        """Return the descriptor of the message; None when we stop before it is here."""
        self._promised.add(client)
        try:
            while True:
                client.news.clear()
                if (descriptor := client.receive()) is not None:
                    return descriptor
                if self._is_stopping:
                    # It may come in this very moment: then it stays in the socket, and
                    # goes with it. The client has no answer; the mail server tries again.
                    client.refuse("stopping")
                    return None
                await client.wait()
        finally:
            self._promised.discard(client)


class _Client:
    """The connection to a client, and the bytes on it.

    Attributes:
        handover: Where the hand-over is.
        news: Set when the client has said something, and by others to wake `wait`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.handover = Handover()
        self.news = asyncio.Event()
        self._connection = connection
        self._hear: Callable[[], None] | None = None

    async def request(self) -> HandoverRequest:
        """Return the request; raise as `receive`."""
        while self.handover.request is None:
            self.news.clear()
            self.receive()
            if self.handover.state is HandoverState.REQUEST:
                await self.wait()
        return self.handover.request

    async def wait(self) -> None:
        """Wait until there is something to receive, or `news` is set."""
        self.hear(self.news.set)
        await self.news.wait()

    def hear(self, told: Callable[[], None]) -> None:
        """Let *told* be called from now on, as long as there is something to receive."""
        if self._hear is None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._connection.fileno(), self._is_readable)
        self._hear = told

    def hear_no_more(self) -> None:
        """Call nothing any more; what is not received would be told for ever."""
        if self._hear is not None:
            self._hear = None
            asyncio.get_running_loop().remove_reader(self._connection.fileno())

    def _is_readable(self) -> None:
        if self._hear is not None:
            self._hear()

    def receive(self) -> int | None:
        """Take what is there; return the message's descriptor when it came.

        There may be more, and then the loop says so again.

        Raises:
            EOFError: The client has closed the connection.
            RemoteProtocolError: It broke the protocol.
            OSError: The connection is broken.
        """
        room = socket.CMSG_SPACE(_DESCRIPTORS * _INT)
        flags = socket.MSG_CMSG_CLOEXEC
        try:
            data, ancillary, cut, _ = self._connection.recvmsg(_READ_SIZE, room, flags)
        except BlockingIOError:
            return None
        descriptors = _received(ancillary)
        # The kernel has closed those that we have no room for, or no more descriptors.
        # Then it was never one: whatever is missing may have been the message.
        count = len(descriptors) + (2 if cut & socket.MSG_CTRUNC else 0)
        try:
            if not data:
                self.handover.receive_eof()
                raise EOFError
            self.handover.receive_data(data, count)
            return descriptors.pop() if descriptors else None  # or it would have raised
        finally:
            for one in descriptors:
                os.close(one)

    def accept(self, seconds: float) -> None:
        """Say that there is a place."""
        self._send(self.handover.accept(seconds))

    def refuse(self, reason: str) -> None:
        """Have the client deliver by itself; nothing happens if it has gone."""
        with suppress(OSError):
            self._send(self.handover.refuse(reason))

    def ask(self) -> None:
        """Ask whether its mail server lives."""
        self._send(self.handover.ask())

    def answer(self, status: int, line: bytes) -> None:
        """Answer, unless it has gone."""
        if self.handover.state is not HandoverState.ENDED:
            with suppress(OSError):
                self._send(self.handover.answer(status, line))

    def _send(self, data: bytes) -> None:
        # All of it fits into the socket's buffer, or the client has read nothing for long.
        self._connection.sendall(data)


class _Message:
    """One message, from the descriptor to its outcomes."""

    def __init__(self, client: _Client, engine: Engine, request: Request) -> None:
        self._client = client
        self._engine = engine
        self._request = request._replace(may_send_dot=self._lives)
        self._delivery: Delivery | None = None
        self._has_begun = asyncio.Event()
        self._trouble: LocalTrouble | None = None
        self._asking = asyncio.Lock()
        self._heard = asyncio.Event()

    def outcomes(self) -> list[tuple[str, Outcome]] | None:
        """Return each recipient with its outcome, None until all have one."""
        return self._delivery.settled() if self._delivery else None

    async def deliver(self, chunks: AsyncIterator[bytes]) -> None:
        """Deliver what *chunks* gives; then `outcomes` has them all.

        Raises:
            LocalTrouble: There is no message.
        """
        mail_data = self._engine.new_mail_data()
        reading = asyncio.create_task(self._read(chunks, mail_data))
        self._client.hear(partial(self._hear, reading))
        try:
            await self._has_begun.wait()
            if self._trouble is not None:
                raise self._trouble
            self._delivery = self._engine.begin(self._request, mail_data)
            await self._delivery.outcomes()
        finally:
            self._client.hear_no_more()
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
            mail_data.close()

    async def _read(self, chunks: AsyncIterator[bytes], mail_data: MailData) -> None:
        """Let *mail_data* grow to its end. The end of *chunks* proves nothing: `_lives`."""
        trouble = LocalTrouble(_GONE)
        try:
            async for data in chunks:
                mail_data.append(data)
                self._has_begun.set()
                await mail_data.drain()
            if self._has_begun.is_set():
                mail_data.finish()
                return
            trouble = LocalTrouble("no message: standard input is empty")
        except MemoryError:
            trouble = LocalTrouble("no memory for the message")
        except LocalTrouble as error:
            trouble = error
        finally:
            if mail_data.size is None:
                self._trouble = trouble
                mail_data.give_up(trouble)
                self._has_begun.set()

    def _hear(self, reading: asyncio.Task[None]) -> None:
        """Hear the client; when it goes, leave to the mail server what still can be left."""
        try:
            self._client.receive()
        except (EOFError, OSError, RemoteProtocolError):
            self._client.hear_no_more()
            self._client.handover.receive_eof()
            if self._delivery is not None:
                self._delivery.cancel(_GONE)
            reading.cancel()
        self._heard.set()

    async def _lives(self) -> bool:
        """Return whether the client says that its mail server lives.

        The question leaves when this is called, so after the end of the message where the
        final dot is due. An answer to an earlier question counts for nothing.
        """
        handover = self._client.handover
        async with self._asking:
            try:
                async with asyncio.timeout(ASK_TIME):
                    await self._word()
                    if handover.state is HandoverState.WORK:
                        self._client.ask()
                    await self._word()
            except (OSError, TimeoutError):
                handover.receive_eof()  # what it says later is too late
        return handover.state is HandoverState.WORK

    async def _word(self) -> None:
        """Wait until no question is open."""
        while self._client.handover.state is HandoverState.ASKED:
            self._heard.clear()
            await self._heard.wait()


def _received(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors that came with some data."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            ints = array("i")
            ints.frombytes(data[: len(data) - len(data) % ints.itemsize])
            found.extend(ints)
    return found
