"""A session that an earlier message has used: real Postfix, daemon and hosts.

Each case sends two messages, one soon after the other. The first goes well; the second
meets a fault of a session that has brought a message already. It must end as on a new
session, or be offered over a new one, and arrive no second time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from .case import Case, Host
from .cases import place
from .conftest import transports_here
from .lab import Lab
from .packages import LabUnavailable
from .smtp_host import Behaviour, Step

pytestmark = [
    pytest.mark.lab,
    pytest.mark.daemon,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

CLOSED, RESET, SILENT = Step(end="close"), Step(end="reset"), Step(end="hush")
TLS = ("PIPELINING", "STARTTLS", "8BITMIME", "ENHANCEDSTATUSCODES")
ONE_BY_ONE = ("8BITMIME", "ENHANCEDSTATUSCODES")


class Second(NamedTuple):
    """What becomes of the second message.

    Attributes:
        status: As Postfix has it.
        dsn: As Postfix has it.
        sessions: How many sessions both messages take.
        copies: How often the host has it.
    """

    status: str
    dsn: str
    sessions: int
    copies: int


SENT_OVER_IT = Second("sent", "2.0.0", 1, 1)
SENT_ANEW = Second("sent", "2.0.0", 2, 1)


def again(step: str, fault: Step) -> Behaviour:
    return Behaviour(again={step: fault})


CASES: dict[str, tuple[Behaviour, Second]] = {
    "well": (Behaviour(), SENT_OVER_IT),
    "well-under-tls": (Behaviour(keywords=TLS), SENT_OVER_IT),
    "well-one-by-one": (Behaviour(keywords=ONE_BY_ONE), SENT_OVER_IT),
    "closed-while-idle": (
        Behaviour({"DOT": Step("250 2.0.0 Ok", end="close")}),
        SENT_ANEW,
    ),
    "rset-refused": (again("RSET", Step("502 5.5.1 No")), SENT_ANEW),
    "rset-closed": (again("RSET", CLOSED), SENT_ANEW),
    "rset-reset": (again("RSET", RESET), SENT_ANEW),
    "rset-silent": (again("RSET", SILENT), SENT_ANEW),
    "mail-421": (again("MAIL", Step("421 4.7.0 Enough", end="close")), SENT_ANEW),
    "mail-closed": (again("MAIL", CLOSED), SENT_ANEW),
    "mail-closed-under-tls": (
        Behaviour(keywords=TLS, again={"MAIL": CLOSED}),
        SENT_ANEW,
    ),
    "mail-silent": (again("MAIL", SILENT), SENT_ANEW),
    "mail-slow": (again("MAIL", Step(delay=2.0)), SENT_OVER_IT),
    "rcpt-closed": (again("RCPT", CLOSED), SENT_ANEW),
    "rcpt-greylisted": (
        Behaviour(mailboxes={"user": ["250 Ok", "450 4.7.1 Greylisted", "250 Ok"]}),
        Second("deferred", "4.7.1", 1, 0),
    ),
    "rcpt-refused": (
        Behaviour(mailboxes={"user": ["250 Ok", "550 5.1.1 Unknown"]}),
        Second("bounced", "5.1.1", 1, 0),
    ),
    "data-closed": (again("DATA", CLOSED), SENT_ANEW),
    "dot-refused": (
        again("DOT", Step("554 5.6.0 Content")),
        # Received, and refused: no copy of it is kept.
        Second("bounced", "5.6.0", 1, 0),
    ),
    "dot-reset": (again("DOT", RESET), Second("deferred", "4.4.2", 1, 1)),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    cases = [
        Case(f"again-{name}", name, (Host("mx", 10, behaviour),), {})
        for name, (behaviour, _) in CASES.items()
    ]
    try:
        lab = Lab(place(cases, ("mxlmtp",)), fragments=("lmtp-per-domain",))
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        lab.start_daemon()
        yield lab


@pytest.mark.parametrize("name", CASES)
def test_second_message_ends_as_on_a_new_session(lab: Lab, name: str) -> None:
    [placed] = [one for one in lab.placed if one.case.name == f"again-{name}"]
    recipient = f"user@{placed.domain}"
    found = []
    for _ in range(2):
        queue_id = lab.send([recipient])
        found += lab.postfix.await_deliveries(queue_id, 40)
    first, second = found
    assert (first.status, first.dsn) == ("sent", "2.0.0"), first
    sessions = lab.hosts.sessions(placed.host_name(placed.case.hosts[0]))
    received = lab.hosts.received(recipient)
    copies = sum(not one.refused for one in received) - 1
    ended = Second(second.status, second.dsn, len(sessions), copies)
    assert ended == CASES[name][1], second
