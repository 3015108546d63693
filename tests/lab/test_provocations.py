"""The provocations fit the code, which a run without the lab can tell, too."""

import pkgutil
from itertools import chain

import pytest

from .provocations import KILLED

PLACES = [(name, where[0]) for name, where, *_ in chain.from_iterable(KILLED.values())]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_place_where_a_delivery_is_killed_is_a_function(name: str, place: str) -> None:
    assert callable(pkgutil.resolve_name(place)), name
