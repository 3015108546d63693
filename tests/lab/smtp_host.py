"""SMTP hosts with faults: one process, a table from address to behaviour.

Runs in the lab's Internet, started and asked by `hosts.Hosts`. A host does what its
`Behaviour` says at each step of a session, and everything it saw is kept: every session,
every command with its time, every message that came whole.

The receiving side is strict, for it is the judge. Commands and mail data end in CRLF and
nothing else; only CRLF "." CRLF ends a message (RFC 5321 §4.1.1.4); a bare CR or LF in
mail data is kept as it came and noted. A message counts as received once its final dot
is here, whatever is answered then: only a host that has said no is known to have no copy.
Parameters that were not offered are refused (RFC 5321 §4.1.1.11), and so is a client that
sends ahead where PIPELINING was not offered (RFC 2920 §3.1), or after STARTTLS.

Standard library only; one file, started by its path. It shares no code with mxpolicy, or
both could be wrong in the same way and nothing would show. That is why it is a host of
its own beside `tests.helpers.scripted_smtp` (what one test needs, in its own process) and
`tests.simulation.hosts` (no sockets).
"""

import asyncio
import hashlib
import json
import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# The steps of a session at which a behaviour can say something of its own. CONNECT is
# the greeting, TLS the handshake after STARTTLS, BODY the moment when the first of the
# mail data is here, DOT the answer to its end; the rest are commands.
STEPS = (
    *("CONNECT", "EHLO", "HELO", "STARTTLS", "TLS", "MAIL", "RCPT", "DATA", "BODY"),
    *("DOT", "RSET", "NOOP", "VRFY", "QUIT"),
)

LONGEST_COMMAND = 4096
LARGEST_MESSAGE = 256 * 1024 * 1024


@dataclass(frozen=True)
class Step:
    """What happens at one step instead of the ordinary answer.

    First `delay` seconds pass; with `held`, also the time until hosts are released. Then `reply` is sent, one or more lines without the final
    CRLF, "{name}" standing for the host's; with `pace`, a byte every so many seconds;
    with `endless`, as it is, again and again. Then the connection is ended if `end` says
    so, by FIN ("close") or RST ("reset"); or nothing is said any more ("hush": read on;
    "stall": read nothing either). Without `reply` and `end`, the ordinary reply is sent.
    """

    reply: str = ""
    delay: float = 0.0
    end: Literal["", "close", "reset", "hush", "stall"] = ""
    pace: float = 0.0
    endless: bool = False
    held: bool = False


