"""``mxpolicy setup``: sets up Postfix or Exim for mxpolicy, or takes that back.

It prints what it would do, and does it with ``--apply``. What was there before is kept in
a file beside the mail server's configuration, and ``--undo`` restores it.

`steps` are the values, `cf_text` reads and edits main.cf and master.cf, `postfix_lines`
and `exim_lines` have the lines, `postfix_plan` and `restrictions` say what would change,
`undo` how it is taken back; all of these are pure. `kept` is the file, `postfix` with
`postfix_queue` and `postfix_processes`, and `exim`, look and do; `exim_command` and
`show` print.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.check.access import account
from mxpolicy.check.installation import obstacle
from mxpolicy.check.postconf import directory_of, run
from mxpolicy.config import load
from mxpolicy.errors import MxPolicyError
from mxpolicy.reply import printable
from mxpolicy.setup import exim_command, show
from mxpolicy.setup.kept import SetupError, alone, sweep
from mxpolicy.setup.postfix import Postfix
from mxpolicy.setup.postfix_lines import LMTP_AT
from mxpolicy.setup.postfix_plan import Asked, plan
from mxpolicy.state.opening import state_file
from mxpolicy.terminal import Terminal, reader_may_leave

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.options import Options

__all__ = ["main", "parser"]

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_DOMAIN = re.compile(rf"\.?{_LABEL}(?:\.{_LABEL})*")

# What neither Postfix nor Exim takes for more than a character.
_PLAIN = re.compile(r"[\w./+@%-]*", re.A)

USER = "mxpolicy"


def main(argv: Sequence[str]) -> int:
    """Say what would be done, or do it.

    Returns:
        0; 1 when something is in the way. Leaves by `SystemExit` with 2 on a wrong
        command line.
    """
    made = parser()
    arguments = made.parse_args(argv)
    _judge(made, arguments)
    try:
        with reader_may_leave():
            terminal = Terminal(sys.stdout, os.environ)
            if arguments.mail_server == "exim":
                return exim_command.main(arguments, _asked, terminal)
            return _postfix(arguments, terminal)
    except MxPolicyError as error:
        print(f"mxpolicy: {printable(str(error), 4000)}", file=sys.stderr)
    except OSError as error:
        where = error.filename or "setup"
        print(f"mxpolicy: {where}: {error.strerror}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="mxpolicy setup",
        # The mail server first: --one-domain would take it for one more domain.
        usage="%(prog)s [-h] {postfix,exim} [--one-domain DOMAIN... | --all-mail]\n"
        "                      [--fallback] [--policy] [--lmtp] [--undo] [--apply]\n"
        "                      [-c DIR] [--config FILE]",
        description="Set up Postfix or Exim for mxpolicy, or take that back. Prints"
        " what it would do; does it with --apply. It never touches the queue.",
        epilog="Without --one-domain, --fallback and --all-mail the transport is there"
        " and gets no mail. Exit status: 0 well, 1 something is in the way, 2 misused.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("mail_server", choices=["postfix", "exim"])
    add(
        "--one-domain",
        nargs="+",
        default=[],
        metavar="DOMAIN",
        type=_domain,
        help="mail for these goes by mxpolicy; .DOMAIN is all that is below it",
    )
    add(
        "--fallback",
        action="store_true",
        help="what Postfix's own client could not deliver goes by mxpolicy",
    )
    add("--all-mail", action="store_true", help="all mail that leaves goes by mxpolicy")
    add(
        "--policy",
        action="store_true",
        help="mxpolicy is asked before a message is taken",
    )
    add(
        "--lmtp",
        action="store_true",
        help="the daemon takes the mail by LMTP (mxpolicy serve), not mxpolicy pipe",
    )
    add("--undo", action="store_true", help="take back what set-up did")
    add("--apply", action="store_true", help="do it, not only print it")
    add(
        "-c",
        dest="directory",
        metavar="DIR",
        help="the directory of Postfix's main.cf, instead of MAIL_CONFIG or the usual one",
    )
    add(
        "--config",
        metavar="FILE",
        help="mxpolicy's configuration file, instead of the usual one",
    )
    return made


def _domain(text: str) -> str:
    """Return a domain as a transport table has it."""
    domain = text.lower().rstrip(".")
    if not _DOMAIN.fullmatch(domain):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no domain (write an international one as xn--...)"
        )
    return domain


def _judge(made: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Leave by `SystemExit` where options of the command line do not go together."""
    chosen = [
        name
        for name in ("one_domain", "fallback", "all_mail", "policy", "lmtp")
        if getattr(given, name)
    ]
    rows = (
        (given.undo and chosen, "--undo takes back all: it goes with --apply only"),
        (given.all_mail and given.one_domain, "--all-mail has each domain in it"),
        (given.all_mail and given.fallback, "with --all-mail nothing falls back"),
        (
            given.fallback and given.lmtp,
            "--fallback goes by mxpolicy pipe, not by --lmtp",
        ),
        (
            given.mail_server == "exim" and given.fallback,
            "--fallback is for Postfix: Exim has no such relay",
        ),
        (
            given.mail_server == "exim" and given.directory,
            "-c is for Postfix: update-exim4.conf makes one configuration only",
        ),
    )
    for is_wrong, text in rows:
        if is_wrong:
            made.error(text)


