from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.choices import Choices
from tests.fuzz.mutate import CORPUS, corpus, mutated
from tests.fuzz.targets import TARGETS

BY_NAME = pytest.mark.parametrize("name", TARGETS)


@pytest.mark.parametrize("seed", sorted(CORPUS.iterdir()), ids=lambda one: one.name)
def test_what_is_in_the_corpus_breaks_nothing(seed: object) -> None:
    target = TARGETS[str(getattr(seed, "name", "")).partition("-")[0]]
    target(getattr(seed, "read_bytes", bytes)())


@BY_NAME
def test_what_is_like_the_corpus_breaks_nothing(name: str) -> None:
    seeds, chance = corpus(name), random.Random(name)
    assert len(seeds) > 1, "a target without a corpus"
    for _ in range(300):
        TARGETS[name](mutated(seeds, chance))


@BY_NAME
@given(data=st.binary(max_size=300))
@example(data=b"")
@settings(max_examples=60, deadline=None)
def test_no_bytes_break_anything(name: str, data: bytes) -> None:
    TARGETS[name](data)


def test_choices_end_with_the_bytes() -> None:
    choices = Choices(b"\x05ab\ncd")
    assert choices.number(4) == 1
    assert choices.line() == b"ab"
    assert choices.rest() == b"cd"
    assert not choices
    assert choices.number(4) == 0
    assert choices.pieces() == []


def test_pieces_are_all_there_is() -> None:
    assert Choices(b"\1\2\1\3abcdefghi").pieces() == [
        b"a",
        b"bc",
        b"d",
        b"efg",
        b"h",
        b"i",
    ]
    assert Choices(b"\0\0\0\2abc").pieces(2) == [b"abcabc"]
