"""``mxpolicy setup``: sets up Postfix or Exim for mxpolicy, or takes that back.

It prints what it would do, and does it with ``--apply``. What was there before is kept in
a file beside the mail server's configuration, and ``--undo`` restores it. What that
promises, also of a run that is killed, `mail_server` says.

From the top: `flow` is the way of each run, `show` prints. `postfix` and `exim` are the
mail servers: they look (`postfix_seen`) and do, by `disk` and by their programs. What would
change is said by pure functions: `postfix_plan` with `postfix_table`, `postfix_services`,
`postfix_fallback`, `postfix_settings` and `restrictions`; and how it is taken back, by
`undo`. The lines are in `postfix_lines` and `exim_lines`, the values in `steps` and `kept`.
`cf_text` reads and edits main.cf and master.cf.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.check.access import account
from mxpolicy.check.exim import NAMES
from mxpolicy.check.installation import obstacle
from mxpolicy.check.machine import HERE
from mxpolicy.check.programs import directory_of, run
from mxpolicy.config import DEFAULT_PATH, load
from mxpolicy.errors import MxPolicyError
from mxpolicy.reply import printable
from mxpolicy.setup import flow, show
from mxpolicy.setup.command_line import parsed, parser
from mxpolicy.setup.disk import SetupError
from mxpolicy.setup.exim import DIRECTORY, Exim
from mxpolicy.setup.exim_lines import LMTP_SOCKET
from mxpolicy.setup.postfix import Postfix
from mxpolicy.setup.postfix_lines import LMTP_AT
from mxpolicy.setup.steps import Asked
from mxpolicy.state.opening import state_file
from mxpolicy.terminal import Terminal, reader_may_leave

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mxpolicy.options import Options
    from mxpolicy.setup.mail_server import MailServer

__all__ = ["main", "parser"]

# What neither Postfix nor Exim takes for more than a character.
_PLAIN = re.compile(r"[\w./+@%-]*", re.A)

USER = "mxpolicy"

# Seconds for one program of Exim's. Each looks this machine's name up as it begins,
# and update-exim4.conf runs two: where name servers are away, that is twice 20 s.
EXIM_PATIENCE = 90.0


def main(argv: Sequence[str]) -> int:
    """Say what would be done, or do it.

    Returns:
        0; 1 when something is in the way. Leaves by `SystemExit` with 2 on a wrong
        command line.
    """
    given = parsed(argv)
    try:
        with reader_may_leave():
            try:
                return _run(given, Terminal(sys.stdout, os.environ))
            finally:
                # What went wrong comes last, also where both go to one file.
                sys.stdout.flush()
    except MxPolicyError as error:
        _complain(str(error))
    except OSError as error:
        _complain(f"{error.filename or 'setup'}: {error.strerror}")
    return 1


def _complain(text: str) -> None:
    is_shut = os.strerror(errno.EACCES) in text and os.geteuid()
    mend = ": try as root" if is_shut else ""
    print(f"mxpolicy: {printable(text, 4000)}{mend}", file=sys.stderr)


def _run(given: argparse.Namespace, terminal: Terminal) -> int:
    server = _server(given)
    if given.undo:
        return flow.take_back(server, terminal, is_applied=given.apply)
    options = load(given.config, os.environ)
    asked = _asked(given, options)
    found = _look_at_machine(given, asked, options, server.directory)
    if isinstance(server, Exim) and not server.is_split:
        terminal.say(
            f"{server.single_file} is no split configuration of Debian's, so the lines"
            " are for you to put in. Nothing was changed."
        )
        refusals, notes = found
        is_routed = asked.all_mail or asked.domains
        notes = [*notes, *(server.to_client() if is_routed else ())]
        show.sentences(refusals, notes, terminal)
        show.by_hand(server.by_hand(asked), terminal)
        return 1 if given.apply or refusals else 0
    return flow.set_up(server, asked, found, terminal, is_applied=given.apply)


def _server(given: argparse.Namespace) -> MailServer:
    search = os.environ.get("PATH", "")
    if given.mail_server == "exim":
        for name in NAMES:
            if programs := directory_of(name, search):
                asked = partial(run, programs, patience=EXIM_PATIENCE)
                return Exim(DIRECTORY, asked, program=name)
        raise SetupError(
            "there is no Exim on this machine (neither exim4 nor exim found)"
        )
    directory = directory_of("postconf", search)
    if directory is None:
        raise SetupError("there is no Postfix on this machine (no postconf found)")
    named = given.directory or os.environ.get("MAIL_CONFIG")
    # Postfix's daemons have another working directory than we have.
    environ = {"MAIL_CONFIG": os.path.abspath(named)} if named else {}
    return Postfix(partial(run, directory, environ=environ))


def _asked(given: argparse.Namespace, options: Options) -> Asked:
    program = os.path.join(sys.prefix, "bin", "mxpolicy")
    if not os.path.exists(program):
        # Where pip has put it without an environment of its own.
        program = shutil.which("mxpolicy") or program
    return Asked(
        domains=tuple(dict.fromkeys(given.one_domain)),
        fallback=given.fallback,
        all_mail=given.all_mail,
        policy=given.policy,
        lmtp=given.lmtp,
        program=program,
        config=os.path.abspath(given.config) if given.config else "",
        processes=options.limits.processes,
    )


def _look_at_machine(
    given: argparse.Namespace, asked: Asked, options: Options, directory: str
) -> tuple[list[str], list[str]]:
    """Return what is in the way on this machine, and what to know."""
    user = account(USER)
    if user is None:
        return [
            f"there is no user {USER}, and deliveries run as it: adduser --system"
            f" --group --no-create-home {USER}"
        ], []
    refusals, notes = [], []
    refusals += [
        f"{path} has a character in it that the mail server would not take as it is"
        for path in (asked.program, asked.config, directory)
        if not _PLAIN.fullmatch(path)
    ]
    found = obstacle(user, asked.program)
    if found.why:
        refusals.append(": ".join(filter(None, found)))
    file = asked.config or DEFAULT_PATH
    if (shut := HERE.unreadable(user, file)).why:
        refusals.append(f"{file}: all mail would be deferred: {': '.join(shut)}")
    by_lmtp = asked.lmtp and given.mail_server == "postfix"
    if by_lmtp and LMTP_AT not in options.listen.lmtp.at:
        refusals.append(
            f"the daemon does not listen at {LMTP_AT}, where --lmtp has Postfix deliver:"
            f" put listen: {{lmtp: {{at: [unix, '{LMTP_AT}']}}}} into"
            f" {asked.config or DEFAULT_PATH}, and start the daemon again"
        )
    if asked.lmtp and given.mail_server == "exim" and not os.path.exists(LMTP_SOCKET):
        notes.append(
            f"no daemon is at {LMTP_SOCKET}: until mxpolicy serve runs, with its socket"
            " open to Exim's group, the mail that goes there is deferred"
        )
    state = os.path.dirname(state_file(options.state, os.environ))
    if not os.path.isdir(state):
        notes.append(
            f"{state} is not there, so nothing is remembered and there is no journal:"
            f" install -d -o {USER} -g {USER} -m 0750 {state}"
        )
    return refusals, notes
