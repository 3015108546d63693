"""The command line of ``mxpolicy setup``."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parsed", "parser"]

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_DOMAIN = re.compile(rf"\.?{_LABEL}(?:\.{_LABEL})*")


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Return what *argv* says; leave by `SystemExit` with 2 where that is wrong."""
    made = parser()
    given = made.parse_args(argv)
    _judge(made, given)
    return given


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
