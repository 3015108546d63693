"""``mxpolicy pipe`` run as a mail server runs it, and a host for it to deliver to.

`host` makes hosts by their scripts; `pipe` is a `Runner`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mxpolicy.protocol.pipe_answer import MAX_ANSWER
from tests.helpers.scripted_smtp import Answer, ScriptedHost

__all__ = [
    "CHECKOUT",
    "MESSAGE",
    "TIMEOUT",
    "Ended",
    "Host",
    "Runner",
    "all_answers",
    "assert_answer",
    "host",
    "pipe",
]

CHECKOUT = Path(__file__).parents[2]
MESSAGE = b"Received: from a by b\nSubject: one\n\nOne line.\n"
TIMEOUT = 60

# -- a host -----------------------------------------------------------------

GOOD = {
    "CONNECT": "220 host.example ESMTP",
    "EHLO": "250-host.example\n250-PIPELINING\n250-8BITMIME\n250 SMTPUTF8",
    "MAIL": "250 2.1.0 Ok",
    "RCPT": "250 2.1.5 Ok",
    "DATA": "354 Go on",
    "DOT": "250 2.0.0 Ok: taken",
    "QUIT": "221 Bye",
}


class Host:
    """A scripted host in a thread of its own, as the test waits for a process.

    Scripts are those of `scripted_smtp`, with ``DOT`` for the final dot. `reached` is set
    when *holds* is the step that is due, and then the host waits for `release`.
    """

    def __init__(
        self,
        script: Mapping[str, Answer] | None = None,
        holds: str = "",
        address: str = "127.0.0.1",
    ) -> None:
        self._holds = holds
        self._host = ScriptedHost()
        self.will({**GOOD, **(script or {})})
        self.reached = threading.Event()
        self.release = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self._open(address))
        self.nexthop = f"[{address}]:{self._host.port}"

    def will(self, script: Mapping[str, Answer]) -> None:
        """Follow *script* too from now on."""
        for key, answer in script.items():
            steps = answer if isinstance(answer, tuple) else (answer,)
            if key == self._holds:
                steps = (self._hold, *steps)
            self._host.will({"." if key == "DOT" else key: steps})

    @property
    def commands(self) -> list[str]:
        """All command lines, in the order of connecting."""
        return self._host.commands

    @property
    def messages(self) -> list[bytes]:
        """The mail data of all that came with a final dot, as it came."""
        return [one.mail_data for one in self._host.messages]

    @property
    def mail_from(self) -> list[str]:
        """What MAIL commands said after their colon."""
        return [one[10:] for one in self.commands if one.startswith("MAIL")]

    @property
    def rcpt_to(self) -> list[str]:
        """What RCPT commands said after their colon."""
        return [one[8:] for one in self.commands if one.startswith("RCPT")]

    def close(self) -> None:
        """Hang up on everybody, and end the thread; a second time does nothing."""
        if self._loop.is_closed():
            return
        self.release.set()
        try:
            self._run(self._host.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT)

    async def _open(self, address: str) -> None:
        self._host.open(address)

    async def _hold(self, *_: object) -> None:
        self.reached.set()
        while not self.release.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.005)


@pytest.fixture
def host() -> Iterator[Callable[..., Host]]:
    """Make hosts by their scripts; close them afterwards."""
    with contextlib.ExitStack() as hosts:

        def make(holds: str = "", address: str = "127.0.0.1", **script: Answer) -> Host:
            one = Host(script, holds, address)
            hosts.callback(one.close)
            return one

        yield make


# -- the command ------------------------------------------------------------


class Ended(NamedTuple):
    """How a run ended: `answers` are the separate writes on its stdout and stderr."""

    status: int
    answers: list[bytes]


class Runner:
    """Runs ``mxpolicy pipe`` with a configuration that allows loopback.

    *python* is the interpreter; by default that of the tests.
    """

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self.directory = directory
        self._python = python
        self.log = directory / "log"
        self.config = directory / "mxpolicy.yaml"
        self.state = directory / "state"
        self.state.mkdir()
        self.configure()

    def configure(self, *more: str) -> None:
        """Write the configuration, with *more* lines."""
        lines = ["allow_dial: [127.0.0.0/8]", "helo: mail.example.com", *more]
        lines.append(f"state: {self.state}")
        self.config.write_text("\n".join([*lines, f"log: {{to: {self.log}}}", ""]))

    def argv(self, nexthop: str, *recipients: str, sender: str = "me@a.example") -> Any:
        """Return the arguments of an ordinary call."""
        options = ["-f", sender, "--nexthop", nexthop, "--queue-id", "QID"]
        return [*options, "--config", str(self.config), "--", *recipients]

    @contextlib.contextmanager
    def started(
        self, argv: Sequence[str], before: str = "", **more: Any
    ) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
        """Start it; stdout and stderr are one socket that keeps writes apart."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(TIMEOUT)
        program = f"from mxpolicy.cli import main\n{before}\nmain()"
        command = [self._python, "-c", program, "pipe", *argv]
        wrap = more.pop("wrap", [])
        more = {"stdin": subprocess.PIPE, "cwd": CHECKOUT, **more}
        with (
            ours,
            theirs,
            _popen([*wrap, *command], stdout=theirs, stderr=theirs, **more) as process,
        ):
            theirs.close()
            try:
                yield process, ours
            finally:
                process.kill()

    def run(self, argv: Sequence[str], message: bytes = MESSAGE, **more: Any) -> Ended:
        """Run it to its end."""
        with self.started(argv, **more) as (process, answers):
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(message)
            found = all_answers(answers)
            return Ended(process.wait(TIMEOUT), found)


def _popen(command: list[str], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, **more)


def all_answers(answers: socket.socket) -> list[bytes]:
    """Return every write until the process has let go of its stdout."""
    return list(iter(lambda: answers.recv(65536), b""))


@pytest.fixture
def pipe(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def assert_answer(ended: Ended, status: int, text: str) -> None:
    """It left with *status* and said one line in one write, beginning with *text*."""
    assert len(ended.answers) == 1, ended
    [line] = ended.answers
    assert re.match(text.encode(), line), ended
    assert re.fullmatch(rb"[ -~]+", line), ended
    assert len(line) <= MAX_ANSWER
    assert ended.status == status
