"""The mail hosts of the demo, good and faulty, each on an address 127.0.0.x of its own.

MX records carry no port, so all hosts of a story share one port number, which
needs Linux: there every address of 127.0.0.0/8 is on the loopback interface.

A dropped SYN needs no firewall. A listening socket whose accept queue is full
does not answer a SYN at all, and a queue made by ``listen(0)`` is full with a
single connection that nobody accepts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.demo.stories import Behaviour
from mxpolicy.errors import MxPolicyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["DemoError", "Hosts", "Receiver", "Taken", "address_of", "open_hosts"]

BACKLOG = 16
PORT_TRIES = 50
# On loopback a SYN-ACK takes microseconds.
SYN_ACK_TIME = 0.1
FILLERS = 8
LINE_LIMIT = 64 * 1024
MESSAGE_LIMIT = 1024 * 1024
# Nothing of the demo says so little for so long.
VISIT_TIME = 300.0


class DemoError(MxPolicyError):
    """The demo cannot be shown on this machine; the text says why."""


def address_of(place: int) -> str:
    """Return the address of the host at *place* of a story, counted from 0."""
    return f"127.0.0.{11 + place}"


class Taken(NamedTuple):
    """A message that a host took responsibility for.

    Attributes:
        place: The host's place in its story, from 0.
        mail_data: As it came over the wire, dot-stuffing removed, final CRLF kept.
    """

    place: int
    reverse_path: str
    forward_paths: tuple[str, ...]
    mail_data: bytes


class Receiver:
    """A good host's side of SMTP (RFC 5321), without I/O.

    It knows what the demo needs: EHLO, HELO, MAIL, RCPT, DATA, RSET, NOOP and
    QUIT; refuses mail for ``nobody@``; takes lines that end in CRLF only.

    Attributes:
        closed: True after QUIT, and when the client broke a limit.
    """

    def __init__(self, name: str, place: int, taken: list[Taken]) -> None:
        self._name = name
        self._place = place
        self._taken = taken
        self._buffer = bytearray()
        self._lines: list[bytes] | None = None
        self._size = 0
        self._reverse_path: str | None = None
        self._forward_paths: list[str] = []
        self.closed = False

    def greeting(self) -> bytes:
        """Return what is said first."""
        return f"220 {self._name} ESMTP demo\r\n".encode()

    def receive_data(self, data: bytes) -> bytes:
        """Take what the client sent and return what to answer, perhaps nothing."""
        self._buffer += data
        replies = b"".join(self._reply(line) for line in self._whole_lines())
        if len(self._buffer) > LINE_LIMIT or self._size > MESSAGE_LIMIT:
            self.closed = True
        return replies

    def _whole_lines(self) -> Iterator[bytes]:
        while not self.closed and b"\r\n" in self._buffer:
            line, _, rest = bytes(self._buffer).partition(b"\r\n")
            self._buffer[:] = rest
            yield line

    def _reply(self, line: bytes) -> bytes:
        if self._lines is None:
            text = self._command(line.decode("utf-8", "replace"))
        elif line == b".":
            text = self._finish()
        else:
            self._size += len(line)
            self._lines.append(line.removeprefix(b"."))
            return b""
        return f"{text}\r\n".encode()

    def _command(self, line: str) -> str:
        verb, _, argument = line.partition(" ")
        match verb.upper():
            case "EHLO":
                self._reset()
                return (
                    f"250-{self._name}\r\n250-PIPELINING\r\n250-SIZE {MESSAGE_LIMIT}\r\n"
                    "250-8BITMIME\r\n250 ENHANCEDSTATUSCODES"
                )
            case "HELO":
                self._reset()
                return f"250 {self._name}"
            case "MAIL":
                self._reverse_path = _path(argument)
                return "250 2.1.0 Ok"
            case "RCPT":
                return self._recipient(_path(argument))
            case "DATA" if self._forward_paths:
                self._lines, self._size = [], 0
                return "354 End data with <CR><LF>.<CR><LF>"
            case "DATA":
                return "554 5.5.1 No valid recipients"
            case "RSET":
                self._reset()
                return "250 2.0.0 Ok"
            case "NOOP":
                return "250 2.0.0 Ok"
            case "QUIT":
                self.closed = True
                return "221 2.0.0 Bye"
            case _:
                return "502 5.5.2 Command not recognized"

    def _recipient(self, forward_path: str) -> str:
        if self._reverse_path is None:
            return "503 5.5.1 MAIL first"
        if forward_path.startswith("nobody@"):
            return f"550 5.1.1 <{forward_path}>: no such user here"
        self._forward_paths.append(forward_path)
        return "250 2.1.5 Ok"

    def _finish(self) -> str:
        assert self._lines is not None  # only called in the mail data
        mail_data = b"".join(line + b"\r\n" for line in self._lines)
        self._taken.append(
            Taken(
                self._place,
                self._reverse_path or "",
                tuple(self._forward_paths),
                mail_data,
            )
        )
        self._reset()
        return f"250 2.0.0 Ok: {len(mail_data)} bytes taken"

    def _reset(self) -> None:
        self._lines = self._reverse_path = None
        self._forward_paths = []


def _path(argument: str) -> str:
    """Return what stands between ``<`` and ``>``."""
    return argument.partition("<")[2].rpartition(">")[0]


class Hosts:
    """The hosts of one story, all on one port; made by `open_hosts`.

    Attributes:
        port: The port they share.
        taken: What the good ones among them took, in order.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Behaviour]],
        sockets: Sequence[socket.socket],
    ) -> None:
        self.port: int = sockets[0].getsockname()[1] if sockets else 0
        self.taken: list[Taken] = []
        self._hosts = [
            (place, name, behaviour, sock)
            for place, ((name, behaviour), sock) in enumerate(
                zip(named, sockets, strict=True)
            )
        ]

    async def serve(self, started: asyncio.Event) -> None:
        """Let every host do what it does until cancelled; set *started* when all do.

        Raises:
            DemoError: SYNs to a full accept queue are answered on this machine.
        """
        dropped = [sock for *_, how, sock in self._hosts if how is Behaviour.DROPPED]
        with contextlib.ExitStack() as fillers:
            if not all(await asyncio.gather(*(_fill(s, fillers) for s in dropped))):
                raise DemoError("this kernel answers SYNs to a full accept queue")
            async with asyncio.TaskGroup() as visits:
                for place, name, behaviour, sock in self._hosts:
                    if behaviour not in (Behaviour.DROPPED, Behaviour.REFUSES):
                        sock.listen(BACKLOG)
                        visits.create_task(
                            self._welcome(visits, place, name, behaviour, sock)
                        )
                started.set()
                await asyncio.get_running_loop().create_future()

    async def _welcome(
        self,
        visits: asyncio.TaskGroup,
        place: int,
        name: str,
        behaviour: Behaviour,
        listener: socket.socket,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            receiver = Receiver(name, place, self.taken)
            visits.create_task(_visit(connection, behaviour, receiver))


async def _visit(
    connection: socket.socket, behaviour: Behaviour, receiver: Receiver
) -> None:
    """Serve one connection as *behaviour* says, and close it."""
    with connection, contextlib.suppress(OSError):
        async with asyncio.timeout(VISIT_TIME):
            match behaviour:
                case Behaviour.GOOD:
                    await _converse(connection, receiver)
                case Behaviour.REJECTS:
                    await _say(connection, b"554 5.7.1 No SMTP service here\r\n")
                    await _listen(connection)
                case Behaviour.SILENT:
                    await _listen(connection)
                case Behaviour.CLOSES | Behaviour.DROPPED | Behaviour.REFUSES:
                    pass


async def _converse(connection: socket.socket, receiver: Receiver) -> None:
    loop = asyncio.get_running_loop()
    await _say(connection, receiver.greeting())
    while not receiver.closed:
        data = await loop.sock_recv(connection, 65536)
        if not data:
            return
        await _say(connection, receiver.receive_data(data))


async def _say(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def _listen(connection: socket.socket) -> None:
    """Read and say nothing until the client gives up."""
    while await asyncio.get_running_loop().sock_recv(connection, 65536):
        pass


async def _fill(listener: socket.socket, fillers: contextlib.ExitStack) -> bool:
    """Fill the accept queue of *listener* until a SYN really goes unanswered.

    The connections are kept open on *fillers*. False when the kernel goes on
    answering.
    """
    listener.listen(0)
    for _ in range(FILLERS):
        filler = fillers.enter_context(_tcp_socket())
        try:
            async with asyncio.timeout(SYN_ACK_TIME):
                await asyncio.get_running_loop().sock_connect(
                    filler, listener.getsockname()
                )
        except TimeoutError:
            filler.close()
            return True
    return False


def _tcp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def open_hosts(
    named: Sequence[tuple[str, Behaviour]],
) -> Iterator[tuple[Hosts, list[str]]]:
    """Bind one socket for each host, all on one free port, and close them at the end.

    Yields:
        The hosts, which still have to `Hosts.serve`, and their addresses.

    Raises:
        DemoError: There are no such addresses here, or no port is free on all.
    """
    addresses = [address_of(place) for place in range(len(named))]
    with contextlib.ExitStack() as stack:
        sockets = _bind_all(addresses)
        for sock in sockets:
            stack.enter_context(sock)
        yield Hosts(named, sockets), addresses


def _bind_all(addresses: Sequence[str]) -> list[socket.socket]:
    """Bind every address on one port that the kernel chose for the first of them."""
    for _ in range(PORT_TRIES):
        sockets: list[socket.socket] = []
        port = 0
        try:
            for address in addresses:
                sockets.append(_tcp_socket())
                sockets[-1].bind((address, port))
                port = sockets[-1].getsockname()[1]
        except OSError as error:
            for sock in sockets:
                sock.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise DemoError(
                f"cannot listen on {address}: {error.strerror}"
                " (the demo needs Linux, where all of 127.0.0.0/8 is loopback)"
            ) from error
        return sockets
    raise DemoError(f"no port is free on all of {addresses[0]} to {addresses[-1]}")
