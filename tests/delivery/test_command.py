"""The operator's command of the option `kick`."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.command import CommandFailed, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


async def test_command_is_run_without_a_shell() -> None:
    await run_command(
        [sys.executable, "-c", "import sys; sys.exit(sys.argv[1] != 'Q')", "Q"]
    )


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["/does/not/exist", "Q1"], "No such file"),
        (
            [sys.executable, "-c", "raise SystemExit('no: ' + 5000 * 'x')"],
            "status 1: no: xxx",
        ),
    ],
)
async def test_command_that_fails_says_why(argv: list[str], text: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        await run_command(argv)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 300


async def test_command_may_say_more_than_a_pipe_holds() -> None:
    await run_command([sys.executable, "-c", "print('x' * 1_000_000)"])


@pytest.fixture
def lasts(tmp_path: Path) -> Iterator[str]:
    """A FIFO: who opens it to read waits until the test has ended."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    yield str(fifo)
    os.close(os.open(fifo, os.O_RDWR))


LEAVES_ONE = 'cat <"$0" & echo its words;'


async def test_what_a_command_leaves_behind_is_not_waited_for(lasts: str) -> None:
    async with asyncio.timeout(20):
        await run_command(["/bin/sh", "-c", f"{LEAVES_ONE} exit 0", lasts])
        with pytest.raises(CommandFailed, match="status 3: its words"):
            await run_command(["/bin/sh", "-c", f"{LEAVES_ONE} exit 3", lasts])


async def test_command_that_does_not_end_is_killed_without_what_it_has_left(
    lasts: str,
) -> None:
    argv = ["/bin/sh", "-c", f"{LEAVES_ONE} exec cat <$0", lasts]
    async with asyncio.timeout(20):
        with pytest.raises(CommandFailed, match=r"did not end within 0\.05 s"):
            await run_command(argv, within=0.05)


async def test_command_is_killed_when_it_is_no_longer_wanted(lasts: str) -> None:
    argv = ["/bin/sh", "-c", f"{LEAVES_ONE} exec cat <$0", lasts]
    running = asyncio.create_task(run_command(argv))
    await asyncio.sleep(0.01)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=20)
    assert done
    assert running.cancelled()
