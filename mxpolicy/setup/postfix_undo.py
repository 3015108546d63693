"""A Postfix whose set-up is taken back: what that needs, and how it is done.

main.cf is taken back first, for it names the services and the table. A service goes when
nothing is bound to it any more and its deliveries have ended.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.postconf import Postconf
from mxpolicy.setup.cf_text import entries, find
from mxpolicy.setup.kept import (
    Kept,
    SetupError,
    give_back,
    load,
    read_text,
    replace,
)
from mxpolicy.setup.postfix_processes import at_work
from mxpolicy.setup.postfix_queue import waiting
from mxpolicy.setup.steps import MAIN, MASTER
from mxpolicy.setup.undo import aside_of, going, mentions, taken_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.check.postconf import Ended
    from mxpolicy.setup.undo import Undone

__all__ = ["KEPT", "RELOAD", "Command", "PostfixUndo", "Undoing"]

# Beside main.cf.
KEPT = "mxpolicy-setup.json"

# What is under way ends by then, mostly; a host that is silent may take 2900 s.
PATIENCE = 60.0

# master(8) opens its sockets within milliseconds.
PAUSE = 1.0

# Their processes are let end: master(8) would kill them in the midst of a message. Those
# of spawn(8) may go, as smtpd(8) does without an answer (default_action).
DELIVERS = frozenset(("mxpolicy", "mxlmtp", "127.0.0.1:10026"))

_FILE = re.compile(r"[a-z]+:(/[^\s,{}]+)")

Command = tuple[str, ...]

RELOAD: Command = ("postfix", "reload")


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


class PostfixUndo:
    """One Postfix, by its programs and the directory of its main.cf."""

    def __init__(
        self,
        run: Callable[..., Ended],
        *,
        patience: float = PATIENCE,
        pause: float = PAUSE,
    ) -> None:
        """Use *run*, which takes the words of a command line.

        Args:
            run: It is `mxpolicy.check.postconf.run` for a directory of programs.
            patience: So many seconds deliveries are let end before their service goes.
            pause: Seconds until master(8) has read its configuration, or has ended.

        Raises:
            SetupError: It does not say where its configuration is, or that is not as
                postconf(1) can edit it.
        """
        self._run = run
        self._patience = patience
        self._pause = pause
        self.directory = self.ask("postconf", "-h", "config_directory").strip()
        self.kept_path = f"{self.directory}/{KEPT}"
        for name in (MAIN, MASTER):
            path = f"{self.directory}/{name}"
            if os.path.islink(path):
                raise SetupError(
                    f"{path} is a link to {os.path.realpath(path)}, and postconf would"
                    " put a file in its place: set up what it links to (-c DIR), or"
                    " make it a file"
                )

    def ask(self, *command: str, **how: float) -> str:
        """Return what *command* prints.

        Raises:
            SetupError: It ends otherwise than well.
            PostfixUnseen: It cannot be run.
        """
        ended = self._run(*command, **how)
        if ended.status:
            why = ended.err or f"ended with status {ended.status}"
            raise SetupError(f"{' '.join(command[:2])}: {why}")
        return ended.out

    def _text(self, path: str) -> str:
        try:
            text = read_text(path)
        except OSError as error:
            raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
        if text is None:
            raise SetupError(f"{path}: is not there: see -c DIR and MAIL_CONFIG")
        return text

    def reload(self) -> bool:
        """Have a Postfix that runs read its configuration; return whether it runs.

        Raises:
            SetupError: It does not take it.
        """
        if not self._runs():
            return False
        self.ask(*RELOAD, patience=60.0)
        time.sleep(self._pause)
        if not self._runs():
            raise SetupError(
                "Postfix ended when it read its configuration; its log says why. Mend"
                " that, or take set-up back with --undo --apply; then: postfix start"
            )
        return True

    def _runs(self) -> bool:
        return not self._run("postfix", "status").status

    def undoing(self) -> Undoing | None:
        """Return what taking back would do, None where nothing is kept."""
        kept = load(self.kept_path)
        if kept is None:
            return None
        there = {path: read_text(path) for path in kept.files}
        undone = taken_back(kept, there)
        patterns = going(kept, undone.texts)
        refusals = [
            f"{one} would point to nothing: take that out first"
            for one in mentions(patterns, undone.texts, self._tables(undone))
        ]
        refusals += self._queue_refusals(kept, undone)
        return Undoing(kept, there, undone, tuple(refusals))

    def _tables(self, undone: Undone) -> dict[str, str]:
        """Return the lookup tables of main.cf that are files, by path."""
        texts = [
            text or ""
            for path, text in undone.texts.items()
            if path.endswith(f"/{MAIN}")
        ]
        found = {}
        for entry in (one for text in texts for one in entries(MAIN, text)):
            for path in _FILE.findall(entry.value):
                text = read_text(path) if os.path.isfile(path) else None
                if text is not None and path not in undone.texts:
                    found[path] = text
        return found

    @staticmethod
    def _gone(kept: Kept, undone: Undone) -> set[str]:
        """Return the names of the services that go."""
        return {
            step.key.partition("/")[0]
            for step in kept.steps
            if step.file.endswith(f"/{MASTER}")
            and not find(MASTER, undone.texts[step.file] or "", step.key)
        }

    def _queue_refusals(self, kept: Kept, undone: Undone) -> list[str]:
        gone = self._gone(kept, undone)
        relay, main = "smtp_fallback_relay", f"{self.directory}/{MAIN}"
        first = (
            f"postconf -X {relay}; postfix reload; "
            if (main, relay) in {(one.file, one.key) for one in kept.steps}
            and find(MAIN, self._text(main), relay)
            else ""
        )
        return waiting(self.ask, gone & {"mxpolicy", "mxlmtp"}, first)

    def undo(
        self, what: Undoing, say: Callable[[str], object] = lambda _: None
    ) -> list[str]:
        """Carry out *what*.

        Args:
            what: From `undoing`.
            say: Is told what is waited for.

        Returns:
            What was seen afterwards: messages that came in meanwhile.

        Raises:
            SetupError: main.cf is taken back, and a service is still at work.
            OSError: A file could not be written; the run can be repeated.
        """
        # main.cf first: it names the services and the table.
        main = f"{self.directory}/{MAIN}"
        if main in what.undone.texts:
            self._restore(main, what)
        if self.reload():
            self._let_end(what, say)
        for path in what.undone.texts:
            if path != main:
                self._restore(path, what)
        self.reload()
        after = self._queue_refusals(what.kept, what.undone)
        replace(self.kept_path, None)
        return after

    @staticmethod
    def _restore(path: str, what: Undoing) -> None:
        text, one = what.undone.texts[path], what.kept.files[path]
        if path in what.undone.aside:
            replace(aside_of(path), what.there[path])
        if text != what.there[path]:
            replace(path, text)
        # A set-up that was killed may have left it as postconf -e makes it.
        if one.after is None:
            give_back(path, one.owner)

    def _let_end(self, what: Undoing, say: Callable[[str], object]) -> None:
        """Wait until the services that go do nothing; nothing is given to them any more.

        Raises:
            SetupError: They have not ended in time, or messages are bound to them again.
        """
        gone = self._gone(what.kept, what.undone) & DELIVERS
        names = "queue_directory", "process_id_directory"
        directories = Postconf(self._run).settings(names)
        pid_file = os.path.join(*(directories[one] for one in names), "master.pid")
        begun = "main.cf is taken back, and no more mail goes by mxpolicy. But "
        until = time.monotonic() + self._patience
        if at_work(pid_file, gone):
            say(f"Deliveries under way are let end, up to {self._patience:g} s.")
        while busy := at_work(pid_file, gone):
            if time.monotonic() >= until:
                raise SetupError(
                    f"{begun}{len(busy)} deliveries by it are under way (process"
                    f" {', '.join(map(str, busy))}). Without their service Postfix"
                    " would kill them, and a message could arrive twice. Give the same"
                    " command again when they have ended"
                )
            time.sleep(0.1)
        if bound := self._queue_refusals(what.kept, what.undone):
            raise SetupError(begun + " ".join(bound))
