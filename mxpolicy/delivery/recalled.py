"""What an attempt is told of the memory: how long to wait for whom, and which way to go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery.opening import TlsUse, Way
from mxpolicy.routing.race_timing import Entry
from mxpolicy.routing.reachability import NOTHING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.reachability import Record

__all__ = ["NOTHING_RECALLED", "Recalled"]


class Recalled:
    """What is remembered of the candidates of one plan.

    Args:
        records: By candidate; who is not in it is unknown.
        now: UTC seconds.
        without_tls: Those at which STARTTLS is known to be broken.
    """

    def __init__(
        self,
        records: Mapping[Candidate, Record],
        now: float,
        without_tls: Collection[Candidate] = frozenset(),
    ) -> None:
        self._records = records
        self._now = now
        self._without_tls = without_tls

    def entry(self, candidate: Candidate) -> Entry:
        """Return the candidate as the race takes it."""
        record = self._records.get(candidate, NOTHING)
        return Entry(
            candidate,
            record.connect_time,
            record.greeting_latency,
            remembered=record.wait(self._now),
        )

    def way(self, candidate: Candidate) -> Way:
        """Return how the candidate is dialled first."""
        record = self._records.get(candidate, NOTHING)
        small = record.needs_small_segments(self._now)
        return Way.SMALL_SEGMENTS if small else Way.ORDINARY

    def tls_use(self, candidate: Candidate) -> TlsUse:
        """Return what STARTTLS is worth at level ``may``."""
        return TlsUse.LEFT_OUT if candidate in self._without_tls else TlsUse.TRIED


NOTHING_RECALLED = Recalled({}, 0.0)
