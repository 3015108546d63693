"""LMTP: the real lmtp(8), as contrib/postfix has it, and the real Exim, into the daemon."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .case import Case, Host
from .cases import CASES, place
from .conftest import transports_here
from .exim import CONTRIB as EXIM
from .lab import Lab
from .packages import LabUnavailable
from .smtp_host import Behaviour, Step
from .world import INSTALLED

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

CONFIG = "/etc/mxpolicy/daemon.yaml"
LOG = "/var/log/mxpolicy.daemon"

LONG = "x" * 400
TRIED = ("good", "dropped", "null-mx", "nxdomain")
WORDY = Case(
    "wordy",
    "The host says a lot.",
    (
        Host(
            "mx",
            10,
            Behaviour(
                {"DOT": Step(f"250 2.0.0 {LONG}")},
                mailboxes={"nobody": [f"550 5.1.1 {LONG}"]},
            ),
        ),
    ),
    {},
)
SLOW = Case(
    "slow",
    "It answers the dot after some seconds.",
    (Host("mx", 10, Behaviour({"DOT": Step("250 2.0.0 Ok", delay=8.0)})),),
    {},
)


@contextmanager
def served(*fragments: str, settings: str = "") -> Iterator[Lab]:
    """Start a lab with these fragments of contrib/postfix, and the daemon in it."""
    cases = [case for case in CASES if case.name in TRIED]
    try:
        lab = Lab(place((*cases, WORDY, SLOW), ("mxlmtp",)), fragments=fragments)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        serve(lab, settings or "listen: {lmtp: {at: ['127.0.0.1:2424']}}")
        yield lab


def serve(lab: Lab, settings: str) -> None:
    """Start the daemon, and wait until it serves."""
    path = lab.world.path(CONFIG)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{settings}\nlog: {{to: stderr}}\n")
    owned = ("-o", "mxpolicy", "-g", "mxpolicy")
    for directory in ("/run/mxpolicy", "/var/lib/mxpolicy"):
        lab.world.run("mta", ["install", "-d", *owned, directory])
    groups = ["--groups", "mxpolicy,postfix,Debian-exim"]
    become = ["setpriv", "--reuid", "mxpolicy", "--regid", "mxpolicy", *groups, "--"]
    command = [f"{INSTALLED}/bin/mxpolicy", "serve", "--config", CONFIG]
    lab.world.start("mta", [*become, *command], log=LOG)
    until = time.monotonic() + 30
    while not re.search(r"mxpolicy \S+ serves ", log(lab)):
        assert time.monotonic() < until, log(lab)
        time.sleep(0.02)


def log(lab: Lab) -> str:
    """Return what the daemon has logged."""
    path = lab.world.path(LOG)
    return path.read_text() if path.exists() else ""


WAYS = [
    pytest.param(
        "lmtp-per-domain",
        "listen: {lmtp: {at: ['127.0.0.1:2424']}}",
        "127.0.0.1[127.0.0.1]:2424",
        id="lmtp-per-domain",
    ),
    pytest.param(
        "lmtp-socket",
        "listen: {lmtp: {group: postfix}}",
        "mail.lab.test[/run/mxpolicy/lmtp]",
        id="lmtp-socket",
    ),
]


@pytest.mark.parametrize(("fragment", "settings", "relay"), WAYS)
def test_each_recipient_has_its_own_end(
    fragment: str, settings: str, relay: str
) -> None:
    with served(fragment, settings=settings) as lab:
        domain = {one.case.name: one.domain for one in lab.placed}
        wordy = domain["wordy"]
        recipients = [f"user@{domain[name]}" for name in TRIED]
        recipients += [f"user@{wordy}", f"nobody@{wordy}"]
        queue_id = lab.send(recipients)
        found = lab.postfix.await_deliveries(queue_id, 30, len(recipients))
        ends = {one.recipient: (one.status, one.dsn) for one in found}
        assert ends == {
            f"user@{domain['good']}": ("sent", "2.0.0"),
            f"user@{domain['dropped']}": ("sent", "2.0.0"),
            f"user@{domain['null-mx']}": ("bounced", "5.1.10"),
            f"user@{domain['nxdomain']}": ("bounced", "5.1.2"),
            f"user@{wordy}": ("sent", "2.0.0"),
            f"nobody@{wordy}": ("bounced", "5.1.1"),
        }
        assert {one.relay for one in found} == {relay}
        # The host's words, and the queue id in our own log.
        assert all(LONG in one.text for one in found if wordy in one.recipient)
        lines = re.findall(rf" {queue_id}: to=<(\S+)>.* status=(\w+) ", log(lab))
        assert dict(lines) == {who: status for who, (status, _) in ends.items()}
        assert "Traceback" not in log(lab)
        assert not re.search("warning|error|fatal", "\n".join(lab.postfix.log()))


def test_a_slow_domain_holds_up_nobody() -> None:
    with served("lmtp-per-domain") as lab:
        domain = {one.case.name: one.domain for one in lab.placed}
        for _ in range(60):
            lab.send([f"user@{domain['slow']}"])
        queue_id = lab.send([f"user@{domain['good']}"])
        [good] = lab.postfix.await_deliveries(queue_id, 20)
        assert good.status == "sent"
        slow = [one for one in lab.postfix.deliveries() if "slow" in one.recipient]
        assert len(slow) < 60  # or there was nobody to hold it up
        assert good.delay < 3.0


def test_an_address_literal_is_no_way_to_another_lmtp_server() -> None:
    with served("lmtp-per-domain") as lab:
        # Its port 24 would be asked, if lmtp(8) could leave loopback.
        [good] = [one for one in lab.placed if one.case.name == "good"]
        address = good.addresses(good.case.hosts[0])[0]
        queue_id = lab.send([f"user@[{address}]"])
        [delivery] = lab.postfix.await_deliveries(queue_id, 30)
        assert (delivery.relay, delivery.status) == (
            "127.0.0.1[127.0.0.1]:2424",
            "sent",
        )


def test_the_port_is_no_relay_for_other_users() -> None:
    with served("lmtp-per-domain") as lab:
        [good] = [one for one in lab.placed if one.case.name == "good"]
        words = (
            "import smtplib, sys\n"
            "with smtplib.LMTP('127.0.0.1', 2424) as client:\n"
            f"    client.sendmail('a@b.example', ['user@{good.domain}'], 'x')\n"
        )
        python = ["/usr/bin/python3", "-c", words]
        nobody = ["setpriv", "--reuid", "nobody", "--clear-groups", "--"]
        done = lab.mta_exec([*nobody, *python])
        assert b"4.7.1 user nobody may not send mail by this port" in done.stderr
        assert lab.mta_exec(python, user="postfix").returncode == 0
        assert lab.mta_exec(python).returncode == 0


EXIM_CONFIGURATION = """
primary_hostname = mail.lab.test
exim_path = /usr/sbin/exim4
log_file_path = /var/log/exim4/%slog
keep_environment =
begin routers
mxpolicy:
  driver = accept
  transport = mxpolicy_lmtp
