"""A mail server that is killed while it writes a message: what has the host of it then?

The test does it a dozen times. `tests.bench.half` does it five hundred times, several at
once.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from .case import Case, Host, Placed
from .judge import Sent
from .lab import EXIM_TRANSPORTS, Lab
from .transports import TO_SOCKET

LINE = b"0123456789abcdef" * 4 + b"\n"
LARGE = b"Subject: large\n\n" + LINE * 200_000 + b"This is the end.\n"
"""13 MB: more than all buffers on the way hold, and a while to write."""

CASE = Case("half", "a healthy host", (Host("mx1", 10),), {})

SETTINGS = {
    # After a process of Postfix's was killed.
    "transport_retry_time": "1s",
    "service_throttle_time": "1s",
    # Those that failed are sent again at once when the queue is run.
    "minimal_backoff_time": "1s",
}

MAIL_SERVERS = ("pipe -n mxpolicy", f"lmtp -n {TO_SOCKET}", "exim4 -Mc")
"""What delivers, by its command line: one process for each message or service."""


@dataclass(frozen=True)
class Outcome:
    """What became of one message.

    `was_cut` is whether its first try left nothing at the host; `is_half` whether the
    host ever had another message than the one that was sent.
    """

    door: str
    was_cut: bool
    copies: int
    is_half: bool


def kill_all(lab: Lab, *words: str) -> int:
    """Kill the processes with one of these in their command lines; return how many."""

    def found() -> set[int]:
        everyone = lab.world.processes()
        return {one.pid for one in everyone if any(w in one.command for w in words)}

    pids = found()
    if pids:
        lab.world.run("mta", ["kill", "-9", *map(str, pids)], check=False)
    await_that(lambda: not found() & pids, 10)
    return len(pids)


def await_that(is_so: Callable[[], bool], seconds: float, every: float = 0.05) -> None:
    """Wait until it is so; TimeoutError after so many *seconds*."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(every)


def kill_writers(
    lab: Lab, placed: Sequence[Placed], number: int, after: float | None
) -> list[Outcome]:
    """Send a large message through each door, and kill the mail servers meanwhile.

    The daemon is stopped while they are killed, so that whoever writes to it cannot go
    on; then it is without a mail server, and goes on. It is stopped *after* so many
    seconds: chance decides what is under way then. With None it is stopped before the
    messages are sent, and a mail server is writing for certain.
    """
    with ExitStack() as until_killed:
        if after is None:
            until_killed.enter_context(lab.daemon.stopped())
        sent = [_send(lab, one, number) for one in placed]
        if after is None:
            await_that(lambda: any_client(lab), 60)
        else:
            time.sleep(after)
            until_killed.enter_context(lab.daemon.stopped())
        kill_all(lab, *MAIL_SERVERS)
    # What is left of it: the clients, which see that nobody is there.
    await_that(lambda: not any_client(lab), 60)
    cut = [not copies_of(lab, one, number) for one in placed]
    deliver_all(lab, sent)
    return [
        _outcome(lab, one, number, was_cut=was_cut)
        for one, was_cut in zip(placed, cut, strict=True)
    ]


def _send(lab: Lab, placed: Placed, number: int) -> Sent:
    to, at = f"user{number}@{placed.domain}", time.time()
    sender = f"half{number}@home.lab.test"
    return Sent(placed, lab.server(placed).send([to], sender, LARGE), at)


def any_client(lab: Lab) -> bool:
    """Return whether a process of ours runs beside the daemon."""
    return any(
        one.user == "mxpolicy" and " pipe " in one.command
        for one in lab.world.processes()
    )


def copies_of(lab: Lab, placed: Placed, number: int) -> list[str]:
    """Return the mail data of each copy at the host, without the header."""
    found = lab.hosts.received(f"user{number}@{placed.domain}")
    return [one.data.partition("\r\n\r\n")[2] for one in found]


def deliver_all(lab: Lab, sent: Sequence[Sent], within: float = 120) -> None:
    """Run the queues until each message was delivered."""

    def waiting() -> list[Placed]:
        return [
            one.placed
            for one in sent
            if all(
                end.status != "sent"
                for end in lab.server(one.placed).deliveries(one.queue_id)
            )
        ]

    until = time.monotonic() + within
    while left := waiting():
        if time.monotonic() > until:
            raise TimeoutError(", ".join(one.name for one in left))
        lab.postfix.flush()
        if any(one.transport in EXIM_TRANSPORTS for one in left):
            lab.exim.flush()
        time.sleep(0.5)


def _outcome(lab: Lab, placed: Placed, number: int, *, was_cut: bool) -> Outcome:
    wanted = LARGE.decode().partition("\n\n")[2].replace("\n", "\r\n")
    copies = copies_of(lab, placed, number)
    is_half = any(copy != wanted for copy in copies)
    return Outcome(placed.transport, was_cut, len(copies), is_half)
