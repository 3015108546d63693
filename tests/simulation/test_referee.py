"""The law, over many worlds; a faulty one is told as a story and kept in `KEPT`."""

from __future__ import annotations

import pytest

from tests.simulation.referee import judge, tell, world_of

# Each of these was faulty once.
KEPT = (
    37,
    54,
    102,
    154,
    227,
    267,
    380,
    408,
    448,
    523,
    721,
    918,
    1541,
    1732,
    2374,
    2725,
)
AT_ONCE = 50


@pytest.mark.parametrize("first", range(1, 401, AT_ONCE))
def test_only_what_a_patient_sender_would_have_caused_happens(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        world = world_of(seed)
        faults = judge(world)
        assert not faults, tell(world, faults)


@pytest.mark.parametrize("seed", KEPT)
def test_world_that_was_faulty_is_not_any_more(seed: int) -> None:
    world = world_of(seed)
    faults = judge(world)
    assert not faults, tell(world, faults)
