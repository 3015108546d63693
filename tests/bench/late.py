"""Copies that a 250 makes which comes when the time for it is over (RFC 1047).

    python -m tests.bench late [MESSAGES]

A host takes each message and says 250 to the final dot too late: only to the first dot
that it sees of a message, or to each. Every MX of the domain is that host. mxpolicy is
played, its engine and its journal against hosts without sockets, on a clock that jumps
(`tests.simulation`): so many messages (20, if not said otherwise), each by itself, as
Postfix asks for it over five days. Postfix's and Exim's own clients are *not* played.
What is said of them follows from a model of ten lines, by their documentation.

What is shown is the copies beyond the first one, for 10,000 messages.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.helpers.fast_loop import run_fast
from tests.simulation.queue import play_ours
from tests.simulation.world import (
    DOMAIN,
    FOREVER,
    Act,
    Domain,
    Host,
    Message,
    Place,
    Step,
    World,
)

from . import report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

# What each waits for the reply: smtp_data_done_timeout, final_timeout, RFC 5321 §4.5.3.2.6.
PATIENCE = 10 * MINUTE

LATE = {"601 s": 601.0, "20 min": 20 * MINUTE, "50 min": 50 * MINUTE, "2 h": 2 * HOUR}

# So many that not all sessions are kept.
AT_ONCE = 200


def postfix_tries() -> Iterator[float]:
    """Yield when a message is tried that is never answered in time.

    qmgr(8), postconf(5): it waits as long as the message is old by then, at least
    minimal_backoff_time and at most maximal_backoff_time, for maximal_queue_lifetime.
    """
    now = 0.0
    while now < 5 * DAY:
        yield now
        now += PATIENCE
        now += min(max(now, 300.0), 4000.0)


def exim_tries() -> Iterator[float]:
    """The same by Exim's usual retry rule: ``F,2h,15m; G,16h,1h,1.5; F,4d,6h``."""
    now, interval = 0.0, HOUR
    while (age := now - PATIENCE) < 4 * DAY:
        yield now
        now += PATIENCE
        if age < 2 * HOUR:
            now += 15 * MINUTE
        elif age < 16 * HOUR:
            now, interval = now + interval, interval * 1.5
        else:
            now += 6 * HOUR


def main(arguments: Sequence[str]) -> int:
    """Play, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench late", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("messages", type=int, nargs="?", default=20)
    count = parser.parse_args(arguments).messages
    begun = time.monotonic()
    rows = []
    for is_each in (False, True):
        others = [_modelled(tries(), is_each) for tries in (postfix_tries, exim_tries)]
        for name, seconds in LATE.items():
            ours = [
                _played(seconds, is_each, count, is_daemon=is_daemon)
                for is_daemon in (True, False)
            ]
            words = f"{name}, {'each time' if is_each else 'once'}"
            rows.append((words, *(f"{one:,}" for one in (*ours, *others))))
    busy = _copies(50 * MINUTE, False, 0, AT_ONCE, is_daemon=True)
    busy = round(10_000 * busy / AT_ONCE)
    rows.append((f"50 min, once, {AT_ONCE} at once", f"{busy:,}", "-", "-", "-"))
    head = (
        *("the 250 comes after", "mxpolicy serve", "mxpolicy pipe alone"),
        *("Postfix smtp(8), modelled", "Exim smtp, modelled"),
    )
    print(report.table(head, rows))
    print(f"\nPlayed on a clock that jumps, in {time.monotonic() - begun:.0f} s.")
    return 0


def _modelled(tries: Iterator[float], is_each: bool) -> int:
    """Return the copies too many for 10,000 messages."""
    return 10_000 * (len(list(tries)) - 1 if is_each else 1)


def _played(seconds: float, is_each: bool, count: int, *, is_daemon: bool) -> int:
    """The same, where *count* messages are played, one after the other."""
    copies = sum(
        _copies(seconds, is_each, number, 1, is_daemon=is_daemon)
        for number in range(count)
    )
    return round(10_000 * copies / count)


def _copies(
    seconds: float, is_each: bool, seed: int, count: int, *, is_daemon: bool
) -> int:
    """Return the copies too many of *count* messages that come at once."""
    messages = tuple(
        Message(f"Q{number}", (f"a{number}@{DOMAIN}",), 0.0) for number in range(count)
    )
    until = FOREVER if is_each else 5 * MINUTE
    late = Step(Place.DOT, Act.REPLY, seconds, until=until)
    host = Host(f"mx.{DOMAIN}", 10, ("192.0.2.1",), (late,), offers_tls=False)
    tries = pairwise(postfix_tries())
    world = World(
        seed,
        (Domain(DOMAIN, (host,)),),
        messages,
        processes=2 * AT_ONCE,
        is_one_engine=is_daemon,
        gaps=tuple(after - before - PATIENCE for before, after in tries),
    )
    played, _ = run_fast(play_ours(world))
    return len(played.taken) - count
