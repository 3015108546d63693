"""Several recipients on one call, over the retries of the real mail servers.

Each is delivered exactly once, whatever becomes of the others meanwhile, and the sender
hears of each refusal, and who has the message.
"""

import re
import time
from collections.abc import Iterator

import pytest

from .case import Case, Host
from .cases import place
from .conftest import transports_here
from .exim import Exim
from .hosts import Message
from .lab import HOME_DOMAIN, Lab
from .packages import LabUnavailable
from .postfix import Postfix
from .smtp_host import Behaviour, Step
from .transports import MANY, lab_of_cases

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

FULL, UNKNOWN = "452 4.2.2 Mailbox full", "550 5.1.1 No such user"
TAKEN = "250 2.1.5 Ok"
MAILBOXES = {
    "moved": (FULL, TAKEN),
    "mended": (UNKNOWN, UNKNOWN, TAKEN),
    "second": (FULL, TAKEN),
    "third": (FULL, FULL, TAKEN),
    "nobody": (UNKNOWN,),
    "closed": (FULL, UNKNOWN),
}
MIXED = Case(
    "mixed",
    "Some take it, some later, some never.",
    (Host("mx1", 10, Behaviour(mailboxes=MAILBOXES)),),
    {},
)
CUTTING = Behaviour(steps={"DOT": Step(end="close")})
CUT = Case(
    "cut",
    "The best host ends the connection at each final dot.",
    (Host("mx1", 10, CUTTING), Host("mx2", 20)),
    {},
)
ARCHIVE = Case("archive", "Gets copies.", (Host("mx1", 10),), {})
EXIM_MANY, EXIM_SOFT, EXIM_COPIED = "exim-many", "exim-soft", "exim-copied"
COMMAND = "/opt/mxpolicy/bin/mxpolicy pipe --exim --deadline 2900s -- $pipe_addresses"
COPY = COMMAND.replace(" -- ", f" --nexthop archive.{MANY}.lab.test -- ")
SENDER = f"sender@{HOME_DOMAIN}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        transports = (MANY, EXIM_MANY, EXIM_SOFT, EXIM_COPIED)
        lab = lab_of_cases(place([MIXED, CUT, ARCHIVE], transports))
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


@pytest.fixture(scope="module")
def exim(lab: Lab) -> Exim:
    return Exim(
        lab.world,
        dict.fromkeys((EXIM_MANY, EXIM_SOFT, EXIM_COPIED), COMMAND),
        batch_max=20,
        copies={EXIM_COPIED: COPY},
        soft=(EXIM_SOFT,),
    )


def addresses(names: str, transport: str) -> list[str]:
    return [f"{name}@mixed.{transport}.lab.test" for name in names.split()]


def attempts(server: Postfix | Exim, queue_id: str, recipients: list[str]) -> list[str]:
    """Have *server* try until it is done; return what each attempt came to."""
    ends: list[str] = []
    while not ends or ends[-1] == "deferred":
        assert len(ends) < 5, ends
        if ends:
            server.flush()
        count = (len(ends) + 1) * len(recipients)
        lines = server.await_deliveries(queue_id, 60, count)
        assert len(lines) == count, lines
        (status,) = {line.status for line in lines[-len(recipients) :]}
        # What Postfix calls a bounce that it makes a deferral of.
        ends.append("deferred" if status == "SOFTBOUNCE" else status)
    return ends


def copies(lab: Lab, recipients: list[str]) -> dict[str, int]:
    return {who: len(lab.hosts.received(who)) for who in recipients}


def bounces(lab: Lab) -> list[Message]:
    """Wait for what the sender gets; return it."""
    until = time.monotonic() + 20
    while not (found := lab.hosts.received(SENDER)):
        assert time.monotonic() < until
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("transport", [MANY, EXIM_MANY])
def test_recipients_who_can_take_it_later_get_it_then_and_once(
    transport: str, lab: Lab, exim: Exim
) -> None:
    server = lab.postfix if transport == MANY else exim
    recipients = addresses("one two second third", transport)
    lab.hosts.forget()
    queue_id = server.send(recipients, SENDER, b"Subject: mixed\n\nOne line.\n")
    ends = attempts(server, queue_id, recipients)
    assert ends == ["deferred", "deferred", "sent"]
    assert copies(lab, recipients) == dict.fromkeys(recipients, 1)
    assert lab.hosts.received(SENDER) == []


