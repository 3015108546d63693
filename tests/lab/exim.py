"""The real Exim of the lab, beside Postfix: its configuration, its log, mail for it.

It stands for what a user of Exim has: the dnslookup router and the smtp transport of
Debian's configuration, every option at its default; and contrib/exim, as it is. It takes
mail at a port of its own and shares address, name and name server with Postfix.
"""

import re
import smtplib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from .mail_log import lines_with
from .packages import CHECKOUT
from .postfix import Client
from .world import World

PORT = 2525

_SPOOL = "/var/spool/exim4"
_LOG_DIRECTORY = "/var/log/exim4"
_LOG = f"{_LOG_DIRECTORY}/mainlog"

CONTRIB = CHECKOUT / "contrib" / "exim"

DOMAINS = "*.mxpolicy-exim.lab.test : *.handed-exim.lab.test"
"""Whose mail goes by the router and transport of contrib/exim."""

_LMTP_ROUTER = """
by_lmtp:
  driver = accept
  domains = *.exim-lmtp.lab.test
  transport = mxpolicy_lmtp
"""

_CONFIGURATION = f"""
primary_hostname = mail.lab.test
domainlist local_domains = mail.lab.test
domainlist by_mxpolicy = {DOMAINS}
daemon_smtp_ports = {PORT}
local_interfaces = 127.0.0.1
extra_local_interfaces = <; 192.0.2.25 ; 2001:db8:2::25
tls_advertise_hosts =
dsn_advertise_hosts = ! *
acl_smtp_rcpt = accept
message_size_limit = 100M
received_headers_max = 100
exim_path = /usr/sbin/exim4
log_file_path = {_LOG_DIRECTORY}/%slog
log_selector = +millisec
log_timezone = true
keep_environment =

begin routers
{_LMTP_ROUTER}
dnslookup:
  driver = dnslookup
  domains = ! +local_domains : ! +by_mxpolicy
  transport = remote_smtp
  same_domain_copy_routing = yes
  ignore_target_hosts = <; 0.0.0.0 ; 127.0.0.0/8 ; 192.168.0.0/16 ; 172.16.0.0/12 ; \\
    10.0.0.0/8 ; 169.254.0.0/16 ; 255.255.255.255 ; ::/128 ; ::1/128 ; fc00::/7 ; \\
    fe80::/10 ; 100::/64
  no_more

{(CONTRIB / "router").read_text()}

begin transports

{(CONTRIB / "transport").read_text()}
{(CONTRIB / "transport-lmtp").read_text()}

remote_smtp:
  driver = smtp

begin retry

{(CONTRIB / "retry").read_text()}
"""

# 2026-11-24 00:20:05.123 +0000 MESSAGE-ID => user@domain R=... T=... H=name [address] ...
# Where no router took an address, a colon follows it; a local transport's address
# stands behind its local part.
_LINE = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4}) (?P<message_id>\S+) "
    r"(?P<mark><=|=>|->|==|\*\*) (?:(?P<recipient>\S+@\S+?|<>):?|.*? <(?P<local>\S.*?)>) "
    r"(?P<text>.*)"
)

# What contrib's log_output has Exim log before that.
_OUTPUT = re.compile(
    r"\S+ \S+ \S+ (?P<message_id>\S+) <(?P<recipient>.*)>: "
    r"mxpolicy transport output: (?P<text>(?P<dsn>\d\.\d+\.\d+)? ?.*)"
)

# What an LMTP server said, at the end of a line of the transport that asked it.
_LMTP_REPLY = re.compile(r' T=mxpolicy_lmtp\b.*?[ "][245]\d\d (?P<dsn>\d\.\d+\.\d+) ')

# "  T:user@domain ERRNO MORE-ERRNO TEXT", and on the next line when it was tried.
_RETRY = re.compile(r" *(?P<key>[RTF]:\S+) +(?P<text>-?\d+ -?\d+ .*)")

# One Exim for each address, and after its answer its exit status and a NUL.
_ROUTE_EACH = """
for address; do exim4 -bt -- "$address"; printf '\\n%s\\0' $?; done 2>&1
"""

_STATUSES = {"=>": "sent", "->": "sent", "==": "deferred", "**": "bounced"}

# "  host mx1.example  [192.0.2.1]  MX=10"; one that it leaves out has "[unknown]", and
# "** unusable **" behind it.
_HOST = re.compile(
    r"\s+host (?P<name>\S+)\s+\[(?P<address>[\da-f.:]+)\](?:\s+MX=(?P<mx>\d+))?"
    r"(?!.*unusable)"
)


