"""One lab for all tests here, with every case in it; none where it cannot be.

`lab` is the handle (see `lab.Lab`). Tests that need another configuration of Postfix
than one more transport had better start a `Lab` of their own: it takes three seconds.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cases import CASES, Placed, place_judged
from .judge import Sent
from .lab import MXPOLICY_EXIM, Lab
from .packages import LabUnavailable
from .transports import ALL_TRANSPORTS, lab_of_cases

# smtp(8) goes through those cases that it can do in this time, which shows that the lab
# is right; `python -m tests.lab run --transport smtp` takes the minutes for the others.
SMTP_TAKES_AT_MOST = 10.0


def transports_here() -> tuple[str, ...]:
    """Return the transports that can be tried: ours only where it is installed."""
    installed = (Path(sys.prefix) / "bin" / "mxpolicy").exists()
    return (*ALL_TRANSPORTS, MXPOLICY_EXIM) if installed else ("smtp",)


def placed_cases() -> list[Placed]:
    """Return what is tried in the shared lab."""
    return [
        one
        for one in place_judged(CASES, transports_here())
        if one.transport != "smtp" or one.expected.within <= SMTP_TAKES_AT_MOST
    ]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab, started, with all cases; skips where there can be none."""
    try:
        lab = lab_of_cases(placed_cases())
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        yield lab


@pytest.fixture(scope="session")
def sent(lab: Lab) -> dict[str, Sent]:
    """Every case's message, all under way at once, by the case's name."""
    return lab.send_cases()
