"""Mail for a destination that does not answer: how long healthy mail waits behind it.

    python -m tests.bench places [BAD] [--burst N] [--processes N] [--no-limit]

Needs root and the lab (`tests.lab`). BAD messages (40, if not said otherwise) go to a
domain that drops every SYN, or answers RCPT after 45 s, or never answers the final dot.
When the mail server has begun with all that it can, five messages for five healthy
domains follow, one after the other, and what counts is their delay, beside that of five
such messages on a quiet machine. Then 200 messages at once go to one healthy domain, and
200 to one that takes a second for each reply: none of them may be deferred. Both mail
servers as contrib has them; each line is a lab of its own. With --no-limit the option
limits.processes is 0.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.lab.case import Case, Host, Placed, place
from tests.lab.lab import MXPOLICY_EXIM, Lab
from tests.lab.packages import LabUnavailable
from tests.lab.smtp_host import Behaviour, Step

from . import report
from .installation import installation

TRANSPORTS = ("mxpolicy", MXPOLICY_EXIM)
SETTLED = 15.0
"""Seconds after which all have started that can, and are seen to wait."""
WITHIN = 600.0

_SLOW = dict.fromkeys(("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"), Step(delay=1))


def _case(name: str, host: Host) -> Case:
    return Case(name, name, (host,), {})


BAD = {
    "SYN dropped": _case("dropped", Host("mx1", 10, firewall="drop")),
    "RCPT answered after 45 s": _case(
        "rcpt", Host("mx1", 10, Behaviour({"RCPT": Step(delay=45)}))
    ),
    "silent after the dot": _case(
        "dot", Host("mx1", 10, Behaviour({"DOT": Step(end="hush")}))
    ),
}
GOOD = tuple(_case(f"good{number}", Host("mx1", 10)) for number in range(5))
BURSTS = {
    "at once, healthy": _case("burst", Host("mx1", 10)),
    "at once, a second for each reply": _case(
        "slow", Host("mx1", 10, Behaviour(_SLOW))
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Measure, and print two tables; 1 where the lab cannot be, or a burst was deferred."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench places",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("bad", type=int, nargs="?", default=40)
    parser.add_argument("--burst", type=int, default=200, metavar="N")
    parser.add_argument("--processes", type=int, default=60, metavar="N")
    parser.add_argument("--no-limit", action="store_true")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    limit = 0 if options.no_limit else options.processes
    size = options.processes, limit
    ahead: list[tuple[str, Case | None, int]] = [("nothing", None, 0)]
    ahead += [
        (f"{options.bad} messages: {name}", case, options.bad)
        for name, case in BAD.items()
    ]
    try:
        rows = [
            (name, *(_delays(one, size, case, count) for one in TRANSPORTS))
            for name, case, count in ahead
        ]
        bursts = [
            (
                f"{options.burst} {name}",
                *(_burst(one, size, case, options.burst) for one in TRANSPORTS),
            )
            for name, case in BURSTS.items()
            if options.burst
        ]
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    print(report.table(("ahead of five healthy ones", "Postfix", "Exim"), rows))
    if bursts:
        head = ("deferred, and seconds for all", "Postfix", "Exim")
        print(f"\n{report.table(head, bursts)}")
    print(f"\n{report.circumstances(begun)}")
    cells = [cell for _, *cells in bursts for cell in cells]
    return 0 if all(cell.startswith("0,") for cell in cells) else 1


def _delays(transport: str, size: tuple[int, int], bad: Case | None, count: int) -> str:
    """Return median and longest delay of healthy messages behind *count* bad ones."""
    with _lab(transport, *size) as lab:
        if bad is not None:
            _send(lab, _placed(lab, bad), count)
            time.sleep(SETTLED)
        delays = []
        for case in GOOD:
            one = _placed(lab, case)
            [queue_id] = _send(lab, one, 1)
            line = lab.server(one).await_deliveries(queue_id, WITHIN)[0]
            delays.append(line.delay if line.status == "sent" else WITHIN)
    median = report.seconds(statistics.median(delays))
    return f"{median}, at most {report.seconds(max(delays))}"


def _burst(transport: str, size: tuple[int, int], case: Case, count: int) -> str:
    """Return how many of a burst were deferred, and in how many seconds all ended."""
    with _lab(transport, *size) as lab:
        one = _placed(lab, case)
        begun = time.monotonic()
        _send(lab, one, count)
        until = begun + WITHIN
        while (
            len(lines := lab.server(one).deliveries()) < count
            and time.monotonic() < until
        ):
            time.sleep(0.5)
        took = time.monotonic() - begun
    deferred = count - sum(line.status == "sent" for line in lines[:count])
    return f"{deferred}, {report.seconds(took)}"


@contextmanager
def _lab(transport: str, processes: int, limit: int) -> Iterator[Lab]:
    cases = (*BAD.values(), *GOOD, *BURSTS.values())
    text = f"limits: {{processes: {limit}}}\n"
    files = {"/etc/mxpolicy/mxpolicy.yaml": text}
    placed = place(cases, (transport,))
    with Lab(placed, files=files, installed=installation()) as lab:
        column = f"mxpolicy/unix/process_limit={processes}"
        lab.mta_exec(["postconf", "-F", column])
        lab.postfix.reload()
        yield lab


def _placed(lab: Lab, case: Case) -> Placed:
    [found] = [one for one in lab.placed if one.case is case]
    return found


def _send(lab: Lab, one: Placed, count: int) -> list[str]:
    server, data = lab.server(one), one.case.mail.data
    return [
        server.send([f"user{number}@{one.domain}"], one.sender, data)
        for number in range(count)
    ]
