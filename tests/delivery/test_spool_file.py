"""`mxpolicy.delivery.spool_file`: where the file lies, and what a disk may do."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mxpolicy.delivery.spool_file import SpoolFile, open_unnamed
from mxpolicy.errors import LocalTrouble


@contextmanager
def opened() -> Iterator[str]:
    """Open a file and give the path that it has had."""
    descriptor = open_unnamed()
    try:
        assert os.fstat(descriptor).st_nlink == 0
        assert os.fstat(descriptor).st_mode & 0o777 == 0o600
        yield os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("has_tmpfile", [True, False])
def test_file_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_tmpfile: bool
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if not has_tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE")
    with opened() as path:
        assert path.startswith(str(tmp_path))
        assert os.listdir(tmp_path) == []


def test_useless_directory_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with opened() as path:
        assert not path.startswith(str(tmp_path))


def test_state_directory_is_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}:/other")
    kernels_open = os.open

    def without_tmp(path: str, flags: int, mode: int = 0o777) -> int:
        if path.startswith("/var/tmp"):
            raise OSError(errno.EROFS, "as under ProtectSystem=strict")
        return kernels_open(path, flags, mode)

    monkeypatch.setattr(os, "open", without_tmp)
    monkeypatch.delenv("TMPDIR", raising=False)
    with opened() as path:
        assert path.startswith(str(tmp_path))


async def test_what_was_written_is_read_in_pieces() -> None:
    file = SpoolFile()
    await file.write([bytearray(b"one ")])
    await file.write([bytearray(b"two")])
    assert await file.read(0, 100) == b"one two"
    assert await file.read(4, 2) == b"tw"
    file.close()
    file.close()
    with pytest.raises(LocalTrouble, match="closed"):
        file.write([bytearray(b"x")])
    with pytest.raises(LocalTrouble, match="closed"):
        await file.read(0, 1)


async def test_thread_reads_where_the_file_system_cannot_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "RWF_NOWAIT")
    file = SpoolFile()
    await file.write([bytearray(b"one two")])
    assert await file.read(4, 100) == b"two"
    os.ftruncate(file._descriptor, 3)
    with pytest.raises(LocalTrouble, match="shorter"):
        await file.read(4, 100)
    file.close()


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    # Python ignores SIGXFSZ: write(2) then fails with EFBIG.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_write_that_failed_leaves_no_part_behind() -> None:
    file = SpoolFile()
    await file.write([bytearray(b"a" * 1000)])
    too_large = os.strerror(errno.EFBIG)
    with file_size_limit(4096), pytest.raises(LocalTrouble, match=too_large):
        await file.write([bytearray(b"b" * 10_000)])
    await file.write([bytearray(b"c" * 1000)])
    assert await file.read(0, 10_000) == b"a" * 1000 + b"c" * 1000
    file.close()


async def test_without_any_directory_it_is_our_trouble() -> None:
    def nowhere() -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(LocalTrouble, match=os.strerror(errno.EROFS)):
        await SpoolFile(nowhere).write([bytearray(b"x")])


@pytest.mark.parametrize("most", [1, 7, 10, 64, 1 << 20])
async def test_disk_may_take_any_part_of_many_pieces(most: int) -> None:
    calls = 0

    def write(descriptor: int, pieces: Sequence[memoryview]) -> int:
        nonlocal calls
        calls += 1
        return os.write(descriptor, b"".join(pieces)[:most])

    file = SpoolFile(writes=write)
    data = bytes(range(256)) * 8
    pieces = [bytearray(data[at : at + 10]) for at in range(0, len(data), 10)]
    assert await file.write(pieces) == len(data)
    assert await file.read(0, len(data)) == data
    assert calls == -(-len(data) // most)
    file.close()


async def test_more_pieces_than_one_call_takes() -> None:
    file = SpoolFile()
    assert await file.write([bytearray(b"ab")] * 3000) == 6000
    assert await file.read(0, 6000) == b"ab" * 3000
    file.close()
