"""One destination that does not answer must not take all processes: real mail servers."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from . import exim, postfix
from .case import Case, Host, Placed, place
from .lab import MXPOLICY_EXIM, Lab
from .packages import LabUnavailable
from .smtp_host import Behaviour, Step

pytestmark = [pytest.mark.lab, pytest.mark.long]

MXPOLICY = "mxpolicy"
TRANSPORTS = (MXPOLICY, MXPOLICY_EXIM)

PROCESSES = 16
"""Few, so that a busy machine can start them soon; the rule knows shares only."""

WELL = Behaviour()
SLOW = dict.fromkeys(("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"), Step(delay=1))


def case(name: str, behaviour: Behaviour = WELL, firewall: bool = False) -> Case:
    host = Host("mx1", 10, behaviour, "drop" if firewall else "")
    return Case(f"places-{name}", name, (host,), {})


BAD = (
    case("dropped", firewall=True),
    case("rcpt", Behaviour({"RCPT": Step(delay=45)})),
    case("dot", Behaviour({"DOT": Step(end="hush")})),
)
GOOD = tuple(case(f"good{number}") for number in range(5))
BURST, STEADY = case("burst"), case("slow", Behaviour(SLOW))
KILLED = case("killed", Behaviour({"CONNECT": Step(end="hush")}))
RECOVERS = case("recovers", Behaviour({"MAIL": Step(delay=20)}))
CASES = (*BAD, *GOOD, BURST, STEADY, KILLED, RECOVERS)


def start() -> Lab:
    """Return a lab with so few places, in Postfix as in the configuration."""
    limit = f"limits: {{processes: {PROCESSES}}}\n"
    files = {"/etc/mxpolicy/mxpolicy.yaml": limit}
    lab = Lab(place(CASES, TRANSPORTS), files=files)
    lab.mta_exec(["postconf", "-F", f"mxpolicy/unix/process_limit={PROCESSES}"])
    lab.postfix.reload()
    return lab


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab for each test: what one leaves under way would take another's places."""
    try:
        lab = start()
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


def placed(lab: Lab, one: Case, transport: str) -> Placed:
    [found] = [it for it in lab.placed if it.case is one and it.transport == transport]
    return found


def send(lab: Lab, one: Placed, count: int = 1) -> list[str]:
    """Send *count* messages, each to a recipient of its own; return their ids."""
    domain = one.recipient.partition("@")[2]
    return [
        lab.server(one).send([f"user{number}@{domain}"], one.sender, one.case.mail.data)
        for number in range(count)
    ]


def ended(
    lab: Lab, one: Placed, ids: Sequence[str], timeout: float = 0.0
) -> list[postfix.Delivery | exim.Delivery]:
    """Return the first attempts that have ended, waiting for all of them."""
    until = time.monotonic() + timeout
    while True:
        all_lines = lab.server(one).deliveries()
        first: dict[str, postfix.Delivery | exim.Delivery] = {}
        for line in all_lines:
            name = getattr(line, "queue_id", "") or getattr(line, "message_id", "")
            if name in ids:
                first.setdefault(name, line)
        if len(first) == len(ids) or time.monotonic() > until:
            return list(first.values())
        time.sleep(0.5)


def delivering(lab: Lab) -> list[int]:
    """Return the processes that deliver, as this machine numbers them."""
    namespace = os.readlink(f"/proc/{lab.world.pid}/ns/pid")
    found = {}
    for entry in os.scandir("/proc"):
        try:
            if (
                entry.name.isdigit()
                and os.readlink(f"{entry.path}/ns/pid") == namespace
            ):
                with open(f"{entry.path}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                with open(f"{entry.path}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                # pipe(8) itself is called with what it will call us with.
                if b"--deadline" in words and b"@" in words[-2]:
                    found[int(entry.name)] = parent
        except OSError:
            continue  # it has ended
    # Under Exim, the parent of the one that delivers is the script.
    return [pid for pid in found if pid not in found.values()]


def wait_until(is_so: Callable[[], bool], timeout: float = 60.0) -> None:
    until = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_healthy_mail_does_not_wait_behind_three_bad_domains(
    lab: Lab, transport: str
) -> None:
    bad = [placed(lab, one, transport) for one in BAD]
    sent = [(one, send(lab, one, 2 * PROCESSES)) for one in bad]

    def lines() -> list[postfix.Delivery | exim.Delivery]:
        return [line for one, ids in sent for line in ended(lab, one, ids)]

    # Until each of them waits, or was put off so that others can go.
    count = len(sent) * 2 * PROCESSES
    wait_until(
        lambda: (
            len(lines()) + len(delivering(lab)) >= count
            and len(delivering(lab)) <= PROCESSES
        ),
        400,
    )
    assert len(delivering(lab)) >= PROCESSES * 3 // 4
    queued = [
        (one, send(lab, one)) for one in (placed(lab, it, transport) for it in GOOD)
    ]
    for one, ids in queued:
        [line] = ended(lab, one, ids, 30)
        assert line.status == "sent"
        assert line.delay < 8  # the next of the others ends after tens of seconds
    texts = [line.text for line in lines() if "processes are in use" in line.text]
    assert texts
    for text in texts:
        assert re.search(
            rf"\d+ of {PROCESSES} processes are in use, \d+ of them by mail for "
            r"(places-\S+|\[[\d.]+\]):25 that "
            r"(waits, \d+s for mx1\.places-|has not gone through)",
            text,
        )


@pytest.mark.parametrize("one", [BURST, STEADY], ids=lambda one: one.name)
def test_burst_for_a_healthy_domain_is_not_limited(
    lab: Lab, transport: str, one: Case
) -> None:
    there = placed(lab, one, transport)
    count = 4 * PROCESSES
    lines = ended(lab, there, send(lab, there, count), 240)
    assert [line.status for line in lines] == ["sent"] * count


def test_killed_process_frees_its_place(lab: Lab, transport: str) -> None:
    there = placed(lab, KILLED, transport)
    three_quarters = PROCESSES * 3 // 4
    send(lab, there, three_quarters)
    wait_until(lambda: len(delivering(lab)) == three_quarters)
    time.sleep(12)
    [late] = ended(lab, there, send(lab, there), 30)
    assert "processes are in use" in late.text
    os.kill(delivering(lab)[0], signal.SIGKILL)
    wait_until(lambda: len(delivering(lab)) == three_quarters - 1)
    send(lab, there)
    wait_until(lambda: len(delivering(lab)) == three_quarters)
    time.sleep(2)
    assert len(delivering(lab)) == three_quarters


def test_mail_that_was_put_off_goes_when_its_domain_has_recovered(
    lab: Lab, transport: str
) -> None:
    there = placed(lab, RECOVERS, transport)
    three_quarters = PROCESSES * 3 // 4
    first = send(lab, there, three_quarters)
    wait_until(lambda: len(delivering(lab)) == three_quarters)
    time.sleep(14)
    late = send(lab, there)
    [line] = ended(lab, there, late, 30)
    assert line.status == "deferred"
    assert len(ended(lab, there, first, 120)) == three_quarters
    lab.server(there).flush()
    recipient = f"user0@{there.domain}"
    wait_until(lambda: len(lab.hosts.received(recipient)) == 2, 120)
