"""What would point to nothing when a Postfix is taken back.

A service or a table of ours goes, and a line of the postmaster's may name it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from mxpolicy.setup.cf_text import entries, find
from mxpolicy.setup.disk import read_text
from mxpolicy.setup.postfix_lines import TABLE
from mxpolicy.setup.steps import MAIN, MASTER, WHOLE
from mxpolicy.setup.undo import kind_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mxpolicy.setup.kept import Kept
    from mxpolicy.setup.undo import Texts

__all__ = ["going", "gone", "mentions", "tables"]

_FILE = re.compile(r"[a-z]+:(/[^\s,{}]+)")


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


def tables(texts: Texts) -> dict[str, str]:
    """Return the lookup tables that main.cf of *texts* names and that are files, by path."""
    found = {}
    for main in (text for path, text in texts.items() if kind_of(path) == MAIN):
        for path in (
            p for one in entries(MAIN, main or "") for p in _FILE.findall(one.value)
        ):
            text = read_text(path) if os.path.isfile(path) else None
            if text is not None and path not in texts:
                found[path] = text
    return found


def going(kept: Kept, texts: Mapping[str, str | None]) -> list[str]:
    """Return patterns of what nothing may name any more when *texts* hold.

    Args:
        kept: By set-up.
        texts: Of the files, after it is taken back.
    """
    patterns = []
    for step in kept.steps:
        text = texts[step.file]
        kind = kind_of(step.file)
        if step.key == WHOLE:
            if text is None:
                patterns.append(rf"{TABLE}\b")
            continue
        if find(kind, text or "", step.key):
            continue
        name, _, sort = step.key.partition("/")
        if kind == MASTER and sort == "unix":
            patterns.append(rf"(?<![\w./-]){re.escape(name)}:")
            patterns.append(rf"\bprivate/{re.escape(name)}\b")
        elif kind == MASTER:
            host, _, port = name.partition(":")
            patterns.append(re.escape(f"[{host}]:{port}"))
        elif name == "mxpolicy_policy":
            patterns.append(r"\$[{(]?mxpolicy_policy\b")
    return patterns


def mentions(
    patterns: Collection[str],
    texts: Mapping[str, str | None],
    tables: Mapping[str, str],
) -> list[str]:
    """Return where something still names what would go, a sentence each.

    Args:
        patterns: From `going`.
        texts: main.cf and master.cf as they would become, by path.
        tables: Lookup tables that main.cf names, by path.
    """
    if not patterns:
        return []
    pattern = re.compile("|".join(patterns))
    found = []
    for path, text in texts.items():
        if kind_of(path) in {MAIN, MASTER} and text is not None:
            found += [
                f"{path}, line {one.first + 1}, {one.key}: {hit[0]}"
                for one in entries(kind_of(path), text)
                if (hit := pattern.search(one.value))
            ]
    for path, text in tables.items():
        for number, line in enumerate(text.split("\n"), 1):
            if not line.lstrip().startswith("#") and (hit := pattern.search(line)):
                found.append(f"{path}, line {number}: {hit[0]}")
    return found
