"""The patient sender: what the law compares with.

In order of preference, one after the other, each wait as long as RFC 5321 §4.5.3.2
allows, no memory of what was: as Postfix's smtp(8) does it, with its ends: a 4yz goes on
to the next host, a 5yz bounces, a final dot without an answer goes on.
TLS that fails is left out on a second connection, as Exim does it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.mx import LookupStatus
from tests.simulation.hosts import connection_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.simulation.hosts import Connection, Site

__all__ = ["POSTFIX", "UNLIMITED", "End", "Limits", "send"]

CONNECT, PHASE, DATA, DOT = 30.0, 300.0, 120.0, 600.0


class Limits(NamedTuple):
    """How far it goes in one attempt."""

    addresses: int
    sessions: int


# smtp_mx_address_limit and smtp_mx_session_limit; and a sender that goes on to the end.
POSTFIX, UNLIMITED = Limits(5, 2), Limits(100, 100)


class End(Enum):
    """What becomes of a recipient."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    BOUNCED = "bounced"


async def send(
    site: Site, message: str, recipients: Sequence[str], limits: Limits
) -> dict[str, End]:
    """Make one attempt, at the site's hosts in the order in which they stand there."""
    ends: dict[str, End] = {}
    sessions = addresses = missing = 0
    for host in site.world.hosts:
        found = await site.lookup(host.name, "A")
        if found.status is not LookupStatus.FOUND:
            missing += found.status is not LookupStatus.FAILED
            continue
        for address in host.addresses:
            left = [one for one in recipients if one not in ends]
            if not left or addresses == limits.addresses:
                break
            if sessions == limits.sessions:
                break
            addresses += 1
            sessions += await _visit(site, address, message, left, ends)
    other = End.BOUNCED if missing == len(site.world.hosts) else End.DEFERRED
    return {one: ends.get(one, other) for one in recipients}


async def _visit(
    site: Site, address: str, message: str, left: list[str], ends: dict[str, End]
) -> bool:
    """Try one address, in clear where TLS fails; return whether it was a session."""
    for tls in (True, False):
        dialog = None
        try:
            async with asyncio.timeout(CONNECT):
                dialog = _Dialog(await connection_to(site, address))
            await dialog.open(tls)
        except _TlsFailed:
            continue
        except (OSError, TimeoutError):
            return False
        with suppress(OSError, TimeoutError):
            await dialog.transact(message, left, ends)
        return True
    return False


class _TlsFailed(Exception):
    pass


class _Dialog:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _reply(self, seconds: float = PHASE) -> str:
        async with asyncio.timeout(seconds):
            while True:
                lines = self._connection.inbox.split(b"\r\n")
                for place, line in enumerate(lines[:-1]):
                    if line[3:4] != b"-":
                        self._connection.inbox = b"\r\n".join(lines[place + 1 :])
                        if line.startswith(b"421"):
                            raise ConnectionResetError
                        self._whole = b" ".join(lines[: place + 1])
                        return line.decode()
                if self._connection.at_eof:
                    raise ConnectionResetError
                self._connection._woken.clear()
                await self._connection._woken.wait()

    async def _ask(self, line: str, seconds: float = PHASE) -> str:
        self._connection.feed(line.encode() + b"\r\n")
        return await self._reply(seconds)

    async def open(self, tls: bool) -> None:
        if (await self._reply())[0] != "2" or (await self._ask("EHLO me"))[0] != "2":
            raise ConnectionResetError
        if not tls or b"STARTTLS" not in self._whole:
            return
        if (await self._ask("STARTTLS"))[0] != "2":
            return
        try:
            async with asyncio.timeout(PHASE):
                await self._connection.handshake()
        except (OSError, TimeoutError):
            raise _TlsFailed from None
        if (await self._ask("EHLO me"))[0] != "2":
            raise ConnectionResetError

    async def transact(
        self, message: str, left: list[str], ends: dict[str, End]
    ) -> None:
        reply = await self._ask("MAIL FROM:<alice@example.net>")
        if reply[0] != "2":
            self._refuse(reply, left, ends)
            return
        accepted = []
        for one in left:
            reply = await self._ask(f"RCPT TO:<{one}>")
            if reply[0] == "2":
                accepted.append(one)
            else:
                self._refuse(reply, [one], ends)
        if not accepted:
            return
        reply = await self._ask("DATA", DATA)
        if reply[0] == "3":
            reply = await self._ask(f"X-Message: {message}\r\n\r\ntext\r\n.", DOT)
        if reply[0] == "2":
            ends.update(dict.fromkeys(accepted, End.DELIVERED))
        else:
            self._refuse(reply, accepted, ends)

    def _refuse(self, reply: str, who: list[str], ends: dict[str, End]) -> None:
        # 530 is the session's trouble to us; smtp(8) bounces it. See the README.
        if reply[0] == "5" and not reply.startswith("530"):
            ends.update(dict.fromkeys(who, End.BOUNCED))
