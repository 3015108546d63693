"""What is remembered of one candidate, and its line in a store. Pure.

`mxpolicy.routing.reachability` says what changes a record and how long it counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Phase, Verdict, Wait
from mxpolicy.routing.race_timing import awaited_in, slow_verdict
from mxpolicy.routing.record_format import (
    NUMBER,
    TEXT,
    Field,
    RecordFormat,
    flag,
    optional,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "KEPT",
    "MAX_SAID",
    "NEWS_EVERY",
    "NOTHING",
    "SKEW",
    "HostRecord",
    "decode",
    "encode",
    "is_news",
]

# Seconds for which a record is of use: latencies change.
KEPT = 14 * 86400.0

# Seconds after which an unchanged healthy host is written again: each message reads its
# record, and one write in half a minute costs nothing.
NEWS_EVERY = 30.0

# Seconds. The race waits twice a latency, and 250 ms or 8 s where that is longer
# (`mxpolicy.options.RaceOptions`): below these, one is as good as another.
QUICK_CONNECT, QUICK_GREETING = 0.125, 4.0

# Clocks of machines that share a store differ.
SKEW = 5.0

# Seconds for which small segments are used. They cost little; a stall costs half a
# minute. They are kept for all mail, as no outsider can cause them: it takes a path that
# lets small segments pass and loses large ones.
NARROW_PATH = 86400.0

# Characters.
MAX_SAID = 80


class HostRecord(NamedTuple):
    """What is remembered of one candidate; any of it may be unknown.

    Attributes:
        verdict: How it failed when last tried; None when it did not.
        phase: In which phase that was.
        full: Whether the verdict is a full one (`mxpolicy.routing.reachability`).
        since: When, UTC seconds.
        pause: Seconds from then in which it is asked last.
        waited: Seconds of the wait for it in *phase*.
        connect_time: Seconds from SYN to SYN-ACK when it was last ready.
        greeting_latency: Seconds from there to the 220.
        last_ready: When that was, UTC seconds.
        small_segments: When only small TCP segments got through to it.
        name: The host's name when it was last met.
        message_id: Names the message that was in doubt at the final dot.
        said: What the host or the system said, printable.
    """

    verdict: Verdict | None = None
    phase: Phase = Phase.CONNECT
    full: bool = False
    since: float = 0.0
    pause: float = 0.0
    waited: float = 0.0
    connect_time: float | None = None
    greeting_latency: float | None = None
    last_ready: float | None = None
    small_segments: float | None = None
    name: str = ""
    message_id: str = ""
    said: str = ""

    @property
    def is_lone_doubt(self) -> bool:
        """Whether a single message was in doubt at the final dot so far."""
        return self.phase is Phase.DOT and not self.full

    def wait(self, now: float) -> Wait | None:
        """Return the wait that ended without answer, while the verdict counts."""
        if self.verdict is None or self.phase >= Phase.READY:
            return None
        holds = 0 <= now - self.since < 2 * self.pause
        if not holds or self.verdict is not slow_verdict(self.phase):
            return None
        return Wait(awaited_in(self.phase), self.waited)

    def needs_small_segments(self, now: float) -> bool:
        """Return whether it is dialled with small segments from the first."""
        since = self.small_segments
        return since is not None and 0 <= now - since < NARROW_PATH

    def cleared(self) -> HostRecord:
        """Return it without the verdict and all that belongs to it."""
        return self._replace(
            verdict=None, phase=Phase.CONNECT, full=False, since=0.0, pause=0.0,
            waited=0.0, message_id="", said="",
        )  # fmt: skip


NOTHING = HostRecord()


def is_news(before: HostRecord, after: HostRecord) -> bool:
    """Return whether the difference is worth a write.

    Every message to a healthy host finds it healthy, which need not cost a write each.
    Nor need a latency: on a busy machine each message sees another one. It counts only
    where the race waits longer for it than for a host that nothing is known of.
    """
    is_as_before = (
        abs((after.last_ready or 0) - (before.last_ready or 0)) < NEWS_EVERY
        and _is_near(before.connect_time, after.connect_time, QUICK_CONNECT)
        and _is_near(before.greeting_latency, after.greeting_latency, QUICK_GREETING)
        and before
        == after._replace(
            last_ready=before.last_ready,
            connect_time=before.connect_time,
            greeting_latency=before.greeting_latency,
        )
    )
    return not is_as_before


def _is_near(before: float | None, after: float | None, quick: float) -> bool:
    if before is None or after is None:
        return before is after
    if max(before, after) <= quick:
        return True
    return abs(after - before) <= 0.1 + before / 4


_VERDICT = Field(lambda verdict: verdict.value, Verdict)
_PHASE = Field(lambda phase: phase.word, lambda word: Phase[word.upper()])
_SAID = Field(str, lambda said: printable(said, MAX_SAID))

_FORMAT = RecordFormat(
    HostRecord, "2", optional(_VERDICT), _PHASE, flag("full", "-"),
    NUMBER, NUMBER, NUMBER, *[optional(NUMBER)] * 4,
    optional(TEXT, ""), optional(TEXT, ""), _SAID,
)  # fmt: skip

encode: Callable[[HostRecord], bytes] = _FORMAT.encode


def decode(value: bytes | None) -> HostRecord:
    """Return what was encoded; `NOTHING` for what cannot be understood."""
    return _FORMAT.decode(value) or NOTHING
