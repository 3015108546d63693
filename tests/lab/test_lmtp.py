"""LMTP: the real lmtp(8), as contrib/postfix has it, and the real Exim, into the daemon."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .case import Case, Host
from .cases import CASES, place
from .conftest import transports_here
from .lab import EXIM_LMTP, Lab
from .packages import LabUnavailable
from .smtp_host import Behaviour, Step

pytestmark = [
    pytest.mark.lab,
    pytest.mark.daemon,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

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
def served(*fragments: str, transport: str = "mxlmtp") -> Iterator[Lab]:
    """Start a lab with these fragments of contrib/postfix, and the daemon in it.

    No transport map names the domains of *mxlmtp*: they go where the fragment says.
    """
    cases = [case for case in CASES if case.name in TRIED]
    try:
        lab = Lab(place((*cases, WORDY, SLOW), (transport,)), fragments=fragments)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        lab.start_daemon()
        yield lab


def log(lab: Lab) -> str:
    """Return what the daemon has logged."""
    return "\n".join(lab.daemon.log())


def expected(lab: Lab) -> dict[str, tuple[str, str]]:
    """Return the end of each recipient, and its status, of a message to all of them."""
    domain = {one.case.name: one.domain for one in lab.placed}
    return {
        f"user@{domain['good']}": ("sent", "2.0.0"),
        f"user@{domain['dropped']}": ("sent", "2.0.0"),
        f"user@{domain['null-mx']}": ("bounced", "5.1.10"),
        f"user@{domain['nxdomain']}": ("bounced", "5.1.2"),
        f"user@{domain['wordy']}": ("sent", "2.0.0"),
        f"nobody@{domain['wordy']}": ("bounced", "5.1.1"),
    }


@pytest.mark.parametrize(
    ("fragment", "relay"),
    [
        ("lmtp-per-domain", "127.0.0.1[127.0.0.1]:2424"),
        ("lmtp-socket", "mail.lab.test[/run/mxpolicy/lmtp]"),
    ],
)
def test_each_recipient_has_its_own_end(fragment: str, relay: str) -> None:
    with served(fragment) as lab:
        ends = expected(lab)
        queue_id = lab.send([*ends])
        found = lab.postfix.await_deliveries(queue_id, 30, len(ends))
        assert {one.recipient: (one.status, one.dsn) for one in found} == ends
        assert {one.relay for one in found} == {relay}
        # The host's words, and the queue id in our own log.
        assert all(LONG in one.text for one in found if "wordy" in one.recipient)
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


def test_exim_hears_of_each_recipient() -> None:
    with served(transport=EXIM_LMTP) as lab:
        ends = expected(lab)
        message_id = lab.exim.send([*ends], "me@home.lab.test", b"S: x\n\n.dot\nx\n")
        found = lab.exim.await_deliveries(message_id, 30, len(ends))
        assert {one.recipient: one.status for one in found} == {
            who: status for who, (status, _) in ends.items()
        }
        for one in found:
            # Of more than 256 bytes it would read nothing, and send the message again.
            assert f" {ends[one.recipient][1]} " in one.text
            assert "Malformed" not in one.text
        [good] = [who for who in ends if "good" in who]
        [message] = lab.hosts.received(good)
        assert message.data.endswith("\r\n\r\n.dot\r\nx\r\n")
