"""``mxpolicy route NEXTHOP``: the plan for a message, and its reasons; dials nothing.

Which hosts would be tried, in which order and when, what is remembered of each, what
was left out and why, and what DNS said. The plan and the memory are the engine's own,
for the sender and the recipient that are given, so that what is shown is what
``mxpolicy pipe`` would do now. When no host would be dialled, the exit status is
the one that the mail server would have got. What is remembered is only read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import AddressError, UnsupportedDomain, parse_mailbox
from mxpolicy.config import load
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.forecast import Forecast
from mxpolicy.delivery.plan import Plan
from mxpolicy.errors import ConfigError
from mxpolicy.options import Options
from mxpolicy.outcome import (
    EXIT_BOUNCE,
    EXIT_DEFER,
    EXIT_DELIVERED,
    Bounced,
    Deferred,
    Delivered,
)
from mxpolicy.remembered import facts, sentences
from mxpolicy.reply import EnhancedStatus, printable
from mxpolicy.routing.host_record import NOTHING
from mxpolicy.routing.mx import Lookup, LookupStatus
from mxpolicy.routing.order import MAX_ADDRESSES
from mxpolicy.routing.race import MAX_DIALLED, Race, Start, Wake
from mxpolicy.routing.race_timing import REMEMBERED_FACTOR
from mxpolicy.state.opening import open_to_read, state_file
from mxpolicy.terminal import BOLD, DIM, GREEN, RED, YELLOW, Terminal, reader_may_leave

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mxpolicy.options import RaceOptions
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.unresolved import Unresolved

__all__ = ["Finding", "as_json", "exit_status", "findings", "main", "show", "starts"]

SCHEMA = 1

# A race in which nobody answers ends by itself, after a few steps for everybody.
MAX_STEPS = 10_000

# What any recipient's domain has (RFC 5321 §4.5.1); only decides, where none is
# given, how equal hosts are shuffled.
ANYBODY = "postmaster"

MISCONFIGURED = EnhancedStatus(4, 3, 5)

Json = dict[str, object]


class Finding(NamedTuple):
    """One thing worth knowing about a plan.

    Attributes:
        about: ``dns``, ``implicit_mx``, ``unresolved``, ``own``, ``left_out``,
            ``order``, ``memory``, ``start``.
        text: One printable line.
        facts: The same for machines: further members of the JSON object.
    """

    about: str
    text: str
    facts: Mapping[str, object] = {}


def main(argv: Sequence[str]) -> int:
    """Show the plan that *argv* asks for.

    Args:
        argv: What follows ``mxpolicy route`` on the command line.

    Returns:
        0 when there is somebody to dial, else 75 or 69 as ``mxpolicy pipe``
        would answer. Leaves by `SystemExit` with 2 on a wrong command line.
    """
    arguments = _parser().parse_args(argv)
    sender = arguments.sender
    recipient = arguments.recipient or _anybody(arguments.nexthop)
    try:
        options = load(arguments.config, os.environ)
        told: list[str] = []
        store = open_to_read(state_file(options.state, os.environ), told.append)
        engine = Engine(Context(options, store=store))
    except ConfigError as error:
        options = Options()
        text = "; ".join(error.mistakes)
        refusal = Deferred(MISCONFIGURED, printable(text, 4000))
        forecast = Forecast(Plan(printable(arguments.nexthop), (), refusal=refusal))
        found, when = [], {}
    else:
        forecast = asyncio.run(engine.forecast(arguments.nexthop, sender, recipient))
        when = starts(forecast, options)
        found = findings(
            forecast, options, when, printable(sender), printable(recipient)
        )
        found += [Finding("memory", printable(text, 500)) for text in told]
    with reader_may_leave():
        if arguments.json:
            print(json.dumps(as_json(forecast, found, options), indent=2))
        else:
            show(forecast, found, when, options, Terminal(sys.stdout, os.environ))
    return exit_status(forecast.plan)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mxpolicy route",
        description="Show whom a message would be tried at, when and why. "
        "Asks DNS and what is remembered; dials nothing.",
        epilog="Exit status: 0 there is somebody to dial; 75 and 69 as "
        "mxpolicy pipe would answer when nobody would be dialled.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "nexthop",
        metavar="NEXTHOP",
        help="domain, domain:port, [host], [address], or a list, as in transport(5)",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--config", metavar="FILE", help="instead of the usual one")
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


def _anybody(nexthop: str) -> str:
    """Return a recipient whose own domain *nexthop* is, or nothing if it cannot be one."""
    recipient = f"{ANYBODY}@{nexthop.strip()}"
    try:
        parse_mailbox(recipient)
    except UnsupportedDomain:
        return recipient  # it is one, and what is to be said of it is said later
    except AddressError:
        return ""
    return recipient


def exit_status(plan: Plan) -> int:
    """Return 0 when there is somebody to dial, else what the mail server would get."""
    match plan.refusal:
        case None | Delivered():
            return EXIT_DELIVERED
        case Deferred():
            return EXIT_DEFER
        case Bounced():
            return EXIT_BOUNCE


# What is found


def starts(forecast: Forecast, options: Options) -> dict[Candidate, float]:
    """Return when each candidate would be dialled, in seconds, if nobody ever answers.

    By a real race in which nothing happens. Who is not in it would not be dialled
    in one attempt.
    """
    plan = forecast.plan
    if plan.refusal is not None:
        return {}
    race = Race(
        [forecast.known.entry(candidate) for candidate in plan.candidates],
        options.race,
        options.deadline,
    )
    now = 0.0
    found: dict[Candidate, float] = {}
    actions = race.begin(now)
    for _ in range(MAX_STEPS):
        for action in actions:
            if isinstance(action, Start):
                found.setdefault(action.candidate, now)
        wake = next((one.at for one in actions if isinstance(one, Wake)), None)
        if wake is None:
            break
        now = max(now, wake)
        actions = race.wake(now)
    return found


def findings(
    forecast: Forecast,
    options: Options,
    when: Mapping[Candidate, float],
    sender: str,
    recipient: str,
) -> list[Finding]:
    """Return what is worth knowing about a plan, apart from its candidates.

    Args:
        forecast: The plan, and what is remembered.
        options: By which it was made.
        when: From `starts`.
        sender: Printable.
        recipient: Printable; empty when not known.
    """
    plan = forecast.plan
    found = [_dns(lookup) for lookup in plan.lookups]
    found += _implicit(plan.lookups)
    found += [Finding("left_out", remark) for remark in plan.remarks]
    found += [_unresolved(one) for one in plan.unresolved]
    found += _worse_than_own(plan)
    found += _not_kept(plan)
    if _has_equals(plan.candidates):
        text = "hosts of one preference are shuffled, alike for each retry of a message"
        if recipient:
            text += f"; this is the order for <{sender}> to <{recipient}>"
        found.append(Finding("order", text))
    found += _memory(forecast, options)
    if when:
        seconds = [_rounded(when.get(one)) for one in plan.candidates]
        text = "when each candidate is dialled if nobody answers, in seconds"
        found.append(Finding("start", text, {"seconds": seconds}))
    return found


def _memory(forecast: Forecast, options: Options) -> Iterator[Finding]:
    """What follows when everybody is known to have failed."""
    fast = options.memory.fast_deferral
    if forecast.known.is_hopeless:
        text = "every host has failed and is in its pause"
        said = "mail is deferred at once" if fast else "all are asked again"
        setting = f"memory.fast_deferral: {'yes' if fast else 'no'}"
        yield Finding("memory", f"{text}: {said} ({setting})")
    elif not forecast.known.has_other and fast:
        text = "every host has failed; one message of all asks them again, the others"
        yield Finding("memory", f"{text} wait 15 s at most for what it finds")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _dns(lookup: Lookup) -> Finding:
    records = [_record(lookup, place) for place in range(len(lookup.records))]
    facts: Json = {
        "name": lookup.name,
        "type": lookup.rdtype,
        "answer": lookup.status.value,
        "records": records,
        "secure": lookup.secure,
    }
    return Finding("dns", f"{lookup.rdtype} {lookup.name}: {_answer(lookup)}", facts)


def _unresolved(one: Unresolved) -> Finding:
    text = f"{one.name} cannot be looked up, and is better: what worse hosts refuse"
    text += " does not bounce until that has lasted for an hour"
    return Finding("unresolved", text, {"name": one.name})


def _answer(lookup: Lookup) -> str:
    match lookup.status:
        case LookupStatus.FAILED:
            return f"no answer that can be believed ({printable(lookup.reason)})"
        case LookupStatus.NODATA:
            said = "no such record"
        case LookupStatus.NXDOMAIN:
            said = "no such name"
        case LookupStatus.FOUND:
            said = ", ".join(
                _record(lookup, place) for place in range(len(lookup.records))
            )
    return f"{said} ({'secure' if lookup.secure else 'not secure'})"


def _record(lookup: Lookup, place: int) -> str:
    if lookup.rdtype == "MX":
        record = sorted(lookup.exchanges)[place]
        return f"{record.preference} {printable(record.exchange)}"
    return lookup.addresses[place]


def _implicit(lookups: Sequence[Lookup]) -> Iterator[Finding]:
    for lookup in lookups:
        if lookup.rdtype == "MX" and lookup.status in {
            LookupStatus.NODATA,
            LookupStatus.NXDOMAIN,
        }:
            text = f"{lookup.name} has no MX record and stands for itself"
            yield Finding("implicit_mx", f"{text} (implicit MX, RFC 5321 5.1)")


def _worse_than_own(plan: Plan) -> Iterator[Finding]:
    """The hosts that were left out because we are in the list ourselves."""
    mine = plan.own_preference
    # In a list of nexthops the MX records may be another one's than ours.
    if mine is None or "," in plan.nexthop:
        return
    found = [one for lookup in plan.lookups for one in lookup.exchanges]
    names = [f"{p} {printable(name)}" for p, name in sorted(found) if p >= mine]
    if names:
        text = f"left out, not better than this system itself: {', '.join(names)}"
        yield Finding("own", f"{text} (RFC 5321 5.1)", {"preference": mine})


def _not_kept(plan: Plan) -> Iterator[Finding]:
    """Addresses that the plan has for another host, or that were too many."""
    tried_as = {one.address: one.host for one in plan.candidates}
    for lookup in plan.lookups:
        for address in lookup.addresses:
            other = tried_as.get(address, lookup.name)
            if other != lookup.name:
                text = f"{lookup.name}[{address}] is tried once, as {other}"
                yield Finding("left_out", text)
    if len(plan.candidates) == MAX_ADDRESSES:
        text = f"no more than {MAX_ADDRESSES} addresses are kept, the first of every"
        yield Finding("left_out", f"{text} host before the second of any")


def _has_equals(candidates: Sequence[Candidate]) -> bool:
    hosts = {(one.rank, one.host) for one in candidates}
    return len(hosts) > len({rank for rank, _ in hosts})


# For machines


def as_json(forecast: Forecast, found: Sequence[Finding], options: Options) -> Json:
    """Return the plan in the one shape of route, probe and hosts; no unused member.

    Args:
        forecast: The plan, and what is remembered.
        found: From `findings`.
        options: By which it was made.
    """
    plan = forecast.plan
    whole: Json = {
        "schema": SCHEMA,
        "nexthop": printable(plan.nexthop),
        "findings": [
            {"about": one.about, "text": one.text, **one.facts} for one in found
        ],
        "candidates": [
            {
                "egress": one.egress,
                "host": one.host,
                "preference": one.preference,
                "address": one.address,
                "port": one.port,
                "tls": options.tls.default.value,
                **_remembered(forecast, one, options),
            }
            for one in plan.candidates
        ],
        "action": _action(plan.refusal),
    }
    if plan.refusal is not None:
        whole["status"] = str(plan.refusal.status)
        whole["text"] = plan.refusal.text
    return whole


def _remembered(forecast: Forecast, one: Candidate, options: Options) -> Json:
    plan, known = forecast
    record, tls = known.record(one), known.of_tls.get(one)
    if record == NOTHING and tls is None:
        return {}
    whose = {"nexthop": plan.nexthop} if known.is_limited(one) else {}
    return {**whose, **facts(record, known.at, options.memory, tls)}


def _action(refusal: Outcome | None) -> str:
    match refusal:
        case None | Delivered():
            return "deliver"
        case Deferred():
            return "defer"
        case Bounced():
            return "bounce"


# For people


def show(
    forecast: Forecast,
    found: Sequence[Finding],
    when: Mapping[Candidate, float],
    options: Options,
    terminal: Terminal,
) -> None:
    """Write the plan as text.

    Args:
        forecast: The plan, and what is remembered.
        found: From `findings`.
        when: From `starts`.
        options: By which all that was made.
        terminal: Where to.
    """
    plan = forecast.plan
    _show_verdict(plan, terminal)
    if plan.refusal is None:
        terminal.heading("Who is tried, and when, if nobody answers")
        terminal.table(_rows(forecast, when, options), right=(0, 1))
    elif plan.candidates:
        terminal.heading("Who is not tried now")
        terminal.table(_rows_of_paused(forecast, options), right=(0,))
    notes = [one.text for one in found if one.about not in {"dns", "start"}]
    if notes:
        terminal.heading("Why")
        for text in notes:
            terminal.say(text, "  - ")
    if plan.lookups:
        terminal.heading("What DNS said")
        terminal.table([(one.rdtype, one.name, _answer(one)) for one in plan.lookups])


def _show_verdict(plan: Plan, terminal: Terminal) -> None:
    nexthop = terminal.paint(printable(plan.nexthop), BOLD)
    match plan.refusal:
        case None | Delivered():
            some = len(plan.candidates)
            plural = "es" if some != 1 else ""
            said = terminal.paint(f"{some} address{plural} to try", GREEN)
            terminal.line(f"{nexthop}: {said} {terminal.paint('(exit 0)', DIM)}")
        case Deferred(status, text):
            whom = "nobody is dialled now" if plan.candidates else "nobody to dial"
            said = terminal.paint(f"{whom}, deferred", YELLOW)
            terminal.line(f"{nexthop}: {said} (exit {EXIT_DEFER})")
            terminal.say(f"{status} {text}", "  ")
        case Bounced(status, text):
            said = terminal.paint("nobody to dial, bounced", RED)
            terminal.line(f"{nexthop}: {said} (exit {EXIT_BOUNCE})")
            terminal.say(f"{status} {text}", "  ")


def _rows(
    forecast: Forecast, when: Mapping[Candidate, float], options: Options
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("start", "pref", "host", "address", "reason")]
    before: Candidate | None = None
    for one in sorted(when, key=lambda one: when[one]):
        reason = "first"
        if before is not None:
            slow = forecast.known.entry(before).connect_time
            gap = when[one] - when[before]
            reason = _reason(before, one, gap, options.race, slow)
        reason += _and_known(forecast, one, options)
        rows.append((f"{when[one]:.2f} s", *_cells(one), reason))
        before = one
    for one in forecast.plan.candidates:
        if one not in when:
            reason = f"not in one attempt: {MAX_DIALLED} are dialled at most,"
            reason += " within a third of the deadline"
            reason += _and_known(forecast, one, options)
            rows.append(("never", *_cells(one), reason))
    return rows


def _rows_of_paused(forecast: Forecast, options: Options) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("pref", "host", "address", "what is remembered")]
    for one in forecast.plan.candidates:
        known = _known(forecast, one, options)
        rows.append((*_cells(one), known))
    return rows


def _and_known(forecast: Forecast, one: Candidate, options: Options) -> str:
    known = _known(forecast, one, options)
    return f"; {known}" if known else ""


def _known(forecast: Forecast, one: Candidate, options: Options) -> str:
    plan, known = forecast
    record, tls = known.record(one), known.of_tls.get(one)
    if record == NOTHING and tls is None:
        return ""
    whose = plan.nexthop if known.is_limited(one) else ""
    words = sentences(record, known.at, options.memory, whose, tls)
    return printable("; ".join(words), 500)


def _cells(one: Candidate) -> tuple[str, str, str]:
    address = f"[{one.address}]" if one.is_ipv6 else one.address
    return str(one.preference), one.host, f"{address}:{one.port}"


def _reason(
    before: Candidate,
    one: Candidate,
    gap: float,
    race: RaceOptions,
    connect_time: float | None,
) -> str:
    """Say why *one* starts *gap* seconds after *before*, who took *connect_time*."""
    if one.nexthop_place != before.nexthop_place:
        delay, words = race.rank_delay, "the next nexthop of the list"
    elif one.rank > before.rank:
        delay, words = race.rank_delay, "a worse preference"
    elif one.rank < before.rank:
        # In the order of preference it never comes later.
        delay, words = race.host_delay, "a better preference, asked later"
    elif one.host != before.host:
        delay, words = race.host_delay, "another host of this preference"
    elif one.is_ipv6 != before.is_ipv6:
        delay, words = race.address_delay, "the same host's other address family"
    else:
        delay, words = race.host_delay, "another address of the same host"
    slow = REMEMBERED_FACTOR * (connect_time or 0.0)
    if slow > delay:
        delay = slow
        words += f", beside one that takes {_seconds(connect_time or 0.0)} to connect"
    if gap > delay + 0.001:
        words += f", when one of {race.open} places is free"
        words += f" ({race.open_per_rank} for one preference)"
    return f"+{_seconds(gap)}: {words}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.4g} s"
