"""``mxpolicy ask NAME=VALUE...``: what the access policy server answers, and why.

The test client of the protocol (SMTPD_POLICY_README): it asks as smtpd(8) does. Where a
daemon runs, it asks that; else this process answers as ``mxpolicy policy`` would, by the
same engine. No host is dialled, and nothing is remembered.

The protocol carries no reasons. So they are always this process's own, from the same
configuration, DNS and memory. When it would answer otherwise than the daemon, it says so.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.config import load
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import Trouble
from mxpolicy.delivery.inquiry import found_by
from mxpolicy.doors import runtime_directory, socket_address
from mxpolicy.errors import ConfigError, UsageError
from mxpolicy.protocol.access_policy import (
    DUNNO,
    REQUEST,
    AccessRequest,
    parse_request,
)
from mxpolicy.protocol.attributes import AttributeReader
from mxpolicy.reply import printable
from mxpolicy.route.explanation import as_json, explain
from mxpolicy.route.text import show as show_route
from mxpolicy.routing.access_rules import AccessRules
from mxpolicy.server.access_policy import AccessPolicyServer
from mxpolicy.server.access_policy.judge import (
    addresses_of,
    domain_to_judge,
    situation_of,
)
from mxpolicy.state.opening import open_to_read, state_file
from mxpolicy.terminal import BOLD, DIM, YELLOW, milliseconds, shown_by, write_out

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

    from mxpolicy.delivery.events import Event
    from mxpolicy.options import AccessAbout, AccessRule, Options
    from mxpolicy.route.explanation import Explained
    from mxpolicy.routing.access_rules import Situation
    from mxpolicy.terminal import Terminal

__all__ = ["main", "parser"]

# Attributes that the answer depends on.
NAMES = AccessRequest._fields

# Seconds for a daemon beyond `policy.timeout`, within which it answers.
GRACE = 2.0

READ_SIZE = 4096


class Answer(NamedTuple):
    """An action, and whose answer it is.

    Attributes:
        action: It.
        answered_by: ``the daemon at ...``, or ``this process``.
        seconds: How long that took.
    """

    action: str
    answered_by: str
    seconds: float


class Reason(NamedTuple):
    """What is known of one address.

    Attributes:
        about: Whose it is.
        address: Printable.
        domain: Empty when it is not judged.
        situation: What was found; None when nothing is certain.
        rule: Which rule decides, in words; empty when none does.
        explained: The plan for mail to it; None when it is not judged.
    """

    about: AccessAbout
    address: str
    domain: str
    situation: Situation | None = None
    rule: str = ""
    explained: Explained | None = None


class Told(NamedTuple):
    """All there is to tell.

    Attributes:
        answer: The answer.
        own: What this process would answer; the same unless the daemon has answered.
        reasons: One for each address.
        remarks: What else is worth knowing, printable lines.
    """

    answer: Answer
    own: str
    reasons: Sequence[Reason] = ()
    remarks: Sequence[str] = ()


def main(argv: Sequence[str]) -> int:
    """Ask as *argv* says, and show the answer.

    Args:
        argv: What follows ``mxpolicy ask`` on the command line.

    Returns:
        0: there is an answer. 1: the configuration cannot be used, or nothing answers at
        ``--socket``. 2: the command line is wrong; by `SystemExit`, too.
    """
    arguments = parser().parse_args(argv)
    try:
        attributes = _attributes(arguments.attribute)
    except UsageError as error:
        sys.stderr.write(f"mxpolicy ask: {error}\n")
        return 2
    mistakes: Sequence[str] = ()
    try:
        options = load(arguments.config, os.environ)
    except ConfigError as error:
        mistakes = error.mistakes
        told = Told(Answer(DUNNO, "this process", 0.0), DUNNO, (), mistakes)
    else:
        try:
            answer, remarks = _ask_daemon(arguments, options, attributes)
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            sys.stderr.write(f"mxpolicy ask: {arguments.socket}: {why}\n")
            return 1
        told = asyncio.run(_judge(options, attributes, answer, remarks))
    write_out(arguments, lambda: _as_json(told), lambda terminal: _show(told, terminal))
    return 1 if mistakes else 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = shown_by(
        "ask",
        "Ask what the mail server asks (check_policy_service), and show the answer with"
        " its reasons. Where the daemon runs, it answers. Dials nothing.",
        "Exit status: 0 when there is an answer, 1 when there is none or the"
        " configuration is wrong, 2 when misused.",
    )
    parser.add_argument(
        "attribute",
        metavar="NAME=VALUE",
        nargs="+",
        help=f"recipient=ADDRESS, sender=ADDRESS, or another of: {', '.join(NAMES)}",
    )
    parser.add_argument(
        "--socket",
        metavar="WHERE",
        help="the daemon's: a path, or ADDRESS:PORT; default: as the configuration says,"
        " without --config",
    )
    return parser


def _attributes(words: Iterable[str]) -> dict[str, str]:
    """Return the attributes of the request, in order.

    Raises:
        UsageError: One of them means nothing here, or there is no address.
    """
    given = {"protocol_state": "RCPT"}
    seen = set()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f" (did you mean '{near[0]}='?)" if near else ""
            if not equals and "@" in word:
                hint = f" (did you mean 'recipient={printable(word, 60)}'?)"
            raise UsageError(
                f"{printable(word, 60)!r} is not NAME=VALUE by one of the names"
                f" {', '.join(NAMES)}{hint}"
            )
        if name in seen:
            raise UsageError(f"{name} is given twice")
        if {"\n", "\r", "\0"} & set(value):
            raise UsageError(f"{name} has a line end, which the protocol cannot carry")
        seen.add(name)
        given[name] = value
    if not given.get("recipient") and not given.get("sender"):
        raise UsageError("give recipient=ADDRESS or sender=ADDRESS")
    return {"request": REQUEST, **given}


# -- the daemon --------------------------------------------------------------------------


def _ask_daemon(
    arguments: argparse.Namespace, options: Options, attributes: Mapping[str, str]
) -> tuple[Answer | None, list[str]]:
    """Return the daemon's answer, if one runs, and why another one gives none.

    Raises:
        OSError: There is none at the socket that was named.
    """
    timeout = options.policy.timeout + GRACE
    if arguments.socket:
        return _ask_at(arguments.socket, attributes, timeout), []
    if arguments.config:
        return None, []
    remarks = []
    for word in options.listen.policy.at:
        at = socket_address("policy", word, runtime_directory(os.environ))
        try:
            return _ask_at(at, attributes, timeout), []
        except (FileNotFoundError, ConnectionRefusedError):
            continue  # no daemon runs
        except OSError as error:
            remarks.append(f"the daemon is not asked: {at}: {error.strerror or error}")
    return None, remarks


def _ask_at(at: str, attributes: Mapping[str, str], timeout: float) -> Answer:
    """Return the answer of the server at *at*."""
    began = time.monotonic()
    lines = "".join(f"{name}={value}\n" for name, value in attributes.items())
    with _connected(at, timeout) as connection:
        connection.sendall(lines.encode("utf-8", "surrogateescape") + b"\n")
        reader = AttributeReader()
        while True:
            left = began + timeout - time.monotonic()
            if left <= 0:
                raise TimeoutError(0, f"no answer within {timeout:g} s")
            connection.settimeout(left)
            data = connection.recv(READ_SIZE)
            if not data:
                raise ConnectionError(0, "it has hung up without an answer")
            for one in reader.receive_data(data):
                if not isinstance(one, dict) or "action" not in one:
                    raise ConnectionError(0, "it does not speak the protocol")
                seconds = time.monotonic() - began
                action = printable(one["action"], 1000)
                return Answer(action, f"the daemon at {at}", seconds)


def _connected(at: str, timeout: float) -> socket.socket:
    if not at.startswith("/"):
        host, _, port = at.rpartition(":")
        if not host or not port.isdigit():
            raise OSError(0, "expected a path or ADDRESS:PORT")
        return socket.create_connection((host.strip("[]"), int(port)), timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(at)
    except BaseException:
        connection.close()
        raise
    return connection


# -- the reasons -------------------------------------------------------------------------


async def _judge(
    options: Options,
    attributes: Mapping[str, str],
    answer: Answer | None,
    remarks: list[str],
) -> Told:
    """Return the answer and what this process makes of the question."""

    def observe(event: Event) -> None:
        if isinstance(event, Trouble):
            remarks.append(printable(event.text, 500))

    request = parse_request(attributes)
    # As for `mxpolicy policy`: what another user may have written decides nothing.
    path = state_file(options.state, os.environ)
    store = open_to_read(path, remarks.append, acts=True)
    engine = Engine(Context(options, store=store))
    server = AccessPolicyServer(lambda: engine, observe)
    began = time.monotonic()
    action = server.action_for(request)
    own = action if isinstance(action, str) else await action
    took = time.monotonic() - began
    reasons = [
        await _reason(engine, request, about, address)
        for about, address in addresses_of(request)
    ]
    return Told(answer or Answer(own, "this process", took), own, reasons, remarks)


async def _reason(
    engine: Engine, request: AccessRequest, about: AccessAbout, address: str
) -> Reason:
    options = engine.context.options
    domain = domain_to_judge(engine.context.identity, address)
    shown = printable(address, 300)
    if not domain:
        return Reason(about, shown, "")
    forecast = await engine.forecast("", "", address, options.policy.timeout)
    situation = situation_of(request, about, domain, found_by(forecast))
    rule = AccessRules(options.policy.rules).rule(situation) if situation else None
    explained = explain(forecast, options, "", "")
    return Reason(about, shown, domain, situation, _in_words(rule, options), explained)


def _in_words(rule: AccessRule | None, options: Options) -> str:
    if rule is None:
        return ""
    places = (n for n, one in enumerate(options.policy.rules) if one is rule)
    place = next(places, None)
    whose = "RFC 7505" if place is None else f"policy.rules[{place}]"
    return f"{whose}: {rule.action}"


# -- showing -----------------------------------------------------------------------------


def _show(told: Told, terminal: Terminal) -> None:
    answer = told.answer
    terminal.line(terminal.paint(f"action={answer.action}", BOLD))
    took = f"{answer.answered_by}, in {milliseconds(answer.seconds)}"
    terminal.line(terminal.paint(f"  answered by {took}", DIM))
    if told.own != answer.action:
        text = f"this process would answer: {told.own}"
        terminal.say(text, "  ", terminal.paint("  ", YELLOW))
    for remark in told.remarks:
        terminal.say(remark, "  - ")
    for one in told.reasons:
        terminal.heading(f"{one.about.value} {one.address}")
        for text in _findings(one):
            terminal.say(text, "  ")
        if one.explained is not None:
            terminal.line()
            show_route(one.explained, terminal)


def _findings(reason: Reason) -> list[str]:
    if not reason.domain:
        return ["not judged: no address of a domain, or one of our own names"]
    if reason.situation is None:
        return ["nothing is certain about its domain: DUNNO"]
    found = f"found: {reason.situation.finding.value}"
    if reason.situation.detail:
        found += f" ({reason.situation.detail})"
    return [found, f"rule: {reason.rule or 'none matches: DUNNO'}"]


def _as_json(told: Told) -> dict[str, object]:
    """Return it for machines; a plan has the shape of ``mxpolicy route --json``."""
    return {
        "schema": 1,
        "action": told.answer.action,
        "answered_by": told.answer.answered_by,
        "own_action": told.own,
        "remarks": list(told.remarks),
        "reasons": [_reason_json(one) for one in told.reasons],
    }


def _reason_json(reason: Reason) -> dict[str, object]:
    found: dict[str, object] = {
        "about": reason.about.value,
        "address": reason.address,
        "domain": reason.domain,
        "finding": reason.situation.finding.value if reason.situation else None,
        "rule": reason.rule or None,
    }
    if reason.explained is not None:
        found["plan"] = as_json(reason.explained)
    return found
