"""`mxpolicy.delivery.leases`: one holder at a time, and not for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.leases import LEASED, LENGTH, Leases
from mxpolicy.state.memory import MemoryStore
from tests.delivery.attempts import run
from tests.delivery.site import START, Site

if TYPE_CHECKING:
    from collections.abc import Callable


class Noting(MemoryStore):
    """Notes which leases were asked for."""

    def __init__(self, clock: Callable[[], float], asked: list[str]) -> None:
        super().__init__(clock)
        self._asked = asked

    async def get(self, key: str) -> bytes | None:
        self._asked.append(key)
        return await super().get(key)


class Place:
    """A store, a clock that is moved, and two messages."""

    def __init__(self) -> None:
        self.now = START
        self.asked: list[str] = []
        self.store = Noting(lambda: self.now, self.asked)
        self.one, self.other = (Leases(self.store, lambda: self.now) for _ in "12")


async def test_lease_has_one_holder_until_it_is_given_back() -> None:
    place = Place()
    assert await place.one.take("host x")
    assert not await place.other.take("host x")
    assert await place.other.take("host y")
    await place.one.release()
    assert await place.other.take("host x")


async def test_lease_of_a_process_that_died_ends_by_itself() -> None:
    place = Place()
    assert await place.one.take("host x")
    place.now += LENGTH - 1
    assert not await place.other.take("host x")
    place.now += 1
    assert await place.other.take("host x")


async def test_lease_that_is_over_is_not_given_back_for_its_next_holder() -> None:
    place = Place()
    assert await place.one.take("host x")
    place.now += LENGTH
    assert await place.other.take("host x")
    await place.one.release()
    assert not await place.one.take("host x")
    await place.other.release()
    assert await place.one.take("host x")


async def test_all_leases_are_taken_or_none() -> None:
    place = Place()
    assert await place.one.take("host b")
    assert not await place.other.take_all(["host c", "host a", "host b"])
    assert [row.key for row in await place.store.scan(LEASED)] == [f"{LEASED}host b"]
    await place.one.release()
    assert await place.other.take_all(["host c", "host a", "host b", "host a"])
    await place.other.release()
    assert not await place.store.scan(LEASED)


@pytest.mark.parametrize("value", [b"", b"\xff", b"nan", b"1e99", b"-1e99"])
async def test_damaged_lease_is_none(value: bytes) -> None:
    place = Place()
    await place.store.put(f"{LEASED}host x", value, START + 1e9)
    assert await place.one.take("host x")
    assert not await place.other.take("host x")


def test_lease_taken_before_the_clock_was_set_back_is_none() -> None:
    async def work() -> None:
        site = Site()
        leases = Leases(site.store, site.utc)
        assert await leases.take("host x")
        site.utc.offset -= 86400
        assert await leases.take("host x")
        assert not await leases.take("host x")

    run(work=work)


async def test_leases_are_asked_for_in_the_order_of_the_keys() -> None:
    place = Place()
    assert await place.other.take("host c")
    # So two messages with hosts in common meet at the first of these.
    assert not await place.one.take_all(["host d", "host c", "host b", "host a"])
    assert place.asked == [f"{LEASED}host {one}" for one in "cabc"]
