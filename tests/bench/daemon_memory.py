"""The daemon's memory: idle, with 100,000 hosts remembered, and with 1,000 open sessions.

    python -m tests.bench daemon_memory [HOSTS] [SESSIONS]

Needs no root and no lab; mxpolicy is installed as a user has it (`installation`). Each
line is a daemon of its own, and its resident set (VmRSS) behind one message.

in the file     so many records of hosts in `state.sqlite3`
in memory       as many where there is no state directory, so that it keeps them itself
open sessions   so many messages by LMTP, each in a session of its own with a host that
                has the final dot and does not answer it, 20 for each host
"""

import argparse
import asyncio
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mxpolicy.routing.host_record import KEPT, HostRecord, encode
from mxpolicy.state.sqlite import SqliteStore
from tests.helpers.serving import Runner, Serving

from . import report
from .installation import installation

A_HOST = 20
"""Sessions with one address (limits.connections_per_host)."""
DESCRIPTORS = 16384
WITHIN = 300.0

# A healthy host, as most are.
RECORD = encode(
    HostRecord(
        connect_time=0.021,
        greeting_latency=0.184,
        last_ready=1.7e9,
        name="mx1.example.com",
    )
)

# A value of its own for each, as if it were learned.
_FILL = f"""
from mxpolicy.state import memory
begin = memory.MemoryRows.__init__
def filled(rows, *bounds):
    begin(rows, *bounds)
    clock = bounds[0]
    for n in range(%d):
        key = f"host direct 10.{{n >> 16}}.{{n >> 8 & 255}}.{{n & 255}}:25"
        rows.put(key, bytes(bytearray({RECORD!r})), clock() + {KEPT}, None, False)
memory.MemoryRows.__init__ = filled
"""


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench daemon_memory",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("hosts", type=int, nargs="?", default=100_000)
    parser.add_argument("sessions", type=int, nargs="?", default=1000)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    print(table(options.hosts, options.sessions))
    print(f"\n{report.circumstances(begun)}")
    return 0


def table(hosts: int, sessions: int) -> str:
    """Return the table."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A quarter of the daemon's are for sessions; and here are the other ends.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, DESCRIPTORS), most))
    found = asyncio.run(_measure_all(hosts, sessions))
    idle = found["idle"]
    rows = [
        (
            name,
            report.mebibytes(one),
            report.mebibytes(one - idle) if one > idle else "",
        )
        for name, one in found.items()
    ]
    return report.table(("the daemon", "memory", "more than idle"), rows)


async def _measure_all(hosts: int, sessions: int) -> dict[str, int]:
    addresses = [f"127.0.2.{number + 1}" for number in range(-(-sessions // A_HOST))]
    host = _Host(["127.0.1.1", *addresses])
    await host.start()
    found = {}
    for name, count, what in (
        ("idle", 0, ""),
        (f"{hosts:,} hosts, in the file", hosts, "file"),
        (f"{hosts:,} hosts, in memory", hosts, "memory"),
        (f"{sessions:,} open sessions", sessions, "sessions"),
    ):
        with tempfile.TemporaryDirectory() as directory:
            python = str(installation() / "bin" / "python3")
            runner = Runner(Path(directory), python)
            runner.configure(f"port: {host.port}")
            before = ""
            if what == "file":
                await _fill(runner.state / "state.sqlite3", count)
            if what == "memory":
                runner.configure(f"port: {host.port}", "state: /dev/null/nothing")
                before = _FILL % count
            with runner.started(before=before) as daemon:
                if what == "sessions":
                    found[name] = await _with_sessions(daemon, host, addresses, count)
                else:
                    await asyncio.to_thread(_send, daemon, "user@[127.0.1.1]")
                    found[name] = _memory(daemon)
    host.close()
    return found


async def _fill(file: Path, count: int) -> None:
    store = SqliteStore(str(file))
    expires = time.time() + KEPT
    for number in range(count):
        key = f"host direct 10.{number >> 16}.{number >> 8 & 255}.{number & 255}:25"
        await store.put(key, RECORD, expires)
    await store.close()


def _memory(daemon: Serving) -> int:
    """Return the KiB of its resident set."""
    text = daemon.proc("status").read_text()
    return next(
        int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")
    )


def _send(daemon: Serving, recipient: str) -> None:
    """Deliver a message by LMTP."""
    with daemon.connect("lmtp") as client:
        _transact(client, recipient, "Q0")
        with client.makefile("rb") as lines:
            while (line := lines.readline()) and not line.startswith(b"354"):
                pass
            said = lines.readline()
    assert said.startswith(b"250 2"), said


def _transact(client: socket.socket, recipient: str, queue_id: str) -> None:
    # Ahead of every answer: LMTP has PIPELINING.
    client.sendall(
        f"LHLO client.example\r\nXFORWARD IDENT={queue_id}\r\n"
        f"MAIL FROM:<me@a.example>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
        "Received: from a by b\r\n\r\nOne line.\r\n.\r\n".encode()
    )


async def _with_sessions(
    daemon: Serving, host: "_Host", addresses: Sequence[str], count: int
) -> int:
    clients = []
    host.answers = False
    try:
        for number in range(count):
            client = await asyncio.to_thread(daemon.connect, "lmtp")
            clients.append(client)
            recipient = f"user{number}@[{addresses[number // A_HOST]}]"
            await asyncio.to_thread(_transact, client, recipient, f"Q{number}")
        until = time.monotonic() + WITHIN
        while host.waiting < count:
            if time.monotonic() > until:
                raise RuntimeError(f"{host.waiting} of {count}: {daemon.log()[-2000:]}")
            await asyncio.sleep(0.1)
        return _memory(daemon)
    finally:
        for client in clients:
            client.close()


class _Host:
    """Takes everything at many addresses; or waits at the final dot."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.answers = True
        self.waiting = 0
        self.port = 0
        self._addresses = addresses
        self._server: asyncio.Server

    async def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._server = await asyncio.start_server(
            self._take, list(self._addresses), self.port, backlog=1000
        )

    def close(self) -> None:
        self._server.close()

    async def _take(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"220 mx.example.com\r\n")
        try:
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    writer.write(b"250-mx.example.com\r\n250 PIPELINING\r\n")
                    continue
                if verb == b"DATA":
                    writer.write(b"354 go ahead\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    self.waiting += not self.answers
                    if not self.answers:
                        continue
                writer.write(b"250 2.0.0 ok\r\n")
                if verb == b"QUIT":
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of them is at its end
        writer.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
