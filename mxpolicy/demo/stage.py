"""One story, really played: hosts and name server up, ``mxpolicy pipe`` run, the outcome judged.

The command is run as a mail server runs it: a configuration file, the message
with LF line ends on stdin, stdout and stderr one pipe, the exit status the
answer. What happens meanwhile is read from the log that the command writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mxpolicy.demo import names
from mxpolicy.demo.hosts import DemoError, Hosts, Taken, open_hosts
from mxpolicy.demo.logfile import LogFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from mxpolicy.demo.stories import Story
    from mxpolicy.demo.timeline import Step

__all__ = ["SENDER", "Audience", "Result", "judge", "message_of", "perform"]

SENDER = "postmaster@sender.example"
HELO = "gate.sender.example"
NAME_SERVER = "127.0.0.10"
TICK = 0.03
# Long after the longest story; the command itself would have deferred by then.
PATIENCE = 120.0
FAREWELL = 5.0

# Everything that a careless relay breaks: dots at line starts, a line that is a
# dot, 8-bit text, trailing blanks, empty lines at both ends of the body.
BODY = """
This message came past a firewall.

.
..and lines that begin with dots, and a trailing blank:\x20
Grüße, こんにちは, 0123456789

"""


class Audience(Protocol):
    """Who watches a story."""

    def step(self, step: Step) -> None:
        """Something happened."""

    def tick(self, now: float) -> None:
        """Nothing happened; it is *now* seconds since the command was started."""


class Result(NamedTuple):
    """How a story came out.

    Attributes:
        exit_status: Of the command; negative when a signal ended it.
        seconds: From its start to its end.
        answer: Its output, one line for a mail server.
        taken_by: Places of the hosts that took the message, one each time.
        faults: What did not come out as it must; empty when all did.
    """

    story: Story
    exit_status: int
    seconds: float
    answer: str
    taken_by: tuple[int, ...]
    faults: tuple[str, ...]


def _command() -> list[str]:
    """Return the command line that starts mxpolicy again as it was started now."""
    started = Path(sys.argv[0])
    again = [str(started.absolute())]
    if started.name != "mxpolicy" or not os.access(started, os.X_OK):
        again = [sys.executable, "-m", "mxpolicy"]
    if os.getpid() == 1:
        # The pipe command takes a parent that is process 1 for a sign that the
        # mail server died. In a container that may be us.
        again = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *again]
    return again


async def perform(story: Story, directory: Path, audience: Audience) -> Result:
    """Play *story* with its files in *directory*, which is made.

    Nothing is left running or listening afterwards, however this ends.

    Raises:
        DemoError: This machine cannot show it.
    """
    async with _world(story) as (hosts, resolver):
        log, config = _prepare(directory, hosts.port, resolver)
        message = message_of(story)
        lines = LogFile(log, time.time())
        began = time.monotonic()
        async with _running(_arguments(story, config)) as process:
            talk = asyncio.create_task(process.communicate(message))
            try:
                await _watch(talk, lines, audience, began)
            finally:
                talk.cancel()
                await asyncio.wait([talk])
        seconds = time.monotonic() - began
        output, _ = talk.result()
        status = process.returncode
        assert status is not None  # communicate() waits for the end
        return judge(story, status, seconds, output, message, hosts.taken)


def _arguments(story: Story, config: Path) -> list[str]:
    return [
        *_command(),
        *("pipe", "-f", SENDER, "--nexthop", story.domain),
        *("--queue-id", "DEMO", "--config", str(config), "--", story.recipient),
    ]


async def _watch(
    talk: asyncio.Task[tuple[bytes, bytes]],
    log: LogFile,
    audience: Audience,
    began: float,
) -> None:
    """Show the audience what the log says until the command has ended."""
    running = True
    while running:
        running = not talk.done()
        now = time.monotonic() - began
        if now > PATIENCE:
            raise DemoError(f"mxpolicy pipe did not end within {PATIENCE:.0f} s")
        for step in log.new_steps():
            audience.step(step)
        audience.tick(now)
        if running:
            await asyncio.wait([talk], timeout=TICK)


@contextlib.asynccontextmanager
async def _world(story: Story) -> AsyncIterator[tuple[Hosts, str]]:
    """Have the story's hosts and its name server up; yield both, the latter as ADDRESS:PORT."""
    named = [(story.host_name(n), how) for n, how in enumerate(story.hosts)]
    with open_hosts(named) as (hosts, addresses), _name_server_socket() as sock:
        records = [
            (name, addr) for (name, _), addr in zip(named, addresses, strict=True)
        ]
        started = asyncio.Event()
        serving = [
            asyncio.create_task(hosts.serve(started)),
            asyncio.create_task(names.serve(names.Zone(story.domain, records), sock)),
        ]
        try:
            ready = asyncio.create_task(started.wait())
            await asyncio.wait([ready, *serving], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            _raise_first(serving)
            yield hosts, f"{NAME_SERVER}:{sock.getsockname()[1]}"
            _raise_first(serving)
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)