@pytest.mark.parametrize("transport", [MANY, EXIM_MANY])
def test_bounce_names_each_refused_and_who_has_the_message(
    transport: str, lab: Lab, exim: Exim
) -> None:
    server = lab.postfix if transport == MANY else exim
    takers = addresses("four five third", transport)
    refused = addresses("nobody closed", transport)
    lab.hosts.forget()
    recipients = [takers[0], refused[0], *takers[1:], refused[1]]
    queue_id = server.send(recipients, SENDER, b"Subject: mixed\n\nOne line.\n")
    ends = attempts(server, queue_id, recipients)
    assert ends[-1] == "bounced"
    assert copies(lab, recipients) == {who: int(who in takers) for who in recipients}
    (bounce,) = bounces(lab)
    text = "".join(bounce.data.replace("=\r\n", "").split())
    for who in refused:
        assert re.search(rf"<{who}>:host[^;<]*said:550", text), who
    listed = re.search(r";delivered:((?:<[^>]+>,?)+)", text)
    assert listed is not None
    assert set(re.findall("<([^>]+)>", listed[1])) == set(takers)


@pytest.mark.parametrize("transport", [MANY, EXIM_MANY])
def test_two_equal_messages_are_delivered_twice(
    transport: str, lab: Lab, exim: Exim
) -> None:
    server = lab.postfix if transport == MANY else exim
    recipients = addresses("six", transport)
    lab.hosts.forget()
    for _ in range(2):
        queue_id = server.send(recipients, SENDER, b"Subject: same\n\nOne line.\n")
        assert attempts(server, queue_id, recipients) == ["sent"]
    assert copies(lab, recipients) == dict.fromkeys(recipients, 2)


def hosts_of(lab: Lab, recipient: str) -> list[str]:
    """Return at which hosts a recipient's copies are."""
    return sorted(one.host.split(".")[1] for one in lab.hosts.received(recipient))


def test_archive_by_an_unseen_router_and_the_recipient_get_one_each(
    lab: Lab, exim: Exim
) -> None:
    recipients = addresses("seven second", EXIM_COPIED)
    lab.hosts.forget()
    queue_id = exim.send(recipients, SENDER, b"Subject: copied\n\nOne line.\n")
    until = time.monotonic() + 60
    while not exim.is_completed(queue_id):
        assert time.monotonic() < until
        exim.flush()
    for recipient in recipients:
        assert hosts_of(lab, recipient) == ["archive", "mixed"]


def test_after_a_change_of_nexthop_the_message_goes_there_for_all(lab: Lab) -> None:
    recipients = addresses("eight moved", MANY)
    domain = recipients[0].partition("@")[2]
    lab.hosts.forget()
    queue_id = lab.postfix.send(recipients, SENDER, b"Subject: moved\n\nOne line.\n")
    lines = lab.postfix.await_deliveries(queue_id, 60, 2)
    assert [line.status for line in lines] == ["deferred", "deferred"]
    assert hosts_of(lab, recipients[0]) == ["mixed"]
    lab.postfix.route(domain, f"{MANY}:archive.{MANY}.lab.test")
    lab.postfix.reload()  # its daemons have the old map open
    try:
        lab.postfix.flush()
        lines = lab.postfix.await_deliveries(queue_id, 60, 4)[2:]
    finally:
        lab.postfix.forget_route(domain)
    assert [line.status for line in lines] == ["sent", "sent"]
    assert hosts_of(lab, recipients[0]) == ["archive", "mixed"]
    assert hosts_of(lab, recipients[1]) == ["archive"]


@pytest.fixture
def postfix(lab: Lab) -> Iterator[Postfix]:
    """Postfix that makes a deferral of each bounce."""
    lab.postfix.set(soft_bounce="yes")
    yield lab.postfix
    lab.postfix.set(soft_bounce="no")


@pytest.mark.parametrize("transport", [MANY, EXIM_SOFT])
def test_refusal_made_a_deferral_is_asked_for_again_and_nobody_gets_two(
    transport: str, lab: Lab, postfix: Postfix, exim: Exim
) -> None:
    server = postfix if transport == MANY else exim
    recipients = addresses("nine mended", transport)
    lab.hosts.forget()
    queue_id = server.send(recipients, SENDER, b"Subject: soft\n\nOne line.\n")
    assert attempts(server, queue_id, recipients) == ["deferred", "deferred", "sent"]
    assert copies(lab, recipients) == dict.fromkeys(recipients, 1)
    assert lab.hosts.received(SENDER) == []


@pytest.mark.parametrize("transport", [MANY, EXIM_MANY])
def test_second_host_gets_what_the_first_cuts_at_every_dot(
    transport: str, lab: Lab, exim: Exim
) -> None:
    server = lab.postfix if transport == MANY else exim
    recipients = [f"{name}@cut.{transport}.lab.test" for name in ("one", "two")]
    lab.hosts.forget()
    queue_id = server.send(recipients, SENDER, b"Subject: cut\n\nOne line.\n")
    assert attempts(server, queue_id, recipients) == ["deferred", "sent"]
    for recipient in recipients:
        hosts = [one.host.split(".")[0] for one in lab.hosts.received(recipient)]
        assert hosts == ["mx1", "mx2"]
