"""`mxpolicy.delivery.host_memory`: what is read and changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mxpolicy.delivery.host_memory import HostMemory, host_key, nexthop_key
from mxpolicy.options import MemoryOptions
from mxpolicy.routing.candidate import Candidate, Verdict
from mxpolicy.routing.host_record import HostRecord, decode
from mxpolicy.state.memory import MemoryStore
from tests.delivery.site import START

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

HERE = Candidate("mx.example.com", "192.0.2.1", 25)
THERE = Candidate("mx2.example.com", "192.0.2.2", 25)

FAILED = HostRecord(Verdict.REFUSED, full=True, since=START - 5, pause=60.0)


class Counted(MemoryStore):
    """Lets another writer go on after each read, and counts the visits."""

    visits = 0

    async def get(self, key: str) -> bytes | None:
        self.visits += 1
        value = await super().get(key)
        await asyncio.sleep(0)
        return value

    async def get_many(self, keys: Collection[str]) -> dict[str, bytes]:
        self.visits += 1
        return await super().get_many(keys)


async def change(
    memory: HostMemory, key: str, after: Callable[[HostRecord], HostRecord]
) -> None:
    """Change the record, and wait until that is written."""
    ended = asyncio.get_running_loop().create_future()
    assert memory.records.change(key, after, raise_it, lambda: ended.set_result(None))
    await ended


def raise_it(error: Exception) -> None:
    raise error


def made() -> tuple[HostMemory, Counted]:
    store = Counted(lambda: START)
    return HostMemory(store, MemoryOptions(), lambda: START), store


async def test_all_that_is_known_of_a_plan_is_read_by_one_visit() -> None:
    memory, store = made()
    await change(memory, host_key(HERE), lambda record: FAILED)
    await change(memory, nexthop_key("example.com:25", THERE), lambda record: FAILED)
    await memory.note_broken_tls(THERE, "one")
    store.visits = 0
    known = await memory.advise("example.com:25", [HERE, THERE])
    assert store.visits == 1
    assert known.of_host == {HERE: FAILED}
    assert known.of_nexthop == {THERE: FAILED}
    assert [one.message_id for one in known.of_tls.values()] == ["one"]
    assert known.order == (THERE, HERE)
    assert known.at == START


async def test_changes_at_the_same_time_are_all_kept() -> None:
    memory, store = made()
    await asyncio.gather(
        change(memory, host_key(HERE), lambda one: one._replace(small_segments=START)),
        change(memory, host_key(HERE), lambda one: one._replace(last_ready=START)),
    )
    record = decode(await store.get(host_key(HERE)))
    assert record == HostRecord(small_segments=START, last_ready=START)


async def test_two_messages_in_clear_at_the_same_time_are_a_proof() -> None:
    memory, _ = made()
    await asyncio.gather(
        *(memory.note_broken_tls(HERE, message) for message in ("one", "two"))
    )
    assert (await memory.advise("", [HERE])).is_tls_broken(HERE)


async def test_broken_starttls_under_one_name_says_nothing_of_another() -> None:
    memory, _ = made()
    theirs = HERE._replace(host="unknown.evil.example.net")
    for message in ("one", "two"):
        await memory.note_broken_tls(theirs, message)
    known = await memory.advise("example.com", [HERE, theirs])
    broken = [known.is_tls_broken(one) for one in (HERE, theirs)]
    assert broken == [False, True]
    await memory.forget_broken_tls(theirs)
    assert not (await memory.advise("example.com", [theirs])).of_tls


def test_key_of_a_nexthop_is_printable_and_bounded() -> None:
    key = nexthop_key("[" + "\u00fc" * 5000 + "]", HERE)
    assert key.startswith("nexthop [??")
    assert key.endswith(f" {host_key(HERE)}")
    assert key.isascii()
    assert len(key) < 400
