"""The lab's namespaces as seen from outside: make them, run things in them, end them."""

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal, NamedTuple

from . import inside
from .packages import CHECKOUT, LabUnavailable, root_tree

Namespace = Literal["mta", "fw", "net"]

# What the contrib files call the place where mxpolicy is installed.
INSTALLED = "/opt/mxpolicy"

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Process(NamedTuple):
    """A process of the lab; `pid` is as the lab numbers it."""

    pid: int
    user: str
    command: str


class World:
    """One set of namespaces; a context manager that leaves nothing behind.

    Any number of worlds can exist at once: they share nothing, not even names.
    *installed* is the virtual environment that is seen at `INSTALLED`; that of the tests,
    if not said otherwise. Raises LabUnavailable where this machine does not let us make one.
    """

    def __init__(self, installed: Path | None = None) -> None:
        if os.geteuid() != 0:
            raise LabUnavailable("the lab needs root, for namespaces and a firewall")
        _check_script()
        self._holder = _start_holder(root_tree(), installed or Path(sys.prefix))
        self._started: list[subprocess.Popen[bytes]] = []
        self.pid = self._read_pid()
        """Process 1 of the lab, as the outside numbers it."""

    def _read_pid(self) -> int:
        assert self._holder.stdout is not None
        line = self._holder.stdout.readline()
        if line:
            return int(json.loads(line)["pid"])
        _, words = self._holder.communicate()
        raise LabUnavailable(f"no namespaces here: {words.strip()}")

    def path(self, inside_path: str) -> Path:
        """Return where a path of the lab can be read and written from outside."""
        return Path(f"/proc/{self.pid}/root{inside_path}")

    def command(
        self, namespace: Namespace, argv: Sequence[str], user: str | None = None
    ) -> list[str]:
        """Return the command line that runs *argv* inside, as *user* (default root)."""
        # pdeathsig: nsenter stands between us and the command; killing it kills both.
        become = ["setpriv", "--pdeathsig", "KILL"]
        if user is not None:
            become += ["--reuid", user, "--regid", user, "--init-groups"]
        enter = ["nsenter", "-t", str(self.pid), "--mount", "--pid", "--ipc", "--uts"]
        return [*enter, "--", "ip", "netns", "exec", namespace, *become, "--", *argv]

    def run(
        self,
        namespace: Namespace,
        argv: Sequence[str],
        *,
        user: str | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; with *check*, a failure raises with its stderr."""
        done = subprocess.run(
            self.command(namespace, argv, user),
            input=stdin,
            capture_output=True,
            env={**ENVIRONMENT, **(env or {})},
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            words = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}: {words}")
        return done

    def start(
        self,
        namespace: Namespace,
        argv: Sequence[str],
        *,
        user: str | None = None,
        log: str | None = None,
        stdout: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command that lives as long as the lab, or until it is killed.

        Its stderr goes to *log*, a path in the lab (default: nowhere), and so does its
        stdout unless *stdout* says otherwise. The process returned is nsenter's.
        """
        with self.path(log or "/dev/null").open("ab") as file:
            process = subprocess.Popen(
                self.command(namespace, argv, user),
                stdin=subprocess.DEVNULL,
                stdout=file if stdout is None else stdout,
                stderr=file,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def processes(self) -> list[Process]:
        """Return every process of the lab."""
        found = []
        for entry in self.path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended while we looked
                uid = entry.stat().st_uid
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                text = command.decode(errors="replace").strip()
                found.append(Process(int(entry.name), self._user_name(uid), text))
        return found

    def _user_name(self, uid: int) -> str:
        for line in self.path("/etc/passwd").read_text().splitlines():
            name, _, number, *_ = line.split(":")
            if int(number) == uid:
                return name
        return str(uid)

    def connect(
        self, namespace: Namespace, address: tuple[str, int], timeout: float = 30.0
    ) -> socket.socket:
        """Return a TCP connection made from within one of the lab's networks.

        A socket stays in the network it was made in, so a thread goes there for it.
        """
        with (
            ThreadPoolExecutor(1) as there,
            self.path(f"/run/netns/{namespace}").open("rb") as network,
        ):
            return there.submit(_connect_in, network, address, timeout).result()

    def close(self) -> None:
        """End every process of the lab; its networks and mounts go with them."""
        self._holder.communicate()
        for process in self._started:
            process.wait()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _connect_in(
    network: IO[bytes], address: tuple[str, int], timeout: float
) -> socket.socket:
    # os.setns came with Python 3.12. This thread is ours and ends after this.
    if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    return socket.create_connection(address, timeout)


def _check_script() -> None:
    """Raise RuntimeError when the command that is installed is not that of the checkout."""
    installed = Path(sys.prefix) / "bin" / "mxpolicy"
    script = CHECKOUT / "mxpolicy" / "command.sh"
    if installed.exists() and installed.read_bytes() != script.read_bytes():
        raise RuntimeError(f"{installed} is not {script}: run contrib/venv dev")


def _start_holder(tree: Path, installed: Path) -> subprocess.Popen[str]:
    plan = inside.Plan(
        tree=str(tree),
        needed=_needed_directories(),
        mounts={str(installed): INSTALLED},
        links=_as_installed(installed),
    )
    own = ["--mount", "--propagation", "private", "--pid", "--ipc", "--uts", "--fork"]
    python = [sys.executable, "-I", inside.__file__, json.dumps(vars(plan))]
    return subprocess.Popen(
        ["unshare", *own, "--kill-child", *python],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,  # Ctrl-C is for us to handle, not for process 1
    )


def _as_installed(installed: Path) -> dict[str, str]:
    """Return what makes an environment look as one that has mxpolicy's wheel.

    That of the tests finds the checkout by a ``.pth`` file, and the script would not find
    its two clients.
    """
    packages = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    if installed != Path(sys.prefix) or (installed / packages / "mxpolicy").exists():
        return {}
    return {f"{INSTALLED}/{packages}/mxpolicy": str(CHECKOUT / "mxpolicy")}


def _needed_directories() -> list[str]:
    """The checkout and Python, each by the name it is called by and by its real one."""
    paths = [str(CHECKOUT), sys.prefix, sys.base_prefix]
    return list(
        dict.fromkeys(p for path in paths for p in (os.path.realpath(path), path))
    )
