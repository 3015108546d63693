"""Postfix with every way to a host, the daemon, Exim, and one quick host behind them.

For what is about the clients: smtp-sink(1), which is Postfix's own and throws away what
it gets, holds none of them up. It listens at every address of the lab's Internet. The
rest is the lab's (`tests.lab`); mxpolicy is installed as a user has it (`installation`).

Mail for `WAY.lab.test` and all below it goes by that way:

smtp       Postfix's own client, smtp(8)
mxlmtp     lmtp(8) and the daemon, contrib's queue for each domain
mxpolicy   pipe(8), whose command hands the message over to the daemon
alone      the same, where no daemon runs
msmtp      pipe(8), whose command is msmtp(1); it is told the host, and looks up no MX
exim       Exim's own smtp transport
"""

import contextlib
import os
import re
import time
from collections.abc import Sequence
from functools import cached_property

from tests.lab.daemon import Daemon
from tests.lab.exim import Exim
from tests.lab.firewall import Firewall
from tests.lab.names import NameService
from tests.lab.packages import root_tree
from tests.lab.postfix import Postfix
from tests.lab.world import Process, World

from .installation import installation

SINK = "198.18.1.1"
DEAD = "198.18.1.2"
"""An address that drops every SYN."""

LARGEST = 100 * 1024 * 1024
"""Bytes of the largest message that Postfix takes; Exim's limit in the lab is this."""

SMTP, LMTP, PIPE, ALONE = "smtp", "mxlmtp", "mxpolicy", "alone"
MSMTP, EXIM = "msmtp", "exim"

WAYS = {
    SMTP: "Postfix smtp(8)",
    LMTP: "LMTP",
    PIPE: "pipe, handed over",
    ALONE: "pipe alone",
    MSMTP: "pipe, msmtp",
    EXIM: "Exim smtp",
}

DROPPED = "dropped"
"""Below a way: a domain whose first MX drops every SYN."""

# Processes that stay: what is read of them afterwards must still be there.
_SETTINGS = {
    "message_size_limit": str(LARGEST),
    "mailbox_size_limit": "0",
    "max_use": "100000",
    "max_idle": "1000s",
    "smtp_address_preference": "any",
    f"{ALONE}_destination_recipient_limit": "1",
    f"{MSMTP}_destination_recipient_limit": "1",
    # The domains are routed by name; what comes back to a sender goes nowhere.
    "default_transport": "smtp:",
    "soft_bounce": "no",
}

_ENTRY = "unix - n n - 60 pipe flags=q user=mxpolicy null_sender= argv="

_ENTRIES = {
    # As in contrib, but with a socket where no daemon listens.
    ALONE: _ENTRY + "/opt/mxpolicy/bin/mxpolicy pipe -f ${sender} --nexthop ${nexthop}"
    " --queue-id ${queue_id} --deadline 2900s --socket /nowhere -- ${recipient}",
    MSMTP: _ENTRY + f"/usr/bin/msmtp --host={SINK} --port=25 --tls=off --auth=off"
    " --from=me@lab.test --domain=mail.lab.test -- ${recipient}",
}

MSMTP_PACKAGES = (("msmtp",),)


