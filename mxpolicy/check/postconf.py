"""Asks the Postfix of this machine what its configuration is, by its own programs.

A program that does not answer, or never stops writing, is killed. Where a program fails,
its own words are the error.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.errors import MxPolicyError
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

__all__ = ["Ended", "Postconf", "PostfixUnseen", "directory_of", "run"]

# postconf reads two files; postmap may ask a database over the network.
PATIENCE = 10.0

# Bytes of one call. postconf says 30 KiB about everything; a table's value is a line.
MAX_OUTPUT = 4 * 1024 * 1024

# Not always on the PATH of users other than root.
_PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/lib/postfix/sbin")

_NAME = re.compile(r"\$(?:[{(](\w+)[)}]|(\w+))")


class PostfixUnseen(MxPolicyError):
    """A program of Postfix did not say what it was asked for; the text says why."""


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
        PostfixUnseen: It cannot be started, took too long or said too much.
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
        raise PostfixUnseen(f"{program}: {error.strerror}") from error
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


class Postconf:
    """Asks one Postfix what its configuration is.

    Every method raises `PostfixUnseen` where a program does not say.
    """

    def __init__(self, run: Callable[..., Ended]) -> None:
        """Ask by *run*, which takes the words of a command line."""
        self._run = run

    @classmethod
    def find(cls, search: str) -> Postconf | None:
        """Return the one on the path *search* or in the usual places, if any."""
        directory = directory_of("postconf", search)
        return cls(partial(run, directory)) if directory else None

    def services(self) -> str:
        """Return what ``postconf -M`` says."""
        return self._answer("postconf", "-M")

    def settings(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the values of main.cf, ``$name`` filled in; unknown ones are empty."""
        lines = self._answer("postconf", "-x", *names).splitlines()
        pairs = (line.partition("=") for line in lines)
        found = {name.strip(): value.strip() for name, _, value in pairs}
        return defaultdict(str, found)

    def filled(self, text: str) -> str:
        """Return *text*, of an ``-o`` in master.cf, with each ``$name`` of main.cf filled in."""
        names = {one for found in _NAME.finditer(text) if (one := found[1] or found[2])}
        if not names:
            return text
        values = self.settings(sorted(names))
        return _NAME.sub(lambda found: values[found[1] or found[2]], text)

    def raw(self, name: str) -> str:
        """Return a value as it is written."""
        return self._answer("postconf", "-h", name).strip()

    def filtered(self, key: str, tables: Sequence[str]) -> str:
        """Return what the first of *tables* (``type:name``) that has *key* says.

        Returns:
            Its value; empty when none has it.
        """
        answers = (self._answer("postmap", "-q", key, table) for table in tables)
        return next(filter(None, map(str.strip, answers)), "")

    def _answer(self, program: str, *argv: str) -> str:
        ended = self._run(program, *argv)
        # So postmap(1) ends when a table does not have the key.
        # A warning ("overriding earlier entry") is the postmaster's own affair.
        is_absent = program == "postmap" and ended.status == 1 and not _trouble(ended)
        if ended.status == 0 or is_absent:
            return ended.out
        silent = f"{program} ended with status {ended.status}"
        raise PostfixUnseen(ended.err or silent)


def _trouble(ended: Ended) -> str:
    """Return what *ended* wrote to stderr beside warnings."""
    lines = re.split(r"\s*[?\n](?=post\w+: )", ended.err)
    return "\n".join(one for one in lines if ": warning: " not in one)


def _output(
    process: subprocess.Popen[bytes], program: str, patience: float, most: int
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
            if sum(map(len, said.values())) > most:
                raise PostfixUnseen(f"{program} says more than {most} bytes")
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise silent from error
    return said[process.stdout], said[process.stderr]
