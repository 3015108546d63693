"""The real Postfix of the lab: its configuration, its log, and mail for it.

Its configuration is Debian's default one and contrib/postfix, with only what `_MAIN`
adds; the differences are explained there.
"""

import os
import re
import smtplib
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .mail_log import lines_with
from .packages import CHECKOUT
from .world import World

CONTRIB = CHECKOUT / "contrib" / "postfix"

_LOG = "/var/log/mail.log"

_MAIN = {
    "myhostname": "mail.lab.test",
    "mydestination": "mail.lab.test, localhost",
    "mynetworks": "127.0.0.0/8 [::1]/128",
    "maillog_file": _LOG,
    "alias_maps": "",
    "transport_maps": "hash:/etc/postfix/transport",
    # As much as the hosts say they take.
    "message_size_limit": "104857600",
    "mailbox_size_limit": "0",
    # Many cases fail on purpose, and each tells its sender; none tells the postmaster.
    "notify_classes": "",
}

# A first run of many cases at once; contrib's own limit is for mail that lasts seconds.
_PROCESSES_AT_ONCE = 300

# queue id: to=<...>, relay=..., delay=..., delays=..., dsn=..., status=word (text)
_DELIVERY = re.compile(
    r"postfix/(?P<agent>\S+)\[\d+\]: (?P<queue_id>\w+): to=<(?P<recipient>.*?)>, "
    r"(?:orig_to=<.*?>, )?relay=(?P<relay>.*?), (?:conn_use=\d+, )?"
    r"delay=(?P<delay>[\d.]+), delays=(?P<delays>[\d./]+), "
    r"dsn=(?P<dsn>\d\.\d+\.\d+), status=(?P<status>\w+) \((?P<text>.*?)\)?$"  # a long line is cut
)


@dataclass(frozen=True)
class Delivery:
    """One delivery line of Postfix's log: what became of one recipient in one attempt.

    `delay` is seconds since Postfix got the message; `delays` splits it into before the
    queue manager, in the queue manager, connection set-up, and transmission.
    """

    agent: str
    queue_id: str
    recipient: str
    relay: str
    delay: float
    delays: tuple[float, ...]
    dsn: str
    status: str
    text: str


