"""The handle on a running lab.

    with Lab(place(CASES, ("smtp",))) as lab:
        queue_id = lab.send(["user@dropped.smtp.lab.test"], "me@home.lab.test")
        [delivery] = lab.postfix.await_deliveries(queue_id, timeout=40)
        lab.hosts.received("user@dropped.smtp.lab.test")

Parts: `lab.world` (run and start commands in the namespaces, read and write files),
`lab.firewall`, `lab.names`, `lab.hosts`, `lab.postfix`. What most tests need is here.
"""

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .cases import GOOD, Case, Host, Placed
from .exim import Exim
from .firewall import Firewall
from .hosts import Hosts, Message
from .names import NameService
from .postfix import Delivery, Postfix
from .world import World

# Where senders live: one good host, reached by smtp(8) whatever is being tried.
HOME = Placed(Case("home", "Bounces arrive.", (Host("mx", 10),), {}), "", 0)
HOME_DOMAIN = "home.lab.test"

TRANSPORTS = ("mxpolicy", "smtp")

EXIM_SMTP = "exim-smtp"
"""The transport that is Exim's own: its cases go through `Lab.exim`, not Postfix."""

EXIM_TAKES_AT_MOST = 900.0
"""Seconds; no case says how Exim's attempt must end, it is only shown."""

MESSAGE = b"Subject: from the lab\n\nOne line of text.\n"

PACE = 0.3
"""Seconds between the messages of cases."""


@dataclass(frozen=True)
class Sent:
    """A case's message under way."""

    placed: Placed
    queue_id: str
    at: float
    """Seconds since the epoch."""


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
    expected = placed.case.expected.get(placed.transport)
    return expected.within if expected else EXIM_TAKES_AT_MOST


class Lab:
    """A whole lab, started; a context manager that takes everything down.

    *transports* are more services for Postfix's master.cf, *settings* more lines for
    its main.cf, *fragments* more of contrib (see `Postfix`); mail for
    `DOMAIN.NAME.lab.test` goes by transport NAME. Exim is there once it is asked for.
    Raises LabUnavailable where this machine cannot have one.
    """

    def __init__(
        self,
        placed: Sequence[Placed] = (),
        transports: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        fragments: Sequence[str] = (),
    ) -> None:
        self.placed = tuple(placed)
        self.world = World()
        try:
            self.firewall = Firewall(self.world)
            self.hosts = Hosts(self.world)
            self._place_hosts()
            self.names = NameService(self.world, self._records())
            names = (*TRANSPORTS, *(transports or {}))
            routes = [(HOME_DOMAIN, "smtp:")]
            routes += [(f".{name}.lab.test", f"{name}:") for name in names]
            self.postfix = Postfix(self.world, routes, transports, settings, fragments)
        except BaseException:
            self.world.close()
            raise

    def _place_hosts(self) -> None:
        home = HOME.addresses(HOME.case.hosts[0])[0]
        rows = [(home, f"mx.{HOME_DOMAIN}", GOOD)]
        treated: dict[str, list[str]] = {}
        for placed in self.placed:
            for host in placed.case.hosts:
                for address in placed.addresses(host):
                    rows.append((address, placed.host_name(host), host.behaviour))
                    treated.setdefault(host.firewall, []).append(address)
        self.hosts.place(rows)
        for treatment in ("drop", "reset", "prohibit"):
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
        data: bytes = MESSAGE,
        options: Sequence[str] = (),
    ) -> str:
        """Give Postfix a message; return its queue id."""
        return self.postfix.send(recipients, sender, data, options)

    def postfix_log(self, queue_id: str) -> list[Delivery]:
        """Return what Postfix logged of a message's deliveries so far."""
        return self.postfix.deliveries(queue_id)

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

    @cached_property
    def exim(self) -> Exim:
        """Exim, started when it is first asked for."""
        return Exim(self.world)

    # --- cases ---

    def send_case(self, placed: Placed) -> Sent:
        """Send a case's message."""
        send = self.exim.send if placed.transport == EXIM_SMTP else self.send
        at = time.time()
        return Sent(placed, send([placed.recipient], placed.sender, MESSAGE), at)

    def send_cases(self) -> dict[str, Sent]:
        """Send every case's message, the slowest first; return them by case name.

        All are under way at once, but do not start at once: starting a Python for each
        is work, and times are judged.
        """
        slowest_first = sorted(self.placed, key=patience, reverse=True)
        sent = {}
        for placed in slowest_first:
            sent[placed.name] = self.send_case(placed)
            time.sleep(PACE)
        return sent

    def ended(self, sent: Sent) -> Ended | None:
        """Return how a case's first attempt ended, or None while it goes on."""
        server = self.exim if sent.placed.transport == EXIM_SMTP else self.postfix
        for first in server.deliveries(sent.queue_id):
            return Ended(first.status, first.delay, first.text)
        return None

    def judge(self, sent: Sent) -> list[str]:
        """Wait for a case's first attempt to end; return what is not as expected."""
        expected = sent.placed.expected
        left = sent.at + expected.within + 20 - time.time()
        deliveries = self.postfix.await_deliveries(sent.queue_id, max(left, 1.0))
        if len(deliveries) != 1:
            log = "\n".join(self.postfix.log(sent.queue_id)) or "nothing"
            return [f"{len(deliveries)} delivery lines in the log, not one:\n{log}"]
        bounces = 1 if expected.status == "bounced" else 0
        return [
            *_misfits(sent, deliveries[0]),
            *self._wrong_copies(sent),
            *self._wrong_bounces(sent, bounces),
        ]

    def _wrong_copies(self, sent: Sent) -> list[str]:
        placed = sent.placed
        wanted = {f"{h}.{placed.domain}": n for h, n in placed.expected.copies.items()}
        found: dict[str, int] = {}
        for message in self.hosts.received(placed.recipient):
            found[message.host] = found.get(message.host, 0) + 1
        return [] if found == wanted else [f"copies are {found}, not {wanted}"]

    def _wrong_bounces(self, sent: Sent, wanted: int) -> list[str]:
        until = time.monotonic() + (10 if wanted else 0)
        while len(found := self._bounces(sent)) < wanted and time.monotonic() < until:
            time.sleep(0.1)
        return [] if len(found) == wanted else [f"{len(found)} bounces, not {wanted}"]

    def _bounces(self, sent: Sent) -> list[Message]:
        return self.hosts.received(sent.placed.sender)

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


def _misfits(sent: Sent, delivery: Delivery) -> list[str]:
    """Return what in the log line differs from the expectation."""
    expected = sent.placed.expected
    found = []
    if (delivery.status, delivery.dsn) != (expected.status, expected.dsn):
        found.append(
            f"status={delivery.status} dsn={delivery.dsn}, not "
            f"{expected.status} {expected.dsn}: {delivery.text}"
        )
    if not re.search(expected.text, delivery.text):
        found.append(f"no {expected.text!r} in: {delivery.text}")
    if not expected.after <= delivery.delay <= expected.within:
        found.append(
            f"took {delivery.delay} s, not {expected.after} to {expected.within} s"
        )
    return found
