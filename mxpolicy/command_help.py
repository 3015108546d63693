"""The command lines of what a mail server or a service manager runs, for people.

`mxpolicy pipe` and `mxpolicy policy` read their command lines by hand: argparse ends with
status 2, which bounces the message. What is here prints their help at a terminal. The
manual pages and the completion of words in a shell are made from it, too.
"""

from __future__ import annotations

import argparse

__all__ = ["parser"]

_CONFIG = (
    "the configuration; default: $MXPOLICY_CONFIG, else /etc/mxpolicy/mxpolicy.yaml"
)


def parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of ``pipe``, ``policy`` or ``serve``."""
    return _pipe() if command == "pipe" else _configured(command)


def _pipe() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="mxpolicy pipe",
        # As `mxpolicy.pipe_command.USAGE` has it.
        usage="%(prog)s {-f SENDER | --exim} [--nexthop HOP] [--queue-id ID]\n"
        "                     [--deadline 900s] [--socket PATH] [--config FILE]\n"
        "                     -- RECIPIENT...",
        description="Deliver the message on standard input. Run by the mail server:"
        " pipe(8) of Postfix, or Exim's pipe transport. Where the daemon runs, it gets"
        " the message (mxpolicy serve).",
        epilog="Exit status: 0 delivered, 75 try later, 69 bounce, and never another one."
        " Standard output has one line: the status as in RFC 3463, and the reason.",
        allow_abbrev=False,
    )
    made.add_argument(
        "-f", metavar="SENDER", help="reverse-path; an empty one, or <>, is null"
    )
    made.add_argument(
        "--exim",
        action="store_true",
        help="the sender is in RETURN_PATH, and the message's id in MESSAGE_ID",
    )
    made.add_argument(
        "--nexthop",
        metavar="HOP",
        help="domain, domain:port, [host], [address], or a list, as in transport(5);"
        " default: each recipient's own domain",
    )
    made.add_argument("--queue-id", metavar="ID", help="the mail server's name for it")
    made.add_argument(
        "--deadline",
        metavar="900s",
        help="until when the message is sent; the answer to its end may take 600 s more."
        " The mail server's own limit stays 700 s above it",
    )
    made.add_argument(
        "--socket",
        metavar="PATH",
        help="the daemon's; default: /run/mxpolicy/pipe, and none with --config",
    )
    made.add_argument("--config", metavar="FILE", help=_CONFIG)
    made.add_argument("recipient", metavar="RECIPIENT", nargs="+", help="forward-path")
    return made


# Description and epilog of the commands that have no other option than ``--config``.
_CONFIGURED = {
    "policy": (
        "Answer the questions of one smtpd(8) on standard input (check_policy_service)."
        " Run by spawn(8) of Postfix.",
        "Exit status: 0 when the mail server has hung up, 1 when it ended by its own"
        " fault. A question that cannot be answered is answered DUNNO.",
    ),
    "serve": (
        "The daemon: takes messages from mxpolicy pipe and by LMTP, and answers access"
        " policy questions, over sockets. Stays in the foreground. SIGHUP: read the"
        " configuration again. SIGTERM: end, and finish first what a host may have taken.",
        "Exit status: 0 when a signal has ended it, 1 when it could not begin, 2 when"
        " misused.",
    ),
}


def _configured(command: str) -> argparse.ArgumentParser:
    description, epilog = _CONFIGURED[command]
    made = argparse.ArgumentParser(
        prog=f"mxpolicy {command}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
    )
    made.add_argument("--config", metavar="FILE", help=_CONFIG)
    return made
