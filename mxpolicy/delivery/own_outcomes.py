"""Outcomes that no host has decided: of our own troubles and limits, and before any was asked.

Pure.
"""

from __future__ import annotations

from mxpolicy.address import AddressError, UnsupportedDomain
from mxpolicy.delivery.trouble import OWN_TROUBLE, one_line
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.candidate import Candidate
from mxpolicy.routing.places import OverLimit

__all__ = [
    "bad_nexthop",
    "bad_recipient",
    "bad_sender",
    "cancelled",
    "no_connection",
    "no_place",
    "no_turn",
    "own_trouble",
    "too_many_hops",
    "under_way",
]

_SYSTEM_BUSY = EnhancedStatus(4, 3, 2)  # RFC 3463 §3.4: system not accepting messages
_CONGESTED = EnhancedStatus(4, 4, 5)  # §3.5: mail system congestion
_OWN_MISTAKE = EnhancedStatus(4, 3, 5)  # §3.4: system incorrectly configured


def bad_recipient(error: AddressError) -> Deferred | Bounced:
    """Return the outcome of a forward-path that is no address: X.1.3 (RFC 3463 §3.2)."""
    text = one_line(f"bad recipient address {error}")
    if isinstance(error, UnsupportedDomain):
        return Deferred(_OWN_MISTAKE, text)
    return Bounced(EnhancedStatus(5, 1, 3), text)


def bad_sender(error: AddressError) -> Bounced:
    """Return the outcome of a reverse-path that fits no command: X.1.7 (RFC 3463 §3.2)."""
    return Bounced(EnhancedStatus(5, 1, 7), one_line(f"bad sender address {error}"))


def too_many_hops(count: int) -> Bounced:
    """Return the outcome of a message that goes in circles: X.4.6 (RFC 3463 §3.5)."""
    text = f"mail loop: {count} Received: fields, one for each mail server passed"
    return Bounced(EnhancedStatus(5, 4, 6), text)


def bad_nexthop(error: Exception) -> Deferred:
    """Return the outcome when the operator's nexthop cannot be understood."""
    return Deferred(_OWN_MISTAKE, one_line(str(error)))


def own_trouble(error: BaseException) -> Deferred:
    """Return the outcome when our own machine or program failed."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = str(error) or type(error).__name__
    return Deferred(OWN_TROUBLE, one_line(f"local trouble: {said}"))


def cancelled(why: str) -> Deferred:
    """Return the outcome of a recipient for which no host's answer was due."""
    return Deferred(_SYSTEM_BUSY, one_line(f"the delivery was cancelled: {why}"))


def under_way() -> Deferred:
    """Return the outcome of a recipient that another process is delivering to."""
    return Deferred(OWN_TROUBLE, "another delivery of this message is under way")


def no_place(over: OverLimit, now: float) -> Deferred:
    """Return the outcome where most of our processes wait for the same destination.

    Args:
        over: How many do, and for what.
        now: Seconds since the epoch, UTC.
    """
    text = (
        f"{over.taken} of {over.limit} processes are in use,"
        f" {over.waiting} of them by mail for {over.aim} that "
    )
    if over.longest is None:
        text += "has not gone through lately"
    else:
        waited = max(0.0, now - over.longest.since)
        text += f"waits, {waited:.0f}s for {over.longest.waits_for}"
    return Deferred(_SYSTEM_BUSY, one_line(f"{text}; others come first"))


def no_connection(limit: int, waited: float) -> Deferred:
    """Return the outcome where all *limit* connections of this machine stay in use."""
    text = f"all {limit} connections are in use, waited {waited:.0f}s"
    return Deferred(_SYSTEM_BUSY, text)


def no_turn(candidate: Candidate, limit: int, waited: float) -> Deferred:
    """Return the outcome where all *limit* connections with a host stay in use."""
    text = f"all {limit} connections with {candidate} are in use, waited {waited:.0f}s"
    return Deferred(_CONGESTED, one_line(text), relay=str(candidate.key))
