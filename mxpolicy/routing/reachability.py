"""What is remembered of a candidate, and what follows from it. Pure.

One law: remembering only makes delivery sooner. It never causes a bounce, a
deferral or a duplicate that patient trying in order of preference would not have
caused. So what is remembered changes the order in which candidates are asked, and
how long one is waited for; it takes none of them away. The one exception is said
plainly, and can be switched off: when *every* candidate has failed fully within
its pause, a message is deferred at once (`Advice.is_hopeless`).

Theory of operation
-------------------

A *full* verdict is a definite answer, or 6 s without SYN-ACK, or 30 s in a later
phase. A *provisional* one says that our patience ended, because another could be
asked beside it. After either the candidate is in its *pause*: it is asked last.

When the pause is over the candidate is *due*: one message, the holder of a lease,
looks after it beside its own delivery (a probe), and all others still ask it
last. A verdict that is older than twice its pause means nothing any more, and the
candidate is again where the order of preference puts it. So a host can only be
lost for as long as it fails, or nobody has mail for it.

The pause begins with a minute, and doubles when a full verdict is confirmed by
another one after its end, to ten minutes at most: one SYN in ten minutes is cheap,
a recovered host left aside is not. It is never shorter than one try took.

What is kept for all mail to a candidate depends on neither message nor nexthop:
how connecting, greeting and EHLO failed. A verdict that may be due to either is
kept beside the nexthop, and only changes the order there: no sender and no domain
can pause a host that others have mail for. Doubt at the final dot changes the order
only when two messages were in doubt: one may have met a content filter.

A 4yz to the connection or to EHLO says "not now", and that the host is there: it has
too many connections, perhaps ours. It only changes the order if the host was ready a
moment ago, or if it is the first one: other connections may just be waiting for their
greeting. It never makes a pause longer.

Times are UTC seconds, because processes and machines share what is remembered. A
clock that is set back or forward makes a verdict unknown, never a pause longer.
"""

from __future__ import annotations

from enum import Enum
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Phase, Scope, Verdict, Wait
from mxpolicy.routing.race_timing import awaited_in, slow_verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.candidate import Candidate, Finding

__all__ = [
    "KEPT",
    "LEASE",
    "NOTHING",
    "Advice",
    "Record",
    "Standing",
    "advise",
    "after_doubtful_probe",
    "after_failure",
    "after_ready",
    "after_taking",
    "decode",
    "encode",
    "is_about_host",
    "is_about_nexthop",
    "is_lease_stale",
    "is_news",
    "standing",
]

# How long what is known of a candidate is of use: latencies change.
KEPT = 14 * 86400.0

# Seconds for which who probes a candidate is not disturbed by others. A probe takes
# 45 at most; whoever has died has left it to the next one after this time.
LEASE = 60.0

# A host that is as it was is written down again after this time. Each message to a
# healthy host reads its record anyway; one write in half a minute costs nothing.
NEWS_EVERY = 30.0

# Who turns us away within a minute of a ready session has too many of them, or starts
# anew. What is written of the last one may be older than that by the time above.
READY_LATELY = 60.0 + NEWS_EVERY

# A 4yz greeting is a full verdict when it is met again after this time. Sessions that
# began together with the first one have had the slowest greeting by then.
STILL_NOT_NOW = 30.0

# Clocks of machines that share a store differ.
SKEW = 5.0

# For how long small segments are used. They cost little; a stall costs half a minute.
# Kept for all mail, as no outsider can bring it about: it takes a path that lets small
# segments pass and swallows large ones.
NARROW_PATH = 86400.0

# For how long a message in doubt at the final dot proves something with the next one.
DOUBT_AT_DOT = 86400.0

# So many SYNs go unanswered in this time (0, 1 and 3 s) that it looks no better.
DOUBTFUL_CONNECT = 3.0

# Never reason for a longer pause: our own kernel has no route, which changes for all
# hosts of an address family at once.
_NEVER_DOUBLED = frozenset({Verdict.NO_ROUTE})

# How hosts turn away who is too many: by 421, as RFC 5321 §3.8 has it, or by 554, by
# words that are no SMTP, or by a connection that is closed or not accepted.
_TURNED_AWAY = frozenset(
    {
        Verdict.REFUSED,
        Verdict.CLOSED,
        Verdict.GREETING_4XX,
        Verdict.GREETING_5XX,
        Verdict.NOT_SMTP,
        Verdict.EHLO_REFUSED,
    }
)

_SAID_LENGTH = 80


