"""What set-up would add to master.cf. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mxpolicy.check.master_cf import parse_services
from mxpolicy.setup.cf_text import entries, squeeze
from mxpolicy.setup.postfix_lines import FALLBACK_AT
from mxpolicy.setup.steps import MASTER, PROGRAM

if TYPE_CHECKING:
    from mxpolicy.setup.postfix_draft import Draft
    from mxpolicy.setup.steps import Asked

__all__ = ["add"]


def add(draft: Draft, line: str, asked: Asked) -> None:
    """Add the service of *line*; one that is there already stays or is refused."""
    line = _fitted(line, asked)
    key = "/".join(line.split()[:2])
    there = draft.there(MASTER, key)
    if there is None:
        if key.endswith("/inet"):
            _find_place(draft, key)
        draft.set(MASTER, key, line)
    elif squeeze(there) == line:
        return
    elif _is_ours(there, line):
        draft.note(f"{MASTER} has {key} already, otherwise: it stays as it is")
    else:
        draft.refuse(
            f"{draft.seen.directory}/{MASTER} has another service {key}: {there};"
            " give it another name, or take it out"
        )


def _fitted(line: str, asked: Asked) -> str:
    """Return *line* with what is so on this machine."""
    config = f" --config {asked.config}" if asked.config else ""
    for command in ("pipe", "policy"):
        line = line.replace(
            f"{PROGRAM} {command}", f"{asked.program} {command}{config}"
        )
    return line.replace(" 60 pipe ", f" {asked.processes} pipe ")


def _is_ours(there: str, line: str) -> bool:
    """Return whether the service does what *line* does, in its own way."""
    if " pipe flags=" in line:
        return any(one.arguments is not None for one in parse_services(there))
    if " spawn " in line:
        found = parse_services(there, "spawn")
        return any(one.arguments is not None for one in found)
    if "content_filter=" in line:
        return "content_filter=mxpolicy:" in there
    # Our own names, and the same program of Postfix.
    return there.split()[7:8] == line.split()[7:8]


def _find_place(draft: Draft, key: str) -> None:
    """Refuse where master(8) could not listen: it would end, and all mail stop."""
    host, port = FALLBACK_AT
    others = [
        one.key
        for one in entries(MASTER, draft.seen.master)
        if one.key != key and re.search(rf"(^|:){port}/inet$", one.key)
    ]
    if others or draft.seen.is_taken:
        who = (
            f"{draft.seen.directory}/{MASTER} has {others[0]}"
            if others
            else "another program listens there"
        )
        draft.refuse(
            f"port {port} of {host} is taken: {who} (ss -ltnp), and Postfix would"
            " end where it cannot listen. Have that listen elsewhere, or choose"
            " --one-domain or --all-mail"
        )
