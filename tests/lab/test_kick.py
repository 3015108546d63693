"""The option `kick`: the mail server delivers at once when a host is back.

Nothing else makes it try again so soon: Postfix does after five minutes at the earliest,
and this Exim has no queue runner.
"""

import time
from collections.abc import Iterator

import pytest

from .case import Case, Host, Placed
from .cases import place
from .daemon import DIRECTORY, Daemon
from .lab import MXPOLICY_EXIM, Lab
from .packages import CHECKOUT, LabUnavailable

pytestmark = [pytest.mark.lab, pytest.mark.long]

UNIT = CHECKOUT / "contrib" / "systemd" / "mxpolicy-exim-kick.service"

GONE = Case("gone", "down, and back", (Host("mx1", 10, firewall="reset"),), {})

# As in contrib/systemd: what mxpolicy.service may do, and kick-postfix.conf adds.
_HARDENED = ("--no-new-privs", "--bounding-set", "-all")
_LEAVE_ID = f'mkdir -p {DIRECTORY}/kick && : >"{DIRECTORY}/kick/$1"'

_WITHIN = 60.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        lab = Lab(
            place((GONE,), ("mxlmtp", MXPOLICY_EXIM)), fragments=["lmtp-per-domain"]
        )
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


def daemon(lab: Lab, command: str, groups: str) -> Daemon:
    settings = f"memory: {{pause: 5s}}\nkick: {{command: {command}}}\n"
    return Daemon(lab.world, settings, privileges=(*_HARDENED, "--groups", groups))


def bring_back(lab: Lab, placed: Placed) -> None:
    lab.firewall.treat("", placed.addresses(placed.case.hosts[0]))


def of(lab: Lab, transport: str) -> Placed:
    [placed] = [one for one in lab.placed if one.transport == transport]
    return placed


def test_postfix_delivers_when_the_host_is_back(lab: Lab) -> None:
    placed = of(lab, "mxlmtp")
    serving = daemon(lab, "[/usr/sbin/postqueue, -i]", "mxpolicy,postfix,postdrop")
    queue_ids = [lab.send([placed.recipient]) for _ in range(5)]
    for queue_id in queue_ids:
        [first] = lab.postfix.await_deliveries(queue_id, 30)
        assert (first.status, first.dsn) == ("deferred", "4.4.1"), first
    bring_back(lab, placed)
    for queue_id in queue_ids:
        found = lab.postfix.await_deliveries(queue_id, _WITHIN, 2)
        assert found[-1].status == "sent", "\n".join(serving.log())
    assert len(lab.hosts.received(placed.recipient)) == len(queue_ids)
    assert any("recovered" in line for line in serving.log())
    assert serving.stop() == 0


def test_exim_delivers_when_the_host_is_back(lab: Lab) -> None:
    placed = of(lab, MXPOLICY_EXIM)
    serving = daemon(lab, f"[/bin/sh, -c, '{_LEAVE_ID}', kick]", "mxpolicy,postfix")
    sent = lab.send_case(placed)
    [first] = lab.exim.await_deliveries(sent.queue_id, 30)
    assert first.status == "deferred", first
    bring_back(lab, placed)
    until = time.monotonic() + _WITHIN
    directory = lab.world.path(f"{DIRECTORY}/kick")
    while not (
        directory.exists() and any(directory.iterdir())
    ):  # mxpolicy-exim-kick.path
        assert time.monotonic() < until, "\n".join(serving.log())
        time.sleep(0.1)
    (directory / "-odd; name").touch()
    _run_unit(lab)
    found = lab.exim.await_deliveries(sent.queue_id, _WITHIN, 2)
    assert found[-1].status == "sent", "\n".join(serving.log())
    assert not any(directory.iterdir())
    assert serving.stop() == 0


def _run_unit(lab: Lab) -> None:
    """Run what the unit runs, as systemd understands it (systemd.service(5))."""
    [line] = [
        line.removeprefix("ExecStart=")
        for line in UNIT.read_text().splitlines()
        if line.startswith("ExecStart=")
    ]
    command = line.replace("$$", "$")
    lab.world.run("mta", ["sh", "-c", f"cd {DIRECTORY}/kick && {command}"])
