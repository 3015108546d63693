"""What would become of a message now, as far as can be said without dialling anybody.

A plan, and what is remembered of its candidates. `mxpolicy.delivery.engine` makes
it; nothing is written, and no lease is taken, so it can be shown without harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.recall import hopeless
from mxpolicy.delivery.recalled import NOTHING_RECALLED
from mxpolicy.options import YesNo
from mxpolicy.routing.reachability import NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.delivery.plan import Plan
    from mxpolicy.delivery.recall import Known
    from mxpolicy.delivery.recalled import Recalled
    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.broken_tls import BrokenTls
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.reachability import Record

__all__ = ["Outlook", "foreseen"]


class Outlook(NamedTuple):
    """What is to be expected.

    Attributes:
        plan: Its candidates are in the order in which they would be asked. A
            refusal is what every recipient would get; with candidates, because
            everyone of them is in its pause. Its unresolved hosts are those that a
            worse host's refusal waits for.
        records: What is remembered, by candidate.
        of_nexthop: Those of whom it holds for mail to this nexthop only.
        is_hopeless: Every candidate has failed fully and is in its pause, whether
            or not a message is deferred for it (``memory.fast_deferral``).
        has_other: Somebody is not known to have failed fully, or not any more.
        of_tls: What is known of broken STARTTLS.
        recalled: For the race.
        at: When that was so, UTC seconds.
    """

    plan: Plan
    records: Mapping[Candidate, Record] = {}
    of_nexthop: frozenset[Candidate] = frozenset()
    is_hopeless: bool = False
    has_other: bool = True
    of_tls: Mapping[Candidate, BrokenTls] = {}
    recalled: Recalled = NOTHING_RECALLED
    at: float = 0.0


def foreseen(plan: Plan, known: Known, options: MemoryOptions) -> Outlook:
    """Return what is to be expected of *plan*, which has candidates.

    Args:
        plan: The plan.
        known: What is remembered of its candidates.
        options: For the memory.
    """
    records = {one: known.record(one) for one in plan.candidates}
    is_hopeless = known.advice.is_hopeless
    refusal = None
    if is_hopeless and options.fast_deferral is YesNo.YES:
        refusal, _ = hopeless(plan.candidates, known.of_host, known.at)
    return Outlook(
        plan._replace(candidates=known.advice.order, refusal=refusal),
        {one: record for one, record in records.items() if record != NOTHING},
        frozenset(
            one
            for one in plan.candidates
            if records[one] is not known.of_host.get(one, NOTHING)
        ),
        is_hopeless,
        known.advice.has_other,
        known.of_tls,
        known.recalled(),
        known.at,
    )
