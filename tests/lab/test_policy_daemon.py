"""The daemon's access policy: the real smtpd(8) and the real Exim ask at its socket.

By the lines of contrib/postfix/policy/main.cf and the ACL of contrib/exim, as they are.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence

import pytest

from .cases import CASES, place
from .conftest import transports_here
from .exim import CONTRIB as CONTRIB_EXIM
from .exim import PORT, Exim
from .lab import Lab
from .packages import LabUnavailable
from .postfix import CONTRIB, Client
from .test_policy import (
    ANSWER_WITHIN,
    GOOD,
    LOCAL,
    LOCAL_DOMAIN,
    ME,
    NO_RECIPIENT,
    NO_SENDER,
    NULL_MX,
    OTHERS,
    ROOT,
    SILENT_NAME_SERVER,
    TAKEN,
    TRIED,
    Stranger,
    rcpt,
    timed,
)
from .world import INSTALLED

pytestmark = [
    pytest.mark.lab,
    pytest.mark.daemon,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

CONFIG = "/etc/mxpolicy/mxpolicy.yaml"
LOG = "/var/log/policy-daemon"
MAIN_CF = (CONTRIB / "policy" / "main.cf").read_text()

# The lab's own address in the place of the one in contrib.
MTA = "192.0.2.25"


class Daemon:
    """``mxpolicy serve``, whose sockets a mail server may use."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "sh",
            "-c",
            "install -d -o mxpolicy -g mxpolicy -m 0755 /run/mxpolicy;"
            " install -d -o mxpolicy -g postfix -m 0750 /var/spool/postfix/mxpolicy",
        )

    def _run(self, *argv: str) -> None:
        self._lab.world.run("mta", argv)

    def _lines(self) -> list[str]:
        path = self._lab.world.path(LOG)
        return path.read_text().splitlines() if path.exists() else []

    def configure(self, listen: str, policy: str = "") -> None:
        """Write its configuration: the value of ``listen``, and further lines."""
        self._lab.world.path(CONFIG).write_text(
            f"listen: {listen}\nlog: {{to: stderr}}\n{policy}\n"
        )

    def start(self, group: str = "postfix") -> None:
        """Start it, and wait until it serves."""
        seen = len(self._lines())
        become = ["setpriv", "--reuid", "mxpolicy", "--regid", "mxpolicy"]
        command = [f"{INSTALLED}/bin/mxpolicy", "serve", "--config", CONFIG]
        self._process = self._lab.world.start(
            "mta", [*become, "--groups", f"mxpolicy,{group}", "--", *command], log=LOG
        )
        self._await("serves ", seen)

    def _await(self, text: str, seen: int) -> None:
        until = time.monotonic() + 20
        while not any(text in line for line in self._lines()[seen:]):
            assert time.monotonic() < until, self._lines()[-20:]
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        for one in self._lab.world.processes():
            if one.user == "mxpolicy" and " serve " in one.command:
                self._run("kill", f"-{number.value}", str(one.pid))
        if number is signal.SIGCONT and self._process is not None:
            self._process.send_signal(number)  # nsenter has stopped, too

    def reload(self) -> None:
        """Have it read its configuration again."""
        seen = len(self._lines())
        self.send(signal.SIGHUP)
        self._await("configuration read again", seen)

    def end(self, number: signal.Signals) -> None:
        """End it by a signal."""
        if self._process is not None:
            self.send(number)
            self._process.wait(20)
            self._process = None


def lines_of_contrib() -> dict[str, tuple[str, str]]:
    """Return each way to the daemon: main.cf's line, and the option's value above it."""
    found = re.findall(
        r"^# .*?\blisten: (\{.*\})\n(?:#  .*\n)*#mxpolicy_policy = (((?:unix|inet):\S+), .*)\n",
        MAIN_CF,
        re.M,
    )
    return {
        at: (line, listen.replace("192.0.2.1", MTA).replace("192.0.2.2]", f"{MTA}]"))
        for listen, line, at in found
    }


WAYS = lines_of_contrib()


