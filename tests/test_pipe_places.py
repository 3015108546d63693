"""A process that delivers holds a place, which others see, until it ends or is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mxpolicy.delivery.admission import Admission
from mxpolicy.delivery.owner import myself
from mxpolicy.routing.places import Place
from mxpolicy.state.sqlite import SqliteStore
from tests.helpers.piping import (
    MESSAGE,
    TIMEOUT,
    Host,
    Runner,
    all_answers,
    host,
    pipe,
)

__all__ = ["host", "pipe"]  # fixtures

Hosts = Callable[..., Host]


def places(pipe: Runner) -> list[Place]:
    """Return the places that are taken, as another process of this machine sees them."""

    async def look() -> list[Place]:
        store = SqliteStore(str(pipe.state / "state.sqlite3"), create=False)
        try:
            # With one place only, any that is taken is looked at closely.
            return await Admission(store, 1).places(myself())
        finally:
            await store.close()

    return asyncio.run(look())


@pytest.mark.parametrize("is_killed", [False, True])
def test_place_is_held_while_a_process_lives(
    is_killed: bool, pipe: Runner, host: Hosts
) -> None:
    there = host(holds="RCPT")
    argv = pipe.argv(there.nexthop, "b@b.example")
    with pipe.started(argv) as (process, answers):
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        assert there.reached.wait(TIMEOUT)
        (place,) = places(pipe)
        assert place.aims == {there.nexthop}
        if is_killed:
            process.kill()
        there.release.set()
        all_answers(answers)
        assert process.wait(TIMEOUT) == (-9 if is_killed else 0)
    assert places(pipe) == []


def test_no_place_is_held_without_a_limit(pipe: Runner, host: Hosts) -> None:
    pipe.configure("limits: {processes: 0}")
    there = host(holds="RCPT")
    with pipe.started(pipe.argv(there.nexthop, "b@b.example")) as (process, answers):
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        assert there.reached.wait(TIMEOUT)
        assert places(pipe) == []
        there.release.set()
        all_answers(answers)
