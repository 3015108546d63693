"""The hand-over server: ``mxpolicy pipe`` gives it messages, and waits for the answers.

`mxpolicy.protocol.handover_request` has the protocol, `mxpolicy.handover` is the client.
What is answered is what a process that works alone would have answered:

- The command line is understood by the same code. One that is not understood is refused,
  and the client then says what is wrong with it.
- The deadline runs from the moment in which the client came.
- Just before each final dot the client is asked whether its mail server lives. No final
  dot leaves without its word (`mxpolicy.server.handover.message.ASK_TIME`).

The engine is at work while the message still comes. When the client goes away before the
final dot, no host has the message, and the mail server tries again. After the dot the
delivery goes on to its outcome, and the journal keeps it.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from typing import TYPE_CHECKING

from mxpolicy.delivery.events import Trouble
from mxpolicy.delivery.request import Request
from mxpolicy.errors import LocalTrouble, RemoteProtocolError, UsageError
from mxpolicy.net.shared_descriptor import SharedDescriptors
from mxpolicy.outcome import EXIT_DEFER
from mxpolicy.pipe_command import ALARM_SLACK, parse_arguments, time_needed
from mxpolicy.protocol.handover_request import HandoverState
from mxpolicy.protocol.pipe_answer import answer, answer_line, deferral
from mxpolicy.server.handover.client import Client
from mxpolicy.server.handover.message import Message

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.pipe_command import Arguments

__all__ = ["HandoverServer"]

# Seconds until the request is here, and then until the descriptor is. The client gives
# all of it 2 s, and may have been stopped in between.
REQUEST_TIME = 10.0
COMMIT_TIME = 10.0

# Seconds that the client waits longer than we work.
CLIENT_SLACK = 5.0

# Messages at once. Each takes a process, a shell and two descriptors of the mail server's
# machine, and pipe transports have 60 to 200 of them. It is a bound, not a measure.
PLACES = 2000


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
        self._promised: set[Client] = set()

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
        client = Client(connection)
        try:
            await self._serve(client)
        finally:
            client.hear_no_more()

    async def _serve(self, client: Client) -> None:
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

    async def _take(self, client: Client, arguments: Arguments, began: float) -> None:
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
        message = Message(client, engine, request)
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

    async def _descriptor(self, client: Client) -> int | None:
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
