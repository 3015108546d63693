"""``python -m tests.simulation.proof [WORLDS [NAME...]]``: the referee's own test.

Takes back one mend after the other, in a copy of mxpolicy, and tells in how many worlds
the referee finds the law broken. A mend that is found in none is a hole in the worlds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import mxpolicy
from tests.simulation.mends import MENDS
from tests.simulation.referee import judge, world_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.simulation.mends import Mend

__all__ = ["MendGone", "faulty_without"]

HOUSE = Path(mxpolicy.__file__).parent
TESTS = Path(__file__).parents[1]
WORLDS = 1000
PROCESSORS = 2


class MendGone(Exception):
    """The text of a mend is not in the product any more: its edit is to be renewed."""


def take_back(name: str, mend: Mend, house: Path) -> None:
    """Take *mend* back in *house*, a copy of mxpolicy.

    Raises:
        MendGone: The text is not there, or more than once.
    """
    for edit in mend.edits:
        path = house / edit.file
        text = path.read_text() if path.exists() else ""
        if text.count(edit.old) != 1:
            raise MendGone(
                f"{name}: {edit.file} has {text.count(edit.old)} times {edit.old!r}"
            )
        path.write_text(text.replace(edit.old, edit.new))


def faulty_without(name: str, seeds: Iterable[int]) -> list[int]:
    """Return the seeds whose worlds break the law when the mend *name* is taken back.

    Raises:
        MendGone: It cannot be taken back.
    """
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        shutil.copytree(
            HOUSE, top / "mxpolicy", ignore=shutil.ignore_patterns("__pycache__")
        )
        (top / "tests").symlink_to(TESTS)
        take_back(name, MENDS[name], top / "mxpolicy")
        played = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.simulation.proof",
                "--play",
                *map(str, seeds),
            ],
            cwd=top,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return [int(word) for word in played.stdout.split()]


def play(seeds: Iterable[int]) -> None:
    """Print the seeds whose worlds break the law, in the house as it is."""
    for seed in seeds:
        if judge(world_of(seed)):
            print(seed, flush=True)


def main(worlds: int, names: list[str]) -> int:
    """Take back all of *names*; return how many are not seen."""
    missed = 0

    def look(name: str) -> list[int] | MendGone:
        try:
            return faulty_without(name, range(1, worlds + 1))
        except MendGone as gone:
            return gone

    with ThreadPoolExecutor(PROCESSORS) as pool:
        for name, found in zip(names, pool.map(look, names), strict=True):
            missed += not isinstance(found, list) or not found
            print(f"{MENDS[name].title}")
            if isinstance(found, list):
                first = " ".join(map(str, found[:8]))
                print(f"  {name}: {len(found)} of {worlds} worlds ({first})")
            else:
                print(f"  CANNOT BE TAKEN BACK: {found}")
            sys.stdout.flush()
    print(f"{len(names) - missed} of {len(names)} are seen")
    return missed


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--play"]:
        play(map(int, arguments[1:]))
        sys.exit()
    count = int(arguments[0]) if arguments else WORLDS
    sys.exit(1 if main(count, arguments[1:] or list(MENDS)) else 0)
