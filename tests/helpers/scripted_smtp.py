"""SMTP hosts on loopback that follow a script, for tests of whoever talks to them.

A script is a table: what is asked -> what is done. Keys are ``CONNECT`` (the
greeting), ``EHLO``, ``HELO``, ``STARTTLS``, ``MAIL``, ``RCPT``, ``RCPT user@host``,
``DATA``, ``BODY`` (after the first bytes of mail data), ``.``, ``RSET`` and ``QUIT``.
What is not in it is answered as a good host does. What is done is:

* a ``str``: a reply, its lines separated by ``\\n``; CRLF is added;
* ``bytes``: sent as they are;
* a number: so many seconds of silence;
* an `End`: how the connection ends;
* a `Deed`: a coroutine function that gets the session's streams, and may do anything;
* a tuple: these steps, one after the other;
* a list: one of them each time it is asked, in any session, the last one for ever.

A host here judges nothing: it does whatever a test says, wrong replies and broken
connections above all, and the test holds it where it likes. The strict host is
`tests.lab.smtp_host`, a process of its own. `tests.simulation.hosts` have no sockets, so
that the clock may be moved past everything that they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.candidate import Candidate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

__all__ = ["EXTENSIONS", "Deed", "End", "Message", "Script", "ScriptedHost", "serve"]

EXTENSIONS = ("PIPELINING", "SIZE 100000000", "8BITMIME", "ENHANCEDSTATUSCODES")
LINE_LIMIT = 1 << 22

# Close with a RST.
LINGER = struct.pack("ii", 1, 0)


class End(enum.Enum):
    """How a connection ends, or how it does not."""

    SILENT = "silent"  # nothing is said until the client hangs up
    CLOSE = "close"
    RESET = "reset"
    DEAF = "deaf"  # nothing is said or read any more, until the host is closed


Deed = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Step = str | bytes | float | End | Deed
Answer = Step | tuple[Step, ...]
Script = dict[str, Answer | list[Answer]]


class _Over(Exception):
    """This session is."""


class Message(NamedTuple):
    """What came before a final dot; *answered* is the code that was given for it.

    Attributes:
        mail_data: As it came over the wire, dots and all, without the final dot.
        answered: 0 when the dot was not answered.
    """

    reverse_path: str
    forward_paths: tuple[str, ...]
    mail_data: bytes
    answered: int


class ScriptedHost:
    """One host.

    Args:
        script: See the module.
        extensions: What its EHLO reply lists; none is an EHLO reply of one line.
        context: For STARTTLS, which is listed then.
        is_filtered: SYNs are not answered.
        is_refused: Nobody listens.

    Attributes:
        visits: The command lines of each session, in the order of connecting.
        raw: All bytes of each session, in clear.
        messages: Everything that was ended by a dot.
        was_reset: Of each session, whether the client ended it with a RST.
        was_pipelined: Whether a command was there before the one ahead was answered.
    """

    def __init__(
        self,
        script: Mapping[str, Answer | list[Answer]] | None = None,
        *,
        extensions: Iterable[str] = EXTENSIONS,
        context: ssl.SSLContext | None = None,
        is_filtered: bool = False,
        is_refused: bool = False,
    ) -> None:
        self._script = dict(script or {})
        self._extensions = (*extensions, *(["STARTTLS"] if context else []))
        self._context = context
        self._is_filtered = is_filtered
        self._is_refused = is_refused
        self._asked: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._clients: list[socket.socket] = []
        self._errors: list[BaseException] = []
        self._address = ("", 0)
        self.visits: list[list[str]] = []
        self.raw: list[bytearray] = []
        self.messages: list[Message] = []
        self.was_reset: list[bool] = []
        self.was_pipelined = False

    def candidate(self, preference: int = 10, *, place: int = 0) -> Candidate:
        """Return the candidate to dial."""
        address, port = self._address
        name = f"mx{address.rpartition('.')[2]}.example.com"
        return Candidate(name, address, port, preference, nexthop_position=place)

    @property
    def commands(self) -> list[str]:
        """All command lines of all sessions."""
        return [line for visit in self.visits for line in visit]

    @property
    def taken(self) -> list[Message]:
        """What it has taken responsibility for."""
        return [one for one in self.messages if 200 <= one.answered < 300]

    def tasks(self) -> set[asyncio.Task[None]]:
        """Its own tasks, for who counts tasks."""
        return set(self._tasks)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._address[1]

    def will(self, script: Mapping[str, Answer | list[Answer]]) -> None:
        """Follow *script* too from now on."""
        self._script.update(script)

    # --- begin and end

    def open(self, address: str) -> None:
        """Listen on *address*, any port; needs a running loop."""
        listener = socket.socket()
        self._sockets.append(listener)
        listener.setblocking(False)
        # Small, so that a host that reads no more is noticed by who writes.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listener.bind((address, 0))
        self._address = listener.getsockname()
        if self._is_refused:
            return
        listener.listen(0 if self._is_filtered else 16)
        if self._is_filtered:
            # A full queue answers no SYN. Two fill it: one more than said fits in.
            for _ in range(2):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(self._address)
                self._sockets.append(filler)
        else:
            self._own(self._accept(listener))

    async def close(self) -> None:
        """Hang up on everybody; raise what went wrong with the script."""
        tasks = self.tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # until the transports have closed their sockets
        for one in self._sockets:
            one.close()
        for error in self._errors:
            raise error

    def hang_up(self, last_words: bytes = b"") -> None:
        """Say *last_words* and reset all connections, before this method returns."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for client in self._clients:
            client.send(last_words)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
            os.dup2(nothing, client.fileno(), inheritable=False)
        os.close(nothing)

    def _own(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._errors.append(error)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as exc:
                if exc.errno != errno.EMFILE:
                    raise
                await asyncio.sleep(0.01)  # the test has taken all descriptors
                continue
            # What is written has arrived: no waiting for acknowledgements.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._own(self._serve(client))

    # --- one session

    async def _serve(self, client: socket.socket) -> None:
        place = len(self.visits)
        self._clients.append(client)
        self.visits.append([])
        self.raw.append(bytearray())
        self.was_reset.append(False)
        reader, writer = await _streams(client)
        try:
            await _Visit(self, place, reader, writer).run()
        except (_Over, asyncio.IncompleteReadError, BrokenPipeError):
            pass
        except (ConnectionResetError, ssl.SSLError):
            self.was_reset[place] = True
        finally:
            writer.transport.abort()

    def answer(self, *keys: str) -> Answer | None:
        """Return what the script says for the first of *keys* that it has."""
        for key in keys:
            if key in self._script:
                asked = self._asked[key] = self._asked.get(key, 0) + 1
                said = self._script[key]
                return (
                    said[min(asked, len(said)) - 1] if isinstance(said, list) else said
                )
        return None

    def hello(self, secured: bool) -> str:
        """Return the good EHLO reply."""
        hidden = "STARTTLS" if secured else None
        listed = [word for word in self._extensions if word != hidden]
        *lines, last = self.candidate().host, *listed
        return "\n".join([*(f"250-{line}" for line in lines), f"250 {last}"])

    @property
    def context(self) -> ssl.SSLContext | None:
        """For STARTTLS."""
        return self._context


class _Visit:
    """The host's side of one session."""

    def __init__(
        self,
        host: ScriptedHost,
        place: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._host = host
        self._place = place
        self._reader = reader
        self._writer = writer
        self._secured = False
        self._reverse_path = ""
        self._forward_paths: list[str] = []

    async def run(self) -> None:
        await self._do("220 scripted ESMTP", "CONNECT")
        while True:
            line = await self._reader.readuntil(b"\r\n")
            self._host.raw[self._place] += line
            self._host.was_pipelined |= bool(self._reader._buffer)  # type: ignore[attr-defined]
            text = line.removesuffix(b"\r\n").decode("utf-8", "surrogateescape")
            self._host.visits[self._place].append(text)
            await self._command(text)

    async def _command(self, text: str) -> None:
        verb = text.partition(" ")[0]
        path = text.partition("<")[2].partition(">")[0]
        match verb:
            case "EHLO":
                await self._do(self._host.hello(self._secured), verb)
            case "STARTTLS":
                if await self._do("220 go ahead", verb) == 220:
                    await self._secure()
            case "MAIL":
                self._reverse_path, self._forward_paths = path, []
                await self._do("250 2.1.0 Ok", verb)
            case "RCPT":
                if await self._do("250 2.1.5 Ok", f"RCPT {path}", verb) < 300:
                    self._forward_paths.append(path)
            case "DATA":
                none = "554 5.5.1 no valid recipients"
                usual = "354 go ahead" if self._forward_paths else none
                if await self._do(usual, verb) == 354:
                    await self._mail_data()
            case "QUIT":
                await self._do("221 2.0.0 Bye", verb)
                raise _Over
            case _:
                await self._do("250 2.0.0 Ok", verb)

    async def _secure(self) -> None:
        context = self._host.context
        assert context is not None, "scripted without a certificate"
        await self._writer.start_tls(context)
        self._secured = True

    async def _mail_data(self) -> None:
        # The end of the DATA line belongs to the final dot's pattern.
        data = bytearray(b"\r\n")
        answered, looked = False, 0
        while data.find(b"\r\n.\r\n", looked) < 0:
            looked = max(0, len(data) - 4)
            received = await self._reader.read(65536)
            if not received:
                raise _Over
            self._host.raw[self._place] += received
            data += received
            if not answered and (answer := self._host.answer("BODY")) is not None:
                answered = True
                await self._perform(answer)
        end = data.find(b"\r\n.\r\n", looked)
        mail_data, rest = bytes(data[2 : end + 2]), bytes(data[end + 5 :])
        assert not rest.strip(), f"the client went on without an answer: {rest!r}"
        message = Message(self._reverse_path, tuple(self._forward_paths), mail_data, 0)
        place = len(self._host.messages)
        self._host.messages.append(message)
        answer = self._host.answer(".") or "250 2.0.0 queued"
        # Noted before it is said, as whoever hears it may look at once.
        self._host.messages[place] = message._replace(answered=_code(answer))
        await self._perform(answer)

    async def _do(self, usual: str, *keys: str) -> int:
        """Do what the script says, or say what is usual; return the reply's code."""
        answer = self._host.answer(*keys)
        answer = usual if answer is None else answer
        await self._perform(answer)
        return _code(answer)

    async def _perform(self, answer: Answer) -> None:
        for step in answer if isinstance(answer, tuple) else (answer,):
            match step:
                case str():
                    self._writer.write(step.replace("\n", "\r\n").encode() + b"\r\n")
                case bytes():
                    self._writer.write(step)
                case End():
                    await self._end(step)
                case float() | int():
                    await asyncio.sleep(step)
                case _:
                    await step(self._reader, self._writer)
            if isinstance(step, str) and step.startswith("421"):
                raise _Over

    async def _end(self, end: End) -> None:
        match end:
            case End.CLOSE:
                self._writer.close()
            case End.RESET:
                sock = self._writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
                self._writer.transport.abort()
            case End.SILENT:
                while received := await self._reader.read(65536):
                    self._host.raw[self._place] += received
            case End.DEAF:
                self._writer.transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.get_running_loop().create_future()
        raise _Over


async def _streams(
    client: socket.socket,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the streams over an accepted socket, on the server's side of any TLS."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    made: asyncio.Future[asyncio.StreamWriter] = loop.create_future()
    protocol = asyncio.StreamReaderProtocol(
        reader, lambda _, writer: made.set_result(writer)
    )
    await loop.connect_accepted_socket(lambda: protocol, client)
    return reader, await made


@contextlib.asynccontextmanager
async def serve(*hosts: ScriptedHost) -> AsyncIterator[None]:
    """Open *hosts* on 127.0.0.11 and following; close them at the end."""
    try:
        for place, host in enumerate(hosts):
            host.open(f"127.0.0.{11 + place}")
        yield
    finally:
        for host in hosts:
            await host.close()


# Of one reply: no other line has its code without a hyphen behind it.
_LAST_LINE = re.compile(rb"^([0-9]{3})(?!-)", re.MULTILINE)


def _code(answer: Answer) -> int:
    """Return the code of the first reply in *answer*, its last line's; 0 if none is whole."""
    for step in answer if isinstance(answer, tuple) else (answer,):
        said = step.encode() if isinstance(step, str) else step
        if isinstance(said, bytes) and (found := _LAST_LINE.search(said)):
            return int(found[1])
    return 0
