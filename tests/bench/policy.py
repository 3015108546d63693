"""Questions for a second that mxpolicy answers about known domains, and their price.

    python -m tests.bench policy [QUESTIONS]

Needs neither root nor the lab: a name server on loopback answers once, and the rest
comes from what is kept. Each question is asked when the last one has its answer, as
smtpd(8) does, about a recipient and a sender of two domains.

daemon    `mxpolicy serve`, at its unix socket; by uvloop where that is installed
policy    `mxpolicy policy`, as spawn(8) runs it
nothing   the same with a wrong configuration, which answers DUNNO to everything: what a
          Python, a socket and whoever asks take by themselves

Processor time is that of the process that answers: user and system, /proc/PID/stat.
"""

import argparse
import asyncio
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.helpers.dns_server import dns_server

from . import report

# At the same time, each with a connection of its own: Postfix's default_process_limit.
CLIENTS = 100

_ZONE = (
    "null.example. 3600 MX 0 .",
    "good.example. 3600 MX 10 mx.good.example.",
    "mx.good.example. 3600 A 192.0.2.10",
    "mx.good.example. 3600 AAAA 2001:db8::10",
)
_QUESTION = (
    b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.99\n"
    b"sender=kim@good.example\nrecipient=%b\n\n"
)
_GOOD = _QUESTION % b"pat@good.example"
_NULL = _QUESTION % b"pat@null.example"


class _Figures(NamedTuple):
    """What one process that answers was measured to take.

    Attributes:
        first: Seconds from the start to the first answer.
        good, null: Questions a second, about such a recipient.
        many: The same of `CLIENTS` that ask at the same time; 0 where each has a process.
        processor: Seconds for a question about a good recipient.
        memory: KiB of its own.
    """

    first: float
    good: float
    null: float
    many: float
    processor: float
    memory: int


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there is a table."""
    parser = argparse.ArgumentParser("python -m tests.bench policy")
    parser.add_argument("questions", nargs="?", type=int, default=5000)
    count = parser.parse_args(arguments).questions
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(_measure_all(Path(directory), count))
    head = ("", "daemon", "policy", "", "nothing", "")
    print(report.table(head, list(_rows(*figures))))
    print()
    print(report.circumstances(begun))
    return 0


def _rows(
    daemon: _Figures, policy: _Figures, nothing: _Figures
) -> Iterator[tuple[str, ...]]:
    def row(
        what: str, show: Callable[[float], str], of: Callable[[_Figures], float]
    ) -> tuple[str, ...]:
        first, *others = (of(one) for one in (daemon, policy, nothing))
        cells = [show(first)]
        for other in others:
            cells += [show(other), report.ratio(first, other)] if other else ["", ""]
        return (what, *cells)

    def rate(value: float) -> str:
        return f"{value:.0f}/s"

    def microseconds(value: float) -> str:
        return f"{value * 1e6:.0f} us"

    yield row("first answer after", report.seconds, lambda one: one.first)
    yield row("about a good domain", rate, lambda one: one.good)
    yield row("about a null MX", rate, lambda one: one.null)
    yield row(f"{CLIENTS} clients, good", rate, lambda one: one.many)
    yield row("processor time, good", microseconds, lambda one: one.processor)
    yield row("memory of its own", report.mebibytes, lambda one: float(one.memory))


async def _measure_all(directory: Path, count: int) -> list[_Figures]:
    right, wrong = directory / "right.yaml", directory / "wrong.yaml"
    wrong.write_text("policy: {rulez: []}\n")
    (directory / "run").mkdir()
    async with dns_server(*_ZONE) as server:
        right.write_text(
            f"resolver: {{servers: ['{server.text}']}}\nlog: {{to: /dev/null}}\n"
            f"state: {directory}\n"
        )
        return [
            await asyncio.to_thread(_measure_daemon, right, count),
            await asyncio.to_thread(_measure_policy, right, count),
            await asyncio.to_thread(_measure_policy, wrong, count),
        ]


def _measure_daemon(config: Path, count: int) -> _Figures:
    path = config.parent / "run" / "policy"
    command = (sys.executable, "-m", "mxpolicy", "serve", "--config", str(config))
    began = time.monotonic()
    environ = {**os.environ, "RUNTIME_DIRECTORY": str(path.parent)}
    with subprocess.Popen(command, env=environ) as process, ExitStack() as clients:
        try:
            connection = clients.enter_context(_connected(path))
            first, good, null, processor = _figures(
                connection, process.pid, began, count
            )
            memory = _own_memory(process.pid)
            many = [clients.enter_context(_connected(path)) for _ in range(CLIENTS)]
            at_once = _rate_of_many(many, _GOOD, count)
        finally:
            process.terminate()
    return _Figures(first, good, null, at_once, processor, memory)


def _connected(path: Path) -> socket.socket:
    """Return a connection to *path*, as soon as there is a process that listens."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            time.sleep(0.005)
        else:
            return connection


def _measure_policy(config: Path, count: int) -> _Figures:
    ours, theirs = socket.socketpair()
    command = (sys.executable, "-m", "mxpolicy", "policy", "--config", str(config))
    began = time.monotonic()
    with (
        ours,
        subprocess.Popen(
            command, stdin=theirs.fileno(), stdout=theirs.fileno()
        ) as process,
    ):
        theirs.close()
        first, good, null, processor = _figures(ours, process.pid, began, count)
        memory = _own_memory(process.pid)
        ours.shutdown(socket.SHUT_WR)
    return _Figures(first, good, null, 0.0, processor, memory)


def _figures(
    connection: socket.socket, pid: int, began: float, count: int
) -> tuple[float, float, float, float]:
    """Return the first answer's time, both rates, and the processor time for one."""
    _ask(connection, _GOOD, 1)
    first = time.monotonic() - began
    _ask(connection, _NULL, 1)
    before = _processor_time(pid)
    good = _rate(connection, _GOOD, count)
    used = (_processor_time(pid) - before) / count
    return first, good, _rate(connection, _NULL, count), used


def _processor_time(pid: int) -> float:
    """Return the seconds, user and system, of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rate(connection: socket.socket, question: bytes, count: int) -> float:
    began = time.monotonic()
    _ask(connection, question, count)
    return count / (time.monotonic() - began)


def _ask(connection: socket.socket, question: bytes, count: int) -> None:
    for _ in range(count):
        connection.sendall(question)
        answer = b""
        while not answer.endswith(b"\n\n"):
            answer += connection.recv(4096)


def _rate_of_many(
    connections: Sequence[socket.socket], question: bytes, count: int
) -> float:
    """Return the rate when each asks again as soon as it has its answer."""
    began = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for one in connections:
            selector.register(one, selectors.EVENT_READ, one)
            one.sendall(question)
        answered = 0
        while answered < count:
            for key, _ in selector.select():
                answer = b""
                while not answer.endswith(b"\n\n"):
                    answer += key.data.recv(4096)
                answered += 1
                key.data.sendall(question)
    return answered / (time.monotonic() - began)


def _own_memory(pid: int) -> int:
    """Return the KiB that nobody shares with the process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