def test_contrib_names_the_ways_to_the_daemon() -> None:
    assert sorted(WAYS) == [
        "inet:192.0.2.1:10028",
        "unix:/run/mxpolicy/policy",
        "unix:mxpolicy/policy",
    ]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with the fragments."""
    cases = [case for case in CASES if case.name in TRIED]
    try:
        lab = Lab(
            place((*cases, LOCAL), ("smtp",)),
            settings={"mydestination": f"mail.lab.test, localhost, {LOCAL_DOMAIN}"},
            fragments=("policy",),
            files={CONFIG: ""},
        )
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    """A daemon, to be started."""
    daemon = Daemon(lab)
    yield daemon
    daemon.send(signal.SIGCONT)
    daemon.end(signal.SIGKILL)


# --- Postfix


def serve_postfix(
    lab: Lab, daemon: Daemon, way: str = "unix:/run/mxpolicy/policy"
) -> None:
    """Start the daemon, and let Postfix ask there, as contrib has it."""
    line, listen = WAYS[way]
    daemon.configure(listen)
    daemon.start()
    lab.postfix.set(mxpolicy_policy=line.replace("192.0.2.1", MTA))


@pytest.mark.parametrize("way", WAYS)
def test_postfix_asks_the_daemon(lab: Lab, daemon: Daemon, way: str) -> None:
    serve_postfix(lab, daemon, way)
    with contextlib.ExitStack() as open_ones:
        clients = [open_ones.enter_context(Client(lab.world)) for _ in range(10)]
        for client in clients:
            assert rcpt(client, [NULL_MX, *OTHERS, NULL_MX, ROOT]) == [
                NO_RECIPIENT,
                *[TAKEN] * len(OTHERS),
                NO_RECIPIENT,
                TAKEN,
            ]
        mine = [one for one in lab.world.processes() if one.user == "mxpolicy"]
        assert len(mine) == 1
    with Stranger(lab.world) as stranger:
        assert rcpt(stranger, [ROOT], NULL_MX) == [NO_SENDER]
    at = way.replace("192.0.2.1", MTA)
    assert of_policy(lab) == {
        f"ok: smtp/inet asks the daemon at {at}, which answers",
        f"ok: the daemon at {at} is asked; without an answer mail goes on",
        "ok: nothing in main.cf asks mxpolicy-policy, nor does an smtpd(8) with -o",
    }
    daemon.end(signal.SIGKILL)
    [dead] = [one for one in of_policy(lab) if one.startswith("warn: ")]
    assert f"smtp/inet asks the daemon at {at}, where none answers (" in dead


def of_policy(lab: Lab) -> set[str]:
    """Return what ``mxpolicy check`` says of who asks."""
    for name in ("main.cf", "master.cf"):
        # Postfix's programs sleep until a file they read is two seconds old.
        os.utime(lab.world.path(f"/etc/postfix/{name}"), (0, 0))
    done = lab.mta_exec([f"{INSTALLED}/bin/mxpolicy", "check", "--json"])
    found = {
        f"{one['level']}: {one['text']}" for one in json.loads(done.stdout)["items"]
    }
    return {one for one in found if " asks " in one or " is asked" in one}


def test_ask_shows_what_postfix_is_answered(lab: Lab, daemon: Daemon) -> None:
    serve_postfix(lab, daemon)
    command = [f"{INSTALLED}/bin/mxpolicy", "ask", f"recipient={NULL_MX}"]
    done = lab.mta_exec([*command, "policy_context=recipient"], user="mxpolicy")
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert text.startswith("action=550 5.1.10 recipient domain null-mx.smtp.lab.test ")
    assert "answered by the daemon at /run/mxpolicy/policy, in " in text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_daemon_that_ends_and_comes_again_costs_no_mail(
    lab: Lab, daemon: Daemon, number: signal.Signals
) -> None:
    serve_postfix(lab, daemon)
    with Client(lab.world) as client:
        assert rcpt(client, [NULL_MX, GOOD]) == [NO_RECIPIENT, TAKEN]
        daemon.end(number)
        began = time.monotonic()
        assert rcpt(client, [NULL_MX, GOOD]) == [TAKEN, TAKEN]
        assert time.monotonic() - began < ANSWER_WITHIN
        daemon.start()
        assert rcpt(client, [NULL_MX, GOOD]) == [NO_RECIPIENT, TAKEN]


def test_daemon_that_hangs_costs_time_and_no_mail(lab: Lab, daemon: Daemon) -> None:
    serve_postfix(lab, daemon)
    with Client(lab.world) as client:
        assert rcpt(client, [NULL_MX]) == [NO_RECIPIENT]
        daemon.send(signal.SIGSTOP)
        try:
            assert rcpt(client, [NULL_MX]) == [TAKEN]
        finally:
            daemon.send(signal.SIGCONT)
        assert rcpt(client, [NULL_MX]) == [NO_RECIPIENT]


def test_reload_counts_for_smtpd_that_is_connected(lab: Lab, daemon: Daemon) -> None:
    serve_postfix(lab, daemon)
    _, listen = WAYS["unix:/run/mxpolicy/policy"]
    with Client(lab.world) as client:
        assert rcpt(client, [NULL_MX]) == [NO_RECIPIENT]
        daemon.configure(
            listen, "policy: {rules: [{finding: [null_mx], action: 450 later}]}"
        )
        daemon.reload()
        assert rcpt(client, [NULL_MX]) == [
            f"450 4.7.1 <{NULL_MX}>: Recipient address rejected: later"
        ]


def test_silent_name_servers_do_nobody_harm(lab: Lab, daemon: Daemon) -> None:
    serve_postfix(lab, daemon)
    lab.names.stop_resolver()
    sink = lab.world.start("mta", [f"{INSTALLED}/bin/python", "-c", SILENT_NAME_SERVER])
    try:
        for recipient in (NULL_MX, GOOD, "user@lame.smtp.lab.test"):
            answer, seconds = timed(lab, recipient)
            assert answer == TAKEN
            assert seconds < ANSWER_WITHIN
    finally:
        sink.kill()
        sink.wait()
        lab.names.start_resolver()


# --- Exim

# Around contrib's part, what Debian's and Exim's own ACL have.
ACL = f"""
{(CONTRIB_EXIM / "acl").read_text()}
  accept hosts = +relay_from_hosts
  accept domains = +local_domains
  deny message = relay not permitted
