"""A set-up or an undo that stops at any change that it makes, and what can be done then.

A change is a system call that changes a file (`Disk.act`), or a program of the mail server
that edits one. At each of them, one after the other, the process dies before it, in the
midst of it or after it, or the change fails. Afterwards the state has a name, and
``--undo`` restores all as it was: directly, or after the set-up was given once more.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mxpolicy.check.programs import Ended
from mxpolicy.errors import MxPolicyError
from mxpolicy.setup.disk import NEW, Disk, SetupError
from mxpolicy.setup.exim import Exim
from mxpolicy.setup.kept import Stage, load
from mxpolicy.setup.mail_server import MailServer
from mxpolicy.setup.postfix import Postfix
from mxpolicy.setup.steps import Asked
from tests.setup.programs import Copy, sample
from tests.setup.test_exim import SOME, Programs, etc

SEVERAL = Asked(domains=("example.com",), fallback=True, policy=True)

Contents = dict[str, tuple[bytes, int, dict[str, bytes]]]


class Way(Enum):
    """How a change ends; the process dies but for the last two."""

    BEFORE = "killed before it"
    HALF = "killed in the midst of a write"
    AFTER = "killed after it"
    FAILS = "it fails once"
    FULL = "it and all that follow fail"


class Stopping(Disk):
    """Counts changes, and stops at one of them."""

    def __init__(self, at: int, way: Way) -> None:
        self.left = at
        self._way = way

    def act(self, call: Callable[..., Any], *arguments: object) -> Any:
        if self._way is Way.HALF and call is not os.write:
            return call(*arguments)
        return self.change(call, *arguments)

    def change(self, call: Callable[..., Any], *arguments: object, **how: Any) -> Any:
        self.left -= 1
        is_here = self.left == 0 or (self.left < 0 and self._way is Way.FULL)
        if not is_here:
            return call(*arguments, **how)
        if self._way is Way.HALF:
            descriptor, data = arguments
            assert isinstance(data, memoryview)
            os.write(int(str(descriptor)), data[: len(data) // 2])
        if self._way is Way.AFTER:
            call(*arguments, **how)
        if self._way in {Way.FAILS, Way.FULL}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.kill(os.getpid(), signal.SIGKILL)

    def run(self, runs: Callable[..., Ended]) -> Callable[..., Ended]:
        """Return *runs*, which stops at a command that edits."""

        def call(*argv: str, **how: Any) -> Ended:
            if "inherited" not in how or self._way is Way.HALF:
                return runs(*argv, **how)
            try:
                ended = self.change(runs, *argv, **how)
                assert isinstance(ended, Ended)
            except OSError as error:
                return Ended(1, "", f"{argv[0]}: fatal: {error.strerror}")
            return ended

        return call


class Kind(NamedTuple):
    """A mail server that is set up, and what with."""

    make: Callable[[Path], Path]
    server: Callable[[Path, Disk, Callable[[Callable[..., Ended]], Any]], MailServer]
    asked: Asked


def _postfix(name: str) -> Kind:
    def server(directory: Path, disk: Disk, wrap: Callable[..., Any]) -> MailServer:
        return Postfix(wrap(Copy(directory)), disk)

    def make(tmp_path: Path) -> Path:
        directory = sample(name, tmp_path / "etc")
        (directory / "main.cf").chmod(0o640)
        os.setxattr(directory / "main.cf", "user.mine", b"kept")
        return directory

    return Kind(make, server, SEVERAL)


def _exim() -> Kind:
    def server(directory: Path, disk: Disk, wrap: Callable[..., Any]) -> MailServer:
        return Exim(str(directory), wrap(Programs()), disk)

    return Kind(etc, server, SOME)


KINDS = {"postfix": _postfix("mailcow"), "exim": _exim()}


def contents(directory: Path) -> Contents:
    """Return {name: (what is in it, mode, extended attributes)}."""
    return {
        str(one.relative_to(directory)): (
            one.read_bytes(),
            one.stat().st_mode,
            {name: os.getxattr(one, name) for name in os.listxattr(one)},
        )
        for one in directory.rglob("*")
        if one.is_file()
    }


def set_up(server: MailServer, asked: Asked) -> None:
    with server.alone():
        what = server.plan(asked)
        assert what.refusals == ()
        if what.steps or server.stage is Stage.UNFINISHED:
            server.apply(asked, what, print)


def take_back(server: MailServer) -> None:
    with server.alone():
        if (what := server.undoing()) is not None:
            assert what.refusals == ()
            assert server.undo(what, print) == []


def stopped_at(
    kind: Kind, directory: Path, work: Callable[[MailServer], None], way: Way, at: int
) -> bool:
    """Do *work* in a process of its own; return whether it came as far as to stop."""
    child = os.fork()
    if child == 0:
        disk = Stopping(at, way)
        try:
            work(kind.server(directory, disk, disk.run))
        except (MxPolicyError, OSError):
            pass
        except BaseException:
            os._exit(3)
        os._exit(0 if disk.left > 0 else 1)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in {0, 1, -signal.SIGKILL}, (way, at)
    return ended != 0


def stops(
    kind: Kind, directory: Path, work: Callable[[MailServer], None], ways: list[Way]
) -> Iterator[tuple[Way, int]]:
    """Yield after *work* was stopped at each of its changes, in each of *ways*."""
    begun = directory.with_name("begun")
    shutil.copytree(directory, begun)
    for way in ways:
        for at in range(1, 200):
            if at > 1:
                shutil.rmtree(directory)
                shutil.copytree(begun, directory)
            if not stopped_at(kind, directory, work, way, at):
                assert at > 4 or way is Way.HALF, way
                break
            yield way, at
        else:
            raise AssertionError("never came to its end")
        shutil.rmtree(directory)
        shutil.copytree(begun, directory)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("work", ["apply", "undo"])
def test_stop_at_each_change(work: str, name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    directory = kind.make(tmp_path)
    before = contents(directory)

    def server() -> MailServer:
        return kind.server(directory, Disk(), lambda run: run)

    set_up(server(), kind.asked)
    after = contents(directory)
    if work == "apply":
        take_back(server())
        assert contents(directory) == before

    def do(one: MailServer) -> None:
        set_up(one, kind.asked) if work == "apply" else take_back(one)

    stages = set()
    for way, at in stops(kind, directory, do, [*Way]):
        where = f"{way.value} ({at})"
        found = server().stage
        stages.add(found)
        is_kept = load(server().kept_path) is not None
        if found is Stage.NOTHING_KEPT:
            # But for what the next run removes.
            left = contents(directory)
            assert {n: left[n] for n in left if not n.endswith(NEW)} == before, where
        if found is Stage.SET_UP and work == "apply":
            assert unkept(contents(directory)) == unkept(after), where
        assert is_kept == (found is not Stage.NOTHING_KEPT), where
        if at % 2:
            set_up(server(), kind.asked)
            assert unkept(contents(directory)) == unkept(after), where
            assert server().stage is Stage.SET_UP, where
        take_back(server())
        assert contents(directory) == before, where
        assert server().stage is Stage.NOTHING_KEPT, where
    middle = Stage.UNFINISHED if work == "apply" else Stage.HALF_UNDONE
    assert stages == {Stage.NOTHING_KEPT, middle, Stage.SET_UP}


def unkept(found: Contents) -> Contents:
    """Return *found* without the kept file and what a killed run left half written."""
    return {
        name: found[name]
        for name in found
        if not name.endswith(("mxpolicy-setup.json", NEW))
    }


def test_program_that_outlives_us_keeps_others_out(tmp_path: Path) -> None:
    held: list[int] = []

    def runs(*argv: str, inherited: tuple[int, ...] = (), **how: object) -> Ended:
        # As a child does that goes on when we are killed.
        held.extend(map(os.dup, inherited))
        return Programs()(*argv)

    exim = Exim(str(etc(tmp_path)), runs)
    set_up(exim, SOME)
    assert held
    with pytest.raises(SetupError, match="another set-up"):
        take_back(exim)
    while held:
        os.close(held.pop())
    take_back(exim)
    assert exim.stage is Stage.NOTHING_KEPT
    while held:
        os.close(held.pop())
