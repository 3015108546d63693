"""Messages under way while something happens to the command that is to deliver them."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from . import false_daemons
from .case import Case, Host, Placed
from .exim import Exim
from .lab import Lab
from .postfix import Postfix
from .provocations import (
    BOUNCED,
    FILES,
    FULL_DISK,
    GOOD,
    HELD,
    LATER,
    REFUSES,
    SOCKETS,
    STRANGERS,
    Provocation,
)
from .smtp_host import Behaviour, Step

POSTFIX, EXIM = "postfix", "exim"

STEPS = {
    GOOD: {},
    HELD: {"RCPT": Step(end="hush")},
    LATER: {"RCPT": Step("450 4.2.0 Later")},
    REFUSES: {"RCPT": Step("550 5.1.1 No such user")},
}
CONTRACT_CASES = {
    name: Case(name, name, (Host("mx1", 10, Behaviour(steps)),), {})
    for name, steps in STEPS.items()
}

ENTRY = (
    "unix - n n - 100 pipe flags=q user=mxpolicy null_sender= argv=/bin/sh "
    "/opt/lab/{name}.sh pipe -f ${{sender}} --nexthop ${{nexthop}} --queue-id ${{queue_id}} "
    "-- ${{recipient}}"
)
COMMAND = "/bin/sh /opt/lab/{name}.sh pipe --exim -- $pipe_addresses"


@dataclass(frozen=True)
class Sent:
    """Every message under way."""

    lab: Lab
    exim: Exim
    placed: dict[tuple[str, str], Placed]
    ids: dict[tuple[str, str], str]

    def try_again(self, name: str, server: str) -> str:
        """Have the message tried once more; return its status then."""
        message_id = self.ids[name, server]
        before = len(self._mail_server(server).deliveries(message_id))
        argv = ["exim4", "-M"] if server == EXIM else ["postqueue", "-i"]
        self.lab.world.run("mta", [*argv, message_id])
        ends = self._mail_server(server).await_deliveries(message_id, 40, before + 1)
        assert len(ends) == before + 1
        return ends[-1].status

    def _mail_server(self, server: str) -> Postfix | Exim:
        return self.exim if server == EXIM else self.lab.postfix

    def end(self, name: str, server: str) -> tuple[str, str, str]:
        """Wait for a message's first attempt; return status, DSN and what was logged."""
        message_id = self.ids[name, server]
        if server == EXIM:
            [by_exim] = self.exim.await_deliveries(message_id, 40)
            return by_exim.status, "", "\n".join(self.exim.log(message_id))
        [found] = self.lab.postfix.await_deliveries(message_id, 40)
        return found.status, found.dsn, found.text


def transport(row: Provocation, server: str) -> str:
    """Return the name of the transport that does it."""
    return f"{row.name}-{server}"


@contextmanager
def under_way(
    rows: Sequence[Provocation], *, with_daemon: bool = False
) -> Iterator[Sent]:
    """Yield every message of *rows* on its way, in a lab of its own.

    Raises LabUnavailable where this machine cannot have one.
    """
    pairs = [(row, server) for row in rows for server in (POSTFIX, EXIM)]
    placed = {
        (row.name, server): Placed(
            CONTRACT_CASES[row.to], transport(row, server), number
        )
        for number, (row, server) in enumerate(pairs, 1)
    }
    entries = {transport(row, POSTFIX): ENTRY.format(name=row.name) for row in rows}
    scripts = {f"/opt/lab/{row.name}.sh": row.script for row in rows}
    # As high as Exim's in the lab: else they would see a loop before we do.
    lab = Lab(
        list(placed.values()),
        entries,
        settings={"hopcount_limit": "100"},
        files={**FILES, **scripts},
    )
    with lab:
        _start_false_daemons(lab)
        if with_daemon:
            lab.start_daemon()
        commands = {transport(row, EXIM): COMMAND.format(name=row.name) for row in rows}
        by_exim = Exim(lab.world, commands)
        for daemon in ("exim4 -bdf", "/master"):
            _make_small_disk(lab, daemon)
        ids = {}
        for (row, server), one in zip(pairs, placed.values(), strict=True):
            send = by_exim.send if server == EXIM else lab.send
            ids[row.name, server] = send([one.recipient], one.sender, row.mail_data)
        yield Sent(lab, by_exim, placed, ids)


def check_first_end(row: Provocation, server: str, sent: Sent) -> None:
    """Assert that the first attempt has ended as *row* says."""
    status, dsn, text = sent.end(row.name, server)
    assert status == row.status, text
    if server == POSTFIX:
        assert dsn == row.dsn, text
    assert re.search(row.text, text), text
    placed = sent.placed[row.name, server]
    got = sent.lab.hosts.received(placed.recipient)
    assert len(got) == row.copies, text
    if row.status != BOUNCED:
        assert sent.lab.hosts.received(placed.sender) == [], text


def _start_false_daemons(lab: Lab) -> None:
    for user, directory in (("mxpolicy", SOCKETS), ("nsd", STRANGERS)):
        lab.world.run("mta", ["install", "-d", "-o", user, directory])
        python = [sys.executable, "-I", false_daemons.__file__]
        argv = [*python, directory, *false_daemons.DAEMONS]
        lab.world.start("mta", argv, user=user)
        last = lab.world.path(f"{directory}/{list(false_daemons.DAEMONS)[-1]}")
        until = time.monotonic() + 15
        while not last.exists():
            assert time.monotonic() < until
            time.sleep(0.02)


def _make_small_disk(lab: Lab, daemon: str) -> None:
    """Mount one where *daemon* sees it: each lives in a mount namespace of its own."""
    pids = [one.pid for one in lab.world.processes() if daemon in one.command]
    enter = ["nsenter", "-t", str(min(pids)), "--mount"]
    lab.world.run("mta", [*enter, "mkdir", "-p", FULL_DISK])
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "none", FULL_DISK]
    lab.world.run("mta", [*enter, *mount])