"""

NO_RECIPIENT_OF_EXIM = (
    "550 5.1.10 recipient domain null-mx.smtp.lab.test does not accept mail (null MX)"
)
NO_SENDER_OF_EXIM = (
    "550 5.7.27 sender domain null-mx.smtp.lab.test does not accept mail (null MX)"
)
TAKEN_BY_EXIM = "250 Accepted"
LISTEN_FOR_EXIM = "{policy: {group: Debian-exim}}"


class EximStranger(Client):
    """An SMTP client out in the Internet, at Exim's port."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        del host
        return self._world.connect("net", (MTA, port), timeout)


def rcpt_exim(client: Client, recipients: Sequence[str], sender: str = ME) -> list[str]:
    """Return the answers to each RCPT; Exim breaks long ones, and repeats the status."""
    answers = rcpt(client, recipients, sender)
    return [re.sub(r"\n(\d\.\d+\.\d+ )?", " ", one) for one in answers]


@pytest.fixture(scope="module")
def exim(lab: Lab) -> Exim:
    """Exim with contrib's ACL."""
    return Exim(
        lab.world,
        rcpt=ACL,
        settings={
            "domainlist local_domains": f"mail.lab.test : {LOCAL_DOMAIN}\n"
            "hostlist relay_from_hosts = 127.0.0.1",
            "local_interfaces": f"127.0.0.1 : {MTA}",
        },
    )


@pytest.fixture
def asks(daemon: Daemon, exim: Exim) -> Daemon:
    """A daemon that serves Exim."""
    daemon.configure(LISTEN_FOR_EXIM)
    daemon.start("Debian-exim")
    return daemon


def complaints(exim: Exim) -> list[str]:
    """Return what Exim tells its operator; the lab has no /dev/null for deliveries."""
    return [one for one in exim.panics().splitlines() if "/dev/null" not in one]


