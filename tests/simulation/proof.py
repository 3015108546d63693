"""``python -m tests.simulation.proof``: the referee's own test.

Takes back one mend after the other, in a copy of mxpolicy, and tells in how many worlds
the referee finds the law broken. A mend that is found in none is a hole in the worlds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from argparse import SUPPRESS, ArgumentParser, Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mxpolicy
from tests.simulation.kept import KEPT
from tests.simulation.mends import MENDS
from tests.simulation.referee import WORLDS, judge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.simulation.mends import Mend

__all__ = ["HOUSE", "Found", "MendGone", "faulty_without", "take_back"]

HOUSE = Path(mxpolicy.__file__).parent
TESTS = Path(__file__).parents[1]
# What came of the last whole proof (`--worlds 700 --enough 2`, so a row ends at the second
# world that is found); the program writes it.
TABLE = Path(__file__).with_name("proof.txt")
PROCESSORS = 2
NOT_SEEN = "NOT SEEN"


class MendGone(Exception):
    """The text of a mend is not in the product any more: its edit is to be renewed."""


class Found(NamedTuple):
    """The worlds that break the law.

    Attributes:
        seeds: Theirs.
        worlds: How many were played.
        kept: Those of `tests.simulation.kept`, which were found by their seeds once.
    """

    seeds: list[int]
    worlds: int
    kept: list[str]


def take_back(name: str, mend: Mend, house: Path) -> None:
    """Take *mend* back in *house*, a copy of mxpolicy.

    Raises:
        MendGone: The text is not there, or more than once.
        SyntaxError: The edit makes no Python.
    """
    for edit in mend.edits:
        path = house / edit.file
        text = path.read_text() if path.exists() else ""
        if text.count(edit.old) != 1:
            raise MendGone(
                f"{name}: {edit.file} has {text.count(edit.old)} times {edit.old!r}"
            )
        path.write_text(text.replace(edit.old, edit.new))
        compile(path.read_text(), edit.file, "exec")


def faulty_without(name: str, seeds: Iterable[int], enough: int) -> Found:
    """Play the worlds of *seeds* with the mend *name* taken back.

    Args:
        name: Of `MENDS`.
        seeds: In their order.
        enough: How many that break the law are enough.

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
                *(sys.executable, "-m", "tests.simulation.proof", "--play"),
                *(f"--enough={enough}", f"--of={MENDS[name].kind}"),
                *map(str, seeds),
            ],
            cwd=top,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    *faulty, worlds = played.stdout.split()
    kept = [one for one in faulty if one in KEPT]
    return Found([int(one) for one in faulty if one not in KEPT], int(worlds), kept)


def play(kind: str, seeds: Iterable[int], enough: int) -> None:
    """Print the kept worlds and the seeds that break the law, and how many were played.

    The kept ones are not counted.
    """
    for name, world in KEPT.items():
        if judge(world):
            print(name)
    played = found = 0
    for seed in seeds:
        played += 1
        if judge(WORLDS[kind](seed)):
            print(seed)
            found += 1
        if found == enough:
            break
    print(played)


def main(names: list[str], worlds: int, enough: int) -> list[str]:
    """Take back all of *names*; return the table, which names those that are not seen."""

    def look(name: str) -> Found | MendGone:
        try:
            return faulty_without(name, range(1, worlds + 1), enough)
        except MendGone as gone:
            return gone

    table: list[str] = []
    with ThreadPoolExecutor(PROCESSORS) as pool:
        for name, found in zip(names, pool.map(look, names), strict=True):
            table.append(f"{name:20} {_told(found)}\n    {MENDS[name].title}\n")
            print(table[-1], end="", flush=True)
    return table


def _told(found: Found | MendGone) -> str:
    if isinstance(found, MendGone):
        return f"{NOT_SEEN}, cannot be taken back: {found}"
    seen = "" if found.seeds or found.kept else f"{NOT_SEEN}: "
    first = ", ".join(map(str, found.seeds[:3]))
    told = f"{seen}{len(found.seeds):3} of {found.worlds} worlds ({first})"
    return f"{told} and {len(found.kept)} kept ones" if found.kept else told


def _arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000, help="how many are played")
    parser.add_argument("--enough", type=int, default=10**9, help="faulty ones")
    parser.add_argument("--play", action="store_true", help=SUPPRESS)
    parser.add_argument("--of", choices=WORLDS, default="all", help=SUPPRESS)
    parser.add_argument("names", nargs="*", help="mends; all if none is given")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    if given.play:
        play(given.of, map(int, given.names), given.enough)
        sys.exit()
    table = main(given.names or list(MENDS), given.worlds, given.enough)
    if not given.names:
        TABLE.write_text("".join(table))
    sys.exit(any(NOT_SEEN in line for line in table))
