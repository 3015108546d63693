"""``mxpolicy demo``: see it work on loopback, without root and without a mail server.

For each story a name server and mail hosts, good and faulty, are opened on
127.0.0.x, and one message goes through the real ``mxpolicy pipe`` command. The
screen shows as it happens who was tried, what each did and when, and the exit
status a mail server would have got. Linux only, for its 127.0.0.0/8.

The rooms: `stories` (what is played), `names` and `hosts` (the surroundings),
`stage` (runs the command and judges), `logfile` and `timeline` (what the
command said it did), `screen`.
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

from mxpolicy.demo.hosts import DemoError, address_of
from mxpolicy.demo.screen import Paint, Screen
from mxpolicy.demo.stage import perform
from mxpolicy.demo.stories import STORIES
from mxpolicy.terminal import reader_may_leave

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.demo.stage import Result
    from mxpolicy.demo.stories import Story

__all__ = ["main"]

INTRODUCTION = (
    "Each message goes through `mxpolicy pipe`, as Postfix or Exim would run it, to hosts"
    " on 127.0.0.x. Seconds count from the start of the command."
)


def main(argv: Sequence[str]) -> int:
    """Play the stories named in *argv*, or all of them.

    Args:
        argv: What follows ``mxpolicy demo`` on the command line.

    Returns:
        0 when every story came out as it must, 1 when one did not or the demo
        cannot be shown here, 128 + N after signal N. Leaves by `SystemExit`
        with 2 on a wrong command line.
    """
    arguments = _parser().parse_args(argv)
    wanted = [s for s in STORIES if not arguments.story or s.name in arguments.story]
    try:
        with reader_may_leave():
            if arguments.list:
                return _list(wanted)
            return _interruptible(
                wanted, Screen(sys.stdout, Paint.of(sys.stdout, os.environ))
            )
    except DemoError as error:
        print(f"mxpolicy demo: {error}", file=sys.stderr)
    return 1


def _list(stories: Sequence[Story]) -> int:
    for story in stories:
        print(f"{story.name:<9}{story.title}")
    return 0


def _parser() -> argparse.ArgumentParser:
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
        help="play only these; default: all, which takes less than a minute",
    )
    return parser


def _story_name(text: str) -> str:
    if text not in {story.name for story in STORIES}:
        raise argparse.ArgumentTypeError(f"no story {text!r}; --list names them")
    return text


def _interruptible(stories: Sequence[Story], screen: Screen) -> int:
    """Play, and on a signal take everything down before leaving with 128 + its number."""
    stopped_by: list[int] = []

    async def run() -> int:
        loop = asyncio.get_running_loop()
        playing = asyncio.create_task(_play(stories, screen))

        def stop(number: int) -> None:
            if not stopped_by:  # a second one must not disturb the taking down
                playing.cancel()
            stopped_by.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        return await playing

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        screen.say("stopped; everything is taken down")
        return 128 + stopped_by[0]


async def _play(stories: Sequence[Story], screen: Screen) -> int:
    screen.say(INTRODUCTION)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="mxpolicy-demo-") as directory:
        for story in stories:
            places = range(len(story.hosts))
            screen.begin(story, [(f"mx{n + 1}", address_of(n)) for n in places])
            result = await perform(story, Path(directory, story.name), screen)
            screen.end(result)
            results.append(result)
    screen.table(results)
    return 1 if any(result.faults for result in results) else 0
