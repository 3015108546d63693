"""The fragments of contrib/postfix/policy: the real smtpd(8) asks, spawn(8) runs us."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator, Sequence

import pytest

from mxpolicy.routing.kept_findings import MEMORY_HOLDS

from .case import Mail
from .cases import CASES, Case, place
from .conftest import transports_here
from .lab import Lab
from .packages import LabUnavailable
from .postfix import CONTRIB, Client
from .world import INSTALLED, Process

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

CONFIG = "/etc/mxpolicy/mxpolicy.yaml"
SERVICE = "mxpolicy-policy"
SETUP = (f"{INSTALLED}/bin/mxpolicy", "setup", "postfix")

TRIED = ("good", "null-mx", "null-mx-beside-others", "nxdomain", "nodata", "lame")
NULL_MX = "user@null-mx.smtp.lab.test"
GOOD = "user@good.smtp.lab.test"
OTHERS = [f"user@{name}.smtp.lab.test" for name in TRIED if name != "null-mx"]

# A domain that this mail server keeps, and that tells the world not to send it any mail.
LOCAL = Case("local", "Nobody but this system takes it.", (), {}, records=("@ MX 0 .",))
LOCAL_DOMAIN = "local.smtp.lab.test"
ROOT = f"root@{LOCAL_DOMAIN}"

ME = "me@home.lab.test"

# Postfix's words around ours. It writes 5.1.0 for our 5.1.10; main.cf tells.
NO_RECIPIENT = (
    f"550 5.1.0 <{NULL_MX}>: Recipient address rejected: recipient domain"
    " null-mx.smtp.lab.test does not accept mail (null MX)"
)
NO_SENDER = (
    f"550 5.7.27 <{NULL_MX}>: Sender address rejected: sender domain"
    " null-mx.smtp.lab.test does not accept mail (null MX)"
)
TAKEN = "250 2.1.5 Ok"

# contrib's timeout= is 10 s, no answer may take that long; smtpd(8) tries twice.
ANSWER_WITHIN = 10.0
HANGING = 25.0


class Stranger(Client):
    """An SMTP client out in the Internet."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        del host
        return self._world.connect("net", ("192.0.2.25", port), timeout)


def start(fragments: Sequence[str] | None) -> Lab:
    """Start a lab with a domain that is local to its Postfix.

    Args:
        fragments: Of contrib; None for a Postfix that knows nothing of mxpolicy.
    """
    cases = [case for case in CASES if case.name in TRIED]
    try:
        return Lab(
            place((*cases, LOCAL), ("smtp",)),
            settings={"mydestination": f"mail.lab.test, localhost, {LOCAL_DOMAIN}"},
            fragments=fragments,
            files={CONFIG: ""},
        )
    except LabUnavailable as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def whole() -> Iterator[Lab]:
    """A lab with the fragments, shared by tests that put back what they change."""
    with start(["policy"]) as lab:
        yield lab


@pytest.fixture
def lab(whole: Lab) -> Lab:
    """The shared lab, all as contrib has it, and no smtpd that has asked before."""
    whole.world.path(CONFIG).write_text("")
    serve_by(whole, entry_of_contrib())
    return whole


def entry_of_contrib() -> str:
    """Return the service's entry in master.cf, without its name."""
    text = (CONTRIB / "policy" / "master.cf").read_text()
    found = re.search(rf"^{SERVICE} (.*\n(?: .*\n)*)", text, re.M)
    assert found is not None
    return " ".join(found[1].split())


def serve_by(lab: Lab, entry: str) -> None:
    """Let the service be *entry* from now on, also for smtpd(8) that run already."""
    lab.postfix.add_transport(SERVICE, entry)
    for process in policies(lab):  # a command that hangs does not see the end
        lab.world.run("mta", ["kill", str(process.pid)], check=False)
    await_end(lab)


