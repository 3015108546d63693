"""``mxpolicy pipe`` run as a mail server runs it, and a host for it to deliver to.

`host` makes hosts by their scripts; `pipe` is a `Runner`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mxpolicy.pipe import MAX_ANSWER

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
    "EHLO": "250-host.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8",
    "MAIL": "250 2.1.0 Ok",
    "RCPT": "250 2.1.5 Ok",
    "DATA": "354 Go on",
    "DOT": "250 2.0.0 Ok: taken",
    "QUIT": "221 Bye",
}


class Host:
    """An SMTP host on loopback that says at each step what its script says.

    A step is a verb, or a whole command. An empty reply is silence. `reached` is set when *holds* is the step that is due,
    and then the host waits for `release`.
    """

    def __init__(
        self, script: dict[str, str], holds: str = "", address: str = "127.0.0.1"
    ) -> None:
        self._script = {**GOOD, **script}
        self._holds = holds
        self.reached = threading.Event()
        self.release = threading.Event()
        self.commands: list[str] = []
        self.messages: list[bytes] = []
        self._listener = socket.create_server((address, 0))
        self.nexthop = f"[{address}]:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def will(self, script: dict[str, str]) -> None:
        """Say this from now on."""
        self._script.update(script)

    @property
    def mail_from(self) -> list[str]:
        """What MAIL commands said after their colon."""
        return [one[10:] for one in self.commands if one.startswith("MAIL")]

    @property
    def rcpt_to(self) -> list[str]:
        """What RCPT commands said after their colon."""
        return [one[8:] for one in self.commands if one.startswith("RCPT")]

    def close(self) -> None:
        """Take no further connection, and wait for the last one's end."""
        self.release.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        self._say(connection, "CONNECT")
        with connection.makefile("rb") as lines:
            while line := lines.readline():
                command = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
                self.commands.append(command)
                verb = command[:4].upper()
                self._say(connection, command if command in self._script else verb)
                if verb == "DATA" and self._script["DATA"].startswith("3"):
                    self._receive(connection, lines)

    def _receive(self, connection: socket.socket, lines: Any) -> None:
        data = bytearray()
        while line := lines.readline():
            if line == b".\r\n":
                self.messages.append(bytes(data))
                return self._say(connection, "DOT")
            data += line
        return None

    def _say(self, connection: socket.socket, step: str) -> None:
        if step == self._holds:
            self.reached.set()
            self.release.wait(TIMEOUT)
        if self._script[step]:
            connection.sendall(self._script[step].encode() + b"\r\n")


@pytest.fixture
def host() -> Iterator[Callable[..., Host]]:
    """Make hosts by their scripts; close them afterwards."""
    with contextlib.ExitStack() as hosts:

        def make(holds: str = "", address: str = "127.0.0.1", **script: str) -> Host:
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
    """Runs ``mxpolicy pipe`` with a configuration that allows loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
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
        command = [sys.executable, "-c", program, "pipe", *argv]
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
    assert re.fullmatch(rb"[ -~]+\n", line), ended
    assert len(line) <= MAX_ANSWER
    assert ended.status == status
