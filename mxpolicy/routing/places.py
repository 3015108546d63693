"""Which deliveries may go on when most of the mail server's processes are taken. Pure.

A pipe transport runs a process for each message, up to the mail server's limit
(``limits.processes``; Postfix: maxproc in master.cf). Each delivery for such a process
holds a *place*, also where the process has handed it over to a daemon. Without a rule,
one destination that does not answer would take all places, and all other mail would wait
for it.

The rule
    While less than three quarters of the places are taken, nothing is limited, whatever
    a destination's size or slowness. Beyond that, a destination gets no more places when
    a quarter of all places *wait* for it: its next message is deferred at once. Where
    half of a destination's messages wait, or more, it gets only as many places as are
    still free. So several such destinations together cannot take all.

    A destination that takes mail, however slowly, has no message waiting: it may have
    all places.

Waiting
    `Progress` tells when a delivery waits: nothing has happened to it for some seconds.
    A host that answers each command after one to five seconds is only slow.

    Once a destination was limited, all of its places count as waiting for ten minutes,
    or until a message goes through. Else its retries would take every place again before
    they are seen to wait.

Undecided
    A burst may take all places before the first of them is seen to wait. So a delivery
    that finds many young ones of its destination looks on until one of them has gone
    through. Then the destination is known to be well for some seconds, and its mail may
    have all places. When nothing is known at the end, the delivery goes on. But where
    half of all places wait for something, the last ones are kept for other mail, and it
    is deferred.

What a destination is
    Each delivery has *aims*: its nexthop with its port
    (`mxpolicy.routing.nexthop.nexthop_aim`), and the hosts, by address and port, that it
    asks first. The rule holds for each aim. So forty domains at one provider that is
    down are one destination.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.candidate import Phase

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from mxpolicy.routing.candidate import Candidate

__all__ = [
    "FIRST_ANSWER",
    "LONGEST_LOOK",
    "LOOKUPS",
    "NEXT_ANSWER",
    "SHORT_LOOK",
    "Lately",
    "OverLimit",
    "Place",
    "Progress",
    "Undecided",
    "check_limits",
    "first_hosts",
    "host_aim",
    "is_tight",
]

# Seconds until a delivery waits: for the plan (DNS may need a second try after some
# seconds), for the first SYN-ACK, for anything after it.
LOOKUPS = 5.0
FIRST_ANSWER = 2.0
NEXT_ANSWER = 10.0

# Seconds after which a delivery that does not wait is known to be well: others can read
# by then what its process has written.
LONGEST_LOOK = NEXT_ANSWER + 2.0

# Seconds to look on where other mail needs the place: a host that takes a second for
# each reply has taken a message by then.
SHORT_LOOK = 7.0

# Hosts that make a destination: as many as the race asks at once of one preference.
MAX_HOSTS = 4


class Lately(Enum):
    """What a destination was a moment ago; the last word counts."""

    LIMITED = "limited"  # for ten minutes
    WELL = "well"  # a message went through without waiting; for some seconds


class Place(NamedTuple):
    """A place that is taken.

    Attributes:
        holder: The delivery, in words; it holds one place, however many ways it goes.
        aims: Of its delivery; see the module.
        since: When it began, or since when it waits; UTC seconds.
        waits_for: What it waits for, in words; empty while it does not wait.
    """

    holder: str
    aims: frozenset[str]
    since: float
    waits_for: str = ""


class OverLimit(NamedTuple):
    """Too many places wait for what this delivery would wait for.

    Attributes:
        aim: What that is.
        taken: Places that other deliveries have taken, of all destinations.
        limit: How many places there are.
        waiting: How many of them count as waiting for *aim*.
        longest: The one that waits longest; None when none waits now.
        was_seen: They wait now; else the aim was limited lately.
    """

    aim: str
    taken: int
    limit: int
    waiting: int
    longest: Place | None
    was_seen: bool


class Undecided(NamedTuple):
    """It is not known yet whether the others wait.

    Attributes:
        aim: What they have in common.
        patience: Seconds to look on.
        otherwise: The answer when nothing is known by then; None: go on.
    """

    aim: str
    patience: float
    otherwise: OverLimit | None


def is_tight(taken: int, limit: int) -> bool:
    """Return whether three quarters of the places are taken."""
    return limit > 0 and taken * 4 >= limit * 3


def check_limits(
    places: Collection[Place],
    aims: Iterable[str],
    limit: int,
    now: float,
    lately: Mapping[str, Lately] = MappingProxyType({}),
) -> OverLimit | Undecided | None:
    """Return why a delivery may not go on; None when it may.

    Args:
        places: Those of all other deliveries.
        aims: The delivery's.
        limit: How many places there are; 0 is no limit.
        now: UTC seconds.
        lately: What is known of the aims.
    """
    taken = len({one.holder for one in places})
    if not is_tight(taken, limit):
        return None
    free = max(1, limit - taken)
    share = max(1, limit // 4)
    stuck = len({one.holder for one in places if one.waits_for})
    is_stuck = stuck * 2 >= limit
    # A single one that waits says little, unless half of all places wait.
    bounds = _Bounds(share, min(share, free if is_stuck else max(2, free)))
    undecided = None
    for aim in aims:
        there = [one for one in places if aim in one.aims]
        waiting = [one for one in there if one.waits_for]
        known = lately.get(aim)
        counted = there if known is Lately.LIMITED else waiting
        longest = min(waiting, key=lambda one: one.since, default=None)
        over = OverLimit(aim, taken, limit, len(counted), longest, False)
        if bounds.are_reached(len(counted), len(there)):
            seen = bounds.are_reached(len(waiting), len(there))
            return over._replace(was_seen=seen)
        if known is Lately.WELL:
            continue
        # A start in the future was before the clock was set back.
        young = sum(0 <= now - one.since < LONGEST_LOOK for one in there)
        if is_stuck and young >= bounds.rest:
            over = over._replace(waiting=len(there))
            undecided = Undecided(aim, SHORT_LOOK, over)
        elif young >= share:
            undecided = undecided or Undecided(aim, LONGEST_LOOK, None)
    return undecided


class _Bounds(NamedTuple):
    """How many may wait.

    Attributes:
        share: For a destination that takes more than half of its messages.
        rest: For one for which half of its messages wait, or more.
    """

    share: int
    rest: int

    def are_reached(self, waiting: int, there: int) -> bool:
        """Return whether *waiting* of the places *there* are too many."""
        return waiting >= (self.rest if 2 * waiting >= there else self.share)


def host_aim(candidate: Candidate) -> str:
    """Return the aim of all deliveries to *candidate*."""
    return f"[{candidate.address}]:{candidate.port}"


def first_hosts(candidates: Iterable[Candidate]) -> list[str]:
    """Return the aims of a delivery that will ask *candidates* in this order."""
    found: list[str] = []
    rank = None
    for candidate in candidates:
        rank = candidate.rank if rank is None else rank
        if candidate.rank != rank or len(found) == MAX_HOSTS:
            break
        found.append(host_aim(candidate))
    return found


class Progress:
    """Tells when a delivery waits, from what happens to it.

    All times are seconds on one clock of the caller's.

    Attributes:
        waits_from: When it will wait, if nothing happens until then.
        since: When something has last happened.
    """

    def __init__(self, now: float) -> None:
        self.since = now
        self.waits_from = now + LOOKUPS
        self._has_plan = False
        self._open: dict[Candidate, Phase] = {}

    def planned(self, now: float) -> None:
        """The names are looked up; it dials next, or waits for its turn."""
        self._has_plan = True
        self._went_on(now, FIRST_ANSWER)

    def started(self, candidate: Candidate, now: float) -> None:
        """A candidate is dialled. That alone is no progress."""
        self._open[candidate] = Phase.CONNECT
        if now + FIRST_ANSWER < self.waits_from:
            self.since, self.waits_from = now, now + FIRST_ANSWER

    def went_on(self, candidate: Candidate, now: float, phase: Phase) -> None:
        """A candidate has answered, or taken more of the mail data, in *phase*."""
        self._open[candidate] = phase
        self._went_on(now, NEXT_ANSWER)

    def ended(self, candidate: Candidate) -> None:
        """The session with a candidate, or the dialling of it, has ended."""
        self._open.pop(candidate, None)

    def _went_on(self, now: float, patience: float) -> None:
        self.since, self.waits_from = now, now + patience

    @property
    def hosts(self) -> list[str]:
        """The aims that it waits for."""
        return [host_aim(one) for one in self._open]

    @property
    def waits_for(self) -> str:
        """What it waits for, in words."""
        if not self._open:
            return "its turn" if self._has_plan else "DNS"
        furthest = max(self._open, key=lambda one: self._open[one])
        return f"{furthest} ({self._open[furthest].word})"
