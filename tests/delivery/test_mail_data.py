from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.delivery import mail_data
from mxpolicy.delivery.mail_data import DIGESTED, MailData, spool
from mxpolicy.delivery.spool_file import SpoolFile
from mxpolicy.delivery.spool_memory import SpoolMemory
from mxpolicy.errors import LocalTrouble

if TYPE_CHECKING:
    from collections.abc import Sequence

RECEIVED = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\n"
FROM_LINE = b"From alice@example.com Mon Jan  1 00:00:00 2024\n"

# Line ends of all kinds, dots, and what the header scan looks for.
MESSAGES = st.lists(
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b".", b"a", b" ", b"\xe4", b"From ", b"Received: x"]
    ),
    max_size=40,
).map(b"".join)


def message_of(*pieces: bytes) -> MailData:
    message = MailData()
    for piece in pieces:
        message.append(piece)
    message.finish()
    return message


async def spooled(*pieces: bytes, memory_limit: int, **more: Any) -> MailData:
    """Return a message that may have a file."""
    message = MailData(memory_limit=memory_limit, **more)
    for piece in pieces:
        message.append(piece)
        await message.drain()
    message.finish()
    return message


async def written(message: MailData) -> SpoolFile:
    """Return the file of *message*, once all that goes there is there."""
    while message._writing is not None:
        await asyncio.wait([message._writing])
    return message._file


async def collected(message: MailData, size: int = 65536) -> bytes:
    return b"".join([chunk async for chunk in message.chunks(size)])


def content(message: MailData, size: int = 65536) -> bytes:
    return asyncio.run(collected(message, size))


def digest_of(pieces: list[bytes]) -> bytes:
    return asyncio.run(message_of(*pieces).digest())


def on_the_wire(data: bytes) -> bytes:
    """The message as SMTP carries it, written down in the plainest way."""
    clean = data.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if clean and not clean.endswith(b"\n"):
        clean += b"\n"
    return clean.replace(b"\n", b"\r\n")


class TestCounting:
    @given(MESSAGES, st.integers(0, 40), st.sampled_from([0, 7, 1 << 20]))
    def test_any_message_in_any_pieces(self, data: bytes, cut: int, limit: int) -> None:
        async def play() -> None:
            message = await spooled(data[:cut], data[cut:], memory_limit=limit)
            kept = await collected(message)
            assert data.endswith(kept)
            assert message.size == len(on_the_wire(kept))
            assert message.has_8bit == (not kept.isascii())
            assert await collected(message, 3) == kept
            message.close()

        asyncio.run(play())

    @given(MESSAGES)
    def test_byte_by_byte_is_the_same_as_at_once(self, data: bytes) -> None:
        whole = message_of(data)
        bits = message_of(*(data[i : i + 1] for i in range(len(data))))
        assert content(bits) == content(whole)
        assert bits.size == whole.size
        assert bits.has_8bit == whole.has_8bit

    @pytest.mark.parametrize(
        ("data", "size"),
        [
            pytest.param(b"", 0, id="nothing"),
            pytest.param(b"a\n", 3, id="lf"),
            pytest.param(b"a\r\n", 3, id="crlf"),
            pytest.param(b"a", 3, id="no_line_end"),
            pytest.param(b"a\rb\n", 5, id="bare_cr"),
            pytest.param(b"a\r\r\n", 4, id="cr_crlf"),
            pytest.param(b"a\r", 4, id="cr_at_the_end"),
            pytest.param(b"\r", 3, id="cr_alone"),
            pytest.param(b".\n", 3, id="a_dot_is_not_counted_twice"),
        ],
    )
    def test_size_is_that_on_the_wire(self, data: bytes, size: int) -> None:
        assert message_of(data).size == size

    async def test_eight_bits_are_seen_beyond_memory(self) -> None:
        message = await spooled(b"x" * 100, b"\xff", memory_limit=10)
        assert message.has_8bit
        message.close()


