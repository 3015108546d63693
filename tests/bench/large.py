"""A message of 50 MiB: time and peak memory, beside smtp(8) and Exim.

    python -m tests.bench large [MEBIBYTES]

Needs root and the lab. Each client delivers the message three times to a host that
throws it away (smtp-sink); the median time is shown, from the moment the mail server has
it in its queue, as its log tells. Memory is the largest resident set (VmHWM) of the
process that speaks SMTP, looked at every 20 ms: Python for mxpolicy, smtp(8), Exim's
delivery process.
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from statistics import median

from tests.lab.packages import LabUnavailable

from . import report
from .servers import CLIENTS, EXIM, MXPOLICY, SMTP, Servers

RUNS = 3

# The command line of the process that speaks SMTP.
COMMANDS = {MXPOLICY: r"\S+/python3 -I", SMTP: "smtp ", EXIM: r"\S*exim4 -Mc "}

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
            for pid in self._servers.processes(self._command):
                self.peak = max(self.peak, self._high_water(pid))

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
    size = parser.parse_args(arguments).mebibytes
    begun = time.monotonic()
    data = b"Subject: large\n\n" + _LINE * (size * 2**20 // len(_LINE))
    try:
        with Servers() as servers:
            results = {client: _measure(servers, client, data) for client in CLIENTS}
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    own_time, own_peak = results[MXPOLICY]
    rows = [
        [
            CLIENTS[client],
            report.seconds(seconds),
            report.ratio(own_time, seconds),
            report.mebibytes(peak),
            report.ratio(own_peak, peak),
        ]
        for client, (seconds, peak) in results.items()
    ]
    head = [f"{size} MiB", "time", "mxpolicy's", "peak memory", "mxpolicy's"]
    print(report.table(head, rows))
    print(f"\n{report.circumstances(begun)}")
    return 0


def _measure(servers: Servers, client: str, data: bytes) -> tuple[float, int]:
    """Return seconds, and KiB."""
    watch = Watch(servers, COMMANDS[client])
    watch.start()
    times = [servers.deliver(client, data) for _ in range(RUNS)]
    return median(times), watch.stop()
