"""``mxpolicy demo``: see it work on loopback, without root and without a mail server.

Each story has a name server and mail hosts, good and faulty, on 127.0.0.x. Two messages
go through the real ``mxpolicy pipe`` command, one after the other. Each is shown with its
exit status, its time and its log line. Linux only, for its 127.0.0.0/8.

The rooms: `stories` (what is played), `hosts` (mail hosts and name server), `stage` (runs
the command and judges).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mxpolicy.demo.hosts import DemoError
from mxpolicy.demo.stage import staged
from mxpolicy.demo.stories import STORIES
from mxpolicy.outcome import EXIT_BOUNCE, EXIT_DEFER, EXIT_DELIVERED
from mxpolicy.terminal import BOLD, GREEN, RED, Terminal, reader_may_leave

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.demo.stage import Result
    from mxpolicy.demo.stories import Story

__all__ = ["main", "parser"]

INTRODUCTION = (
    "Each message goes through a real `mxpolicy pipe` process, as Postfix or Exim would"
    " run it, to hosts on 127.0.0.x. All stories together take about a minute."
)
NOTE = (
    "Seconds are those of a whole process, its start included. Postfix, Exim: what"
    " smtp(8) of Postfix 3.7 and the smtp transport of Exim 4.96 take for the first"
    " message with their defaults. Waits are measured, ~ is a sum of them; the rest is"
    " what their sources say."
)
EXITS = {EXIT_DELIVERED: "delivered", EXIT_DEFER: "deferred", EXIT_BOUNCE: "bounced"}


def main(argv: Sequence[str]) -> int:
    """Play the stories named in *argv*, or all of them.

    Args:
        argv: What follows ``mxpolicy demo`` on the command line.

    Returns:
        0 when every message ended as it must, 1 when one did not or the demo
        cannot be shown here, 128 + N after signal N. Leaves by `SystemExit`
        with 2 on a wrong command line.
    """
    arguments = parser().parse_args(argv)
    wanted = [s for s in STORIES if not arguments.story or s.name in arguments.story]
    terminal = Terminal(sys.stdout, os.environ)
    try:
        with reader_may_leave():
            if arguments.list:
                names = [(story.name, story.title) for story in wanted]
                terminal.table(names, indent=0)
                return 0
            return asyncio.run(_play(wanted, terminal))
    except (DemoError, OSError) as error:
        print(f"mxpolicy demo: {error}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mxpolicy demo",
        description="See it work on loopback: no root, no mail server.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--list", action="store_true", help="name the stories and leave"
    )
    parser.add_argument(
        "story",
        nargs="*",
        metavar="STORY",
        type=_story_name,
        help="play only these; default: all, which takes about a minute",
    )
    return parser


def _story_name(text: str) -> str:
    if text not in {story.name for story in STORIES}:
        raise argparse.ArgumentTypeError(f"no story {text!r}; --list names them")
    return text


async def _play(stories: Sequence[Story], terminal: Terminal) -> int:
    """Play *stories*; on a signal close everything and return 128 + its number."""
    stopped_by: list[int] = []
    playing = asyncio.current_task()
    assert playing is not None

    def stop(number: int) -> None:
        if not stopped_by:  # a second signal must not disturb the end
            playing.cancel()
        stopped_by.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    terminal.say(INTRODUCTION)
    results: dict[Story, list[Result]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="mxpolicy-demo-") as directory:
            for story in stories:
                ended = await _tell(story, Path(directory, story.name), terminal)
                results[story] = ended
    except asyncio.CancelledError:
        terminal.say("stopped; everything is taken down")
        return 128 + stopped_by[0]
    return _summarize(results, terminal)


async def _tell(story: Story, directory: Path, terminal: Terminal) -> list[Result]:
    """Send both messages of *story*, and show each when it has ended."""
    name = f"{story.name}: "
    terminal.line()
    terminal.say(story.title, name, terminal.paint(name, BOLD))
    results = []
    async with staged(story, directory) as stage:
        for number, which in enumerate(("first", "second")):
            sys.stdout.flush()
            result = await stage.send(number)
            results.append(result)
            first = f"  {which} message: "
            colour = RED if result.faults else GREEN
            word = EXITS.get(result.exit_status, "never allowed")
            text = f"{word} after {result.seconds:.2f} s (exit {result.exit_status})"
            terminal.say(text, first, terminal.paint(first, colour))
            terminal.say(result.log_line, "    ")
            for fault in result.faults:
                terminal.say(fault, "  FAULT: ", terminal.paint("  FAULT: ", RED))
    return results


def _summarize(results: dict[Story, list[Result]], terminal: Terminal) -> int:
    """Show all stories side by side, and whether they ended as they must."""
    rows = [("story", "first", "second", "Postfix", "Exim")]
    for story, ended in results.items():
        first, second = (f"{one.seconds:.2f} s" for one in ended)
        rows.append((story.name, first, second, story.postfix, story.exim))
    terminal.heading("Until the mail server had its answer:")
    terminal.table(rows, right=(1, 2))
    terminal.say(NOTE)
    wrong = [
        story.name for story, ended in results.items() if any(r.faults for r in ended)
    ]
    terminal.line()
    if wrong:
        first = "Not as it must be: "
        terminal.say(f"{', '.join(wrong)}.", first, terminal.paint(first, RED, BOLD))
    else:
        first = "As it must be: "
        count = sum(map(len, results.values()))
        terminal.say(
            f"all {count} messages. What was delivered came once and unchanged.",
            first,
            terminal.paint(first, GREEN, BOLD),
        )
    return 1 if wrong else 0
