"""Set-up of an Exim, and its undo; `mxpolicy.setup.mail_server` has what they promise.

Debian's split configuration takes files of our own, in its directory ``conf.d``. Into a
single file nothing is written: the order of its routers is the site's, and so is the place
where ours belongs. `mxpolicy.setup.exim_by_hand` has the lines instead, each with its place.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.check.exim import stanzas
from mxpolicy.check.exim_client import left_out, unheeded
from mxpolicy.errors import MxPolicyError
from mxpolicy.setup import exim_by_hand
from mxpolicy.setup.disk import Disk, SetupError, read_text
from mxpolicy.setup.exim_lines import RETRY, domains_of, router, transport
from mxpolicy.setup.kept import load, save
from mxpolicy.setup.mail_server import MailServer
from mxpolicy.setup.steps import WHOLE, Plan, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mxpolicy.check.programs import Ended
    from mxpolicy.setup.kept import Kept
    from mxpolicy.setup.mail_server import Say, Undoing
    from mxpolicy.setup.steps import Asked, Command
    from mxpolicy.setup.undo import Undone

__all__ = ["DIRECTORY", "Exim"]

DIRECTORY = "/etc/exim4"
UPDATE: Command = ("update-exim4.conf",)

ROUTER_FILE = "router/190_mxpolicy"
TRANSPORT_FILE = "transport/35_mxpolicy"
ACL_FILE = "acl/30_exim4-config_check_rcpt"

_SPLIT = re.compile(r"^\s*dc_use_split_config=(['\"]?)true\1\s*$", re.M | re.I)
_SMARTHOST = re.compile(
    r"^\s*dc_eximconfig_configtype=(['\"]?)(smarthost|satellite|local)\1\s*$",
    re.M | re.I,
)
_OURS = re.compile(
    r"^\s*(mxpolicy(?:_lmtp)?)\s*:|transport\s*=\s*(mxpolicy(?:_lmtp)?)\b", re.M
)
_FILE = re.compile(r"^Configuration file is (/.*)$", re.M)


class Exim(MailServer):
    """One Exim by its configuration directory, and the programs of Debian's package."""

    name = "exim"

    def __init__(
        self,
        directory: str,
        run: Callable[..., Ended],
        disk: Disk | None = None,
        program: str = "exim4",
    ) -> None:
        """Look at *directory*; *run* takes the words of a command line.

        Args:
            directory: Of Debian's configuration, where it is Debian's.
            run: Runs a program of Exim's.
            disk: For what is written.
            program: What Exim is called here.
        """
        super().__init__(directory, run, disk or Disk())
        self._program = program
        self._debconf = read_text(f"{directory}/update-exim4.conf.conf") or ""

    @property
    def is_split(self) -> bool:
        """Whether it is Debian's split configuration, and in use."""
        is_alone = os.path.exists(f"{self.directory}/exim4.conf")
        return bool(_SPLIT.search(self._debconf)) and not is_alone

    @property
    def _template(self) -> str:
        return f"{self.directory}/exim4.conf.template"

    @property
    def single_file(self) -> str:
        """Where the postmaster has the configuration, if it is a single file.

        Raises:
            SetupError: Exim does not say.
        """
        own = f"{self.directory}/exim4.conf"
        if os.path.exists(own):
            return own
        if self._debconf:
            return self._template
        if found := _FILE.search(self.ask(self._program, "-bV")):
            return found[1]
        raise SetupError(f"{self._program} -bV does not say what its configuration is")

    def by_hand(self, asked: Asked) -> list[tuple[str, str]]:
        """Return what is to be done where it is a single file: where, and the lines."""
        path = self.single_file
        parts = exim_by_hand.lines(asked, path, read_text(path) or "")
        commands = [] if path != self._template else [" ".join(UPDATE)]
        with suppress(MxPolicyError, OSError):  # another user may not see it
            if daemon := self._daemon():
                commands.append(f"kill -HUP $(cat {daemon[0]})")
        return [*parts, ("then", "\n".join(commands))]

    def left(self) -> list[str]:
        """Return what was put in by hand, and is there still."""
        texts: dict[str, str] = {}
        # What cannot be read, or is not there, is no reason not to undo the rest.
        with suppress(MxPolicyError, OSError):
            if self.is_split:
                texts = self._texts("acl")
            else:
                texts = {self.single_file: read_text(self.single_file) or ""}
        return [
            one for path, text in texts.items() for one in exim_by_hand.left(path, text)
        ]

    def plan(self, asked: Asked) -> Plan:
        """Return what would be written into ``conf.d`` for *asked*."""
        by_hand = self._acl() if asked.policy else ()
        delivers = asked.all_mail or asked.domains or asked.lmtp
        if asked.policy and not delivers:
            return Plan(by_hand=by_hand)
        refusals: list[str] = []
        wanted = {TRANSPORT_FILE: transport(asked.program, asked.config, asked.lmtp)}
        if asked.all_mail or asked.domains:
            domains = self._domains(asked, refusals)
            wanted[ROUTER_FILE] = router(domains, asked.lmtp)
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
            f"{path} has {name} already: take it out" for path, name in self._others()
        ]
        notes = self._notes(is_routed=ROUTER_FILE in wanted)
        return Plan(tuple(steps), tuple(refusals), tuple(notes), by_hand)

    def _domains(self, asked: Asked, refusals: list[str]) -> list[str]:
        """Return whose mail the router takes: also what an earlier set-up gave it."""
        there = read_text(self._path(ROUTER_FILE))
        earlier = domains_of(there) if there is not None else []
        if not asked.domains:
            return []
        if earlier is None:
            refusals.append(
                f"{self._path(ROUTER_FILE)} takes all mail already: --undo it first"
            )
        return list(dict.fromkeys((*(earlier or ()), *asked.domains)))

    def to_client(self) -> list[str]:
        """Return what only Exim's own routers and transports do, a sentence each."""
        with suppress(MxPolicyError, OSError):  # another user may not see it
            transports, routers = (
                stanzas(self.ask(self._program, "-bP", what))
                for what in ("transports", "routers")
            )
            return [*unheeded(transports, routers), *left_out(routers)]
        return []

    def _notes(self, *, is_routed: bool) -> Iterator[str]:
        if not any(map(exim_by_hand.RULE.search, self._texts("retry").values())):
            yield (
                f"there is no retry rule for all domains in {self._path('retry')}, and"
                f" without one Exim bounces what mxpolicy defers: {' '.join(RETRY.split())}"
            )
        if is_routed and (found := _SMARTHOST.search(self._debconf)):
            yield (
                f"Exim is set up as {found[2]}: mail that mxpolicy takes goes to the MX"
                " hosts itself"
            )
        if is_routed:
            yield from self.to_client()

    def _acl(self) -> tuple[tuple[str, str], ...]:
        path = self._path(ACL_FILE)
        then = " && ".join((*UPDATE, "service exim4 reload"))
        return exim_by_hand.acl(path, read_text(path) or ""), ("then", then)

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

    def commands(self, what: Plan) -> list[Command]:
        """Return what has Exim use the files of *what*."""
        if not what.steps:
            return []
        daemon = None
        # Another user may not see it; what else there is, apply will meet and say.
        with suppress(MxPolicyError, OSError):
            daemon = self._daemon()
        return [UPDATE, *([("kill", "-HUP", str(daemon[1]))] if daemon else [])]

    def apply(self, asked: Asked, what: Plan, say: Say = lambda _: None) -> None:
        """Carry out *what*; see `MailServer.apply`. What Exim refuses is taken back."""
        earlier = load(self.kept_path)
        there = {one.file: read_text(one.file) for one in what.steps}
        kept = self.begin(what)
        # The transport before the router that names it.
        self.write(sorted(what.steps, key=lambda one: ROUTER_FILE in one.file))
        try:
            self.use()
        except MxPolicyError:
            for path, text in there.items():
                self._disk.replace(path, text)
            if earlier is None:
                self.forget()
            else:
                save(self.kept_path, earlier, self._disk)
            # Where it was another program that failed, Exim has the new one already.
            with suppress(MxPolicyError):
                self.edit(*UPDATE)
            raise
        self.end(kept)

    def use(self) -> None:
        """Have Exim use what conf.d says now.

        Raises:
            SetupError: update-exim4.conf objects; Exim goes on with what it had.
        """
        self.edit(*UPDATE)
        if daemon := self._daemon():
            os.kill(daemon[1], signal.SIGHUP)

    def _daemon(self) -> tuple[str, int] | None:
        """Return Exim's daemon, if it runs: its file, and its process id."""
        answer = self.ask(self._program, "-bP", "pid_file_path")
        pid_file = answer.partition("=")[2].strip()
        text = read_text(pid_file) if pid_file else None
        if not text or not text.strip().isdigit():
            return None
        pid = int(text)
        # A number that is left over may be another program's by now.
        is_exim = (read_text(f"/proc/{pid}/comm") or "").startswith("exim")
        return (pid_file, pid) if is_exim else None

    def in_the_way(self, kept: Kept, undone: Undone) -> list[str]:
        """Return what still names our transport."""
        return [
            f"{path} names {name}, which would not be there: take that out first"
            for path, name in self._others()
        ]

    def undo(self, what: Undoing, say: Say = lambda _: None) -> list[str]:
        """Carry out *what*; see `MailServer.undo`."""
        # The router first, which names the transport.
        for path in sorted(what.undone.texts, key=lambda one: ROUTER_FILE not in one):
            self.restore(path, what)
        self.use()
        self.forget()
        return []
