"""Questions for a second that mxpolicy answers about known domains, and their price.

    python -m tests.bench policy [QUESTIONS] [--checkout]

Needs neither root nor the lab: a name server on loopback answers once, and the rest
comes from what is kept. Each question is asked when the last one has its answer, as
smtpd(8) does, about a recipient and a sender of two domains.

serve      `mxpolicy serve`, at its unix socket; by uvloop, and by asyncio
policy     `mxpolicy policy`, as spawn(8) runs it
nothing    the same with a wrong configuration, which answers DUNNO to everything: what a
           Python, a socket and whoever asks take by themselves
resolver   postfix-mta-sts-resolver, which answers another question (socketmap: the TLS
           policy of a domain) out of its own cache in memory, where that of the domain
           was put before; by uvloop, and by asyncio. pip fetches it

mxpolicy is installed as a user has it, and all run by the same Python (`installation`).
With --checkout it is the checkout that runs, by the Python of this program, and nothing
beside it; so nothing is fetched. Processor time is that of the process that answers: user and system, /proc/PID/stat.
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
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.helpers.dns_server import dns_server

from . import report
from .installation import installation, peer

# At the same time, each with a connection of its own: Postfix's default_process_limit.
CLIENTS = 100

RATES = 5
"""A rate is the median of so many."""

_ZONE = (
    "good.example. 3600 MX 10 mx.good.example.",
    "mx.good.example. 3600 A 192.0.2.10",
    "mx.good.example. 3600 AAAA 2001:db8::10",
)
# As Postfix 3.7 asks, with all that it says.
_QUESTION = (
    b"request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n"
    b"client_address=192.0.2.99\nclient_name=mail.client.example\nclient_port=51234\n"
    b"reverse_client_name=mail.client.example\nserver_address=192.0.2.1\n"
    b"server_port=25\nhelo_name=mail.client.example\nsender=kim@good.example\n"
    b"recipient=%b\nrecipient_count=0\nqueue_id=\ninstance=3f1.65f2a1b0.51234.0\n"
    b"size=2345\netrn_domain=\nstress=\nsasl_method=\nsasl_username=\nsasl_sender=\n"
    b"ccert_subject=\nccert_issuer=\nccert_fingerprint=\nccert_pubkey_fingerprint=\n"
    b"encryption_protocol=TLSv1.3\nencryption_cipher=TLS_AES_256_GCM_SHA384\n"
    b"encryption_keysize=256\npolicy_context=\n\n"
)
_GOOD = _QUESTION % b"pat@good.example"


class Figures(NamedTuple):
    """What one process that answers was measured to take.

    Attributes:
        first: Seconds from the start to the first answer.
        good: Questions a second, about a known recipient.
        many: The same of `CLIENTS` that ask at the same time; 0 where each has a process.
        processor: Seconds for a question of one client.
        memory: KiB of its own.
    """

    first: float
    good: float
    many: float
    processor: float
    memory: int


class _Server(NamedTuple):
    """One that answers at a socket: its command line, what is asked, how an answer ends."""

    name: str
    command: Sequence[str]
    question: bytes = _GOOD
    end: bytes = b"\n\n"


# In place of uvloop's, asyncio's own loop.
_WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None\n"
_SERVE = "from mxpolicy.cli import main\nraise SystemExit(main())"

_RESOLVER = """
import asyncio, sys, time
from postfix_mta_sts_resolver import utils
from postfix_mta_sts_resolver.base_cache import CacheEntry
from postfix_mta_sts_resolver.responder import STSSocketmapResponder

async def main(path):
    config = utils.populate_cfg_defaults({"path": path, "cache_grace": 86400})
    cache = utils.create_cache("internal", {"cache_size": 10000})
    await cache.setup()
    policy = {"version": "STSv1", "mode": "enforce", "mx": ["mx.good.example"]}
    entry = CacheEntry(time.time(), "1", {**policy, "max_age": 86400})
    await cache.set("good.example", entry)
    responder = STSSocketmapResponder(config, asyncio.get_running_loop(), cache)
    await responder.start()
    await asyncio.Event().wait()

if sys.argv[2] == "uvloop":
    assert utils.enable_uvloop()
asyncio.run(main(sys.argv[1]))
"""
_MAP_QUESTION = b"postfix good.example"


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there is a table."""
    parser = argparse.ArgumentParser("python -m tests.bench policy")
    parser.add_argument("questions", nargs="?", type=int, default=5000)
    parser.add_argument("--checkout", action="store_true")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    print(table(options.questions, is_checkout=options.checkout))
    print(f"\n{report.circumstances(begun)}")
    return 0


def table(count: int, *, is_checkout: bool = False) -> str:
    """Return the table for *count* questions of each kind."""
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(_measure_all(Path(directory), count, is_checkout))
    name, reference = list(found.items())[-1]
    head = (
        *("access policy", "one client", f"of {name}'s", f"{CLIENTS} clients"),
        *("processor time", "first answer after", "memory of its own"),
    )
    rows = [
        (
            name,
            f"{one.good:.0f}/s",
            report.ratio(one.good, reference.good),
            f"{one.many:.0f}/s" if one.many else "",
            f"{one.processor * 1e6:.0f} us",
            report.seconds(one.first),
            report.mebibytes(one.memory),
        )
        for name, one in found.items()
    ]
    return report.table(head, rows)


