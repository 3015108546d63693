"""The daemon of the lab: ``mxpolicy serve`` beside the mail servers, as contrib has it.

It runs as the account that contrib names, with the groups that contrib/systemd gives it,
and its log goes to a file, so that each message can be seen to have come through it.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .world import INSTALLED, World

DIRECTORY = "/run/mxpolicy"
PIPE, LMTP, POLICY = (f"{DIRECTORY}/{door}" for door in ("pipe", "lmtp", "policy"))
LMTP_PORT = 2424

CONFIGURATION = "/etc/mxpolicy/daemon.yaml"
LOG = "/var/log/mxpolicy.daemon"

ACCOUNT = "mxpolicy"
GROUPS = "mxpolicy,postfix"

_SETTINGS = f"""
listen:
  lmtp: {{at: [unix, '127.0.0.1:{LMTP_PORT}'], group: postfix}}
  policy: {{group: postfix}}
log: {{to: stderr}}
"""

# As init starts it. A shell that put the tests into the background has SIGINT and SIGQUIT
# ignored by all that comes after.
ENV = ("env", "--default-signal")

_READY = re.compile(r"mxpolicy \S+ serves ")


class Daemon:
    """The daemon, started and ready; it ends with the lab, or by `stop` or `kill`.

    *settings* are more lines for its configuration, *environment* more variables,
    *privileges* are setpriv(1)'s options for its groups and what it may do, *wrap* is a
    command that runs it.
    """

    def __init__(
        self,
        world: World,
        settings: str = "",
        environment: Mapping[str, str] | None = None,
        privileges: Sequence[str] = ("--groups", GROUPS),
        wrap: Sequence[str] = (),
    ) -> None:
        self._world = world
        self._environment = dict(environment or {})
        self._privileges = tuple(privileges)
        self._wrap = tuple(wrap)
        self._process: subprocess.Popen[bytes]
        path = world.path(CONFIGURATION)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_SETTINGS + settings)
        owned = ("-o", ACCOUNT, "-g", ACCOUNT, "-m", "755")
        world.run("mta", ["install", "-d", *owned, DIRECTORY])
        owned = ("-o", ACCOUNT, "-g", ACCOUNT, "-m", "750")
        world.run("mta", ["install", "-d", *owned, "/var/lib/mxpolicy"])
        # What wraps it may make it many times slower.
        self.start(within=300.0 if wrap else 30.0)

    def start(self, within: float = 30.0) -> None:
        """Start it, and wait until its sockets are open."""
        seen = len(self.log())
        become = ["setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        serve = [f"{INSTALLED}/bin/mxpolicy", "serve", "--config", CONFIGURATION]
        self._process = self._world.start(
            "mta",
            [*become, *self._privileges, "--", *ENV, *variables, *self._wrap, *serve],
            log=LOG,
        )
        until = time.monotonic() + within
        while not any(map(_READY.search, self.log()[seen:])):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the daemon does not start:\n" + self._last_words())
            time.sleep(0.02)
        # For the accounts of two mail servers; in life there is one, and a group for it.
        self._world.path(LMTP).chmod(0o666)

    def _last_words(self) -> str:
        return "\n".join(self.log()[-20:])

    @property
    def pid(self) -> int:
        """Its process id as the lab numbers it."""
        [pid] = [
            one.pid
            for one in self._world.processes()
            if one.user == ACCOUNT and CONFIGURATION in one.command
        ]
        return pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._world.run("mta", ["kill", f"-{number.value}", str(self.pid)])

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self.signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self, within: float = 20.0) -> int:
        """End it by SIGTERM, and return its exit status."""
        self.signal(signal.SIGTERM)
        return self._process.wait(within)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep it from running meanwhile, as a machine does that swaps."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGCONT)  # nsenter has stopped, too

    def log(self) -> list[str]:
        """Return what it has logged."""
        path = self._world.path(LOG)
        text = path.read_text(errors="replace") if path.exists() else ""
        return text.splitlines()

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        status = self._process_file("status").read_text()
        found = re.search(r"(?m)^VmRSS:\s+(\d+) kB", status)
        assert found is not None, status
        return int(found[1]) * 1024

    def address_space(self) -> int:
        """Return its address space in bytes."""
        found = re.search(
            r"(?m)^VmSize:\s+(\d+) kB", self._process_file("status").read_text()
        )
        assert found is not None
        return int(found[1]) * 1024

    def descriptors(self) -> int:
        """Return how many it has open."""
        return len(list(self._process_file("fd").iterdir()))

    def processor_time(self) -> float:
        """Return the seconds of processor time that it has taken."""
        stat = self._process_file("stat").read_text()
        # utime and stime are fields 14 and 15, the name is 2.
        ticks = sum(map(int, stat.rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _process_file(self, name: str) -> Path:
        return self._world.path(f"/proc/{self.pid}/{name}")