@dataclass(frozen=True)
class Behaviour:
    """How a host speaks SMTP; without arguments, well.

    `steps` are its faults by step, `keywords` what EHLO lists; with STARTTLS among them
    it has a certificate of the lab's own CA. `recipients_max` is how many a transaction
    may have before "too many", `connections_max` how many there may be at a time. With `lockstep` it hangs up on a client that sends ahead
    even though it offers PIPELINING (a firewall between does that). With `listens`
    false nothing listens at the address, and its kernel refuses. `mailboxes` says what
    RCPT for a local part is answered, the first time, the second and so on; the last
    reply stays. `again` are the faults of a session that has brought a message already;
    a step that is not there is as in `steps`.
    """

    steps: Mapping[str, Step] = field(default_factory=dict)
    keywords: tuple[str, ...] = (
        "PIPELINING",
        "SIZE 104857600",
        "8BITMIME",
        "ENHANCEDSTATUSCODES",
    )
    recipients_max: int = 1000
    connections_max: int = 1000
    lockstep: bool = False
    listens: bool = True
    mailboxes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    again: Mapping[str, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = {*self.steps, *self.again} - set(STEPS)
        if unknown:
            raise ValueError(f"no such step: {', '.join(sorted(unknown))}")

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> "Behaviour":
        """Read what `to_json` made."""
        steps, again = (
            {name: Step(**step) for name, step in table.pop(which).items()}
            for which in ("steps", "again")
        )
        return cls(steps, tuple(table.pop("keywords")), again=again, **table)

    @property
    def offered(self) -> set[str]:
        """The names of the keywords."""
        return {keyword.split()[0].upper() for keyword in self.keywords}

    @property
    def size_limit(self) -> int:
        """What SIZE says (RFC 1870 §4); 0 when it says nothing."""
        [*limits] = [k.split()[1] for k in self.keywords if k.startswith("SIZE ")]
        return int(limits[0]) if limits else 0


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

# Parameter of MAIL or RCPT -> the keyword that allows it.
PARAMETERS = {
    "SIZE": "SIZE",
    "BODY": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    **dict.fromkeys(("RET", "ENVID", "NOTIFY", "ORCPT"), "DSN"),
}

# The TCP state of a connection that neither side has ended, in the first byte of
# TCP_INFO; a session that reads nothing learns only so that the client has gone.
TCP_ESTABLISHED = 1

# How often an endless reply is sent: enough to drown a client, not this machine.
ENDLESS_PAUSE = 0.001


class EndOfSessionError(Exception):
    """The session ends here; the argument is how, for the record."""


class Records:
    """All that was seen, ready for JSON. A session is a dict that grows."""

    def __init__(self) -> None:
        self.sessions: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.asked: dict[str, int] = {}  # RCPT commands, by the path of a mailbox
        self.released = asyncio.Event()  # for steps that are held
        self.released.set()

    def of_recipient(self, forward_path: str) -> list[dict[str, Any]]:
        """Return the messages for one recipient, or all where that is empty."""
        return [m for m in self.messages if forward_path in ("", *m["forward_paths"])]

    def of_host(self, host: str) -> list[dict[str, Any]]:
        """Return the sessions with one host, or all where that is empty."""
        return [one for one in self.sessions if host in ("", one["host"])]

    def take(self) -> list[dict[str, Any]]:
        """Return the digests of all messages, and forget them."""
        found = [
            {
                "forward_paths": one["forward_paths"],
                "accepted": one["accepted"],
                "body": _digest(one["data"]),
            }
            for one in self.messages
        ]
        self.forget()
        return found

    def forget(self) -> None:
        """Forget what has ended."""
        self.sessions = [one for one in self.sessions if not one["ended"]]
        self.messages = []


def _digest(data: str) -> str:
    """Return the SHA-256 of a message's body, in hexadecimal."""
    body = data.partition("\r\n\r\n")[2].encode("latin-1")
    return hashlib.sha256(body).hexdigest()


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

    async def some(self) -> None:
        """Wait until there is anything at all."""
        if not self._kept:
            await self._more()

    @property
    def is_ahead(self) -> bool:
        """Whether more has come than was asked for."""
        return bool(self._kept)

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
            await self._more()
        piece = bytes(self._kept[:found])
        del self._kept[: found + len(end)]
        return piece

    async def _more(self) -> None:
        more = await self._reader.read(262144)
        if not more:
            raise EndOfSessionError("closed by client")
        self._kept += more


class Session:
    """One connection to one host."""

    def __init__(
        self,
        name: str,
        behaviour: Behaviour,
        records: Records,
        tls: ssl.SSLContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._name = name
        self._behaviour = behaviour
        self._records = records
        self._tls = tls
        self._lockstep = behaviour.lockstep or "PIPELINING" not in behaviour.offered
        self._offered: set[str] = set()
        self._is_secured = False
        self._is_utf8 = False
        self._said = ""
        self._wire = Wire(reader)
        self._writer = writer
        self._reverse_path: str | None = None
        self._forward_paths: list[str] = []
        self._has_brought = False
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
            await self._greet()
            while True:
                line = await self._wire.line()
                if self._lockstep and self._wire.is_ahead:
                    raise EndOfSessionError("client spoke out of turn")
                await self._command(line.decode("latin-1"))
        except EndOfSessionError as how:
            self.record["ended"] = str(how)
        except OSError as error:
            self.record["ended"] = type(error).__name__
        finally:
            self.record["ended"] = self.record["ended"] or "host stopped"
            self.record["until"] = time.time()
            self._writer.close()

    async def _greet(self) -> None:
        sessions = self._records.of_host(self._name)
        if sum(not one["ended"] for one in sessions) > self._behaviour.connections_max:
            await self._send("421 4.7.0 Too many connections")
            raise EndOfSessionError("too many connections")
        await self._answer("CONNECT", ORDINARY["CONNECT"])

    async def _command(self, line: str) -> None:
        self.record["commands"].append([time.time(), line])
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        match verb:
            case "EHLO":
                return await self._hello()
            case "STARTTLS" if "STARTTLS" in self._offered:
                return await self._start_tls()
            case "MAIL" | "RCPT" | "DATA":
                return await self._transaction(verb, argument)
            case "HELO" | "RSET":
                self._forget_transaction()
                ordinary = ORDINARY[verb]
            case "STARTTLS" | "NOOP" | "VRFY" | "QUIT":
                ordinary = ORDINARY[verb]
            case _:
                return await self._send("500 5.5.2 Command not recognized")
        await self._answer(verb, ordinary)
        if verb == "QUIT":
            raise EndOfSessionError("quit")
        return None

    async def _hello(self) -> None:
        self._forget_transaction()
        hidden = {"STARTTLS"} if self._is_secured else set()
        keywords = [k for k in self._behaviour.keywords if k not in hidden]
        lines = [self._name, *keywords]
        marks = ["-"] * len(keywords) + [" "]
        pairs = zip(marks, lines, strict=True)
        text = "\r\n".join(f"250{mark}{line}" for mark, line in pairs)
        if await self._answer("EHLO", text):
            self._offered = self._behaviour.offered - hidden

    async def _start_tls(self) -> None:
        """Go from clear text to TLS (RFC 3207), unless a fault stands there."""
        if not await self._answer("STARTTLS", "220 2.0.0 Go ahead"):
            return
        fault = self._fault("TLS")
        if fault is not None:
            await self._do(fault)
            raise EndOfSessionError("closed by host")
        if self._wire.is_ahead:
            raise EndOfSessionError("client spoke in clear behind STARTTLS")
        await self._writer.start_tls(self._tls)
        self._offered = set()
        self._is_secured = True

    async def _transaction(self, verb: str, argument: str) -> None:
        ready = {
            "MAIL": self._reverse_path is None,
            "RCPT": self._reverse_path is not None,
            "DATA": bool(self._forward_paths),
        }
        if not ready[verb]:
            return await self._send("503 5.5.1 Bad sequence of commands")
        if verb != "DATA" and (objection := self._objection(verb, argument)):
            return await self._send(objection)
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

    def _objection(self, verb: str, argument: str) -> str:
        """Return the refusal of a path or parameter that must not be there, or ""."""
        path = path_in(argument)
        after = argument[argument.find("<") + len(path) + 2 :]
        for parameter in after.split():
            name, _, value = parameter.partition("=")
            if PARAMETERS.get(name.upper()) not in self._offered:
                return f"555 5.5.4 {name} was not offered"
            if name.upper() == "SIZE" and 0 < self._behaviour.size_limit < int(value):
                return "552 5.3.4 Message too big"
            self._is_utf8 = self._is_utf8 or name.upper() == "SMTPUTF8"
        if not path.isascii() and not self._is_utf8:
            return "553 5.6.7 Address beyond ASCII, but no SMTPUTF8"
        if (
            verb == "RCPT"
            and len(self._forward_paths) >= self._behaviour.recipients_max
        ):
            return "452 4.5.3 Too many recipients"
        return self._reply_of_mailbox(path) if verb == "RCPT" else ""

    def _reply_of_mailbox(self, path: str) -> str:
        """Return what the mailbox says against taking mail this time, or ""."""
        replies = self._behaviour.mailboxes.get(path.rpartition("@")[0])
        if not replies:
            return ""
        asked = self._records.asked.get(path, 0)
        self._records.asked[path] = asked + 1
        reply = replies[min(asked, len(replies) - 1)]
        return "" if reply.startswith("2") else reply

    async def _receive(self) -> None:
        if fault := self._fault("BODY"):
            await self._wire.some()
            await self._do(fault)
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
            "tls": self._is_secured,
            "accepted": False,
            "refused": False,
        }
        self._records.messages.append(message)
        self._forget_transaction()
        serial = f"L{len(self._records.messages):06d}"
        self._said = ""
        try:
            await self._answer("DOT", ORDINARY["DOT"], serial=serial)
        finally:
            self._has_brought = True
            # Also where the session ended with that answer.
            message["accepted"] = self._said[:1] == "2"
            message["refused"] = self._said[:1] in ("4", "5")

    def _forget_transaction(self) -> None:
        self._reverse_path = None
        self._forward_paths = []
        self._is_utf8 = False

    async def _answer(self, step: str, ordinary: str, serial: str = "") -> bool:
        """Do what is to be done at *step*; true when the answer was positive."""
        fault = self._fault(step) or Step()
        await self._do(fault)
        if fault.reply:
            return fault.reply[0] in "23"
        text = ordinary.format(name=self._name, serial=serial)
        await self._send(text)
        return text[0] in "23"

    def _fault(self, step: str) -> Step | None:
        """Return what happens at *step* in the place of the ordinary answer."""
        behaviour = self._behaviour
        if self._has_brought and step in behaviour.again:
            return behaviour.again[step]
        return behaviour.steps.get(step)

    async def _do(self, fault: Step) -> None:
        """Wait, say what is to be said, end the session if that is to be."""
        await asyncio.sleep(fault.delay)
        if fault.held:
            await self._records.released.wait()
        if fault.reply:
            await self._say(fault)
        match fault.end:
            case "close":
                raise EndOfSessionError("closed by host")
            case "reset":
                linger = struct.pack("ii", 1, 0)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                # Dropping what is unsent too: a close would wait for it.
                self._writer.transport.abort()
                raise EndOfSessionError("reset by host")
            case "hush":
                await self._wire.drain()
                raise EndOfSessionError("closed by client")
            case "stall":
                await self._stall()
                raise EndOfSessionError("closed by client")
            case "":
                pass

    async def _say(self, fault: Step) -> None:
        text = fault.reply.replace("{name}", self._name)
        while fault.endless:
            await self._write(text)
            await asyncio.sleep(ENDLESS_PAUSE)
        if not fault.pace:
            return await self._send(text)
        for character in text + "\r\n":
            await self._write(character)
            await asyncio.sleep(fault.pace)
        self._said = text
        return None

    async def _stall(self) -> None:
        transport = self._writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        while self._tcp_state() == TCP_ESTABLISHED:  # noqa: ASYNC110 - by the kernel
            await asyncio.sleep(0.2)

    def _tcp_state(self) -> int:
        info: bytes = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return info[0]

    @property
    def _socket(self) -> Any:
        return self._writer.get_extra_info("socket")

    async def _send(self, reply: str) -> None:
        await self._write(reply + "\r\n")
        self._said = reply

    async def _write(self, text: str) -> None:
        self._writer.write(text.encode("latin-1"))
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
    """All hosts, and the socket at which the lab asks about them.

    *certificate* is a file with the private key and the chain of all of them.
    """

    def __init__(self, certificate: str) -> None:
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._records = Records()
        self._servers: dict[str, asyncio.Server] = {}
        self._sessions: set[asyncio.Task[None]] = set()

    async def place(self, address: str, name: str, table: dict[str, Any]) -> None:
        """Put a host at *address*, in the stead of the one there. Sessions go on."""
        if server := self._servers.pop(address, None):
            server.close()
        behaviour = Behaviour.from_json(table)

        async def serve(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
            await Session(name, behaviour, self._records, self._tls, r, w).run()

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
                return self._records.of_recipient(request["forward_path"])
            case "take":
                return self._records.take()
            case "sessions":
                return self._records.of_host(request["host"])
            case "forget":
                return self._records.forget()
            case "hold":
                return self._records.released.clear()
            case "release":
                return self._records.released.set()
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


async def main(control: str, certificate: str) -> None:
    """Serve for ever; the lab ends us."""
    internet = Internet(certificate)
    # One line can place hundreds of hosts.
    server = await asyncio.start_unix_server(
        internet.serve_lab, control + ".new", limit=1 << 24
    )
    os.rename(control + ".new", control)  # there once it can be connected to
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
