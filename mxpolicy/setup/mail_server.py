"""A mail server that is set up, and that can be taken back: what holds for each of them.

What is kept, and what undo promises
    The kept file (`mxpolicy.setup.kept`) has every file that set-up changes as it was
    before the first set-up, with its labels, and each step. Undo gives back a file that
    nothing else has changed byte for byte, with owner, mode, access control list,
    SELinux label and ``user.`` attributes. From another one it takes our own steps only.
    Not kept: times, hard links, file flags (chattr(1)), and IMA's and EVM's signatures.
    Between ``postconf -e`` and the next line of `apply` the new file is root's and 0644.

The order of what is written
    1. The kept file, before anything is changed.
    2. Files of our own, then what names them: a table or a transport first, services of
       master.cf, main.cf or a router last.
    3. The mail server reads it.
    4. The kept file once more, with what each file has become.

    Undo goes the other way, and removes the kept file last. Each of these changes is of one
    whole file: written beside it, synced, renamed, and its directory synced
    (`mxpolicy.setup.disk`; ``postconf -e`` renames, too, and set-up syncs what it made). So
    a run that is killed anywhere, also by a power failure, leaves each file old or new.

The states that a run can leave (`Stage`), and what ends each
    nothing kept    no kept file: the configuration is as without us.
    unfinished      the kept file has a file without ``after``. ``--apply`` of the same
                    set-up finishes it, ``--undo --apply`` takes it back.
    set up          each file is as set-up left it, or was changed by others since.
    half undone     a file is again what it was before. ``--undo --apply`` finishes it,
                    ``--apply`` sets up again.

    tests/setup/test_stops.py stops a run at each change, and shows all of this.

One at a time
    The lock is on the directory of the kept file. A program that edits for us inherits
    it: where we are killed it may live on, and no other set-up begins before it ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from mxpolicy.setup.disk import Disk, SetupError, labels_of, read_text
from mxpolicy.setup.kept import Kept, Stage, digest, load, save, stage
from mxpolicy.setup.steps import WHOLE
from mxpolicy.setup.undo import aside_of, kept_with, taken_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mxpolicy.check.programs import Ended
    from mxpolicy.setup.steps import Asked, Command, Plan, Step
    from mxpolicy.setup.undo import Undone

    Say = Callable[[str], object]

__all__ = ["KEPT", "MailServer", "Undoing"]

# Beside main.cf, or in the directory of Debian's Exim.
KEPT = "mxpolicy-setup.json"


class Undoing(NamedTuple):
    """What taking back means.

    Attributes:
        kept: By set-up.
        there: What each file is now, by its path.
        undone: What they become.
        refusals: Why nothing is done; empty when all is well.
    """

    kept: Kept
    there: dict[str, str | None]
    undone: Undone
    refusals: tuple[str, ...]


class MailServer(ABC):
    """One mail server, by its programs and the directory of its configuration.

    Attributes:
        directory: Of its configuration.
        lost: Labels that the system did not let us give back, a sentence each.
    """

    name: ClassVar[str]

    def __init__(self, directory: str, run: Callable[..., Ended], disk: Disk) -> None:
        self.directory = directory
        self.lost: list[str] = []
        self._run = run
        self._disk = disk
        self._lock: tuple[int, ...] = ()

    @abstractmethod
    def plan(self, asked: Asked) -> Plan:
        """Return what would be done for *asked*."""

    @abstractmethod
    def commands(self, what: Plan) -> list[Command]:
        """Return the commands that carry out *what*; our own files are written before."""

    @abstractmethod
    def apply(self, asked: Asked, what: Plan, say: Say) -> None:
        """Carry out *what*, which is the plan for *asked*, and what is unfinished.

        Args:
            asked: What the postmaster asks for.
            what: From `plan`.
            say: Is told what is to be known besides.

        Raises:
            MxPolicyError: A program failed; what is done by then can be undone.
            OSError: A file could not be written; likewise.
        """

    @abstractmethod
    def in_the_way(self, kept: Kept, undone: Undone) -> list[str]:
        """Return why set-up cannot be taken back, a sentence each."""

    @abstractmethod
    def undo(self, what: Undoing, say: Say) -> list[str]:
        """Carry out *what*.

        Args:
            what: From `undoing`.
            say: Is told what is waited for.

        Returns:
            What was seen afterwards: messages that came in meanwhile.

        Raises:
            MxPolicyError: It is half undone, and can be repeated.
            OSError: Likewise.
        """

    def left(self) -> list[str]:
        """Return what was put in by hand and is there still, a sentence each."""
        return []

    @property
    def kept_path(self) -> str:
        """Where the kept file is."""
        return f"{self.directory}/{KEPT}"

    @property
    def stage(self) -> Stage:
        """How far set-up is."""
        kept = load(self.kept_path)
        return stage(kept, _texts(kept.files if kept else ()))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second set-up out; see the module and `Disk.alone`."""
        with self._disk.alone(self.directory) as lock:
            self._lock = (lock,)
            try:
                yield
            finally:
                self._lock = ()

    def undoing(self) -> Undoing | None:
        """Return what taking back would do, None where nothing is kept."""
        kept = load(self.kept_path)
        if kept is None:
            return None
        there = _texts(kept.files)
        undone = taken_back(kept, there)
        return Undoing(kept, there, undone, tuple(self.in_the_way(kept, undone)))

    def ask(self, *command: str, **how: object) -> str:
        """Return what *command* prints.

        Raises:
            SetupError: It ends otherwise than well.
            ProgramError: It cannot be run.
        """
        ended = self._run(*command, **how)
        if ended.status:
            why = ended.err or f"ended with status {ended.status}"
            raise SetupError(f"{' '.join(command[:2])}: {why}")
        return ended.out

    def edit(self, *command: str) -> None:
        """Have *command* change files; it holds our lock as long as it runs."""
        self.ask(*command, inherited=self._lock)

    def begin(self, what: Plan) -> Kept:
        """Keep what is there before *what* is carried out; return it.

        Args:
            what: Its files are absolute paths.
        """
        earlier = load(self.kept_path)
        files = [one.file for one in what.steps]
        there = _texts([*files, *(earlier.files if earlier else ())])
        labels = {path: labels_of(path) for path in there}
        kept = kept_with(earlier, what, self.name, there, labels)
        save(self.kept_path, kept, self._disk)
        return kept

    def write(self, steps: Iterable[Step]) -> None:
        """Write those files of *steps* that are our own."""
        for step in steps:
            if step.key == WHOLE:
                self._disk.replace(step.file, step.after)

    def give_back(self, kept: Kept) -> None:
        """Give all files their labels; an editor makes new files."""
        for path, one in kept.files.items():
            self._note(path, self._disk.give_back(path, one.labels))

    def end(self, kept: Kept) -> None:
        """Keep what each file has become."""
        files = {
            path: one._replace(after=digest(read_text(path)))
            for path, one in kept.files.items()
        }
        save(self.kept_path, kept._replace(files=files), self._disk)

    def restore(self, path: str, what: Undoing) -> None:
        """Take one file back."""
        text, one = what.undone.texts[path], what.kept.files[path]
        if path in what.undone.aside:
            self._disk.replace(aside_of(path), what.there[path])
        if text != what.there[path]:
            self._note(path, self._disk.replace(path, text))
        # A set-up that was killed may have left it as postconf -e makes it.
        if one.after is None:
            self._note(path, self._disk.give_back(path, one.labels))

    def forget(self) -> None:
        """Remove the kept file."""
        self._disk.replace(self.kept_path, None)

    def _note(self, path: str, lost: list[str]) -> None:
        self.lost += [
            f"{path} had {one}, which could not be given back" for one in lost
        ]


def _texts(paths: Iterable[str]) -> dict[str, str | None]:
    return {path: read_text(path) for path in paths}
