"""What ``--fallback`` must keep out of mxpolicy: mail that is not for the world. Pure.

`mxpolicy.check.fallback_relay` says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.check.fallback_relay import RELAY, of_the_world, others, ways_by
from mxpolicy.setup.steps import MASTER

if TYPE_CHECKING:
    from mxpolicy.setup.postfix_draft import Draft

__all__ = ["keep_others_out"]


def keep_others_out(draft: Draft) -> None:
    """Give each client but the one for the world an empty fallback of its own."""
    seen = draft.seen
    text = seen.services
    kept = list(dict.fromkeys(others(text, seen.effective)))
    for place in kept:
        there = draft.there(MASTER, place)
        draft.set(MASTER, place, f"{there} -o {RELAY}=")
    world = of_the_world(text, seen.effective)
    if kept:
        draft.note(
            f"{', '.join(kept)} in {MASTER} may deliver to a filter, or to a host of your"
            f" own, so what they cannot deliver waits as before. Where one of them sends"
            f" to the world as {world} does, take -o {RELAY}= out there"
        )
    for way in ways_by({world}, text, seen.effective):
        draft.refuse(
            f"{way}: when that does not answer, its mail would go by mxpolicy to the MX"
            f" hosts, for the fallback is that of {world}. Give it a client of its own in"
            f" {MASTER}, a line like that of {world}/unix with another name, and with -o"
            f" {RELAY}="
        )
    for line in seen.inward:
        draft.refuse(
            f"transport_maps has {line}: when that host does not answer, mail of this own"
            f" domain would go by mxpolicy to its MX hosts, and bounce as a loop. Write"
            f" relay: in the place of {world}: there"
        )
    if seen.unlisted and seen.effective.get("relay_domains"):
        draft.note(
            f"{', '.join(seen.unlisted)} cannot be listed: see that no domain of"
            f" relay_domains goes by {world}: in there, or its mail bounces when its host"
            " does not answer. relay: is for that"
        )
