"""What would happen to a message now, as far as can be said without dialling a host.

A forecast is a plan and what is remembered of its candidates. `mxpolicy.delivery.engine`
makes it. Nothing is written, and no lease is taken, so it does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.consult import refusal_of
from mxpolicy.routing.known_hosts import NOTHING_KNOWN, KnownHosts

if TYPE_CHECKING:
    from mxpolicy.delivery.plan import Plan
    from mxpolicy.options import MemoryOptions

__all__ = ["Forecast", "forecast"]


class Forecast(NamedTuple):
    """What is to be expected.

    Attributes:
        plan: Its candidates are in the order in which they would be asked. A refusal
            is the outcome of every recipient. With candidates it means that all of
            them are in their pause. While its unresolved hosts are better, no refusal by
            another host is final.
        known: What is remembered of the candidates. They may all have failed without
            a refusal in the plan (``memory.fast_deferral``).
    """

    plan: Plan
    known: KnownHosts = NOTHING_KNOWN


def forecast(plan: Plan, known: KnownHosts, options: MemoryOptions) -> Forecast:
    """Return what is to be expected of *plan*, which has candidates."""
    refusal = None
    if known.is_hopeless and options.fast_deferral:
        refusal, _ = refusal_of(known)
    return Forecast(plan._replace(candidates=known.order, refusal=refusal), known)