@dataclass(frozen=True)
class Delivery:
    """One line of Exim's log: what became of one recipient in one attempt.

    `status` is in Postfix's words: sent, deferred, bounced. `at` is seconds since the
    epoch, `delay` since Exim had the message whole; `text` is all after the recipient,
    and what the command of a pipe transport said. `dsn` is what that begins with (2.0.0
    on success, which is silent); no other transport logs one.
    """

    message_id: str
    recipient: str
    status: str
    at: float
    delay: float
    dsn: str
    text: str


@dataclass(frozen=True)
class RouteHost:
    """A host that Exim would try, with its MX preference if it came by MX."""

    name: str
    address: str
    preference: int | None


@dataclass(frozen=True)
class Route:
    """What Exim would do with an address now: try `hosts` in order, or what `text` says.

    `status` is "routed", "deferred" (the routing cannot be done now) or "bounced".
    """

    status: str
    hosts: tuple[RouteHost, ...]
    text: str


class Exim:
    """Exim, started; it delivers what it is given at once, and runs no queue.

    *commands* are for more transports, by name: each is contrib's with this command in
    the place of its own, and mail for `DOMAIN.NAME.lab.test` goes by transport NAME;
    *batch_max* is of theirs: how many recipients one run may have. *copies* are commands
    by name, too: those get a copy of the same mail, by an unseen router before it.
    *soft* are names whose transport makes a deferral of a bounce. *rcpt* is the ACL for
    RCPT, and *settings* are options of the main section in place of those above.
    """

    def __init__(
        self,
        world: World,
        commands: Mapping[str, str] | None = None,
        batch_max: int = 1,
        copies: Mapping[str, str] | None = None,
        soft: Collection[str] = (),
        rcpt: str = "",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._world = world
        text = _configuration(commands or {}, copies or {}, batch_max, soft)
        for option, value in (settings or {}).items():
            text = re.sub(rf"(?m)^{option} = .*", f"{option} = {value}", text)
        if rcpt:
            text = text.replace("acl_smtp_rcpt = accept", "acl_smtp_rcpt = rcpt")
            text = text.replace(
                "begin routers", f"begin acl\n\nrcpt:\n{rcpt}\nbegin routers", 1
            )
        world.path("/etc/exim4/exim4.conf").write_text(text)
        # What the package's script does.
        for directory in (_SPOOL, _LOG_DIRECTORY):
            self._run("install", "-d", "-o", "Debian-exim", "-m", "750", directory)
        world.start("mta", ["exim4", "-bdf"], log="/var/log/exim4.stderr")
        self._await_daemon()

    def _run(self, *argv: str) -> str:
        return self._world.run("mta", argv).stdout.decode()

    def _await_daemon(self) -> None:
        until = time.monotonic() + 20
        while True:
            try:
                with Client(self._world, PORT):
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
        """Hand Exim a message over SMTP; return its message id.

        Lines of *data* may end in LF. *options* are parameters of MAIL, *rcpt_options* of
        each RCPT. Raises smtplib.SMTPException when Exim does not take it.
        """
        with Client(self._world, PORT) as client:
            text = client.submit(recipients, sender, data, options, rcpt_options)
        found = re.search(rb"id=(\S+)", text)
        assert found is not None, text
        return found[1].decode()

    def flush(self) -> None:
        """Try everything in the queue now, whatever the retry times say."""
        self._world.run("mta", ["exim4", "-qff"], timeout=120.0)

    def queue(self) -> str:
        """Return what `exim -bp` shows."""
        return self._run("exim4", "-bp")

    def retry_records(self) -> dict[str, str]:
        """Return Exim's retry database: what each record says, by its key.

        The key of an address that a transport deferred is `T:LOCAL-PART@DOMAIN:...`;
        while such a record says so, Exim asks nobody.
        """
        dumped = self._run("exim_dumpdb", _SPOOL, "retry")
        return {
            match["key"]: match["text"]
            for match in map(_RETRY.match, dumped.splitlines())
            if match
        }

    # --- routing ---

    def route(self, address: str) -> Route:
        """Ask Exim how it would route *address* (`exim -bt`)."""
        [route] = self.routes([address])
        return route

    def routes(self, addresses: Sequence[str]) -> list[Route]:
        """Ask the same of many addresses."""
        command = ["sh", "-c", _ROUTE_EACH, "-", *addresses]
        done = self._world.run("mta", command, timeout=60 + len(addresses))
        *answers, _ = done.stdout.decode().split("\0")
        return [_route(*answer.rsplit("\n", 1)) for answer in answers]

    # --- log ---

    def log(self, message_id: str = "") -> list[str]:
        """Return the lines of the main log about *message_id*, or all of them."""
        # The id is the fourth word; a bounce names that of its cause further on.
        mark = f" {message_id} " if message_id else ""
        lines = lines_with(self._world.path(_LOG), mark)
        return [line for line in lines if mark in line[:60]]

    def panics(self) -> str:
        """Return what Exim wrote for its operator's attention."""
        path = self._world.path(f"{_LOG_DIRECTORY}/paniclog")
        return path.read_text(errors="replace") if path.exists() else ""

    def deliveries(self, message_id: str = "") -> list[Delivery]:
        """Return the delivery lines of a message, or all, oldest first."""
        return list(_deliveries(self.log(message_id)))

    def is_completed(self, message_id: str) -> bool:
        """Tell whether Exim is done with a message: no recipient is left in its queue."""
        return any(line.endswith(f"{message_id} Completed") for line in self.log())

    def await_deliveries(
        self, message_id: str, timeout: float, count: int = 1
    ) -> list[Delivery]:
        """Wait until a message has *count* delivery lines; return those there are.

        After *timeout* seconds fewer may come back, also none.
        """
        until = time.monotonic() + timeout
        while True:
            found = self.deliveries(message_id)
            if len(found) >= count or time.monotonic() > until:
                return found
            time.sleep(0.1)


def _route(text: str, exit_status: str) -> Route:
    status = {"0": "routed", "1": "deferred"}.get(exit_status, "bounced")
    matches = filter(None, map(_HOST.match, text.splitlines()))
    return Route(status, tuple(map(_route_host, matches)), text.strip())


def _configuration(
    commands: Mapping[str, str],
    copies: Mapping[str, str],
    batch_max: int,
    soft: Collection[str],
) -> str:
    routers, transports = "begin routers\n", "begin transports\n"
    for kind, table in (("_copy", copies), ("", commands)):
        for name, command in table.items():
            word = name.replace("-", "_") + kind  # what Exim takes for a name
            unseen = "  unseen\n" if kind else ""
            routers += (
                f"{word}:\n  driver = accept\n  domains = *.{name}.lab.test\n"
                f"  transport = {word}\n{unseen}\n"
            )
            options = {"command": command, "batch_max": str(batch_max)}
            if name in soft:
                options["temp_errors"] = "69:75"
            transports += _transport(word, options)
    return _CONFIGURATION.replace("begin routers\n", routers).replace(
        "begin transports\n", transports
    )


def _transport(word: str, options: Mapping[str, str]) -> str:
    """Return contrib's transport under another name, with these options."""
    text = (CONTRIB / "transport").read_text().replace("mxpolicy:", f"{word}:", 1)
    for option, value in options.items():
        line = f"  {option} = {value}".replace("\\", r"\\")
        text = re.sub(rf"(?m)^  {option} = .*", line, text)
    return text


def _route_host(match: re.Match[str]) -> RouteHost:
    preference = None if match["mx"] is None else int(match["mx"])
    return RouteHost(match["name"], match["address"], preference)


def _deliveries(lines: Iterable[str]) -> Iterator[Delivery]:
    arrived: dict[str, float] = {}
    outputs: dict[tuple[str, str], re.Match[str]] = {}
    for line in lines:
        if said := _OUTPUT.match(line):
            outputs[said["message_id"], said["recipient"]] = said
        if not (match := _LINE.match(line)):
            continue
        at = datetime.strptime(match["at"], "%Y-%m-%d %H:%M:%S.%f %z").timestamp()
        message_id = match["message_id"]
        if match["mark"] == "<=":
            arrived[message_id] = at
            continue
        recipient = match["recipient"] or match["local"]
        status, text = _STATUSES[match["mark"]], match["text"]
        dsn = "2.0.0" if status == "sent" and "T=mxpolicy" in text else ""
        if reply := _LMTP_REPLY.search(line):
            dsn = reply["dsn"]
        if output := outputs.pop((message_id, recipient), None):
            dsn, text = output["dsn"] or "", f"{text}: {output['text']}"
        delay = at - arrived.get(message_id, at)
        yield Delivery(message_id, recipient, status, at, delay, dsn, text)