class Record(NamedTuple):
    """What is remembered of one candidate. All of it may be unknown.

    Attributes:
        verdict: How it failed when last tried; None when it did not.
        phase: In which phase that was.
        full: See above.
        since: When, UTC seconds.
        pause: Seconds from then in which it is asked last.
        waited: Seconds that were waited for it in *phase*.
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
        """Whether one message was in doubt at the final dot, and no other one yet."""
        return self.phase is Phase.DOT and not self.full

    def wait(self, now: float) -> Wait | None:
        """Return what it was waited for in vain, while the verdict means anything."""
        if self.verdict is None or self.phase >= Phase.READY:
            return None
        holds = 0 <= now - self.since < 2 * self.pause
        if not holds or self.verdict is not slow_verdict(self.phase):
            return None
        return Wait(awaited_in(self.phase), self.waited)

    def needs_small_segments(self, now: float) -> bool:
        """Return whether larger segments had better not be tried."""
        since = self.small_segments
        return since is not None and 0 <= now - since < NARROW_PATH


NOTHING = Record()

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
    """Return whether *finding* is remembered, but for mail to the same nexthop only.

    In the transaction only a session that broke: a reply is about the message.
    """
    if finding.scope is not Scope.HOST or is_about_host(finding):
        return False
    return finding.phase < Phase.TRANSACTION or finding.verdict in _BROKEN


def after_failure(
    record: Record,
    finding: Finding,
    now: float,
    options: MemoryOptions,
    chance: float,
    message_id: str = "",
) -> Record:
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
        said=printable(finding.text, _SAID_LENGTH),
        small_segments=_small_segments_after(record, finding, full),
    )


def _is_full(
    record: Record, before: Standing, finding: Finding, now: float, message_id: str
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
    if was_ready_lately and finding.verdict in _TURNED_AWAY:
        return False
    if not finding.is_transient:
        return True
    if record.verdict is not finding.verdict or before is Standing.UNKNOWN:
        return False
    return record.full or now - record.since >= STILL_NOT_NOW


def _says_as_much(record: Record, before: Standing, finding: Finding) -> bool:
    """Return whether what is remembered says at least as much as a doubt does.

    Of several "not now" the first counts: from there on it is to be confirmed.
    """
    if before is Standing.UNKNOWN:
        return False
    is_repeated = finding.is_transient and record.verdict is finding.verdict
    return record.full or (is_repeated and before is Standing.PAUSED)


def _small_segments_after(record: Record, finding: Finding, full: bool) -> float | None:
    """Forget small segments where nothing is answered: perhaps it is due to them."""
    if full and finding.verdict in {Verdict.FILTERED, Verdict.SILENT}:
        return None
    return record.small_segments


def _next_pause(
    record: Record,
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
            # Many who found it out at the same time make it no worse.
            return min(record.pause, options.longest_pause)
        may_double = not (finding.is_transient or finding.verdict in _NEVER_DOUBLED)
        if before is Standing.DUE and may_double:
            pause = 2 * record.pause
    shortened = min(pause, options.longest_pause) * (1 - chance / 5)
    return min(max(shortened, finding.waited), options.longest_pause)


def after_ready(
    record: Record,
    now: float,
    connect_time: float | None = None,
    greeting_latency: float | None = None,
) -> Record:
    """Return what is kept for all of a candidate that is ready: one success clears.

    A candidate that has taken a message is ready, too.
    """
    record = _cleared(record)
    if connect_time is not None:
        record = record._replace(connect_time=connect_time)
    if greeting_latency is not None:
        record = record._replace(greeting_latency=greeting_latency)
    return record._replace(last_ready=now)


def is_news(before: Record, after: Record) -> bool:
    """Return whether the difference is worth being written.

    A healthy host is found so by every message; that need not cost a write each.
    """
    return not (
        before._replace(last_ready=None, connect_time=None, greeting_latency=None)
        == after._replace(last_ready=None, connect_time=None, greeting_latency=None)
        and abs((after.last_ready or 0) - (before.last_ready or 0)) < NEWS_EVERY
        and _is_near(before.connect_time, after.connect_time)
        and _is_near(before.greeting_latency, after.greeting_latency)
    )


def _is_near(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before is after
    return abs(after - before) <= 0.1 + before / 4


def after_taking(record: Record) -> Record:
    """Return what is kept for a nexthop of a candidate that has taken a message."""
    return _cleared(record)


def _cleared(record: Record) -> Record:
    return record._replace(
        verdict=None, phase=Phase.CONNECT, full=False, since=0.0, pause=0.0,
        waited=0.0, message_id="", said="",
    )  # fmt: skip


def after_doubtful_probe(
    record: Record, phase: Phase, waited: float, now: float, options: MemoryOptions
) -> Record:
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
        return _cleared(record)  # what it failed in it has now passed
    if phase is Phase.CONNECT and waited >= DOUBTFUL_CONNECT:
        return record._replace(
            full=False, since=now, pause=min(options.pause, options.longest_pause)
        )
    return record  # soon unknown, and then found out in the order of preference


# -- what it means ------------------------------------------------------------


class Standing(Enum):
    """Where a candidate stands by what is remembered."""

    UNKNOWN = "unknown"  # in the order of preference
    PAUSED = "paused"  # asked last
    DUE = "due"  # asked last, and one message looks after it


def standing(record: Record, now: float, options: MemoryOptions) -> Standing:
    """Return where a candidate stands at *now*, UTC seconds."""
    if record.verdict is None or record.is_lone_doubt:
        return Standing.UNKNOWN
    pause = min(record.pause, options.longest_pause)
    age = now - record.since
    # With a clock that was set back, the whole is never longer than the longest.
    if age < -min(SKEW, options.longest_pause - pause):
        return Standing.UNKNOWN
    if age < pause:
        return Standing.PAUSED
    if age < 2 * pause:
        return Standing.DUE
    return Standing.UNKNOWN


def is_lease_stale(value: bytes, now: float) -> bool:
    """Return whether a lease, as it was written, is none any more.

    Args:
        value: When it was taken, UTC seconds in decimal.
        now: UTC seconds.
    """
    try:
        age = now - float(value)
    except ValueError:
        return True
    return not -SKEW <= age < LEASE


class Advice(NamedTuple):
    """What is best done with the candidates of a plan.

    Attributes:
        order: All of them, in the order in which they are to be asked.
        due: Those to look after, for whom a lease has to be got.
        has_other: There is one of whom nothing full is known, or not any more.
        is_hopeless: Everyone has failed fully, and is in its pause.
    """

    order: tuple[Candidate, ...]
    due: tuple[Candidate, ...]
    has_other: bool
    is_hopeless: bool


def advise(
    candidates: Sequence[Candidate],
    of_host: Mapping[Candidate, Record],
    of_nexthop: Mapping[Candidate, Record],
    now: float,
    options: MemoryOptions,
) -> Advice:
    """Return what is best done, by what is remembered.

    Args:
        candidates: In the order of preference.
        of_host: What is kept for all, by candidate; those not in it are unknown.
        of_nexthop: What is kept for mail to this nexthop.
        now: UTC seconds.
        options: For the pauses.
    """
    tiers: dict[Candidate, _Tier] = {}
    for candidate in candidates:
        host = of_host.get(candidate, NOTHING)
        nexthop = of_nexthop.get(candidate, NOTHING)
        tiers[candidate] = _tier(host, nexthop, now, options)
    due = [one for one, tier in tiers.items() if tier in _DUE]
    return Advice(
        tuple(sorted(candidates, key=lambda one: tiers[one].value)),
        tuple(due),
        any(tier not in _FULL for tier in tiers.values()),
        all(tier is _Tier.FULLY_PAUSED for tier in tiers.values()),
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


def _tier(host: Record, nexthop: Record, now: float, options: MemoryOptions) -> _Tier:
    match standing(host, now, options):
        case Standing.PAUSED:
            return _Tier.FULLY_PAUSED if host.full else _Tier.PAUSED
        case Standing.DUE:
            return _Tier.FULLY_DUE if host.full else _Tier.DUE
        case Standing.UNKNOWN:
            is_bad = standing(nexthop, now, options) is Standing.PAUSED
            return _Tier.BAD_FOR_NEXTHOP if is_bad else _Tier.ORDINARY


# -- bytes --------------------------------------------------------------------

# One line of text: the version, then a word for each field in this order, ``-``
# for what is not known, and what was said, which may have blanks, at the end.
_VERSION = "2"


def encode(record: Record) -> bytes:
    """Return *record* as a store keeps it."""
    words = [
        _VERSION,
        record.verdict.value if record.verdict else "-",
        record.phase.word,
        "full" if record.full else "-",
        *map(_number, (record.since, record.pause, record.waited)),
        *map(_number, (record.connect_time, record.greeting_latency)),
        *map(_number, (record.last_ready, record.small_segments)),
        record.name or "-",
        record.message_id or "-",
        record.said,
    ]
    return " ".join(words).encode("ascii", "replace")


def decode(value: bytes | None) -> Record:
    """Return what was encoded; `NOTHING` for what cannot be understood.

    It may have been written by another version, or by a disk that fails: wrong
    knowledge costs a message some seconds, no knowledge costs no more.
    """
    words = (value or b"").decode("ascii", "replace").split(" ", 13)
    if len(words) != 14 or words[0] != _VERSION:
        return NOTHING
    try:
        return _understood(words)
    except (ValueError, KeyError):
        return NOTHING


def _understood(words: Sequence[str]) -> Record:
    since, pause, waited, *known = map(_read, words[4:11])
    connect_time, greeting_latency, last_ready, small_segments = known
    return Record(
        None if words[1] == "-" else Verdict(words[1]),
        Phase[words[2].upper()],
        words[3] == "full",
        since or 0.0,
        pause or 0.0,
        waited or 0.0,
        connect_time,
        greeting_latency,
        last_ready,
        small_segments,
        name="" if words[11] == "-" else words[11],
        message_id="" if words[12] == "-" else words[12],
        said=printable(words[13], _SAID_LENGTH),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def _read(word: str) -> float | None:
    if word == "-":
        return None
    value = float(word)
    if not (isfinite(value) and value >= 0):
        raise ValueError(word)
    return value
