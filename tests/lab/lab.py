"""The handle on a running lab.

    with Lab(place(CASES, ("smtp",))) as lab:
        queue_id = lab.send(["user@dropped.smtp.lab.test"], "me@home.lab.test")
        [delivery] = lab.postfix.await_deliveries(queue_id, timeout=40)
        lab.hosts.received("user@dropped.smtp.lab.test")

Parts: `lab.world` (run and start commands in the namespaces, read and write files),
`lab.firewall`, `lab.names`, `lab.hosts`, `lab.postfix`. What most tests need is here.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .case import AT_ONCE, GOOD, Case, Host, Mail, Placed
from .daemon import Daemon
from .exim import Exim
from .firewall import TREATMENTS, Firewall
from .hosts import Hosts
from .judge import Judge, Sent
from .names import DEAD, NameService
from .postfix import Postfix
from .smtp_host import Behaviour
from .world import World

# Where senders live: one good host, reached by smtp(8) whatever is being tried.
# What a message with SMTPUTF8 comes back as needs it, too.
_TAKES_ALL = Behaviour(keywords=(*GOOD.keywords, "SMTPUTF8"))
_HOME_MX = Host("mx", 10, _TAKES_ALL)
HOME = Placed(Case("home", "Bounces arrive.", (_HOME_MX,), {}), "", 0)
HOME_DOMAIN = "home.lab.test"

TRANSPORTS = ("mxpolicy", "smtp")

EXIM_SMTP = "exim-smtp"
"""Exim's own smtp transport."""

MXPOLICY_EXIM = "mxpolicy-exim"
"""The router and transport of contrib/exim."""

HANDED_EXIM = "handed-exim"
"""The same where a daemon takes the messages."""

EXIM_LMTP = "exim-lmtp"
"""The LMTP transport of contrib/exim."""

EXIM_TRANSPORTS = (EXIM_SMTP, MXPOLICY_EXIM, HANDED_EXIM, EXIM_LMTP)
"""Cases with these go through `Lab.exim`, not Postfix."""

EXIM_TAKES_AT_MOST = 900.0
"""Seconds; no case says how Exim's attempt must end, it is only shown."""

PACE = 0.3
"""Seconds between the messages of cases that wait for something."""

QUICK_AT_ONCE = 3
"""How many of those that wait for nothing may be under way when the next one starts."""


@dataclass(frozen=True)
class Ended:
    """How a case's first attempt ended, as the mail server logged it.

    `status` is sent, deferred or bounced; `delay` is seconds since it had the message.
    """

    status: str
    delay: float
    text: str


def patience(placed: Placed) -> float:
    """Return the seconds that a case's first attempt may take."""
    expected = placed.case.expected_with(placed.transport)
    return expected.within if expected else EXIM_TAKES_AT_MOST


