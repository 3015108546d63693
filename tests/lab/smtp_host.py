"""SMTP hosts with faults: one process, a table from address to behaviour.

Runs in the lab's Internet, started and asked by `hosts.Hosts`. A host does what its
`Behaviour` says at each step of a session, and everything it saw is kept: every session,
every command with its time, every message that came whole.

The receiving side is strict, for it is the judge. Commands and mail data end in CRLF and
nothing else; only CRLF "." CRLF ends a message (RFC 5321 §4.1.1.4); a bare CR or LF in
mail data is kept as it came and noted. A message counts as received once its final dot
is here, whatever is answered then: that is what makes a copy.

Standard library only; one file, started by its path.
"""

import asyncio
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# The steps of a session at which a behaviour can say something of its own. CONNECT is
# the greeting, DOT the answer to the end of mail data, the rest are commands.
STEPS = (
    *("CONNECT", "EHLO", "HELO", "STARTTLS", "MAIL", "RCPT", "DATA", "DOT"),
    *("RSET", "NOOP", "VRFY", "QUIT"),
)

LONGEST_COMMAND = 4096
LARGEST_MESSAGE = 256 * 1024 * 1024


@dataclass(frozen=True)
class Step:
    """What happens at one step instead of the ordinary answer.

    First `delay` seconds pass. Then the connection is ended if `end` says so, by FIN
    ("close") or RST ("reset"); or nothing is answered any more ("hush": read on, say
    nothing); else `reply`, lines without the final CRLF, is sent ("": the ordinary one).
    """

    reply: str = ""
    delay: float = 0.0
    end: Literal["", "close", "reset", "hush"] = ""


@dataclass(frozen=True)
class Behaviour:
    """How a host speaks SMTP; without arguments, well.

    `steps` are its faults by step, `keywords` what EHLO lists. With `listens` false
    nothing listens at the address, and its kernel refuses.
    """

    steps: Mapping[str, Step] = field(default_factory=dict)
    keywords: tuple[str, ...] = (
        "PIPELINING",
        "SIZE 104857600",
        "8BITMIME",
        "ENHANCEDSTATUSCODES",
    )
    listens: bool = True

    def __post_init__(self) -> None:
        unknown = set(self.steps) - set(STEPS)
        if unknown:
            raise ValueError(f"no such step: {', '.join(sorted(unknown))}")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> "Behaviour":
        """Read what `to_json` made."""
        steps = {name: Step(**step) for name, step in table["steps"].items()}
        return cls(steps, tuple(table["keywords"]), table["listens"])


ORDINARY = {
    "HELO": "250 {name}",
    "MAIL": "250 2.1.0 Ok",
    "RCPT": "250 2.1.5 Ok",
    "DATA": "354 End data with <CR><LF>.<CR><LF>",
    "DOT": "250 2.0.0 Ok: taken as {serial}",
    "RSET": "250 2.0.0 Ok",
    "NOOP": "250 2.0.0 Ok",
    "VRFY": "252 2.0.0 Send it and see",
    "QUIT": "221 2.0.0 Bye",
    "STARTTLS": "502 5.5.1 Not offered",
    "CONNECT": "220 {name} ESMTP",
}


class EndOfSessionError(Exception):
    """The session ends here; the argument is how, for the record."""


class Records:
    """All that was seen, ready for JSON. A session is a dict that grows."""

    def __init__(self) -> None:
        self.sessions: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []

    def forget(self) -> None:
        """Forget what has ended."""
        self.sessions = [one for one in self.sessions if not one["ended"]]
        self.messages = []


