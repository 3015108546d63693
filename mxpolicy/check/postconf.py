"""Asks the Postfix of this machine what its configuration is, by its own programs.

Every call has an end: a program that does not answer, or never stops talking, is
killed. What could not be seen is an error with Postfix's own words, never an answer.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.errors import MxPolicyError
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Postconf", "PostfixUnseen"]

# postconf reads two files; postmap may ask a database over the network.
PATIENCE = 10.0

# Bytes of one call. postconf says 30 KiB about everything; a table's value is a line.
MAX_OUTPUT = 4 * 1024 * 1024

# Not always on the PATH of somebody who is not root.
_PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/lib/postfix/sbin")

# sysexits aside, postmap(1) says so with status 1 and nothing on stderr.
_NOT_FOUND = 1


class PostfixUnseen(MxPolicyError):
    """A program of Postfix did not say what it was asked for; the text says why."""


class Postconf:
    """The programs of one Postfix installation."""

    def __init__(self, directory: str, patience: float = PATIENCE) -> None:
        """Use the programs of *directory*; kill them after *patience* seconds."""
        self._directory = directory
        self._patience = patience

    @classmethod
    def find(cls, search: str) -> Postconf | None:
        """Return those on the path *search* or in the usual places, if any."""
        path = os.pathsep.join((search, *_PLACES))
        found = shutil.which("postconf", path=path)
        return cls(os.path.dirname(found)) if found else None

    def services(self) -> str:
        """Return what ``postconf -M`` says.

        Raises:
            PostfixUnseen: It says nothing.
        """
        return self._run("postconf", "-M")

    def settings(self, names: Sequence[str]) -> dict[str, str]:
        """Return the values of main.cf, ``$name`` filled in; unknown names are absent.

        Raises:
            PostfixUnseen: Nothing was said.
        """
        lines = self._run("postconf", "-x", *names).splitlines()
        pairs = (line.partition("=") for line in lines)
        return {name.strip(): value.strip() for name, _, value in pairs}

    def raw(self, name: str) -> str:
        """Return a value as it is written.

        Raises:
            PostfixUnseen: It is not said.
        """
        return self._run("postconf", "-h", name).strip()

    def look_up(self, key: str, table: str) -> str | None:
        """Return what *table* (``type:name``) has for *key*, None when nothing.

        Raises:
            PostfixUnseen: The table cannot be asked.
        """
        return self._run("postmap", "-q", key, table, absent=True).strip() or None

    def _run(self, program: str, *argv: str, absent: bool = False) -> str:
        try:
            process = subprocess.Popen(  # noqa: S603 - no shell, our own words
                [os.path.join(self._directory, program), *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # So that whatever it starts ends with it.
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            raise PostfixUnseen(f"{program}: {error.strerror}") from error
        with process:
            try:
                out, err = _output(process, program, self._patience)
            except BaseException:
                # Not waited for yet: the number is still its own.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        words = printable(err.strip())
        if process.returncode == 0 or (
            absent and process.returncode == _NOT_FOUND and not words
        ):
            return out.decode("utf-8", "replace")
        raise PostfixUnseen(
            words or f"{program} ended with status {process.returncode}"
        )


def _output(
    process: subprocess.Popen[bytes], program: str, patience: float
) -> tuple[bytes, bytes]:
    """Return all that *process* writes to stdout and stderr, and wait for its end.

    Raises:
        PostfixUnseen: It took too long, or said too much.
    """
    end = time.monotonic() + patience
    silent = PostfixUnseen(f"{program} did not answer within {patience:g} s")
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
            if sum(map(len, said.values())) > MAX_OUTPUT:
                raise PostfixUnseen(f"{program} says more than {MAX_OUTPUT} bytes")
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise silent from error
    return said[process.stdout], said[process.stderr]