def _asked(given: argparse.Namespace) -> tuple[Asked, list[str], list[str]]:
    """Return what is asked for, what is in the way on this machine, and what to know.

    Raises:
        ConfigError: The configuration of mxpolicy cannot be used.
    """
    options = load(given.config, os.environ)
    program = os.path.join(sys.prefix, "bin", "mxpolicy")
    if not os.path.exists(program):
        # Where pip has put it without an environment of its own.
        program = shutil.which("mxpolicy") or program
    asked = Asked(
        domains=tuple(dict.fromkeys(given.one_domain)),
        fallback=given.fallback,
        all_mail=given.all_mail,
        policy=given.policy,
        lmtp=given.lmtp,
        program=program,
        config=os.path.abspath(given.config) if given.config else "",
        processes=options.limits.processes,
    )
    return asked, *_machine(asked, options)


def _machine(asked: Asked, options: Options) -> tuple[list[str], list[str]]:
    user = account(USER)
    if user is None:
        return [
            f"there is no user {USER}, and deliveries run as it: adduser --system"
            f" --group --no-create-home {USER}"
        ], []
    refusals, notes = [], []
    refusals += [
        f"{path} has a character in it that the mail server would not take as it is"
        for path in (asked.program, asked.config)
        if not _PLAIN.fullmatch(path)
    ]
    found = obstacle(user, asked.program)
    if found.why:
        refusals.append(": ".join(filter(None, found)))
    state = os.path.dirname(state_file(options.state, os.environ))
    if not os.path.isdir(state):
        notes.append(
            f"{state} is not there, so nothing is remembered and there is no journal:"
            f" install -d -o {USER} -g {USER} -m 0750 {state}"
        )
    return refusals, notes


def _postfix(given: argparse.Namespace, terminal: Terminal) -> int:
    environ = (
        {"MAIL_CONFIG": os.path.abspath(given.directory)} if given.directory else {}
    )
    directory = directory_of("postconf", os.environ.get("PATH", ""))
    if directory is None:
        raise SetupError("there is no Postfix on this machine (no postconf found)")
    postfix = Postfix(partial(run, directory, environ=environ))
    if given.undo:
        return _undo(postfix, given.apply, terminal)
    asked, refusals, notes = _asked(given)
    if asked.lmtp and LMTP_AT not in load(given.config, os.environ).listen.lmtp.at:
        refusals.append(
            f"the daemon does not listen at {LMTP_AT}, where --lmtp has Postfix deliver:"
            f" listen: {{lmtp: {{at: ['{LMTP_AT}']}}}} in mxpolicy.yaml"
        )
    seen = postfix.seen(asked)
    what = plan(asked, seen)
    what = what._replace(
        refusals=(*refusals, *what.refusals), notes=(*notes, *what.notes)
    )
    commands = postfix.commands(what) if what.steps else []
    show.plan(what, seen.directory, commands, terminal)
    if what.refusals:
        return 1
    if postfix.is_unfinished:
        terminal.say("An earlier set-up was interrupted; --apply finishes it.")
    elif not what.steps:
        return 0
    if not given.apply:
        show.not_yet(terminal)
        return 0
    with alone(postfix.directory):
        # What is there may be another by now.
        if plan(asked, postfix.seen(asked)).steps != what.steps:
            raise SetupError("something changed meanwhile; look again")
        runs = postfix.apply(asked, what)
    if not runs:
        terminal.say("Postfix does not run, so it was not reloaded.")
    show.done(postfix.kept_path, terminal)
    return 0


def _undo(postfix: Postfix, is_applied: bool, terminal: Terminal) -> int:
    what = postfix.undoing()
    if what is None:
        if is_applied:
            sweep(postfix.directory)
        terminal.say(f"Nothing to undo: there is no {postfix.kept_path}.")
        return 0
    show.undoing(what.there, what.undone, what.refusals, terminal)
    if what.refusals:
        return 1
    if not is_applied:
        show.not_yet(terminal)
        return 0
    with alone(postfix.directory):
        if postfix.undoing() != what:
            raise SetupError("something changed meanwhile; look again")
        after = postfix.undo(what, terminal.say)
    for sentence in after:
        terminal.say(sentence, "warn  ")
    show.undone(terminal)
    return 1 if after else 0
