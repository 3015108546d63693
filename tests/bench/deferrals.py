"""Mail for a destination that is down: how often its hosts are dialled for all of it.

    python -m tests.bench deferrals [MESSAGES] [--within SECONDS]

Needs root and the lab (`tests.lab`). Messages (10,000, if not said otherwise, which take
some 15 minutes) for a domain whose two hosts drop every SYN go through the real Postfix
and pipe(8) as contrib has it, each a process of its own. What the firewall sees is counted:
a SYN that is sent again has the same source port, so the ports are the attempts. There
may be one for each host and pause, and pauses last a minute at first and ten at most. The first
message goes alone, so that something is known.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence

from tests.lab.case import Case, Host, Placed, place
from tests.lab.lab import Lab
from tests.lab.packages import LabUnavailable

from . import report
from .installation import installation

DEAD = Case("deferrals", "both down", (Host("mx1", 10), Host("mx2", 20)), {})
SHORTEST_PAUSE = 48.0
"""Seconds: a minute, with its jitter; later ones are longer."""
LOG = "/var/log/mail.log"


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; 1 where the lab cannot be, or a host was dialled more."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench deferrals",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("messages", type=int, nargs="?", default=10_000)
    parser.add_argument("--within", type=float, default=3600.0, metavar="SECONDS")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        lab = Lab(place((DEAD,), ("mxpolicy",)), installed=installation())
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    with lab:
        [placed] = lab.placed
        hosts = [placed.addresses(host)[0] for host in placed.case.hosts]
        _count_attempts(lab, hosts)
        until = begun + options.within
        # Before anything is known, as many dial as the mail server lets go at once.
        _await_ends(lab, _send(lab, placed, 1, until), until)
        sent = 1 + _send(lab, placed, options.messages - 1, until)
        ended = _await_ends(lab, sent, until)
        took = time.monotonic() - begun
        attempts = [_attempts(lab, host) for host in hosts]
    allowed = 1 + int(took / SHORTEST_PAUSE)
    rows = [
        ("messages deferred", str(ended)),
        ("a second", f"{ended / took:.1f}"),
        *((f"attempts at host {n}", str(found)) for n, found in enumerate(attempts, 1)),
        ("allowed by the shortest pause", str(allowed)),
    ]
    print(report.table(("", "mxpolicy"), rows))
    print(f"\n{report.circumstances(begun)}")
    return 0 if all(1 <= found <= allowed for found in attempts) and ended else 1


def _count_attempts(lab: Lab, hosts: Sequence[str]) -> None:
    kind = "{ type ipv4_addr . inet_service; }"
    lab.world.run("fw", ["nft", f"add set inet lab attempts {kind}"])
    lab.firewall.add_rule(
        f"ip daddr {{ {', '.join(hosts)} }} tcp dport 25"
        " add @attempts { ip daddr . tcp sport } drop"
    )


def _attempts(lab: Lab, host: str) -> int:
    done = lab.world.run("fw", ["nft", "list", "set", "inet", "lab", "attempts"])
    return len(re.findall(rf"{re.escape(host)} \. \d+", done.stdout.decode()))


def _send(lab: Lab, placed: Placed, count: int, until: float) -> int:
    """Send *count* messages, or as many as can be until then; return how many."""
    for number in range(count):
        if time.monotonic() > until:
            return number
        lab.send([placed.recipient])
    return count


def _await_ends(lab: Lab, count: int, until: float) -> int:
    """Wait until *count* attempts have ended deferred; return how many have."""
    path = lab.world.path(LOG)
    while True:
        with path.open(errors="replace") as lines:
            ended = sum(
                "relay=mxpolicy" in one and "status=deferred" in one for one in lines
            )
        if ended >= count or time.monotonic() > until:
            return ended
        time.sleep(5)
