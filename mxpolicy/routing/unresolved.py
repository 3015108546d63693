"""Hosts without known address because DNS failed, and what that means. Pure.

A name server that is away must not bounce mail: a patient sender would come to the
better host when its name can be looked up again. So while a better host is
*unresolved*, a 5yz of a worse one does not bounce. That ends when its lookups have
failed for `SOFT` seconds: then the host counts as failed, as it does at once in
Postfix's smtp(8).

A host with one address is resolved, also when the lookup of the other family has
failed. So is a host that has no address, or does not exist, by DNS's answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.candidate import rank_of
from mxpolicy.routing.record_format import WHOLE, RecordFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mxpolicy.routing.candidate import Candidate, Rank

__all__ = [
    "KEPT",
    "SOFT",
    "FailedSince",
    "Unresolved",
    "after_failure",
    "decode",
    "encode",
    "has_better",
    "is_news",
    "is_soft",
    "that_matter",
]

# Seconds for which lookups may fail before the host counts as failed.
SOFT = 3600.0

# Seconds after the last failure when all are forgotten. Mail servers retry within hours
# (Postfix 4000 s, Exim 6 h); what happened in a longer gap is unknown.
KEPT = 86400.0

# Seconds after which failures that go on are written again.
NEWS_EVERY = 600.0


class Unresolved(NamedTuple):
    """A host without known address; or a whole nexthop, when MX could not be had.

    Attributes:
        name: Of the host, or the domain.
        preference: Of its MX record; 0 for a nexthop.
        nexthop_position: Place in the nexthop list, from 0.
        rdtype: ``A`` for a host (and its AAAA), ``MX`` for a nexthop.
    """

    name: str
    preference: int = 0
    nexthop_position: int = 0
    rdtype: str = "A"

    @property
    def rank(self) -> Rank:
        """The rank that its candidates would have."""
        return rank_of(self.preference, self.nexthop_position)


class FailedSince(NamedTuple):
    """When lookups failed first and last, without a success between; UTC seconds."""

    first: float
    last: float


def has_better(unresolved: Iterable[Unresolved], candidate: Candidate) -> bool:
    """Return whether one of *unresolved* is better than *candidate*."""
    return any(one.rank < candidate.rank for one in unresolved)


def that_matter(
    unresolved: Sequence[Unresolved], candidates: Iterable[Candidate]
) -> tuple[Unresolved, ...]:
    """Return those that are better than another host, known or not."""
    if not unresolved:
        return ()
    worst = max([one.rank for one in unresolved] + [one.rank for one in candidates])
    return tuple(one for one in unresolved if one.rank < worst)


def after_failure(before: FailedSince | None, now: float) -> FailedSince:
    """Return what is remembered when lookups have failed once more.

    A first failure in the future means that the clock was set back since.
    """
    if before is None or before.first > now or now - before.last >= KEPT:
        return FailedSince(now, now)
    return FailedSince(before.first, now)


def is_news(before: FailedSince | None, after: FailedSince) -> bool:
    """Return whether the difference is worth a write."""
    if before is None or before.first != after.first:
        return True
    return abs(after.last - before.last) >= NEWS_EVERY


def is_soft(since: FailedSince, now: float) -> bool:
    """Return whether a refusal by a worse host is not final yet."""
    return now - since.first < SOFT


_FORMAT = RecordFormat(FailedSince, "1", WHOLE, WHOLE)

encode: Callable[[FailedSince], bytes] = _FORMAT.encode
decode: Callable[[bytes | None], FailedSince | None] = _FORMAT.decode
