"""Every way in which a delivery can go wrong, as the real Postfix sees and logs it.

Each trouble is a service in master.cf of its own, with something around the command or
in its options; all messages are sent at once, and each test looks at what became of one.
What Postfix does with an ending is in its manual page of pipe(8); what matters here is
that it never takes trouble of ours for a reason to bounce.
"""

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from .case import Case, Host
from .cases import place
from .conftest import transports_here
from .lab import HOME_DOMAIN, Lab
from .packages import LabUnavailable
from .postfix import Delivery
from .smtp_host import Behaviour, Step

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

GOOD = Case("good", "One MX, in good health.", (Host("mx1", 10, families="46"),), {})
HELD = Case(
    "held",
    "The host does not answer RCPT.",
    (Host("mx1", 10, Behaviour({"RCPT": Step(end="hush")})),),
    {},
)
LATE = Case(
    "late",
    "The host thinks for a while before it asks for the message.",
    (Host("mx1", 10, Behaviour({"DATA": Step(delay=3.0)})),),
    {},
)
CLOSED = Case(
    "closed", "Nothing listens.", (Host("mx1", 10, Behaviour(listens=False)),), {}
)
CASES = (GOOD, HELD, LATE, CLOSED)

ORDINARY = "-f ${sender} --nexthop ${nexthop} --queue-id ${queue_id} --deadline 60s"
TO = "-- ${recipient}"
SMALL = b"Subject: door\n\nOne line.\n"
LARGE = b"Subject: door\n\n" + (b"0123456789" * 7 + b"\n") * 45_000  # three MiB


@dataclass(frozen=True)
class Trouble:
    """A service of Postfix's that runs mxpolicy in trouble, and what is to be logged.

    `around` is what runs the `command`, `arguments` what follows it, `options` are more
    of those; `dsn` and `text` (a regular expression) are of the log: Postfix's where
    the delivery is deferred, mxpolicy's own where it is not.
    """

    name: str
    dsn: str
    text: str
    around: str = ""
    command: str = "/opt/mxpolicy/bin/mxpolicy"
    arguments: str = f"pipe {ORDINARY} {TO}"
    options: str = ""
    case: Case = GOOD
    data: bytes = SMALL

    @property
    def entry(self) -> str:
        """What follows the service's name in master.cf."""
        arguments = self.arguments.replace(TO, f"{self.options} {TO}")
        command = f"{self.around} {self.command} {arguments}"
        return entry(" ".join(command.split()))

    @property
    def recipient(self) -> str:
        return f"user@{self.case.name}.{self.name}.lab.test"


def entry(command: str, flags: str = "flags=q null_sender=") -> str:
    return f"unix - n n - 100 pipe {flags} user=mxpolicy argv={command}"


def shell(script: str) -> str:
    """Return a shell that does *script*, where "$@" is the command."""
    return f"/bin/sh -c {{{script.replace('$', '$$')}}} sh"


def python_with(name: str) -> str:
    """Return the command, where Python finds the modules in `FOREIGN` of that name first.

    The script that is installed has Python read no such variable.
    """
    python = "/opt/mxpolicy/bin/python3 -m mxpolicy"
    return f"/usr/bin/env PYTHONPATH=/etc/door/{name} {python}"


FOREIGN = {
    "exception": {
        "sitecustomize.py": "from mxpolicy.delivery.engine import Engine\n"
        "def begin(*_):\n"
        "    raise RuntimeError('nobody thought of this')\n"
        "Engine.begin = begin\n"
    },
    "broken-library": {
        "asyncio/__init__.py": "raise ImportError('broken by an upgrade')"
    },
    "no-library": {"sitecustomize.py": "import sys\nsys.modules['asyncio'] = None"},
    "no-mxpolicy": {"sitecustomize.py": "import sys\nsys.modules['mxpolicy'] = None"},
    "early-signal": {
        "sitecustomize.py": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)"
    },
    # Reads so that a test can find it in the middle of the message.
    "slow-reader": {
        "sitecustomize.py": "import os, time\n"
        "read = os.read\n"
        "def slowly(descriptor, size):\n"
        "    if descriptor == 0 and os.path.exists('/run/door/hold'):\n"
        "        open('/run/door/reading', 'w').close()\n"
        "        time.sleep(0.1)\n"
        "    return read(descriptor, min(size, 4096))\n"
        "os.read = slowly\n"
    },
}
"""Modules that Python finds before others, by the name of their directory."""

