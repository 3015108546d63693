"""What a session used again saves: processor time for a message, the engine alone.

    python -m tests.bench sessions [MESSAGES] [--rounds N]

Small messages, 20 at once, to one quick host on loopback, in a process of its own. Runs
in turns: each message with a session of its own or not, with the state in a file or in
memory. Processor time is that of the engine's process, with its threads. The rate
measures the host's delayed acknowledgements as much as us, so it stands beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import multiprocessing
import sys
import tempfile
import time
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.replay import prevails
from mxpolicy.delivery.request import Request
from mxpolicy.options import Options
from mxpolicy.outcome import Delivered
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.opening import open_store

from . import report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from mxpolicy.state.store import Store

# As the daemon has it (`mxpolicy.daemon`).
HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None

AT_ONCE = 20
ROUNDS = 3
TEXT = b"Subject: small\r\n\r\n" + b"A line of text, and not the only one.\r\n" * 40


class Used(NamedTuple):
    """What a message took, in seconds; and in connections."""

    processor: float
    wall: float
    connections: float


class _Host(asyncio.Protocol):
    """Takes everything."""

    connections = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = b""
        self._is_body = False
        _Host.connections += 1
        transport.write(b"220 mx.example.com ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = b"\r\n.\r\n" if self._is_body else b"\r\n"
            line, found, rest = self._buffer.partition(end)
            if not found:
                return
            self._buffer = rest
            self._answer(line)

    def _answer(self, line: bytes) -> None:
        verb = b"" if self._is_body else line[:4].upper()
        self._is_body = verb == b"DATA"
        said = {
            b"EHLO": b"250-mx.example.com\r\n250-PIPELINING\r\n250 SIZE 10000000\r\n",
            b"DATA": b"354 go ahead\r\n",
            b"QUIT": b"221 2.0.0 Bye\r\n",
        }
        self._transport.write(said.get(verb, b"250 2.0.0 Ok\r\n"))
        if verb == b"QUIT":
            self._transport.close()


def serve_host(pipe: Connection) -> None:
    """Serve a host that takes everything, until False comes; send its port first."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Host, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        while await loop.run_in_executor(None, pipe.recv):
            pipe.send(_Host.connections)

    asyncio.run(work())


async def deliver(
    engine: Engine, port: int, numbers: Sequence[str], at_once: int = AT_ONCE
) -> None:
    """Deliver a small message for each of *numbers* to the host at *port*."""
    left = list(numbers)

    async def work() -> None:
        while left:
            number = left.pop()
            data = MailData()
            data.append(b"Received: by x; id " + number.encode() + b"\r\n" + TEXT)
            data.finish()
            request = Request(
                "alice@example.net",
                (f"bob{number}@example.com",),
                f"[127.0.0.1]:{port}",
                number,
                900.0,
            )
            (outcome,) = await engine.deliver(request, data)
            data.close()
            assert isinstance(outcome, Delivered), outcome

    await asyncio.gather(*(work() for _ in range(at_once)))


def _measure(port: int, name: str, count: int, *, reuse: bool, in_file: bool) -> float:
    async def work() -> float:
        with tempfile.TemporaryDirectory() as directory:
            store: Store = MemoryStore()
            if in_file:
                store = open_store(f"{directory}/state", print, prevails)
            options = Options(helo="mail.example.com", allow_dial=("127.0.0.0/8",))
            engine = Engine(Context(options, store=store, keeps_sessions=reuse))
            await deliver(engine, port, [f"{name}w{one}" for one in range(AT_ONCE)])
            began = time.process_time()
            await deliver(engine, port, [f"{name}{one}" for one in range(count)])
            used = time.process_time() - began
            await engine.stop("the measurement is over")
            await store.close()
            return used / count

    new = importlib.import_module("uvloop").new_event_loop if HAS_UVLOOP else None
    with asyncio.Runner(loop_factory=new) as runner:
        return runner.run(work())


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there is a table."""
    parser = argparse.ArgumentParser("python -m tests.bench sessions")
    parser.add_argument("messages", nargs="?", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    print(f"{table(options.messages, options.rounds)}\n\n{report.circumstances(begun)}")
    return 0


def table(count: int, rounds: int) -> str:
    """Return the table for *count* messages, the best of so many rounds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    host = context.Process(target=serve_host, args=(theirs,), daemon=True)
    host.start()
    port = ours.recv()
    used: dict[tuple[bool, bool], list[Used]] = {}
    for number in range(rounds):
        for in_file, reuse in product((False, True), (False, True)):
            before, at = _connections(ours), time.monotonic()
            name = f"{number}{'file' if in_file else ''}{'reuse' if reuse else ''}x"
            processor = _measure(port, name, count, reuse=reuse, in_file=in_file)
            all_of_them = count + AT_ONCE
            wall = (time.monotonic() - at) / all_of_them
            connections = (_connections(ours) - before) / all_of_them
            one = Used(processor, wall, connections)
            used.setdefault((in_file, reuse), []).append(one)
    ours.send(False)
    host.join()
    least = {one: min(found) for one, found in used.items()}
    rows = [
        [
            f"state in {'a file' if in_file else 'memory'}, "
            f"{'sessions used again' if reuse else 'a session each'}",
            f"{1 / one.wall:.0f}/s",
            f"{one.processor * 1000:.2f} ms",
            report.ratio(one.processor, least[in_file, False].processor),
            f"{one.connections:.3f}",
        ]
        for (in_file, reuse), one in least.items()
    ]
    loop = "uvloop" if HAS_UVLOOP else "asyncio"
    head = [f"the engine alone, {count:,} messages, {AT_ONCE} at once, {loop}"]
    head += ["a second", "processor time", "of a session each", "connections"]
    return report.table(head, rows)


def _connections(pipe: Connection) -> int:
    pipe.send(True)
    found: int = pipe.recv()
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
