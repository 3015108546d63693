"""What is remembered between messages, under the real Postfix and behind a real firewall."""

import re
import time
from collections.abc import Iterator
from statistics import median

import pytest

from .case import Case, Host, Placed
from .cases import place
from .lab import Lab
from .packages import LabUnavailable
from .postfix import Delivery
from .smtp_host import Behaviour, Step

pytestmark = [pytest.mark.lab, pytest.mark.long]

MXPOLICY = "mxpolicy"

# Slow enough to have all its places taken, from the greeting on.
FULL = Behaviour({"CONNECT": Step(delay=2), "MAIL": Step(delay=2)}, connections_max=5)

SILENT = Behaviour({"CONNECT": Step(end="hush")})

TWO = (Host("mx1", 10), Host("mx2", 20))


def case(name: str, hosts: tuple[Host, ...] = TWO) -> Case:
    return Case(name, name, hosts, {})


CASES = (
    case("again-healthy"),
    case("again-dropped", (Host("mx1", 10, firewall="drop"), Host("mx2", 20))),
    case("again-silent", (Host("mx1", 10, SILENT), Host("mx2", 20))),
    case("again-recovers", (Host("mx1", 10, firewall="reset"), Host("mx2", 20))),
    case("again-mute", (Host("mx1", 10, SILENT, firewall="reset"), Host("mx2", 20))),
    case("again-dead"),
    case("again-full", (Host("mx1", 10, FULL),)),
)