async def _measure_all(
    directory: Path, count: int, is_checkout: bool
) -> dict[str, Figures]:
    python = sys.executable
    if not is_checkout:
        python = str(installation() / "bin" / "python3")
    right, wrong = directory / "right.yaml", directory / "wrong.yaml"
    wrong.write_text("policy: {rulez: []}\n")
    run = directory / "run"
    run.mkdir()
    serve = ("serve", "--config", str(right))
    servers = [
        _Server("serve, uvloop", (python, "-c", _SERVE, *serve)),
        _Server("serve, asyncio", (python, "-c", _WITHOUT_UVLOOP + _SERVE, *serve)),
    ]
    found = {}
    async with dns_server(*_ZONE) as server:
        right.write_text(
            f"resolver: {{servers: ['{server.text}']}}\nlog: {{to: /dev/null}}\n"
            f"state: {directory}\n"
        )
        for one in servers:
            found[one.name] = await asyncio.to_thread(_measure_server, one, run, count)
        for name, config in (("policy", right), ("nothing", wrong)):
            command = (python, "-m", "mxpolicy", "policy", "--config", str(config))
            found[name] = await asyncio.to_thread(_measure_policy, command, count)
        for one in () if is_checkout else _resolvers(run):
            found[one.name] = await asyncio.to_thread(_measure_server, one, run, count)
    return found


def _resolvers(run: Path) -> list[_Server]:
    python = str(peer("postfix-mta-sts-resolver", "uvloop") / "bin" / "python3")
    asked = b"%d:%b," % (len(_MAP_QUESTION), _MAP_QUESTION)
    return [
        _Server(
            f"resolver, {loop}",
            (python, "-c", _RESOLVER, str(run / "policy"), loop),
            *(asked, b","),
        )
        for loop in ("uvloop", "asyncio")
    ]


def _measure_server(server: _Server, run: Path, count: int) -> Figures:
    path = run / "policy"
    path.unlink(missing_ok=True)
    began = time.monotonic()
    environ = {**os.environ, "RUNTIME_DIRECTORY": str(run)}
    with (
        subprocess.Popen(server.command, env=environ, cwd="/") as process,
        ExitStack() as clients,
    ):
        try:
            connection = clients.enter_context(_connected(path, process))
            figures = _figures(connection, server, process.pid, began, count)
            many = [
                clients.enter_context(_connected(path, process)) for _ in range(CLIENTS)
            ]
            return figures._replace(many=_rate_of_many(many, server, count))
        finally:
            process.terminate()


def _connected(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """Return a connection to *path*, as soon as *process* listens there."""
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"it has ended: {process.args!r}")
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            time.sleep(0.005)
        else:
            return connection


def _measure_policy(command: Sequence[str], count: int) -> Figures:
    ours, theirs = socket.socketpair()
    began = time.monotonic()
    with (
        ours,
        subprocess.Popen(
            command, stdin=theirs.fileno(), stdout=theirs.fileno(), cwd="/"
        ) as process,
    ):
        theirs.close()
        figures = _figures(ours, _Server("", command), process.pid, began, count)
        ours.shutdown(socket.SHUT_WR)
    return figures


def _figures(
    connection: socket.socket, server: _Server, pid: int, began: float, count: int
) -> Figures:
    _ask(connection, server, 1)
    first = time.monotonic() - began
    before = _processor_time(pid)
    good = median(_rate(connection, server, count // RATES) for _ in range(RATES))
    used = (_processor_time(pid) - before) / (count // RATES * RATES)
    return Figures(first, good, 0.0, used, _own_memory(pid))


def _processor_time(pid: int) -> float:
    """Return the seconds, user and system, of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rate(connection: socket.socket, server: _Server, count: int) -> float:
    began = time.monotonic()
    _ask(connection, server, count)
    return count / (time.monotonic() - began)


def _ask(connection: socket.socket, server: _Server, count: int) -> None:
    for _ in range(count):
        connection.sendall(server.question)
        _answer(connection, server)


def _answer(connection: socket.socket, server: _Server) -> None:
    answer = b""
    while not answer.endswith(server.end):
        more = connection.recv(4096)
        if not more:
            raise RuntimeError(f"{server.name} has hung up")
        answer += more


def _rate_of_many(
    connections: Sequence[socket.socket], server: _Server, count: int
) -> float:
    """Return the rate when each asks again as soon as it has its answer."""
    began = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for one in connections:
            selector.register(one, selectors.EVENT_READ, one)
            one.sendall(server.question)
        answered = 0
        while answered < count:
            for key, _ in selector.select():
                _answer(key.data, server)
                answered += 1
                key.data.sendall(server.question)
    return answered / (time.monotonic() - began)


def _own_memory(pid: int) -> int:
    """Return the KiB that nobody shares with the process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
