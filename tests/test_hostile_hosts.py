"""Hosts and name servers that mean harm, met by the real command.

Whatever they send and however long: the process keeps to its memory and its time,
says the truth once, and nothing of theirs reaches a terminal, a log or the mail
server unescaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.dns_server import DnsServer, dns_server, faults
from tests.helpers.piping import CHECKOUT, MESSAGE, Ended, Host, Runner, pipe
from tests.helpers.scripted_smtp import Answer, End

__all__ = ["pipe"]  # a fixture

DEADLINE = 4.0
ENOUGH = 50.0  # where no host makes us wait for it
# Seconds past the deadline, for Python to begin and for others on the machine.
SLACK = 30.0
# Seconds until a host that waits for nothing hangs up. For the reply to a final dot
# mxpolicy waits ten minutes; `test_session` sees to it that it is no more.
HOST_PATIENCE = DEADLINE + 2.0
# KiB over the healthy run. One read of 64 KiB and one reply of as much are kept;
# the rest is what an allocator may do with them.
MORE_MEMORY = 4096

# A megabyte: hosts are heard while it is being written.
LARGE = MESSAGE + b"A line of the message.\n" * 45_000

# -- what hosts do ------------------------------------------------------------------


def flood(beginning: bytes, piece: bytes) -> Answer:
    """Send *piece* for as long as it is taken."""

    async def deed(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return (beginning, deed)


def drip(beginning: bytes, piece: bytes) -> Answer:
    """Send *piece* now and then, for longer than there is time."""
    return (beginning, *(0.05, piece) * int(HOST_PATIENCE / 0.05), End.CLOSE)


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Say nothing more, and read until the client has left, or long enough."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HOST_PATIENCE):
            while await reader.read(65536):
                pass


async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Neither speak nor read, for long enough."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(HOST_PATIENCE)


def hostile(step: str, deed: Answer, script: Mapping[str, Answer]) -> Host:
    """Return a good host up to one *step*, at which it does its *deed*."""
    if step == "DOT":  # what was no reply is waited out for ten minutes
        deed = (*(deed if isinstance(deed, tuple) else (deed,)), End.CLOSE)
    return Host({**script, step: deed})


CODES = {
    "CONNECT": b"220",
    "EHLO": b"250",
    "MAIL": b"250",
    "RCPT": b"250",
    "DATA": b"354",
    "BODY": b"550",
    "DOT": b"250",
}
STARTTLS = "250-host.example\n250 STARTTLS"
# The beginning of a handshake message of 16 MiB, record by record.
ENDLESS_HELLO = b"\x16\x03\x03\x40\x04\x0b\xff\xff\xff" + b"x" * 0x4000
HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html>"


def _cases() -> Iterator[Any]:
    """Yield (step, deeds, script), each with its name."""
    for step, code in CODES.items():
        # Until the deadline: so these are met at once.
        waits: dict[str, Answer] = {
            "byte by byte": drip(code + b"-", b"x"),
            "line by line": drip(b"", code + b"-x\r\n"),
            "binary": bytes(range(256)) + b"\r\n",
            "hung": (hang, End.CLOSE),
            "deaf": (deaf, End.CLOSE),
        }
        yield pytest.param(step, waits, {}, id=f"{step}, no end")
        more: dict[str, Answer] = {
            "endless line": flood(code + b" ", b"x" * 65536),
            "endless reply": flood(b"", (code + b"-line\r\n") * 6000),
            "endless replies": flood(b"", (code + b" reply\r\n") * 6000),
            "endless zeros": flood(b"", bytes(65536)),
            "endless CR": flood(code + b" x", b"\r" * 65536),
            "4yz": b"451 4.3.0 later\r\n",
            "5yz": b"550 5.7.1 no\r\n",
            "421": b"421 4.3.2 bye\r\n",
            "closed": End.CLOSE,
            "reset": End.RESET,
        }
        for name, deed in more.items():
            yield pytest.param(step, {name: deed}, {}, id=f"{step}, {name}")
    hello = {"EHLO": STARTTLS}
    for name, step, deed, script in (
        ("HTTP", "CONNECT", HTTP, {}),
        ("masked", "CONNECT", b"220 " + b"*" * 60 + b"\r\n", {}),
        ("endless keywords", "EHLO", flood(b"", b"250-X Y\r\n" * 9000), {}),
        ("refused", "STARTTLS", b"454 4.7.0 no\r\n", hello),
        ("hung", "STARTTLS", (hang, End.CLOSE), hello),
        ("closed", "STARTTLS", End.CLOSE, hello),
        ("injected", "STARTTLS", (b"220 go\r\n250 ok\r\n", hang, End.CLOSE), hello),
        ("broken", "STARTTLS", flood(b"220 go\r\n", b"\xff" * 65536), hello),
        ("endless hello", "STARTTLS", flood(b"220 go\r\n", ENDLESS_HELLO), hello),
        ("slow hello", "STARTTLS", drip(b"220 go\r\n", b"\x16"), hello),
        ("hung", "QUIT", (hang, End.CLOSE), {}),
        ("endless", "QUIT", flood(b"", b"221-bye\r\n" * 6000), {}),
    ):
        yield pytest.param(step, {name: deed}, script, id=f"{step}, {name}")


# -- memory, time and truth -----------------------------------------------------------

# The most memory the process ever had, written on its way out. (What wait4 tells
# includes what the test had when it forked.)
MEASURE = """
import os
leave = os._exit
def measured(status):
    with open('/proc/self/status') as told, open({file!r}, 'w') as file:
        file.write(next(line for line in told if line.startswith('VmHWM')))
    leave(status)
