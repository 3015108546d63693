"""Processor time for a message: the pipe command beside smtp(8) and Exim's delivery.

    python -m tests.bench processor [MESSAGES]

Needs root and the lab. Small messages, one after the other, to a host in good health.
User and system time, of what a delivery costs beyond queueing:

mxpolicy   pipe(8) and the command that it runs, and that delivers alone
smtp(8)    a process that stays
Exim       a delivery process, `exim -Mc ID`, run as Exim's daemon runs it: wait4(2).
           It reads and tidies the queue as well, which Postfix has qmgr(8) for
python3    `python3 -I -c pass`, a yard-stick: wait4(2)

Postfix's processes were warm, and delivered the same messages before. How their time is
read, says `servers.Servers.processor_time`.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence

from tests.lab.packages import LabUnavailable
from tests.lab.world import INSTALLED

from . import report
from .servers import ALONE, EXIM, SMTP, Servers

PYTHON = "python3 -I -c pass"

CLIENTS = {ALONE: "mxpolicy", SMTP: "Postfix smtp(8)", EXIM: "Exim smtp"}

SMALL = b"Subject: small\n\n" + b"A line of text, and it is not the only one.\n" * 40

# Run each command of a list, print the seconds of processor time of all.
_RUN = """
import json, os, sys
seconds = 0.0
for argv in json.loads(sys.argv[1]):
    pid = os.posix_spawn(argv[0], argv, os.environ)
    _, status, used = os.wait4(pid, 0)
    assert status == 0, (argv, status)
    seconds += used.ru_utime + used.ru_stime
print(seconds)
"""


def main(arguments: Sequence[str]) -> int:
    """Return 0 when there is a table."""
    parser = argparse.ArgumentParser("python -m tests.bench processor")
    parser.add_argument("messages", nargs="?", type=int, default=100)
    count = parser.parse_args(arguments).messages
    begun = time.monotonic()
    try:
        with Servers() as servers:
            used = {
                ALONE: _each(servers, ALONE, "pipe ", count),
                SMTP: _each(servers, SMTP, "smtp ", count),
                EXIM: _by_exim(servers, count),
                PYTHON: _python(servers, count),
            }
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    rows = [
        [
            {**CLIENTS, PYTHON: f"`{PYTHON}`"}[name],
            report.seconds(seconds),
            report.ratio(used[ALONE], seconds),
        ]
        for name, seconds in used.items()
    ]
    print(report.table(["", "processor time for a message", "mxpolicy's"], rows))
    print(f"\n{report.circumstances(begun)}")
    return 0


def _each(servers: Servers, way: str, command: str, count: int) -> float:
    for _ in range(3):
        servers.deliver(way, SMALL)
    before = servers.processor_time(command)
    for _ in range(count):
        servers.deliver(way, SMALL)
    time.sleep(0.5)  # the mail server waits for the command after it has its answer
    return (servers.processor_time(command) - before) / count


def _by_exim(servers: Servers, count: int) -> float:
    servers.deliver(EXIM, SMALL)
    submit = ["exim4", "-odq", "-f", "<>", "-oi", f"user@{EXIM}.lab.test"]
    for _ in range(count):
        servers.world.run("mta", submit, stdin=SMALL)
    ids = re.findall(r"\b\w{6}-\w{6,11}-\w{2,4}\b", servers.exim.queue())
    assert len(ids) == count, servers.exim.queue()
    used = _run(servers, [["/usr/sbin/exim4", "-Mc", one] for one in ids])
    assert not servers.exim.queue().strip(), servers.exim.queue()
    return used / count


def _python(servers: Servers, count: int) -> float:
    python = f"{INSTALLED}/bin/python3"
    return _run(servers, [[python, "-I", "-c", "pass"]] * count) / count


def _run(servers: Servers, commands: Sequence[Sequence[str]]) -> float:
    argv = [f"{INSTALLED}/bin/python", "-I", "-c", _RUN, json.dumps(commands)]
    return float(servers.world.run("mta", argv, timeout=300).stdout)