def test_exim_refuses_a_recipient_with_null_mx_and_nobody_else(
    lab: Lab, asks: Daemon, exim: Exim
) -> None:
    with Client(lab.world, PORT) as client:
        assert rcpt_exim(client, [NULL_MX, *OTHERS, NULL_MX, ROOT]) == [
            NO_RECIPIENT_OF_EXIM,
            *[TAKEN_BY_EXIM] * len(OTHERS),
            NO_RECIPIENT_OF_EXIM,
            TAKEN_BY_EXIM,
        ]
    assert not complaints(exim)


def test_exim_refuses_a_sender_with_null_mx_when_a_stranger_brings_it(
    lab: Lab, asks: Daemon, exim: Exim
) -> None:
    with EximStranger(lab.world, PORT) as stranger:
        for sender in ("", *OTHERS):
            assert rcpt_exim(stranger, [ROOT], sender) == [TAKEN_BY_EXIM], sender
        assert rcpt_exim(stranger, [ROOT], NULL_MX) == [NO_SENDER_OF_EXIM]
        assert rcpt_exim(stranger, [GOOD]) == ["550 relay not permitted"]
    with Client(lab.world, PORT) as client:
        assert rcpt_exim(client, [GOOD, ROOT], NULL_MX) == [
            TAKEN_BY_EXIM,
            TAKEN_BY_EXIM,
        ]
    assert not complaints(exim)


WORDS = "recipient domain null-mx.smtp.lab.test does not accept mail (null MX)"


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("REJECT", f"550 5.1.10 {WORDS}"),
        ("REJECT 5.7.1 go away", "550 5.7.1 go away"),
        ("554 5.7.1 go away", "554 5.7.1 go away"),
        ("DEFER", f"450 4.1.10 {WORDS}"),
        ("DEFER_IF_PERMIT", f"450 4.1.10 {WORDS}"),
        ("451 4.3.0 later", "451 4.3.0 later"),
        ("DUNNO", TAKEN_BY_EXIM),
        ("FILTER mxpolicy:", TAKEN_BY_EXIM),
    ],
)
def test_exim_does_what_rules_say(
    lab: Lab, asks: Daemon, exim: Exim, action: str, said: str
) -> None:
    rule = f'policy: {{rules: [{{finding: [null_mx], action: "{action}"}}]}}'
    asks.configure(LISTEN_FOR_EXIM, rule)
    asks.reload()
    with Client(lab.world, PORT) as client:
        assert rcpt_exim(client, [NULL_MX]) == [said]
    assert not complaints(exim)


def test_exim_adds_the_header_of_a_rule_and_logs_its_warning(
    lab: Lab, asks: Daemon, exim: Exim
) -> None:
    rules = (
        'policy: {rules: [{finding: [no_such_domain], action: "PREPEND X-Judged: no one"},'
        " {finding: [null_mx], action: WARN}]}"
    )
    asks.configure(LISTEN_FOR_EXIM, rules)
    asks.reload()
    nobody = "user@nxdomain.smtp.lab.test"
    with Client(lab.world, PORT) as client:
        assert rcpt_exim(client, [NULL_MX]) == [TAKEN_BY_EXIM]
        assert re.search(f"Warning: WARN {re.escape(WORDS)}", "\n".join(exim.log()))
        client.submit([nobody, GOOD], ME, b"Subject: judged\n\nOne line.\n")
    until = time.monotonic() + 30
    while not lab.hosts.received(GOOD) and time.monotonic() < until:
        time.sleep(0.1)
    assert "X-Judged: no one\r\n" in lab.hosts.received(GOOD)[-1].data
    assert not complaints(exim)


@pytest.mark.parametrize("how", ["stopped", "gone", "never_there"])
def test_exim_takes_the_mail_when_the_daemon_does_not_answer(
    lab: Lab, asks: Daemon, exim: Exim, how: str
) -> None:
    match how:
        case "stopped":
            asks.send(signal.SIGSTOP)
        case "gone":
            asks.end(signal.SIGKILL)
        case _:
            asks.end(signal.SIGTERM)
    try:
        with Client(lab.world, PORT) as client:
            began = time.monotonic()
            assert rcpt_exim(client, [NULL_MX]) == [TAKEN_BY_EXIM]
            assert time.monotonic() - began < ANSWER_WITHIN + 2
    finally:
        if how == "stopped":
            asks.send(signal.SIGCONT)
    assert not complaints(exim)
