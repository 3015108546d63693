"""The Exim of this machine: what of it runs mxpolicy, as ``exim -bP`` shows that.

`look` asks Exim itself, so that one file, Debian's split configuration and macros are all
the same to it. `mxpolicy.check.exim_rows` says what follows. Tried with Exim 4.96.
"""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import current
from mxpolicy.check.command import gather
from mxpolicy.check.exim_acl import judge_question, questions
from mxpolicy.check.exim_client import unheeded
from mxpolicy.check.exim_rows import (
    Lmtp,
    Transport,
    judge_lmtp,
    judge_pipe,
    judge_retry,
    judge_routers,
    judge_verification,
    judge_ways,
)
from mxpolicy.check.master_cf import PROGRAM
from mxpolicy.check.programs import ProgramError, directory_of, run
from mxpolicy.check.report import ok, said, warn
from mxpolicy.pipe_command import parse_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mxpolicy.check.access import Account
    from mxpolicy.check.exim_acl import Question
    from mxpolicy.check.machine import Machine
    from mxpolicy.check.programs import Ended
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options
    from mxpolicy.pipe_command import Arguments

__all__ = ["Exim", "Stanza", "find", "look", "see", "stanzas", "user_of"]

NAMES = ("exim4", "exim")

# -bP of a large configuration has a thousand lines of each router.
_MOST = 16 * 1024 * 1024

_HEAD = re.compile(r"(\S+) (router|transport):")

# As Exim has it on the command line.
_EXAMPLE = "user@example.com"

# "  router = dnslookup, transport = remote_smtp"
_WAY = re.compile(r"^\s*router = ([^\s,]+), transport = (\S+)", re.M)

# What decides besides the domain whether a router takes an address.
_CONDITIONS = (
    *("condition", "senders", "local_parts", "require_files"),
    *("local_part_prefix", "local_part_suffix"),
)

# In a list of domains: those of set-up.
_KNOWN = re.compile(r"!|\+local_domains|(?:\*\.)?[\w-]+(?:\.[\w-]+)+", re.A)

_ANY = "example.com"  # a domain that only a rule for all domains matches
_DOMAIN = re.compile(r"[\w-]+(\.[\w-]+)+", re.A)

Stanza = dict[str, str]
"""Options of a router or transport by name; ``yes`` or ``no`` of a boolean one."""


class Exim(NamedTuple):
    """What was seen of it.

    Attributes:
        pipes, lmtps: The transports that run mxpolicy, and those that deliver to its
            daemon; options by name.
        routers: Those that lead there.
        rules: What ``-brt`` says of the retry rule, by domain.
        questions: Its ACLs ask a policy service so.
        ways: By which router and transport mail goes that a router of ours should
            take, by the name of that router.
        to_client: What only its own smtp transport was told, a sentence each.
        looks_up_mx: Whether a router of Exim's own knows which domains there are.
        user: The name of the account that it runs as; empty when it is not known.
    """

    pipes: Mapping[str, Stanza]
    lmtps: Mapping[str, Stanza]
    routers: Mapping[str, Stanza]
    rules: Mapping[str, str]
    questions: Sequence[Question] = ()
    user: str = ""
    ways: Mapping[str, tuple[str, str]] = {}
    to_client: Sequence[str] = ()
    looks_up_mx: bool = False

    @property
    def uses_daemon(self) -> bool:
        """Whether a router sends mail to the daemon."""
        return any(one["transport"] in self.lmtps for one in self.routers.values())


def find(search: str) -> Callable[..., str] | None:
    """Return what asks the Exim on the path *search* or in the usual places, if any.

    It raises `ProgramError` where Exim does not answer.
    """
    for name in NAMES:
        if directory := directory_of(name, search):
            return partial(_answer, partial(run, directory, name, most=_MOST))
    return None


def _answer(run_exim: Callable[..., Ended], *argv: str) -> str:
    ended = run_exim(*argv)
    if ended.status:
        why = ended.err or ended.out.strip() or f"status {ended.status}"
        raise ProgramError(f"exim {' '.join(argv)}: {why}")
    return ended.out


def see(ask: Callable[..., str], sockets: Collection[str]) -> Exim:
    """Ask for all that is to be judged.

    Args:
        ask: From `find`.
        sockets: Of the daemon's LMTP.

    Raises:
        ProgramError: Exim does not say.
    """
    transports = stanzas(ask("-bP", "transports"))
    pipes = {
        name: one
        for name, one in transports.items()
        if one.get("driver") == "pipe" and _words_of(one) is not None
    }
    lmtps = {
        name: one
        for name, one in transports.items()
        if one.get("driver") == "lmtp" and one.get("socket") in sockets
    }
    if not pipes and not lmtps:
        return Exim({}, {}, {}, {}, *_asking(ask))
    all_routers = stanzas(ask("-bP", "routers"))
    routers = {
        name: one
        for name, one in all_routers.items()
        if one.get("transport") in {*pipes, *lmtps}
    }
    domains = dict.fromkeys(map(_domain_of, routers.values())) or {_ANY: None}
    rules = {one: ask("-brt", one).strip() for one in domains}
    return Exim(
        pipes,
        lmtps,
        routers,
        rules,
        *_asking(ask),
        _ways(ask, routers),
        unheeded(transports, all_routers) if routers else (),
        any(one.get("driver") == "dnslookup" for one in all_routers.values()),
    )


