"""Everything that can happen while a daemon takes the messages, as data: one row each.

`REPEATED` are the rows of `provocations` whose command meets the daemon: each is provoked
again with the daemon up. `BEFALLEN` is what befalls the daemon itself, by limits, signals,
files and configuration. `ELSEWHERE` says of each other row of `provocations` why it is not
repeated, and which row or test has its like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from .daemon import ACCOUNT, CONFIGURATION
from .provocations import (
    BOUNCED,
    DEFERRED,
    FULL_DISK,
    GOOD,
    HELD,
    KINDS,
    LARGE,
    LOOP,
    SENT,
    Provocation,
)

if TYPE_CHECKING:
    from .lab import Lab

STATE = "/var/lib/mxpolicy"


def nothing(lab: Lab) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Befallen:
    """What befalls the daemon, and what comes of it through each door.

    `settings` are lines of its configuration. `before` is done once it serves, `meanwhile` when the host
    holds the message, `after` when it has ended. `statuses` are those that may come of
    it: which one depends on where a limit is met. `dsn` is what Postfix logs of a
    deferral, and `text`, a regular expression, is in the log of all. `lives` is whether
    the daemon is still there then. `copies` are those that the host has when all is well
    again and the message has been tried once more. `is_of_lmtp`: a command line says
    otherwise.
    """

    name: str
    statuses: tuple[str, ...] = (DEFERRED,)
    dsn: str = "4.3.0"
    text: str = ""
    to: str = GOOD
    settings: str = ""
    before: Callable[[Lab], None] = nothing
    meanwhile: Callable[[Lab], None] = nothing
    after: Callable[[Lab], None] = nothing
    lives: bool = True
    copies: int = 1
    is_of_lmtp: bool = False
    mail_data: bytes = b"Subject: one\n\nOne line.\n"


def limit(option: str) -> Callable[[Lab], None]:
    """Return what gives the daemon a soft limit, by an option of prlimit(1)."""

    def do(lab: Lab) -> None:
        prlimit = ["prlimit", "--pid", str(lab.daemon.pid), option]
        lab.world.run("mta", prlimit, user=ACCOUNT)  # what root may, the lab's may not

    return do


def no_more_memory(lab: Lab) -> None:
    """Let its address space grow no more."""
    size = lab.daemon.address_space()
    limit(f"--as={size}:")(lab)


def no_more_descriptors(lab: Lab) -> None:
    """Leave it one for a client, and none for a host."""
    limit(f"--nofile={lab.daemon.descriptors() + 1}:")(lab)


def small_disk(lab: Lab) -> None:
    """Mount one where the daemon keeps large messages."""
    enter = ["nsenter", "-t", str(lab.daemon.pid), "--mount"]
    lab.world.run("mta", [*enter, "mkdir", "-p", FULL_DISK])
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "none", FULL_DISK]
    lab.world.run("mta", [*enter, *mount])


def break_state(lab: Lab) -> None:
    """Write over the state file that it has open."""
    script = (
        f"for file in {STATE}/*.sqlite3*; do "
        'head -c 65536 /dev/urandom | dd of="$file" conv=notrunc status=none; done'
    )
    lab.world.run("mta", ["sh", "-c", script])


def remove_state(lab: Lab) -> None:
    """Remove all that it keeps, so that the next daemon begins well."""
    lab.world.run("mta", ["sh", "-c", f"rm -f {STATE}/*.sqlite3*"])


def misconfigure(lab: Lab) -> None:
    """Have it read a configuration that is wrong."""
    lab.world.path(CONFIGURATION).write_text("helo: [\n")
    signalled("HUP")(lab)


def signalled(name: str) -> Callable[[Lab], None]:
    """Return what sends it a signal."""

    def do(lab: Lab) -> None:
        lab.world.run("mta", ["kill", f"-{name}", str(lab.daemon.pid)])

    return do


B = Befallen
MET = (SENT, DEFERRED)

BEFALLEN = (
    B("well", (SENT,)),
    B(
        "in-circles",
        (BOUNCED,),
        text="mail loop: 5. Received",
        mail_data=LOOP,
        copies=0,
    ),
    B("no-memory", MET, dsn="", before=no_more_memory, mail_data=LARGE),
    B("no-descriptors", MET, dsn="", before=no_more_descriptors),
    B(
        "file-size",
        before=limit("--fsize=8192:"),
        text="cannot spool|has hung up|lost connection",
        mail_data=LARGE,
    ),
    B("file-size-and-small", (SENT,), before=limit("--fsize=8192:")),
    B(
        "disk-full",
        before=small_disk,
        text="cannot spool the message: No space left",
        mail_data=LARGE,
    ),
    B("state-unwritable", (SENT,), settings="state: /proc/1\n"),
    B("state-broken", (SENT,), before=break_state, after=remove_state),
    B(
        "dns-refuses",
        dsn="4.4.3",
        settings="resolver: {servers: ['127.0.0.1:1'], timeout: 3s}\n",
    ),
    B(
        "dns-silent",
        dsn="4.4.3",
        settings="resolver: {servers: [198.19.255.254], timeout: 2s}\n",
    ),
    B(
        "own-deadline",
        dsn="4.4.2",
        to=HELD,
        settings="deadline: 2s\n",
        copies=0,
        is_of_lmtp=True,
    ),
    B("misconfigured", (SENT,), before=misconfigure),
    B("sighup", (SENT,), to="slow", meanwhile=signalled("HUP")),
    *(
        B(
            f"sig{name.lower()}",
            dsn="4.3.2",
            to="slow",
            meanwhile=signalled(name),
            lives=False,
        )
        for name in ("INT", "TERM")
    ),
    *(
        B(
            f"sig{name.lower()}",
            to="slow",
            dsn="",
            meanwhile=signalled(name),
            lives=False,
        )
        for name in ("QUIT", "ABRT", "KILL", "USR1", "SEGV", "USR2", "XCPU")
    ),
)


@dataclass(frozen=True)
class Repeated:
    """A row of `provocations` with the daemon up; what is None there is as without it."""

    status: str | None = None
    dsn: str | None = None
    text: str | None = None
    copies: int | None = None


_AS_WITHOUT = Repeated()
# The daemon keeps the message, where it may.
_KEPT_THERE = Repeated(SENT, "2.0.0", "", 1)

REPEATED: Mapping[str, Repeated] = {
    **dict.fromkeys(("well", "put-off", "refused", "in-circles"), _AS_WITHOUT),
    **dict.fromkeys(("wrong-option", "no-dashes", "misspelt", "twice"), _AS_WITHOUT),
    **dict.fromkeys(("not-there", "not-executable"), _AS_WITHOUT),
    # What hands over needs less memory than what delivers.
    **dict.fromkeys(("address-space", "less-address-space"), _KEPT_THERE),
    "next-to-no-address-space": _AS_WITHOUT,
    "descriptors": _AS_WITHOUT,
    "file-size": _KEPT_THERE,
    "disk-full": _KEPT_THERE,
    **dict.fromkeys(("stdin-closed", "stdin-empty"), _AS_WITHOUT),
    **dict.fromkeys(("stdout-closed", "stdout-closed-and-well"), _AS_WITHOUT),
    **dict.fromkeys(("all-closed", "output-to-a-full-device"), _AS_WITHOUT),
    "own-deadline": _AS_WITHOUT,
    "signals-ignored": _AS_WITHOUT,
    **dict.fromkeys(("child-holds-stdout", "flood-of-output"), _AS_WITHOUT),
    "flood-of-output-and-later": _AS_WITHOUT,
}

_ALONE = "with --config and without --socket the command works alone"
_INSIDE = "it changes the process that delivers, which is the daemon then"
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("no-file", "unreadable", "no-yaml", "invalid"),
        f"{_ALONE}; the daemon's own configuration: `misconfigured`, and"
        " `tests/test_daemon.py` for one that is wrong from the beginning",
    ),
    **dict.fromkeys(
        ("module-missing", "package-missing", "no-standard-library", "other-status"),
        "the daemon has started, and an installation without one of its modules starts"
        " no client: then the command is the one of the table above",
    ),
    "exception": f"{_INSIDE}; by real means: `no-memory`, `file-size`; a bug in a door:"
    " `tests/server`",
    "out-of-memory": f"{_INSIDE}: `no-memory`",
    "recursion": f"{_INSIDE}, and no message makes it recurse",
    "system-exit": f"{_INSIDE}: `sigterm`",
    "hangs": f"{_INSIDE}; stopped in each phase: `test_daemon_ends.py`",
    "warns": f"{_INSIDE}, and its output is its log",
    "state-unwritable": f"{_ALONE}; the daemon's: `state-unwritable`, `state-broken`",
    "dns-refuses": f"{_ALONE}: `dns-refuses`",
    "dns-silent": f"{_ALONE}: `dns-silent`",
    **{
        row.name: f"{_INSIDE}: the row of this name; clients: `test_daemon_ends.py`"
        for row in KINDS["signals to the process that delivers"]
        if row.name.startswith("sig") and row.name != "signals-ignored"
    },
    **{
        row.name: "the daemon is killed in each phase: `test_daemon_ends.py`"
        for kind, rows in KINDS.items()
        if kind.startswith("killed")
        for row in rows
    },
    **{
        row.name: "it is about a daemon: the row above is all of it"
        for kind, rows in KINDS.items()
        if kind.startswith("a daemon")
        for row in rows
    },
}


def repeated_rows() -> list[Provocation]:
    """Return the rows of `provocations` as they are to end with the daemon up."""
    rows = []
    for row in chain.from_iterable(KINDS.values()):
        if (ends := REPEATED.get(row.name)) is not None:
            changed = {
                key: value for key, value in vars(ends).items() if value is not None
            }
            rows.append(Provocation(**{**vars(row), **changed}))
    return rows