class Postfix:
    """Postfix, started. *transports* are more services for master.cf, name to entry.

    An entry is what follows the name in master.cf, for example
    "unix - n n - - pipe flags=q user=mxpolicy argv=/bin/false". *settings* are more
    lines for main.cf; *fragments* are directories of contrib/postfix to append as well,
    None for nothing of contrib.
    """

    def __init__(
        self,
        world: World,
        routes: Iterable[tuple[str, str]] = (),
        transports: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        fragments: Sequence[str] | None = (),
    ) -> None:
        self._world = world
        self._routes = dict(routes)
        self._join_files(fragments)
        if fragments is not None:
            limit = f"mxpolicy/unix/process_limit={_PROCESSES_AT_ONCE}"
            self._run("postconf", "-F", limit)
        self._configure({**_MAIN, **(settings or {})})
        for name, entry in (transports or {}).items():
            self._add_service(name, entry)
        self._write_routes()
        self._run("postfix", "start")
        self._await_smtpd()

    # --- configuration ---

    def _join_files(self, fragments: Sequence[str] | None) -> None:
        etc = self._world.path("/etc/postfix")
        shared = self._world.path("/usr/share/postfix")
        for name, default in (
            ("main.cf", "main.cf.debian"),
            ("master.cf", "master.cf.dist"),
        ):
            text = (shared / default).read_text()
            named = () if fragments is None else ("", *fragments)
            for directory in (CONTRIB / one for one in named):
                if (fragment := directory / name).exists():
                    text += fragment.read_text()
            (etc / name).write_text(text)
        (etc / "dynamicmaps.cf").write_text("")

    def _configure(self, settings: Mapping[str, str]) -> None:
        self._edit_main(settings)
        # Debian's package script would fill the chroot; without it, no chroot.
        self._run("postconf", "-F", "*/*/chroot=n")
        self._make_directories()

    def _edit_main(self, settings: Mapping[str, str]) -> None:
        edits = [f"{key}={text}" for key, text in settings.items()]
        self._run("postconf", "-e", *edits)
        self._make_old("main.cf")

    def _make_old(self, name: str) -> None:
        # Postfix's programs sleep until a file they read is two seconds old.
        os.utime(self._world.path(f"/etc/postfix/{name}"), (0, 0))

    def _make_directories(self) -> None:
        # What the package's script does: owners that dpkg-deb cannot know.
        script = (
            "mkdir -p /var/spool/postfix /var/lib/postfix /var/lib/mxpolicy && "
            "chown postfix /var/lib/postfix && "
            "chown mxpolicy:mxpolicy /var/lib/mxpolicy && "
            "chgrp postdrop /usr/sbin/postdrop /usr/sbin/postqueue && "
            "chmod 2555 /usr/sbin/postdrop /usr/sbin/postqueue"
        )
        self._run("sh", "-c", script)

    def _add_service(self, name: str, entry: str) -> None:
        kind = entry.split()[0]
        self._run("postconf", "-M", f"{name}/{kind}={name} {entry}")

    def _write_routes(self) -> None:
        lines = [
            f"{domain} {transport}\n" for domain, transport in self._routes.items()
        ]
        self._world.path("/etc/postfix/transport").write_text("".join(lines))
        self._make_old("transport")
        self._run("postmap", "hash:/etc/postfix/transport")

    def route(self, domain: str, transport: str) -> None:
        """Send a domain's mail (".domain": all below it) by "transport:nexthop"."""
        self._routes[domain] = transport
        self._write_routes()

    def forget_route(self, domain: str) -> None:
        """Let a domain's mail go as if `route` had never named it."""
        del self._routes[domain]
        self._write_routes()

    def add_transport(self, name: str, entry: str) -> None:
        """Add or change a service in master.cf, and reload."""
        self._add_service(name, entry)
        self.reload()

    def set(self, **settings: str) -> None:
        """Change main.cf, and reload."""
        self._edit_main(settings)
        self.reload()

    def reload(self) -> None:
        """Have it read its configuration again; return when it serves by the new one.

        A smtpd(8) of before that takes a client while it is about to end misleads
        master(8): it counts one that is idle, and starts no other for the next client,
        who then waits for its greeting. So those of before have to be gone; one that
        has a client is waited for in vain.
        """
        before = self._smtpd()
        self._run("postfix", "reload")
        until = time.monotonic() + 5
        while before & self._smtpd() and time.monotonic() < until:
            time.sleep(0.02)

    def _smtpd(self) -> frozenset[int]:
        processes = self._world.processes()
        found = (one.pid for one in processes if one.command.startswith("smtpd "))
        return frozenset(found)

    def _run(self, *argv: str) -> str:
        return self._world.run("mta", argv).stdout.decode()

    def _await_smtpd(self) -> None:
        until = time.monotonic() + 20
        while True:
            try:
                with Client(self._world):
                    return
            except (OSError, smtplib.SMTPException):
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    # --- mail ---

    def send(
        self,
        recipients: Sequence[str],
        sender: str,
        data: bytes,
        options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> str:
        """Hand Postfix a message over SMTP; return its queue id.

        Lines of *data* may end in LF. *options* are parameters of MAIL, for example
        "BODY=8BITMIME", *rcpt_options* of each RCPT. Raises smtplib.SMTPException when
        Postfix does not take it.
        """
        with Client(self._world) as client:
            text = client.submit(recipients, sender, data, options, rcpt_options)
        found = re.search(rb"queued as (\w+)", text)
        assert found is not None, text
        return found[1].decode()

    def flush(self) -> None:
        """Try everything in the queue now."""
        self._run("postqueue", "-f")

    def queue(self) -> str:
        """Return what mailq(1) shows."""
        return self._run("postqueue", "-p")

    # --- log ---

    def log(self, queue_id: str = "") -> list[str]:
        """Return the lines of the mail log that name *queue_id*, or all of them."""
        mark = f": {queue_id}: " if queue_id else ""
        return lines_with(self._world.path(_LOG), mark)

    def deliveries(self, queue_id: str = "") -> list[Delivery]:
        """Return the delivery lines of a message, or all, oldest first."""
        found = [_DELIVERY.search(line) for line in self.log(queue_id)]
        return [_delivery(match) for match in found if match]

    def await_deliveries(
        self, queue_id: str, timeout: float, count: int = 1
    ) -> list[Delivery]:
        """Wait until a message has *count* delivery lines; return those there are.

        After *timeout* seconds fewer may come back, also none.
        """
        until = time.monotonic() + timeout
        while True:
            found = self.deliveries(queue_id)
            if len(found) >= count or time.monotonic() > until:
                return found
            time.sleep(0.1)


class Client(smtplib.SMTP):
    """An SMTP client at a mail server's own door, made in the mail server's network."""

    def __init__(self, world: World, port: int = 25) -> None:
        self._world = world
        super().__init__("127.0.0.1", port, local_hostname="localhost", timeout=60)
        # Without SMTPUTF8 among the options, it is the mail server that will object.
        self.command_encoding = "utf-8"
        self.ehlo()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._world.connect("mta", (host, port), timeout)

    def submit(
        self,
        recipients: Sequence[str],
        sender: str,
        data: bytes,
        options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> bytes:
        """Hand over one message; return the text of the answer to its final dot.

        Lines of *data* may end in LF. *options* are parameters of MAIL, *rcpt_options* of
        each RCPT. Raises smtplib.SMTPException when the mail server does not take it.
        """
        self._ask(" ".join((f"MAIL FROM:<{sender}>", *options)))
        for recipient in recipients:
            self._ask(" ".join((f"RCPT TO:<{recipient}>", *rcpt_options)))
        crlf = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        code, text = self.data(crlf)
        if code != 250:
            raise smtplib.SMTPResponseException(code, text)
        return text

    def _ask(self, command: str) -> None:
        """Send a command as it is; raise unless the answer is positive."""
        code, text = self.docmd(command)
        if code >= 400:
            raise smtplib.SMTPResponseException(code, text)


def _delivery(match: re.Match[str]) -> Delivery:
    return Delivery(
        agent=match["agent"],
        queue_id=match["queue_id"],
        recipient=match["recipient"],
        relay=match["relay"],
        delay=float(match["delay"]),
        delays=tuple(float(part) for part in match["delays"].split("/")),
        dsn=match["dsn"],
        status=match["status"],
        text=match["text"],
    )