def _ways(
    ask: Callable[..., str], routers: Mapping[str, Stanza]
) -> dict[str, tuple[str, str]]:
    """Return by which router and transport Exim delivers what *routers* should take.

    By name of the router. Left out is what cannot be told from a domain alone.
    """
    ways = {}
    for name, one in routers.items():
        if any(one.get(condition) for condition in _CONDITIONS):
            continue
        words = one.get("domains", "").replace(":", " ").split()
        if not all(map(_KNOWN.fullmatch, words)):
            continue
        # Where name servers are away, a router may not say.
        with suppress(ProgramError):
            said_of = ask("-bt", f"user@{_domain_of(one)}")
            if found := _WAY.search(said_of):
                ways[name] = (found[1], found[2])
    return ways


def _asking(ask: Callable[..., str]) -> tuple[list[Question], str]:
    """Return how a policy service is asked, and the user that asks."""
    found = questions(ask("-bP", "config"))
    user = ask("-bP", "exim_user").partition("=")[2].strip() if found else ""
    return found, user


def stanzas(text: str) -> dict[str, Stanza]:
    """Return the routers or transports that ``-bP`` prints, by name."""
    found: dict[str, Stanza] = {}
    options: Stanza = {}
    for line in text.splitlines():
        if head := _HEAD.fullmatch(line):
            options = found[head[1]] = {}
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        if equals:
            options[name] = value.strip()
        elif name:
            options[name.removeprefix("no_")] = "no" if name[:3] == "no_" else "yes"
    return found


def _domain_of(router: Stanza) -> str:
    """Return a domain whose mail *router* takes."""
    words = router.get("domains", "").split()
    negated = {after for word, after in pairwise(words) if word == "!"}
    plain = (one for one in words if _DOMAIN.fullmatch(one) and one not in negated)
    return next(plain, _ANY)


def _words_of(transport: Stanza) -> list[str] | None:
    """Return the words after our program in the command; None where it is not ours."""
    try:
        words = shlex.split(transport.get("command", ""))
    except ValueError:
        words = transport.get("command", "").split()
    for place, word in enumerate(words):
        if word.rpartition("/")[2] == PROGRAM:
            return words[place + 1 :]
    return None


def _program_of(transport: Stanza) -> str:
    return transport["command"].split()[0].strip("\"'")


def user_of(exim: Exim, machine: Machine) -> Account | None:
    """Return the account of the first transport that has one."""
    found = (_account(one, machine) for one in exim.pipes.values())
    return next(filter(None, found), None)


def _account(transport: Stanza, machine: Machine) -> Account | None:
    user, group = transport.get("user", ""), transport.get("group", "")
    if not user or "$" in user + group:
        return None
    return machine.account(f"{user}:{group}" if group else user)


def look(
    exim: Exim,
    options: Options,
    machine: Machine,
    sockets: Collection[str] = (),
    *,
    is_alone: bool,
) -> list[Item]:
    """Judge *exim*.

    Args:
        exim: From `see`.
        options: As understood by this check.
        machine: This one.
        sockets: Of the daemon's policy service.
        is_alone: Whether there is no other mail server.
    """
    if not exim.pipes and not exim.lmtps:
        text = "Exim is here; no transport of it runs mxpolicy"
        unused = said(
            warn(is_alone, text, "mxpolicy setup exim"), ok(not is_alone, text)
        )
        return unused + _judge_questions(exim, options, machine, sockets)
    items: list[Item] = []
    for name, one in exim.pipes.items():
        items += judge_pipe(_gather(name, one, machine))
    for name, one in exim.lmtps.items():
        items += judge_lmtp(Lmtp(name, one, options.lmtp.timeout))
    items += judge_routers({**exim.pipes, **exim.lmtps}, exim.routers)
    if exim.looks_up_mx:
        items += judge_verification(exim.routers)
    items += judge_ways(exim.ways, {*exim.pipes, *exim.lmtps})
    items += judge_retry(exim.rules)
    items += said(*(warn(True, one) for one in exim.to_client))
    return items + _judge_questions(exim, options, machine, sockets)


def _judge_questions(
    exim: Exim, options: Options, machine: Machine, sockets: Collection[str]
) -> list[Item]:
    # Where Postfix alone delivers, or nothing yet: the one of contrib's samples.
    deliveries = user_of(exim, machine) or machine.account("mxpolicy") or current()
    asks = machine.account(exim.user) if exim.user else None
    own = options.policy.timeout
    return [
        item
        for one in exim.questions
        for item in judge_question(one, sockets, own, (asks, deliveries), machine)
    ]


def _gather(name: str, options: Stanza, machine: Machine) -> Transport:
    account, words = _account(options, machine), tuple(_words_of(options) or ())
    program = _program_of(options)
    return Transport(
        name, options, gather("pipe", program, words, account, _parse, machine)
    )


def _parse(argv: Sequence[str]) -> tuple[Arguments, str | None]:
    given = [_EXAMPLE if one == "$pipe_addresses" else one for one in argv]
    # What the environment says is judged for itself.
    found = parse_arguments(given, {"RETURN_PATH": _EXAMPLE})
    return found, found.config
