"""Set-up of a Postfix, and its undo: what is there is gathered, and a plan carried out.

The order makes a run that is killed repeatable. What was there is kept in a file first.
Then come the services, then what names them; each command of Postfix's own changes its
file at once or not at all.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.master_cf import words
from mxpolicy.check.postconf import Postconf
from mxpolicy.setup.cf_text import entries, find
from mxpolicy.setup.kept import (
    Kept,
    SetupError,
    digest,
    give_back,
    is_unfinished,
    load,
    owner_of,
    read_text,
    replace,
    save,
)
from mxpolicy.setup.postfix_lines import TABLE
from mxpolicy.setup.postfix_plan import RELAY, SENDER, Asked, Seen, plan
from mxpolicy.setup.postfix_queue import waiting
from mxpolicy.setup.steps import MAIN, MASTER, WHOLE, Plan
from mxpolicy.setup.undo import aside_of, going, kept_with, mentions, taken_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.check.postconf import Ended
    from mxpolicy.setup.undo import Undone

__all__ = ["KEPT", "Command", "Postfix", "Undoing"]

# Beside main.cf.
KEPT = "mxpolicy-setup.json"

# Where the domains are that a transport table must not take from this mail system.
OWN_DOMAINS = ("mydestination", "virtual_mailbox_domains", "virtual_alias_domains")

_FILE = re.compile(r"[a-z]+:(/[^\s,{}]+)")

Command = tuple[str, ...]


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


class Postfix:
    """One Postfix, by its programs and the directory of its main.cf."""

    def __init__(self, run: Callable[..., Ended]) -> None:
        """Use *run*, which takes the words of a command line.

        Raises:
            SetupError: It does not say where its configuration is, or that is not as
                postconf(1) can edit it.
        """
        self._run = run
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

    # -- set-up ------------------------------------------------------------------

    def seen(self, asked: Asked) -> Seen:
        """Return what is there, as far as *asked* needs it."""
        main, master = (self._text(f"{self.directory}/{one}") for one in (MAIN, MASTER))
        names = "transport_maps", "relayhost", RELAY, SENDER, *OWN_DOMAINS
        # One that is not there is empty.
        effective = Postconf(self._run).settings(names)
        tables = words(effective["transport_maps"], " \t,")
        routed = {
            domain: f"{hop} ({table})"
            for domain in asked.domains
            for table in reversed(tables)
            if TABLE not in table and (hop := self._looked_up(domain, table))
        }
        local = {
            domain: name
            for domain in asked.domains
            for name in OWN_DOMAINS
            if self._is_among(domain, words(effective[name], " \t,"))
        }
        table = read_text(f"{self.directory}/{TABLE}")
        return Seen(self.directory, main, master, table, effective, routed, local)

    def _is_among(self, domain: str, names: Sequence[str]) -> bool:
        return any(
            bool(self._looked_up(domain, one)) if ":" in one else one.lower() == domain
            for one in names
        )

    def _text(self, path: str) -> str:
        try:
            text = read_text(path)
        except OSError as error:
            raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
        if text is None:
            raise SetupError(f"{path}: is not there: see -c DIR and MAIL_CONFIG")
        return text

    def _looked_up(self, key: str, table: str) -> str:
        ended = self._run("postmap", "-q", key, table)
        # So postmap(1) ends when a table does not have the key.
        if ended.status and ended.err:
            raise SetupError(f"main.cf: {table} cannot be asked for {key}: {ended.err}")
        return ended.out.strip()

    def commands(self, what: Plan) -> list[Command]:
        """Return the commands that carry out *what*; our own files are written before."""
        services = [
            f"{one.key}={one.after}" for one in what.steps if one.file == MASTER
        ]
        settings = [
            f"{one.key} = {one.after}" for one in what.steps if one.file == MAIN
        ]
        rows = (("-M", services), ("-e", settings))
        return [("postconf", option, *lines) for option, lines in rows if lines]

    @property
    def is_unfinished(self) -> bool:
        """Whether a set-up was killed before its end."""
        return is_unfinished(load(self.kept_path))

    def apply(self, asked: Asked, what: Plan) -> bool:
        """Carry out *what*, which is the plan for *asked*; and what is unfinished.

        Returns:
            Whether Postfix runs, and goes by it now.

        Raises:
            SetupError: A command failed; what is done by then can be undone.
            OSError: A file could not be written; likewise.
        """
        kept = load(self.kept_path)
        placed = self._placed(what)
        there = self._now(kept, placed)
        owners = {path: owner_of(path) for path in there}
        kept = kept_with(kept, placed, "postfix", there, owners)
        save(self.kept_path, kept)
        for step in what.steps:
            if step.key == WHOLE:
                replace(step.file, step.after)
        for command in self.commands(what):
            self.ask(*command)
        for path, one in kept.files.items():
            give_back(path, one.owner)
        left = plan(asked, self.seen(asked)).steps
        if left:
            raise SetupError(
                f"{left[0].key} is not in {left[0].file} though postconf said that all"
                " is well; see --undo"
            )
        runs = self.reload()
        files = {
            path: one._replace(after=digest(read_text(path)))
            for path, one in kept.files.items()
        }
        save(self.kept_path, kept._replace(files=files))
        return runs

    def _placed(self, what: Plan) -> Plan:
        """Return *what* with absolute paths."""
        steps = tuple(
            one._replace(file=os.path.join(self.directory, one.file))
            for one in what.steps
        )
        return what._replace(steps=steps)

    def _now(self, kept: Kept | None, what: Plan) -> dict[str, str | None]:
        paths = [one.file for one in what.steps]
        paths += list(kept.files) if kept else []
        return {path: read_text(path) for path in paths}

    def reload(self) -> bool:
        """Have a Postfix that runs read its configuration; return whether it runs."""
        if self._run("postfix", "status").status:
            return False
        self.ask("postfix", "reload", patience=60.0)
        return True

    # -- undo --------------------------------------------------------------------

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

    def _queue_refusals(self, kept: Kept, undone: Undone) -> list[str]:
        gone = {
            step.key.partition("/")[0]
            for step in kept.steps
            if step.file.endswith(f"/{MASTER}")
            and not any(
                one.key == step.key
                for one in entries(MASTER, undone.texts[step.file] or "")
            )
        }
        relay, main = "smtp_fallback_relay", f"{self.directory}/{MAIN}"
        first = (
            f"postconf -X {relay}; postfix reload; "
            if (main, relay) in {(one.file, one.key) for one in kept.steps}
            and find(MAIN, self._text(main), relay)
            else ""
        )
        return waiting(self.ask, gone & {"mxpolicy", "mxlmtp"}, first)

    def undo(self, what: Undoing) -> list[str]:
        """Carry out *what*.

        Returns:
            What was seen afterwards: messages that came in meanwhile.

        Raises:
            OSError: A file could not be written; the run can be repeated.
        """
        undone = what.undone.texts
        # main.cf first: it names the services and the table.
        for path in sorted(undone, key=lambda one: not one.endswith(f"/{MAIN}")):
            if path in what.undone.aside:
                replace(aside_of(path), what.there[path])
            replace(path, undone[path])
            give_back(path, what.kept.files[path].owner)
        self.reload()
        after = self._queue_refusals(what.kept, what.undone)
        replace(self.kept_path, None)
        return after
