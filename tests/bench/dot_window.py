"""How long a kill would make a copy: from a host's final dot to the journal's entry.

Measured on deliveries that nobody disturbs: from the final dot, by the host's clock, to
the moment when the entry can be read from the state file. And what this and the kills
need of the lab.
"""

import time

from tests.lab.case import Placed
from tests.lab.hosts import Message
from tests.lab.lab import Lab

JOURNAL = "/var/lib/mxpolicy/journal.sqlite3"


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
