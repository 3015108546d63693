"""Processes of a Postfix that set-up waits for, and ports that are taken."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mxpolicy.check.programs import Ended
from mxpolicy.setup.disk import SetupError
from mxpolicy.setup.kept import Stage
from mxpolicy.setup.postfix import Postfix
from mxpolicy.setup.postfix_lines import FALLBACK_AT
from mxpolicy.setup.postfix_plan import plan
from mxpolicy.setup.postfix_processes import at_work, is_taken
from mxpolicy.setup.postfix_seen import see
from mxpolicy.setup.steps import Asked
from tests.setup.programs import Copy, sample


@contextmanager
def agent(service: str) -> Iterator[int]:
    """Run a process of ours with the arguments that master(8) gives for *service*."""
    argv = ["pipe", "-c", "read line", "sh", "-n", service, "-t", "unix", "flags=q"]
    with subprocess.Popen(argv, executable="/bin/sh", stdin=subprocess.PIPE) as process:
        # Until it runs, its arguments are ours.
        while b"flags=q" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass
        yield process.pid
        process.kill()


class Running(Copy):
    """A Postfix that runs, and what its files were each time it read them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.services: list[str] = []
        self.main: list[str] = []
        self.ends = False
        self._runs = True
        spool = directory.parent / "spool"
        (spool / "pid").mkdir(parents=True)
        (spool / "pid" / "master.pid").write_text(f"{os.getpid():>20}\n")
        self._spool = spool

    def _postfix(self, *argv: str) -> Ended:
        if argv == ("reload",):
            for name, seen in (("master.cf", self.services), ("main.cf", self.main)):
                text = (self._directory / name).read_text(errors="replace")
                seen.append(text)
            self._runs = not self.ends
            return Ended(0, "", "")
        return Ended(0 if self._runs else 1, "", "")

    def _value(self, name: str) -> str:
        known = {
            "queue_directory": str(self._spool),
            "process_id_directory": "pid",
        }
        return known.get(name) or super()._value(name)


def applied(run: Copy, asked: Asked) -> Postfix:
    postfix = Postfix(run, patience=0.0, pause=0.0)
    said: list[str] = []
    postfix.apply(asked, postfix.plan(asked), said.append)
    assert said == []
    return postfix


def test_processes_of_a_service(tmp_path: Path) -> None:
    pid_file = tmp_path / "master.pid"
    assert at_work(str(pid_file), {"mxpolicy"}) == []
    pid_file.write_text(f"{os.getpid()}\n")
    with agent("mxpolicy") as pid, agent("smtp"):
        assert at_work(str(pid_file), {"mxpolicy", "mxlmtp"}) == [pid]
        # Of another Postfix.
        pid_file.write_text("1\n")
        assert at_work(str(pid_file), {"mxpolicy"}) == []


def test_service_goes_when_its_deliveries_have_ended(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    master = (directory / "master.cf").read_text()
    main = (directory / "main.cf").read_text()
    postfix = applied(Running(directory), Asked(all_mail=True))
    what = postfix.undoing()
    assert what is not None
    said: list[str] = []
    with agent("mxpolicy") as pid, pytest.raises(SetupError) as raised:
        postfix.undo(what, said.append)
    assert f"1 deliveries by it are under way (process {pid})" in str(raised.value)
    assert len(said) == 1
    # Mail goes its old way already, and the service is there.
    assert (directory / "main.cf").read_text() == main
    assert (directory / "master.cf").read_text() != master
    what = postfix.undoing()
    assert what is not None
    assert postfix.undo(what) == []
    assert (directory / "master.cf").read_text() == master
    assert postfix.undoing() is None


def test_message_bound_meanwhile_keeps_the_service(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    run = Running(directory)
    postfix = applied(run, Asked(fallback=True))
    what = postfix.undoing()
    assert what is not None
    run.queue["AA"] = ("active", "mxpolicy:")
    with pytest.raises(SetupError, match=r"main.cf is taken back.*AA"):
        postfix.undo(what)
    assert "mxpolicy" in (directory / "master.cf").read_text()
    run.queue.clear()
    what = postfix.undoing()
    assert what is not None
    assert postfix.undo(what) == []
    assert "mxpolicy" not in (directory / "master.cf").read_text()


def test_service_is_there_before_main_cf_names_it(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    run = Running(directory)
    applied(run, Asked(all_mail=True))
    first, last = (
        ("mxpolicy" in one, "mxpolicy" in other)
        for one, other in zip(run.services, run.main, strict=True)
    )
    assert (first, last) == ((True, False), (True, True))


def test_postfix_that_ends_at_reload_is_told(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    run = Running(directory)
    run.ends = True
    postfix = Postfix(run, pause=0.0)
    asked = Asked(all_mail=True)
    with pytest.raises(SetupError, match=r"Postfix ended .* postfix start"):
        postfix.apply(asked, postfix.plan(asked))
    assert postfix.stage is Stage.UNFINISHED


def test_port_that_is_taken(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert is_taken("127.0.0.1", port)
    assert not is_taken("127.0.0.1", port)
    directory = sample("debian", tmp_path / "postfix")
    asked = Asked(fallback=True)
    seen = see(asked, str(directory), Copy(directory))._replace(is_taken=True)
    [refusal] = plan(asked, seen).refusals
    assert f"port {FALLBACK_AT[1]} of 127.0.0.1 is taken" in refusal
    assert plan(Asked(all_mail=True), seen).refusals == ()


@pytest.mark.parametrize("name", ["10026", "localhost:10026", "[::1]:10026"])
def test_port_of_another_service(name: str, tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    with (directory / "master.cf").open("a") as file:
        file.write(f"{name} inet n - n - - smtpd\n")
    asked = Asked(fallback=True)
    [refusal] = Postfix(Copy(directory)).plan(asked).refusals
    assert f"master.cf has {name}/inet" in refusal


def test_mode_that_the_postmaster_changed_stays(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    path = directory / "main.cf"
    run = Running(directory)
    postfix = applied(run, Asked(all_mail=True))
    path.chmod(0o600)
    applied(run, Asked(policy=True))
    assert path.stat().st_mode & 0o777 == 0o600
    what = postfix.undoing()
    assert what is not None
    assert postfix.undo(what) == []
    assert path.stat().st_mode & 0o777 == 0o600
