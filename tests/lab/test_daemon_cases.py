"""Every case again, where a daemon takes the messages: by each way that leads there."""

from collections.abc import Iterator

import pytest

from mxpolicy.reply import printable

from .cases import CASES, Placed, place_judged
from .judge import Sent
from .lab import HANDED_EXIM, Lab
from .packages import LabUnavailable
from .transports import DAEMON_TRANSPORTS, lab_with_daemon

pytestmark = [pytest.mark.lab, pytest.mark.daemon]

PACE = 0.15
"""Seconds between two messages that wait for something: no Python is started for one."""

HANDED = ("handed", "handed-many", HANDED_EXIM)

PLACED = place_judged(CASES, DAEMON_TRANSPORTS)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with a daemon, and all cases in it."""
    try:
        lab = lab_with_daemon(PLACED)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


@pytest.fixture(scope="module")
def sent(lab: Lab) -> dict[str, Sent]:
    """Every case's message, all under way at once, by the case's name."""
    return lab.send_cases(PACE)


@pytest.mark.parametrize("placed", PLACED, ids=lambda placed: placed.name)
def test_message_ends_as_expected(
    placed: Placed, lab: Lab, sent: dict[str, Sent]
) -> None:
    misfits = lab.judge(sent[placed.name])
    assert not misfits, "\n".join(misfits)


def test_every_message_was_handed_over(lab: Lab, sent: dict[str, Sent]) -> None:
    handed = [one for one in sent.values() if one.placed.transport in HANDED]
    for one in handed:
        lab.judge(one)
    log = "\n".join(lab.daemon.log())
    recipients = [printable(to) for one in handed for to in one.placed.recipients]
    assert len(recipients) > 300
    assert [to for to in recipients if f"to=<{to}>" not in log] == []


def test_daemon_ends_well_and_leaves_nothing_behind(
    lab: Lab, sent: dict[str, Sent]
) -> None:
    for one in sent.values():
        lab.judge(one)
    assert "Traceback" not in "\n".join(lab.daemon.log())
    assert lab.daemon.stop() == 0
    assert lab.leftovers() == []
