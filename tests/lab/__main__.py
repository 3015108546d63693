"""The lab by hand, as root.

python -m tests.lab cases                     what there is to try
python -m tests.lab run [--transport T] [CASE...]
                                              send a message to each, show what came
python -m tests.lab shell [--transport T]     a shell on the mail server
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from tests import guard

from .cases import CASES, Placed, place, place_judged
from .judge import Sent
from .lab import EXIM_TRANSPORTS, TRANSPORTS, Lab, patience
from .packages import LabUnavailable
from .transports import ALL_TRANSPORTS, lab_of_cases
from .world import ENVIRONMENT

NAME_WIDTH = max(len(case.name) for case in CASES)

SHELL_GREETING = """\
You are root on the mail server mail.lab.test, in the lab; leave with "exit".

  sendmail user@dropped.{transport}.lab.test </etc/hostname
  tail -f /var/log/mail.log          mailq          dig mx dropped.{transport}.lab.test
  ip netns exec fw nft list ruleset
  ip netns exec fw tcpdump -ni out0 (if this machine has it)
"""


def main(arguments: Sequence[str]) -> int:
    """Return 0 when everything was as expected."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        match options.action:
            case "cases":
                return show_cases()
            case "shell":
                return shell(place(CASES, (options.transport or TRANSPORTS[0],)))
            case _:
                return run(_chosen(options.cases, options.transport))
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.lab")
    parser.add_argument("action", choices=["cases", "run", "shell"])
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--transport", choices=[*ALL_TRANSPORTS, *EXIM_TRANSPORTS])
    return parser


def _chosen(names: Sequence[str], transport: str | None) -> tuple[Placed, ...]:
    """Return the cases of these names with *transport*, or with every one there is.

    Only those that something is expected of, unless a case and a transport are named
    or nothing is expected of the transport at all: then what comes is shown.
    """
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            sys.exit(f"no case {name!r}; there are: {' '.join(known)}")
    cases = [known[name] for name in names] or CASES
    transports = ALL_TRANSPORTS if transport is None else (transport,)
    if transport is None or not names:
        return place_judged(cases, transports) or place(cases, transports)
    return place(cases, transports)


def show_cases() -> int:
    """Print every case with its story."""
    for case in CASES:
        print(f"{case.name:{NAME_WIDTH}} {case.story}")
        for transport, expected in case.expected.items():
            print(f"{'':{NAME_WIDTH}}   {transport}: {expected}")
    return 0


def run(placed: Sequence[Placed]) -> int:
    """Send a message for each, all at once; print what became of it as it ends."""
    with lab_of_cases(placed) as lab:
        under_way = lab.send_cases().values()
        quickest_first = sorted(under_way, key=lambda one: patience(one.placed))
        wrong = sum(_report(lab, sent) for sent in quickest_first)
    return 1 if wrong else 0


def _report(lab: Lab, sent: Sent) -> int:
    if not sent.placed.is_judged:
        return _show(lab, sent)
    misfits = lab.judge(sent)
    for line in lab.server(sent.placed).deliveries(sent.queue_id):
        print(
            f"{_title(sent)} {line.delay:7.2f} s  {line.status} {line.dsn}  {line.text}",
            flush=True,
        )
    for text in misfits:
        print(f"    WRONG: {text}", flush=True)
    return len(misfits)


def _show(lab: Lab, sent: Sent) -> int:
    """Print what became of a message that no expectation is for."""
    until = time.monotonic() + patience(sent.placed)
    while (ended := lab.ended(sent)) is None and time.monotonic() < until:
        time.sleep(0.1)
    what = f"{ended.delay:7.2f} s  {ended.status}  {ended.text}" if ended else "no end"
    print(f"{_title(sent)} {what}", flush=True)
    return 0


def _title(sent: Sent) -> str:
    return f"{sent.placed.case.name:{NAME_WIDTH}} {sent.placed.transport:13}"


def shell(placed: Sequence[Placed]) -> int:
    """Give the terminal to a shell on the mail server."""
    with lab_of_cases(placed) as lab:
        print(SHELL_GREETING.format(transport=placed[0].transport))
        environment = {**ENVIRONMENT, "TERM": "xterm", "PS1": "mail:\\w# "}
        command = lab.world.command("mta", ["bash", "--norc", "-i"])
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(guard.guarded(lambda: main(sys.argv[1:])))