# The pauses are shortened by a fifth at most.
SHORTEST_PAUSE = 48.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of its own: what one test finds out about a host, all others would know."""
    try:
        lab = Lab(place(CASES, (MXPOLICY,)))
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


def placed(lab: Lab, name: str) -> Placed:
    return next(one for one in lab.placed if one.case.name == name)


def address(lab: Lab, name: str, host: int = 0) -> str:
    one = placed(lab, name)
    return one.addresses(one.case.hosts[host])[0]


def send(lab: Lab, name: str, timeout: float = 60) -> Delivery:
    """Send a message and wait for the end of its first attempt."""
    queue_id = lab.send([placed(lab, name).recipient])
    found = lab.postfix.await_deliveries(queue_id, timeout)
    assert found, lab.postfix.log(queue_id)
    return found[0]


def hosts(lab: Lab, *arguments: str) -> str:
    """Run ``mxpolicy hosts`` as root."""
    argv = ["/opt/mxpolicy/bin/mxpolicy", "hosts", *arguments]
    done = lab.mta_exec(argv)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize(
    ("name", "first"), [("again-dropped", 1.5), ("again-silent", 8.0)]
)
def test_second_message_past_a_faulty_first_host_is_as_fast_as_a_healthy_one(
    lab: Lab, name: str, first: float
) -> None:
    delivery = send(lab, name)
    assert delivery.status == "sent"
    assert delivery.delay > first
    ratios = []
    for _ in range(3):  # a machine with other work makes single figures useless
        faulty, healthy = [], []
        for _ in range(5):
            healthy.append(send(lab, "again-healthy"))
            faulty.append(send(lab, name))
        assert {one.status for one in faulty} == {"sent"}
        took = [median(one.delay for one in many) for many in (faulty, healthy)]
        ratios.append(took[0] / took[1])
        if ratios[-1] <= 1.2:
            return
    pytest.fail(f"times a healthy destination's: {ratios}")


def test_recovered_host_is_used_again_and_the_probe_delays_nobody(lab: Lab) -> None:
    # The second one's first host connects again, and then does not say a word.
    names = ("again-recovers", "again-mute")
    primary, mute = (host_name(lab, name) for name in names)
    for name in names:
        assert send(lab, name).status == "sent"
    assert not lab.hosts.sessions(primary)
    assert "refused (connect" in hosts(lab)
    lab.firewall.treat("", [address(lab, name) for name in names])
    until = time.monotonic() + 90
    count = 1  # of the messages to the second one, the one that probes included
    while not (is_used(lab, primary) and lab.hosts.sessions(mute)):
        assert time.monotonic() < until, "the first hosts are not dialled again"
        assert send(lab, "again-recovers").status == "sent"
        if not lab.hosts.sessions(mute):
            assert send(lab, "again-mute").status == "sent"
            count += 1
        time.sleep(2)
    # One that probed said EHLO and QUIT only.
    probes = [
        [line.split()[0] for _, line in one.commands]
        for one in lab.hosts.sessions(primary)
    ]
    assert probes[0] == ["EHLO", "QUIT"]
    # That delivery ended its probe. By then the other host had the message.
    probe = lab.hosts.sessions(mute)[0]
    taken = lab.hosts.received(placed(lab, "again-mute").recipient)
    other = host_name(lab, "again-mute", 1)
    before = [one.host for one in taken if one.time < probe.until]
    assert before == [other] * count


def host_name(lab: Lab, name: str, host: int = 0) -> str:
    one = placed(lab, name)
    return one.host_name(one.case.hosts[host])


def is_used(lab: Lab, host: str) -> bool:
    """Return whether a message was offered to *host*."""
    return any(
        line.startswith("MAIL")
        for session in lab.hosts.sessions(host)
        for _, line in session.commands
    )


def test_many_deferrals_cost_one_connection_attempt_per_host_and_pause(
    lab: Lab,
) -> None:
    name = "again-dead"
    targets = [address(lab, name, number) for number in (0, 1)]
    # A SYN that is sent again has the same source port: what is counted are attempts.
    lab.world.run(
        "fw",
        ["nft", "add set inet lab attempts { type ipv4_addr . inet_service; }"],
    )
    lab.firewall.add_rule(
        f"ip daddr {{ {', '.join(targets)} }} tcp dport 25"
        " add @attempts { ip daddr . tcp sport } drop"
    )
    began = time.monotonic()
    first = send(lab, name, 90)
    assert first.status == "deferred"
    assert first.dsn == "4.4.1"
    assert _attempts(lab, targets) == [1, 1]
    # From the time when it was known, 6 s after the first SYN.
    recipient = placed(lab, name).recipient
    queue_ids = [lab.send([recipient]) for _ in range(60)]
    for queue_id in queue_ids:
        found = lab.postfix.await_deliveries(queue_id, 90)
        assert found[0].status == "deferred"
        assert found[0].dsn == "4.4.1"
        assert re.search("filtered .* ago", found[0].text), found[0].text
    lab.postfix.flush()
    pauses = (time.monotonic() - began) / SHORTEST_PAUSE
    for attempts in _attempts(lab, targets):
        assert 1 <= attempts <= 1 + pauses
    lab.firewall.forget_rules()


def test_too_many_connections_put_off_no_message_unasked(lab: Lab) -> None:
    one = placed(lab, "again-full")
    host = one.host_name(one.case.hosts[0])
    # Twice: first nothing is known of the host, then it was ready a moment ago.
    for _ in range(2):
        seen = len(lab.hosts.sessions(host))
        queue_ids = [lab.send([f"user{n}@{one.domain}"]) for n in range(20)]
        found = [lab.postfix.await_deliveries(each, 60)[0] for each in queue_ids]
        put_off = [each.text for each in found if each.status != "sent"]
        assert len(found) - len(put_off) >= 5
        assert put_off, "the host was never full"
        for text in put_off:
            assert "421 4.7.0 Too many connections" in text
            assert "found before" not in text
        assert len(lab.hosts.sessions(host)) - seen >= 20


def _attempts(lab: Lab, targets: list[str]) -> list[int]:
    done = lab.world.run("fw", ["nft", "list", "set", "inet", "lab", "attempts"])
    found = re.findall(r"([\d.]+) \. \d+", done.stdout.decode())
    return [found.count(one) for one in targets]


def test_root_sees_what_is_remembered_and_the_file_stays_its_owners(lab: Lab) -> None:
    assert send(lab, "again-healthy").status == "sent"
    shown = hosts(lab)
    assert placed(lab, "again-healthy").domain in shown
    assert "ready" in shown
    directory = lab.world.path("/var/lib/mxpolicy")
    owners = {one.name: one.stat().st_uid for one in directory.iterdir()}
    assert owners["state.sqlite3"] == directory.stat().st_uid
    assert len(set(owners.values())) == 1
    assert "forgotten" in hosts(lab, "clear")
    assert placed(lab, "again-healthy").domain not in hosts(lab)
    assert send(lab, "again-healthy").status == "sent"
