"""Reading what another process gave us: nothing that it can see changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mxpolicy.errors import LocalTrouble
from mxpolicy.net.shared_descriptor import SharedDescriptors

WITHIN = 30


@contextlib.contextmanager
def a_pipe(kind: str, directory: Path) -> Iterator[tuple[int, int]]:
    """Yield the two ends of a pipe in blocking mode; the caller closes the second."""
    if kind == "pipe":
        reads, writes = os.pipe()
    else:
        os.mkfifo(directory / "fifo")
        reads = os.open(directory / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        writes = os.open(directory / "fifo", os.O_WRONLY)
        os.set_blocking(reads, True)
    yield reads, writes
    os.close(reads)


async def all_of(descriptors: SharedDescriptors, descriptor: int) -> bytes:
    return b"".join([one async for one in descriptors.chunks(descriptor)])


@pytest.mark.parametrize("kind", ["pipe", "named"])
async def test_pipe_is_read_while_it_is_written_and_stays_blocking(
    kind: str, tmp_path: Path
) -> None:
    descriptors = SharedDescriptors()
    with a_pipe(kind, tmp_path) as (reads, writes):
        reading = asyncio.create_task(all_of(descriptors, reads))
        for piece in (b"one ", b"two ", b"x" * 60_000):
            await asyncio.sleep(0.002)  # it waits
            os.write(writes, piece)
        assert os.get_blocking(reads)
        os.close(writes)
        async with asyncio.timeout(WITHIN):
            assert await reading == b"one two " + b"x" * 60_000


async def test_end_is_when_nobody_can_write_any_more() -> None:
    descriptors = SharedDescriptors()
    with a_pipe("pipe", Path()) as (reads, writes):
        other = os.dup(writes)
        reading = asyncio.create_task(all_of(descriptors, reads))
        os.write(writes, b"one")
        os.close(writes)
        await asyncio.sleep(0.01)
        assert not reading.done()
        os.close(other)
        async with asyncio.timeout(WITHIN):
            assert await reading == b"one"


async def test_many_are_read_at_once() -> None:
    descriptors = SharedDescriptors()
    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as tasks:
        pipes = [os.pipe() for _ in range(50)]
        reading = [tasks.create_task(all_of(descriptors, one)) for one, _ in pipes]
        await asyncio.sleep(0.002)
        for number, (_, writes) in reversed(list(enumerate(pipes))):
            os.write(writes, b"%d" % number)
            os.close(writes)
    assert [one.result() for one in reading] == [b"%d" % n for n in range(50)]
    for reads, _ in pipes:
        os.close(reads)


async def test_who_is_cancelled_hears_no_more_of_it() -> None:
    descriptors = SharedDescriptors()
    reads, writes = os.pipe()
    kept = os.dup(reads)  # as the process that gave it
    reading = asyncio.create_task(all_of(descriptors, reads))
    await asyncio.sleep(0.002)
    reading.cancel()
    await asyncio.wait([reading])
    os.close(reads)
    with a_pipe("pipe", Path()) as (again, others):
        assert again == reads  # the number is used again, for another pipe
        reading = asyncio.create_task(all_of(descriptors, again))
        os.write(writes, b"of the first")
        await asyncio.sleep(0.002)
        os.write(others, b"of the second")
        os.close(others)
        async with asyncio.timeout(WITHIN):
            assert await reading == b"of the second"
    assert os.read(kept, 100) == b"of the first"
    os.close(kept)
    os.close(writes)


async def test_file_is_read_from_its_offset_which_stays(tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes(b"not this" + b"x" * 200_000)
    descriptor = os.open(file, os.O_RDONLY)
    os.lseek(descriptor, 8, os.SEEK_SET)
    assert await all_of(SharedDescriptors(), descriptor) == b"x" * 200_000
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 8
    os.close(descriptor)


async def test_what_cannot_be_read_is_named() -> None:
    descriptors = SharedDescriptors()
    left, right = socket.socketpair()
    with left, right, pytest.raises(LocalTrouble, match="neither in a pipe nor"):
        await all_of(descriptors, left.fileno())
    with a_pipe("pipe", Path()) as (_, writes):
        with pytest.raises(LocalTrouble, match="cannot read the message: Bad file"):
            await all_of(descriptors, writes)
        os.close(writes)


class _Threadless(ThreadPoolExecutor):
    """As it is where the machine has no thread left."""

    def submit(self, *args: object, **more: object) -> Any:
        raise RuntimeError("can't start new thread")


async def test_file_that_no_thread_is_left_to_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes(b"Hello.\n")
    asyncio.get_running_loop().set_default_executor(_Threadless())
    no_thread = pytest.raises(LocalTrouble, match="can't start new thread")
    with file.open("rb") as opened, no_thread:
        await all_of(SharedDescriptors(), opened.fileno())