def _raise_first(serving: Sequence[asyncio.Task[None]]) -> None:
    """Servers end by being cancelled; one that has ended by itself says why."""
    for task in serving:
        if task.done():
            task.result()


@contextlib.contextmanager
def _name_server_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.bind((NAME_SERVER, 0))
        except OSError as error:
            raise DemoError(f"cannot use {NAME_SERVER}: {error.strerror}") from error
        yield sock


@contextlib.asynccontextmanager
async def _running(
    arguments: Sequence[str],
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the command in a session of its own; at the end nothing of it is left.

    In a session of its own, because a Ctrl-C is for us, who then end it.
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in {"MXPOLICY_CONFIG", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"}
    }
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the process and its children to stop, insist after a while, and wait."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await process.wait()


def _prepare(directory: Path, port: int, resolver: str) -> tuple[Path, Path]:
    """Make *directory* with a configuration in it; return the log's path and its own."""
    (directory / "state").mkdir(parents=True)
    log, config = directory / "log", directory / "mxpolicy.yaml"
    lines = [
        f"helo: {HELO}",
        f"resolver: {{servers: [{json.dumps(resolver)}]}}",  # a JSON string is YAML
        "allow_dial: [127.0.0.0/8]",
        f"state: {json.dumps(str(directory / 'state'))}",
        f"log: {{to: {json.dumps(str(log))}, format: json, detail: events}}",
    ]
    if port:
        lines.append(f"port: {port}")
    config.write_text("\n".join(lines) + "\n")
    return log, config


def message_of(story: Story) -> bytes:
    """Return the message as a mail server gives it to a pipe: LF line ends, Received: on top."""
    headers = [
        f"Received: by {HELO}; {formatdate()}",
        f"From: <{SENDER}>",
        f"To: <{story.recipient}>",
        f"Subject: mxpolicy demo: {story.name}",
        f"Date: {formatdate()}",
        f"Message-ID: {make_msgid(domain='sender.example')}",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
    ]
    return ("\n".join(headers) + "\n" + BODY).encode()


def judge(
    story: Story,
    status: int,
    seconds: float,
    output: bytes,
    message: bytes,
    taken: Sequence[Taken],
) -> Result:
    """Compare what happened with what the story demands."""
    faults: list[str] = []
    taken_by = tuple(one.place for one in taken)
    wanted = () if story.delivered_to is None else (story.delivered_to,)
    if status != story.exit_status:
        faults.append(f"exit {status} instead of {story.exit_status}")
    if taken_by != wanted:
        faults.append(f"taken by {_labels(taken_by)} instead of {_labels(wanted)}")
    for one in taken:
        if one.mail_data != message.replace(b"\n", b"\r\n"):
            faults.append(f"the message arrived changed at {_labels([one.place])}")
        if (one.reverse_path, one.forward_paths) != (SENDER, (story.recipient,)):
            faults.append(f"the envelope arrived changed at {_labels([one.place])}")
    if seconds > story.within:
        faults.append(f"took more than {story.within:.0f} s")
    answer = output.decode("utf-8", "replace").strip()
    return Result(story, status, seconds, answer, taken_by, tuple(faults))


def _labels(places: Sequence[int]) -> str:
    return ", ".join(f"mx{place + 1}" for place in places) or "nobody"
