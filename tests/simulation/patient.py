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
from itertools import permutations, product
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.mx import LookupStatus
from tests.simulation.hosts import connection_to, text_of
from tests.simulation.world import TOO_MANY, own_preference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mxpolicy.routing.mx import Lookup
    from tests.simulation.hosts import Connection, Site
    from tests.simulation.world import Domain, Host

__all__ = [
    "DOT",
    "POSTFIX",
    "TWO_HOSTS",
    "UNLIMITED",
    "End",
    "Limits",
    "orders",
    "send",
]

CONNECT, PHASE, DATA, DOT = 30.0, 300.0, 120.0, 600.0


class Limits(NamedTuple):
    """How far it goes in one attempt.

    Attributes:
        addresses: How many it dials.
        sessions: How many it has.
        hosts: With how many hosts it has one.
        lookups: Seconds in which the names of a better host must fail until a refusal
            by a worse one is heeded.
        splits: Whether recipients that were too many for a host are offered to it again
            at once (RFC 5321 §4.5.3.1.10).
    """

    addresses: int
    sessions: int
    hosts: int
    lookups: float = 3600.0
    splits: bool = False


# smtp_mx_address_limit and smtp_mx_session_limit; the latter by host, since two addresses
# that put off are one host (RFC 5321 §5.1); and a sender that goes on to the end.
POSTFIX, TWO_HOSTS = Limits(5, 2, 2), Limits(5, 5, 2)
UNLIMITED = Limits(100, 100, 100)


class End(Enum):
    """What becomes of a recipient."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    BOUNCED = "bounced"


async def send(
    site: Site,
    message: str,
    recipients: Sequence[str],
    order: Sequence[tuple[Host, str]],
    limits: Limits,
) -> dict[str, End]:
    """Make one attempt.

    Args:
        order: Of the hosts and addresses that may be dialled; see `orders`.
        recipients: All of the site's one domain.
    """
    ends: dict[str, End] = {}
    addresses = sessions = 0
    visited: set[str] = set()
    (domain,) = site.world.domains
    found = await site.lookup(domain.name, "MX")
    if found.status is not LookupStatus.FOUND:
        return dict.fromkeys(recipients, End.DEFERRED)
    ours = own_preference(domain)
    hosts = [one for one in domain.hosts if one.preference < ours]
    lookups = {one.name: await site.lookup(one.name, "A") for one in hosts}
    unheard = [one for one in hosts if _fails(site, lookups[one.name], limits)]
    for host, address in order:
        if lookups[host.name].status is not LookupStatus.FOUND:
            continue
        left = [one for one in recipients if one not in ends]
        if not left or addresses == limits.addresses:
            break
        if sessions == limits.sessions or len(visited) == limits.hosts:
            break
        addresses += 1
        said: dict[str, End] = {}
        few = len(left)
        if limits.splits and host.most is not None:
            few = host.most.recipients
        if await _visit(site, address, message, left[:few], said):
            sessions += 1
            visited.add(host.name)
        for number in range(few, len(left), few):
            await _visit(site, address, message, left[number : number + few], said)
        if any(one.preference < host.preference for one in unheard):
            # A better host may yet be found in DNS, and may not refuse: another time.
            bounced = [who for who, end in said.items() if end is End.BOUNCED]
            said |= dict.fromkeys(bounced, End.DEFERRED)
        ends |= said
    # Without any host there is none, or we are the best one; a better one that has no
    # address may have one tomorrow (smtp(8): "unable to find primary relay").
    is_final = all(
        lookups[one.name].status is LookupStatus.NXDOMAIN or not one.dialable
        for one in hosts
    ) and (not hosts or ours == inf)
    other = End.BOUNCED if is_final else End.DEFERRED
    return {one: ends.get(one, other) for one in recipients}


def _fails(site: Site, found: Lookup, limits: Limits) -> bool:
    """Return whether a name cannot be looked up, and has not failed for long."""
    if found.status is not LookupStatus.FAILED:
        return False
    since = site.failing_since.setdefault(found.name, site.now())
    return site.now() - since < limits.lookups


def orders(domain: Domain) -> Iterator[list[tuple[Host, str]]]:
    """Yield every order of the domain's addresses that the preferences allow.

    Addresses of equal hosts are mixed, as smtp(8) does it.
    """
    equals: dict[int, list[tuple[Host, str]]] = {}
    for host in domain.hosts:
        if host.preference < own_preference(domain):
            equals.setdefault(host.preference, [])
            equals[host.preference] += [(host, one) for one in host.dialable]
    in_turn = [permutations(equals[one]) for one in sorted(equals)]
    for groups in product(*in_turn):
        yield [one for group in groups for one in group]


async def _visit(
    site: Site, address: str, message: str, left: list[str], ends: dict[str, End]
) -> bool:
    """Try one address, in clear where TLS fails; return whether it was a session."""
    for tls in (True, False):
        try:
            async with asyncio.timeout(CONNECT):
                connection = await connection_to(site, address)
        except (OSError, TimeoutError):
            return False
        dialog = _Dialog(connection)
        try:
            await dialog.open(tls)
            with suppress(OSError, TimeoutError):
                await dialog.transact(message, left, ends)
            return True
        except _TlsFailed:
            continue
        except (OSError, TimeoutError):
            return False
        finally:
            connection.close()
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
            reply = await self._ask(f"{text_of(message).decode()}.", DOT)
        if reply[0] == "2":
            ends.update(dict.fromkeys(accepted, End.DELIVERED))
        else:
            self._refuse(reply, accepted, ends)

    def _refuse(self, reply: str, who: list[str], ends: dict[str, End]) -> None:
        # 530 is the session's trouble to us; smtp(8) bounces it. See the README.
        is_permanent = reply[0] == "5" and not reply.startswith("530")
        if is_permanent and reply not in TOO_MANY:  # RFC 5321 §4.5.3.1.10: as 452
            ends.update(dict.fromkeys(who, End.BOUNCED))
