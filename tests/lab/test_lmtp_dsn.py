"""Reports that senders ask for (RFC 3461), by LMTP through the daemon: who sends which."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from .case import Case, Host
from .cases import place
from .conftest import transports_here
from .exim import Exim
from .hosts import Message
from .lab import EXIM_LMTP, Lab
from .packages import LabUnavailable
from .postfix import Postfix
from .smtp_host import Behaviour

pytestmark = [
    pytest.mark.lab,
    pytest.mark.daemon,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

REFUSED = {"refused": ["550 5.1.1 No such user"]}
PLAIN = Behaviour(mailboxes=REFUSED)
OFFERS = Behaviour(keywords=(*PLAIN.keywords, "DSN"), mailboxes=REFUSED)
CASES = (
    Case("offers", "The host announces DSN.", (Host("mx", 10, OFFERS),), {}),
    Case("plain", "It does not.", (Host("mx", 10, PLAIN),), {}),
)

ASKED = ("RET=HDRS", "ENVID=QQ314159")
ASKED_OF_RECIPIENT = ("NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;alias@home.lab.test")


@contextmanager
def served(settings: str = "", transport: str = "mxlmtp") -> Iterator[Lab]:
    """Start a lab with both hosts, and the daemon with these *settings* in it."""
    fragments = () if transport == EXIM_LMTP else ("lmtp-per-domain",)
    try:
        lab = Lab(place(CASES, (transport,)), fragments=fragments)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        lab.start_daemon(settings)
        yield lab


def commands(lab: Lab, case: str) -> list[str]:
    """Return what the host of *case* was given of MAIL and RCPT."""
    [domain] = [one.domain for one in lab.placed if one.case.name == case]
    found = [
        line for one in lab.hosts.sessions(f"mx.{domain}") for _, line in one.commands
    ]
    return [line for line in found if line.startswith(("MAIL", "RCPT"))]


def reports(
    lab: Lab,
    server: Postfix | Exim,
    case: str,
    who: str = "user",
    of_recipient: Sequence[str] = ASKED_OF_RECIPIENT,
) -> list[Message]:
    """Send a message that asks for reports; return those that its sender gets."""
    [placed] = [one for one in lab.placed if one.case.name == case]
    data = b"Subject: asks for reports\n\nOne line.\n"
    to = f"{who}@{placed.domain}"
    queue_id = server.send([to], placed.sender, data, ASKED, of_recipient)
    [end] = server.await_deliveries(queue_id, 30)
    assert end.status == ("bounced" if who == "refused" else "sent"), end
    # A report is in the queue before its message has left it.
    until = time.monotonic() + 20
    while server.queue().strip() not in ("", "Mail queue is empty"):
        assert time.monotonic() < until, server.queue()
        time.sleep(0.1)
    return lab.hosts.received(placed.sender)


def test_host_that_offers_dsn_is_told_all_and_reports_by_itself() -> None:
    with served("lmtp: {dsn: yes}\n") as lab:
        [offers] = [one for one in lab.placed if one.case.name == "offers"]
        assert reports(lab, lab.postfix, "offers") == []
        mail, rcpt = commands(lab, "offers")
        assert mail.startswith(f"MAIL FROM:<{offers.sender}> ")
        assert {*ASKED} < {*mail.split()}
        assert rcpt.split()[1:] == [
            f"TO:<user@{offers.domain}>",
            *ASKED_OF_RECIPIENT,
        ]


def test_host_that_does_not_offer_it_hears_of_none_and_no_success_is_reported() -> None:
    with served("lmtp: {dsn: yes}\n") as lab:
        # RFC 3461 §5.2.2 wants a report "relayed" here. Postfix sends none, as the LMTP
        # server has announced DSN; that is what the option says.
        assert reports(lab, lab.postfix, "plain") == []
        assert not any(
            "NOTIFY" in line or "ENVID" in line for line in commands(lab, "plain")
        )


@pytest.mark.parametrize("case", ["offers", "plain"])
def test_failure_is_reported_whatever_the_host_offers(case: str) -> None:
    with served("lmtp: {dsn: yes}\n") as lab:
        [report] = reports(lab, lab.postfix, case, "refused")
        assert "Action: failed" in report.data
        assert "Original-Envelope-Id: QQ314159" in report.data
        assert "Original-Recipient: rfc822;alias@home.lab.test" in report.data


def test_no_failure_is_reported_to_one_who_wants_none() -> None:
    with served("lmtp: {dsn: yes}\n") as lab:
        never = ("NOTIFY=NEVER",)
        assert reports(lab, lab.postfix, "offers", "refused", never) == []
        assert " NOTIFY=NEVER " in commands(lab, "offers")[1]


@pytest.mark.parametrize("case", ["offers", "plain"])
def test_by_default_the_mail_server_reports_that_it_was_relayed(case: str) -> None:
    with served() as lab:
        [report] = reports(lab, lab.postfix, case)
        assert "Action: relayed" in report.data
        assert "Original-Envelope-Id: QQ314159" in report.data
        assert not any(
            "NOTIFY" in line or "ENVID" in line for line in commands(lab, case)
        )


@pytest.mark.parametrize("settings", ["", "lmtp: {dsn: yes}\n"])
def test_exim_passes_nothing_by_lmtp_and_reports_by_itself(settings: str) -> None:
    with served(settings, EXIM_LMTP) as lab:
        exim = Exim(lab.world, settings={"dsn_advertise_hosts": "*"})
        [report] = reports(lab, exim, "offers")
        # Its lmtp transport knows no DSN: it takes the daemon for the end of the way.
        assert "Action: delivered" in report.data
        assert not any(
            "NOTIFY" in line or "ENVID" in line for line in commands(lab, "offers")
        )
