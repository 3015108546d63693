"""One input, cut in every way: what a parser says must not depend on how bytes arrive."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


def every_way(data: bytes) -> Iterator[list[bytes]]:
    """Yield *data* whole, byte by byte, and cut in two at every point."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def same_every_way(parse: Callable[[list[bytes]], T], data: bytes) -> T:
    """Return what *parse* makes of *data*, after seeing it make the same in every way."""
    results = [parse(pieces) for pieces in every_way(data)]
    assert all(result == results[0] for result in results)
    return results[0]


@st.composite
def cut_up(draw: st.DrawFn, data: bytes, max_cuts: int = 8) -> list[bytes]:
    """Draw pieces that together are *data*; some may be empty."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=max_cuts).map(sorted))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]
