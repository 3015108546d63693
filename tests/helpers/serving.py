"""``mxpolicy serve`` run as a service manager runs it, and what it says to that.

`serving` is a `Runner`. The test is the service manager: it has a socket for
sd_notify(3), and hands over sockets as sd_listen_fds(3) has it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["TIMEOUT", "Runner", "Serving", "serving"]

CHECKOUT = Path(__file__).parents[2]
TIMEOUT = 60


class Serving:
    """A daemon that runs.

    Attributes:
        process: It.
        run: The directory of its sockets.
        told: All datagrams that it has sent to its service manager, in their order.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        run: Path,
        log: Path,
        notify: socket.socket,
    ) -> None:
        self.process = process
        self.run = run
        self.told: list[str] = []
        self._log = log
        self._notify = notify

    def wait_for(self, line: str, times: int = 1) -> None:
        """Return when it has told *line* to its service manager so often."""
        while sum(line in one.split("\n") for one in self.told) < times:
            try:
                self.told.append(self._notify.recv(65536).decode())
            except TimeoutError:
                raise AssertionError((line, self.told, self.log())) from None

    def wait_for_silence(self, seconds: float) -> None:
        """Return when it has told nothing to its service manager for so long."""
        self._notify.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            for _ in range(1000):
                self.told.append(self._notify.recv(65536).decode())
            raise AssertionError(self.told)
        self._notify.settimeout(TIMEOUT)

    def log(self) -> str:
        """Return what it has logged so far."""
        return self._log.read_text() if self._log.exists() else ""

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Return when its log has *text* so often."""
        ends = time.monotonic() + TIMEOUT
        while self.log().count(text) < times:
            assert time.monotonic() < ends, self.log()
            assert self.process.poll() is None or text in self.log(), self.log()
            time.sleep(0.005)

    def reload(self) -> None:
        """Have it read its configuration again, and return when it has."""
        before = sum("READY=1" in one for one in self.told)
        self.process.send_signal(signal.SIGHUP)
        self.wait_for("READY=1", before + 1)

    def connect(self, name: str) -> socket.socket:
        """Return a connection to its socket *name*."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(TIMEOUT)
        client.connect(str(self.run / name))
        return client

    def proc(self, name: str) -> Path:
        """Return a path of it in proc(5)."""
        return Path(f"/proc/{self.process.pid}/{name}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)


class Runner:
    """Starts daemons, with a configuration that allows loopback.

    *python* is the interpreter; by default that of the tests.
    """

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self.directory = directory
        self._python = python
        self.log = directory / "serve.log"
        self.config = directory / "serve.yaml"
        self.run = directory / "run"
        self.state = directory / "serve.state"
        self.run.mkdir()
        self.state.mkdir(mode=0o700)
        self.configure()

    def configure(self, *more: str) -> None:
        """Write the configuration, with *more* lines in place of the usual ones."""
        usual = {
            "allow_dial": "[127.0.0.0/8]",
            "helo": "mail.example.com",
            "log": f"{{to: {self.log}}}",
        }
        given = {one.partition(":")[0] for one in more}
        lines = [f"{key}: {one}" for key, one in usual.items() if key not in given]
        self.config.write_text("\n".join([*lines, *more, ""]))

    @contextlib.contextmanager
    def started(
        self,
        *,
        given: Sequence[tuple[str, socket.socket]] = (),
        before: str = "",
        environ: dict[str, str] | None = None,
        wait: bool = True,
        wrap: Sequence[str] = (),
        **more: Any,
    ) -> Iterator[Serving]:
        """Start one, and kill it in the end.

        Args:
            given: Name and socket of those that "systemd" has opened for it.
            before: Code that runs in it before mxpolicy does.
            environ: More variables.
            wait: Until it is ready.
            wrap: A command that runs it.
            more: For `subprocess.Popen`.
        """
        address = self.directory / "notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(address))
            notify.settimeout(TIMEOUT)
            variables = {
                **os.environ,
                "RUNTIME_DIRECTORY": str(self.run),
                "STATE_DIRECTORY": str(self.state),
                "NOTIFY_SOCKET": str(address),
                **(environ or {}),
            }
            program = f"{_activation(given)}{before}\nfrom mxpolicy.cli import main\nraise SystemExit(main())"
            command = [self._python, "-c", program, "serve", "--config"]
            process = subprocess.Popen(
                [*wrap, *command, str(self.config)],
                cwd=CHECKOUT,
                env=variables,
                pass_fds=[one.fileno() for _, one in given],
                **more,
            )
            with process:
                try:
                    one = Serving(process, self.run, self.log, notify)
                    if wait:
                        one.wait_for("READY=1")
                    yield one
                finally:
                    process.kill()


def _activation(given: Sequence[tuple[str, socket.socket]]) -> str:
    """Return code that puts *given* where sd_listen_fds(3) looks for them."""
    if not given:
        return ""
    names = ":".join(name for name, _ in given)
    descriptors = [one.fileno() for _, one in given]
    return f"""
import fcntl, os
high = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in {descriptors}]
for number, one in enumerate(high):
    os.dup2(one, 3 + number)
    os.close(one)
os.environ.update(
    LISTEN_PID=str(os.getpid()), LISTEN_FDS="{len(given)}", LISTEN_FDNAMES="{names}"
)
"""


@pytest.fixture
def serving(tmp_path: Path) -> Runner:
    return Runner(tmp_path)
