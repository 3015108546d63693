"""Runs a program of the mail server, and returns how it ended and what it said.

One that does not answer, or never stops writing, is killed.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.errors import MxPolicyError
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["Ended", "ProgramError", "directory_of", "run"]

# postconf reads two files; postmap may ask a database over the network.
PATIENCE = 10.0

# Bytes of one call. postconf says 30 KiB about everything; a table's value is a line.
MAX_OUTPUT = 4 * 1024 * 1024

# Not always on the PATH of users other than root.
_PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/lib/postfix/sbin")


class ProgramError(MxPolicyError):
    """A program did not say what it was asked for; the text says why."""


class Ended(NamedTuple):
    """How a program ended, and what it wrote."""

    status: int
    out: str
    err: str


def run(
    directory: str,
    program: str,
    *argv: str,
    patience: float = PATIENCE,
    most: int = MAX_OUTPUT,
    environ: Mapping[str, str] | None = None,
    inherited: Collection[int] = (),
) -> Ended:
    """Run *program* of *directory* to its end; kill it after *patience* seconds.

    Args:
        directory: Where the program is.
        program: Its name.
        argv: Its arguments.
        patience: In seconds.
        most: Bytes that it may write.
        environ: What is to be in its environment beside our own.
        inherited: Descriptors that it has, too.

    Raises:
        ProgramError: It cannot be started, took too long or said too much.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell, our own words
            [os.path.join(directory, program), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # So that what it starts ends with it.
            start_new_session=True,
            pass_fds=inherited,
            env={**os.environ, **(environ or {}), "LC_ALL": "C"},
        )
    except OSError as error:
        raise ProgramError(f"{program}: {error.strerror}") from error
    with process:
        try:
            out, err = _output(process, program, patience, most)
        except BaseException:
            # It was not waited for: the process id is still its own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    text = out.decode("utf-8", "replace")
    return Ended(process.returncode, text, printable(err.strip()))


def directory_of(program: str, search: str) -> str | None:
    """Return where *program* is, on the path *search* or in the usual places, if any."""
    found = shutil.which(program, path=os.pathsep.join((search, *_PLACES)))
    return os.path.dirname(found) if found else None


def _output(
    process: subprocess.Popen[bytes], program: str, patience: float, most: int
) -> tuple[bytes, bytes]:
    """Return all that *process* writes to stdout and stderr, and wait for its end.

    Raises:
        ProgramError: It took too long, or said too much.
    """
    end = time.monotonic() + patience
    silent = ProgramError(f"{program} did not answer within {patience:g} s")
    said = {process.stdout: b"", process.stderr: b""}
    with selectors.DefaultSelector() as selector:
        for stream in said:
            selector.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready or time.monotonic() >= end:
                raise silent
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                said[key.fileobj] += data  # type: ignore[index]
            if sum(map(len, said.values())) > most:
                raise ProgramError(f"{program} says more than {most} bytes")
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise silent from error
    return said[process.stdout], said[process.stderr]
