"""The message after the first: past a host known to be bad, beside a healthy destination.

    python -m tests.bench again [MESSAGES]

Needs root and the lab (`tests.lab`). Every message goes through the real Postfix and
pipe(8) as contrib has it. The first message past a bad first MX pays for what is not
known yet; then each of the following (five, if not said otherwise) is sent in turn with
one to a healthy destination. A time is from handing it to Postfix to the reply to the
final dot, by the host's record, and what is shown is the median.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from tests.lab.case import Case, Host, Placed, place
from tests.lab.lab import Lab
from tests.lab.packages import LabUnavailable
from tests.lab.smtp_host import Behaviour, Step

from . import report
from .installation import installation

MXPOLICY = "mxpolicy"
KEYWORDS = ("PIPELINING", "8BITMIME", "STARTTLS")
HUSH = Step(end="hush")
BACKUP = Host("mx2", 20)
BODY = b"Subject: again\n\n" + b"0123456789 and so on to the end of the line\n" * 200

HEALTHY = Case("again-healthy", "healthy", (Host("mx1", 10), BACKUP), {})
BAD = (
    Case("again-dropped", "SYN dropped", (Host("mx1", 10, firewall="drop"), BACKUP), {}),
    *(
        Case(f"again-{step.lower()}", words, (Host("mx1", 10, behaviour), BACKUP), {})
        for step, words, behaviour in (
            ("CONNECT", "silent: no greeting", Behaviour({"CONNECT": HUSH})),
            ("EHLO", "hung: EHLO not answered", Behaviour({"EHLO": HUSH})),
            ("TLS", "hung: STARTTLS not answered", Behaviour({"STARTTLS": HUSH}, KEYWORDS)),
            ("RCPT", "hung: RCPT not answered", Behaviour({"RCPT": HUSH})),
        )
    ),
)  # fmt: skip
HOLE = Case(
    "again-hole", "packets over 600 bytes vanish", (Host("mx1", 10), BACKUP), {}
)

FIRST_WITHIN = 120.0


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 where the lab cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench again", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("messages", type=int, nargs="?", default=5)
    count = parser.parse_args(arguments).messages
    begun = time.monotonic()
    try:
        lab = Lab(place((HEALTHY, *BAD, HOLE), (MXPOLICY,)), installed=installation())
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    with lab:
        healthy, *bad = lab.placed
        hole = bad[-1]
        address = hole.addresses(hole.case.hosts[0])[0]
        lab.firewall.add_rule(f"ip daddr {address} meta length > 600 drop")
        rows = [_row(lab, healthy, one, count) for one in bad]
    head = ("first MX", "first message", "healthy", "then", "of the healthy time")
    print(report.table(head, rows))
    print(f"\n{report.circumstances(begun)}")
    return 0


def _row(lab: Lab, healthy: Placed, bad: Placed, count: int) -> tuple[str, ...]:
    first = _seconds(lab, bad)
    _await_the_end(lab)
    _seconds(lab, healthy)
    pairs = [(_seconds(lab, healthy), _seconds(lab, bad)) for _ in range(count)]
    well, ill = (statistics.median(times) for times in zip(*pairs, strict=True))
    return (
        bad.case.story,
        report.seconds(first),
        *map(report.seconds, (well, ill)),
        f"{ill / well:.2f}x",
    )


def _seconds(lab: Lab, placed: Placed) -> float:
    """Send a message; return the seconds until a host has taken it."""
    lab.hosts.forget()
    began = time.time()
    lab.send([placed.recipient], data=BODY)
    until = time.monotonic() + FIRST_WITHIN
    while not (
        found := [one for one in lab.hosts.received(placed.recipient) if one.accepted]
    ):
        if time.monotonic() > until:
            raise RuntimeError(f"{placed.name}: it has not arrived")
        time.sleep(0.02)
    _await_the_end(lab)
    return found[0].time - began


def _await_the_end(lab: Lab) -> None:
    """Wait until no process of ours is left: it may still look after a host."""
    while any(one.user == "mxpolicy" for one in lab.world.processes()):
        time.sleep(0.05)
