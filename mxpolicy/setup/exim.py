"""Set-up of an Exim, and its undo.

Debian's split configuration takes files of our own, in its directory ``conf.d``. Into a
single file nothing is written: the order of its routers is the site's, and so is the place
where ours belongs. `mxpolicy.setup.exim_command` prints the lines instead.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.errors import MxPolicyError
from mxpolicy.setup.exim_lines import RETRY, domains_of, router, transport
from mxpolicy.setup.kept import (
    Kept,
    SetupError,
    digest,
    is_unfinished,
    load,
    owner_of,
    read_text,
    replace,
    save,
)
from mxpolicy.setup.steps import WHOLE, Plan, Step
from mxpolicy.setup.undo import aside_of, kept_with, taken_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mxpolicy.check.postconf import Ended
    from mxpolicy.setup.postfix_plan import Asked

__all__ = ["DIRECTORY", "Exim"]

DIRECTORY = "/etc/exim4"
KEPT = "mxpolicy-setup.json"

ROUTER_FILE = "router/190_mxpolicy"
TRANSPORT_FILE = "transport/35_mxpolicy"

_SPLIT = re.compile(r"^\s*dc_use_split_config=(['\"]?)true\1\s*$", re.M | re.I)
_SMARTHOST = re.compile(
    r"^\s*dc_eximconfig_configtype=(['\"]?)(smarthost|satellite|local)\1\s*$",
    re.M | re.I,
)
_OURS = re.compile(
    r"^\s*(mxpolicy(?:_lmtp)?)\s*:|transport\s*=\s*(mxpolicy(?:_lmtp)?)\b", re.M
)
_RULE = re.compile(r"^\*\s+\*\s", re.M)


class Exim:
    """One Exim by its configuration directory, and the programs of Debian's package."""

    def __init__(self, directory: str, run: Callable[..., Ended]) -> None:
        """Look at *directory*; *run* takes the words of a command line."""
        self.directory = directory
        self.kept_path = f"{directory}/{KEPT}"
        self._run = run
        self._debconf = read_text(f"{directory}/update-exim4.conf.conf") or ""

    @property
    def is_split(self) -> bool:
        """Whether it is Debian's split configuration, and in use."""
        is_alone = os.path.exists(f"{self.directory}/exim4.conf")
        return bool(_SPLIT.search(self._debconf)) and not is_alone

    @staticmethod
    def has_a_place_for(asked: Asked) -> bool:
        """Return whether *asked* is about more than the ACL, which is for hands."""
        delivers = asked.all_mail or asked.domains or asked.lmtp
        return bool(delivers or not asked.policy)

    def plan(self, asked: Asked) -> Plan:
        """Return what would be written into ``conf.d`` for *asked*."""
        refusals: list[str] = []
        notes: list[str] = []
        wanted = {TRANSPORT_FILE: transport(asked.program, asked.config, asked.lmtp)}
        there = read_text(self._path(ROUTER_FILE))
        if asked.all_mail or asked.domains:
            domains = list(asked.domains)
            earlier = domains_of(there) if there is not None else []
            if earlier is None and domains:
                refusals.append(
                    f"{self._path(ROUTER_FILE)} takes all mail already: --undo it first"
                )
            if domains:
                domains = list(dict.fromkeys((*(earlier or ()), *domains)))
            wanted[ROUTER_FILE] = router(domains, asked.lmtp)
        if not self.has_a_place_for(asked):
            wanted = {}
        kept = load(self.kept_path)
        ours = {one.file: one.after for one in kept.steps} if kept else {}
        steps = []
        for name, text in wanted.items():
            path = self._path(name)
            now = read_text(path)
            if now == text:
                continue
            if now is not None and now != ours.get(path):
                refusals.append(
                    f"{path} is there already, and not as set-up makes it: take it away,"
                    " or change it by hand"
                )
            steps.append(Step(path, WHOLE, text, now))
        refusals += [
            f"{path} has {name} already: take it out"
            for path, name in self._others()
            if wanted
        ]
        if wanted and not any(map(_RULE.search, self._texts("retry").values())):
            notes.append(
                f"there is no retry rule for all domains in {self._path('retry')}, and"
                f" without one Exim bounces what mxpolicy defers: {' '.join(RETRY.split())}"
            )
        if ROUTER_FILE in wanted and (found := _SMARTHOST.search(self._debconf)):
            notes.append(
                f"Exim is set up as {found[2]}: mail that mxpolicy takes goes to the MX"
                " hosts itself"
            )
        return Plan(tuple(steps), tuple(refusals), tuple(notes))

    def _path(self, name: str) -> str:
        return f"{self.directory}/conf.d/{name}"

    def _texts(self, section: str) -> dict[str, str]:
        """Return the text of each file in a section, by path."""
        directory = self._path(section)
        if not os.path.isdir(directory):
            raise SetupError(f"{directory}: is not there, so this is not Debian's Exim")
        # As update-exim4.conf chooses them.
        paths = (
            os.path.join(directory, name)
            for name in sorted(os.listdir(directory))
            if re.fullmatch(r"[\w-]+(\.rul)?", name, re.A)
        )
        return {path: read_text(path) or "" for path in paths if os.path.isfile(path)}

    def _others(self) -> Iterator[tuple[str, str]]:
        """Yield (path, name) of what others have under our names, or send our way."""
        own = {self._path(ROUTER_FILE), self._path(TRANSPORT_FILE)}
        for section in ("router", "transport"):
            for path, text in self._texts(section).items():
                if path not in own and (found := _OURS.search(text)):
                    yield path, found[1] or found[2]

    @property
    def is_unfinished(self) -> bool:
        """Whether a set-up was killed before its end."""
        return is_unfinished(load(self.kept_path))

    def apply(self, what: Plan) -> None:
        """Carry out *what*, and what is unfinished, and have Exim use it.

        Raises:
            MxPolicyError: Exim does not take it; all is as it was before.
            OSError: A file could not be written; what is done can be undone.
        """
        kept = load(self.kept_path)
        paths = [one.file for one in what.steps]
        paths += list(kept.files) if kept else []
        there = {path: read_text(path) for path in paths}
        owners = {path: owner_of(path) for path in there}
        new = kept_with(kept, what, "exim", there, owners)
        save(self.kept_path, new)
        # The transport before the router that names it.
        for step in sorted(what.steps, key=lambda one: ROUTER_FILE in one.file):
            replace(step.file, step.after)
        try:
            self.use()
        except MxPolicyError:
            for path, text in there.items():
                replace(path, text)
            if kept is None:
                replace(self.kept_path, None)
            else:
                save(self.kept_path, kept)
            # Where it was another program that failed, Exim has the new one already.
            with suppress(MxPolicyError):
                self._ask("update-exim4.conf")
            raise
        files = {
            path: one._replace(after=digest(read_text(path)))
            for path, one in new.files.items()
        }
        save(self.kept_path, new._replace(files=files))

    def use(self) -> None:
        """Have Exim use what conf.d says now.

        Raises:
            SetupError: update-exim4.conf objects; Exim goes on with what it had.
        """
        self._ask("update-exim4.conf")
        pid_file = self._ask("exim4", "-bP", "pid_file_path").partition("=")[2].strip()
        text = read_text(pid_file) if pid_file else None
        if text and text.strip().isdigit():
            pid = int(text)
            # A number that is left over may be another program's by now.
            if (read_text(f"/proc/{pid}/comm") or "").startswith("exim"):
                os.kill(pid, signal.SIGHUP)

    def _ask(self, *command: str) -> str:
        ended = self._run(*command)
        if ended.status:
            why = ended.err or f"ended with status {ended.status}"
            raise SetupError(f"{command[0]}: {why}")
        return ended.out

    def in_the_way(self) -> list[str]:
        """Return why set-up cannot be taken back: what still names our transport."""
        return [
            f"{path} names {name}, which would not be there: take that out first"
            for path, name in self._others()
        ]

    def undo(self, kept: Kept) -> None:
        """Take back what is *kept*, and have Exim use what is there then."""
        there = {path: read_text(path) for path in kept.files}
        # The router first, which names the transport.
        undone = taken_back(kept, there)
        for path, text in sorted(
            undone.texts.items(), key=lambda one: ROUTER_FILE not in one[0]
        ):
            if path in undone.aside:
                replace(aside_of(path), there[path])
            replace(path, text)
        self.use()
        replace(self.kept_path, None)
