"""What is said of the Exim of this machine: a pure function of what was gathered.

`mxpolicy.check.exim` gathers. contrib/exim has the lines, and the reason of each.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import ADD_USER
from mxpolicy.check.command import Command, cannot_run, cannot_use_file
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.check.time_limit import LEAST_MARGIN, MARGIN
from mxpolicy.pipe_command import time_needed
from mxpolicy.protocol.smtp_states import DOT_TIME

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mxpolicy.check.report import Item

__all__ = [
    "ENVIRONMENT",
    "RULE",
    "TEMPORARY",
    "Lmtp",
    "Transport",
    "judge_lmtp",
    "judge_pipe",
    "judge_retry",
    "judge_routers",
    "judge_verification",
    "judge_ways",
    "parse_time",
]

# As in contrib/exim.
ENVIRONMENT = "RETURN_PATH=${listquote{:}{$return_path}}"
TEMPORARY = "1:2:64:65:66:67:68:70:71:72:73:74:75:76:77:78:120:126:127:254"
RULE = "*  *  F,2h,15m; G,16h,1h,1.5; F,4d,6h"

REFUSAL = "69"  # the status that bounces

# mxpolicy says one line of at most so many bytes.
LINE = 4096

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TIME = re.compile(r"(?:\d+[wdhms])+")
_SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}

# (option, what contrib has, how bad another value is, what happens then)
_WANTED = (
    ("message_prefix", "", fail, "a line stands before the message, and it is damaged"),
    ("message_suffix", "", fail, "a line is added to the message: signatures break"),
    ("check_string", "", fail, "lines of the message are changed: signatures break"),
    ("use_bsmtp", "no", fail, "SMTP commands stand before the message"),
    ("use_crlf", "no", fail, "line ends of the message are changed"),
    ("transport_filter", "", warn, "the message is changed on its way"),
    ("ignore_status", "no", fail, "all mail counts as delivered, also what was not"),
    ("return_output", "no", fail, "what mxpolicy says makes a bounce of a deferral"),
    ("timeout_defer", "yes", fail, "at its timeout Exim bounces the message"),
    ("freeze_signal", "yes", fail, "when both processes are killed, Exim bounces"),
    ("use_shell", "no", fail, "a shell reads the addresses, and a stranger wrote them"),
    ("batch_max", "1", fail, "one status holds for all recipients of a run"),
    ("max_parallel", "", warn, "Exim defers all mail beyond it, healthy mail too"),
    ("return_fail_output", "yes", warn, "a bounce does not say why"),
    ("log_output", "yes", warn, "the log does not say which host took a message"),
)


def parse_time(text: str) -> float | None:
    """Return the seconds of a time as Exim writes it, None if it is none: ``1h30m``."""
    if not _TIME.fullmatch(text):
        return None
    return float(
        sum(int(one[:-1]) * _UNITS[one[-1]] for one in re.findall(r"\d+\w", text))
    )


class Transport(NamedTuple):
    """A pipe transport that runs mxpolicy, and what it refers to.

    Attributes:
        name: Of the transport.
        options: As ``-bP`` shows them, by name.
        command: What is run; without an account where Exim makes it of a message.
    """

    name: str
    options: Mapping[str, str]
    command: Command = Command()


class Lmtp(NamedTuple):
    """A transport that delivers to the daemon, and the option ``lmtp.timeout``."""

    name: str
    options: Mapping[str, str]
    within: float


def judge_pipe(it: Transport) -> list[Item]:
    """Return what is said of one transport."""
    return [*_judge_command(it), *_judge_options(it), *_judge_time(it)]


def _judge_command(it: Transport) -> list[Item]:
    name, user = it.name, it.options.get("user", "")
    environment = it.options.get("environment", "")
    return said(
        ok(True, f"transport {name} runs {it.options.get('command', '')}"),
        first(
            fail(
                not user,
                f"{name} has no user: mxpolicy runs as Exim's own user, and what is"
                " remembered belongs to another one",
                "user = mxpolicy",
            ),
            fail(
                "$" not in user and it.command.account is None,
                f"{name} has user = {user}, which is not known here: all mail is"
                " deferred",
                ADD_USER,
            ),
            fail(
                it.command.account and it.command.account.uid == 0,
                f"{name} has user = {user}, as which Exim delivers nothing",
                "user = mxpolicy",
            ),
            cannot_run(it.command, name, ": all mail is deferred"),
        ),
        first(
            fail(
                it.command.usage_error,
                f"{name}: all mail is deferred: {it.command.usage_error}",
            ),
            fail(
                "--exim" not in it.command.words,
                f"{name} does not pass --exim: Exim does not understand how mxpolicy"
                " ends",
            ),
            fail(
                "$pipe_addresses" not in it.command.words,
                f"{name} does not pass $pipe_addresses, the only word of a message that"
                " Exim lets stand on a command line: mail goes astray or bounces",
            ),
            cannot_use_file(it.command, name, fail, "all mail is deferred (4.3.5)"),
        ),
        first(
            fail(
                "RETURN_PATH=" not in environment,
                f"{name} does not pass the sender: all mail is deferred",
                f"environment = {ENVIRONMENT}",
            ),
            fail(
                ENVIRONMENT not in environment,
                f"{name} does not quote the sender: a message could set other variables",
                f"environment = {ENVIRONMENT}",
            ),
        ),
    )


def _judge_options(it: Transport) -> list[Item]:
    statuses = it.options.get("temp_errors", "").replace(" ", "")
    hard = [one for one in TEMPORARY.split(":") if one not in statuses.split(":")]
    size = re.fullmatch(r"(\d+)([KMG]?)", it.options.get("max_output", "20K"))
    most = int(size[1]) * _SIZES[size[2]] if size else LINE
    return said(
        *(
            level(
                it.options.get(name, wanted) != wanted,
                f"{it.name} has {_shown(name, it.options.get(name, ''))}: {effect}",
                _shown(name, wanted),
            )
            for name, wanted, level, effect in _WANTED
        ),
        first(
            warn(
                statuses == "*" or REFUSAL in statuses.split(":"),
                f"{it.name}: temp_errors has {REFUSAL}, too: what a host refuses for"
                " good stays in the queue",
                f"temp_errors = {TEMPORARY}",
            ),
            fail(
                hard,
                f"{it.name}: temp_errors lacks {', '.join(hard)}: when Python does not"
                " start, or a file is missing, mail is bounced, not deferred",
                f"temp_errors = {TEMPORARY}",
            ),
        ),
        fail(
            most <= LINE,
            f"{it.name}: max_output is {it.options.get('max_output')}: at a long line"
            " Exim kills the command, and bounces",
            "max_output = 20K",
        ),
    )


def _shown(name: str, value: str) -> str:
    """Return an option as it is written."""
    if value in {"yes", "no"}:
        return name if value == "yes" else f"no_{name}"
    return f"{name} = {value}".rstrip()


def _judge_time(it: Transport) -> list[Item]:
    if it.command.arguments is None or it.command.options is None:
        return []
    written = it.options.get("timeout", "1h")
    limit = parse_time(written)
    given = it.command.arguments.deadline
    needed = time_needed(given, it.command.options)
    deadline = given or it.command.options.deadline
    source = "--deadline" if given else "the option deadline"
    wanted = deadline + DOT_TIME + MARGIN
    return said(
        first(
            warn(limit is None, f"{it.name}: timeout cannot be understood: {written}"),
            fail(
                limit and limit < needed + LEAST_MARGIN,
                f"{it.name}: timeout is {written}, {source} {deadline:.0f} s, and a host"
                f" may take {DOT_TIME:.0f} s more to answer the end of a message: Exim"
                " kills a delivery that is still under way, and the message arrives"
                " twice",
                f"timeout = {wanted:.0f}s",
            ),
            ok(
                True,
                f"{it.name}: deferred after {needed:.0f} s at the latest, killed by Exim"
                f" after {written if limit else 'no time'}",
            ),
        )
    )


def judge_lmtp(it: Lmtp) -> list[Item]:
    """Return what is said of one transport that delivers to the daemon."""
    written = it.options.get("timeout", "5m")
    limit = parse_time(written)
    batch = it.options.get("batch_max", "1")
    return said(
        ok(True, f"transport {it.name} delivers to {it.options.get('socket', '')}"),
        fail(
            limit and limit <= it.within,
            f"{it.name}: timeout is {written}, and the daemon answers within"
            f" {it.within:.0f} s (lmtp.timeout): a message that a slow host takes is sent"
            " again",
            "timeout = 1h",
        ),
        warn(
            batch == "1",
            f"{it.name}: batch_max is 1: Exim delivers to one recipient after the other",
            "batch_max = 50",
        ),
    )


def judge_routers(
    transports: Mapping[str, object], routers: Mapping[str, Mapping[str, str]]
) -> list[Item]:
    """Say which routers lead to our *transports*, and what is wrong with them."""
    led = {one.get("transport") for one in routers.values()}
    rows = [
        ok(one not in led, f"no router leads to {one}: it gets no mail")
        for one in transports
    ]
    for name, one in routers.items():
        domains = one.get("domains", "")
        rows += [
            ok(
                domains,
                f"router {name} leads to {one.get('transport')}: {domains}",
            ),
            warn(
                not domains and not one.get("condition"),
                f"router {name} has no domains: it takes mail for this machine, too",
                "domains = ! +local_domains",
            ),
            fail(
                one.get("unseen") == "yes",
                f"router {name} has unseen: the next router delivers the same mail once"
                " more",
                "no_unseen",
            ),
        ]
    return said(*rows)


def judge_verification(routers: Mapping[str, Mapping[str, str]]) -> list[Item]:
    """Say which *routers* are asked by an ACL, where another one knows what exists."""
    return said(
        *(
            warn(
                "yes" in {one.get("verify_sender"), one.get("verify_recipient")},
                f"router {name} lacks no_verify: an ACL with verify = sender or verify ="
                " recipient takes each domain for a good one, also one that does not"
                " exist",
                "no_verify",
            )
            for name, one in routers.items()
        )
    )


def judge_ways(
    ways: Mapping[str, tuple[str, str]], transports: Collection[str]
) -> list[Item]:
    """Say where mail that a router of ours should take goes another way.

    Args:
        ways: By which router and transport it goes, by the name of our router.
        transports: Ours.
    """
    return said(
        *(
            warn(
                transport not in transports,
                f"router {name} does not get its mail: router {other}, which stands"
                f" before it, sends it to {transport}",
            )
            for name, (other, transport) in ways.items()
        )
    )


def judge_retry(rules: Mapping[str, str]) -> list[Item]:
    """Judge the retry rules, as ``-brt`` shows them by domain."""
    return said(
        *(
            first(
                ok(
                    text.startswith("Retry rule:"),
                    f"what is deferred for {domain} is tried again:"
                    f" {' '.join(text.split()[2:])}",
                ),
                fail(
                    True,
                    f"there is no retry rule for {domain}: Exim bounces what mxpolicy"
                    f" defers ({text})",
                    RULE,
                ),
            )
            for domain, text in rules.items()
        )
    )
