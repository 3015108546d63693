"""Set-up of a Postfix: what is there is gathered, and a plan carried out.

The order makes a run that is killed repeatable. What was there is kept in a file first.
Then come the services, then what names them; each command of Postfix's own changes its
file at once or not at all.
"""

from __future__ import annotations

import os

from mxpolicy.check.master_cf import words
from mxpolicy.check.postconf import Postconf, PostfixUnseen
from mxpolicy.setup.cf_text import find
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
from mxpolicy.setup.postfix_domains import OWN_DOMAINS, own
from mxpolicy.setup.postfix_lines import FALLBACK_AT, TABLE
from mxpolicy.setup.postfix_plan import RELAY, SENDER, SENDERS, Asked, Seen, plan
from mxpolicy.setup.postfix_processes import is_taken
from mxpolicy.setup.postfix_undo import RELOAD, Command, PostfixUndo
from mxpolicy.setup.steps import MAIN, MASTER, WHOLE, Plan
from mxpolicy.setup.undo import kept_with

__all__ = ["Postfix"]


class Postfix(PostfixUndo):
    """One Postfix that is set up; and that can be taken back."""

    def seen(self, asked: Asked) -> Seen:
        """Return what is there, as far as *asked* needs it."""
        main, master = (self._text(f"{self.directory}/{one}") for one in (MAIN, MASTER))
        names = "transport_maps", "relayhost", RELAY, SENDER, *SENDERS, *OWN_DOMAINS
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
            domain: own(domain, effective, self._looked_up, self._keys)
            for domain in asked.domains
        }
        table = read_text(f"{self.directory}/{TABLE}")
        host, port = FALLBACK_AT
        taken = (
            asked.fallback
            and not find(MASTER, master, f"{host}:{port}/inet")
            and is_taken(host, port)
        )
        return Seen(
            self.directory, main, master, table, effective, routed, local, taken
        )

    def _looked_up(self, key: str, table: str) -> str:
        try:
            ended = self._run("postmap", "-q", key, table)
        except PostfixUnseen as error:
            raise SetupError(
                f"main.cf: {table} was asked for {key}: {error}"
            ) from error
        # So postmap(1) ends when a table does not have the key.
        if ended.status and ended.err:
            raise SetupError(f"main.cf: {table} cannot be asked for {key}: {ended.err}")
        return ended.out.strip()

    def _keys(self, table: str) -> list[str] | None:
        try:
            ended = self._run("postmap", "-s", table)
        except PostfixUnseen:
            return None
        # A database in the network does not list what it has.
        if ended.status:
            return None
        return [line.split("\t", 1)[0] for line in ended.out.splitlines()]

    def commands(self, what: Plan) -> list[Command]:
        """Return the commands that carry out *what*; our own files are written before.

        A service is there before main.cf names it: a process that starts between the
        two would defer mail otherwise.
        """
        services = [
            f"{one.key}={one.after}" for one in what.steps if one.file == MASTER
        ]
        settings = [
            f"{one.key} = {one.after}" for one in what.steps if one.file == MAIN
        ]
        rows = (("-M", services), ("-e", settings))
        commands: list[Command] = []
        for option, lines in rows:
            if lines:
                commands += [("postconf", option, *lines), RELOAD]
        # A change of the table alone is for reload, too.
        return commands or [RELOAD]

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
        *commands, _ = self.commands(what)
        for command in commands:
            if command == RELOAD:
                self.reload()
                continue
            self.ask(*command)
            self._give_back(kept)
        # A set-up that was killed may have come as far as postconf.
        self._give_back(kept)
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

    @staticmethod
    def _give_back(kept: Kept) -> None:
        for path, one in kept.files.items():
            give_back(path, one.owner)

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
