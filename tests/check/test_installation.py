"""What keeps an account from running our program, on a tree of real files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mxpolicy.check.access import Account, objection, stop
from mxpolicy.check.installation import obstacle

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER = Account("other", 54321, frozenset((54321,)))


@pytest.fixture
def top() -> Iterator[Path]:
    """An installation that every user may use."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        package = directory / "venv/lib/python3.11/site-packages/mxpolicy"
        (package / "net").mkdir(parents=True)
        for name in ("__init__.py", "handover.pl", "net/__init__.py"):
            (package / name).touch()
        (directory / "home/bin").mkdir(parents=True)
        (directory / "home/bin/python3.11").touch()
        binaries = directory / "venv/bin"
        binaries.mkdir()
        (directory / "venv/pyvenv.cfg").touch()
        (binaries / "mxpolicy").touch()
        (binaries / "python3").symlink_to("python3.11")
        (binaries / "python3.11").symlink_to(directory / "home/bin/python3.11")
        for one in (directory, *directory.rglob("*")):
            if not one.is_symlink():
                is_open = one.is_dir() or "bin" in one.parts
                one.chmod(0o755 if is_open else 0o644)
        yield directory


def test_what_everybody_may_use_has_no_obstacle(top: Path) -> None:
    assert obstacle(OTHER, f"{top}/venv/bin/mxpolicy") == ("", "")


def test_python_in_a_closed_home_is_found(top: Path) -> None:
    (top / "home").chmod(0o700)
    why, mend = obstacle(OTHER, f"{top}/venv/bin/mxpolicy")
    assert why == f"its Python: other may not enter {top}/home"
    assert mend.startswith("/usr/bin/python3 -m venv --clear /opt/mxpolicy && ")


@pytest.mark.parametrize(
    ("closed", "mode", "why"),
    [
        ("", 0o700, "may not enter {}"),
        ("lib/python3.11/site-packages/mxpolicy", 0o700, "has no permission for {}"),
        ("lib/python3.11/site-packages", 0o700, "has no permission for {}"),
        ("lib/python3.11/site-packages/mxpolicy/net", 0o700, "no permission for {}"),
        ("lib/python3.11/site-packages/mxpolicy/net", 0o711, "no permission for {}"),
        (
            "lib/python3.11/site-packages/mxpolicy/net/__init__.py",
            0o600,
            "has no permission for {}",
        ),
        (
            "lib/python3.11/site-packages/mxpolicy/handover.pl",
            0o600,
            "has no permission for {}",
        ),
    ],
)
def test_part_that_is_closed_is_named_and_its_mend_opens_it(
    top: Path, closed: str, mode: int, why: str
) -> None:
    path = top / "venv" / closed
    path.chmod(mode)
    said = obstacle(OTHER, f"{top}/venv/bin/mxpolicy")
    assert said.why.endswith(why.format(path))
    assert said.mend == f"chmod -R a+rX {top}/venv"
    assert os.system(said.mend) == 0
    assert obstacle(OTHER, f"{top}/venv/bin/mxpolicy") == ("", "")


def test_python_that_is_gone_is_found(top: Path) -> None:
    (top / "home/bin/python3.11").unlink()
    why, mend = obstacle(OTHER, f"{top}/venv/bin/mxpolicy")
    assert "its Python: " in why
    assert "No such file or directory" in why
    assert mend == ""


def test_directory_of_a_link_is_entered_too(top: Path) -> None:
    (top / "closed").mkdir(mode=0o700)
    (top / "closed/link").symlink_to(top / "venv")
    (top / "link").symlink_to("closed/link")
    assert objection(OTHER, f"{top}/link/bin", 4) == (
        f"other may not enter {top}/closed"
    )
    found = stop(OTHER, f"{top}/link/../home", 4)
    assert found is not None
    assert found.at == f"{top}/closed"


def test_link_to_itself_ends(top: Path) -> None:
    (top / "loop").symlink_to("loop")
    assert "symbolic links" in objection(OTHER, f"{top}/loop", 4)


def test_groups_open_what_is_theirs(top: Path) -> None:
    (top / "venv").chmod(0o750)
    mine = Account("mine", 54321, frozenset(((top / "venv").stat().st_gid,)))
    assert objection(mine, f"{top}/venv/bin", 5) == ""
    assert objection(OTHER, f"{top}/venv/bin", 5) == f"other may not enter {top}/venv"