CONFIGURATIONS = {
    "invalid": "port: 25\nhello: mail.example.com\n",
    "unreadable": "port: 25\n",
    "no-name-server": "resolver: {servers: [127.0.0.9], timeout: 2s}\n",
    "silent-name-server": "resolver: {servers: [198.19.255.53], timeout: 2s}\n",
    "no-state": "state: /proc/nowhere\n",
    "state-not-ours": "state: /etc/door\n",
    "state-full": "state: /run/door/full\n",
    "state-broken": "state: /run/door/broken\n",
    "state-locked": "state: /run/door/locked\n",
    "full-log": "log: {to: /dev/full}\n",
    "log-not-ours": "log: {to: /etc/door/log}\n",
}


def configured(name: str) -> str:
    return f"--config /etc/door/{name}.yaml"


DEFERRED = [
    Trouble(
        *("exception", "4.3.0", r"RuntimeError: nobody thought of this \(site"),
        command=python_with("exception"),
    ),
    Trouble(
        *("broken-library", "4.3.0", "ImportError: broken by an upgrade"),
        command=python_with("broken-library"),
    ),
    Trouble(
        *("no-library", "4.3.0", "ModuleNotFoundError: .*asyncio"),
        command=python_with("no-library"),
    ),
    Trouble(
        *("no-mxpolicy", "4.3.0", "Command died with status 1: .*No module named mxpo"),
        command=python_with("no-mxpolicy"),
    ),
    Trouble(
        *("early-signal", "4.3.0", "Command died with signal 15"),
        command=python_with("early-signal"),
    ),
    Trouble(
        *("invalid", "4.3.5", r"invalid\.yaml:2:1: hello: "),
        options=configured("invalid"),
    ),
    Trouble(
        *("invalid-environment", "4.3.5", r"invalid\.yaml:2:1: hello: "),
        around="/usr/bin/env MXPOLICY_CONFIG=/etc/door/invalid.yaml",
    ),
    Trouble(
        *("unreadable", "4.3.5", "cannot be read: Permission denied"),
        options=configured("unreadable"),
    ),
    Trouble(
        *("missing", "4.3.5", "cannot be read: No such file"),
        options=configured("missing"),
    ),
    Trouble(
        *("directory", "4.3.5", "cannot be read: Is a directory"),
        options="--config /etc/door",
    ),
    Trouble(
        *("no-stdin", "4.3.0", "standard input is closed"),
        around=shell('exec "$@" <&-'),
    ),
    Trouble(
        *("nothing-open", "4.3.0", "temporary failure"),
        around=shell('exec "$@" <&- >&- 2>&-'),
    ),
    Trouble(
        *("full-disk", "4.3.0", "cannot spool the message: No space left on device"),
        around="/usr/bin/env TMPDIR=/run/door/small",
        data=LARGE,
    ),
    Trouble(
        *("file-limit", "4.3.0", "cannot spool the message: File too large"),
        around=shell('ulimit -f 100; exec "$@"'),
        data=LARGE,
    ),
    Trouble(
        # The shell cannot even read its script.
        *("no-descriptors", "4.3.0", "Command died with status 2"),
        around=shell('ulimit -n 5; exec "$@"'),
    ),
    # From a linker that cannot map the C library to an interpreter that cannot import.
    *(
        Trouble(
            *(f"memory-{size}", "4.3.0", "."),
            around=shell(f'ulimit -v {size}000; exec "$@"'),
        )
        for size in (3, 8, 16, 22, 26)
    ),
    Trouble(
        *("no-name-server", "4.4.3", r"127\.0\.0\.9"),
        options=configured("no-name-server"),
    ),
    Trouble(
        *("silent-name-server", "4.4.3", r"198\.19\.255\.53"),
        options=configured("silent-name-server"),
    ),
    Trouble("no-arguments", "4.3.5", "usage: ", arguments="pipe"),
    Trouble(
        *("no-dashes", "4.3.5", "unknown argument .user@"),
        arguments="pipe -f ${sender} ${recipient}",
    ),
    Trouble("no-sender", "4.3.5", "no sender", arguments=f"pipe {TO}"),
    Trouble(
        *("unknown-option", "4.3.5", "unknown argument '--quiet'"), options="--quiet"
    ),
    Trouble(
        *("bad-deadline", "4.3.5", "--deadline: "),
        arguments=f"pipe -f ${{sender}} --deadline soon {TO}",
    ),
    Trouble(
        *("misspelt", "4.3.0", "invalid choice: 'ppie' .did you mean 'pipe'"),
        arguments=f"ppie {ORDINARY} {TO}",
    ),
    Trouble(
        *("no-command", "4.3.0", "invalid choice: '-f'"), arguments=f"{ORDINARY} {TO}"
    ),
    Trouble(
        *("bad-nexthop", "4.3.5", "nexthop "),
        arguments=f"pipe -f ${{sender}} --nexthop [a]b {TO}",
    ),
    Trouble(
        *("deadline", r"4.4.2", "."),
        arguments=f"pipe -f ${{sender}} --nexthop ${{nexthop}} --deadline 6s {TO}",
        case=HELD,
    ),
    Trouble("time-limit", "4.3.0", "Command time limit exceeded", case=HELD),
    Trouble("not-there", "4.3.0", "execvp", around="/opt/mxpolicy/bin/nothing"),
]

