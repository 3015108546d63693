"""Time to delivery behind faults: mxpolicy beside Postfix smtp(8) and Exim's smtp.

    python -m tests.bench faults [--quick] [--within SECONDS] [FAULT...]

Needs root and the lab (`tests.lab`). One message for each fault and each client, in one
run of one lab: mxpolicy as pipe(8) transport of Postfix, Postfix's own smtp(8), Exim's
own smtp transport, everything at its default, and none with any memory of the hosts:
every message has a domain and hosts of its own.

A time is from the moment the mail server is offered the message until a host has it
whole, by that host's record. So it contains the mail server's queue and, for mxpolicy,
the start of a Python process, which is most of it where nothing is in the way. Where the
first attempt ends without delivery, its end is shown. The ratios say how many times
mxpolicy's time the other took; below 1 the other was faster.

Messages that take long wait side by side, for waiting disturbs nobody; each has the
processors to itself for its first seconds. Faults that nobody needs long for are tried
five times, and the median is shown. Where a client is not done `--within` seconds after
the last message, the table says so and gives no ratio. `--quick` leaves out the faults
for which somebody needs more than a minute; the whole takes 11 minutes.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import NamedTuple

from tests.lab.case import Case, Host, Mail, Placed, place
from tests.lab.cases import CASES
from tests.lab.judge import Sent
from tests.lab.lab import EXIM_SMTP, Lab
from tests.lab.packages import LabUnavailable

from . import report
from .installation import installation

# In the order of the table.
CLIENTS = {"mxpolicy": "mxpolicy", "smtp": "Postfix smtp(8)", EXIM_SMTP: "Exim smtp"}

ALONE = 3.0
"""Seconds that a message has the processors to itself, unless it ends before."""

WITHIN = 560.0
"""Seconds; what began first then has had the ten minutes that it may take."""

REPEATS = 5

NARROW = 600
"""Bytes of the largest packet that the black hole lets pass."""

BLACK_HOLE = Case(
    "black-hole",
    "The firewall drops large packets to the first MX, and ICMP that would tell.",
    (Host("mx1", 10), Host("mx2", 20)),
    {},
    mail=Mail(data=b"Subject: larger than a packet\n\n" + b"a line of text\n" * 2000),
)

WARM_UP = "warm-up"


class Fault(NamedTuple):
    """A row of the table: a case, and what the table calls it.

    `lasts` when somebody needs more than a minute.
    """

    case: str
    words: str
    lasts: bool = False


# Of those that last, first the one that lasts longest.
FAULTS = (
    Fault("good", "nothing in the way"),
    Fault("dropped", "first MX: SYN dropped by the firewall", lasts=True),
    Fault("reset", "first MX: refused (RST)"),
    Fault("prohibited", "first MX: prohibited (ICMP)"),
    Fault("closed", "first MX: accepts and closes"),
    Fault("silent", "first MX: accepts and is silent", lasts=True),
    Fault("ehlo-hung", "first MX: EHLO never answered", lasts=True),
    Fault("greets-421", "first MX: greets with 421"),
    Fault("greets-554", "first MX: greets with 554"),
    Fault("rcpt-hung", "first MX: RCPT never answered", lasts=True),
    Fault(
        "black-hole", "first MX: packets over 600 bytes vanish (30 kB mail)", lasts=True
    ),
    Fault("ipv6-broken", "only MX: IPv6 dropped, IPv4 good", lasts=True),
    Fault("twelve-dropped", "12 MX dropped, the 13th good", lasts=True),
)

# Those first that take longest, so that all ends the sooner.
_LONGEST = ("twelve-dropped", "black-hole")


class Time(NamedTuple):
    """How one message fared: `status` is sent, deferred, bounced or "" (no end yet)."""

    status: str
    seconds: float

    def __str__(self) -> str:
        words = report.seconds(self.seconds)
        match self.status:
            case "sent":
                return words
            case "":
                return f"> {words}"
            case status:
                return f"{status} after {words}"


@dataclass(frozen=True, eq=False)
class Trial:
    """A message to send: for a fault, by a client."""

    fault: str
    placed: Placed


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there is a table."""
    options = _parser().parse_args(arguments)
    faults = _chosen(options.faults, quick=options.quick)
    begun = time.monotonic()
    trials, warm_up = _trials(faults)
    try:
        with Lab(
            [*warm_up, *(trial.placed for trial in trials)], installed=installation()
        ) as lab:
            _dig_black_holes(lab, trials)
            _warm_up(lab, warm_up)
            times = _measure(lab, trials, options.within)
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    print(report.table(*_rows(faults, times)))
    print(f"\n{report.circumstances(begun)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.bench faults")
    parser.add_argument("--quick", action="store_true", help="nothing over a minute")
    parser.add_argument("--within", type=float, default=WITHIN, metavar="SECONDS")
    known = [fault.case for fault in FAULTS]
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join(known))
    return parser


