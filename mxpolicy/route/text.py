"""A plan with its reasons, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.hosts.remembered import address_and_port, sentences
from mxpolicy.outcome import Bounced
from mxpolicy.reply import printable
from mxpolicy.route.explanation import answer_text, exit_status
from mxpolicy.routing.candidate import Phase
from mxpolicy.routing.host_record import NOTHING
from mxpolicy.routing.race import MAX_DIALLED
from mxpolicy.routing.race_timing import connect_step, patience
from mxpolicy.terminal import BOLD, DIM, GREEN, RED, YELLOW, duration

if TYPE_CHECKING:
    from mxpolicy.options import RaceOptions
    from mxpolicy.route.explanation import Explained
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.race_timing import Entrant
    from mxpolicy.terminal import Terminal

__all__ = ["show"]


def show(explained: Explained, terminal: Terminal) -> None:
    """Write the plan as text."""
    plan = explained.forecast.plan
    _show_end(explained, terminal)
    if plan.refusal is None:
        terminal.heading("What is tried, and when, if no host answers")
        terminal.table(_rows(explained), right=(0, 1))
    elif plan.candidates:
        terminal.heading("What is not tried now")
        heads = ("pref", "host", "address", "what is remembered")
        rows = [(*_cells(one), _known(explained, one)) for one in plan.candidates]
        terminal.table([heads, *rows], right=(0,))
    notes = [one.text for one in explained.remarks if one.about not in {"dns", "start"}]
    if notes:
        terminal.heading("Why")
        for text in notes:
            terminal.say(text, "  - ")
    if plan.lookups:
        terminal.heading("What DNS said")
        terminal.table(
            [(one.rdtype, one.name, answer_text(one)) for one in plan.lookups]
        )


def _show_end(explained: Explained, terminal: Terminal) -> None:
    plan = explained.forecast.plan
    nexthop = terminal.paint(printable(plan.nexthop), BOLD)
    end = f"(exit {exit_status(plan)})"
    if plan.refusal is None:
        count = len(plan.candidates)
        said = f"{count} address{'es' if count != 1 else ''} to try"
        end = terminal.paint(end, DIM)
        terminal.line(f"{nexthop}: {terminal.paint(said, GREEN)} {end}")
        return
    if isinstance(plan.refusal, Bounced):
        said = terminal.paint("no host to dial, bounced", RED)
    else:
        none = "no host is dialled now" if plan.candidates else "no host to dial"
        said = terminal.paint(f"{none}, deferred", YELLOW)
    terminal.line(f"{nexthop}: {said} {end}")
    terminal.say(f"{plan.refusal.status} {plan.refusal.text}", "  ")


def _rows(explained: Explained) -> list[tuple[str, ...]]:
    (plan, known), when = explained.forecast, explained.starts
    rows: list[tuple[str, ...]] = [("start", "pref", "host", "address", "reason")]
    before: Candidate | None = None
    for one in sorted(when, key=lambda one: when[one]):
        reason = "first"
        if before is not None:
            gap = when[one] - when[before]
            reason = _reason(known.entrant(before), one, gap, explained.options.race)
        known_of_it = _known(explained, one, "; ")
        rows.append((f"{when[one]:.2f} s", *_cells(one), reason + known_of_it))
        before = one
    for one in plan.candidates:
        if one not in when:
            reason = f"not in one attempt: {MAX_DIALLED} are dialled at most,"
            reason += f" within a third of the deadline{_known(explained, one, '; ')}"
            rows.append(("never", *_cells(one), reason))
    return rows


def _known(explained: Explained, one: Candidate, before: str = "") -> str:
    """Return *before* and what is remembered of *one*; empty when nothing is."""
    known = explained.remembered(one)
    if known.record == NOTHING and known.broken_tls is None:
        return ""
    now, options = explained.forecast.known.at, explained.options.memory
    return before + printable("; ".join(sentences(known, now, options)), 500)


def _cells(one: Candidate) -> tuple[str, str, str]:
    return str(one.preference), one.host, address_and_port(one)


def _reason(before: Entrant, one: Candidate, gap: float, race: RaceOptions) -> str:
    """Say why *one* starts *gap* seconds after *before*."""
    step, words = connect_step(before.candidate, one, race)
    delay = patience(before, Phase.CONNECT, one, race)
    if delay > step:
        slow = duration(before.connect_time or 0.0)
        words += f", beside one that takes {slow} to connect"
    if gap > delay + 0.001:
        words += f", when one of {race.open} places is free"
        words += f" ({race.open_per_rank} for one preference)"
    return f"+{duration(gap)}: {words}"
