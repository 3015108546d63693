"""Questions for a second that `mxpolicy policy` answers, on one connection.

    python -m tests.bench policy [QUESTIONS]

Needs neither root nor the lab: a name server on loopback answers once, and the rest
comes from the cache of the process. Each question is asked when the last one has its
answer, as smtpd(8) does, about a recipient and a sender of two domains.

policy    as spawn(8) runs it
nothing   the same with a wrong configuration, which answers DUNNO to everything: what a
          Python, a socket and whoever asks take by themselves
"""

import argparse
import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.helpers.dns_server import dns_server

from . import report

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
    """`first` is seconds from the start to the first answer; `memory` is KiB of its own."""

    first: float
    good: float
    null: float
    memory: int


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there is a table."""
    parser = argparse.ArgumentParser("python -m tests.bench policy")
    parser.add_argument("questions", nargs="?", type=int, default=5000)
    count = parser.parse_args(arguments).questions
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        policy, nothing = asyncio.run(_measure_both(Path(directory), count))
    head = ("", "policy", "nothing", "")
    print(report.table(head, list(_rows(policy, nothing))))
    print()
    print(report.circumstances(begun))
    return 0


def _rows(policy: _Figures, nothing: _Figures) -> list[tuple[str, ...]]:
    return [
        (
            "first answer after",
            report.seconds(policy.first),
            report.seconds(nothing.first),
            report.ratio(policy.first, nothing.first),
        ),
        (
            "about a good domain",
            f"{policy.good:.0f}/s",
            f"{nothing.good:.0f}/s",
            report.ratio(policy.good, nothing.good),
        ),
        (
            "about a null MX",
            f"{policy.null:.0f}/s",
            f"{nothing.null:.0f}/s",
            report.ratio(policy.null, nothing.null),
        ),
        (
            "memory of its own",
            report.mebibytes(policy.memory),
            report.mebibytes(nothing.memory),
            report.ratio(policy.memory, nothing.memory),
        ),
    ]


async def _measure_both(directory: Path, count: int) -> tuple[_Figures, _Figures]:
    right, wrong = directory / "right.yaml", directory / "wrong.yaml"
    wrong.write_text("policy: {rulez: []}\n")
    async with dns_server(*_ZONE) as server:
        right.write_text(
            f"resolver: {{servers: ['{server.text}']}}\nlog: {{to: /dev/null}}\n"
            f"state: {directory}\n"
        )
        policy = await asyncio.to_thread(_measure, right, count)
        nothing = await asyncio.to_thread(_measure, wrong, count)
    return policy, nothing


def _measure(config: Path, count: int) -> _Figures:
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
        _ask(ours, _GOOD, 1)
        first = time.monotonic() - began
        _ask(ours, _NULL, 1)
        good, null = (_rate(ours, question, count) for question in (_GOOD, _NULL))
        memory = _own_memory(process.pid)
        ours.shutdown(socket.SHUT_WR)
    return _Figures(first, good, null, memory)


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


def _own_memory(pid: int) -> int:
    """Return the KiB that nobody shares with the process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