def _chosen(names: Sequence[str], *, quick: bool) -> list[Fault]:
    known = {fault.case for fault in FAULTS}
    if unknown := set(names) - known:
        sys.exit(f"no such fault: {', '.join(sorted(unknown))}")
    return [
        fault
        for fault in FAULTS
        if fault.case in (names or known) and not (quick and fault.lasts)
    ]


def _trials(faults: Sequence[Fault]) -> tuple[list[Trial], list[Placed]]:
    """Return all messages to send in their order, and one to warm each client up."""
    known = {case.name: case for case in (*CASES, BLACK_HOLE)}
    in_order = sorted(faults, key=lambda one: (one.case not in _LONGEST, not one.lasts))
    fault_of: dict[str, str] = {WARM_UP: WARM_UP}
    cases = [replace(known["good"], name=WARM_UP)]
    for fault in in_order:
        for turn in range(1 if fault.lasts else REPEATS):
            name = f"{fault.case}-{turn}"
            fault_of[name] = fault.case
            cases.append(replace(known[fault.case], name=name))
    placed = place(cases, tuple(CLIENTS))
    rank = {case.name: number for number, case in enumerate(cases)}
    by_case = sorted(placed, key=lambda one: rank[one.case.name])
    trials = [Trial(fault_of[one.case.name], one) for one in by_case]
    return (
        [trial for trial in trials if trial.fault != WARM_UP],
        [trial.placed for trial in trials if trial.fault == WARM_UP],
    )


def _dig_black_holes(lab: Lab, trials: Sequence[Trial]) -> None:
    for trial in trials:
        if trial.fault == BLACK_HOLE.name:
            [address] = trial.placed.addresses(BLACK_HOLE.hosts[0])
            lab.firewall.add_rule(f"ip daddr {address} meta length > {NARROW} drop")


# --- measuring -------------------------------------------------------------------


def _warm_up(lab: Lab, placed: Sequence[Placed]) -> None:
    """Have every client run once, from disk into memory."""
    for one in placed:
        sent = lab.send_case(one)
        while not _time(lab, sent):
            time.sleep(0.1)


def _measure(lab: Lab, trials: Sequence[Trial], within: float) -> dict[Trial, Time]:
    """Send all messages; return how each fared."""
    sent = {trial: _send_alone(lab, trial) for trial in trials}
    until = time.monotonic() + within
    times: dict[Trial, Time] = {}
    while len(times) < len(sent):
        late = time.monotonic() > until
        for trial, one in sent.items():
            if trial not in times and (found := _time(lab, one, late=late)):
                times[trial] = found
                print(f"{trial.placed.name:28} {found}", file=sys.stderr, flush=True)
        time.sleep(1.0)
    return times


def _send_alone(lab: Lab, trial: Trial) -> Sent:
    sent = lab.send_case(trial.placed)
    until = time.monotonic() + ALONE
    while not _time(lab, sent) and time.monotonic() < until:
        time.sleep(0.1)
    return sent


def _time(lab: Lab, sent: Sent, *, late: bool = False) -> Time | None:
    """Return how a message fared, or None while it is under way (unless it is *late*)."""
    ended = lab.ended(sent)
    if ended is None:
        return Time("", time.time() - sent.at) if late else None
    if ended.status != "sent":
        return Time(ended.status, ended.delay)
    copies = lab.hosts.received(sent.placed.recipient)
    return Time("sent", min(copy.time for copy in copies) - sent.at)


# --- showing ---------------------------------------------------------------------


def _rows(
    faults: Sequence[Fault], times: dict[Trial, Time]
) -> tuple[list[str], list[list[str]]]:
    ours, *others = CLIENTS
    head = ["", CLIENTS[ours]]
    for client in others:
        head += [CLIENTS[client], "ratio"]
    rows = []
    for fault in faults:
        own = _typical(times, fault.case, ours)
        row = [fault.words, str(own)]
        for client in others:
            theirs = _typical(times, fault.case, client)
            row += [str(theirs), _ratio(theirs, own)]
        rows.append(row)
    return head, rows


def _typical(times: dict[Trial, Time], fault: str, client: str) -> Time:
    """Return the median; of an even number, the better one in the middle."""
    found = [
        found
        for trial, found in times.items()
        if (trial.fault, trial.placed.transport) == (fault, client)
    ]
    middle = median_low([one.seconds for one in found])
    return next(one for one in found if one.seconds == middle)


def _ratio(theirs: Time, own: Time) -> str:
    """Return it where both delivered: a deferral, however quick, is no delivery."""
    if theirs.status == own.status == "sent":
        return report.ratio(theirs.seconds, own.seconds)
    return "-"
