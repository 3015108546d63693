"""One message that was handed over, from its descriptor to its outcomes."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.errors import LocalTrouble, RemoteProtocolError
from mxpolicy.protocol.handover_request import HandoverState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.mail_data import MailData
    from mxpolicy.delivery.request import Request
    from mxpolicy.outcome import Outcome
    from mxpolicy.server.handover.client import Client

__all__ = ["Message"]

# Seconds for the word that the mail server lives. The client may have to read proc(5)
# on a machine that is out of breath.
ASK_TIME = 10.0

_GONE = "the mail server that started us has gone away"


class Message:
    """One message, from the descriptor to its outcomes."""

    def __init__(self, client: Client, engine: Engine, request: Request) -> None:
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
        except Exception as error:
            trouble = LocalTrouble(f"{type(error).__name__}: {error}")
            raise  # the loop logs where it comes from
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