os._exit = measured
"""


def _configure(pipe: Runner, **log: str) -> None:
    words = ", ".join(f"{key}: {value}" for key, value in log.items())
    pipe.config.write_text(
        "allow_dial: [127.0.0.0/8]\nhelo: mail.example.com\n"
        "race: {phase_patience: 300ms}\n"
        f"state: {pipe.directory / 'none'}\n"
        f"log: {{to: {pipe.log}, detail: events, {words}}}\n"
    )


def _memory(
    pipe: Runner, nexthop: str, *recipients: str, deadline: float = ENOUGH
) -> tuple[Ended, int]:
    """Deliver; return how that ended, and the most KiB that it took."""
    file = pipe.directory / "memory"
    recipients = recipients or ("b@b.example",)
    argv = ["--deadline", f"{deadline:g}s", *pipe.argv(nexthop, *recipients)]
    # The reply to the final dot has 600 s beyond the deadline; here as long as that.
    hasty = (
        "from mxpolicy.delivery import transaction\n"
        f"transaction.DOT_TIME = {DEADLINE}\n"
    )
    ended = pipe.run(argv, LARGE, before=hasty + MEASURE.format(file=str(file)))
    return ended, int(file.read_text().split()[1])


@pytest.fixture(scope="module")
def healthy_memory(tmp_path_factory: pytest.TempPathFactory) -> int:
    runner = Runner(tmp_path_factory.mktemp("healthy"))
    _configure(runner)
    with contextlib.closing(Host()) as good:
        ended, memory = _memory(runner, good.nexthop)
    assert ended.status == 0
    return memory


@pytest.mark.parametrize(("step", "deeds", "script"), list(_cases()))
def test_host_takes_no_memory_no_time_and_no_message(
    step: str,
    deeds: dict[str, Answer],
    script: dict[str, Answer],
    tmp_path: Path,
    healthy_memory: int,
) -> None:
    def meet(name: str) -> None:
        (tmp_path / name).mkdir()
        _meet(step, deeds[name], script, Runner(tmp_path / name), healthy_memory)

    with ThreadPoolExecutor(len(deeds)) as pool:
        met = {name: pool.submit(meet, name) for name in deeds}
    troubles = {name: one.exception() for name, one in met.items()}
    for name in filter(troubles.get, troubles):
        raise AssertionError(name) from troubles[name]


def _meet(
    step: str,
    deed: Answer,
    script: dict[str, Answer],
    pipe: Runner,
    healthy_memory: int,
) -> None:
    _configure(pipe)
    began = time.monotonic()
    with (
        contextlib.closing(hostile(step, deed, script)) as bad,
        contextlib.closing(Host()) as good,
    ):
        hops = f"{bad.nexthop}, {good.nexthop}"
        ended, memory = _memory(pipe, hops, deadline=DEADLINE)
    dot_time = DEADLINE if step == "DOT" else 0.0
    assert time.monotonic() - began < DEADLINE + dot_time + SLACK
    assert memory < healthy_memory + MORE_MEMORY
    assert_shown(ended, pipe.log)
    assert ended.status in (0, 69, 75)
    if good.messages:
        assert ended.status == 0
    if step in ("BODY", "DOT"):  # what they said counts, not that they read it all
        assert len(good.messages) <= 1
    else:
        assert len(good.messages) + len(bad.messages) == (ended.status == 0)


def test_long_refusals_of_many_recipients_take_no_memory(
    pipe: Runner, healthy_memory: int
) -> None:
    _configure(pipe)
    long = b"550-" + b"no such user here, " * 33 + b"\r\n"
    deed = long * 98 + b"550 really\r\n"
    many = [f"user{number}@b.example" for number in range(500)]
    with contextlib.closing(hostile("RCPT", deed, {})) as bad:
        ended, memory = _memory(pipe, bad.nexthop, *many)
    assert ended.status == 69
    assert memory < healthy_memory + MORE_MEMORY


# -- what they say -------------------------------------------------------------------

# A terminal's title, colours and more; C1 controls; an end of line in each of its
# forms; text that turns around; half of a character.
NASTY = (
    b"\x1b]0;owned\x07\x1b[2J\x1b[31m \x9b31m \x85 \x00\x08\x7f\t\x0b\x0c\r \xe2\x80\xa8"
    b"\xe2\x80\xa9 \xe2\x80\xae\xe2\x81\xa6 \xef\xbb\xbf \xff\xfe \xc3 \xf0\x9f %s%n {0}"
)


def assert_shown(ended: Ended, log: Path) -> None:
    """Nothing but printable ASCII in the answer and in the log, in either form."""
    [answer] = ended.answers
    assert re.fullmatch(rb"[ -~]+", answer), answer
    for line in log.read_bytes().split(b"\n"):
        assert re.fullmatch(rb"[ -~]*", line), line
        if line.startswith(b"{"):
            for text in _strings(json.loads(line)):
                assert re.fullmatch(r"[ -~]*", text), text


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


@pytest.mark.parametrize("log_format", ["postfix", "json"])
@pytest.mark.parametrize(
    "beginning", [b"250 ", b"450 4.7.1 ", b"550-5.7.1 \r\n550 ", b""]
)
@pytest.mark.parametrize("step", CODES)
def test_what_a_host_says_is_escaped_everywhere(
    step: str, beginning: bytes, log_format: str, pipe: Runner
) -> None:
    _configure(pipe, format=log_format)
    # What is no reply is skipped, and would be waited for: then the host hangs up.
    said = beginning + NASTY + b"\r\n"
    deed: Answer = said if beginning else (said, End.CLOSE)
    with contextlib.closing(hostile(step, deed, {})) as bad:
        ended, _ = _memory(pipe, bad.nexthop)
    assert_shown(ended, pipe.log)
    if beginning.startswith((b"4", b"5")) and step not in ("CONNECT", "EHLO"):
        assert b"?]0;owned??[2J?[31m" in ended.answers[0]
        assert "?]0;owned??[2J?[31m" in pipe.log.read_text()


# Bytes of MX names and of an explanation (RFC 8914), in the notation of zone files.
ODD = r"\027]0\;owned\007\027[2J\226\128\174\155.example."
ZONE = (
    f"odd.example. 60 MX 5 {ODD}",
    "odd.example. 60 MX 6 -bad.example.",
    "odd.example. 60 MX 10 mx.example.",
    f"only.example. 60 MX 5 {ODD}",
    f"chain.example. 60 CNAME {ODD}",
    f"away.example. 60 MX 5 {ODD}",
)


@pytest.fixture
def name_server() -> Iterator[Callable[..., str]]:
    """Serve `ZONE` from a thread of its own, with a fault if one is given."""
    loop = asyncio.new_event_loop()
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=lambda: loop))
        stop = asyncio.Event()

        def serve(fault: Any = None) -> str:
            started: asyncio.Future[DnsServer] = loop.create_future()

            async def main() -> None:
                async with dns_server(*ZONE) as server:
                    server.fault = server.tcp_fault = fault
                    started.set_result(server)
                    await stop.wait()

            thread = threading.Thread(target=runner.run, args=(main(),))
            thread.start()
            stack.callback(thread.join)
            stack.callback(loop.call_soon_threadsafe, stop.set)
            while not started.done():
                time.sleep(0.01)
            return started.result().text

        yield serve


DOMAINS = pytest.mark.parametrize(
    ("domain", "fault"),
    [
        ("odd.example", None),
        ("only.example", None),
        ("chain.example", None),
        ("bogus.example", faults.rcode("SERVFAIL")),
        ("broken.example", faults.garbage),
    ],
)


@DOMAINS
def test_what_a_name_server_says_is_escaped_everywhere(
    domain: str, fault: Any, pipe: Runner, name_server: Callable[..., str]
) -> None:
    server = name_server(fault)
    for log_format in ("postfix", "json"):
        pipe.config.write_text(
            f"resolver: {{servers: ['{server}'], timeout: 2s}}\n"
            f"state: {pipe.directory / 'none'}\n"
            f"log: {{to: {pipe.log}, detail: events, format: {log_format}}}\n"
        )
        argv = ["-f", "", "--config", str(pipe.config), "--", f"b@{domain}"]
        assert_shown(pipe.run(argv), pipe.log)
    for more in ([], ["--json"]):
        argv = ["route", domain, "--config", str(pipe.config), *more]
        shown = subprocess.run(
            [sys.executable, "-m", "mxpolicy", *argv],
            cwd=CHECKOUT,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert shown.stdout
        assert re.fullmatch(rb"[ -~\n]*", shown.stdout + shown.stderr), shown
        if more:
            for text in _strings(json.loads(shown.stdout)):
                assert re.fullmatch(r"[ -~]*", text), text