class Wire:
    """Bytes from the client, cut at CRLF; at most a bounded number kept."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._kept = bytearray()

    async def line(self) -> bytes:
        """Return the next line without its CRLF."""
        return await self._until(b"\r\n", LONGEST_COMMAND)

    async def mail_data(self) -> bytes:
        """Return mail data up to its final dot, dot-unstuffed, lines ending in CRLF."""
        # The CRLF of the DATA line counts as the one before the dot.
        self._kept[:0] = b"\r\n"
        stuffed = await self._until(b"\r\n.\r\n", LARGEST_MESSAGE)
        lines = (stuffed[2:] + b"\r\n").split(b"\r\n") if stuffed else [b""]
        return b"\r\n".join(line.removeprefix(b".") for line in lines)

    async def drain(self) -> None:
        """Read until the client goes."""
        while await self._reader.read(65536):
            pass

    async def _until(self, end: bytes, most: int) -> bytes:
        searched = 0
        while (found := self._kept.find(end, max(0, searched - len(end)))) < 0:
            if len(self._kept) > most:
                raise EndOfSessionError("too long")
            searched = len(self._kept)
            more = await self._reader.read(262144)
            if not more:
                raise EndOfSessionError("closed by client")
            self._kept += more
        piece = bytes(self._kept[:found])
        del self._kept[: found + len(end)]
        return piece


class Session:
    """One connection to one host."""

    def __init__(
        self,
        name: str,
        behaviour: Behaviour,
        records: Records,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._name = name
        self._behaviour = behaviour
        self._records = records
        self._wire = Wire(reader)
        self._writer = writer
        self._reverse_path: str | None = None
        self._forward_paths: list[str] = []
        self.record: dict[str, Any] = {
            "host": name,
            "address": writer.get_extra_info("sockname")[0],
            "client": writer.get_extra_info("peername")[0],
            "begun": time.time(),
            "commands": [],
            "ended": "",
        }
        records.sessions.append(self.record)

    async def run(self) -> None:
        """Speak until the session ends; its record says how it did."""
        try:
            await self._answer("CONNECT", ORDINARY["CONNECT"])
            while True:
                await self._command((await self._wire.line()).decode("latin-1"))
        except EndOfSessionError as how:
            self.record["ended"] = str(how)
        except OSError as error:
            self.record["ended"] = type(error).__name__
        finally:
            self.record["ended"] = self.record["ended"] or "host stopped"
            self.record["until"] = time.time()
            self._writer.close()

    async def _command(self, line: str) -> None:
        self.record["commands"].append([time.time(), line])
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        match verb:
            case "EHLO":
                self._forget_transaction()
                lines = [self._name, *self._behaviour.keywords]
                marks = ["-"] * (len(lines) - 1) + [" "]
                pairs = zip(marks, lines, strict=True)
                ordinary = "\r\n".join(f"250{mark}{text}" for mark, text in pairs)
            case "HELO" | "RSET":
                self._forget_transaction()
                ordinary = ORDINARY[verb]
            case "MAIL" | "RCPT" | "DATA":
                return await self._transaction(verb, argument)
            case "STARTTLS" | "NOOP" | "VRFY" | "QUIT":
                ordinary = ORDINARY[verb]
            case _:
                return await self._send("500 5.5.2 Command not recognized")
        await self._answer(verb, ordinary)
        if verb == "QUIT":
            raise EndOfSessionError("quit")
        return None

    async def _transaction(self, verb: str, argument: str) -> None:
        ready = {
            "MAIL": self._reverse_path is None,
            "RCPT": self._reverse_path is not None,
            "DATA": bool(self._forward_paths),
        }
        if not ready[verb]:
            return await self._send("503 5.5.1 Bad sequence of commands")
        accepted = await self._answer(verb, ORDINARY[verb])
        if not accepted:
            return None
        if verb == "MAIL":
            self._reverse_path = path_in(argument)
        elif verb == "RCPT":
            self._forward_paths.append(path_in(argument))
        else:
            await self._receive()
        return None

    async def _receive(self) -> None:
        data = await self._wire.mail_data()
        bare = data.replace(b"\r\n", b"")
        message = {
            "host": self._name,
            "address": self.record["address"],
            "time": time.time(),
            "reverse_path": self._reverse_path,
            "forward_paths": self._forward_paths,
            "data": data.decode("latin-1"),
            "bare_cr": bare.count(b"\r"),
            "bare_lf": bare.count(b"\n"),
            "accepted": False,
        }
        self._records.messages.append(message)
        self._forget_transaction()
        serial = f"L{len(self._records.messages):06d}"
        message["accepted"] = await self._answer("DOT", ORDINARY["DOT"], serial=serial)

    def _forget_transaction(self) -> None:
        self._reverse_path = None
        self._forward_paths = []

    async def _answer(self, step: str, ordinary: str, serial: str = "") -> bool:
        """Do what is to be done at *step*; true when the answer was positive."""
        fault = self._behaviour.steps.get(step, Step())
        await asyncio.sleep(fault.delay)
        match fault.end:
            case "close":
                raise EndOfSessionError("closed by host")
            case "reset":
                linger = struct.pack("ii", 1, 0)
                connection = self._writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                raise EndOfSessionError("reset by host")
            case "hush":
                await self._wire.drain()
                raise EndOfSessionError("closed by client")
            case "":
                text = fault.reply or ordinary.format(name=self._name, serial=serial)
        await self._send(text)
        return text[0] in "23"

    async def _send(self, reply: str) -> None:
        self._writer.write(reply.encode("latin-1") + b"\r\n")
        await self._writer.drain()


def path_in(argument: str) -> str:
    """Return what stands between the angle brackets of a MAIL or RCPT argument.

    A quoted local part may hold angle brackets itself, so the end is looked for outside
    quotes only.
    """
    begin = argument.find("<") + 1
    quoted = escaped = False
    for at in range(begin, len(argument)):
        character = argument[at]
        if escaped:
            escaped = False
        elif character == "\\" and quoted:
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == ">" and not quoted:
            return argument[begin:at]
    return argument[begin:]


class Internet:
    """All hosts, and the socket at which the lab asks about them."""

    def __init__(self) -> None:
        self._records = Records()
        self._servers: dict[str, asyncio.Server] = {}
        self._sessions: set[asyncio.Task[None]] = set()

    async def place(self, address: str, name: str, table: dict[str, Any]) -> None:
        """Put a host at *address*, in the stead of the one there. Sessions go on."""
        if server := self._servers.pop(address, None):
            server.close()
        behaviour = Behaviour.from_json(table)

        async def serve(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
            await Session(name, behaviour, self._records, r, w).run()

        if behaviour.listens:
            self._servers[address] = await asyncio.start_server(serve, address, 25)

    async def answer(self, request: dict[str, Any]) -> Any:
        """Answer one request of the lab; see `hosts.Hosts` for the other end."""
        match request["ask"]:
            case "place":
                for host in request["hosts"]:
                    await self.place(*host)
                return len(request["hosts"])
            case "messages":
                return self._records.messages
            case "sessions":
                return self._records.sessions
            case "forget":
                return self._records.forget()
            case other:
                raise ValueError(f"asked for {other}")

    async def serve_lab(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Read one JSON line, answer with one, close."""
        try:
            answer = {"is": await self.answer(json.loads(await reader.readline()))}
        except (OSError, ValueError) as error:
            answer = {"failed": str(error)}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()


async def main(control: str) -> None:
    """Serve for ever; the lab ends us."""
    internet = Internet()
    # One line can place hundreds of hosts.
    server = await asyncio.start_unix_server(
        internet.serve_lab, control + ".new", limit=1 << 24
    )
    os.rename(control + ".new", control)  # there once it can be connected to
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
