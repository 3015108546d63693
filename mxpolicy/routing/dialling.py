"""What is learned of a candidate from dialling it once. Pure; no clock.

`mxpolicy.delivery.learner` and `mxpolicy.delivery.probe` tell a `Dialling` what happens
to it. They get back what is to be remembered: a `Ready`, or a `Finding`. A full verdict
is due when the full time has passed without a new phase, even while the race goes on
waiting. So other messages skip the wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.candidate import Finding, Phase
from mxpolicy.routing.race_timing import full_time, slow_verdict

if TYPE_CHECKING:
    from mxpolicy.routing.candidate import Candidate

__all__ = ["Dialling", "Ready"]


class Ready(NamedTuple):
    """The candidate was ready.

    Attributes:
        connect_time: Seconds from SYN to SYN-ACK; None where none was sent.
        greeting_latency: Seconds from there to the 220.
    """

    connect_time: float | None = None
    greeting_latency: float | None = None


class Dialling:
    """One dialling of one candidate; all times on one monotonic clock.

    Attributes:
        candidate: What is dialled.
        phase: How far it has come.
        since: When it entered it.
    """

    __slots__ = (
        "_connect_time",
        "_greeting_latency",
        "_is_full",
        "candidate",
        "phase",
        "since",
    )

    def __init__(self, candidate: Candidate, now: float) -> None:
        self.candidate = candidate
        self.phase = Phase.CONNECT
        self.since = now
        self._connect_time: float | None = None
        self._greeting_latency: float | None = None
        self._is_full = False  # a full verdict was given before

    def reached(self, phase: Phase, now: float) -> Ready | None:
        """Take note of a phase; return what is to be remembered when it is READY."""
        if phase <= self.phase:
            return None
        took = now - self.since
        if self.phase is Phase.CONNECT and phase is Phase.GREETING:
            self._connect_time = took
        elif self.phase is Phase.GREETING and phase is Phase.EHLO:
            self._greeting_latency = took
        self.phase, self.since = phase, now
        self._is_full = False
        if phase is Phase.READY:
            return Ready(self._connect_time, self._greeting_latency)
        return None

    def failed(self, finding: Finding) -> Finding | None:
        """Return what is to be remembered of a failure, or of the end of our patience.

        None when it was remembered already, at the end of its full time.
        """
        if self._is_full and finding.phase is self.phase:
            return None
        self._is_full = self._is_full or finding.full
        return finding

    def full_at(self) -> float | None:
        """Return when a full verdict is due if nothing happens; None if it never is."""
        if self._is_full or self.phase >= Phase.READY:
            return None
        return self.since + full_time(self.phase)

    def overdue(self, now: float) -> Finding | None:
        """Return the full verdict that is due by *now*, once."""
        at = self.full_at()
        if at is None or now < at:
            return None
        self._is_full = True
        return Finding(slow_verdict(self.phase), self.phase, now - self.since)
