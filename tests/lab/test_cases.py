"""What becomes of a message, case by case, as Postfix logged it and the hosts saw it."""

import pytest

from .cases import Placed
from .conftest import placed_cases
from .lab import Lab, Sent

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("placed", placed_cases(), ids=lambda placed: placed.name)
def test_message_ends_as_expected(
    placed: Placed, lab: Lab, sent: dict[str, Sent]
) -> None:
    assert lab.judge(sent[placed.name]) == []


def test_no_delivery_leaves_anything_behind(lab: Lab, sent: dict[str, Sent]) -> None:
    for one in sent.values():
        lab.judge(one)
    assert lab.leftovers() == []