class Servers:
    """All of it, started; a context manager. Raises LabUnavailable.

    The daemon and Exim are there once they are asked for. There are *domains* more below
    smtp and mxlmtp, each with a host at an address of its own: `d0`, `d1` and so on.
    """

    def __init__(self, domains: int = 0) -> None:
        self.world = World(installation())
        try:
            self._start(domains)
        except BaseException:
            self.world.close()
            raise

    def _start(self, domains: int) -> None:
        self._unpack_msmtp()
        Firewall(self.world).treat("drop", [DEAD])
        NameService(self.world, _records(domains))
        self.start_sink(["smtp-sink", "-u", "nsd", ":25", "1000"])
        ways = [way for way in WAYS if way != EXIM]
        routes = [
            (f"{dot}{way}.lab.test", f"{way}:") for way in ways for dot in ("", ".")
        ]
        fragments = ["lmtp-per-domain"]
        self.postfix = Postfix(self.world, routes, _ENTRIES, _SETTINGS, fragments)

    def _unpack_msmtp(self) -> None:
        tree = root_tree(MSMTP_PACKAGES)
        self.world.run("mta", ["cp", "-a", f"{tree}/usr/.", "/usr"])

    def start_sink(self, argv: Sequence[str]) -> None:
        """Start the host at port 25 of every address, instead of the one there."""
        for one in self.processes("smtp-sink "):
            self.world.run("mta", ["kill", str(one.pid)])
        self.world.start("net", argv, log="/var/log/sink")

    @cached_property
    def exim(self) -> Exim:
        """Exim, started when it is first asked for."""
        return Exim(self.world)

    @cached_property
    def daemon(self) -> Daemon:
        """The daemon, started when it is first asked for."""
        return Daemon(self.world)

    def restart_daemon(self, settings: str = "", wrap: Sequence[str] = ()) -> None:
        """Start the daemon, in place of one that runs; see `Daemon`."""
        self.stop_daemon()
        self.daemon = Daemon(self.world, settings, wrap=wrap)

    def stop_daemon(self) -> None:
        """End the daemon, if there is one."""
        if "daemon" in vars(self):
            self.daemon.stop(within=120)
            del self.daemon

    def needs_daemon(self, way: str) -> bool:
        """Return whether a way has the daemon in it; then it runs."""
        return way in {LMTP, PIPE} and self.daemon.is_running

    def deliver(self, way: str, data: bytes) -> float:
        """Send a message, and wait for its end; return the seconds from queue to sent."""
        recipients = [f"user@{way}.lab.test"]
        if way == EXIM:
            return self._by_exim(recipients, data)
        queue_id = self.postfix.send(recipients, "", data)
        [end] = self.postfix.await_deliveries(queue_id, 300)
        assert end.status == "sent", end
        _, *after_arrival = end.delays
        return sum(after_arrival)

    def _by_exim(self, recipients: Sequence[str], data: bytes) -> float:
        message_id = self.exim.send(recipients, "", data)
        [end] = self.exim.await_deliveries(message_id, 300)
        assert end.status == "sent", end
        until = time.monotonic() + 10
        while not self.exim.is_completed(message_id) and time.monotonic() < until:
            time.sleep(0.02)
        return end.delay

    def processes(self, command: str) -> list[Process]:
        """Return the processes with a command line that *command* matches, a pattern."""
        return [one for one in self.world.processes() if re.match(command, one.command)]

    def processor_time(self, command: str) -> float:
        """Return the seconds, user and system, of processes that *command* matches.

        What they have waited for counts as well, so each is counted once. Their own time
        is of schedstat(5), in nanoseconds: a hundred clients do less than a tick each.
        """
        seconds = 0.0
        for one in self.processes(command):
            with contextlib.suppress(OSError):  # it ended while we looked
                place = self.world.path(f"/proc/{one.pid}")
                seconds += int((place / "schedstat").read_text().split()[0]) / 1e9
                stat = (place / "stat").read_text().rpartition(")")[2].split()
                # cutime and cstime are fields 16 and 17, the name is 2.
                seconds += sum(map(int, stat[13:15])) / os.sysconf("SC_CLK_TCK")
        return seconds

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.world.close()


def _records(domains: int) -> list[str]:
    """Return the lines of the zone."""
    lines = [f"mx.lab.test. A {SINK}", f"dead.lab.test. A {DEAD}"]
    for way in WAYS:
        lines.append(f"{way}.lab.test. MX 10 mx.lab.test.")
        lines.append(f"{DROPPED}.{way}.lab.test. MX 10 dead.lab.test.")
        lines.append(f"{DROPPED}.{way}.lab.test. MX 20 mx.lab.test.")
    for number in range(domains):
        address = f"198.18.{2 + number // 250}.{number % 250 + 1}"
        lines.append(f"mx{number}.lab.test. A {address}")
        lines += [
            f"d{number}.{way}.lab.test. MX 10 mx{number}.lab.test."
            for way in (SMTP, LMTP)
        ]
    return lines
