"""Accepts the clients of a listening socket, each served in a task of its own.

A process without descriptors or memory cannot accept, and a client that waits keeps the
socket readable. So the loop stops for a moment, and the clients it has are served on.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import traceback
from contextlib import suppress
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from mxpolicy.errors import EXHAUSTED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Network

    from mxpolicy.net.listen import Socket

    Serve = Callable[[socket.socket], Awaitable[None]]

__all__ = ["Acceptor"]

# Clients accepted in one turn of the event loop: clients that are served wait meanwhile.
_AT_ONCE = 32
# Seconds without accepting, after it has failed.
PAUSE = 0.25
# Seconds for which the same trouble is not told again.
QUIET = 60.0
# Addresses that may not connect, and were told.
_FORBIDDEN_KEPT = 100

# Of the client, which is gone already (accept(2), "Error handling").
_OF_THE_CLIENT = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)


class Acceptor:
    """Accepts the clients of one socket, each served in a task of its own.

    Args:
        listening: Closed in the end.
        serve: Serves one client to its end; this closes the connection. It may be
            cancelled.
        tell: Takes a line for the log.
        most: Clients at once. The next one waits until one of them has gone.
        allow: Networks whose clients are served, where they come through no file.

    Attributes:
        listening, most: As given.
    """

    def __init__(
        self,
        listening: Socket,
        serve: Serve,
        tell: Callable[[str], None],
        *,
        most: int,
        allow: Iterable[str] = (),
    ) -> None:
        self.listening = listening
        self._serve = serve
        self._tell = tell
        self.most = most
        self._allow = _networks(allow)
        self._clients: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._resumes: asyncio.TimerHandle | None = None
        self._is_full = False
        # {trouble: when it was last met}, {address: when it was last told}
        self._last: dict[str, float] = {}
        self._forbidden: dict[str, float] = {}
        self._begin()

    @property
    def clients(self) -> int:
        """How many are served now."""
        return len(self._clients)

    def allow(self, networks: Iterable[str]) -> None:
        """Serve clients of *networks* from now on; those that are served may stay."""
        self._allow = _networks(networks)

    def _begin(self) -> None:
        self._loop.add_reader(self.listening.socket, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if len(self._clients) >= self.most:
                self._is_full = True
                self._loop.remove_reader(self.listening.socket)
                self._tell_once("full", f"{self.most} clients at once: more must wait")
                return
            try:
                client, address = self.listening.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OF_THE_CLIENT:
                    continue
                self._pause(error)
                return
            self._take(client, address)

    def _pause(self, error: OSError) -> None:
        self._loop.remove_reader(self.listening.socket)
        self._resumes = self._loop.call_later(PAUSE, self._resume)
        is_known = error.errno in EXHAUSTED
        why = error.strerror if is_known else f"{type(error).__name__}: {error}"
        self._tell_once("accept", f"clients must wait: {why}")

    def _resume(self) -> None:
        self._resumes = None
        self._begin()

    def _take(self, client: socket.socket, address: object) -> None:
        client.setblocking(False)
        if isinstance(address, tuple):
            if not self._is_allowed(address[0]):
                self._tell_forbidden(address[0])
                client.close()
                return
            # One that has vanished would be served for ever. And answers are small.
            with suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._serve_one(client))
        self._clients.add(task)
        task.add_done_callback(self._has_gone)

    def _is_allowed(self, text: str) -> bool:
        address: IPv4Address | IPv6Address
        address = ip_address(text.partition("%")[0])
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        return any(address in network for network in self._allow)

    async def _serve_one(self, client: socket.socket) -> None:
        with client:
            try:
                await self._serve(client)
            except ConnectionError:
                pass  # it has gone
            except Exception:
                self._tell(f"{self.listening.at}: {traceback.format_exc()}")

    def _has_gone(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        if self._is_full:
            self._is_full = False
            self._begin()

    def _tell_once(self, what: str, text: str) -> None:
        """Tell it the first time, and again when there was none of it for a while."""
        now = self._loop.time()
        last = self._last.get(what)
        self._last[what] = now
        if last is None or now - last > QUIET:
            self._tell(f"{self.listening.at}: {text}")

    def _tell_forbidden(self, address: str) -> None:
        """Tell it the first time, and then now and then."""
        now = self._loop.time()
        last = self._forbidden.get(address)
        if last is None or now - last > QUIET:
            if len(self._forbidden) >= _FORBIDDEN_KEPT:
                self._forbidden.clear()
            self._forbidden[address] = now
            self._tell(
                f"{self.listening.at}: {address} may not connect (listen: allow)"
            )

    def close(self) -> None:
        """Accept no more; those that are served are served on."""
        if self.listening.socket.fileno() < 0:
            return  # closed before
        self._is_full = False
        if self._resumes is not None:
            self._resumes.cancel()
        self._loop.remove_reader(self.listening.socket)
        self.listening.close()

    async def finish(self, within: float) -> None:
        """Let the clients that are served end within so many seconds, then end them."""
        if self._clients:
            await asyncio.wait(self._clients, timeout=within)
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)


def _networks(texts: Iterable[str]) -> list[IPv4Network | IPv6Network]:
    return [ip_network(one) for one in texts]
