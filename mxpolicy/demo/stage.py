"""The stage of one story: its hosts and its name server, and messages sent to them.

A message is sent as a mail server sends it: ``mxpolicy pipe`` with a
configuration file, the message with LF line ends on stdin, stdout and stderr
one pipe, the exit status the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from email.utils import formatdate, make_msgid
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.demo.hosts import (
    Hosts,
    Taken,
    Zone,
    address_of,
    bound,
    open_hosts,
    serve_names,
)
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from mxpolicy.demo.stories import Story

__all__ = ["SENDER", "Result", "Stage", "judge", "message_of", "staged"]

SENDER = "postmaster@sender.example"
HELO = "gate.sender.example"
NAME_SERVER = "127.0.0.10"

# What a careless relay breaks: lines that are a dot or begin with one, 8-bit text,
# trailing blanks, empty lines at both ends of the body.
BODY = """
This message came past a firewall.

.
..and lines that begin with dots, and a trailing blank:\x20
Grüße, こんにちは, 0123456789

"""


class Result(NamedTuple):
    """How one message ended.

    Attributes:
        exit_status: Of the command; negative when a signal ended it.
        seconds: From its start to its end.
        log_line: What it logged about the recipient, without time and process; its
            own answer where that is all there is.
        faults: What is not as it must be.
    """

    exit_status: int
    seconds: float
    log_line: str
    faults: tuple[str, ...]


class Stage:
    """One story with everything up; made by `staged`."""

    def __init__(
        self, story: Story, directory: Path, hosts: Hosts, resolver: str
    ) -> None:
        self._story = story
        self._hosts = hosts
        self._log = directory / "log"
        self._config = directory / "mxpolicy.yaml"
        (directory / "state").mkdir(parents=True)
        lines = [
            f"helo: {HELO}",
            f"resolver: {{servers: [{json.dumps(resolver)}]}}",  # a JSON string is YAML
            "allow_dial: [127.0.0.0/8]",
            f"state: {json.dumps(str(directory / 'state'))}",
            f"log: {{to: {json.dumps(str(self._log))}}}",
            *([f"port: {hosts.port}"] if story.hosts else []),
        ]
        self._config.write_text("\n".join(lines) + "\n")

    async def send(self, number: int) -> Result:
        """Send message *number* of the story, counted from 0, and judge how it ended."""
        message = message_of(self._story)
        self._hosts.taken.clear()
        self._log.write_bytes(b"")
        began = time.monotonic()
        status, output = await _run(self._command(number), message)
        seconds = time.monotonic() - began
        logged = self._log.read_text("utf-8").partition("]: ")[2]
        result = Result(
            status, seconds, printable((logged or output).strip(), 4000), ()
        )
        faults = judge(self._story, number, result, message, self._hosts.taken)
        return result._replace(faults=faults)

    def _command(self, number: int) -> list[str]:
        command = [
            *(sys.executable, "-m", "mxpolicy", "pipe", "-f", SENDER),
            *("--nexthop", self._story.domain, "--queue-id", f"DEMO{number + 1}"),
            *("--config", str(self._config), "--", self._story.recipient),
        ]
        if os.getpid() == 1:
            # Process 1 as its parent tells the pipe command that the mail server died.
            # In a container we may be process 1.
            command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command]
        return command


async def _run(command: Sequence[str], message: bytes) -> tuple[int, str]:
    """Run *command*; return its exit status and its output.

    It has a session of its own: a Ctrl-C is for us. It does not outlive this call.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate(message)
        return await process.wait(), output.decode("utf-8", "replace")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@contextlib.asynccontextmanager
async def staged(story: Story, directory: Path) -> AsyncIterator[Stage]:
    """Open hosts and name server of *story*; make *directory* for its files.

    Raises:
        DemoError: This machine cannot show it.
    """
    addresses = [(story.host_name(n), address_of(n)) for n, _ in enumerate(story.hosts)]
    zone = Zone(story.domain, addresses)
    async with open_hosts(story.hosts) as hosts:
        with bound(NAME_SERVER, 0, socket.SOCK_DGRAM) as sock:
            answering = asyncio.create_task(serve_names(zone, sock))
            resolver = f"{NAME_SERVER}:{sock.getsockname()[1]}"
            try:
                yield Stage(story, directory, hosts, resolver)
            finally:
                answering.cancel()
                await asyncio.wait([answering])


def message_of(story: Story) -> bytes:
    """Return a new message as a mail server pipes it: LF line ends, Received: on top."""
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
    story: Story, number: int, result: Result, message: bytes, taken: Sequence[Taken]
) -> tuple[str, ...]:
    """Return how the end of message *number* differs from what *story* says."""
    faults: list[str] = []
    ending = story.ends[number]
    if result.exit_status != ending.exit_status:
        faults.append(f"exit {result.exit_status} instead of {ending.exit_status}")
    wanted = [] if ending.taken_by is None else [ending.taken_by]
    if (taken_by := [one.place for one in taken]) != wanted:
        faults.append(f"taken by {_labels(taken_by)} instead of {_labels(wanted)}")
    for one in taken:
        if one.mail_data != message.replace(b"\n", b"\r\n"):
            faults.append(f"the message arrived changed at {_labels([one.place])}")
        if one.paths != (SENDER, story.recipient):
            faults.append(f"the envelope arrived changed at {_labels([one.place])}")
    # Seconds for names, until a host was ready, and so on.
    waited = re.search(r" delays=[^/]+/([0-9.]+)/", result.log_line)
    if waited is None:
        faults.append("nothing was logged")
    elif number and float(waited[1]) > story.wait / 2 > 0:
        faults.append(f"the second message waited {waited[1]} s too")
    elif result.seconds > 2 * story.wait + 6:
        faults.append(f"took {result.seconds:.0f} s")
    return tuple(faults)


def _labels(places: Sequence[int]) -> str:
    return ", ".join(f"mx{place + 1}" for place in places) or "no host"
