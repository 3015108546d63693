"""mxpolicy as contrib/exim has the real Exim run it, and what Exim makes of its ends."""

import re
import signal
import time
from collections.abc import Iterator

import pytest

from .cases import CASES, Case, Host, place
from .exim import Delivery
from .lab import Lab
from .packages import LabUnavailable
from .smtp_host import Behaviour, Step
from .world import Process

pytestmark = pytest.mark.lab

MXPOLICY_EXIM = "mxpolicy-exim"

# A host that never answers RCPT: whoever is there stays there.
HELD = Case(
    "held",
    "The host does not answer RCPT.",
    (Host("mx1", 10, Behaviour({"RCPT": Step(end="hush")})),),
    {},
)
TRIED = ("good", "dropped", "reset", "user-unknown", "null-mx", "all-dropped")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of its own with Exim."""
    tried = tuple(case for case in CASES if case.name in TRIED)
    try:
        lab = Lab(place((*tried, HELD), (MXPOLICY_EXIM,)))
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


def address(case: str, local_part: str = "user") -> str:
    return f"{local_part}@{case}.{MXPOLICY_EXIM}.lab.test"


def send(lab: Lab, *recipients: str, sender: str = "me@home.lab.test") -> str:
    """Give Exim a message; return its id."""
    return lab.exim.send(recipients, sender, b"Subject: one\n\nOne line.\n")


def first(lab: Lab, message_id: str, timeout: float = 30) -> Delivery:
    """Wait for the end of the first attempt."""
    found = lab.exim.await_deliveries(message_id, timeout)
    assert found, lab.exim.log(message_id)
    return found[0]


def at_work(lab: Lab, recipient: str) -> list[Process]:
    """Wait until *recipient*'s delivery is held; return its processes, parent first."""
    until = time.monotonic() + 20
    while not any(
        f"<{recipient}>" in line
        for session in lab.hosts.sessions()
        for _, line in session.commands
    ):
        assert time.monotonic() < until
        time.sleep(0.05)
    found = [
        one
        for one in lab.world.processes()
        if one.user == "mxpolicy" and recipient in one.command
    ]
    return sorted(found, key=lambda one: one.pid)


def kill(lab: Lab, *processes: Process, number: int = signal.SIGKILL) -> None:
    pids = [str(one.pid) for one in processes]
    # Some may have ended by themselves since they were seen.
    lab.world.run("mta", ["kill", f"-{int(number)}", *pids], check=False)


def test_message_arrives_once_and_as_it_was(lab: Lab) -> None:
    message_id = send(lab, address("good"))
    delivery = first(lab, message_id)
    assert (delivery.status, "T=mxpolicy" in delivery.text) == ("sent", True)
    [message] = lab.hosts.received(address("good"))
    assert message.reverse_path == "me@home.lab.test"
    assert message.data.startswith("Received: ")
    assert message.data.endswith("\r\n\r\nOne line.\r\n")
    until = time.monotonic() + 10
    while not lab.exim.is_completed(message_id):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(("case", "seconds"), [("dropped", 6.0), ("reset", 4.0)])
def test_first_mx_out_of_reach_costs_little(
    lab: Lab, case: str, seconds: float
) -> None:
    # 1.7 s and none, and what a busy machine takes; Exim's own client waits for 133 s.
    delivery = first(lab, send(lab, address(case)))
    assert delivery.status == "sent"
    assert delivery.delay < seconds
    [message] = lab.hosts.received(address(case))
    assert message.host.startswith("mx2.")


@pytest.mark.parametrize(
    ("local_part", "path"),
    [
        ("-f", "-f"),
        ("--exim", "--exim"),
        ('"a b"', '"a b"'),
        ("a=$domain", "a=$domain"),
    ],
)
def test_recipient_is_a_recipient_however_it_looks(
    lab: Lab, local_part: str, path: str
) -> None:
    delivery = first(lab, send(lab, address("good", local_part)))
    assert delivery.status == "sent", delivery
    assert len(lab.hosts.received(address("good", path))) == 1


@pytest.mark.parametrize(
    ("sender", "path"),
    [
        ("", ""),
        ("-f@home.lab.test", "-f@home.lab.test"),
        ('"a:PYTHONPATH=/x"@home.lab.test', '"a:PYTHONPATH=/x"@home.lab.test'),
        ('"; <; b"@home.lab.test', '"; <; b"@home.lab.test'),
        ("root@483920174635", "root@483920174635"),
    ],
)
def test_sender_arrives_as_it_was(lab: Lab, sender: str, path: str) -> None:
    to = address("good", f"from-{len(sender)}")
    assert first(lab, send(lab, to, sender=sender)).status == "sent"
    [message] = lab.hosts.received(to)
    assert message.reverse_path == path


