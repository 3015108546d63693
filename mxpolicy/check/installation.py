"""Whether an account reaches what a program of ours is made of.

The program is a script (command.sh) that starts the Python beside it, which imports this
package and others. A mail server runs it as an account of its own, to which a home
directory is closed: there, a Python that root has installed for itself cannot be started.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import EXECUTE, READ, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mxpolicy.check.access import Account

__all__ = ["Obstacle", "obstacle"]

# pipe(8)'s and Exim's PATH for a command.
_SEARCH = "/usr/bin:/bin"

_NEEDED = ("mxpolicy", "dns", "yaml")


class Obstacle(NamedTuple):
    """What keeps an account from running a program.

    Attributes:
        why: A clause that names the first directory or file in the way.
        mend: A shell command; empty where there is no such line.
    """

    why: str = ""
    mend: str = ""


def obstacle(user: Account, program: str) -> Obstacle:
    """Return what keeps *user* from running *program*; empty when nothing does."""
    for path, wanted, what in _parts(program):
        if found := stop(user, path, wanted):
            why = f"{what}: {found.why}" if what else found.why
            return Obstacle(why, _mend(program, found.at))
    return Obstacle()


def _parts(program: str) -> Iterator[tuple[str, int, str]]:
    """Yield path, what is to be done with it, and what it is; the program first."""
    yield program, READ | EXECUTE, ""
    here = os.path.dirname(os.path.realpath(program))
    python = os.path.join(here, "python3")
    if not os.path.lexists(python):
        # As command.sh does, where pip has put it without an environment.
        python = shutil.which("python3", path=_SEARCH) or python
    yield python, READ | EXECUTE, "its Python"
    yield from _library(python)
    if not os.path.exists(python):
        return
    places = sorted(glob.glob(os.path.join(here, "../lib/python3*/*-packages")))
    for place in map(os.path.normpath, places):
        yield place, READ | EXECUTE, "its packages"
        for name in _NEEDED:
            package = os.path.join(place, name)
            if os.path.isdir(package):
                yield from _package(package)
    if here == os.path.realpath(os.path.join(sys.prefix, "bin")):
        # Also where it was installed to be edited (pip install -e).
        yield from _package(os.path.dirname(os.path.dirname(__file__)))


def _library(python: str) -> Iterator[tuple[str, int, str]]:
    real = os.path.realpath(python)
    name = os.path.basename(real)
    if re.fullmatch(r"python3\.\d+", name):
        library = os.path.join(os.path.dirname(real), "../lib", name, "os.py")
        if os.path.lexists(library):
            yield os.path.normpath(library), READ, "its Python"


def _package(top: str) -> Iterator[tuple[str, int, str]]:
    what = f"its package {os.path.basename(top)}"
    for directory, below, names in os.walk(top):
        below[:] = sorted(one for one in below if one != "__pycache__")
        yield directory, READ | EXECUTE, what
        for name in sorted(names):
            if name.endswith((".py", ".pl", ".so")):
                yield os.path.join(directory, name), READ, what


def _mend(program: str, at: str) -> str:
    """Return what opens *at*, or makes an installation in another place."""
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(program)))
    if not os.path.exists(at):
        return ""
    is_own = os.path.exists(os.path.join(prefix, "pyvenv.cfg"))
    if is_own and os.path.commonpath((prefix, at)) == prefix:
        return f"chmod -R a+rX {shlex.quote(prefix)}"
    if "-packages" in at:
        return f"chmod -R a+rX {shlex.quote(at)}"
    return (
        "/usr/bin/python3 -m venv --clear /opt/mxpolicy &&"
        " /opt/mxpolicy/bin/pip install ."
    )
