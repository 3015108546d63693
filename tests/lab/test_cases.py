"""What becomes of a message, case by case, as the mail server and the hosts saw it."""

from collections.abc import Iterator

import pytest

from .cases import Placed
from .conftest import placed_cases
from .judge import Sent
from .lab import MXPOLICY_EXIM, Lab

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("placed", placed_cases(), ids=lambda placed: placed.name)
def test_message_ends_as_expected(
    placed: Placed, lab: Lab, sent: dict[str, Sent]
) -> None:
    misfits = lab.judge(sent[placed.name])
    assert not misfits, "\n".join(misfits)


def test_no_delivery_leaves_anything_behind(lab: Lab, sent: dict[str, Sent]) -> None:
    for one in sent.values():
        lab.judge(one)
    assert lab.leftovers() == []


def by_exim(lab: Lab, sent: dict[str, Sent]) -> Iterator[tuple[str, str]]:
    """Yield (recipient, status) of each delivery through contrib/exim, all ended."""
    for one in sent.values():
        if one.placed.transport == MXPOLICY_EXIM:
            lab.judge(one)
            last = {
                delivery.recipient: delivery.status
                for delivery in lab.exim.deliveries(one.queue_id)
            }
            yield from last.items()


def test_exim_keeps_a_retry_record_of_whom_it_defers_and_of_nobody_else(
    lab: Lab, sent: dict[str, Sent]
) -> None:
    statuses = dict(by_exim(lab, sent))
    deferred = {who for who, status in statuses.items() if status == "deferred"}
    assert set(statuses.values()) == {"sent", "deferred", "bounced"}
    records = lab.exim.retry_records()
    # Of the address, never of a host: the command knows better when a host is well.
    assert set(records) == {f"T:{who}" for who in deferred}
    assert all("returned 75" in text for text in records.values())


def test_exim_has_nothing_to_complain_of(lab: Lab, sent: dict[str, Sent]) -> None:
    assert list(by_exim(lab, sent))
    bad = ("taint", "failed to read", "Failed to get", "too much output", "signal")
    lines = [line for line in lab.exim.log() if any(word in line for word in bad)]
    assert lines == []
    assert lab.exim.panics() == ""