def test_refusal_bounces_with_the_words_of_the_host(lab: Lab) -> None:
    sender = "refused@home.lab.test"
    delivery = first(lab, send(lab, address("user-unknown"), sender=sender))
    assert delivery.status == "bounced"
    until = time.monotonic() + 10
    while not (bounces := lab.hosts.received(sender)):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert "550 5.1.1 User unknown" in bounces[0].data
    assert lab.hosts.received(address("user-unknown")) == []


def test_null_mx_bounces(lab: Lab) -> None:
    delivery = first(lab, send(lab, address("null-mx")))
    assert delivery.status == "bounced"
    # The first line of the answer stands in the log (log_output).
    assert any("5.1.10" in line for line in lab.exim.log(delivery.message_id))


def test_nobody_reached_is_deferred_and_waits_its_time(lab: Lab) -> None:
    to = address("all-dropped")
    message_id = send(lab, to)
    delivery = first(lab, message_id, 90)
    assert delivery.status == "deferred"
    lines = lab.exim.log(message_id)
    assert any(re.search(r"4\.4\.1 .* filtered", line) for line in lines), lines
    retry = lab.world.run("mta", ["exim_dumpdb", "/var/spool/exim4", "retry"])
    assert f"T:{to}" in retry.stdout.decode()
    assert to in lab.exim.queue()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL", "SIGSEGV"])
def test_delivery_that_is_killed_is_deferred(lab: Lab, name: str) -> None:
    to = address("held", name.lower())
    message_id = send(lab, to)
    _, child = at_work(lab, to)
    kill(lab, child, number=signal.Signals[name])
    delivery = first(lab, message_id)
    assert delivery.status == "deferred"
    assert "frozen" not in lab.exim.queue().partition(message_id)[2].partition("\n")[0]


def test_delivery_killed_with_its_script_is_frozen(lab: Lab) -> None:
    to = address("held", "all")
    message_id = send(lab, to)
    kill(lab, *at_work(lab, to))
    assert first(lab, message_id).status == "deferred"
    [line] = [one for one in lab.exim.queue().splitlines() if message_id in one]
    assert "*** frozen ***" in line


def test_exim_killed_while_it_writes_the_message_delivers_it_once_later(
    lab: Lab,
) -> None:
    to = address("good", "large")
    data = b"Subject: large\n\n" + (b"0123456789abcdef" * 60 + b"\n") * 20_000
    message_id = lab.exim.send([to], "me@home.lab.test", data)
    child = await_child(lab, to)
    kill(lab, child, number=signal.SIGSTOP)
    daemon, *others = sorted(
        (one for one in lab.world.processes() if "exim4" in one.command),
        key=lambda one: one.pid,
    )
    assert "-bdf" in daemon.command
    kill(lab, *others)
    # Unless the script has seen what happened, and ended it.
    lab.world.run("mta", ["kill", "-CONT", str(child.pid)], check=False)
    until = time.monotonic() + 20
    while any(to in one.command for one in lab.world.processes()):
        assert time.monotonic() < until
        time.sleep(0.05)
    lab.world.run("mta", ["exim4", "-M", message_id], check=False)
    assert first(lab, message_id).status == "sent"
    # Once also where we had all of it before we were stopped: the journal knows.
    [message] = lab.hosts.received(to)
    assert message.data.endswith(data[-2000:].decode().replace("\n", "\r\n"))


def await_child(lab: Lab, recipient: str) -> Process:
    """Wait until a process delivers to *recipient*, behind its script; return it."""
    until = time.monotonic() + 20
    while True:
        found = [
            one
            for one in lab.world.processes()
            if one.user == "mxpolicy" and f"-- {recipient}" in one.command
        ]
        if len(found) > 1:
            return max(found, key=lambda one: one.pid)
        assert time.monotonic() < until


def test_command_that_cannot_be_run_is_deferred(lab: Lab) -> None:
    to = address("good", "no-command")
    command = "/opt/mxpolicy/bin/mxpolicy"
    [daemon] = [one for one in lab.world.processes() if "exim4 -bdf" in one.command]
    # Exim lives in a mount namespace of its own.
    enter = ["nsenter", "-t", str(daemon.pid), "--mount"]
    lab.world.run("mta", [*enter, "mount", "--bind", "/dev/null", command])
    try:
        delivery = first(lab, send(lab, to))
    finally:
        lab.world.run("mta", [*enter, "umount", command])
    assert delivery.status == "deferred", delivery
    assert lab.hosts.received(to) == []
