from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.delivery import mail_data
from mxpolicy.delivery.mail_data import DIGESTED, MailData, spool
from mxpolicy.errors import LocalTrouble

T = TypeVar("T")

RECEIVED = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\n"
FROM_LINE = b"From alice@example.com Mon Jan  1 00:00:00 2024\n"

# Line ends of all kinds, dots, and what the header scan looks for.
MESSAGES = st.lists(
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b".", b"a", b" ", b"\xe4", b"From ", b"Received: x"]
    ),
    max_size=40,
).map(b"".join)


def message_of(*pieces: bytes, memory_limit: int = 1 << 20) -> MailData:
    message = MailData(memory_limit=memory_limit)
    for piece in pieces:
        message.append(piece)
    message.finish()
    return message


def at_once(work: Coroutine[None, None, T]) -> T:
    """Return what *work* does, which has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    raise AssertionError("it waits")


async def collected(message: MailData, size: int = 65536) -> bytes:
    return b"".join([chunk async for chunk in message.chunks(size)])


def content(message: MailData, size: int = 65536) -> bytes:
    return at_once(collected(message, size))


def digest_of(pieces: list[bytes]) -> bytes:
    return at_once(message_of(*pieces).digest())


def on_the_wire(data: bytes) -> bytes:
    """The message as SMTP carries it, written down in the plainest way."""
    clean = data.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if clean and not clean.endswith(b"\n"):
        clean += b"\n"
    return clean.replace(b"\n", b"\r\n")


class TestCounting:
    @given(MESSAGES, st.integers(0, 40), st.sampled_from([0, 7, 1 << 20]))
    def test_any_message_in_any_pieces(self, data: bytes, cut: int, limit: int) -> None:
        message = message_of(data[:cut], data[cut:], memory_limit=limit)
        try:
            kept = content(message)
            assert data.endswith(kept)
            assert message.size == len(on_the_wire(kept))
            assert message.has_8bit == (not kept.isascii())
            assert content(message, 3) == kept
        finally:
            message.close()

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

    def test_eight_bits_are_seen_beyond_memory(self) -> None:
        message = message_of(b"x" * 100, b"\xff", memory_limit=10)
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
    def test_fields_are_found(self, data: bytes, on_top: bool, count: int) -> None:
        message = message_of(data, memory_limit=16)
        assert message.has_received_on_top is on_top
        assert message.received_count == count
        message.close()

    def test_a_huge_header_is_looked_at_in_part(self) -> None:
        message = message_of(RECEIVED, b"X: " + b"x" * (1 << 20) + b"\n", RECEIVED)
        assert message.received_count == 1
        message.close()


class TestKeeping:
    async def test_it_can_be_read_again_and_by_two_at_once(self) -> None:
        for limit in (0, 1 << 20):
            message = message_of(b"abc" * 1000, memory_limit=limit)
            one, other = message.chunks(100), message.chunks(7)
            assert await anext(one) == (b"abc" * 34)[:100]
            assert b"".join([chunk async for chunk in other]) == b"abc" * 1000
            assert b"".join([chunk async for chunk in one]) == (b"abc" * 1000)[100:]
            message.close()

    def test_the_file_has_no_name_and_is_given_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        before = set(os.listdir("/proc/self/fd"))
        message = message_of(b"x" * 100, memory_limit=10)
        number = message._descriptor
        assert os.readlink(f"/proc/self/fd/{number}").startswith(str(tmp_path))
        assert os.fstat(number).st_nlink == 0
        assert os.fstat(number).st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == []
        message.close()
        message.close()
        assert set(os.listdir("/proc/self/fd")) == before

    def test_a_file_system_without_nameless_files_will_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.delattr(os, "O_TMPFILE")
        message = message_of(b"x" * 100, memory_limit=10)
        assert os.listdir(tmp_path) == []
        assert content(message) == b"x" * 100
        message.close()

    def test_a_useless_tmpdir_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
        message = message_of(b"x" * 100, memory_limit=10)
        assert content(message) == b"x" * 100
        message.close()

    def test_closed_it_is_never_read_as_an_empty_message(self) -> None:
        for limit in (0, 1 << 20):
            message = message_of(b"important", memory_limit=limit)
            message.close()
            with pytest.raises(LocalTrouble):
                content(message)

    def test_a_file_cut_short_is_never_read_as_a_whole_message(self) -> None:
        message = message_of(b"x" * 1000, memory_limit=10)
        os.ftruncate(message._descriptor, 500)
        with pytest.raises(LocalTrouble, match="shorter"):
            content(message)
        message.close()

    def test_a_full_disk_is_our_trouble(self) -> None:
        message = MailData(memory_limit=10)
        message._memory = None
        message._descriptor = os.open("/dev/full", os.O_RDWR)
        with pytest.raises(LocalTrouble, match=os.strerror(errno.ENOSPC)):
            message.append(b"x" * 10_000)
        message.close()

    def test_the_file_size_limit_is_our_trouble(self) -> None:
        with file_size_limit(4096):
            message = MailData(memory_limit=10)
            with pytest.raises(LocalTrouble, match=os.strerror(errno.EFBIG)):
                message.append(b"x" * 10_000)
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
            assert await reader == content(message)
        assert message.size == len(on_the_wire(content(message)))
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
            assert await reader == content(message_of(data))

        asyncio.run(play())

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
        assert content(spooling.result()) == b"Subject: x\n\nbody\n"
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
        assert content(message) == data
        message.close()
        os.close(reading)

    async def test_a_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "message"
        path.write_bytes(b"x" * 200_000)
        with path.open("rb") as file:
            message = await spool(file.fileno(), memory_limit=1000)
        assert content(message) == b"x" * 200_000
        message.close()

    async def test_nothing_at_all_is_an_empty_message(self) -> None:
        with open("/dev/null", "rb") as nothing:  # noqa: ASYNC230
            message = await spool(nothing.fileno())
        assert (message.size, content(message)) == (0, b"")

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
        assert set(os.listdir("/proc/self/fd")) == before
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


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    # Python ignores SIGXFSZ: write(2) then fails with EFBIG.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
