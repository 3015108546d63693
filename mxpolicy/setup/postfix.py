"""Set-up of a Postfix, and its undo; `mxpolicy.setup.mail_server` has what they promise.

Undo takes main.cf back first, for it names the services and the table. A service goes when
nothing is bound to it any more and its deliveries have ended.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from mxpolicy.check.postconf import Postconf
from mxpolicy.setup.cf_text import find
from mxpolicy.setup.disk import Disk, SetupError, fixed, read_text
from mxpolicy.setup.mail_server import MailServer
from mxpolicy.setup.postfix_mentions import going, gone, mentions, tables
from mxpolicy.setup.postfix_plan import plan
from mxpolicy.setup.postfix_processes import at_work
from mxpolicy.setup.postfix_queue import waiting
from mxpolicy.setup.postfix_seen import see, text_of
from mxpolicy.setup.steps import MAIN, MASTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mxpolicy.check.programs import Ended
    from mxpolicy.setup.kept import Kept
    from mxpolicy.setup.mail_server import Say, Undoing
    from mxpolicy.setup.steps import Asked, Command, Plan
    from mxpolicy.setup.undo import Undone

__all__ = ["Postfix"]

RELOAD: Command = ("postfix", "reload")

# What is under way ends by then, mostly; a host that is silent may take 2900 s.
PATIENCE = 60.0

# master(8) opens its sockets within milliseconds.
PAUSE = 1.0

# Their processes are let end: master(8) would kill them in the midst of a message. Those
# of spawn(8) may go, as smtpd(8) does without an answer (default_action).
DELIVERS = frozenset(("mxpolicy", "mxlmtp", "127.0.0.1:10026"))

# What messages in the queue may be bound to.
TRANSPORTS = frozenset(("mxpolicy", "mxlmtp"))


class Postfix(MailServer):
    """One Postfix, by its programs and the directory of its main.cf."""

    name = "postfix"

    def __init__(
        self,
        run: Callable[..., Ended],
        disk: Disk | None = None,
        *,
        patience: float = PATIENCE,
        pause: float = PAUSE,
    ) -> None:
        """Use *run*, which takes the words of a command line.

        Args:
            run: It is `mxpolicy.check.programs.run` for a directory of programs.
            disk: Changes files.
            patience: So many seconds deliveries are let end before their service goes.
            pause: Seconds until master(8) has read its configuration, or has ended.

        Raises:
            SetupError: It does not say where its configuration is, or that is not as
                postconf(1) can edit it.
        """
        super().__init__("", run, disk or Disk())
        self._patience = patience
        self._pause = pause
        named = self.ask("postconf", "-h", "config_directory").strip()
        # Whatever name it goes by, what is kept there is about the same files.
        self.directory = os.path.realpath(named)
        self._main = f"{self.directory}/{MAIN}"
        self._master = f"{self.directory}/{MASTER}"
        for path in (self._main, self._master):
            if os.path.islink(path):
                raise SetupError(
                    f"{path} is a link to {os.path.realpath(path)}, and postconf would"
                    " put a file in its place: set up what it links to (-c DIR), or"
                    " make it a file"
                )

    # -- set-up ------------------------------------------------------------------

    def plan(self, asked: Asked) -> Plan:
        """Return what would be done for *asked*."""
        what = plan(asked, see(asked, self.directory, self._run))
        files = {os.path.join(self.directory, one.file) for one in what.steps}
        return what._replace(refusals=(*self._fixed(files), *what.refusals))

    def _fixed(self, files: Iterable[str]) -> list[str]:
        """Return why some of *files* cannot be changed, a sentence each."""
        return list(filter(None, map(fixed, sorted(files))))

    def commands(self, what: Plan) -> list[Command]:
        """Return the commands that carry out *what*; our own files are written before.

        A service is there before main.cf names it: a process that starts between the
        two would defer mail otherwise.
        """
        rows = ((MASTER, "-M", "{}={}"), (MAIN, "-e", "{} = {}"))
        commands: list[Command] = []
        for file, option, form in rows:
            lines = [
                form.format(one.key, one.after)
                for one in what.steps
                if one.file == file
            ]
            if lines:
                commands += [("postconf", option, *lines), RELOAD]
        # A change of the table alone is for reload, too.
        return commands or [RELOAD] if what.steps else []

    def apply(self, asked: Asked, what: Plan, say: Say = lambda _: None) -> None:
        """Carry out *what*; see `MailServer.apply`."""
        kept = self.begin(self._placed(what))
        self.write(what.steps)
        for command in self.commands(what)[:-1]:
            if command == RELOAD:
                self._reload()
                continue
            self.edit(*command)
            self.give_back(kept)
        # A set-up that was killed may have come as far as postconf.
        self.give_back(kept)
        left = self.plan(asked).steps
        if left:
            raise SetupError(
                f"{left[0].key} is not in {left[0].file} though postconf said that all"
                " is well; see --undo"
            )
        if not self._reload():
            say("Postfix does not run, so it was not reloaded.")
        self.end(kept)

    def _placed(self, what: Plan) -> Plan:
        """Return *what* with absolute paths."""
        steps = tuple(
            one._replace(file=os.path.join(self.directory, one.file))
            for one in what.steps
        )
        return what._replace(steps=steps)

    def _reload(self) -> bool:
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

    # -- undo --------------------------------------------------------------------

    def in_the_way(self, kept: Kept, undone: Undone) -> list[str]:
        """Return what would point to nothing, and messages that would."""
        both = {one: text_of(one) for one in (self._main, self._master)}
        texts = {**both, **undone.texts}
        found = mentions(
            going(kept, texts), texts, tables(texts, Postconf(self._run).filled)
        )
        changed = [one for one in kept.files if undone.texts[one] != read_text(one)]
        return [
            *self._fixed(changed),
            *(f"{one} would point to nothing: take that out first" for one in found),
            *self._bound(kept, undone),
        ]

    def _bound(self, kept: Kept, undone: Undone) -> list[str]:
        relay = "smtp_fallback_relay"
        first = (
            f"postconf -X {relay}; postfix reload; "
            if (self._main, relay) in {(one.file, one.key) for one in kept.steps}
            and find(MAIN, text_of(self._main), relay)
            else ""
        )
        return waiting(self.ask, gone(kept, undone.texts) & TRANSPORTS, first)

    def undo(self, what: Undoing, say: Say = lambda _: None) -> list[str]:
        """Carry out *what*; see `MailServer.undo`."""
        if self._main in what.undone.texts:
            self.restore(self._main, what)
        if self._reload():
            self._let_end(what, say)
        for path in what.undone.texts:
            if path != self._main:
                self.restore(path, what)
        self._reload()
        after = self._bound(what.kept, what.undone)
        self.forget()
        return after

    def _let_end(self, what: Undoing, say: Say) -> None:
        """Wait until the services that go do nothing; nothing is given to them any more.

        Raises:
            SetupError: They have not ended in time, or messages are bound to them again.
        """
        services = gone(what.kept, what.undone.texts) & DELIVERS
        names = "queue_directory", "process_id_directory"
        directories = Postconf(self._run).settings(names)
        pid_file = os.path.join(*(directories[one] for one in names), "master.pid")
        begun = "main.cf is taken back, and no more mail goes by mxpolicy. But "
        until = time.monotonic() + self._patience
        if at_work(pid_file, services):
            say(f"Deliveries under way are let end, up to {self._patience:g} s.")
        while busy := at_work(pid_file, services):
            if time.monotonic() >= until:
                raise SetupError(
                    f"{begun}{len(busy)} deliveries by it are under way (process"
                    f" {', '.join(map(str, busy))}). Without their service Postfix"
                    " would kill them, and a message could arrive twice. Give the same"
                    " command again when they have ended"
                )
            time.sleep(0.1)
        if bound := self._bound(what.kept, what.undone):
            raise SetupError(begun + " ".join(bound))
