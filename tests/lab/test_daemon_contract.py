"""The contract with the daemon up: the same rows, and what befalls the daemon itself."""

import re
import time
from collections.abc import Iterator

import pytest

from .case import Case, Host, place
from .contract import CONTRACT_CASES, EXIM, POSTFIX, Sent, check_first_end, under_way
from .daemon import Daemon
from .daemon_provocations import BEFALLEN, Befallen, repeated_rows
from .half_messages import deliver_all
from .judge import Sent as OnItsWay
from .lab import EXIM_LMTP, EXIM_TRANSPORTS, HANDED_EXIM, Lab
from .packages import LabUnavailable
from .provocations import BOUNCED, DEFERRED, FULL_DISK, Provocation
from .smtp_host import Behaviour, Step
from .transports import TO_SOCKET, lab_with_daemon

pytestmark = [pytest.mark.lab, pytest.mark.daemon]

DOORS = ("handed", HANDED_EXIM, TO_SOCKET, EXIM_LMTP)

SLOW = Case("slow", "", (Host("mx1", 10, Behaviour({"RCPT": Step(held=True)})),), {})
CASES = (*CONTRACT_CASES.values(), SLOW)


@pytest.fixture(scope="module")
def sent() -> Iterator[Sent]:
    """A lab of its own with a daemon, and every message of the repeated rows in it."""
    try:
        with under_way(repeated_rows(), with_daemon=True) as found:
            yield found
    except LabUnavailable as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("server", [POSTFIX, EXIM])
@pytest.mark.parametrize("row", repeated_rows(), ids=lambda row: row.name)
def test_what_happens_to_the_command_ends_as_it_must(
    row: Provocation, server: str, sent: Sent
) -> None:
    check_first_end(row, server, sent)


def test_messages_were_handed_over(sent: Sent) -> None:
    sent.end("well", POSTFIX), sent.end("well", EXIM)
    log = "\n".join(sent.lab.daemon.log())
    for name in ("well", "put-off", "file-size", "disk-full", "own-deadline"):
        for server in (POSTFIX, EXIM):
            sent.end(name, server)
            assert f"to=<{sent.placed[name, server].recipient}>" in log, name
    assert sent.lab.daemon.is_running
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with a daemon, and a host of each kind for each door."""
    try:
        lab = lab_with_daemon(place(CASES, DOORS), {"hopcount_limit": "100"})
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        assert lab.exim.queue() == ""
        yield lab


@pytest.mark.parametrize("row", BEFALLEN, ids=lambda row: row.name)
def test_what_befalls_the_daemon_ends_as_it_must(row: Befallen, lab: Lab) -> None:
    if lab.daemon.is_running:
        lab.daemon.kill()
    lab.hosts.forget()
    lab.world.run("mta", ["install", "-d", "-m", "1777", FULL_DISK])
    lab.daemon = Daemon(lab.world, row.settings, {"TMPDIR": FULL_DISK})
    row.before(lab)
    lab.hosts.hold()
    doors = (TO_SOCKET, EXIM_LMTP) if row.is_of_lmtp else DOORS
    messages = [_send(row, door, lab) for door in doors]
    try:
        _befall(row, messages, lab)
    finally:
        for one in messages:
            remove(lab, one)


def _befall(row: Befallen, messages: list[OnItsWay], lab: Lab) -> None:
    if row.to == SLOW.name:
        _await_all_held(lab, messages)
        row.meanwhile(lab)
    lab.hosts.release()
    for one in messages:
        _check(row, one, lab)
    until = time.monotonic() + 20
    while lab.daemon.is_running and not row.lives:
        assert time.monotonic() < until, "it does not end"
        time.sleep(0.05)
    assert lab.daemon.is_running is row.lives, "\n".join(lab.daemon.log()[-20:])
    row.after(lab)
    _check_end(row, messages, lab)


def _send(row: Befallen, door: str, lab: Lab) -> OnItsWay:
    [placed] = [
        one for one in lab.placed if one.case.name == row.to and one.transport == door
    ]
    server = lab.server(placed)
    queue_id = server.send([placed.recipient], placed.sender, row.mail_data)
    return OnItsWay(placed, queue_id, 0.0)


def _await_all_held(lab: Lab, messages: list[OnItsWay]) -> None:
    """Wait until the hosts hold all *messages* at RCPT."""
    until = time.monotonic() + 30
    for one in messages:
        host = one.placed.host_name(one.placed.case.hosts[0])
        while not any(
            "RCPT" in str(each.commands) for each in lab.hosts.sessions(host)
        ):
            assert time.monotonic() < until, one.placed.name
            time.sleep(0.05)


def _check(row: Befallen, one: OnItsWay, lab: Lab) -> None:
    """Assert how the first attempt has ended."""
    server = lab.server(one.placed)
    [end, *_] = server.await_deliveries(one.queue_id, 40)
    told = f"{one.placed.name}: {end}"
    assert end.status in row.statuses, told
    by_postfix = one.placed.transport not in EXIM_TRANSPORTS
    if by_postfix and end.status == DEFERRED and row.dsn:
        assert end.dsn == row.dsn, told
    assert re.search(row.text, "\n".join(server.log(one.queue_id))), told


def _check_end(row: Befallen, messages: list[OnItsWay], lab: Lab) -> None:
    """Assert what the host has when nothing stands in the way any more."""
    if BOUNCED not in row.statuses:
        if lab.daemon.is_running:
            lab.daemon.kill()
        if row.copies:
            lab.daemon = Daemon(lab.world)
            deliver_all(lab, messages)
        assert [
            m for one in messages for m in lab.hosts.received(one.placed.sender)
        ] == []
    for one in messages:
        assert len(lab.hosts.received(one.placed.recipient)) == row.copies, (
            one.placed.name
        )


def remove(lab: Lab, one: OnItsWay) -> None:
    """Take a message that nothing delivers out of the queue."""
    is_exim = one.placed.transport in EXIM_TRANSPORTS
    argv = ["exim4", "-Mrm"] if is_exim else ["postsuper", "-d"]
    lab.mta_exec([*argv, one.queue_id])
