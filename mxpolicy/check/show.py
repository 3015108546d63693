"""What the check prints, as text and as JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mxpolicy.check.report import Level
from mxpolicy.terminal import BOLD, DIM, GREEN, RED, YELLOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.check.configuration import Setting
    from mxpolicy.check.report import Item
    from mxpolicy.terminal import Terminal

    # Title and items of each theme.
    Sections = Sequence[tuple[str, Sequence[Item]]]

__all__ = ["as_json", "as_text"]

SCHEMA = 1

# A line of mxpolicy.yaml.
_OPTION = re.compile(r"[a-z_]+: ")

_COLOURS = {Level.OK: GREEN, Level.WARN: YELLOW, Level.FAIL: RED}


def as_json(sections: Sections, settings: Sequence[Setting]) -> dict[str, object]:
    """Return what ``--json`` shows."""
    return {
        "schema": SCHEMA,
        "options": {one.path: one.value for one in settings},
        "changed": [one.path for one in settings if not one.is_default],
        "items": [
            _item_as_json(title, one) for title, section in sections for one in section
        ],
        "first": _item_as_json(*first) if (first := _to_do_first(sections)) else None,
    }


def _item_as_json(title: str, item: Item) -> dict[str, str]:
    found = {"about": title, "level": item.level.value, "text": item.text}
    return found | ({"mend": item.mend} if item.mend else {})


def _to_do_first(sections: Sections) -> tuple[str, Item] | None:
    """Return what is to be mended first: what fails, before what is only warned of.

    Of equal ones it is what stands first of what can be mended by a line to be copied.
    """
    bad = [
        (title, one)
        for title, section in sections
        for one in section
        if one.level is not Level.OK
    ]
    return min(
        bad,
        key=lambda it: (it[1].level is not Level.FAIL, not it[1].mend),
        default=None,
    )


def as_text(
    sections: Sections,
    settings: Sequence[Setting],
    file: str,
    terminal: Terminal,
) -> None:
    """Write what was found; *file* is where lines of the configuration belong."""
    if settings:
        terminal.line(terminal.paint("options", BOLD))
        rows = [
            (
                " " if one.is_default else "*",
                one.path,
                one.value + (f"  ({one.meaning})" if one.meaning else ""),
            )
            for one in settings
        ]
        terminal.table(rows)
        terminal.line(terminal.paint("  * not the default", DIM))
    for title, section in sections:
        terminal.heading(title)
        for item in section:
            _item(item, terminal)
    if first := _to_do_first(sections):
        title, item = first
        terminal.line()
        terminal.say(item.text, f"First ({title}): ")
        if item.mend:
            terminal.line(terminal.paint(f"        {item.mend}", BOLD))
    _sum([one for _, part in sections for one in part], file, terminal)


def _item(item: Item, terminal: Terminal) -> None:
    level = terminal.paint(f"{item.level.value:<4}", _COLOURS[item.level])
    # The colour takes no column: wrap with the bare word, then put it in its place.
    bare = f"  {item.level.value:<4}  "
    terminal.say(item.text, bare, marked=f"  {level}  ")
    if item.mend:
        # Not wrapped, to be copied.
        terminal.line(terminal.paint(f"        {item.mend}", BOLD))


def _sum(items: Sequence[Item], file: str, terminal: Terminal) -> None:
    fails = sum(one.level is Level.FAIL for one in items)
    warns = sum(one.level is Level.WARN for one in items)
    terminal.line()
    if any(one.mend.startswith("postconf ") for one in items):
        terminal.line("After postconf: postfix reload")
    if any(_OPTION.match(one.mend) for one in items):
        terminal.line(f"Lines with `name: value` belong into {file}")
    colour = RED if fails else YELLOW if warns else GREEN
    wells = len(items) - fails - warns
    text = f"{fails} fail, {warns} warn, {wells} ok"
    terminal.line(terminal.paint(text, colour, BOLD))
