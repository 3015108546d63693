"""Keeps whatever the tests start away from what the machine itself uses.

Where mxpolicy is installed and busy, a test that opens ``/var/lib/mxpolicy`` finds mail
of others in it, and as root it writes there. So nothing that runs under the tests, the
lab, the benchmarks or the fuzzer opens, asks for or connects to any of `FORBIDDEN`.

Every process counts, whatever environment it was given and whoever its parent is. The
session marks itself, and the kernel hands the mark on with every fork and exec: it is
the resource limit RLIMIT_LOCKS, which has had no other meaning since Linux 2.4.25. A
line in ``site-packages`` (`install`) makes each marked Python `watch` itself. The mark
names the mount namespace, because the lab's directories of those names are its own.

There is no module `syslog`: `mxpolicy.policy_fallback` falls back on it, and does without it.
A forbidden access raises `Trespass` where it happens, and leaves a file that says who
it was. So the test fails (`tests/conftest.py`) also where the process lives on.

Limits: Linux; and a Python with ``-S``, or another one than that of the session, is
not watched.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # without typing, which every process here would load
if TYPE_CHECKING:
    from collections.abc import Callable

FORBIDDEN = (
    "/etc/mxpolicy",
    "/run/mxpolicy",
    "/var/lib/mxpolicy",
    "/var/run/mxpolicy",
    # Its log daemon's.
    "/dev/log",
    "/run/systemd/journal/dev-log",
    "/run/systemd/journal/socket",
)

# What a path of those has in it: everything else is passed over quickly.
_SIGNS = ("mxpolicy", "/log", "journal")

# The names of audit events (Python's documentation, "Audit events table").
_EVENTS = frozenset(
    {
        "open",
        "sqlite3.connect",
        "socket.bind",
        "socket.connect",
        "socket.sendto",
        *(f"os.{name}" for name in ("chmod", "chown", "link", "listdir", "mkdir")),
        *(f"os.{name}" for name in ("remove", "rename", "rmdir", "scandir")),
        *(f"os.{name}" for name in ("symlink", "truncate", "utime")),
    }
)

# These only look, and are no audit events.
_LOOKING = ("access", "lstat", "stat")

# What leads mxpolicy to a file or a directory of somebody's choice.
_LEADING = ("MXPOLICY_CONFIG", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")

_RLIMIT_LOCKS = 10  # the module resource does not name it
_PID_BITS = 22  # Linux has no process id above

# One line, read by every Python of this environment; nothing is loaded without the mark.
_LINE = (
    "import os, resource; "
    f"resource.getrlimit({_RLIMIT_LOCKS})[0] >> {_PID_BITS} == "
    'os.stat("/proc/self/ns/mnt").st_ino '
    'and __import__("mxpolicy_guard").watch()\n'
)


class Trespass(BaseException):
    """What the machine itself uses was about to be touched; passes `except Exception`."""


def guarded(main: Callable[[], int]) -> int:
    """Return what *main* returns, 1 where there was a trespass; for all but pytest."""
    begin()
    status = main()
    trespasses = close()
    for one in trespasses:
        print(f"trespass: {one}", file=sys.stderr)
    return status or bool(trespasses)


def begin() -> None:
    """Guard this process and all that it will start, and forget who led it elsewhere.

    Raises:
        OSError: This Python's environment cannot be written.
    """
    for name in _LEADING:
        os.environ.pop(name, None)
    install()
    mark()
    watch()


def mark() -> None:
    """Mark this process and all that it will start."""
    import resource

    _, most = resource.getrlimit(_RLIMIT_LOCKS)
    value = _mount_namespace() << _PID_BITS | os.getpid()
    resource.setrlimit(_RLIMIT_LOCKS, (value, most))
    try:
        os.mkdir(_reports_of(os.getpid()), 0o700)
    except FileExistsError:  # of a session with our number that was killed
        reports()


def install() -> None:
    """Have every Python of this environment watch itself when it is marked.

    Raises:
        OSError: The environment cannot be written.
    """
    import sysconfig
    from pathlib import Path

    place = Path(sysconfig.get_path("purelib"))
    for name, text in (
        ("mxpolicy_guard.py", Path(__file__).read_text()),
        ("mxpolicy_guard.pth", _LINE),
    ):
        file = place / name
        if not file.exists() or file.read_text() != text:
            new = place / f"{name}.{os.getpid()}"
            new.write_text(text)
            new.replace(file)


def watch() -> None:
    """Refuse, in this process from now on, whatever is forbidden while it is marked."""
    # syslog(3) knows one place only, the machine's, and is no audit event's file.
    sys.modules["syslog"] = None  # type: ignore[assignment]
    sys.addaudithook(_on_event)
    for name in _LOOKING:
        _watch_looking(name)


def reports() -> list[str]:
    """Return what this session's processes were refused since the last call."""
    found = []
    directory = _reports_of(os.getpid())
    for name in sorted(os.listdir(directory)):
        path = f"{directory}/{name}"
        with open(path) as file:
            found.append(file.read())
        os.unlink(path)
    return found


def close() -> list[str]:
    """Return the last reports; there are none after this."""
    found = reports()
    os.rmdir(_reports_of(os.getpid()))
    return found


def _on_event(event: str, given: tuple[object, ...]) -> None:
    if event in _EVENTS:
        for one in given:
            _refuse(event, one)


def _watch_looking(name: str) -> None:
    look = getattr(os, name)

    def looking(path: object, *more: object, **named: object) -> object:
        _refuse(f"os.{name}", path)
        return look(path, *more, **named)

    setattr(os, name, looking)


def _refuse(event: str, given: object) -> None:
    """Raise `Trespass` if *given* is a path of those that are forbidden."""
    if isinstance(given, os.PathLike):
        given = given.__fspath__()
    if isinstance(given, bytes):
        given = os.fsdecode(given)
    if not isinstance(given, str) or not any(sign in given for sign in _SIGNS):
        return
    path = os.path.abspath(given.removeprefix("file:").partition("?")[0])
    if any(path == one or path.startswith(f"{one}/") for one in FORBIDDEN):
        session = _session()
        if session:
            _report(session, f"{path} ({event})")
            raise Trespass(f"{path} belongs to this machine, not to its tests")


def _session() -> int:
    """Return the process id of the session that we belong to, 0 for none."""
    import resource

    value, _ = resource.getrlimit(_RLIMIT_LOCKS)
    return value % (1 << _PID_BITS) if value >> _PID_BITS == _mount_namespace() else 0


def _mount_namespace() -> int:
    return os.stat("/proc/self/ns/mnt").st_ino


def _reports_of(session: int) -> str:
    return f"/tmp/mxpolicy-trespasses-{session}"


def _report(session: int, what: str) -> None:
    """Leave word for the session, where there still is one."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    name = f"{_reports_of(session)}/{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with open(name, "x") as file:
            file.write(f"{what} by {sys.orig_argv!r} {test}"[:2000])
    except OSError:
        pass