def await_end(lab: Lab) -> None:
    """Wait until nobody judges any more."""
    until = time.monotonic() + 20
    while (left := policies(lab)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def policies(lab: Lab) -> list[Process]:
    """Return the processes that judge; nothing else here runs as their user."""
    return [one for one in lab.world.processes() if one.user == "mxpolicy"]


def rcpt(client: Client, recipients: Sequence[str], sender: str = ME) -> list[str]:
    """Return the answers to each RCPT of a message from *sender*, which is not sent."""
    assert client.docmd(f"MAIL FROM:<{sender}>")[0] == 250
    answers = [client.docmd(f"RCPT TO:<{one}>") for one in recipients]
    client.rset()
    return [f"{code} {text.decode()}" for code, text in answers]


def timed(lab: Lab, recipient: str, sender: str = ME) -> tuple[str, float]:
    """Return the answer to RCPT, and the seconds that it took."""
    with Client(lab.world) as client:
        began = time.monotonic()
        [answer] = rcpt(client, [recipient], sender)
        return answer, time.monotonic() - began


def queued_as(text: bytes) -> str:
    """Return the queue id in the answer to a final dot."""
    found = re.search(rb"queued as (\w+)", text)
    assert found is not None
    return found[1].decode()


# --- what is refused, and what is not


def test_recipient_with_null_mx_is_refused_and_nobody_else(lab: Lab) -> None:
    with Client(lab.world) as client:
        assert rcpt(client, [NULL_MX, *OTHERS, NULL_MX, ROOT]) == [
            NO_RECIPIENT,
            *[TAKEN] * len(OTHERS),
            NO_RECIPIENT,
            TAKEN,
        ]


def test_sender_with_null_mx_is_refused_when_a_stranger_brings_him(lab: Lab) -> None:
    with Stranger(lab.world) as stranger:
        for sender in ("", "root", *OTHERS):
            assert rcpt(stranger, [ROOT], sender) == [TAKEN], sender
        assert rcpt(stranger, [ROOT], NULL_MX) == [NO_SENDER]
    with Client(lab.world) as client:
        assert rcpt(client, [GOOD], NULL_MX) == [TAKEN]


def test_stranger_may_not_relay_more_than_before(lab: Lab) -> None:
    with Stranger(lab.world) as stranger:
        [good, null_mx] = rcpt(stranger, [GOOD, NULL_MX])
    assert re.fullmatch("[45]54 5?4?.7.1 .*Relay access denied", good), good
    assert null_mx == NO_RECIPIENT


def test_message_to_others_is_delivered(lab: Lab) -> None:
    queue_id = lab.send([GOOD], ME)
    [delivery] = lab.postfix.await_deliveries(queue_id, 30)
    assert delivery.status == "sent"


def test_judgement_is_in_the_log(lab: Lab) -> None:
    timed(lab, NULL_MX)
    log = lab.world.path("/var/log/syslog").read_text()
    assert re.search(
        r"mxpolicy\[\d+\]: NOQUEUE: access, .*state=RCPT, client=127\.0\.0\.1,"
        r" from=<me@home\.lab\.test>, to=<user@null-mx\.smtp\.lab\.test>,"
        r" found=recipient null-mx\.smtp\.lab\.test null_mx, action=550 5\.1\.10",
        log,
    )


RULES = """\
policy:
  rules:
  - {finding: [null_mx], client: [127.0.0.0/8], action: "PREPEND X-Judged: null MX"}
  - {finding: [no_such_domain], action: REJECT}
  - {finding: [no_address], action: DEFER_IF_PERMIT}
"""


def test_postfix_does_what_rules_say(lab: Lab) -> None:
    lab.world.path(CONFIG).write_text(RULES)
    with Client(lab.world) as client:
        nxdomain, nodata = "user@nxdomain.smtp.lab.test", "user@nodata.smtp.lab.test"
        assert rcpt(client, [nxdomain, nodata, NULL_MX, GOOD]) == [
            f"554 5.1.2 <{nxdomain}>: Recipient address rejected: recipient domain"
            " nxdomain.smtp.lab.test does not exist",
            f"450 4.4.4 <{nodata}>: Recipient address rejected: recipient domain"
            " nodata.smtp.lab.test has no mail server with an address",
            TAKEN,
            TAKEN,
        ]
        text = client.submit([NULL_MX, GOOD], ME, Mail().data)
    lab.postfix.await_deliveries(queued_as(text), 30, count=2)
    assert "X-Judged: null MX\r\n" in lab.hosts.received(GOOD)[-1].data


# In its pause for as long as a test takes; the address is nobody's.
REMEMBER = """\
import asyncio, sys, time
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.host_record import HostRecord, encode
from mxpolicy.state.sqlite import SqliteStore
address, failed = sys.argv[1:]
record = HostRecord(Verdict.FILTERED, Phase.CONNECT, True, time.time(), 600.0, 6.0)
if failed == "no":
    record = HostRecord(last_ready=time.time())
async def main():
    store = SqliteStore("/var/lib/mxpolicy/state.sqlite3")
    key = host_key(Candidate("mx", address, 25))
    await store.put(key, encode(record), time.time() + 1e6)
    await store.close()
asyncio.run(main())
"""


def remember(lab: Lab, domain: str, *, failed: bool) -> None:
    """Write as a delivery does, as its user, what became of every host of *domain*."""
    done = lab.mta_exec(["/opt/mxpolicy/bin/mxpolicy", "route", domain, "--json"])
    candidates = json.loads(done.stdout)["candidates"]
    assert candidates
    for one in candidates:
        lab.mta_exec(
            [
                *("/opt/mxpolicy/bin/python", "-c", REMEMBER, one["address"]),
                "yes" if failed else "no",
            ],
            user="mxpolicy",
        )
    time.sleep(MEMORY_HOLDS)  # for so long the last look at memory counts


def test_hosts_in_their_pause_defer_where_a_rule_says_so(lab: Lab) -> None:
    lab.world.path(CONFIG).write_text(
        "policy: {rules: [{finding: [all_paused], action: REJECT}]}\n"
    )
    domain = GOOD.partition("@")[2]
    with Client(lab.world) as client:
        assert rcpt(client, [GOOD]) == [TAKEN]
        remember(lab, domain, failed=True)
        try:
            # The process that judges is the one that was there before.
            [answer] = rcpt(client, [GOOD])
            assert re.fullmatch(
                rf"450 4\.4\.1 <{GOOD}>: Recipient address rejected: recipient domain"
                rf" {domain} has no mail server that could be reached:"
                r" \S+ filtered \d+s ago(, and \d+ more)?",
                answer,
            ), answer
            [null_mx, *others] = rcpt(client, [NULL_MX, *OTHERS[1:]])
            assert null_mx == NO_RECIPIENT
            assert set(others) == {TAKEN}
            # Root that looks leaves nothing that the others could not use.
            files = lab.mta_exec(["ls", "-l", "/var/lib/mxpolicy"]).stdout.decode()
            assert " root " not in files
        finally:
            remember(lab, domain, failed=False)
        assert rcpt(client, [GOOD]) == [TAKEN]


def test_hosts_in_their_pause_are_no_reason_without_a_rule(lab: Lab) -> None:
    domain = GOOD.partition("@")[2]
    remember(lab, domain, failed=True)
    try:
        assert timed(lab, GOOD)[0] == TAKEN
    finally:
        remember(lab, domain, failed=False)


def test_filter_hands_a_message_to_mxpolicy(lab: Lab) -> None:
    lab.world.path(CONFIG).write_text(
        'policy: {rules: [{finding: [null_mx], action: "FILTER mxpolicy:"}]}\n'
    )
    with Client(lab.world) as client:
        text = client.submit([NULL_MX], ME, Mail().data)
    [delivery] = lab.postfix.await_deliveries(queued_as(text), 30)
    # Its route says smtp(8), whose status would be 5.1.0.
    assert (delivery.relay, delivery.status) == ("mxpolicy", "bounced")
    assert delivery.dsn == "5.1.10"


# --- how it is run


def test_one_process_serves_a_connection_and_ends_with_it(lab: Lab) -> None:
    with Client(lab.world) as client:
        for _ in range(3):
            assert rcpt(client, [NULL_MX, GOOD])[0] == NO_RECIPIENT
        assert len(policies(lab)) == 1
        assert {one.user for one in policies(lab)} == {"mxpolicy"}
    lab.postfix.reload()  # which smtpd(8) does not survive
    await_end(lab)


def test_idle_process_is_let_go_and_another_comes(lab: Lab) -> None:
    of_contrib = lab.mta_exec(["postconf", "-h", "mxpolicy_policy"]).stdout.decode()
    hurried = re.sub("max_idle=[0-9]+s", "max_idle=1s", of_contrib.strip())
    assert hurried != of_contrib.strip()
    lab.postfix.set(mxpolicy_policy=hurried)
    try:
        for _ in range(2):
            assert timed(lab, NULL_MX)[0] == NO_RECIPIENT
            await_end(lab)
    finally:
        lab.postfix.set(mxpolicy_policy=of_contrib.strip())


def test_process_that_was_killed_is_replaced(lab: Lab) -> None:
    with Client(lab.world) as client:
        assert rcpt(client, [NULL_MX]) == [NO_RECIPIENT]
        [process] = policies(lab)
        lab.world.run("mta", ["kill", "-KILL", str(process.pid)])
        await_end(lab)
        assert rcpt(client, [NULL_MX]) == [NO_RECIPIENT]


def test_many_smtpd_at_once_are_all_answered(lab: Lab) -> None:
    with contextlib.ExitStack() as open_ones:
        clients = [open_ones.enter_context(Client(lab.world)) for _ in range(10)]
        for client in clients:
            assert rcpt(client, [NULL_MX, GOOD]) == [NO_RECIPIENT, TAKEN]
        assert len(policies(lab)) == len(clients)


# --- trouble


def test_dead_name_servers_do_nobody_harm(lab: Lab) -> None:
    lab.names.stop_resolver()
    try:
        answer, seconds = timed(lab, NULL_MX)
        assert answer == TAKEN
        assert seconds < ANSWER_WITHIN
    finally:
        lab.names.start_resolver()
    # A failure is kept for seconds only.
    until = time.monotonic() + 60
    while timed(lab, NULL_MX)[0] == TAKEN and time.monotonic() < until:
        time.sleep(1)
    assert timed(lab, NULL_MX)[0] == NO_RECIPIENT


SILENT_NAME_SERVER = (
    "import signal, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
    "s.bind(('127.0.0.1', 53)); signal.pause()"
)


def test_silent_name_servers_do_nobody_harm(lab: Lab) -> None:
    lab.names.stop_resolver()
    sink = lab.world.start(
        "mta", ["/opt/mxpolicy/bin/python", "-c", SILENT_NAME_SERVER]
    )
    try:
        for recipient in (NULL_MX, GOOD, ROOT, "user@lame.smtp.lab.test"):
            answer, seconds = timed(lab, recipient)
            assert answer == TAKEN
            assert seconds < ANSWER_WITHIN
    finally:
        sink.kill()
        sink.wait()
        lab.names.start_resolver()


@pytest.mark.parametrize(
    ("command", "within"),
    [
        ("/nowhere/mxpolicy policy", HANGING),
        ("/bin/false", HANGING),
        ("/opt/mxpolicy/bin/mxpolicy polcy", ANSWER_WITHIN),
        ("/opt/mxpolicy/bin/mxpolicy", HANGING),
        ("/opt/mxpolicy/bin/mxpolicy policy --config /nowhere", ANSWER_WITHIN),
        ("/opt/mxpolicy/bin/python -c {raise SystemExit(1)}", HANGING),
        ("/bin/sh -c {read line; kill -9 $$}", HANGING),
        ("/bin/sh -c {echo oops; exec sleep 60}", HANGING),
        ("/bin/sh -c {read line; echo action=}", HANGING),
        ("/bin/sh -c {read line; echo; echo; exec sleep 60}", HANGING),
        ("/bin/sleep 60", HANGING),
    ],
)
def test_broken_command_does_nobody_harm(lab: Lab, command: str, within: float) -> None:
    serve_by(lab, f"unix - n n - 0 spawn user=mxpolicy argv={command}")
    answer, seconds = timed(lab, NULL_MX)
    assert answer == TAKEN
    assert seconds < within


def test_service_that_is_not_there_does_nobody_harm(lab: Lab) -> None:
    lab.mta_exec(["postconf", "-MX", f"{SERVICE}/unix"])
    lab.postfix.reload()
    answer, seconds = timed(lab, NULL_MX)
    assert answer == TAKEN
    assert seconds < HANGING


def test_wrong_configuration_does_nobody_harm_and_is_logged(lab: Lab) -> None:
    lab.world.path(CONFIG).write_text("policy: {rules: [{finding: [null_mx]}]}\n")
    answer, seconds = timed(lab, NULL_MX)
    assert answer == TAKEN
    assert seconds < ANSWER_WITHIN
    log = lab.world.path("/var/log/syslog").read_text()
    assert f"{CONFIG}:1:18: policy.rules[0]: the key 'action' is missing" in log
    assert "every question is answered DUNNO" in log


# --- the fragments


def test_postfix_accepts_the_fragments_beside_all_others() -> None:
    with start(["policy", "all-mail", "one-domain", "fallback"]) as lab:
        for argv in (["postconf", "-n"], ["postfix", "check"]):
            done = lab.mta_exec(argv)
            assert (done.returncode, done.stderr) == (0, b"")
        assert not re.search("warning|error|fatal", "\n".join(lab.postfix.log()))


def test_command_is_not_ended_before_its_connection(lab: Lab) -> None:
    def seconds(name: str) -> int:
        done = lab.mta_exec(["postconf", "-h", name])
        return int(done.stdout.decode().strip().removesuffix("s"))

    assert seconds(f"{SERVICE}_time_limit") > seconds("smtpd_policy_service_max_ttl")


@pytest.fixture
def set_up() -> Iterator[Lab]:
    """A lab whose Postfix asks because ``mxpolicy setup`` has set it up so."""
    with start(None) as lab:
        done = lab.mta_exec([*SETUP, "--policy", "--apply"])
        assert done.returncode == 0, done.stdout.decode()
        assert timed(lab, NULL_MX)[0] == NO_RECIPIENT
        yield lab


def undo(lab: Lab) -> tuple[int, str]:
    """Take it back; return the command's status and all that it said."""
    done = lab.mta_exec([*SETUP, "--undo", "--apply"])
    return done.returncode, (done.stdout + done.stderr).decode()


def test_undo_leaves_nobody_asking(set_up: Lab) -> None:
    assert undo(set_up)[0] == 0
    settings = set_up.mta_exec(["postconf", "-n"]).stdout.decode()
    services = set_up.mta_exec(["postconf", "-M"]).stdout.decode()
    assert "mxpolicy" not in settings + services
    assert "smtpd_sender_restrictions" not in settings
    assert timed(set_up, NULL_MX)[0] == TAKEN


def test_undo_keeps_lists_of_the_operator_and_names_them(set_up: Lab) -> None:
    check = "check_policy_service { $mxpolicy_policy, policy_context=sender }"
    theirs = f"reject_non_fqdn_sender, {check}"
    set_up.postfix.set(smtpd_sender_restrictions=theirs)
    status, said = undo(set_up)
    assert status == 1
    assert "smtpd_sender_restrictions: $mxpolicy_policy" in said
    # Mail goes on, and so does what still asks.
    with Stranger(set_up.world) as stranger:
        assert rcpt(stranger, [ROOT], NULL_MX) == [NO_SENDER]
    set_up.postfix.set(smtpd_sender_restrictions="reject_non_fqdn_sender")
    status, said = undo(set_up)
    assert status == 0
    assert "smtpd_sender_restrictions = reject_non_fqdn_sender" in said
    assert timed(set_up, NULL_MX)[0] == TAKEN
