"""The law, over many worlds; a faulty one is told as a story."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.simulation.kept import KEPT
from tests.simulation.mends import MENDS
from tests.simulation.proof import HOUSE, faulty_without, take_back
from tests.simulation.referee import (
    judge,
    tell,
    world_of,
    world_of_a_daemon,
    world_of_limits,
    world_of_sessions,
)

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE = 50
# Worlds in which chance, or a kill, makes a difference to the patient sender that is no
# fault: who gets the only session of a host, or how often a message is tried.
LUCK = (
    *(632, 678, 4965, 6781, 700887, 10000285, 10000913, 10002982, 10005272),
    *(10007189, 10007412, 10009089, 10009564),
)
# Of all mends, and where they show: the whole proof takes minutes.
SEEN = [("visits", 1, 1), ("loop", 20, 20), ("stray", 13, 13), ("dead-dot", 522, 522)]


@pytest.mark.parametrize("first", range(1, 301, AT_ONCE))
def test_only_what_a_patient_sender_would_have_caused_happens(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        world = world_of(seed)
        faults = judge(world)
        assert not faults, tell(world, faults)


@pytest.mark.parametrize("first", range(1, 101, AT_ONCE))
def test_session_that_is_used_again_causes_nothing_either(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        world = world_of_sessions(seed)
        faults = judge(world)
        assert not faults, tell(world, faults)


@pytest.mark.parametrize("first", range(1, 151, AT_ONCE))
def test_daemon_causes_nothing_either_whatever_befalls_it(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        world = world_of_a_daemon(seed)
        faults = judge(world)
        assert not faults, tell(world, faults)


@pytest.mark.parametrize("first", range(1, 21, 10))
def test_limits_of_hosts_cause_nothing_either(first: int) -> None:
    for seed in range(first, first + 10):
        world = world_of_limits(seed)
        faults = judge(world)
        assert not faults, tell(world, faults)


@pytest.mark.parametrize("seed", LUCK)
def test_luck_is_no_fault(seed: int) -> None:
    faults = judge(world_of(seed))
    assert not faults, tell(world_of(seed), faults)


@pytest.mark.parametrize("name", KEPT)
def test_law_holds_where_it_was_broken_once(name: str) -> None:
    faults = judge(KEPT[name])
    assert not faults, tell(KEPT[name], faults)


@pytest.mark.parametrize(("name", "first", "last"), SEEN)
def test_referee_sees_when_a_mend_is_taken_back(
    name: str, first: int, last: int
) -> None:
    found = faulty_without(name, range(first, last + 1), enough=1)
    assert found.seeds or found.kept


@pytest.mark.parametrize("name", MENDS)
def test_mend_can_be_taken_back(name: str, tmp_path: Path) -> None:
    for edit in MENDS[name].edits:
        (tmp_path / edit.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HOUSE / edit.file, tmp_path / edit.file)
    take_back(name, MENDS[name], tmp_path)
