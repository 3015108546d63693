"""Whether a daemon runs, whether it should, and who may use it.

Its sockets are looked at as files, and a connection is made and closed; `mxpolicy pipe`
asks no more of the first one. The policy service is asked one question, about no address:
what accepts connections and answers nothing puts off all mail. No message is handed over.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import time
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy import __version__
from mxpolicy.check.access import WRITE, account, login, objection
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.doors import DOORS, runtime_directory, socket_address
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mxpolicy.check.access import Account
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options

__all__ = ["Answer", "connect", "enabled_units", "look", "places", "runs_systemd"]

# The users of the mail servers, as Debian and others have them. A delivery of Exim's has
# no group but one; processes of Postfix have all of the user's.
MAIL_SERVERS = {"postfix": login, "Debian-exim": account, "exim": account}

# Seconds until a socket that accepts no client counts as dead.
_PATIENCE = 2.0

# DUNNO is the answer, without a look at DNS. The log has it with `detail: events` only.
_QUESTION = b"request=smtpd_access_policy\n\n"
# Bytes of an answer. An action may be longer, but not to that question.
_MAX_ANSWER = 4096

# A file that every installation writes anew.
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "__init__.py")

_ALONE = "mxpolicy pipe delivers each message by a process of its own"
_RESTART = "systemctl restart mxpolicy.service"


class Answer(NamedTuple):
    """What a socket did.

    Attributes:
        trouble: Why nothing answers, as the system says; empty when something does.
        owner: User id of the process that listens; None where it is not known.
        process: Its id; 0 where it is not known, 1 where systemd has made the socket.
    """

    trouble: str = ""
    owner: int | None = None
    process: int = 0


def look(
    options: Options,
    environ: Mapping[str, str],
    user: Account,
    used: Sequence[str] = (),
    units: Collection[str] = (),
    *,
    has_systemd: bool = True,
    package: str = _PACKAGE,
) -> list[Item]:
    """Judge the sockets of ``mxpolicy serve``, for deliveries made by *user*.

    Args:
        options: The configuration.
        environ: For the directory of the sockets.
        user: The account of deliveries.
        used: Where a mail server of this machine delivers by LMTP: at one of these,
            from `places` or otherwise known.
        units: From `enabled_units`.
        has_systemd: Whether it runs here.
        package: A file of mxpolicy's own, as it was installed last.
    """
    start = _RESTART if has_systemd else _by_hand(environ, user)
    found: list[Item | None] = []
    processes: set[int] = set()
    for name in DOORS:
        at = places(options, environ, name)
        by_lmtp = used if name == "lmtp" else ()
        answers = {one: connect(one, name) for one in {*at, *by_lmtp}}
        processes |= {one.process for one in answers.values() if one.process > 1}
        if by_lmtp and all(answers[one].trouble for one in by_lmtp):
            where, why = " and ".join(used), answers[by_lmtp[0]].trouble
            text = (
                f"a mail server delivers to the daemon at {where}, where none answers"
                f" ({why}): mail that goes that way is deferred"
            )
            found.append(fail(True, text, start))
            continue
        local = [one for one in at if one.startswith("/")][:1]
        if name == "pipe":
            found += [
                _look_at_pipe(one, answers[one], user, units, start) for one in local
            ]
        else:
            found += [
                _look_at(name, one, is_used=one in by_lmtp)
                for one in local
                if not answers[one].trouble
            ]
    old = [one for one in processes if (_began(one) or inf) < os.path.getmtime(package)]
    return said(
        *found,
        warn(
            old,
            f"the daemon (process {', '.join(map(str, old))}) began before mxpolicy"
            f" {__version__} was installed: until it is started again it is the earlier"
            " one, and mxpolicy pipe may not hand messages over to it",
            start,
        ),
    )


def _began(process: int) -> float | None:
    """Return when *process* began, UTC seconds; None where that cannot be seen."""
    try:
        # Field 22 (proc(5)); the second one may have blanks in it.
        text = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        ticks = int(text.rpartition(")")[2].split()[19])
        [boot] = re.findall(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.M)
    except (OSError, ValueError, IndexError):
        return None
    return int(boot) + ticks / os.sysconf("SC_CLK_TCK")


def runs_systemd(root: str = "/") -> bool:
    """Return whether systemd runs here, as sd_booted(3) finds it."""
    return Path(root, "run/systemd/system").is_dir()


def enabled_units(root: str = "/") -> list[str]:
    """Return the units of mxpolicy that systemd starts by itself, where it runs."""
    if not runs_systemd(root):
        return []
    wanted = Path(root, "etc/systemd/system").glob("*.wants/mxpolicy*")
    units = {one.name for one in wanted}
    return sorted(units & {"mxpolicy.service", "mxpolicy-pipe.socket"})


def _by_hand(environ: Mapping[str, str], user: Account) -> str:
    """Return what starts the daemon in the foreground, as *user*."""
    name, program = user.name, os.path.join(sys.prefix, "bin", "mxpolicy")
    return (
        f"install -d -o {name} -g {name} {runtime_directory(environ)}; setpriv"
        f" --reuid={name} --regid={name} --init-groups {program} serve"
    )


def places(options: Options, environ: Mapping[str, str], name: str) -> list[str]:
    """Return where a door listens: paths, and ``ADDRESS:PORT``."""
    words = getattr(options.listen, name).at
    directory = runtime_directory(environ)
    return [*dict.fromkeys(socket_address(name, one, directory) for one in words)]


def connect(at: str, name: str, patience: float = _PATIENCE) -> Answer:
    """Connect to the door *name* at *at* within *patience* seconds; say what came of it."""
    is_local = at.startswith("/")
    host, _, port = at.rpartition(":")
    try:
        if not is_local:
            place = (host.strip("[]"), int(port))
            with socket.create_connection(place, timeout=patience) as tcp:
                if name == "lmtp":
                    # Not gone before the daemon has found out whose it is.
                    tcp.recv(1024)
                return Answer(_trouble_with(name, tcp, patience))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(patience)
            _connect_local(probe, at, patience)
            peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            process, owner, _ = struct.unpack("3i", peer)
            return Answer(_trouble_with(name, probe, patience), owner, process)
    except PermissionError:
        return Answer()  # something answers, but not to us
    except OSError as error:
        return Answer(error.strerror or "it does not accept")


def _trouble_with(name: str, connection: socket.socket, patience: float) -> str:
    """Return why the door *name* is none behind *connection*; empty where it answers."""
    if name != "policy":
        return ""
    until, said = time.monotonic() + patience, b""
    try:
        connection.sendall(_QUESTION)
        while not said.endswith(b"\n\n") and len(said) < _MAX_ANSWER:
            connection.settimeout(max(0.001, until - time.monotonic()))
            data = connection.recv(_MAX_ANSWER)
            if not data:
                break
            said += data
    except TimeoutError:
        return f"no answer to a question within {patience:g} s"
    except ConnectionError:
        pass  # gone without an answer
    if said.startswith(b"action=") and said.endswith(b"\n\n"):
        return ""
    return f"it answers a question with {printable(said, 60)!r}"


def _connect_local(probe: socket.socket, at: str, patience: float) -> None:
    """Connect *probe*; wait while as many clients as may be queue before it."""
    until = time.monotonic() + patience
    while True:
        try:
            return probe.connect(at)
        except BlockingIOError as error:
            # Its queue is full, which connect(2) does not wait for.
            if time.monotonic() >= until:
                raise TimeoutError from error
        time.sleep(min(0.02, patience))


def _look_at_pipe(
    path: str, answer: Answer, user: Account, units: Collection[str], start: str
) -> Item | None:
    if answer.trouble:
        return first(
            warn(
                units,
                f"no daemon answers at {path} ({answer.trouble}), though systemd is to"
                f" run {' and '.join(units)}: {_ALONE}",
                f"systemctl restart {' '.join(units)}",
            ),
            warn(
                os.path.exists(path),
                f"the socket {path} is there, and no daemon behind it answers"
                f" ({answer.trouble}): {_ALONE}",
                start,
            ),
            ok(True, f"no daemon at {path} ({answer.trouble}): {_ALONE}"),
        )
    why_not = objection(user, path, WRITE)
    # Of the file, and of the process: a socket of systemd's has root for the second.
    owners = (os.stat(path).st_uid, answer.owner or 0)
    stranger = next((str(one) for one in owners if one not in {0, user.uid}), "")
    return first(
        warn(
            why_not,
            f"a daemon answers at {path}, but {why_not}: {_ALONE}",
            f"listen: {{pipe: {{group: {user.name}}}}}",
        ),
        warn(
            stranger,
            f"the daemon at {path} runs as user {stranger}, and {user.name} hands"
            f" messages over to its own user or root only: {_ALONE}",
            f"User={user.name}",
        ),
        ok(True, f"a daemon answers at {path}: {user.name} hands its messages over"),
    )


def _look_at(name: str, path: str, *, is_used: bool) -> Item | None:
    """Say which mail servers may use the socket of *name*; they need not use it."""
    servers = [one for who, find in MAIL_SERVERS.items() if (one := find(who))]
    may = [one.name for one in servers if not objection(one, path, WRITE)]
    closed = f"{path} is closed to {' and '.join(one.name for one in servers)}"
    return first(
        ok(may, f"{path} is open to {' and '.join(may)}"),
        fail(
            servers and is_used,
            f"{closed}, and a mail server delivers there: that mail is deferred",
            f"listen: {{{name}: {{group: {''.join(one.name for one in servers[:1])}}}}}",
        ),
        ok(
            servers,
            f"{closed}; listen: {{{name}: {{group: GROUP}}}} opens it, or SocketGroup="
            " where systemd has made it",
        ),
    )
