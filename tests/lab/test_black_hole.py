"""Paths that let the dialogue pass and swallow the message, in front of real kernels.

A firewall that drops large packets, and the ICMP message that would say so, is met with
small segments at the same host; and whatever happens, nobody gets a message twice who
could have been known not to have it.
"""

import re
import time
from collections.abc import Iterator

import pytest

from .case import Case, Host, Mail, Placed
from .cases import place
from .judge import Sent
from .lab import Lab
from .packages import LabUnavailable
from .postfix import Delivery
from .smtp_host import Behaviour, Step
from .transports import HASTY, lab_of_cases

pytestmark = [pytest.mark.lab, pytest.mark.long]

MXPOLICY = "mxpolicy"

# Longer than a few segments, shorter than what leaves before the first acknowledgement.
BODY = b"Subject: large\n\n" + b"0123456789 and so on to the end of the line\n" * 200
MAIL = Mail(data=BODY)

ENCRYPTING = Behaviour(keywords=("PIPELINING", "8BITMIME", "STARTTLS"))
RESETTING = Behaviour({"DOT": Step(end="reset")})

# {h} is the (first) address of the first host.
TO_HOST = "ip daddr {h} meta length > 600 drop"
FROM_HOST = "ip saddr {h} meta length > 600 drop"
TINY = "ip daddr {h} meta length > 250 drop"
BARE_ACKS = "ip saddr {h} tcp flags == ack meta length < 80 drop"

ONE = (Host("mx1", 10),)
TWO = (Host("mx1", 10), Host("mx2", 20))

RULES = {
    "hole": TO_HOST,
    "hole-and-backup": TO_HOST,
    "hole-on-the-way-back": FROM_HOST,
    "hole-both-ways-tls": TO_HOST,
    "no-acks": BARE_ACKS,
    "no-acks-and-backup": BARE_ACKS,
    "tiny": TINY,
    "tiny-and-backup": TINY,
}


def case(name: str, hosts: tuple[Host, ...], mail: Mail = MAIL) -> Case:
    return Case(name, name, hosts, {}, mail=mail)


CASES = (
    case("hole", ONE),
    case("hole-and-backup", TWO),
    case("hole-on-the-way-back", (Host("mx1", 10, ENCRYPTING),)),
    case("hole-both-ways-tls", (Host("mx1", 10, ENCRYPTING),)),
    case("no-acks", ONE),
    case("no-acks-and-backup", TWO),
    case("tiny-and-backup", TWO),
    case("reset-after-the-dot", (Host("mx1", 10, RESETTING), Host("mx2", 20))),
)
REPAIRED = case("tiny", ONE)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of its own, with the rules in force."""
    placed = [*place(CASES, (MXPOLICY,)), *_placed_behind(REPAIRED, HASTY)]
    try:
        lab = lab_of_cases(placed)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        for one in placed:
            if rule := RULES.get(one.case.name):
                host = one.addresses(one.case.hosts[0])[0]
                lab.firewall.add_rule(rule.format(h=host))
                lab.firewall.add_rule(
                    f"ip daddr {host} icmp type destination-unreachable drop"
                )
        yield lab


def _placed_behind(late: Case, transport: str) -> list[Placed]:
    return [Placed(late, transport, len(CASES) + 1)]


@pytest.fixture(scope="module")
def sent(lab: Lab) -> dict[str, Sent]:
    """Every message, all under way at once, by the name of its case."""
    return {one.case.name: lab.send_case(one) for one in lab.placed}


def end(lab: Lab, sent: Sent, within: float = 80) -> Delivery:
    """Wait for the end of the first attempt."""
    [found] = lab.postfix.await_deliveries(sent.queue_id, within)
    return found


def copies(lab: Lab, sent: Sent) -> list[str]:
    """Return the hosts that got a whole message, once for each."""
    found = lab.hosts.received(sent.placed.recipient)
    return [one.host.partition(".")[0] for one in found]


# Case, hosts with a copy, class of time.
DELIVERED = [
    ("hole", ["mx1"], 19, 30),
    ("hole-and-backup", ["mx1"], 19, 30),
    ("hole-on-the-way-back", ["mx1"], 29, 40),
    ("hole-both-ways-tls", ["mx1"], 19, 40),
    ("no-acks", ["mx1"], 39, 55),
    ("no-acks-and-backup", ["mx2"], 39, 55),
    ("tiny-and-backup", ["mx2"], 39, 55),
]


@pytest.mark.parametrize(("name", "hosts", "after", "within"), DELIVERED)
def test_message_arrives_once_past_a_path_that_swallows_it(
    lab: Lab,
    sent: dict[str, Sent],
    name: str,
    hosts: list[str],
    after: float,
    within: float,
) -> None:
    delivery = end(lab, sent[name])
    assert (delivery.status, delivery.dsn) == ("sent", "2.0.0"), delivery
    assert after <= delivery.delay <= within, delivery
    assert copies(lab, sent[name]) == hosts


def test_small_segments_keep_tls(lab: Lab, sent: dict[str, Sent]) -> None:
    for name in ("hole-on-the-way-back", "hole-both-ways-tls"):
        end(lab, sent[name])
        [message] = lab.hosts.received(sent[name].placed.recipient)
        assert message.tls, name


def test_log_says_what_was_met(lab: Lab, sent: dict[str, Sent]) -> None:
    end(lab, sent["hole"])
    log = lab.world.path("/var/log/mail.log").read_text()
    line = re.search(r"mxpolicy\[.*to=<user@hole\.mxpolicy.*", log)
    if line is not None:  # where syslog of the lab goes there
        assert re.search(r"tried=mx1\S+ stalled 2\d\.\ds", line[0])


def test_reset_after_the_dot_is_in_doubt_and_nobody_else_is_asked(
    lab: Lab, sent: dict[str, Sent]
) -> None:
    delivery = end(lab, sent["reset-after-the-dot"])
    assert (delivery.status, delivery.dsn) == ("deferred", "4.4.2")
    assert "sent more than once" in delivery.text
    assert copies(lab, sent["reset-after-the-dot"]) == ["mx1"]


def test_path_repaired_after_we_have_gone_brings_no_copy(
    lab: Lab, sent: dict[str, Sent]
) -> None:
    one = sent["tiny"]
    delivery = end(lab, one)
    assert delivery.status == "deferred"
    assert "sent more than once" not in delivery.text
    lab.firewall.forget_rules()  # nobody else is under way any more
    # Longer than the kernel would wait before it sent again what it had.
    time.sleep(15)
    assert copies(lab, one) == []
    lab.postfix.flush()
    until = time.monotonic() + 20
    while not copies(lab, one):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)
    assert copies(lab, one) == ["mx1"]