begin transports
{transport}
begin retry
{retry}
"""


def test_exim_hears_of_each_recipient() -> None:
    with served(settings="listen: {lmtp: {group: Debian-exim}}") as lab:
        domain = {one.case.name: one.domain for one in lab.placed}
        for directory in ("/var/spool/exim4", "/var/log/exim4"):
            lab.world.run(
                "mta", ["install", "-d", "-o", "Debian-exim", "-m", "750", directory]
            )
        text = EXIM_CONFIGURATION.format(
            transport=(EXIM / "transport-lmtp").read_text(),
            retry=(EXIM / "retry").read_text(),
        )
        lab.world.path("/etc/exim4").mkdir(exist_ok=True)
        lab.world.path("/etc/exim4/lmtp.conf").write_text(text)
        wordy = domain["wordy"]
        recipients = [f"user@{domain[name]}" for name in TRIED]
        recipients += [f"user@{wordy}", f"nobody@{wordy}"]
        exim = ["exim4", "-C", "/etc/exim4/lmtp.conf", "-odf", "-f", "me@home.lab.test"]
        done = lab.mta_exec([*exim, *recipients], stdin=b"Subject: x\n\n.dot\nx\n")
        assert done.returncode == 0, done.stderr
        mainlog = lab.world.path("/var/log/exim4/mainlog").read_text()
        marks = re.findall(r" (=>|->|==|\*\*) (?:\S+ <)?(\w+@[\w.-]+)>? ", mainlog)
        marks.remove(("=>", "me@home.lab.test"))  # the bounce
        ends = {who: {"->": "=>"}.get(mark, mark) for mark, who in marks}
        assert ends == {
            f"user@{domain['good']}": "=>",
            f"user@{domain['dropped']}": "=>",
            f"user@{domain['null-mx']}": "**",
            f"user@{domain['nxdomain']}": "**",
            f"user@{wordy}": "=>",
            f"nobody@{wordy}": "**",
        }, mainlog
        assert "does not accept mail (null MX)" in mainlog
        assert "Malformed" not in mainlog
        [message] = lab.hosts.received(f"user@{domain['good']}")
        assert message.data.endswith("\r\n\r\n.dot\r\nx\r\n")
