from __future__ import annotations

import pytest

from mxpolicy.address import AddressError, UnsupportedDomain
from mxpolicy.delivery import own_outcomes, trouble
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Bounced, Deferred


def test_an_address_that_is_none_bounces() -> None:
    error = AddressError("joe@", "empty domain name")
    assert isinstance(own_outcomes.bad_recipient(error), Bounced)
    assert str(own_outcomes.bad_recipient(error).status) == "5.1.3"
    assert str(own_outcomes.bad_sender(error).status) == "5.1.7"


def test_an_address_that_only_we_cannot_read_is_deferred() -> None:
    error = UnsupportedDomain("joe@straße.example", "needs the Python package idna")
    outcome = own_outcomes.bad_recipient(error)
    assert isinstance(outcome, Deferred)
    assert str(outcome.status) == "4.3.5"


def test_the_operators_mistake_is_deferred() -> None:
    assert str(own_outcomes.bad_nexthop(ValueError("[mx")).status) == "4.3.5"


@pytest.mark.parametrize("error", [LocalTrouble("disk full"), MemoryError()])
def test_own_trouble_is_deferred(error: Exception) -> None:
    outcome = own_outcomes.own_trouble(error)
    assert str(outcome.status) == "4.3.0"
    assert outcome.text.startswith("local trouble: ")
    assert len(outcome.text) > len("local trouble: ")


def test_no_text_breaks_the_line_or_the_bound() -> None:
    outcome = own_outcomes.own_trouble(LocalTrouble("x\r\n\x1b[2J" * 1000))
    assert outcome.text.isprintable()
    assert outcome.text.isascii()
    assert len(outcome.text) == trouble.MAX_OUTCOME_TEXT
