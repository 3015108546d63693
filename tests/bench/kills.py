"""SIGKILL at random moments: what is lost, what arrives twice, and how long the window is.

    python -m tests.bench kills [DELIVERIES] [--seed SEED] [--door DOOR...]

Needs root and the lab (`tests.lab`). The deliveries (1000 through each door, if not said
otherwise; each tried again after each kill) go through six doors, with contrib as it is:
pipe, by a process for each message or handed over to the daemon, and LMTP, each by
Postfix and by Exim. Where there is no daemon, the commands that deliver are killed, and
the script that waits for each answers. Where there is one, it is killed, and started
again at once, as systemd does it (`killers`). The queues are run until they are empty.

A copy is a message that a host took twice for one recipient. It is accounted for when a
kill fell between the host's reply to the final dot and the entry in the journal, which
was then not there to be read. How long that is, is measured before (`dot_window`).
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from tests.lab.case import Case, Host, Placed, place
from tests.lab.hosts import Session
from tests.lab.lab import MXPOLICY_EXIM, Lab
from tests.lab.packages import LabUnavailable
from tests.lab.smtp_host import Behaviour, Step
from tests.lab.transports import DAEMON_TRANSPORTS, lab_with_daemon

from . import report
from .dot_window import is_empty, named, send, times_taken, window
from .killers import LIFE, CommandKiller, DaemonKiller, Kill, Killings

ALONE = ("mxpolicy", MXPOLICY_EXIM)
BY_DAEMON = tuple(
    one for one in DAEMON_TRANSPORTS if one not in {"handed-many", "mxlmtp"}
)
DOORS = (*ALONE, *BY_DAEMON)

# So that a kill falls on each step; the reply to the dot comes at once, and what lies
# between it and the entry is as short as it is.
SLOW = Behaviour(
    {"MAIL": Step(delay=0.05), "RCPT": Step(delay=0.05), "DATA": Step(delay=0.05)}
)
HEALTHY = Case(
    "kills", "two hosts in good health", (Host("mx1", 10, SLOW), Host("mx2", 20)), {}
)

COMMANDS_AT_ONCE, AT_ONCE = 6, 16
"""Messages under way: more processes would only wait for the processors."""
LONGEST_WINDOW = 0.5
"""Seconds, on a machine with far too much to do; a later kill finds the entry there."""
RUN_QUEUE = 3.0
QUIET = 40
WITHIN = 1500.0


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 when mail was lost, bounced, or copied unaccounted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench kills", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("deliveries", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--door", nargs="+", choices=DOORS, default=DOORS)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    columns = []
    for door in options.door:
        placed = place((HEALTHY,), (door,))
        try:
            lab = Lab(placed) if door in ALONE else lab_with_daemon(placed)
        except LabUnavailable as why:
            print(why, file=sys.stderr)
            return 1
        with lab:
            (one,) = lab.placed
            windows = window(lab, one, QUIET)
            figures = _campaign(lab, one, options.deliveries, options.seed)
        middle = report.seconds(statistics.median(windows))
        longest = report.seconds(max(windows))
        figures |= {"window, median": middle, "window, longest": longest}
        columns.append(figures)
    names = max(columns, key=len)
    rows = [(name, *(one.get(name, "") for one in columns)) for name in names]
    print(report.table(("", *options.door), rows))
    print(f"\n{report.circumstances(begun)}")
    bad = ("lost", "bounced", "copies unaccounted for", "left in the queue")
    return 1 if any(one[name] != "0" for one in columns for name in bad) else 0


def _campaign(lab: Lab, placed: Placed, count: int, seed: int) -> dict[str, str]:
    """Deliver *count* messages among kills; return what came of them."""
    lab.hosts.forget()
    recipients = [named(placed, f"user{number}") for number in range(count)]
    server = lab.server(placed)
    sender = f"killed.{placed.transport}@home.lab.test"
    is_alone = placed.transport in ALONE
    at_once = COMMANDS_AT_ONCE if is_alone else AT_ONCE
    killer: Killings = CommandKiller(lab, seed) if is_alone else DaemonKiller(lab, seed)
    with killer:
        run_queue = began = time.monotonic()
        until = began + WITHIN
        waiting = list(recipients)
        arrived: set[str] = set()
        while len(arrived) < count and time.monotonic() < until:
            arrived = set(times_taken(lab)) & set(recipients)
            under_way = count - len(waiting) - len(arrived)
            for _ in range(min(len(waiting), max(0, at_once - under_way))):
                send(lab, placed, waiting.pop(0), sender)
            if time.monotonic() - run_queue > RUN_QUEUE:
                run_queue = time.monotonic()
                server.flush()
            time.sleep(0.1)
        # Of a daemon that goes on being killed, an Exim's queue is never empty.
        while is_alone and not is_empty(lab, placed) and time.monotonic() < until:
            server.flush()
            time.sleep(RUN_QUEUE)
    while not is_empty(lab, placed) and time.monotonic() < until:
        server.flush()
        time.sleep(RUN_QUEUE)
    deferrals = sum(one.status == "deferred" for one in server.deliveries())
    return {
        "deliveries": str(count),
        "attempts deferred": str(deferrals),
        **_account(lab, recipients, sender, killer.kills),
        "left in the queue": str(int(not is_empty(lab, placed))),
        "seconds": f"{time.monotonic() - began:.0f}",
    }


def _account(
    lab: Lab, recipients: Sequence[str], sender: str, kills: Sequence[Kill]
) -> dict[str, str]:
    times, sessions = times_taken(lab), lab.hosts.sessions()
    phases = Counter(_phase(one, sessions, times) for one in kills if one.recipient)
    # Seconds from a copy's dot to the kill that led to the next one.
    late = [
        min(
            (
                kill.at - one
                for kill in kills
                if kill.recipient in {"", to} and one < kill.at < two
            ),
            default=LONGEST_WINDOW,
        )
        for to in recipients
        for one, two in pairwise(sorted(times.get(to, [])))
    ]
    return {
        "kills": str(len(kills)),
        **{f"... {phase}": str(phases[phase]) for phase in PHASES if phases},
        "lost": str(sum(to not in times for to in recipients)),
        "bounced": str(len(lab.hosts.received(sender))),
        "copies": str(len(late)),
        "copies unaccounted for": str(sum(one >= LONGEST_WINDOW for one in late)),
        "longest from dot to such a kill, ms": f"{1000 * max(late, default=0.0):.0f}",
    }


PHASES = ("before MAIL", "after MAIL or RCPT", "in DATA", "after the reply to the dot")


def _phase(
    kill: Kill, sessions: Sequence[Session], times: dict[str, list[float]]
) -> str:
    """Return how far the delivery was that was killed, by the host's clock."""
    if any(0 <= kill.at - at < LIFE for at in times.get(kill.recipient, ())):
        return PHASES[3]
    for session in sessions:
        said = [line for at, line in session.commands if at <= kill.at]
        if session.begun <= kill.at <= (session.until or kill.at) + 0.05 and any(
            kill.recipient in line for _, line in session.commands
        ):
            if said and said[-1].startswith("DATA"):
                return PHASES[2]
            return (
                PHASES[1] if any(one.startswith("MAIL") for one in said) else PHASES[0]
            )
    return PHASES[0]
