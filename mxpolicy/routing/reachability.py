"""What follows from what is remembered of a candidate, and what changes it. Pure.

One law: remembering only makes delivery sooner. It never causes a bounce, a deferral or
a duplicate that a patient sender, trying in order of preference, would not have caused.
So it changes the order in which candidates are asked, and the time each is waited for.
It takes no candidate away. There is one exception, which can be switched off: when
*every* candidate has failed fully and is in its pause, a message is deferred at once
(`KnownHosts.is_hopeless`).

Theory of operation
-------------------

A *full* verdict is a definite answer, or 6 s without SYN-ACK, or 30 s in a later
phase. A *provisional* one says that our patience ended, because another could be
asked beside it. After either the candidate is in its *pause*: it is asked last.

When the pause is over the candidate is *due*: one message, the holder of a lease,
dials it beside its own delivery (a probe). All others still ask it last. A verdict
that is older than twice its pause counts no more: the candidate is asked in the order
of preference again. So a host is lost only for as long as it fails, or while there is
no mail for it.

The pause begins with a minute. It doubles when another full verdict after its end
confirms the first, to ten minutes at most: one SYN in ten minutes is cheap, a recovered
host left unused is not. It is never shorter than one try took.

What is kept for all mail to a candidate depends on neither message nor nexthop: how
connecting, greeting and EHLO failed. A verdict that may be due to one of them is kept
for the nexthop, and changes the order only there. So no sender and no domain can pause a
host for the mail of others. Doubt at the final dot changes the order only when two
messages were in doubt: a single one may have met a content filter.

A 4yz to the connection or to EHLO says "not now", and that the host is there: it has
too many connections, perhaps ours. If the host was ready a moment ago, or if it is the
first 4yz, it only changes the order: other connections may wait for their greeting. It
never makes a pause longer.

Times are UTC seconds, because processes and machines share what is remembered. A
clock that is set back or forward makes a verdict unknown, never a pause longer.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Phase, Scope, Verdict
from mxpolicy.routing.host_record import MAX_SAID, NEWS_EVERY, SKEW, HostRecord

if TYPE_CHECKING:
    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.candidate import Finding

__all__ = [
    "TURNED_AWAY",
    "Standing",
    "after_doubtful_probe",
    "after_failure",
    "after_ready",
    "after_reuse",
    "is_about_host",
    "is_about_nexthop",
    "standing",
    "standing_ends",
]

# A host that turns us away within a minute of a ready session has too many of them, or
# restarts. What is written of the last session may be older by `NEWS_EVERY`.
READY_LATELY = 60.0 + NEWS_EVERY

# A 4yz greeting is a full verdict when it comes again after this time. By then sessions
# that began together with the first one have had even a slow greeting.
STILL_NOT_NOW = 30.0

# Seconds for which a doubt at the final dot counts together with the next one.
DOUBT_AT_DOT = 86400.0

# Three SYNs have gone unanswered by then (0, 1 and 3 s): nothing looks better.
DOUBTFUL_CONNECT = 3.0

# These never make a pause longer. That our kernel has no route changes for all hosts of
# an address family at once.
_NEVER_DOUBLED = frozenset({Verdict.NO_ROUTE})

# How a host turns away one connection too many: by 421 (RFC 5321 §3.8), by 554, by words
# that are not SMTP, or by closing or refusing it.
TURNED_AWAY = frozenset(
    {
        Verdict.REFUSED,
        Verdict.CLOSED,
        Verdict.GREETING_4XX,
        Verdict.GREETING_5XX,
        Verdict.NOT_SMTP,
        Verdict.EHLO_REFUSED,
    }
)

# A stall may be due to the message's size, a loop is due to the nexthop.
_OF_NEXTHOP = frozenset({Verdict.STALLED, Verdict.LOOPS_TO_MYSELF})

# How a session breaks in the transaction, or at its final dot.
_BROKEN = frozenset({Verdict.CLOSED, Verdict.SILENT, Verdict.STALLED})


# -- what happened ------------------------------------------------------------


def is_about_host(finding: Finding) -> bool:
    """Return whether *finding* concerns all mail to the candidate."""
    return (
        finding.scope is Scope.HOST
        and finding.phase <= Phase.EHLO
        and finding.verdict not in _OF_NEXTHOP
    )


def is_about_nexthop(finding: Finding) -> bool:
    """Return whether *finding* is remembered for mail to the same nexthop only.

    In the transaction only a broken session counts: a reply is about the message.
    """
    if finding.scope is not Scope.HOST or is_about_host(finding):
        return False
    return finding.phase < Phase.TRANSACTION or finding.verdict in _BROKEN


def after_failure(
    record: HostRecord,
    finding: Finding,
    now: float,
    options: MemoryOptions,
    chance: float,
    message_id: str = "",
) -> HostRecord:
    """Return what is remembered after *finding*, which is about host or nexthop.

    Args:
        record: What was remembered before.
        finding: What was seen.
        now: UTC seconds.
        options: For the pauses.
        chance: 0 to 1. It makes the pause shorter, by up to a fifth, so that not all
            candidates of a network that failed together are due together.
        message_id: Names the message.
    """
    before = standing(record, now, options)
    full = _is_full(record, before, finding, now, message_id)
    if not full and _says_as_much(record, before, finding):
        return record
    return record._replace(
        verdict=finding.verdict,
        phase=finding.phase,
        full=full,
        since=now,
        pause=_next_pause(record, before, finding, full, options, chance),
        waited=finding.waited,
        message_id=message_id if finding.phase is Phase.DOT else "",
        said=printable(finding.text, MAX_SAID),
        small_segments=_small_segments_after(record, finding, full),
    )


def _is_full(
    record: HostRecord, before: Standing, finding: Finding, now: float, message_id: str
) -> bool:
    """Return whether *finding*, after what is remembered, makes a full verdict."""
    if finding.phase is Phase.DOT:
        has_another = record.verdict is not None and record.phase is Phase.DOT
        is_recent = -SKEW <= now - record.since < DOUBT_AT_DOT
        return (
            has_another
            and is_recent
            and (record.full or record.message_id != message_id)
        )
    if not finding.full:
        return False
    ready = record.last_ready
    was_ready_lately = ready is not None and -SKEW <= now - ready < READY_LATELY
    if was_ready_lately and finding.verdict in TURNED_AWAY:
        return False
    if not finding.is_transient:
        return True
    if record.verdict is not finding.verdict or before is Standing.UNKNOWN:
        return False
    return record.full or now - record.since >= STILL_NOT_NOW


def _says_as_much(record: HostRecord, before: Standing, finding: Finding) -> bool:
    """Return whether what is remembered says as much as a provisional verdict.

    Of several "not now" the first counts: the time to its confirmation begins there.
    """
    if before is Standing.UNKNOWN:
        return False
    is_repeated = finding.is_transient and record.verdict is finding.verdict
    return record.full or (is_repeated and before is Standing.PAUSED)


def _small_segments_after(
    record: HostRecord, finding: Finding, full: bool
) -> float | None:
    """Forget small segments where no answer comes: they may be the cause."""
    if full and finding.verdict in {Verdict.FILTERED, Verdict.SILENT}:
        return None
    return record.small_segments


def _next_pause(
    record: HostRecord,
    before: Standing,
    finding: Finding,
    full: bool,
    options: MemoryOptions,
    chance: float,
) -> float:
    pause = options.pause
    if finding.phase is Phase.DOT:
        pause = options.longest_pause  # each doubt may be one more copy
    elif full and record.full:
        if before is Standing.PAUSED:
            # Several messages that see it at the same time make it no worse.
            return min(record.pause, options.longest_pause)
        may_double = not (finding.is_transient or finding.verdict in _NEVER_DOUBLED)
        if before is Standing.DUE and may_double:
            pause = 2 * record.pause
    shortened = min(pause, options.longest_pause) * (1 - chance / 5)
    return min(max(shortened, finding.waited), options.longest_pause)


def after_reuse(record: HostRecord) -> HostRecord:
    """Return *record* when a message was taken over an earlier message's session.

    Transactions go well. It does not show that the host can be connected to, so an
    earlier verdict goes on to reorder. But it is no longer a full one: mail must not be
    deferred for a host that takes mail. What is kept for all mail is given `last_ready`
    beside this: such a host may be too busy for another connection, and is not down.
    """
    if record.verdict is None:
        return record
    if record.phase > Phase.READY:
        return record.cleared()
    return record._replace(full=False)


def after_ready(
    record: HostRecord,
    now: float,
    connect_time: float | None = None,
    greeting_latency: float | None = None,
) -> HostRecord:
    """Return what is kept for all mail of a candidate that is ready: it clears all.

    A candidate that has taken a message is ready, too.
    """
    record = record.cleared()
    if connect_time is not None:
        record = record._replace(connect_time=connect_time)
    if greeting_latency is not None:
        record = record._replace(greeting_latency=greeting_latency)
    return record._replace(last_ready=now)


def after_doubtful_probe(
    record: HostRecord, phase: Phase, waited: float, now: float, options: MemoryOptions
) -> HostRecord:
    """Return what is remembered when a probe had to end before it could tell.

    Args:
        record: What was remembered before.
        phase: How far it came.
        waited: Seconds in that phase.
        now: UTC seconds.
        options: For the pauses.
    """
    if record.verdict is None:
        return record
    if phase > record.phase:
        return record.cleared()  # it has passed the phase in which it had failed
    if phase is Phase.CONNECT and waited >= DOUBTFUL_CONNECT:
        return record._replace(
            full=False, since=now, pause=min(options.pause, options.longest_pause)
        )
    return record  # soon unknown, and then in the order of preference


# -- what it means ------------------------------------------------------------


class Standing(Enum):
    """Where a candidate stands by what is remembered."""

    UNKNOWN = "unknown"  # in the order of preference
    PAUSED = "paused"  # asked last
    DUE = "due"  # asked last, and one message looks after it


def standing(record: HostRecord, now: float, options: MemoryOptions) -> Standing:
    """Return where a candidate stands at *now*, UTC seconds."""
    if record.verdict is None or record.is_lone_doubt:
        return Standing.UNKNOWN
    begins, due, ends = _times(record, options)
    if now < begins:
        return Standing.UNKNOWN
    if now < due:
        return Standing.PAUSED
    if now < ends:
        return Standing.DUE
    return Standing.UNKNOWN


def standing_ends(record: HostRecord, now: float, options: MemoryOptions) -> float:
    """Return until when a candidate stands as at *now*, while nothing is written.

    UTC seconds; infinity when it stands so for ever.
    """
    if record.verdict is None or record.is_lone_doubt:
        return inf
    return next((one for one in _times(record, options) if now < one), inf)


def _times(record: HostRecord, options: MemoryOptions) -> tuple[float, float, float]:
    """Return when the verdict begins to count, when its pause ends, and it itself.

    With a clock that was set back, a pause is never longer than the longest.
    """
    pause = min(record.pause, options.longest_pause)
    skew = min(SKEW, options.longest_pause - pause)
    return record.since - skew, record.since + pause, record.since + 2 * pause