class TestMboxLine:
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(FROM_LINE, id="nothing_else"),
            pytest.param(FROM_LINE + b"Subject: x\n\nbody\n", id="exim_prefix"),
            pytest.param(b"From MAILER-DAEMON Mon Jan 1\r\nA: b\r\n", id="crlf"),
            pytest.param(b"From  a@b Mon\nA: b\n", id="two_blanks"),
        ],
    )
    def test_is_dropped(self, data: bytes) -> None:
        rest = data.partition(b"\n")[2]
        message = message_of(data)
        assert content(message) == rest
        assert message.size == len(on_the_wire(rest))

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"From: a@b\nTo: c\n", id="header_field"),
            pytest.param(b"From : a@b\nTo: c\n", id="obsolete_header_field"),
            pytest.param(b"From \t: a@b\nTo: c\n", id="obsolete_with_tab"),
            pytest.param(b"Subject: x\nFrom here\n", id="not_on_top"),
            pytest.param(b"From here on it is all text", id="no_line_end"),
            pytest.param(b"From \nTo: c\n", id="nobody"),
            pytest.param(b"From " + b"x" * 2000 + b"\nTo: c\n", id="too_long"),
            pytest.param(b">From a@b\n", id="quoted"),
        ],
    )
    def test_what_only_looks_like_it_stays(self, data: bytes) -> None:
        assert (
            content(message_of(*(data[i : i + 7] for i in range(0, len(data), 7))))
            == data
        )


class TestReceived:
    @pytest.mark.parametrize(
        ("data", "on_top", "count"),
        [
            pytest.param(RECEIVED + b"\nbody\n", True, 1, id="one"),
            pytest.param(RECEIVED * 60 + b"\n", True, 60, id="sixty"),
            pytest.param(b"RECEIVED : x\n y\n\n", True, 1, id="other_spelling"),
            pytest.param(b"Subject: x\n" + RECEIVED, False, 1, id="not_first"),
            pytest.param(
                b"Return-Path: <a@b>\nDelivered-To: c\n folded\n" + RECEIVED,
                True,
                1,
                id="below_final_delivery",
            ),
            pytest.param(FROM_LINE + RECEIVED, True, 1, id="below_from_line"),
            pytest.param(b"Subject: x\n\n" + RECEIVED, False, 0, id="in_the_body"),
            pytest.param(b"Subject: x\r\n\r\n" + RECEIVED, False, 0, id="body_crlf"),
            pytest.param(b"\n" + RECEIVED, False, 0, id="no_header"),
            pytest.param(b"", False, 0, id="nothing"),
            pytest.param(b"X-Received: x\nReceived-SPF: y\n", False, 0, id="others"),
            pytest.param(RECEIVED.replace(b"\n", b"\r\n") * 3, True, 3, id="crlf"),
        ],
    )
    async def test_fields_are_found(
        self, data: bytes, on_top: bool, count: int
    ) -> None:
        message = await spooled(data, memory_limit=16)
        assert message.has_received_on_top is on_top
        assert message.received_count == count
        message.close()

    @pytest.mark.parametrize("step", [1000, 65536, 1 << 20])
    async def test_fields_of_a_large_header_are_counted_in_pieces(
        self, step: int
    ) -> None:
        long = b"X: " + b"x" * 5000 + b"\n"
        data = b"Delivered-To: c\n" + (RECEIVED + long) * 30 + b"\n" + RECEIVED
        message = await spooled(
            *(data[at : at + step] for at in range(0, len(data), step)), memory_limit=0
        )
        assert message.received_count == 30
        assert message.has_received_on_top
        message.close()

    async def test_a_header_without_end_takes_no_memory(self) -> None:
        message = MailData()
        for _ in range(100):
            message.append(b"x" * 2000)
            assert message._header is not None
            assert len(message._header) <= 20_000
        message.append(b"\n" + RECEIVED + b"\n")
        message.finish()
        assert message.received_count == 1
        message.close()

    async def test_a_huge_header_is_looked_at_in_part(self) -> None:
        message = message_of(RECEIVED, b"X: " + b"x" * (1 << 20) + b"\n", RECEIVED)
        assert message.received_count == 1
        message.close()


