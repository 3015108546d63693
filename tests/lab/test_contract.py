"""What happened to us, times what each mail server made of it: deferred, never bounced."""

from collections.abc import Iterator

import pytest

from .contract import EXIM, POSTFIX, Sent, check_first_end, under_way
from .packages import LabUnavailable
from .provocations import PROVOCATIONS, Provocation

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def sent() -> Iterator[Sent]:
    """A lab of its own, and every message on its way in it."""
    try:
        with under_way(PROVOCATIONS) as found:
            yield found
    except LabUnavailable as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("server", [POSTFIX, EXIM])
@pytest.mark.parametrize("row", PROVOCATIONS, ids=lambda row: row.name)
def test_what_happens_to_us_ends_as_it_must(
    row: Provocation, server: str, sent: Sent
) -> None:
    check_first_end(row, server, sent)


@pytest.mark.parametrize("server", [POSTFIX, EXIM])
@pytest.mark.parametrize(
    "row",
    [row for row in PROVOCATIONS if row.copies_in_the_end is not None],
    ids=lambda row: row.name,
)
def test_killed_delivery_is_made_up_for_by_the_next_one(
    row: Provocation, server: str, sent: Sent
) -> None:
    sent.end(row.name, server)
    assert sent.try_again(row.name, server) == "sent"
    placed = sent.placed[row.name, server]
    got = sent.lab.hosts.received(placed.recipient)
    assert len(got) == row.copies_in_the_end
    assert sent.lab.hosts.received(placed.sender) == []
