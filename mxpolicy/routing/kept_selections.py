"""Which hosts a nexthop had a moment ago. Pure.

A door asks before it takes the mail, the delivery asks right after it, and messages for
one destination come in bursts. All of them ask for the same hosts.

Time is an argument, in seconds of one monotonic clock.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.domain_record import is_stale
from mxpolicy.routing.mx import Lookup, LookupStatus

if TYPE_CHECKING:
    from mxpolicy.routing.nexthop import Nexthop
    from mxpolicy.routing.selection import Selection

__all__ = ["KEPT", "MOST_KEPT", "KeptSelections", "Selected"]

# Seconds, if DNS holds so long. This machine may get another address meanwhile, and
# whether a nexthop loops to it depends on that. A nexthop costs a few hundred bytes.
KEPT, MOST_KEPT = 10.0, 1000


class Selected(NamedTuple):
    """The hosts of one nexthop.

    Attributes:
        selection: The hosts that may be tried, or why there are none.
        lookups: What DNS said, from which it follows.
    """

    selection: Selection
    lookups: tuple[Lookup, ...]

    @property
    def holds_for(self) -> float:
        """For how many seconds DNS says the same; 0 where some of it has failed."""
        failed = LookupStatus.FAILED
        if any(one.status is failed or is_stale(one) for one in self.lookups):
            return 0.0
        return min((one.ttl for one in self.lookups), default=inf)

    def aged(self, seconds: float) -> Selected:
        """Return the same, so many seconds later."""
        lookups = [
            one._replace(ttl=max(0.0, one.ttl - seconds)) for one in self.lookups
        ]
        return Selected(self.selection, tuple(lookups))


class _Kept(NamedTuple):
    selected: Selected
    since: float
    until: float


class KeptSelections:
    """Nexthop -> `Selected`, bounded, the oldest leaving first."""

    def __init__(self) -> None:
        self._kept: dict[Nexthop, _Kept] = {}

    def get(self, nexthop: Nexthop, now: float) -> Selected | None:
        """Return what `put` was given, if it still holds at *now*, with the TTLs of now."""
        found = self._kept.get(nexthop)
        if found is None or found.until <= now:
            return None
        return found.selected.aged(now - found.since)

    def put(self, nexthop: Nexthop, selected: Selected, now: float) -> None:
        """Keep what was learned at *now*, if it holds for a while."""
        self._kept.pop(nexthop, None)
        holds_for = min(KEPT, selected.holds_for)
        if holds_for > 0:
            if len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[nexthop] = _Kept(selected, now, now + holds_for)
