"""The LMTP server: a mail server hands a message over, and hears of each recipient.

RFC 2033, for Postfix's lmtp(8) and Exim's lmtp transport. What is said when:

- At RCPT: what is known without dialling a host. So no mail data comes for nothing. That
  the daemon is stopping is said there, too.
- At DATA: 354 at once, as lmtp(8) waits for it for 120 s only. The host is sent the mail
  data while it still comes.
- Behind the mail data: each recipient's outcome, with status and text, in the order of
  RCPT. A reply leaves when it and all before it are known.

A client is never told 421, and its connection is never closed while it may still use it.
qmgr(8) takes both for a dead destination, and stops all mail that goes by this service.
Only clients that may not send are hung up on, when there are many of them.

What becomes of mail when its client goes away:

- Before the end of the mail data: nothing is delivered to any host.
- After it, and before the host's dot: the same. The mail server will send it again.
- After the host's dot: the delivery is finished, and noted in the journal. The next try of
  the mail server is answered from there.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.delivery.events import Trouble
from mxpolicy.server.lmtp.client import Client
from mxpolicy.server.lmtp.recipients import Recipients
from mxpolicy.server.lmtp.users import check_user

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.outcome import Outcome

__all__ = ["LmtpServer"]

# Clients at once that may not send: as many as a mail server has (maxproc in contrib).
# They are told so, because the option may be wrong. But they take the places of others.
MAX_STRANGERS = 200
# Seconds for which the same is not told again of clients that may not send.
QUIET = 60.0


class LmtpServer:
    """Serves any number of clients, also at the same time.

    Args:
        engine: Returns the engine that delivers from now on.
        observe: Told everything that happens.
        strangers: Clients at once that may not send; beyond, they are hung up on.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        observe: Observe,
        strangers: int = MAX_STRANGERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._quiet_until: dict[str, float] = {}  # {what was told: until when}
        self._most_strangers = strangers
        self._strangers = 0
        self._engine = engine
        self._observe = observe
        self._recipients = Recipients(engine, self._trouble)

    async def serve(self, connection: socket.socket) -> None:
        """Serve one client until it hangs up.

        A message whose final dot is out is delivered to its end also when this is
        cancelled.

        Args:
            connection: Accepted, and not blocking.
        """
        users = self._engine().context.options.listen.lmtp.users
        refusal = check_user(connection, users)
        if refusal is None:
            await self._serve(connection)
        elif self._strangers < self._most_strangers:
            self._tell_of_stranger(refusal.text)
            self._strangers += 1
            try:
                await self._serve(connection, refusal)
            finally:
                self._strangers -= 1

    async def _serve(
        self, connection: socket.socket, refusal: Outcome | None = None
    ) -> None:
        client = Client(
            self._engine, self._recipients, self._observe, connection, refusal
        )
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: client, connection)
            await client.has_ended
        finally:
            client.hang_up()

    def stop(self) -> None:
        """Take no further message: every RCPT is answered 4.3.2 from now on."""
        self._recipients.stop()

    def _tell_of_stranger(self, text: str) -> None:
        """Tell it the first time, and then once a minute: it may come back at once."""
        now = self._clock()
        if now >= self._quiet_until.get(text, now):
            if len(self._quiet_until) >= MAX_STRANGERS:
                self._quiet_until.clear()
            self._quiet_until[text] = now + QUIET
            self._trouble(text)

    def _trouble(self, text: str) -> None:
        with suppress(Exception):
            self._observe(Trouble(0.0, text))
