"""mxpolicy as a user has it: the wheel, in an environment of the distribution's Python.

The tests run the checkout with whatever Python the developer has. A Python that was
compiled without the distribution's optimizations takes up to twice the time to start, and
a checkout has its byte code only by chance. So measurements run this instead. It is made
anew, under `.lab`, when the sources change; pip fetches what mxpolicy imports.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.lab.packages import CHECKOUT, LAB_DIRECTORY, LabUnavailable, alone

DISTRIBUTION = Path("/usr/bin/python3")
OLDEST = (3, 11)

_VERSION = "import sys, platform as p; print(*sys.version_info[:2], p.python_version())"


def installation() -> Path:
    """Return the virtual environment, made where it is not there.

    Raises LabUnavailable where pip could not fill it.
    """
    return _environment("installed", [f"{CHECKOUT}[fast]"], _sources())


def peer(*packages: str) -> Path:
    """Return a virtual environment with other programs, to measure beside mxpolicy.

    Raises LabUnavailable where pip could not fill it.
    """
    return _environment(f"peer-{packages[0]}", packages, " ".join(packages))


def _environment(name: str, packages: Sequence[str], made_of: str) -> Path:
    python = base_python()
    home = LAB_DIRECTORY / name
    stamp, wanted = home / "made-of", f"{python} {version(python)} {made_of}"
    with alone():
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            _run(str(python), "-m", "venv", "--without-pip", str(home))
            _run(*_installer(str(home / "bin" / "python3")), *packages)
            stamp.write_text(wanted)
    return home


def _installer(python: str) -> list[str]:
    """Return the command that installs for *python*: `.venv` has pip, or uv has made it."""
    if find_spec("pip") is None and (uv := shutil.which("uv")):
        return [uv, "pip", "install", "-q", "--python", python]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    return [*pip, "--disable-pip-version-check", "--root-user-action=ignore"]


def base_python() -> Path:
    """Return the distribution's Python; where that is too old, the one that runs this."""
    if DISTRIBUTION.exists() and _numbers(DISTRIBUTION) >= OLDEST:
        return DISTRIBUTION
    return Path(sys.base_prefix) / "bin" / "python3"


def version(python: Path) -> str:
    """Return the version of a Python as text, "3.11.2"."""
    return _asked(python).split()[2]


def _numbers(python: Path) -> tuple[int, ...]:
    return tuple(map(int, _asked(python).split()[:2]))


def _asked(python: Path) -> str:
    done = subprocess.run(
        [python, "-IS", "-c", _VERSION], capture_output=True, text=True, check=True
    )
    return done.stdout


def _sources() -> str:
    digest = hashlib.sha256((CHECKOUT / "pyproject.toml").read_bytes())
    for path in sorted((CHECKOUT / "mxpolicy").rglob("*")):
        if path.suffix in {".py", ".sh"}:
            digest.update(os.fsencode(path) + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _run(*argv: str) -> None:
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise LabUnavailable(f"{argv[0]}: {words[-1] if words else done.returncode}")
