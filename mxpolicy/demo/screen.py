"""What the audience of the demo sees.

On a terminal each host has a row with a bar that grows while the story is
played; in a pipe, and where the terminal is too low for the rows, every step is
a line of its own. Colours only on a terminal, and not with ``NO_COLOR``
(https://no-color.org). Nothing here knows how a story is played.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from typing import TYPE_CHECKING, NamedTuple, TextIO

from mxpolicy.demo.timeline import Ending, Timeline, narrate
from mxpolicy.outcome import EXIT_BOUNCE, EXIT_DEFER, EXIT_DELIVERED
from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxpolicy.demo.stage import Result
    from mxpolicy.demo.stories import Story
    from mxpolicy.demo.timeline import Step, Track

__all__ = ["Paint", "Screen"]

MIN_WIDTH = 70
MAX_WIDTH = 110
# "no answer to EHLO: let go at 11.25 s" fits.
WORDS = 36
# Rows below and above the hosts' rows: title, scale, and what the end adds.
FRAME = 9

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"

EXITS = {EXIT_DELIVERED: "delivered", EXIT_DEFER: "try later", EXIT_BOUNCE: "bounce"}


class Paint(NamedTuple):
    """What the terminal can show.

    Attributes:
        live: The cursor may be moved.
        colour: Text may be coloured.
        unicode: Bars may be made of box-drawing characters.
    """

    live: bool
    colour: bool
    unicode: bool

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> Paint:
        """Judge by the stream and the environment."""
        live = stream.isatty() and environ.get("TERM", "dumb") != "dumb"
        encoding = (stream.encoding or "").lower().replace("-", "")
        return cls(live, live and not environ.get("NO_COLOR"), encoding == "utf8")

    def text(self, text: str, *codes: str) -> str:
        """Colour *text* where that may be."""
        if not self.colour or not codes or not text:
            return text
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"

    def bar(self, phase: Phase) -> str:
        """Return one cell of a bar."""
        if phase is Phase.CONNECT:
            return "·" if self.unicode else "."
        if phase < Phase.READY:
            return "─" if self.unicode else "-"
        return "━" if self.unicode else "="

    def mark(self, ending: Ending) -> str:
        """Return the last cell of a bar, coloured."""
        match ending:
            case Ending.TOOK_IT:
                return self.text("✓" if self.unicode else "+", GREEN, BOLD)
            case Ending.FAILED:
                return self.text("✗" if self.unicode else "x", RED, BOLD)
            case Ending.LET_GO:
                return self.text("○" if self.unicode else "o", YELLOW)


class Screen:
    """Shows one story after the other, then the table.

    For each story: `begin`, then `step` and `tick` as things happen, then `end`.
    """

    def __init__(self, stream: TextIO, paint: Paint) -> None:
        self._stream = stream
        self._paint = paint
        self._timeline = Timeline([])
        self._story: Story | None = None
        self._scale = 1.0
        self._drawn = 0
        self._rows = False

    def begin(self, story: Story, hosts: list[tuple[str, str]]) -> None:
        """Announce *story*; *hosts* are ``(label, address)``, best first."""
        self._story = story
        self._timeline = Timeline(hosts)
        self._scale = story.expected * 1.1
        self._drawn = 0
        self._rows = self._paint.live and self._has_room(len(hosts))
        self._line("")
        name = self._paint.text(story.name, BOLD)
        for line in textwrap.wrap(story.title, self._width() - 9):
            self._line(f"{name}{' ' * (9 - len(story.name))}{line}")
            name = " " * len(story.name)

    def step(self, step: Step) -> None:
        """Show a step: as a line, or with the next `tick`."""
        self._timeline.note(step)
        if not self._rows:
            self._line(self._fit(f"{step.at:8.2f} s  {narrate(step)}"))

    def tick(self, now: float) -> None:
        """Draw the rows as they are *now*, where there are rows."""
        self._rows = self._rows and self._has_room(len(self._timeline.tracks))
        if self._rows:
            while now > self._scale:
                self._scale *= 1.25
            self._draw([*self._bars(now), self._paint.text(f"  {now:6.1f} s", DIM)])

    def end(self, result: Result) -> None:
        """Show how the story came out, in place of the clock."""
        closing = self._closing(result)
        if self._rows:
            self._draw([*self._bars(result.seconds), *closing])
        else:
            for line in closing:
                self._line(line)

    def table(self, results: Sequence[Result]) -> None:
        """Show all stories side by side, and whether they came out as they must."""
        self._line("")
        self._line(self._paint.text(_table_row(*_HEADINGS), BOLD))
        for result in results:
            self._line(self._table_line(result))
        self._line("")
        for line in textwrap.wrap(_NOTE, self._width()):
            self._line(self._paint.text(line, DIM))
        self._line(self._verdict(results))

    def say(self, text: str) -> None:
        """Show a paragraph."""
        for line in textwrap.wrap(text, self._width()):
            self._line(line)

    def _closing(self, result: Result) -> list[str]:
        story, paint = result.story, self._paint
        meaning = EXITS.get(result.exit_status, "never allowed")
        who = f"; {_delivered_to(result)} has the message" if result.taken_by else ""
        colour = RED if result.faults else GREEN
        line = (
            f"  exit {result.exit_status} ({meaning}) after {result.seconds:.2f} s{who}"
        )
        lines = [paint.text(self._fit(line), colour)]
        if result.answer and result.exit_status != EXIT_DELIVERED:
            lines.extend(self._wrapped(f"answer: {printable(result.answer, 1000)}"))
        lines.extend(paint.text(f"  FAULT: {fault}", RED) for fault in result.faults)
        usual = f"  with defaults: Postfix {story.postfix}, Exim {story.exim}"
        return [*lines, paint.text(self._fit(usual), DIM)]

    def _table_line(self, result: Result) -> str:
        story = result.story
        row = _table_row(
            story.name,
            _delivered_to(result),
            f"{result.seconds:.2f}",
            str(result.exit_status),
            story.postfix,
            story.exim,
        )
        return self._paint.text(row, RED) if result.faults else row

    def _verdict(self, results: Sequence[Result]) -> str:
        wrong = [result.story.name for result in results if result.faults]
        if wrong:
            text = f"Not as it must be: {', '.join(wrong)}."
            return self._paint.text(text, RED, BOLD)
        taken = sum(len(result.taken_by) for result in results)
        text = f"{len(results)} of {len(results)} came out as they must"
        if taken:
            text += f"; {taken} delivered, each once and unchanged"
        text += "."
        return self._paint.text(text, GREEN, BOLD)

    def _bars(self, now: float) -> list[str]:
        cells = self._width() - WORDS - 17
        rows = [self._bar(track, now, cells) for track in self._timeline.tracks]
        if rows:
            right = f"{self._scale:.1f} s"
            axis = f"{'0':<{cells - len(right)}}{right}"
            rows.append(self._paint.text(f"{' ' * 16}{axis}", DIM))
        return rows

    def _bar(self, track: Track, now: float, cells: int) -> str:
        bar = _cells(track, now, cells, self._scale, self._paint)
        says = f"{track.says(now):.{WORDS}}"
        match track.ending:
            case None:
                codes: tuple[str, ...] = ()
            case Ending.TOOK_IT:
                codes = (GREEN,)
            case Ending.FAILED:
                codes = (RED,)
            case Ending.LET_GO:
                codes = (YELLOW,)
        name = f"{track.label:<4} {track.address:<10}"
        return f"{name} {bar} {self._paint.text(says, *codes)}"

    def _draw(self, lines: list[str]) -> None:
        """Put *lines* in place of those drawn last."""
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        body = "".join(f"{line}\x1b[K\n" for line in lines)
        self._stream.write(f"{up}{body}\x1b[J")
        self._stream.flush()
        self._drawn = len(lines)

    def _line(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _fit(self, line: str) -> str:
        """Cut *line* where a terminal would wrap it; a pipe may have it whole."""
        if not self._paint.live or len(line) <= self._width():
            return line
        return line[: self._width() - 3] + "..."

    def _has_room(self, hosts: int) -> bool:
        """Rows that wrap or scroll cannot be drawn again in place."""
        size = self._size()
        return size.columns >= MIN_WIDTH and size.lines >= hosts + FRAME

    def _wrapped(self, text: str) -> list[str]:
        """Return *text* as at most three indented lines; a pipe may have it in one."""
        if not self._paint.live:
            return [f"  {text}"]
        return textwrap.wrap(
            text,
            self._width(),
            initial_indent="  ",
            subsequent_indent="    ",
            max_lines=3,
            placeholder=" ...",
        )

    def _width(self) -> int:
        """One less than there is: a full last column makes some terminals wrap."""
        return max(MIN_WIDTH, min(MAX_WIDTH, self._size().columns)) - 1

    def _size(self) -> os.terminal_size:
        return shutil.get_terminal_size((80, 24))


_HEADINGS = ("story", "delivered to", "seconds", "exit", "Postfix", "Exim")
_NOTE = (
    "Postfix, Exim: what smtp(8) of Postfix 3.7 and the smtp transport of Exim 4.96"
    " take for one message with their defaults. Waits are measured, ~ is a sum of them;"
    " the rest is what their sources say."
)


def _table_row(
    name: str, who: str, seconds: str, status: str, postfix: str, exim: str
) -> str:
    return f"{name:<9}{who:<21}{seconds:>7} {status:>4}  {postfix:<18}{exim}".rstrip()


def _delivered_to(result: Result) -> str:
    if not result.taken_by:
        return f"({EXITS.get(result.exit_status, '?')})"
    return ", ".join(result.story.host_name(place) for place in result.taken_by)


def _cells(track: Track, now: float, cells: int, scale: float, paint: Paint) -> str:
    """Return the bar of *track*: one character a cell, a mark at its end."""
    end = now if track.ended is None else track.ended
    last = min(cells - 1, int(end / scale * cells))
    bar = [" "] * cells
    if track.started is not None:
        first = min(last, int(track.started / scale * cells))
        for cell in range(first, last + 1):
            moment = max(track.started, min(cell * scale / cells, end))
            phase = track.phase_at(moment)
            bar[cell] = paint.bar(track.phase if phase is None else phase)
    if track.ending is not None:
        bar[last] = paint.mark(track.ending)
    return "".join(bar)
