"""What would point to nothing when a Postfix is taken back.

A service or a table of ours goes, and a line of the postmaster's may name it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.setup.cf_text import Entry, entries, find
from mxpolicy.setup.disk import read_text
from mxpolicy.setup.postfix_lines import TABLE
from mxpolicy.setup.steps import MAIN, MASTER, WHOLE
from mxpolicy.setup.undo import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mxpolicy.setup.kept import Kept
    from mxpolicy.setup.undo import Texts

__all__ = ["Going", "Table", "going", "gone", "mentions", "tables"]

# A table that is a file: TYPE:/PATH, or TYPE:$config_directory/NAME.
_FILE = re.compile(r"[a-z]+:((?:/|\$[{(]?\w+[)}]?)[^\s,{}]*)")

# Parameters whose values, and tables, have the name of a transport with a colon or without.
_ROUTES = "transport"


class Going(NamedTuple):
    """What nothing may name any more.

    Attributes:
        patterns: That find it anywhere.
        transports: That find it where a transport stands.
    """

    patterns: list[str]
    transports: list[str]


class Table(NamedTuple):
    """A lookup table.

    Attributes:
        text: What the file says.
        is_of_routes: Whether what it says of a key is a transport.
    """

    text: str
    is_of_routes: bool


def gone(kept: Kept, texts: Texts) -> set[str]:
    """Return the names of the services that go.

    Args:
        kept: By set-up.
        texts: Of the files, after it is taken back.
    """
    return {
        step.key.partition("/")[0]
        for step in kept.steps
        if step.file.endswith(f"/{MASTER}")
        and not find(MASTER, texts[step.file] or "", step.key)
    }


def tables(texts: Texts, fill: Callable[[str], str]) -> dict[str, Table]:
    """Return the lookup tables that *texts* name and that are files, by path.

    Args:
        texts: main.cf and master.cf, by path; further files are no tables.
        fill: Fills in each ``$name`` of main.cf.
    """
    found: dict[str, Table] = {}
    for path, text in texts.items():
        for one in _entries(path, text):
            for name in map(fill, _FILE.findall(one.value)):
                is_of_routes = _ROUTES in one.key
                if name in found:
                    is_of_routes |= found[name].is_of_routes
                there = read_text(name) if os.path.isfile(name) else None
                if there is not None and name not in texts:
                    found[name] = Table(there, is_of_routes)
    return found


def going(kept: Kept, texts: Mapping[str, str | None]) -> Going:
    """Return what nothing may name any more when *texts* hold.

    Args:
        kept: By set-up.
        texts: Of the files, after it is taken back.
    """
    found = Going([], [])
    for step in kept.steps:
        text = texts[step.file]
        kind = kind_of(step.file)
        if step.key == WHOLE:
            if text is None:
                found.patterns.append(rf"{TABLE}\b")
            continue
        if find(kind, text or "", step.key):
            continue
        name, _, sort = step.key.partition("/")
        if kind == MASTER and sort == "unix":
            quoted = re.escape(name)
            found.patterns.append(rf"(?<![\w./-]){quoted}:")
            found.patterns.append(rf"\bprivate/{quoted}\b")
            found.patterns.append(rf"\w*{_ROUTES}\s*=\s*{quoted}(?![\w.:/-])")
            found.transports.append(rf"(?<![\w./:-]){quoted}(?![\w./-])")
        elif kind == MASTER:
            host, _, port = name.partition(":")
            found.patterns.append(re.escape(f"[{host}]:{port}"))
        elif name == "mxpolicy_policy":
            found.patterns.append(r"\$[{(]?mxpolicy_policy\b")
    return found


def mentions(
    goes: Going, texts: Mapping[str, str | None], tables: Mapping[str, Table]
) -> list[str]:
    """Return where something still names what would go, a sentence each.

    Args:
        goes: From `going`.
        texts: main.cf and master.cf as they would become, by path.
        tables: Lookup tables that they name, by path.
    """
    if not goes.patterns:
        return []
    anywhere = re.compile("|".join(goes.patterns))
    routes = re.compile("|".join((*goes.patterns, *goes.transports)))
    found = []
    for path, text in texts.items():
        for one in _entries(path, text):
            is_of_routes = kind_of(path) == MAIN and _ROUTES in one.key
            if hit := (routes if is_of_routes else anywhere).search(one.value):
                found.append(f"{path}, line {one.first + 1}, {one.key}: {hit[0]}")
    for path, table in tables.items():
        pattern = routes if table.is_of_routes else anywhere
        for number, line in enumerate(table.text.split("\n"), 1):
            if line.lstrip().startswith("#"):
                continue
            # The key is no mention: mxpolicy may be an alias, too.
            said = line if line[:1].isspace() else "".join(line.split(None, 1)[1:])
            if hit := pattern.search(said):
                found.append(f"{path}, line {number}: {hit[0]}")
    return found


def _entries(path: str, text: str | None) -> Iterator[Entry]:
    kind = kind_of(path)
    if kind in {MAIN, MASTER} and text is not None:
        yield from entries(kind, text)
