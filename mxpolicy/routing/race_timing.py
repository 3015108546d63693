"""How long the race waits for a candidate: every number, with its reason.

Pure functions of a candidate's phase, of what is remembered of it, and of the next
candidate. `mxpolicy.routing.race` calls them; nothing here keeps state.

There are three measures of a candidate's slowness, each longer than the one before:

* our *patience* with it is over: the next one may start beside it;
* it has had its *full time*: it may lose its place to one that waits, and its verdict
  is a full one;
* the *patient time* is over, which is what Postfix's and Exim's own clients wait: it
  has failed. Only this one decides whether a refusal by a worse host is final.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.candidate import Awaited, Phase, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.options import RaceOptions
    from mxpolicy.routing.candidate import Candidate, Wait

__all__ = [
    "PATIENT_TIME",
    "Entrant",
    "awaited_in",
    "connect_step",
    "full_time",
    "is_patient",
    "patience",
    "patient_time",
    "phase_of",
    "slow_verdict",
]

# A host that was slow before may be slower next time.
REMEMBERED_FACTOR = 2.0

# Seconds after which the next one starts, however slow a host was before. Some sites
# greet after 30 seconds on purpose.
LONGEST_PATIENCE = 80.0

# Linux sends a SYN at 0, 1, 3 and 7 seconds: after 6 three have gone unanswered.
FULL_CONNECT = 6.0
# The slowest greeting that is common practice.
FULL_PHASE = 30.0

# Seconds that a patient sender waits. Connecting: Postfix's smtp_connect_timeout, SYNs
# at 0, 1, 3, 7 and 15 seconds. The rest is RFC 5321 §4.5.3.2. It names none for EHLO and
# STARTTLS, to which Postfix gives as long as to the 220.
PATIENT_TIME: Mapping[Awaited, float] = MappingProxyType(
    {
        Awaited.CONNECT: 30.0,
        Awaited.GREETING: 300.0,
        Awaited.EHLO: 300.0,
        Awaited.TLS: 300.0,
        Awaited.MAIL: 300.0,
        Awaited.RCPT: 300.0,
        Awaited.DATA: 120.0,
        Awaited.BODY: 180.0,
    }
)
# Sums of seconds, written down with one decimal, are not exact.
_ROUNDING = 0.5

_AWAITED_IN = {
    Phase.CONNECT: Awaited.CONNECT,
    Phase.GREETING: Awaited.GREETING,
    Phase.EHLO: Awaited.EHLO,
    Phase.TLS: Awaited.TLS,
}
_PHASE_OF = {awaited: phase for phase, awaited in _AWAITED_IN.items()}


class Entrant(NamedTuple):
    """A candidate with what is remembered of it.

    Attributes:
        candidate: What can be dialled.
        connect_time: Seconds from SYN to SYN-ACK when last seen, None if unknown.
        greeting_latency: Seconds from SYN-ACK to the 220 when last seen, None
            if unknown.
        doubts: How often the host did not answer this message's final dot in earlier
            attempts; of several recipients the most.
        doubts_here: How often that was at this address of the host.
        silences_of_all: The same, without those that the host could not answer as we
            had ended; of several recipients the fewest.
        waits: Seconds for which earlier attempts for this message waited without
            answer. They add up.
        remembered: The wait of one remembered verdict that still holds.
    """

    candidate: Candidate
    connect_time: float | None = None
    greeting_latency: float | None = None
    doubts: int = 0
    doubts_here: int = 0
    silences_of_all: int = 0
    waits: Mapping[Awaited, float] = MappingProxyType({})
    remembered: Wait | None = None


def patience(
    entrant: Entrant, phase: Phase, following: Candidate, timing: RaceOptions
) -> float:
    """Return the seconds in *phase* after which *following* may start beside *entrant*."""
    if phase is Phase.CONNECT:
        remembered = REMEMBERED_FACTOR * (entrant.connect_time or 0.0)
        return max(connect_step(entrant.candidate, following, timing)[0], remembered)
    if phase is Phase.GREETING:
        remembered = REMEMBERED_FACTOR * (entrant.greeting_latency or 0.0)
        return max(timing.phase_patience, min(remembered, LONGEST_PATIENCE))
    return timing.phase_patience


def connect_step(
    earlier: Candidate, following: Candidate, timing: RaceOptions
) -> tuple[float, str]:
    """Return the seconds between two starts while *earlier* connects, and why so many."""
    if following.rank > earlier.rank:
        is_next = following.nexthop_position != earlier.nexthop_position
        what = "the next nexthop of the list" if is_next else "a worse preference"
        return timing.rank_delay, what
    if following.rank < earlier.rank:
        # In the order of preference it never comes later.
        return timing.host_delay, "a better preference, asked later"
    if following.host != earlier.host:
        return timing.host_delay, "another host of this preference"
    if following.is_ipv6 != earlier.is_ipv6:
        return timing.address_delay, "the same host's other address family"
    return timing.host_delay, "another address of the same host"


def full_time(phase: Phase) -> float:
    """Return the seconds without a new phase that make a full verdict."""
    return FULL_CONNECT if phase is Phase.CONNECT else FULL_PHASE


def patient_time(phase: Phase) -> float:
    """Return the seconds in *phase*, before READY, after which a candidate has failed."""
    return PATIENT_TIME[awaited_in(phase)]


def is_patient(awaited: Awaited, seconds: float) -> bool:
    """Return whether a patient sender would have given up after these *seconds*."""
    return seconds + _ROUNDING >= PATIENT_TIME[awaited]


def awaited_in(phase: Phase) -> Awaited:
    """Return what is awaited in *phase*, which is before READY."""
    return _AWAITED_IN[phase]


def phase_of(awaited: Awaited) -> Phase:
    """Return the phase in which something is awaited."""
    return _PHASE_OF.get(awaited, Phase.TRANSACTION)


def slow_verdict(phase: Phase) -> Verdict:
    """Return the verdict for a candidate that does not get beyond *phase*."""
    if phase is Phase.CONNECT:
        return Verdict.FILTERED
    if phase is Phase.TLS:
        return Verdict.TLS_SILENT
    return Verdict.SILENT
