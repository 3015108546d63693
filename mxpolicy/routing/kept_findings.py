"""What was found about domains, and for how long it may be answered again. Pure.

A finding (`mxpolicy.routing.access_rules.finding`) follows from what DNS says and from
what is remembered of the hosts. So it is kept in two parts:

- The plan holds as long as every answer of DNS from which it was made (`plan_holds`).
- What memory says of its hosts holds until a pause ends, and `MEMORY_HOLDS` seconds at
  most: another process, or another machine, may have written meanwhile
  (`memory_holds`).

Time is an argument, in seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from mxpolicy.routing.reachability import standing_ends

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mxpolicy.options import AccessFinding, MemoryOptions
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.host_record import HostRecord
    from mxpolicy.routing.mx import Lookup

__all__ = [
    "NOTHING_FOUND",
    "Found",
    "Kept",
    "KeptFindings",
    "memory_holds",
    "plan_holds",
]

# Seconds. This machine may get other addresses, and whether a domain loops to it depends
# on them. A plan made anew from kept answers of DNS costs a millisecond.
PLAN_HOLDS = 300.0

# Seconds after which a verdict that a delivery has written is seen at the latest.
MEMORY_HOLDS = 1.0

# Domains.
MAX_KEPT = 10_000

# Hosts of all domains together: some 15 MiB.
MAX_HOSTS = 50_000

P = TypeVar("P")


class Found(NamedTuple):
    """What is certain about a domain.

    Attributes:
        finding: None when nothing is.
        detail: What was seen, printable; may be empty.
        refusal: How mail for the domain ends now; None when it may be taken.
    """

    finding: AccessFinding | None = None
    detail: str = ""
    refusal: Outcome | None = None


NOTHING_FOUND = Found()


def plan_holds(lookups: Iterable[Lookup]) -> float:
    """Return the seconds for which a plan made from *lookups* holds.

    Args:
        lookups: Each with the rest of its TTL, which is 0 where our own trouble kept
            it from being made; empty for an address literal.
    """
    return min([PLAN_HOLDS, *(one.ttl for one in lookups)])


def memory_holds(
    records: Iterable[HostRecord], now: float, options: MemoryOptions
) -> float:
    """Return the seconds for which what memory says holds.

    Args:
        records: What is kept for all mail of each host.
        now: When they were read, UTC seconds.
        options: For the pauses.
    """
    ends = (standing_ends(one, now, options) - now for one in records)
    return min([MEMORY_HOLDS, *ends])


class Kept(NamedTuple, Generic[P]):
    """What is kept of a domain.

    Attributes:
        found: What is certain about it.
        plan: From which plan.
        hosts: How many hosts the plan has.
        plan_until: When the plan ends.
        memory_until: When memory is to be asked again.
    """

    found: Found
    plan: P
    hosts: int
    plan_until: float
    memory_until: float


class KeptFindings(Generic[P]):
    """Domain -> `Kept`, bounded; what was kept first leaves first."""

    def __init__(self, max_kept: int = MAX_KEPT, max_hosts: int = MAX_HOSTS) -> None:
        self._kept: dict[str, Kept[P]] = {}
        self._max_kept = max_kept
        self._max_hosts = max_hosts
        self._hosts = 0

    def __len__(self) -> int:
        return len(self._kept)

    def found(self, domain: str, now: float) -> Found | None:
        """Return what is certain about *domain*; None when that is to be found out."""
        kept = self._kept.get(domain)
        if kept is None or now >= kept.memory_until or now >= kept.plan_until:
            return None
        return kept.found

    def plan(self, domain: str, now: float) -> Kept[P] | None:
        """Return what is kept of *domain* while its plan holds."""
        kept = self._kept.get(domain)
        return kept if kept is not None and now < kept.plan_until else None

    def keep(self, domain: str, kept: Kept[P]) -> None:
        """Keep it, in the place of what was kept before."""
        self._drop(domain)
        self._kept[domain] = kept
        self._hosts += kept.hosts
        while len(self._kept) > self._max_kept or self._hosts > self._max_hosts:
            self._drop(next(iter(self._kept)))

    def _drop(self, domain: str) -> None:
        kept = self._kept.pop(domain, None)
        if kept is not None:
            self._hosts -= kept.hosts
