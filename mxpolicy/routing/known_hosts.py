"""What is remembered of a message's candidates, and in which order they are asked. Pure."""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.host_record import NOTHING, HostRecord
from mxpolicy.routing.race_timing import Entrant
from mxpolicy.routing.reachability import Standing, standing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.broken_tls import BrokenTls
    from mxpolicy.routing.candidate import Candidate

__all__ = ["NOTHING_KNOWN", "KnownHosts", "advise"]


class KnownHosts(NamedTuple):
    """What is remembered of the candidates of a plan; a missing one is unknown.

    Attributes:
        order: All candidates, in the order in which they are asked.
        due: Those to be probed by the message that gets their lease.
        has_other: At least one has not failed fully lately.
        is_hopeless: Every one has failed fully, and is in its pause.
        of_host: What is kept for all mail.
        of_nexthop: What is kept for mail to this nexthop only.
        of_tls: What is known of broken STARTTLS.
        at: When that was so, UTC seconds.
    """

    order: tuple[Candidate, ...] = ()
    due: tuple[Candidate, ...] = ()
    has_other: bool = True
    is_hopeless: bool = False
    of_host: Mapping[Candidate, HostRecord] = {}
    of_nexthop: Mapping[Candidate, HostRecord] = {}
    of_tls: Mapping[Candidate, BrokenTls] = {}
    at: float = 0.0

    def is_limited(self, candidate: Candidate) -> bool:
        """Return whether `record` holds for mail to this nexthop only."""
        of_host = self.of_host.get(candidate, NOTHING)
        of_nexthop = self.of_nexthop.get(candidate, NOTHING)
        return of_host.verdict is None and of_nexthop.verdict is not None

    def record(self, candidate: Candidate) -> HostRecord:
        """Return what counts for *candidate*: the record for all mail comes first."""
        records = self.of_nexthop if self.is_limited(candidate) else self.of_host
        return records.get(candidate, NOTHING)

    def entrant(self, candidate: Candidate) -> Entrant:
        """Return *candidate* as the race wants it."""
        record = self.of_host.get(candidate, NOTHING)
        return Entrant(
            candidate,
            record.connect_time,
            record.greeting_latency,
            remembered=record.wait(self.at),
        )

    def better_is_due(self, candidate: Candidate) -> float:
        """Return when the pause of a host of better rank ends; infinite without one.

        Until then mail goes to *candidate* for good reason. UTC seconds.
        """
        ends = (
            record.since + record.pause
            for one, record in self.of_host.items()
            if one.rank < candidate.rank and record.verdict is not None
        )
        return min((end for end in ends if end > self.at), default=inf)

    def needs_small_segments(self, candidate: Candidate) -> bool:
        """Return whether *candidate* is dialled with small segments from the first."""
        return self.of_host.get(candidate, NOTHING).needs_small_segments(self.at)

    def is_tls_broken(self, candidate: Candidate) -> bool:
        """Return whether STARTTLS is left out at level ``may``."""
        known = self.of_tls.get(candidate)
        return known is not None and known.is_believed(self.at)


NOTHING_KNOWN = KnownHosts()


def advise(
    candidates: Sequence[Candidate],
    of_host: Mapping[Candidate, HostRecord],
    of_nexthop: Mapping[Candidate, HostRecord],
    now: float,
    options: MemoryOptions,
    of_tls: Mapping[Candidate, BrokenTls] = NOTHING_KNOWN.of_tls,
) -> KnownHosts:
    """Return what is remembered, and the order that follows from it.

    Args:
        candidates: In the order of preference.
        of_host: What is kept for all mail, by candidate.
        of_nexthop: What is kept for mail to this nexthop.
        now: UTC seconds.
        options: For the pauses.
        of_tls: What is known of broken STARTTLS.
    """
    tiers: dict[Candidate, _Tier] = {}
    for candidate in candidates:
        host = of_host.get(candidate, NOTHING)
        nexthop = of_nexthop.get(candidate, NOTHING)
        tiers[candidate] = _tier(host, nexthop, now, options)
    return KnownHosts(
        tuple(sorted(candidates, key=lambda one: tiers[one].value)),
        tuple(one for one, tier in tiers.items() if tier in _DUE),
        any(tier not in _FULL for tier in tiers.values()),
        all(tier is _Tier.FULLY_PAUSED for tier in tiers.values()),
        of_host,
        of_nexthop,
        of_tls,
        now,
    )


class _Tier(Enum):
    """Which part of the order a candidate is in; smaller is sooner."""

    ORDINARY = 0
    BAD_FOR_NEXTHOP = 1
    DUE = 2
    FULLY_DUE = 3
    PAUSED = 4
    FULLY_PAUSED = 5


_DUE = frozenset({_Tier.DUE, _Tier.FULLY_DUE})
_FULL = frozenset({_Tier.FULLY_DUE, _Tier.FULLY_PAUSED})


def _tier(
    host: HostRecord, nexthop: HostRecord, now: float, options: MemoryOptions
) -> _Tier:
    match standing(host, now, options):
        case Standing.PAUSED:
            return _Tier.FULLY_PAUSED if host.full else _Tier.PAUSED
        case Standing.DUE:
            return _Tier.FULLY_DUE if host.full else _Tier.DUE
        case Standing.UNKNOWN:
            is_bad = standing(nexthop, now, options) is Standing.PAUSED
            return _Tier.BAD_FOR_NEXTHOP if is_bad else _Tier.ORDINARY
