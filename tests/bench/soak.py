"""Whether the daemon grows: memory and descriptors over an hour of mail.

    python -m tests.bench soak [MINUTES]

Small messages by LMTP, and by ``mxpolicy pipe`` which hands them over, each to another
recipient; questions about access. Most go to forty addresses of a quick host. One in
twenty goes to an address where nobody listens, and is deferred. A reload comes each
minute. What matters is whether the last quarter has more than the first.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.helpers.handing_over import Command
from tests.helpers.serving import Runner, Serving

from . import report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LMTP_CLIENTS = 6
POLICY_CLIENTS = 4
ADDRESSES = 40
NOBODY = "127.0.1.1"

# Messages of one LMTP connection; lmtp(8) has some hundred (max_use).
OF_A_CONNECTION = 50

QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\nrecipient=%b\n\n"


class Look(NamedTuple):
    """What the daemon has, and how many messages it has answered."""

    seconds: float
    messages: int
    kibibytes: int
    descriptors: int


class Load:
    """All that the daemon has to do.

    Attributes:
        messages: How many were answered.
        wrong: Answers that were not expected, each with its number.
    """

    def __init__(self, daemon: Serving, command: Command) -> None:
        self.messages = 0
        self.wrong: dict[str, int] = {}
        self._daemon = daemon
        self._command = command
        self._numbers = itertools.count()

    def _next(self) -> tuple[int, str, bool]:
        """Return a number, a recipient, and whether somebody listens there."""
        number = next(self._numbers)
        listens = number % 20 != 0
        address = f"127.0.0.{number % ADDRESSES + 1}" if listens else NOBODY
        return number, f"user{number}@[{address}]", listens

    def _count(self, answer: str, listens: bool) -> None:
        self.messages += 1
        if not answer.startswith("250 2." if listens else "4"):
            short = answer[:60]
            self.wrong[short] = self.wrong.get(short, 0) + 1

    async def lmtp(self) -> None:
        """Send messages for ever."""
        while True:
            path = str(self._daemon.run / "lmtp")
            reader, writer = await asyncio.open_unix_connection(path)
            await _reply(reader)
            writer.write(b"LHLO client.example\r\n")
            await _reply(reader)
            for _ in range(OF_A_CONNECTION):
                await self._send(reader, writer)
            writer.write(b"QUIT\r\n")
            await _reply(reader)
            writer.close()

    async def _send(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        number, recipient, listens = self._next()
        writer.write(
            f"XFORWARD IDENT=Q{number}\r\nMAIL FROM:<me{number}@a.example>\r\n"
            f"RCPT TO:<{recipient}>\r\n".encode()
        )
        said = [await _reply(reader) for _ in range(3)][-1]
        if not said.startswith("2"):
            self._count(said, listens)
            writer.write(b"RSET\r\n")
            await _reply(reader)
            return
        writer.write(b"DATA\r\n")
        await _reply(reader)
        writer.write(b"Received: from a by b\r\n\r\nMessage %d\r\n.\r\n" % number)
        self._count(await _reply(reader), listens)

    async def pipe(self) -> None:
        """Hand messages over for ever."""
        while True:
            number, recipient, listens = self._next()
            argv = self._command.argv(self._daemon.run / "pipe", "", recipient)
            argv[argv.index("QID")] = f"P{number}"
            ended = await asyncio.to_thread(self._command.run, argv)
            answer = b"".join(ended.answers).decode()
            self._count("250 2." if ended.status == 0 else answer, listens)

    async def policy(self) -> None:
        """Ask for ever, at the speed of a busy mail server."""
        path = str(self._daemon.run / "policy")
        reader, writer = await asyncio.open_unix_connection(path)
        for number in itertools.count():
            address = f"user@[192.0.{number // 200 % 200}.{number % 200}]"
            writer.write(QUESTION % address.encode())
            await reader.readuntil(b"\n\n")
            await asyncio.sleep(0.02)

    async def reload(self) -> None:
        """Have the configuration read again, each minute."""
        while True:
            await asyncio.sleep(60)
            await asyncio.to_thread(self._daemon.reload)


async def _reply(reader: asyncio.StreamReader) -> str:
    while True:
        line = await reader.readline()
        if line[3:4] != b"-":
            return line.decode()


async def _take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a host that takes everything."""
    writer.write(b"220 mx.example.com ESMTP\r\n")
    try:
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"EHLO":
                writer.write(
                    b"250-mx.example.com\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
                )
            elif verb == b"DATA":
                writer.write(b"354 go ahead\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"250 2.0.0 ok\r\n")
            else:
                writer.write(b"250 2.0.0 ok\r\n")
            if verb == b"QUIT":
                break
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass  # one of them is at its end
    writer.close()


def _look(daemon: Serving, load: Load, began: float) -> Look:
    status = daemon.proc("status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    return Look(
        time.monotonic() - began,
        load.messages,
        int(fields["VmRSS"].split()[0]),
        len(list(daemon.proc("fd").iterdir())),
    )


async def _soak(directory: Path, seconds: float) -> tuple[list[Look], dict[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hosts = [f"127.0.0.{number + 1}" for number in range(ADDRESSES)]
    server = await asyncio.start_server(_take, hosts, port)
    runner = Runner(directory)
    runner.configure(f"port: {port}", "memory: {pause: 5s, longest_pause: 10s}")
    with runner.started() as daemon:
        load = Load(daemon, Command(directory))
        tasks = [
            *(asyncio.create_task(load.lmtp()) for _ in range(LMTP_CLIENTS)),
            *(asyncio.create_task(load.policy()) for _ in range(POLICY_CLIENTS)),
            asyncio.create_task(load.pipe()),
            asyncio.create_task(load.reload()),
        ]
        looks = []
        began = time.monotonic()
        # The first look is when what is made once has been made.
        for at in _looks(seconds):
            late = began + at - time.monotonic()
            done, _ = await asyncio.wait(
                tasks, timeout=late, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                one.result()  # it goes on for ever, or has failed
            looks.append(_look(daemon, load, began))
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    server.close()
    return looks, load.wrong


def _looks(seconds: float) -> Iterator[float]:
    yield seconds / 16
    for quarter in range(1, 5):
        yield seconds * quarter / 4


def main(arguments: Sequence[str]) -> int:
    """Print the table; return 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench soak")
    parser.add_argument("minutes", nargs="?", type=float, default=60.0)
    minutes = parser.parse_args(arguments).minutes
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        looks, wrong = asyncio.run(_soak(Path(directory), 60 * minutes))
    head = ["after", "messages", "memory", "to the first", "descriptors"]
    rows = [
        [
            report.seconds(one.seconds),
            str(one.messages),
            report.mebibytes(one.kibibytes),
            report.ratio(one.kibibytes, looks[0].kibibytes),
            str(one.descriptors),
        ]
        for one in looks
    ]
    print(report.table(head, rows))
    for answer, times in wrong.items():
        print(f"unexpected, {times} times: {answer}")
    print(report.circumstances(begun))
    return 0
