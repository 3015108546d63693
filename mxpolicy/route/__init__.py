"""``mxpolicy route NEXTHOP``: the plan for a message, and its reasons; dials nothing.

Which hosts would be tried, in which order and when, what is remembered of each, what
was left out and why, and what DNS said. ``mxpolicy pipe`` would do the same now for the
same sender and recipient: plan and memory are the engine's own. When no host would be
dialled, the exit status is what the mail server would get. Nothing is remembered.

`explanation` has the reasons, `text` shows them to people.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, UnsupportedDomain, parse_mailbox
from mxpolicy.config import load
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.forecast import Forecast
from mxpolicy.delivery.plan import Plan
from mxpolicy.errors import ConfigError
from mxpolicy.options import Options
from mxpolicy.outcome import Deferred
from mxpolicy.reply import printable
from mxpolicy.route.explanation import as_json, exit_status, explain
from mxpolicy.route.text import show
from mxpolicy.routing.mx import MISCONFIGURED
from mxpolicy.state.opening import open_to_read, state_file
from mxpolicy.terminal import shown_by, write_out

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["main", "parser"]

# Every domain has it (RFC 5321 §4.5.1). Where no recipient is given, it decides only how
# equal hosts are shuffled.
DEFAULT_LOCAL_PART = "postmaster"


def main(argv: Sequence[str]) -> int:
    """Show the plan that *argv* asks for.

    Args:
        argv: What follows ``mxpolicy route`` on the command line.

    Returns:
        0 when there is a host to dial, else 75 or 69 as ``mxpolicy pipe`` would
        answer. Leaves by `SystemExit` with 2 on a wrong command line.
    """
    arguments = parser().parse_args(argv)
    nexthop, sender = arguments.nexthop, arguments.sender
    recipient = arguments.recipient or _postmaster(nexthop)
    troubles: list[str] = []
    try:
        options = load(arguments.config, os.environ)
        store = open_to_read(state_file(options.state, os.environ), troubles.append)
        engine = Engine(Context(options, store=store))
    except ConfigError as error:
        options = Options()
        refusal = Deferred(MISCONFIGURED, printable("; ".join(error.mistakes), 4000))
        forecast = Forecast(Plan(nexthop, (), refusal=refusal))
    else:
        forecast = asyncio.run(engine.forecast(nexthop, sender, recipient))
    explained = explain(
        forecast, options, printable(sender), printable(recipient), troubles
    )
    write_out(
        arguments,
        lambda: as_json(explained),
        lambda terminal: show(explained, terminal),
    )
    return exit_status(forecast.plan)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = shown_by(
        "route",
        "Show which hosts a message would be tried at, when and why. Asks DNS and"
        " reads what is remembered; dials nothing.",
        "Exit status: 0 when there is a host to dial; else 75 or 69, as mxpolicy pipe"
        " would answer.",
    )
    parser.add_argument(
        "nexthop",
        metavar="NEXTHOP",
        help="domain, domain:port, [host], [address], or a list, as in transport(5)",
    )
    parser.add_argument(
        "--sender",
        metavar="ADDRESS",
        default="",
        help="reverse-path; with the recipient it decides the order of equal hosts",
    )
    parser.add_argument(
        "--recipient",
        metavar="ADDRESS",
        help="forward-path; default: postmaster of the nexthop, where that is a domain",
    )
    return parser


def _postmaster(nexthop: str) -> str:
    """Return a recipient in the domain *nexthop*, or nothing if it is no domain."""
    recipient = f"{DEFAULT_LOCAL_PART}@{nexthop.strip()}"
    try:
        parse_mailbox(recipient)
    except UnsupportedDomain:
        return recipient  # the plan says what is wrong with it
    except AddressError:
        return ""
    return recipient