class TestKeeping:
    async def test_it_can_be_read_again_and_by_two_at_once(self) -> None:
        for limit in (0, 1 << 20):
            message = await spooled(b"abc" * 1000, memory_limit=limit)
            await written(message)
            one, other = message.chunks(100), message.chunks(7)
            assert await anext(one) == (b"abc" * 34)[:100]
            assert b"".join([chunk async for chunk in other]) == b"abc" * 1000
            assert b"".join([chunk async for chunk in one]) == (b"abc" * 1000)[100:]
            message.close()

    async def test_closed_it_is_never_read_as_an_empty_message(self) -> None:
        for limit in (0, 1 << 20):
            message = await spooled(b"important", memory_limit=limit)
            message.close()
            message.close()
            with pytest.raises(LocalTrouble):
                await collected(message)

    async def test_a_file_cut_short_is_never_read_as_a_whole_message(self) -> None:
        message = await spooled(b"x" * 1000, memory_limit=10)
        file = await written(message)
        os.ftruncate(file._descriptor, 500)
        with pytest.raises(LocalTrouble, match="shorter"):
            await collected(message)
        message.close()

    async def test_nothing_more_is_taken_when_the_disk_is_full(self) -> None:
        file = SpoolFile(lambda: os.open("/dev/full", os.O_RDWR))
        message = MailData(memory_limit=10, file=file)
        reader = asyncio.create_task(collected(message))
        message.append(b"x" * 10_000)
        full = os.strerror(errno.ENOSPC)
        with pytest.raises(LocalTrouble, match=full):
            await message.drain()
        with pytest.raises(LocalTrouble, match=full):
            message.append(b"x")
        with pytest.raises(LocalTrouble, match=full):
            await reader
        message.close()

    @pytest.mark.parametrize("has_line", [True, False])
    async def test_nothing_more_is_taken_when_there_is_no_thread_to_write(
        self, has_line: bool
    ) -> None:
        class File(SpoolFile):
            tries = 0

            def write(self, pieces: Sequence[bytearray]) -> asyncio.Future[int]:
                self.tries += 1
                if self.tries == 1:
                    raise LocalTrouble("no thread left")
                return super().write(pieces)

        memory, data = SpoolMemory(), b"x" * 900 + b"\n" * has_line
        message = MailData(memory_limit=10, memory=memory, file=File())
        reader = asyncio.create_task(collected(message))
        await asyncio.sleep(0)
        if has_line:
            with pytest.raises(LocalTrouble, match="no thread"):
                message.append(data)
        else:
            message.append(data)
            message.finish()
        with pytest.raises(LocalTrouble, match="no thread"):
            message.append(data)
        message.finish()
        assert message.size is None
        with pytest.raises(LocalTrouble, match="no thread"):
            await reader
        message.close()
        assert memory.used == 0

    async def test_a_message_that_is_complete_needs_no_disk(self) -> None:
        file = SpoolFile(lambda: os.open("/dev/full", os.O_RDWR))
        message = MailData(memory_limit=10, file=file)
        message.append(b"x" * 10_000)
        message.finish()
        await written(message)
        assert await collected(message) == b"x" * 10_000
        message.close()


class Disk:
    """One that takes nothing until it is told to."""

    def __init__(self) -> None:
        self.began, self.goes_on = threading.Event(), threading.Event()
        self.file = SpoolFile(writes=self._write)

    def _write(self, descriptor: int, pieces: Sequence[memoryview]) -> int:
        self.began.set()
        assert self.goes_on.wait(10)
        return os.writev(descriptor, pieces)


class TestSlowDisk:
    async def test_loop_goes_on_and_the_writer_waits(self) -> None:
        disk, data = Disk(), os.urandom(1 << 20)
        message = MailData(memory_limit=100_000, file=disk.file)
        reader = asyncio.create_task(collected(message))
        taken: list[int] = []

        async def write() -> None:
            for begin in range(0, len(data), 65536):
                message.append(data[begin : begin + 65536])
                taken.append(begin)
                await message.drain()
            message.finish()

        writer = asyncio.create_task(write())
        await asyncio.to_thread(disk.began.wait, 10)
        await asyncio.sleep(0.01)
        assert 2 <= len(taken) <= 4, "bounded, whatever the disk does"
        disk.goes_on.set()
        await writer
        assert await reader == data
        assert (await written(message)).size > len(data) / 2
        assert await collected(message) == data
        message.close()

    async def test_file_stays_open_while_a_thread_writes_to_it(self) -> None:
        before = set(os.listdir("/proc/self/fd"))
        disk = Disk()
        message = await spooled(b"x" * 100, memory_limit=10, file=disk.file)
        await asyncio.to_thread(disk.began.wait, 10)
        message.close()
        assert os.fstat(disk.file._descriptor).st_nlink == 0
        disk.goes_on.set()
        await written(message)
        assert disk.file._descriptor < 0
        assert set(os.listdir("/proc/self/fd")) == before

    async def test_what_comes_right_after_a_write_is_there_once(self) -> None:
        message = MailData(memory_limit=10)
        pieces = [b"%6d\n" % number for number in range(3000)]
        for piece in pieces:
            message.append(piece)
            # In some turn a write has ended, and what waits for it has not run.
            await asyncio.sleep(0)
        message.finish()
        assert await collected(message) == b"".join(pieces)
        await written(message)
        assert await collected(message) == b"".join(pieces)
        message.close()


