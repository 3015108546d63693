"""The provocations fit the code, which a run without the lab can tell, too."""

import pkgutil
from itertools import chain

import pytest

from .daemon_provocations import ELSEWHERE, REPEATED
from .provocations import KILLED, PROVOCATIONS

PLACES = [(name, where[0]) for name, where, *_ in chain.from_iterable(KILLED.values())]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_place_where_a_delivery_is_killed_is_a_function(name: str, place: str) -> None:
    assert callable(pkgutil.resolve_name(place)), name


def test_each_row_is_repeated_with_the_daemon_up_or_it_is_said_why_not() -> None:
    assert not REPEATED.keys() & ELSEWHERE.keys()
    assert {row.name for row in PROVOCATIONS} == REPEATED.keys() | ELSEWHERE.keys()