DELIVERED = [
    Trouble("no-stdout", "2.0.0", "", around=shell('exec "$@" >&-')),
    Trouble("no-stderr", "2.0.0", "", around=shell('exec "$@" 2>&-')),
    Trouble("no-output", "2.0.0", "", around=shell('exec "$@" >&- 2>&-')),
    Trouble(
        *("no-state", "2.0.0", "/proc/nowhere: No such file"),
        options=configured("no-state"),
    ),
    Trouble(
        *("state-not-ours", "2.0.0", "Permission denied"),
        options=configured("state-not-ours"),
    ),
    Trouble(
        *("state-full", "2.0.0", "database or disk is full"),
        options=configured("state-full"),
    ),
    Trouble(
        *("state-broken", "2.0.0", "file is not a database"),
        options=configured("state-broken"),
    ),
    Trouble("state-locked", "2.0.0", "", options=configured("state-locked")),
    Trouble("full-log", "2.0.0", "", options=configured("full-log")),
    Trouble("log-not-ours", "2.0.0", "", options=configured("log-not-ours")),
    Trouble(
        *("first-spool-missing", "2.0.0", ""),
        around="/usr/bin/env TMPDIR=/nonexistent",
        data=LARGE,
    ),
]

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL", "SIGSEGV")

SERVICES = {
    **{trouble.name: trouble.entry for trouble in (*DEFERRED, *DELIVERED)},
    "held": entry(f"/opt/mxpolicy/bin/mxpolicy pipe {ORDINARY} {TO}"),
    "slow-reader": entry(f"{python_with('slow-reader')} pipe {ORDINARY} {TO}"),
    "slow-start": entry(
        shell('while test -e /run/door/hold; do sleep 0.05; done; exec "$@"')
        + f" /opt/mxpolicy/bin/mxpolicy pipe {ORDINARY} {TO}"
    ),
    "all-in-one": entry(f"/opt/mxpolicy/bin/mxpolicy pipe {ORDINARY} {TO}"),
    # As an operator has it who forgot null_sender=.
    "daemon": entry(f"/opt/mxpolicy/bin/mxpolicy pipe {ORDINARY} {TO}", "flags=q"),
}

SETTINGS = {
    "time-limit_time_limit": "3s",
    # Addresses that begin with a dash are refused by default, for the sake of others.
    "allow_min_user": "yes",
    # After a pipe(8) was killed.
    "transport_retry_time": "1s",
    "service_throttle_time": "1s",
}

