"""A message of 50 MiB: time and peak memory, by each way beside smtp(8) and Exim.

    python -m tests.bench large [MEBIBYTES] [--runs N]

Needs root and the lab. It is delivered three times by each way (`servers`) to a host that
throws it away (smtp-sink); the median time is shown, from the moment the mail server has
it in its queue, as its log tells. Memory is the largest resident set (VmHWM) of the
process that speaks SMTP, looked at every 20 ms: the daemon, Python, smtp(8), Exim's
delivery process. The daemon's is what it has for itself and all else, too.
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tests.lab.packages import LabUnavailable

from . import report
from .servers import ALONE, EXIM, LMTP, PIPE, SMTP, WAYS, Servers

RUNS = 3

# The command line of the process that speaks SMTP.
_DAEMON = r"\S+/python3 .* serve "
COMMANDS = {
    SMTP: "smtp ",
    LMTP: _DAEMON,
    PIPE: _DAEMON,
    ALONE: r"(?s)\S+/python3 .* pipe ",  # part of it is a script of several lines
    EXIM: r"\S*exim4 -Mc ",
}

_WORKING = r"(smtp|lmtp|pipe) |\S+/python3 .* serve "
"""Who works on a message of Postfix's; what pipe(8) has run counts with it."""

# As in an attachment: base64, 76 characters.
_LINE = (
    b"VGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcyBvdmVyIHRoZSBsYXp5IGRvZy4gVGhlIHF1aWNrIGJy\n"
)


class Watch(threading.Thread):
    """Watches the memory of all processes that have such a command line."""

    def __init__(self, servers: Servers, command: str) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        """KiB."""
        self._servers = servers
        self._command = command
        self._done = threading.Event()

    def run(self) -> None:
        """Look until `stop`."""
        while not self._done.wait(0.02):
            for one in self._servers.processes(self._command):
                self.peak = max(self.peak, self._high_water(one.pid))

    def _high_water(self, pid: int) -> int:
        try:
            text = self._servers.world.path(f"/proc/{pid}/status").read_text()
        except OSError:
            return 0
        for line in text.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
        return 0

    def stop(self) -> int:
        """Look no more; return the peak."""
        self._done.set()
        self.join()
        return self.peak


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there is a table."""
    parser = argparse.ArgumentParser("python -m tests.bench large")
    parser.add_argument("mebibytes", nargs="?", type=int, default=50)
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        with Servers() as servers:
            print(table(servers, options.mebibytes, options.runs))
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    print(f"\n{report.circumstances(begun)}")
    return 0


def table(servers: Servers, size: int, runs: int) -> str:
    """Return the table for a message of *size* MiB."""
    data = b"Subject: large\n\n" + _LINE * (size * 2**20 // len(_LINE))
    results = {way: _measure(servers, way, data, runs) for way in COMMANDS}
    first = results[SMTP]
    rows = [
        [
            WAYS[way],
            report.seconds(one.time),
            report.ratio(one.time, first.time),
            "" if one.processor is None else report.seconds(one.processor),
            report.mebibytes(one.peak),
            report.ratio(one.peak, first.peak),
        ]
        for way, one in results.items()
    ]
    of_it = "of smtp(8)'s"
    head = [f"{size} MiB", "time", of_it, "processor time", "peak memory", of_it]
    return report.table(head, rows)


class Used(NamedTuple):
    """What one message took: seconds, KiB at most, seconds of processor time."""

    time: float
    peak: int
    processor: float | None


def _measure(servers: Servers, way: str, data: bytes, runs: int) -> Used:
    is_warm = servers.needs_daemon(way)
    servers.deliver(way, b"Subject: small\n\nOne line.\n")
    before = servers.processor_time(_WORKING)
    times = [servers.deliver(way, data) for _ in range(runs)]
    time.sleep(0.5)  # pipe(8) waits for its command after it has its answer
    processor = (servers.processor_time(_WORKING) - before) / runs
    # Looking takes processor time; so it is done for one more.
    if is_warm:
        servers.restart_daemon()
    watch = Watch(servers, COMMANDS[way])
    watch.start()
    servers.deliver(way, data)
    # Exim's processes end with the message, and nobody of ours has waited for them.
    return Used(median(times), watch.stop(), None if way == EXIM else processor)
