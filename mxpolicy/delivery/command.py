"""The operator's command of the option `kick`, run to its end.

Its end is the program's own. A process that it leaves behind may hold on to what the
program said its words to: an ``exim -M`` in the background, which delivers for minutes.
That process is not waited for, and not ended.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND_TIME", "CommandFailed", "run_command"]

# Seconds that it may take.
COMMAND_TIME = 30.0
# Seconds for the end of one that was killed. The kernel may hold it on a dead disk.
_KILLED_WITHIN = 1.0
_KEPT = 200  # bytes of what it says
_READ_SIZE = 4096


class CommandFailed(Exception):
    """The operator's command cannot be run, or did not end well."""


async def run_command(argv: Sequence[str], within: float = COMMAND_TIME) -> None:
    """Run a program to its end, without a shell and without input.

    Args:
        argv: The program, and its arguments.
        within: Seconds. It is killed after them, and when this is cancelled.

    Raises:
        CommandFailed: It cannot be run, takes too long, or its exit status is not 0. The
            text has the beginning of what it said.
    """
    try:
        words = _Words()
    except OSError as error:  # no descriptors
        raise CommandFailed(str(error)) from error
    try:
        status = await _run(argv, words, within)
    except TimeoutError:
        raise CommandFailed(f"did not end within {within:g} s") from None
    except (OSError, ValueError, RuntimeError) as error:
        # RuntimeError: the machine has no thread left, and one waits for the end.
        raise CommandFailed(str(error)) from error
    finally:
        words.close()
    if status:
        raise CommandFailed(f"status {status}: {printable(words.said)}")


async def _run(argv: Sequence[str], words: _Words, within: float) -> int:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=words.takes,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(within):
            return await process.wait()
    finally:
        if process.returncode is None:
            # It may have become another user (set-user-ID), and cannot be killed.
            with suppress(ProcessLookupError, PermissionError, TimeoutError):
                process.kill()
                async with asyncio.timeout(_KILLED_WITHIN):
                    await process.wait()


class _Words:
    """What a program says, read while it runs: else it would wait at a full pipe.

    It is no pipe of `asyncio`'s, whose process has not ended before all have closed it.

    Attributes:
        takes: The descriptor to say it to.
        said: Its beginning, once it is closed.
    """

    def __init__(self) -> None:
        self.said = b""
        self._reads, self.takes = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reads, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reads, self._read)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._reads, _READ_SIZE)
            self.said = (self.said + data)[:_KEPT]

    def close(self) -> None:
        """Take what is there, and hear no more of it."""
        self._read()
        self._loop.remove_reader(self._reads)
        os.close(self._reads)
        os.close(self.takes)
