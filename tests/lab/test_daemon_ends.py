"""The daemon, its client or the mail server is killed: in each phase, through each door.

A host of each phase holds its sessions there until it is released. So all messages are
where they are to be when something happens, however busy the machine is.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import pytest

from . import half_messages
from .case import Case, Host, Placed, place
from .half_messages import MAIL_SERVERS, SETTINGS, deliver_all, kill_all, kill_writers
from .judge import Sent
from .lab import EXIM_LMTP, HANDED_EXIM, Lab
from .packages import LabUnavailable
from .smtp_host import Behaviour, Step
from .transports import TO_SOCKET, lab_with_daemon

pytestmark = [pytest.mark.lab, pytest.mark.daemon]

HANDED = "handed"
DOORS = (HANDED, HANDED_EXIM, TO_SOCKET, EXIM_LMTP)

PHASES = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT")


@dataclass(frozen=True)
class Act:
    """What happens while the hosts hold the messages, and what comes of it.

    `statuses` are those of the first attempts: of messages before their dot, and of the
    one at its dot; None where nobody is left to log one. `copies` are those of the latter in
    the end; all others arrive once. `doors` are those that it concerns. The messages are
    sent in the surroundings that `within` makes.
    """

    name: str
    do: Callable[[Lab], None]
    statuses: tuple[str, str] | None
    copies: int
    doors: Sequence[str] = DOORS
    within: Callable[[Lab], AbstractContextManager[object]] = nullcontext

    def domain(self, phase: str) -> str:
        """Return the first label of the domain that has a host of its own."""
        return f"{self.name}-{phase.lower()}"


def kill_daemon(lab: Lab) -> None:
    """Kill it; the hosts then see nobody."""
    lab.daemon.kill()


def stop_and_continue(lab: Lab) -> None:
    """Keep it from running for a while, in which the hosts go on."""
    with lab.daemon.stopped():
        lab.hosts.release()
        time.sleep(5)


def end_daemon(lab: Lab) -> None:
    """End it as a service manager does; the hosts go on a little later."""
    lab.daemon.signal(signal.SIGTERM)
    until = time.monotonic() + 20
    while not any("ends; deliveries" in line for line in lab.daemon.log()):
        assert time.monotonic() < until
        time.sleep(0.05)
    lab.hosts.release()
    until = time.monotonic() + 40
    while lab.daemon.is_running:
        assert time.monotonic() < until, "it does not end"
        time.sleep(0.1)


def kill_clients(lab: Lab) -> None:
    """Kill the processes that have handed over; their shells answer for them."""
    assert kill_all(lab, "/handover.pl ")


def kill_clients_of_python(lab: Lab) -> None:
    """The same, where they are of Python."""
    assert kill_all(lab, "/handover.py ")


@contextmanager
def without_perl(lab: Lab) -> Iterator[None]:
    """Let the lab have no Perl for a while."""
    away = ["mv", "/usr/bin/perl", "/usr/bin/not-perl"]
    lab.world.run("mta", away)
    try:
        yield
    finally:
        lab.world.run("mta", [away[0], *reversed(away[1:])])


def kill_mail_servers(lab: Lab) -> None:
    """Kill what delivers: pipe(8), lmtp(8), and Exim's processes for one message."""
    assert kill_all(lab, *MAIL_SERVERS)


ACTS = (
    Act("killed", kill_daemon, ("deferred", "deferred"), 2),
    Act("stopped", stop_and_continue, ("sent", "sent"), 1),
    Act("ended", end_daemon, ("deferred", "sent"), 1),
    Act(
        "client-killed",
        kill_clients,
        ("deferred", "deferred"),
        *(1, (HANDED, HANDED_EXIM)),
    ),
    Act(
        "python-killed",
        kill_clients_of_python,
        ("deferred", "deferred"),
        *(1, (HANDED, HANDED_EXIM), without_perl),
    ),
    Act("server-killed", kill_mail_servers, None, 1),
)

CASES = tuple(
    Case(
        act.domain(phase),
        act.name,
        (Host("mx1", 10, Behaviour({phase: Step(held=True)})),),
        {},
    )
    for act in ACTS
    for phase in PHASES
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with a daemon, for all acts."""
    try:
        lab = lab_with_daemon(place((*CASES, half_messages.CASE), DOORS), SETTINGS)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        assert lab.exim.queue() == ""
        yield lab


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_message_arrives_once_unless_the_daemon_dies_at_the_dot(
    act: Act, lab: Lab
) -> None:
    names = {act.domain(phase): phase for phase in PHASES}
    placed = [
        one
        for one in lab.placed
        if one.case.name in names and one.transport in act.doors
    ]
    lab.hosts.hold()
    with act.within(lab):
        sent = [lab.send_case(one) for one in placed]
        for one in placed:
            await_phase(lab, one, names[one.case.name])
    act.do(lab)
    if act.statuses is not None:
        before, at_dot = act.statuses
        assert {one.placed.name: first_status(lab, one) for one in sent} == {
            one.name: at_dot if names[one.case.name] == "DOT" else before
            for one in placed
        }
    lab.hosts.release()
    if not lab.daemon.is_running:
        lab.daemon.start()
    deliver_all(lab, sent)
    assert {one.name: len(lab.hosts.received(one.recipient)) for one in placed} == {
        one.name: act.copies if names[one.case.name] == "DOT" else 1 for one in placed
    }
    assert [m for one in placed for m in lab.hosts.received(one.sender)] == []


def await_phase(lab: Lab, placed: Placed, phase: str) -> None:
    """Wait until its host holds the message in *phase*."""
    host = placed.host_name(placed.case.hosts[0])
    until = time.monotonic() + 30
    while not is_in(lab, host, placed.recipient, phase):
        assert time.monotonic() < until, f"{placed.name} does not come so far"
        time.sleep(0.1)


def is_in(lab: Lab, host: str, recipient: str, phase: str) -> bool:
    """Return whether a session is held in *phase*."""
    if phase == "DOT":
        return bool(lab.hosts.received(recipient))
    said = ("", *PHASES)[PHASES.index(phase)] if phase == "CONNECT" else phase
    return any(
        not one.ended
        and (not said or (one.commands[-1:] and said in str(one.commands)))
        for one in lab.hosts.sessions(host)
    )


def first_status(lab: Lab, sent: Sent) -> str:
    """Wait for the first attempt; return how it ended."""
    [first] = lab.server(sent.placed).await_deliveries(sent.queue_id, 40)[:1]
    return first.status


def test_mail_server_killed_while_it_writes_delivers_nothing_half(lab: Lab) -> None:
    doors = [one for one in lab.placed if one.case is half_messages.CASE]
    outcomes = [
        outcome
        for number, after in enumerate((None, 0.05, 0.2))
        for outcome in kill_writers(lab, doors, number, after)
    ]
    assert len(outcomes) == 12
    assert [one for one in outcomes if one.is_half] == []
    assert {one.copies for one in outcomes} == {1}
    assert any(one.was_cut for one in outcomes)
