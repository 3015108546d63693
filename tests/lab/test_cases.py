"""What becomes of a message, case by case, as Postfix logged it and the hosts saw it."""

import pytest

from .cases import Placed
from .conftest import placed_cases
from .judge import Sent
from .lab import Lab

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
