"""SIGKILL at random moments: what is lost, what arrives twice, and how long the window is.

    python -m tests.bench kills [DELIVERIES] [--seed SEED]

Needs root and the lab (`tests.lab`). Half of the deliveries (1000, if not said otherwise;
each tried again after each kill) go through Postfix's pipe(8), half through Exim's pipe
transport, with contrib as it is. Of the processes that deliver, four of five are killed,
at a moment drawn uniformly from the half second that each may live. The script that
waits for it then answers. The queues are run until they are empty.

A copy is a message that a host took twice for one recipient. It is accounted for when a
kill fell between the host's reply to the final dot and the entry in the journal, which
was then not there to be read. How long that is, is measured before, on deliveries that
nobody disturbs: from the final dot, by the host's clock, to the moment when the entry
can be read from the state file.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.lab.case import Case, Host, Placed, place
from tests.lab.hosts import Message, Session
from tests.lab.lab import MXPOLICY_EXIM, Lab
from tests.lab.packages import LabUnavailable
from tests.lab.smtp_host import Behaviour, Step

from . import report

MXPOLICY = "mxpolicy"
TRANSPORTS = (MXPOLICY, MXPOLICY_EXIM)
# So that a kill falls on each step; the reply to the dot comes at once, and what lies
# between it and the entry is as short as it is.
SLOW = Behaviour(
    {"MAIL": Step(delay=0.05), "RCPT": Step(delay=0.05), "DATA": Step(delay=0.05)}
)
HEALTHY = Case(
    "kills", "two hosts in good health", (Host("mx1", 10), Host("mx2", 20)), {}
)

AT_ONCE = 6
"""Messages under way: more would only wait for the processors."""
LIFE = 0.5
"""Seconds from its start in which a process is killed, if at all."""
SHARE = 0.8
"""How many of all processes are to be killed, if they live long enough."""
LOOK = 0.005
LONGEST_WINDOW = 0.5
"""Seconds, on a machine with far too much to do; a later kill finds the entry there."""
RUN_QUEUE = 3.0
QUIET = 40
WITHIN = 1500.0
JOURNAL = "/var/lib/mxpolicy/journal.sqlite3"


@dataclass(frozen=True)
class Kill:
    """Who was being delivered to, and when, in seconds since the epoch."""

    recipient: str
    at: float


class Killer:
    """A thread that kills whoever delivers, until it is told to stop."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.kills: list[Kill] = []
        self._namespace = os.readlink(f"/proc/{lab.world.pid}/ns/pid")
        self._random = random.Random(seed)
        self._due: dict[int, tuple[float, str]] = {}
        self._seen: set[int] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(LOOK):
            for pid, recipient in self._delivering():
                self._seen.add(pid)
                if self._random.random() < SHARE:
                    at = time.time() + self._random.uniform(0, LIFE)
                    self._due[pid] = at, recipient
            now = time.time()
            for pid in [pid for pid, (at, _) in self._due.items() if at <= now]:
                _, recipient = self._due.pop(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills.append(Kill(recipient, time.time()))

    def _delivering(self) -> list[tuple[int, str]]:
        """Return (process, recipient) of those not seen before that deliver."""
        found: dict[int, tuple[int, list[bytes]]] = {}
        for entry in os.scandir("/proc"):
            with suppress(OSError):
                if entry.name.isdigit() and self._is_ours(entry.path):
                    words = Path(f"{entry.path}/cmdline").read_bytes().split(b"\0")[:-1]
                    stat = Path(f"{entry.path}/stat").read_text().rpartition(")")[2]
                    if b"pipe" in words and b"--" in words and b"@" in words[-1]:
                        found[int(entry.name)] = int(stat.split()[1]), words
        return [
            (pid, words[-1].decode())
            for pid, (parent, words) in found.items()
            # The first is the script, and the second delivers.
            if pid not in self._seen and parent in found
        ]

    def _is_ours(self, path: str) -> bool:
        return os.readlink(f"{path}/ns/pid") == self._namespace


def main(arguments: Sequence[str]) -> int:
    """Measure, and print two tables; 1 when mail was lost, bounced, or copied unaccounted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench kills", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("deliveries", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        lab = Lab(place((HEALTHY,), TRANSPORTS))
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    head = ("", "Postfix", "Exim")
    with lab:
        windows = [window(lab, one, QUIET) for one in lab.placed]
        each = max(1, options.deliveries // len(TRANSPORTS))
        columns = [_campaign(lab, one, each, options.seed) for one in lab.placed]
    rows = [
        ("window, median", *(report.seconds(statistics.median(w)) for w in windows)),
        ("window, longest", *(report.seconds(max(w)) for w in windows)),
    ]
    names = list(columns[0])
    rows += [(name, *(str(column[name]) for column in columns)) for name in names]
    print(report.table(head, rows))
    print(f"\n{report.circumstances(begun)}")
    bad = sum(
        one["lost"] + one["bounced"] + one["copies unaccounted for"] for one in columns
    )
    return 1 if bad else 0


# -- the window -----------------------------------------------------------------------


def window(lab: Lab, placed: Placed, count: int) -> list[float]:
    """Return the seconds from the dot to the entry, for *count* deliveries in turn."""
    send(lab, placed, named(placed, "warm"))
    _await_messages(lab, 1)
    watch = lab.world.start("mta", [PYTHON, "-c", WATCH, JOURNAL], log=WATCHED)
    time.sleep(1)
    found = []
    for number in range(count):
        lab.hosts.forget()
        entries = len(_entries(lab))
        send(lab, placed, named(placed, f"quiet{number}"))
        (message,) = _await_messages(lab, 1)
        until = time.monotonic() + 20
        while len(_entries(lab)) == entries:
            if time.monotonic() > until:
                raise RuntimeError("no entry was written")
            time.sleep(0.02)
        found.append(max(0.0, _entries(lab)[-1] - message.time))
    watch.kill()
    watch.wait()
    return found


PYTHON = "/opt/mxpolicy/bin/python"
WATCHED = "/var/log/watched"
WATCH = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
sql = "SELECT count(*) FROM rows WHERE CAST(value AS TEXT) LIKE '_\tdelivered%'"
(before,) = db.execute(sql).fetchone()
while True:
    (now,) = db.execute(sql).fetchone()
    if now != before:
        before = now
        print(repr(time.time()), flush=True)
    time.sleep(0.0002)
"""


def _entries(lab: Lab) -> list[float]:
    """Return when entries have appeared."""
    return list(map(float, lab.world.path(WATCHED).read_text().split()))


# -- the campaign ---------------------------------------------------------------------


def _campaign(lab: Lab, placed: Placed, count: int, seed: int) -> dict[str, int]:
    """Deliver *count* messages among kills; return what came of them."""
    lab.hosts.forget()
    recipients = [named(placed, f"user{number}") for number in range(count)]
    server = lab.server(placed)
    sender = f"killed.{placed.transport}@home.lab.test"
    with Killer(lab, seed) as killer:
        run_queue = until = time.monotonic()
        until += WITHIN
        waiting = list(recipients)
        arrived: set[str] = set()
        while len(arrived) < count and time.monotonic() < until:
            arrived = set(times_taken(lab))
            under_way = count - len(waiting) - len(arrived & set(recipients))
            for _ in range(min(len(waiting), max(0, AT_ONCE - under_way))):
                send(lab, placed, waiting.pop(0), sender)
            if time.monotonic() - run_queue > RUN_QUEUE:
                run_queue = time.monotonic()
                server.flush()
            time.sleep(0.2)
        while not is_empty(lab, placed) and time.monotonic() < until:
            server.flush()
            time.sleep(RUN_QUEUE)
    return _account(lab, recipients, sender, killer.kills)


def _account(
    lab: Lab, recipients: Sequence[str], sender: str, kills: Sequence[Kill]
) -> dict[str, int]:
    times, sessions = times_taken(lab), lab.hosts.sessions()
    phases = Counter(_phase(one, sessions, times) for one in kills)
    copies = {to: sorted(times[to]) for to in recipients if len(times.get(to, ())) > 1}
    # Seconds from the first copy's dot to the kill that led to the second.
    late = [
        min(
            (
                kill.at - one
                for kill in kills
                if kill.recipient == to and one < kill.at < two
            ),
            default=LONGEST_WINDOW,
        )
        for to, (one, two, *_) in copies.items()
    ]
    return {
        "deliveries": len(recipients),
        "kills": len(kills),
        **{f"... {phase}": phases[phase] for phase in PHASES},
        "lost": sum(to not in times for to in recipients),
        "bounced": len(lab.hosts.received(sender)),
        "copies": sum(len(one) - 1 for one in copies.values()),
        "copies unaccounted for": sum(one >= LONGEST_WINDOW for one in late),
        "longest from dot to such a kill, ms": round(1000 * max(late, default=0.0)),
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


def times_taken(lab: Lab) -> dict[str, list[float]]:
    """Return when hosts took a message for whom, by recipient."""
    times: dict[str, list[float]] = {}
    for one in lab.hosts.received():
        if one.accepted:
            for to in one.forward_paths:
                times.setdefault(to, []).append(one.time)
    return times


def named(placed: Placed, local_part: str) -> str:
    return f"{local_part}@{placed.recipient.partition('@')[2]}"


def send(lab: Lab, placed: Placed, to: str, sender: str = "me@home.lab.test") -> None:
    lab.server(placed).send([to], sender, b"Subject: kills\n\nOne line.\n")


def _await_messages(lab: Lab, count: int) -> list[Message]:
    until = time.monotonic() + 60
    while len(found := lab.hosts.received()) < count:
        if time.monotonic() > until:
            raise RuntimeError("it has not arrived")
        time.sleep(0.02)
    return found


def is_empty(lab: Lab, placed: Placed) -> bool:
    said = lab.server(placed).queue().strip()
    return not said or "is empty" in said
