"""The doors of the daemon, and the sockets at which each is reached.

A door speaks one protocol (`mxpolicy.server`) and knows nothing of sockets that listen.
The option ``listen`` says which there are. What it says is done as a whole or not at
all, at the beginning and when the configuration is read again: a socket that is the same
as before goes on, with its clients.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mxpolicy.errors import ListenError
from mxpolicy.net.acceptor import Acceptor
from mxpolicy.net.listen import Socket, listen_at, listen_at_given
from mxpolicy.options import LOOPBACK, UNIX
from mxpolicy.server.access_policy import AccessPolicyServer
from mxpolicy.server.handover import HandoverServer
from mxpolicy.server.lmtp import LmtpServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Observe
    from mxpolicy.options import ListenOptions, Options

__all__ = [
    "DEFAULT_DIRECTORY",
    "DOORS",
    "Door",
    "Doors",
    "runtime_directory",
    "socket_address",
]

DEFAULT_DIRECTORY = "/run/mxpolicy"


class Door(Protocol):
    """What `mxpolicy.server` has for each protocol."""

    async def serve(self, connection: socket.socket) -> None:
        """Serve one client to its end; it may be cancelled. The caller closes it."""
        ...

    def stop(self) -> None:
        """Take no further message; answer as the protocol has it."""
        ...


Make = Callable[[Callable[[], "Engine"], "Observe"], Door]

DOORS: Mapping[str, Make] = {
    "pipe": HandoverServer,
    "lmtp": LmtpServer,
    "policy": AccessPolicyServer,
}
"""Each door by its name, which is also that of its option and of its socket."""


def runtime_directory(environ: Mapping[str, str]) -> str:
    """Return where sockets are; systemd makes it, the first of several (systemd.exec(5))."""
    return environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or DEFAULT_DIRECTORY


def socket_address(door: str, word: str, directory: str) -> str:
    """Return the path, or ``ADDRESS:PORT``, that a *word* of ``listen.DOOR.at`` means.

    Args:
        door: Its name.
        word: One of the option's.
        directory: See `runtime_directory`.
    """
    return os.path.join(directory, door) if word == UNIX else word


class _Wanted(NamedTuple):
    """A socket that the configuration wants, by door and address."""

    group: str
    allow: tuple[str, ...]


class _Made(NamedTuple):
    """A socket that was wanted, and is there."""

    wanted: _Wanted
    acceptor: Acceptor


class Doors:
    """The doors, open.

    Args:
        engine: Returns the engine that takes the next message.
        observe: Told what the doors have to tell.
        tell: Takes a line for the log.
        directory: Where the sockets are that the configuration calls ``unix``.
        given: Name and socket of those that are open already; their paths stay.

    Raises:
        ListenError: One of *given* cannot serve.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        observe: Observe,
        tell: Callable[[str], None],
        directory: str,
        given: Iterable[tuple[str, socket.socket]] = (),
    ) -> None:
        self._tell = tell
        self._directory = directory
        self._doors = {name: make(engine, observe) for name, make in DOORS.items()}
        self._given = [_named(name, listening) for name, listening in given]
        self._of_given: list[tuple[str, Acceptor]] = []
        self._made: dict[tuple[str, str], _Made] = {}
        self._closed: list[Acceptor] = []  # with clients that are still served

    @property
    def sockets(self) -> list[str]:
        """``DOOR at ADDRESS`` for each socket."""
        given = [f"{name} at {one.listening.at}" for name, one in self._of_given]
        return given + [f"{name} at {at}" for name, at in self._made]

    @property
    def missing(self) -> list[str]:
        """Those of `sockets` whose files somebody has removed or replaced, to be made anew."""
        return [
            f"{name} at {at}"
            for (name, at), one in self._made.items()
            if not one.acceptor.listening.is_reachable
        ]

    @property
    def lost(self) -> list[str]:
        """The same of sockets that were given: their files are not ours to make."""
        return [
            f"{name} at {one.listening.at}"
            for name, one in self._of_given
            if not one.listening.is_reachable
        ]

    def apply(self, options: Options) -> None:
        """Listen at what *options* want, and at nothing else that was wanted before.

        Raises:
            ListenError: All is as it was before.
        """
        wanted = self._wanted(options.listen)
        opened: dict[tuple[str, str], Socket] = {}
        regrouped: list[tuple[Socket, str]] = []
        try:
            for key, one in wanted.items():
                made = self._made.get(key)
                if made is None or not made.acceptor.listening.is_reachable:
                    opened[key] = listen_at(key[1], one.group)
                elif made.wanted.group != one.group:
                    made.acceptor.listening.give(one.group)
                    regrouped.append((made.acceptor.listening, made.wanted.group))
        except ListenError:
            for each in opened.values():
                each.close()
            for each, group in regrouped:
                each.give(group)
            raise
        self._close_all_but(wanted.keys() - opened.keys())
        most = _most_clients(options, len(wanted) + len(self._given))
        for key, one in wanted.items():
            if key in opened:
                acceptor = self._acceptor(key[0], opened[key], most, one.allow)
            else:
                acceptor = self._made[key].acceptor
                acceptor.most = most
                acceptor.allow(one.allow)
            self._made[key] = _Made(one, acceptor)
        self._apply_to_given(options.listen, most)

    def _wanted(self, options: ListenOptions) -> dict[tuple[str, str], _Wanted]:
        """Return what *options* want beside the sockets that are given."""
        found = {}
        given = {(name, one.at) for name, one in self._given}
        has_given = {name for name, _ in given}
        for name in self._doors:
            section = getattr(options, name)
            for word in section.at:
                if word == UNIX and name in has_given:
                    continue
                at = socket_address(name, word, self._directory)
                if (name, at) not in given:
                    found[name, at] = _Wanted(section.group, _allowed(section))
        return found

    def _close_all_but(self, wanted: Collection[tuple[str, str]]) -> None:
        for key in self._made.keys() - wanted:
            acceptor = self._made.pop(key).acceptor
            acceptor.close()
            self._closed.append(acceptor)
        self._closed = [one for one in self._closed if one.clients]

    def _apply_to_given(self, options: ListenOptions, most: int) -> None:
        if not self._of_given:
            self._of_given = [
                (name, self._acceptor(name, one, most)) for name, one in self._given
            ]
        for name, acceptor in self._of_given:
            section = getattr(options, name)
            acceptor.most = most
            acceptor.allow(_allowed(section))
            if section.group and acceptor.listening.is_local:
                self._tell(
                    f"{acceptor.listening.at}: listen.{name}.group has no effect on a"
                    " socket of systemd's; write SocketGroup= in its unit"
                )

    def _acceptor(
        self, name: str, socket_: Socket, most: int, allow: tuple[str, ...] = ()
    ) -> Acceptor:
        serve = self._doors[name].serve
        return Acceptor(socket_, serve, self._tell, most=most, allow=allow)

    def _acceptors(self) -> Iterator[Acceptor]:
        yield from self._closed
        yield from (acceptor for _, acceptor in self._of_given)
        yield from (one.acceptor for one in self._made.values())

    def stop(self) -> None:
        """Take no further message; clients are accepted and answered as before.

        A mail server that is refused the connection puts off all mail of the door. One
        that is answered puts off the message.
        """
        for door in self._doors.values():
            door.stop()

    async def close(self, within: float) -> None:
        """Give the clients so many seconds to read their answers, then close all."""
        acceptors = list(self._acceptors())
        for one in acceptors:
            one.close()
        await asyncio.gather(*(one.finish(within) for one in acceptors))


def _allowed(section: object) -> tuple[str, ...]:
    """Return the networks; the door of ``pipe`` has no TCP, and no option for it."""
    found: tuple[str, ...] = getattr(section, "allow", LOOPBACK)
    return found


def _named(name: str, listening: socket.socket) -> tuple[str, Socket]:
    """Return the door's name and the socket, by the name that systemd gives it."""
    given = listen_at_given(listening)
    for one in (name, os.path.basename(given.at)):
        if one == "pipe" and not given.is_local:
            raise ListenError(given.at, "no message can be handed over by TCP")
        if one in DOORS:
            return one, given
    known = ", ".join(DOORS)
    raise ListenError(
        given.at, f"its FileDescriptorName= is '{name}'; write one of: {known}"
    )


def _most_clients(options: Options, acceptors: int) -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(options.limits.clients, max(1, soft // 2 // max(1, acceptors)))