FILES = {
    **{
        f"/etc/door/{name}/{file}": text
        for name, files in FOREIGN.items()
        for file, text in files.items()
    },
    **{f"/etc/door/{name}.yaml": text for name, text in CONFIGURATIONS.items()},
}


class Mail:
    """The messages under way, and what Postfix says of them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._sent: dict[str, str] = {}

    def send(
        self, key: str, *recipients: str, sender: str | None = None, data: bytes = SMALL
    ) -> None:
        """Send a message, which *key* will name; by default *key* names its sender."""
        sender = self.sender(key) if sender is None else sender
        self._sent[key] = self.lab.send(recipients, sender, data)

    @staticmethod
    def sender(key: str) -> str:
        return f"{key.lower()}@{HOME_DOMAIN}"

    def ends(self, key: str, count: int = 1, timeout: float = 60) -> list[Delivery]:
        """Return what Postfix logged of *count* recipients or attempts, or more."""
        found = self.lab.postfix.await_deliveries(self._sent[key], timeout, count)
        assert len(found) >= count, self.lab.postfix.log(self._sent[key])
        return found

    def end(self, key: str) -> Delivery:
        [delivery] = self.ends(key)
        return delivery

    def assert_waits(self, key: str) -> None:
        """The message is in the queue, and nobody has been told otherwise."""
        assert re.search(rf"^{self._sent[key]}\b", self.lab.postfix.queue(), re.M)
        assert self.lab.hosts.received(self.sender(key)) == []


@pytest.fixture(scope="module")
def mail() -> Iterator[Mail]:
    """A lab with all these services; the messages of all troubles are under way."""
    try:
        lab = Lab(
            place(CASES, ("mxpolicy", *SERVICES)),
            transports=SERVICES,
            settings=SETTINGS,
            files=FILES,
        )
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        lab.world.path("/etc/door/unreadable.yaml").chmod(0o600)
        lab.world.path("/run/door").mkdir()
        lab.world.path("/run/door").chmod(0o1777)
        mount_disk(lab, "small", "256k")
        fill(mount_disk(lab, "full", "16k", f"mode=0750,uid={user_id(lab)}"))
        break_state(lab)
        lock_state(lab)
        forms = nexthop_forms(lab)
        for name, nexthop in forms.items():
            lab.route(f"{name}.lab.test", f"mxpolicy:{nexthop}")
        mail = Mail(lab)
        send_troubles(mail)
        send_ordinary(mail, forms)
        yield mail


def send_troubles(mail: Mail) -> None:
    for trouble in (*DEFERRED, *DELIVERED):
        mail.send(trouble.name, trouble.recipient, data=trouble.data)
    for name in SIGNALS:
        mail.send(name, f"{name.lower()}@held.held.lab.test")


def send_ordinary(mail: Mail, forms: Iterable[str]) -> None:
    for name in forms:
        mail.send(name, f"user@{name}.lab.test")
    for number, sender in enumerate(SENDERS):
        mail.send(f"sender-{number}", f"{number}@good.mxpolicy.lab.test", sender=sender)
    mail.send("daemon", "user@good.daemon.lab.test", sender="")
    for number, local_part in enumerate(LOCAL_PARTS):
        mail.send(f"local-{number}", f"{local_part}@good.mxpolicy.lab.test")
    for transport in ("mxpolicy", "all-in-one"):
        mail.send(f"fifty-{transport}", *fifty(transport))


def user_id(lab: Lab) -> int:
    return int(lab.world.run("mta", ["id", "-u", "mxpolicy"]).stdout)


def mount_disk(lab: Lab, name: str, size: str, mode: str = "mode=1777") -> Path:
    """Mount a small disk where Postfix sees it; return where it is to us.

    Postfix has a mount namespace of its own.
    """
    place = f"/run/door/{name}"
    lab.world.path(place).mkdir()
    [master] = processes(lab, "/master -w")
    options = ["-t", "tmpfs", "-o", f"size={size},{mode}"]
    enter = ["nsenter", "-t", str(master), "--mount"]
    lab.world.run("mta", [*enter, "mount", *options, "door", place])
    return lab.world.path(f"/proc/{master}/root{place}")


def fill(disk: Path) -> None:
    file = (disk / "all-of-it").open("wb", buffering=0)
    with file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def break_state(lab: Lab) -> None:
    directory = lab.world.path("/run/door/broken")
    directory.mkdir()
    file = directory / "state.sqlite3"
    file.write_bytes(b"SQLite format 3\0" + b"\xff" * 20_000)
    lab.world.run("mta", ["chown", "-R", "mxpolicy:", "/run/door/broken"])


# A process that holds the file of hosts for as long as there is a lab.
LOCK = """
import os, sqlite3, time
os.mkdir("/run/door/locked", 0o750)
db = sqlite3.connect("/run/door/locked/state.sqlite3", isolation_level=None)
db.execute("CREATE TABLE held (x)")
db.execute("BEGIN EXCLUSIVE")
open("/run/door/locked/now", "w").close()
time.sleep(3600)
"""


def lock_state(lab: Lab) -> None:
    lock = ["/opt/mxpolicy/bin/python", "-c", LOCK]
    lab.world.start("mta", lock, user="mxpolicy")
    wait_until(lab.world.path("/run/door/locked/now").exists)


def processes(lab: Lab, words: str) -> list[int]:
    return [one.pid for one in lab.world.processes() if words in one.command]


def wait_until(true: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def ids(troubles: Sequence[Trouble]) -> list[str]:
    return [trouble.name for trouble in troubles]


# --- trouble ---------------------------------------------------------------------


@pytest.mark.parametrize("trouble", DEFERRED, ids=ids(DEFERRED))
def test_trouble_is_deferred_and_says_why(trouble: Trouble, mail: Mail) -> None:
    delivery = mail.end(trouble.name)
    assert (delivery.status, delivery.dsn) == ("deferred", trouble.dsn), delivery
    assert re.search(trouble.text, delivery.text), delivery
    if "Command output: " not in delivery.text:  # else it is not ours
        # Of a line end Postfix would make a blank.
        assert not delivery.text.endswith(" "), delivery
    assert delivery.relay == trouble.name
    mail.assert_waits(trouble.name)
    assert mail.lab.hosts.received(trouble.recipient) == []


@pytest.mark.parametrize("trouble", DELIVERED, ids=ids(DELIVERED))
def test_trouble_beside_the_delivery_does_not_stop_it(
    trouble: Trouble, mail: Mail
) -> None:
    delivery = mail.end(trouble.name)
    assert (delivery.status, delivery.dsn) == ("sent", trouble.dsn), delivery
    assert len(mail.lab.hosts.received(trouble.recipient)) == 1
    if trouble.text:
        syslog = mail.lab.world.path("/var/log/syslog").read_text()
        assert re.search(f" {delivery.queue_id}: .*{trouble.text}", syslog)


@pytest.mark.parametrize("name", SIGNALS)
def test_delivery_that_is_told_to_end_is_deferred(name: str, mail: Mail) -> None:
    recipient = f"{name.lower()}@held.held.lab.test"
    wait_until(lambda: has_said(mail.lab, f"<{recipient}>"))
    # The script, and the process that delivers.
    _, running = sorted(processes(mail.lab, f"-- {recipient}"))
    number = int(signal.Signals[name])
    mail.lab.world.run("mta", ["kill", f"-{number}", str(running)])
    delivery = mail.end(name)
    assert (delivery.status, delivery.dsn) == ("deferred", "4.3.0"), delivery
    killed = "Command died with signal 9"  # the script has no better word for it
    assert (f"ended by {name}" in delivery.text) != (killed in delivery.text)
    assert (killed in delivery.text) == (name in {"SIGKILL", "SIGSEGV"})
    mail.assert_waits(name)


def has_said(lab: Lab, words: str) -> bool:
    """Return whether a client has said this to a host."""
    sessions = lab.hosts.sessions()
    return any(words in line for one in sessions for _, line in one.commands)


# --- the mail server's own end ------------------------------------------------------


def kill_mail_server(mail: Mail, service: str, recipient: str) -> None:
    """Kill pipe(8) with SIGKILL; wait until what it had started has ended as well."""
    lab = mail.lab
    [pipe] = processes(lab, f"pipe -n {service} ")
    lab.world.run("mta", ["kill", "-9", str(pipe)])
    lab.world.path("/run/door/hold").unlink(missing_ok=True)
    wait_until(lambda: not processes(lab, f"-- {recipient}"))


def assert_arrives_once(mail: Mail, key: str, recipient: str, data: bytes) -> None:
    """Nothing has arrived; when Postfix tries again, the whole message does, once."""
    # Nobody was left to log a status; the queue manager keeps what it does not know.
    assert mail.ends(key, 0) == []
    mail.assert_waits(key)
    assert mail.lab.hosts.received(recipient) == []
    wait_until(lambda: flushed(mail, key), 30)
    assert {one.status for one in mail.ends(key)} <= {"deferred", "sent"}
    [message] = mail.lab.hosts.received(recipient)
    _, _, body = message.data.partition("\r\n\r\n")
    assert body == data.decode().partition("\n\n")[2].replace("\n", "\r\n")


def flushed(mail: Mail, key: str) -> bool:
    """Let Postfix try again; return whether the last attempt was a success."""
    mail.lab.postfix.flush()
    time.sleep(0.5)
    return any(one.status == "sent" for one in mail.ends(key, 0))


def test_mail_server_killed_before_our_first_line(mail: Mail) -> None:
    to = "user@good.slow-start.lab.test"
    mail.lab.world.path("/run/door/hold").touch()
    mail.send("slow-start", to, data=LARGE)
    wait_until(lambda: processes(mail.lab, f"-- {to}"))
    kill_mail_server(mail, "slow-start", to)
    assert_arrives_once(mail, "slow-start", to, LARGE)


def test_mail_server_killed_while_it_writes_the_message(mail: Mail) -> None:
    to = "user@good.slow-reader.lab.test"
    mail.lab.world.path("/run/door/hold").touch()
    mail.send("slow-reader", to, data=LARGE)
    wait_until(mail.lab.world.path("/run/door/reading").exists)
    kill_mail_server(mail, "slow-reader", to)
    assert_arrives_once(mail, "slow-reader", to, LARGE)


def test_mail_server_killed_before_the_final_dot(mail: Mail) -> None:
    to = "user@late.all-in-one.lab.test"
    mail.ends("fifty-all-in-one", 50)  # this pipe(8) has no other child now
    mail.send("late", to)
    wait_until(lambda: has_said(mail.lab, f"<{to}>"))
    kill_mail_server(mail, "all-in-one", to)
    assert_arrives_once(mail, "late", to, SMALL)


# --- deliveries that must work -------------------------------------------------------

SENDERS = {
    "": "",
    "MAILER-DAEMON": "",
    f"MAILER-DAEMON@{HOME_DOMAIN}": f"MAILER-DAEMON@{HOME_DOMAIN}",
    f'"a b"@{HOME_DOMAIN}': f'"a b"@{HOME_DOMAIN}',
    f'"a@b"@{HOME_DOMAIN}': f'"a@b"@{HOME_DOMAIN}',
    f"-f@{HOME_DOMAIN}": f"-f@{HOME_DOMAIN}",
    f"--config=x@{HOME_DOMAIN}": f"--config=x@{HOME_DOMAIN}",
    f"a$b${{c}}`d`@{HOME_DOMAIN}": f"a$b${{c}}`d`@{HOME_DOMAIN}",
}
"""Senders, and what the host must hear of them."""

LOCAL_PARTS = (
    *('"a b"', '"a@c"', r'"a\"b\\c"', '"-- x"', "-b", "--", "--nexthop=x", "-f"),
    *("a$b${recipient}", "a+b", "A.Capital", "o'hara", "MAILER-DAEMON"),
)


def nexthop_forms(lab: Lab) -> dict[str, str]:
    """Return names of domains, and nexthops of every form that lead to the good host."""
    [good] = [p for p in lab.placed if p.transport == "mxpolicy" and p.case is GOOD]
    [closed] = [p for p in lab.placed if p.transport == "mxpolicy" and p.case is CLOSED]
    host = good.host_name(GOOD.hosts[0])
    v4, v6 = good.addresses(GOOD.hosts[0])
    gone = f"[{closed.addresses(CLOSED.hosts[0])[0]}]"
    forms = [good.domain, f"{good.domain}:25", f"{good.domain}:smtp", host]
    forms += [f"[{host}]", f"[{host}]:25", f"[{host}]:smtp", f"[{v4}]", f"[{v4}]:25"]
    forms += [f"[{v6}]", f"[{v6}]:25", f"[ipv6:{v6}]", f"{gone}, {good.domain}"]
    forms += [f"{closed.domain} [{v4}]:25", good.domain.upper(), f"{good.domain}."]
    return {f"form-{number}": form for number, form in enumerate(forms)}


@pytest.mark.parametrize("number", range(16))
def test_every_form_of_nexthop_is_understood(number: int, mail: Mail) -> None:
    delivery = mail.end(f"form-{number}")
    assert delivery.status == "sent", delivery
    [message] = mail.lab.hosts.received(f"user@form-{number}.lab.test")
    assert message.host == "mx1.good.mxpolicy.lab.test"


@pytest.mark.parametrize("number", range(len(SENDERS)), ids=list(SENDERS))
def test_sender_arrives_as_it_was(number: int, mail: Mail) -> None:
    delivery = mail.end(f"sender-{number}")
    assert delivery.status == "sent", delivery
    [message] = mail.lab.hosts.received(f"{number}@good.mxpolicy.lab.test")
    assert message.reverse_path == list(SENDERS.values())[number]


@pytest.mark.parametrize(
    "sender",
    ["root@483920174635", "root@web-.home.lab.test", "scan@192.0.2.20"],
)
def test_sender_of_a_local_program_is_judged_by_the_host(
    sender: str, mail: Mail
) -> None:
    to = f"{sender.replace('@', '-at-')}@good.mxpolicy.lab.test"
    submit = ["/usr/sbin/sendmail", "-f", sender, to]
    assert mail.lab.mta_exec(submit, stdin=SMALL).returncode == 0
    wait_until(lambda: bool(mail.lab.hosts.received(to)))
    [message] = mail.lab.hosts.received(to)
    assert message.reverse_path == sender


def test_empty_sender_that_postfix_names_mailer_daemon_is_empty(mail: Mail) -> None:
    assert mail.end("daemon").status == "sent"
    [message] = mail.lab.hosts.received("user@good.daemon.lab.test")
    assert message.reverse_path == ""


@pytest.mark.parametrize("number", range(len(LOCAL_PARTS)), ids=LOCAL_PARTS)
def test_recipient_is_a_recipient_however_it_looks(number: int, mail: Mail) -> None:
    delivery = mail.end(f"local-{number}")
    assert delivery.status == "sent", delivery
    recipient = f"{LOCAL_PARTS[number]}@good.mxpolicy.lab.test"
    [message] = mail.lab.hosts.received(recipient)
    assert message.forward_paths == [recipient]


def fifty(transport: str) -> list[str]:
    return [f"user{number}@good.{transport}.lab.test" for number in range(50)]


@pytest.mark.parametrize(("transport", "runs"), [("mxpolicy", 50), ("all-in-one", 1)])
def test_fifty_recipients_get_it_once(transport: str, runs: int, mail: Mail) -> None:
    found = mail.ends(f"fifty-{transport}", 50)
    assert [one.status for one in found] == ["sent"] * 50
    messages = [mail.lab.hosts.received(one) for one in fifty(transport)]
    assert all(len(one) == 1 for one in messages)
    assert len({(one.time, tuple(one.forward_paths)) for [one] in messages}) == runs
