"""Set-up of an Exim, and its undo.

Debian's split configuration takes files of our own, in its directory ``conf.d``. Into a
single file nothing is written: it is somebody's program, and where our lines go in it is
for its author to say. The lines are printed instead.
"""

from __future__ import annotations

import os
import re
import signal
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.check.postconf import directory_of, run
from mxpolicy.errors import MxPolicyError
from mxpolicy.setup import show
from mxpolicy.setup.exim_lines import (
    ACL,
    RETRY,
    domains_of,
    router,
    transport,
)
from mxpolicy.setup.kept import (
    Kept,
    SetupError,
    alone,
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
    import argparse
    from collections.abc import Callable, Iterator

    from mxpolicy.check.postconf import Ended
    from mxpolicy.setup.postfix_plan import Asked
    from mxpolicy.terminal import Terminal

__all__ = ["Exim", "main"]

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
        if asked.policy and not (asked.all_mail or asked.domains or asked.lmtp):
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


def main(
    given: argparse.Namespace,
    look: Callable[[argparse.Namespace], tuple[Asked, list[str], list[str]]],
    terminal: Terminal,
) -> int:
    """Set up Exim, or take that back; see `mxpolicy.setup.main`.

    Args:
        given: The command line.
        look: Makes of it what is asked for, what is in the way and what to know.
        terminal: For what is printed.
    """
    programs = directory_of("update-exim4.conf", os.environ.get("PATH", ""))
    exim = Exim(DIRECTORY, partial(run, programs or "/usr/sbin"))
    if given.undo:
        return _undo(exim, given.apply, terminal)
    asked, refusals, notes = look(given)
    if not exim.is_split:
        return _paste(exim, asked, given.apply, terminal)
    what = exim.plan(asked)
    what = what._replace(
        refusals=(*refusals, *what.refusals), notes=(*notes, *what.notes)
    )
    commands = [("update-exim4.conf",)] if what.steps else []
    show.plan(what, exim.directory, commands, terminal)
    if asked.policy:
        _paste_acl(terminal)
    if what.refusals:
        return 1
    if exim.is_unfinished:
        terminal.say("An earlier set-up was interrupted; --apply finishes it.")
    elif not what.steps:
        return 0
    if not given.apply:
        show.not_yet(terminal)
        return 0
    with alone(exim.directory):
        if exim.plan(asked).steps != what.steps:
            raise SetupError("something changed meanwhile; look again")
        exim.apply(what)
    show.done(exim.kept_path, terminal)
    return 0


def _undo(exim: Exim, is_applied: bool, terminal: Terminal) -> int:
    kept = load(exim.kept_path)
    if kept is None:
        terminal.say(f"Nothing to undo: there is no {exim.kept_path}.")
        return 0
    there = {path: read_text(path) for path in kept.files}
    show.undoing(there, taken_back(kept, there), exim.in_the_way(), terminal)
    if exim.in_the_way():
        return 1
    if not is_applied:
        show.not_yet(terminal)
        return 0
    with alone(exim.directory):
        exim.undo(kept)
    show.undone(terminal)
    return 0


def _paste(exim: Exim, asked: Asked, is_applied: bool, terminal: Terminal) -> int:
    """Print the lines for a configuration in a single file."""
    terminal.say(
        f"{exim.directory} is not Debian's split configuration, so the lines are for you"
        " to put in. Nothing was changed."
    )
    parts = [
        ('after "begin transports"', transport(asked.program, asked.config, asked.lmtp))
    ]
    if asked.all_mail or asked.domains:
        where = 'after "begin routers", before the router dnslookup'
        parts.insert(0, (where, router(asked.domains, asked.lmtp)))
    parts.append(('after "begin retry", if there is no rule for all domains', RETRY))
    for where, text in parts:
        terminal.heading(where)
        for line in text.splitlines():
            terminal.line(line)
    if asked.policy:
        _paste_acl(terminal)
    return 1 if is_applied else 0


def _paste_acl(terminal: Terminal) -> None:
    terminal.heading(
        "to put in by hand: in the ACL of acl_smtp_rcpt (Debian: acl_check_rcpt in"
        " conf.d/acl/30_exim4-config_check_rcpt), before its first accept with"
        " hosts = +relay_from_hosts"
    )
    for line in ACL.splitlines():
        terminal.line(line)
