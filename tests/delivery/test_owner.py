"""Which owner of a row is still at work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mxpolicy.delivery.owner import Calls, Owner, is_alive, is_own_process, myself


def test_this_process_is_alive() -> None:
    assert is_alive(myself())
    assert myself() != myself()  # each delivery is one of its own


def test_process_that_has_ended_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19])
        owner = myself()._replace(pid=process.pid, started=started)
        assert is_alive(owner)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(owner), "a zombie delivers nothing"
    assert not is_alive(owner)


def test_number_that_has_gone_to_another_process_is_not_alive() -> None:
    assert not is_alive(myself()._replace(started=1))


@pytest.mark.skipif(not myself().machine, reason="no /etc/machine-id here")
def test_after_a_reboot_nobody_is_alive() -> None:
    assert not is_alive(myself()._replace(boot="another"))


@pytest.mark.parametrize(
    "elsewhere",
    [
        myself()._replace(machine="x", boot="y", pid=1),
        myself()._replace(namespace="z", pid=1 << 22),
    ],
)
def test_whoever_cannot_be_looked_up_counts_as_alive(elsewhere: Owner) -> None:
    assert is_alive(elsewhere)


def test_deliveries_of_one_process_are_told_apart() -> None:
    one, other = myself(), myself()
    assert one != other
    assert one.process == other.process
    assert is_own_process(one)
    assert not is_own_process(one._replace(started=one.started + 1))


def test_delivery_of_this_process_lives_while_it_is_under_way() -> None:
    calls = Calls()
    one, other = calls.begin(), calls.begin()
    assert calls.lives(one)
    calls.end(one)
    assert not calls.lives(one), "the process lives, and its delivery does not"
    assert calls.lives(other)
    calls.end(one)


def test_delivery_of_a_process_that_had_our_number_before_is_asked_of_the_kernel() -> (
    None
):
    calls = Calls()
    earlier = calls.begin()._replace(started=1)
    assert not calls.lives(earlier)


def test_delivery_of_another_process_lives_as_long_as_that_process() -> None:
    asked: list[Owner] = []
    here = Owner("m", "b", "n", 1, 1, "")
    there = here._replace(pid=2, call="x")

    def lives(owner: Owner) -> bool:
        asked.append(owner)
        return len(asked) == 1

    calls = Calls(lambda: here, lives)
    calls.begin()
    assert calls.lives(there)
    assert not calls.lives(there)
    assert asked == [there, there]
