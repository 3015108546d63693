"""The lines that the postmaster puts into Exim's configuration by hand, and where. Pure.

In a configuration in a single file the order of the routers is the site's, and so is the
order of an ACL in any. So the lines are printed, each with its place in the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.setup.exim_lines import ACL, RETRY, router, transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mxpolicy.setup.steps import Asked

__all__ = ["RULE", "acl", "left", "lines"]

Part = tuple[str, str]

# A retry rule for all domains.
RULE = re.compile(r"^\s*\*\s+\*\s", re.M)

_BEGIN = re.compile(r"\s*begin\s+(\w+)")
_VERB = re.compile(r"\s*(accept|defer|deny|discard|drop|require|warn)\b")
_RELAY = re.compile(r"(?:\s*accept\b)?\s*hosts\s*=\s*\+relay_from_hosts\s*(?:#.*)?$")
_OURS = re.compile(r"\s*mxpolicy(?:_lmtp)?\s*:|.*\breadsocket\b.*/mxpolicy/")


class _Places(NamedTuple):
    """Numbers of lines, the first one being 1.

    Attributes:
        begins: Of the lines that begin a section, by its name.
        ends: Of the line that begins the next one; beyond the last line at the end.
    """

    begins: dict[str, int]
    ends: dict[str, int]


def _places(text: str) -> _Places:
    rows = text.splitlines()
    found = [
        (head[1], number)
        for number, row in enumerate(rows, 1)
        if (head := _BEGIN.match(row))
    ]
    after = [number for _, number in found[1:]] + [len(rows) + 1]
    ends = {name: end for (name, _), end in zip(found, after, strict=False)}
    return _Places(dict(found), ends)


def lines(asked: Asked, path: str, text: str) -> list[Part]:
    """Return where each part goes in a single file, and its text.

    From the last line to the first: put in in this order, none moves the place of the next.

    Args:
        asked: What the postmaster asks for.
        path: The configuration that Exim reads, or that is made into it.
        text: What it says.
    """
    places = _places(text)
    sections = {
        "transports": (
            '"begin transports"',
            transport(asked.program, asked.config, asked.lmtp),
        )
    }
    if asked.all_mail or asked.domains:
        sections["routers"] = (
            '"begin routers"; a router of yours that must keep its mail stays before it',
            router(asked.domains, asked.lmtp),
        )
    parts = []
    for section, (where, put) in sections.items():
        line = places.begins.get(section, 0)
        after = f", after line {line}" if line else ""
        parts.append((line, (f"{path}{after}, {where}", put)))
    if not RULE.search(text):
        parts.append(_retry(path, text, places))
    if asked.policy:
        parts.append((_relayed(text), acl(path, text)))
    parts.sort(key=lambda part: -part[0])
    return [
        (
            "first a copy, which is the way back; then each part, from the last line to"
            " the first, so that the numbers hold",
            f"cp -p {path} {path}.before",
        ),
        *(part for _, part in parts),
    ]


def _retry(path: str, text: str, places: _Places) -> tuple[int, Part]:
    """Return the line of the retry rule, and its part.

    The first rule that matches decides, so it comes after the site's own.
    """
    last = len(text.splitlines()) + 1
    end = places.ends.get("retry", 0)
    if not end:
        return last, (f'{path}, at its end, with a line "begin retry" before it', RETRY)
    if end == last:
        return last, (f"{path}, at its end (the section retry)", RETRY)
    return end, (
        f"{path}, before line {end}, at the end of the section retry",
        RETRY,
    )


def acl(path: str, text: str) -> Part:
    """Return where the lines of the ACL go in the file *path*, and these lines."""
    line = _relayed(text)
    where = (
        f", before line {line}," if line else ": in the ACL of acl_smtp_rcpt, before"
    )
    return (
        f"to put in by hand: {path}{where} its first accept with hosts ="
        " +relay_from_hosts",
        ACL,
    )


def _relayed(text: str) -> int:
    """Return the line of the first statement that lets relayed mail in; 0 for none."""
    verb, start = "", 0
    for number, row in enumerate(text.splitlines(), 1):
        if found := _VERB.match(row):
            verb, start = found[1], number
        if verb == "accept" and _RELAY.match(row):
            return start
    return 0


def left(path: str, text: str) -> Iterator[str]:
    """Yield a sentence for each place in *text* that is ours and was put in by hand."""
    for number, row in enumerate(text.splitlines(), 1):
        if _OURS.match(row):
            yield (
                f"{path}, line {number}, is mxpolicy's and was put in by hand, so it is"
                f" taken out by hand: {row.strip()}"
            )
