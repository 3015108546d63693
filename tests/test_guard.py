"""The guard over the whole suite sees every process, and only what it must."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import guard

STATE = "/var/lib/mxpolicy/state.sqlite3"


def run(program: str, *wrap: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run *program* with an empty environment, or with *more* in it."""
    command = [*wrap, sys.executable, "-Ic", program]
    return subprocess.run(
        command, env=more, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(f"open({STATE!r})", id="read"),
        pytest.param(f"open({STATE!r}, 'a')", id="write"),
        pytest.param(f"open({STATE.encode()!r})", id="bytes"),
        pytest.param(
            f"import os; os.chdir('/var'); open({STATE[5:]!r})", id="relative"
        ),
        pytest.param(f"import os; os.path.exists({STATE!r})", id="exists"),
        pytest.param(f"import os; os.access({STATE!r}, os.R_OK)", id="access"),
        pytest.param(f"import pathlib; pathlib.Path({STATE!r}).stat()", id="pathlib"),
        pytest.param("import os; os.listdir('/etc/mxpolicy')", id="list"),
        pytest.param("import os; os.mkdir('/run/mxpolicy/')", id="mkdir"),
        pytest.param(f"import sqlite3; sqlite3.connect({STATE!r})", id="database"),
        pytest.param(
            f"import sqlite3; sqlite3.connect('file:{STATE}?mode=ro', uri=True)",
            id="database_to_read",
        ),
        pytest.param(
            "import socket as s; s.socket(s.AF_UNIX, s.SOCK_DGRAM).connect('/dev/log')",
            id="syslog",
        ),
        pytest.param(
            "import socket as s; s.socket(s.AF_UNIX).connect('/run/mxpolicy/pipe')",
            id="daemon",
        ),
        pytest.param(
            "from mxpolicy.config import load\ntry: load(None, {})\n"
            "except Exception: pass",
            id="our_own_code",
        ),
    ],
)
def test_what_belongs_to_the_machine_is_refused_in_a_process_without_environment(
    program: str,
) -> None:
    ended = run(program)
    [report] = guard.reports()
    assert "Trespass" in ended.stderr
    assert any(report.startswith(one) for one in guard.FORBIDDEN)
    assert repr(program) in report


def test_there_is_no_way_to_the_machine_s_syslog() -> None:
    assert "ImportError" not in run("import logging.handlers").stderr
    ended = run("import syslog; syslog.syslog('x')")
    assert "ModuleNotFoundError: import of syslog halted" in ended.stderr


def test_trespass_in_the_session_itself_is_refused() -> None:
    with pytest.raises(guard.Trespass):
        Path(STATE).exists()
    [report] = guard.reports()
    assert report.startswith(f"{STATE} (os.stat) by ")


def test_report_names_the_test_where_the_process_knows_it() -> None:
    run(f"open({STATE!r})", **os.environ)
    [report] = guard.reports()
    assert "test_report_names_the_test_where_the_process_knows_it" in report


def test_trespass_of_a_process_that_nobody_waits_for_is_reported() -> None:
    orphan = f"import os; os.fork() and os._exit(0); os.setsid(); open({STATE!r})"
    run(orphan)
    until = time.monotonic() + 30
    while not (found := guard.reports()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert repr(orphan) in found[0]


@pytest.mark.parametrize(
    "path", ["/var/lib/mxpolicyd", "/etc/mxpolicy.yaml", "/var/lib", "/dev/logs"]
)
def test_neighbours_are_not_refused(path: str) -> None:
    assert run(f"import os; print(os.path.exists({path!r}))").stderr == ""


def test_mount_namespace_of_its_own_has_directories_of_its_own() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    ended = run(f"import os; os.path.exists({STATE!r})", "/usr/bin/unshare", "--mount")
    assert (ended.returncode, ended.stderr) == (0, "")


PROBE = f"""
import os
def test_it():
    pid = os.fork()
    if not pid:
        try: open({STATE!r})
        finally: os._exit(0)
    os.waitpid(pid, 0)
"""


def test_test_fails_for_what_its_processes_did(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_it.py").write_text(PROBE)
    here = Path(__file__).parent
    (tmp_path / "tests/conftest.py").write_text((here / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(here.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert f"{STATE} (open) by " in ended.stdout
    assert "ERROR tests/test_it.py::test_it" in ended.stdout


def test_environment_of_who_runs_the_tests_leads_nowhere() -> None:
    program = (
        "import os; from tests import guard\n"
        "guard.guarded(lambda: print(dict(os.environ)) or 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env={"MXPOLICY_CONFIG": "/srv/mx.yaml", "STATE_DIRECTORY": "/srv/mx", "A": "b"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "'A': 'b'" in ended.stdout
    assert "/srv/mx" not in ended.stdout


def test_program_that_is_guarded_fails_for_its_processes() -> None:
    program = f"""
import subprocess, sys
from tests import guard
def main():
    subprocess.run([sys.executable, "-c", "open({STATE!r})"], env={{}}, stderr=-3)
    return 0
sys.exit(guard.guarded(main))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"trespass: {STATE} (open) by ")