class Lab:
    """A whole lab, started; a context manager that takes everything down.

    *transports* are more services for Postfix's master.cf, *settings* more lines for
    its main.cf, *fragments* more of contrib or nothing of it (see `Postfix`), *files* what to write
    where in the lab before anything starts; mail for `DOMAIN.NAME.lab.test` goes by
    transport NAME, or as *routes* says for NAME ("transport:nexthop"). *installed* is
    `World`'s. Exim is there once it is asked for.
    Raises LabUnavailable where this machine cannot have one.
    """

    def __init__(
        self,
        placed: Sequence[Placed] = (),
        transports: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        fragments: Sequence[str] | None = (),
        files: Mapping[str, str] | None = None,
        routes: Mapping[str, str] | None = None,
        installed: Path | None = None,
    ) -> None:
        self.placed = tuple(placed)
        self.daemon: Daemon
        self.world = World(installed)
        try:
            self._write_files(files or {})
            self.firewall = Firewall(self.world)
            self.hosts = Hosts(self.world)
            self._place_hosts()
            forged = [name for placed in self.placed for name in placed.forged()]
            self.names = NameService(self.world, self._records(), forged)
            ways = {name: f"{name}:" for name in (*TRANSPORTS, *(transports or {}))}
            ways |= routes or {}
            domains = [(HOME_DOMAIN, "smtp:")]
            domains += [(f".{name}.lab.test", way) for name, way in ways.items()]
            self.postfix = Postfix(self.world, domains, transports, settings, fragments)
        except BaseException:
            self.world.close()
            raise

    def _write_files(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.world.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def _place_hosts(self) -> None:
        home = HOME.addresses(HOME.case.hosts[0])[0]
        rows = [(home, f"mx.{HOME_DOMAIN}", _HOME_MX.behaviour)]
        treated = {"drop": [DEAD]}
        for placed in self.placed:
            for host in placed.case.hosts:
                name, how = placed.host_name(host), host.behaviour
                rows += [(address, name, how) for address in placed.addresses(host)]
                of_this_host = placed.firewalled(host)
                treated.setdefault(host.firewall, []).extend(of_this_host)
        self.hosts.place(rows)
        for treatment in TREATMENTS:
            self.firewall.treat(treatment, treated.get(treatment, []))

    def _records(self) -> list[str]:
        home = HOME.addresses(HOME.case.hosts[0])[0]
        mx = f"mx.{HOME_DOMAIN}."
        lines = [f"{HOME_DOMAIN}. MX 10 {mx}", f"{mx} A {home}"]
        return lines + [line for placed in self.placed for line in placed.records()]

    # --- what tests do ---

    def send(
        self,
        recipients: Sequence[str],
        sender: str = f"sender@{HOME_DOMAIN}",
        data: bytes = Mail().data,
        options: Sequence[str] = (),
    ) -> str:
        """Give Postfix a message; return its queue id."""
        return self.postfix.send(recipients, sender, data, options)

    def mta_exec(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command on the mail server as *user*, as pipe(8) would: few variables."""
        return self.world.run(
            "mta", argv, user=user, stdin=stdin, env=env, timeout=timeout, check=False
        )

    def route(self, domain: str, transport: str) -> None:
        """Send a domain's mail by "transport:nexthop" from now on."""
        self.postfix.route(domain, transport)

    def start_daemon(self, settings: str = "") -> Daemon:
        """Start ``mxpolicy serve`` with these lines in its configuration, too."""
        self.daemon = Daemon(self.world, settings)
        return self.daemon

    @cached_property
    def exim(self) -> Exim:
        """Exim, started when it is first asked for."""
        return Exim(self.world)

    # --- cases ---

    def server(self, placed: Placed) -> Postfix | Exim:
        """Return the mail server that a case's message goes through."""
        return self.exim if placed.transport in EXIM_TRANSPORTS else self.postfix

    def send_case(self, placed: Placed) -> Sent:
        """Send a case's message."""
        whom, data, at = placed.recipients, placed.case.mail.data, time.time()
        options = placed.case.mail.options
        queue_id = self.server(placed).send(whom, placed.sender, data, options)
        return Sent(placed, queue_id, at)

    def send_cases(self, pace: float = PACE) -> dict[str, Sent]:
        """Send every case's message, the slowest first; return them by case name.

        All are under way at once, but do not start at once: starting a Python for each
        is work, and times are judged. So those that wait for nothing come last, each when
        most before it have ended: this machine sets the pace. For the others it is *pace*,
        the seconds between two.
        """
        slowest_first = sorted(self.placed, key=patience, reverse=True)
        sent: dict[str, Sent] = {}
        quick: list[Sent] = []
        for placed in slowest_first:
            quick = self._await_room(quick)
            sent[placed.name] = one = self.send_case(placed)
            if patience(placed) <= AT_ONCE:
                quick.append(one)
            else:
                time.sleep(pace)
        return sent

    def _await_room(self, quick: list[Sent]) -> list[Sent]:
        """Wait until few of *quick* go on, but not for ever; return those."""
        until = time.monotonic() + AT_ONCE
        while len(quick) >= QUICK_AT_ONCE and time.monotonic() < until:
            time.sleep(0.02)
            quick = [one for one in quick if self.ended(one) is None]
        return quick

    def ended(self, sent: Sent) -> Ended | None:
        """Return how a case's first attempt ended, or None while it goes on."""
        for first in self.server(sent.placed).deliveries(sent.queue_id):
            return Ended(first.status, first.delay, first.text)
        return None

    def judge(self, sent: Sent) -> list[str]:
        """Wait for a case's first attempt to end; return what is not as expected."""
        return Judge(self.server(sent.placed), self.hosts).misfits(sent)

    def leftovers(self) -> list[str]:
        """Return what deliveries left behind: processes, connections, sessions.

        Postfix keeps finished smtp(8) connections for 2 s under load, and a process that
        has logged its delivery may not have ended yet; so it looks for up to 5 s.
        """
        until = time.monotonic() + 5
        while (found := self._leftovers()) and time.monotonic() < until:
            time.sleep(0.2)
        return found

    def _leftovers(self) -> list[str]:
        outward = ["ss", "-Htn", "dport", "=", ":25"]
        return [
            *(str(one) for one in self.world.processes() if one.user == "mxpolicy"),
            *self.mta_exec(outward).stdout.decode().splitlines(),
            *(str(one) for one in self.hosts.sessions() if not one.ended),
        ]

    def close(self) -> None:
        """Take everything down."""
        self.world.close()

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
