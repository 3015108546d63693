"""The transport table of ``--one-domain``, and its place in transport_maps. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.check.master_cf import words
from mxpolicy.setup.cf_text import squeeze
from mxpolicy.setup.postfix_domains import Own
from mxpolicy.setup.postfix_lines import table_line
from mxpolicy.setup.steps import MAIN, WHOLE, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.setup.postfix_draft import Draft

__all__ = ["add", "join", "look_at_others"]

_HEAD = """\
# Made by `mxpolicy setup postfix --one-domain`; see transport(5). After a change of it:
# postfix reload
"""


def add(draft: Draft, domains: Sequence[str], transport: str) -> None:
    """Write a line for each of *domains* into the table."""
    for domain in domains:
        _judge(draft, domain)
    before, taken = draft.seen.table, _lines(draft)
    new = [table_line(one, transport) for one in domains if one not in taken]
    for domain in domains:
        line = taken.get(domain, "")
        if line and line != squeeze(table_line(domain, transport)):
            draft.refuse(f"{draft.seen.table_path} says {line}: change it there")
    if new:
        text = (_HEAD if before is None else before) + "".join(new)
        draft.write(Step(draft.seen.table_path, WHOLE, text, before))


def _lines(draft: Draft) -> dict[str, str]:
    """Return the lines of the table, by domain."""
    known = map(squeeze, (draft.seen.table or "").split("\n"))
    return {one.split()[0]: one for one in known if one and one[0] != "#"}


def look_at_others(draft: Draft, transport: str) -> None:
    """Tell which domains of the table go another way than all mail does."""
    others = [
        domain
        for domain, line in _lines(draft).items()
        if line != squeeze(table_line(domain, transport))
    ]
    if others:
        draft.note(
            f"{draft.seen.table_path} has {', '.join(others)}, which goes as it says"
            f" there, not by {transport}:"
        )


def _judge(draft: Draft, domain: str) -> None:
    if said := draft.seen.routed.get(domain):
        draft.refuse(f"transport_maps sends {domain} by {said} already: take that out")
    local = draft.seen.local.get(domain, Own())
    if local.name:
        draft.refuse(
            f"{local.name} is this mail system's own ({local.setting}), and with"
            f" {domain} it would no longer be delivered here"
        )
    if local.unlisted:
        draft.note(
            f"{', '.join(local.unlisted)} cannot be listed: see that no domain"
            f" in there is below {domain}, or its mail would leave"
        )


def join(draft: Draft) -> None:
    """Have transport_maps name the table."""
    there = draft.there(MAIN, "transport_maps")
    table = f"texthash:{draft.seen.table_path}"
    if not there:
        draft.set(MAIN, "transport_maps", table)
    elif table not in words(there, " \t,"):
        # First, for a domain that another table has by a wildcard.
        draft.set(MAIN, "transport_maps", f"{table}, {there}")