class TestManyMessages:
    async def test_together_they_keep_to_their_memory(self) -> None:
        memory = SpoolMemory(1 << 20)
        data = os.urandom(100_000)
        messages = [MailData(memory=memory) for _ in range(100)]
        for begin in range(0, len(data), 10_000):
            for message in messages:
                message.append(data[begin : begin + 10_000])
                await message.drain()
                assert memory.used <= 1 << 20
        for message in messages:
            message.finish()
            await written(message)
        assert memory.used <= 1 << 20
        for message in messages:
            assert await collected(message) == data
            message.close()
        assert memory.used == 0

    async def test_large_one_leaves_memory_to_small_ones(self) -> None:
        memory = SpoolMemory(1 << 20)
        large = await spooled(bytes(4 << 20), memory_limit=1 << 20, memory=memory)
        await written(large)
        small = await spooled(bytes(50_000), memory_limit=1 << 20, memory=memory)
        assert (await written(small)).size == 0
        large.close()
        small.close()
        assert memory.used == 0

    async def test_each_has_its_own_limit_where_there_is_plenty(self) -> None:
        message = await spooled(bytes(1 << 20), memory_limit=1 << 20)
        assert (await written(message)).size == 0
        message.close()


class TestDigest:
    @given(st.lists(st.binary(max_size=5)))
    def test_it_is_of_the_bytes_whatever_the_pieces(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        assert digest_of(pieces) == digest_of([data]) == sha256(data).digest()

    def test_it_is_of_what_is_known_when_a_long_message_begins(self) -> None:
        top = bytes(DIGESTED - 1)
        assert digest_of([top, b"x"]) == digest_of([top + b"x", b"y"])
        assert digest_of([top, b"xy"]) == digest_of([top + b"xz"])
        assert digest_of([top, b"x"]) != digest_of([top, b"y"])

    def test_it_is_without_the_mbox_line(self) -> None:
        assert digest_of([FROM_LINE, b"A: b\n"]) == digest_of([b"A: b\n"])

    async def test_it_is_had_while_the_rest_is_still_to_come(self) -> None:
        message = MailData()
        asked = asyncio.create_task(message.digest())
        message.append(RECEIVED * 2 + b"\n")
        await asyncio.sleep(0)
        assert not asked.done()
        message.append(b"x" * DIGESTED)
        whole = RECEIVED * 2 + b"\n" + b"x" * DIGESTED
        assert await asked == sha256(whole[:DIGESTED]).digest()
        assert message.received_count == 2
        assert message.has_received_on_top
        assert message.size is None
        message.close()


class TestGrowing:
    @pytest.mark.parametrize("limit", [0, 1 << 20], ids=["file", "memory"])
    async def test_readers_follow_the_writer_to_the_end(self, limit: int) -> None:
        message = MailData(memory_limit=limit)
        readers = [asyncio.create_task(collected(message, n)) for n in (1, 7, 65536)]
        for number in range(50):
            message.append(b"line %d\n" % number)
            assert message.size is None
            for _ in range(number % 3):
                await asyncio.sleep(0)
        message.append(b"the last")
        message.finish()
        for reader in readers:
            assert await reader == await collected(message)
        assert message.size == len(on_the_wire(await collected(message)))
        message.close()

    @given(MESSAGES, st.lists(st.integers(0, 5), max_size=20))
    def test_any_message_in_any_pieces(self, data: bytes, turns: list[int]) -> None:
        async def play() -> None:
            message = MailData()
            reader = asyncio.create_task(collected(message, 3))
            rest = data
            for turn in turns:
                message.append(rest[:turn])
                rest = rest[turn:]
                for _ in range(turn):
                    await asyncio.sleep(0)
            message.append(rest)
            message.finish()
            assert await reader == await collected(message_of(data))

        asyncio.run(play())

    async def test_what_was_given_up_is_never_complete(self) -> None:
        message = MailData()
        message.append(b"Subject: x\n\n")
        message.give_up(LocalTrouble("the disk is full"))
        message.finish()
        assert message.size is None
        with pytest.raises(LocalTrouble, match="the disk is full"):
            await message.digest()
        with pytest.raises(LocalTrouble, match="the disk is full"):
            await collected(message)

    async def test_writer_that_gives_up_ends_every_reader(self) -> None:
        message = MailData()
        message.append(b"Subject: x\n\n")
        waiting = [asyncio.create_task(collected(message)) for _ in range(2)]
        asked = asyncio.create_task(message.digest())
        await asyncio.sleep(0)
        message.give_up(LocalTrouble("the client has gone away"))
        for one in (*waiting, asked, collected(message)):
            with pytest.raises(LocalTrouble, match="gone away"):
                await one

    async def test_closed_before_its_end_it_is_no_message(self) -> None:
        message = MailData()
        message.append(b"Subject: x\n\n")
        waiting = asyncio.create_task(collected(message))
        await asyncio.sleep(0)
        message.close()
        with pytest.raises(LocalTrouble, match="never complete"):
            await waiting

    async def test_first_line_is_waited_for(self) -> None:
        message = MailData()
        chunks = message.chunks()

        async def first() -> bytes:
            return await anext(chunks)

        reader = asyncio.create_task(first())
        message.append(b"From a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reader.done()
        message.append(b"lice Mon\nA: b\n")
        assert await reader == b"A: b\n"
        message.close()


class TestSpooling:
    async def test_a_pipe_is_waited_for_while_the_loop_runs(self) -> None:
        reading, writing = os.pipe()
        async with asyncio.TaskGroup() as group:
            spooling = group.create_task(spool(reading))
            for piece in (b"Subject: x\n", b"\n", b"body\n"):
                await asyncio.sleep(0)
                assert not spooling.done()
                os.write(writing, piece)
            os.close(writing)
        assert await collected(spooling.result()) == b"Subject: x\n\nbody\n"
        os.close(reading)

    @pytest.mark.parametrize("is_blocking", [True, False])
    async def test_more_than_a_pipe_holds(self, is_blocking: bool) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, is_blocking)
        data = os.urandom(3 << 20)

        def write_all() -> None:
            with open(writing, "wb") as pipe:
                pipe.write(data)

        thread = threading.Thread(target=write_all)
        thread.start()
        message = await spool(reading)
        thread.join()
        assert await collected(message) == data
        message.close()
        os.close(reading)

    async def test_a_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "message"
        path.write_bytes(b"x" * 200_000)
        with path.open("rb") as file:
            message = await spool(file.fileno(), memory_limit=1000)
        assert await collected(message) == b"x" * 200_000
        message.close()

    async def test_nothing_at_all_is_an_empty_message(self) -> None:
        with open("/dev/null", "rb") as nothing:  # noqa: ASYNC230
            message = await spool(nothing.fileno())
        assert message.size == 0
        assert await collected(message) == b""

    async def test_a_closed_input_is_our_trouble(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.close(writing)
        with pytest.raises(LocalTrouble, match=os.strerror(errno.EBADF)):
            await spool(reading)

    async def test_a_directory_is_our_trouble(self, tmp_path: Path) -> None:
        directory = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(LocalTrouble, match=os.strerror(errno.EISDIR)):
            await spool(directory)
        os.close(directory)

    async def test_a_cancelled_one_leaves_nothing(self) -> None:
        reading, writing = os.pipe()
        before = set(os.listdir("/proc/self/fd"))
        os.write(writing, b"x" * 10_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await spool(reading, memory_limit=100)
        # A thread may be in the middle of it: it makes the file, and closes it.
        for _ in range(500):
            if (left := set(os.listdir("/proc/self/fd"))) == before:
                break
            await asyncio.sleep(0.01)
        assert left == before
        assert not asyncio.get_running_loop().remove_reader(reading)
        os.close(reading)
        os.close(writing)

    def test_a_large_message_takes_no_memory(self) -> None:
        program = (
            "import asyncio, resource\n"
            "from mxpolicy.delivery.mail_data import spool\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "message = asyncio.run(spool(0))\n"
            "async def length():\n"
            "    return sum([len(chunk) async for chunk in message.chunks()])\n"
            "assert asyncio.run(length()) == 100 << 20\n"
            "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "print((after - before) // 1024)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=b"x" * (100 << 20),
            capture_output=True,
            check=True,
        )
        mebibytes = int(done.stdout)
        assert mebibytes < 10


def test_the_limit_is_one_mebibyte() -> None:
    assert mail_data.MEMORY_LIMIT == 1024 * 1024
