"""Exim runs in the lab beside Postfix, and says what becomes of its mail."""

import time
from collections.abc import Iterator

import pytest

from .cases import CASES, place
from .lab import EXIM_SMTP, Lab
from .packages import LabUnavailable

pytestmark = pytest.mark.lab

TRIED = ("good", "reset", "user-unknown", "null-mx")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of its own, with Exim and the cases that it is done with at once."""
    try:
        lab = Lab(place(tuple(c for c in CASES if c.name in TRIED), (EXIM_SMTP,)))
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


def test_exim_delivers_and_bounces_by_its_own_transport(lab: Lab) -> None:
    ends = {}
    for name, sent in lab.send_cases().items():
        [delivery] = lab.exim.await_deliveries(sent.queue_id, timeout=20)
        ends[name.removesuffix(f"-{EXIM_SMTP}")] = delivery.status
        assert delivery.recipient == sent.placed.recipient
        assert 0 <= delivery.delay < 20
        until = time.monotonic() + 10
        while not lab.exim.is_completed(sent.queue_id):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert ends == {
        "good": "sent",
        "reset": "sent",
        "user-unknown": "bounced",
        "null-mx": "bounced",
    }
    assert [m.host for m in lab.hosts.received("user@reset.exim-smtp.lab.test")] == [
        "mx2.reset.exim-smtp.lab.test"
    ]


def test_exim_tells_how_it_would_route(lab: Lab) -> None:
    route = lab.exim.route("user@reset.exim-smtp.lab.test")
    assert [(host.name.split(".")[0], host.preference) for host in route.hosts] == [
        ("mx1", 10),
        ("mx2", 20),
    ]
    assert route.status == "routed"
    assert lab.exim.route("user@null-mx.exim-smtp.lab.test").status == "bounced"


def test_sendmail_is_still_that_of_postfix(lab: Lab) -> None:
    words = lab.world.run("mta", ["sendmail", "-bp"]).stdout.decode()
    assert words == "Mail queue is empty\n"
