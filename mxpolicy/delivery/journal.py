"""What became of a message before, so that no recipient gets it twice.

The mail server asks again when it has not heard our answer. It was killed, or we were,
or some recipients of one call were deferred. The journal knows which recipients have the
message, which were refused, and which another process is delivering to.

An entry stands for one delivery of a message to one recipient (`entry_key`). It is in
one of the states of `EntryState`:

    (none) -> CLAIMED -> DOT_SENT ------------> DELIVERED
                 |           |                  ^
                 |           +----> WAITING ----+
                 |           |          |
                 |           |          +-----> DEFERRED
                 |           +----------------> REFUSED, or DEFERRED
                 +----------------------------> REFUSED, or DEFERRED

On the fast path (`mxpolicy.delivery.fast_path`) the first entry is DOT_SENT: nothing is
claimed before it.

`meaning` says what an entry means to the delivery that comes next. A claim holds while
its owner works (`mxpolicy.delivery.owner`), but no longer than the owner said it would
take.

A deferred recipient has an entry only if it has a `Past`. That names hosts that may have
the message, as they did not answer the final dot, and hosts that were waited for in vain.
A dot that was sent by a process that is dead is such a doubt, too. But the host was given
no time for it, and is to be asked again before a worse one's refusal counts without it.

WAITING: the mail server was told 4.4.2, and the host's reply to the final dot is still
listened to (`mxpolicy.delivery.late_reply`). The doubt is noted already. It counts as
soon as nothing listens any more.

A refusal is kept only while other recipients of the call are deferred: the mail server
asks for all of them again. Without others it asks again only when it has made a deferral
of the refusal (Postfix: soft_bounce), or has not heard it. Then the host is asked again,
and what is in doubt still is.

The journal makes nothing worse: an entry that cannot be read or written does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from mxpolicy.address import AddressError
from mxpolicy.delivery.owner import NO_OWNER, Owner
from mxpolicy.delivery.trouble import BAD_CONNECTION, MAX_OUTCOME_TEXT, one_line
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.reply import EnhancedStatus, Reply, printable
from mxpolicy.routing.candidate import Candidate, host_of, shown_of
from mxpolicy.routing.nexthop import NexthopError, nexthop_aim, parse_nexthop
from mxpolicy.state.store import JOURNAL

__all__ = [
    "NO_PAST",
    "Entry",
    "EntryState",
    "Past",
    "aim_of",
    "awaited",
    "entry_key",
    "left_by",
    "meaning",
    "outcome_entry",
    "past_entry",
    "waiting_entry",
]

K = TypeVar("K")
V = TypeVar("V", int, float)

# Seconds: a deadline is at most a day, and a late reply is awaited for an hour at most.
LONGEST_CLAIM = 26 * 3600.0
# Characters kept of a delivery's text. A refusal is kept whole, for the sender.
MAX_TEXT = 400
# Bytes of an entry. An attempt dials 32 hosts at most, and adds few to earlier ones.
MAX_ENTRY = 4096
# Doubts, or seconds; more makes no difference.
MAX_AMOUNT = 10**6

# What was awaited, where a final dot was refused too late to count; beside the words of
# `Awaited`. And the seconds for it (RFC 5321 §4.5.3.2.6).
_REPLY = "reply"
_REPLY_TIME = 600.0
# The same, where we ended before that time was over; and the "seconds" of each time.
_CUT_OFF = "cut-off"
_ONCE = 1.0

_VERSION = "2"
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?\Z")
# What may stand between the commas and blanks of an entry.
_WORD = re.compile(r"[!-+\--~]{1,255}\Z")


class EntryState(Enum):
    """How far one message has got on its way to one recipient."""

    CLAIMED = "claimed"
    DOT_SENT = "dot-sent"
    WAITING = "waiting"
    DELIVERED = "delivered"
    REFUSED = "refused"
    DEFERRED = "deferred"


# Of these the entry's text is that of its past.
_WITHOUT_TEXT = {EntryState.CLAIMED, EntryState.DOT_SENT, EntryState.DEFERRED}


class Past(NamedTuple):
    """What earlier attempts have left behind for one recipient.

    Attributes:
        doubts: {relay: how often it saw the final dot and did not answer it}.
        waits: {(relay, awaited): seconds for which it was waited for in vain}. A relay
            is a candidate's key as text. What was awaited is the word of a
            `mxpolicy.routing.candidate.Awaited`, or ``reply`` (`refused_late`), or
            ``cut-off`` (`cut_off`).
        said: The last refusal that came too late to count, and whose, in one printable
            line: for people who wonder why the message is deferred.
    """

    doubts: Mapping[str, int] = MappingProxyType({})
    waits: Mapping[tuple[str, str], float] = MappingProxyType({})
    said: str = ""

    def doubted(self, relay: str) -> Past:
        """Return it with one doubt more at *relay*."""
        doubts = {**self.doubts, relay: self.doubts.get(relay, 0) + 1}
        return self._replace(doubts=doubts)

    def cut_off(self, relay: str) -> Past:
        """Return it with one doubt more at *relay*, which could not answer: we ended.

        So it may have the message, but has not shown that it leaves dots unanswered.
        """
        return self.doubted(relay).waited(relay, _CUT_OFF, _ONCE)

    def refused_late(self, relay: str, text: str) -> Past:
        """Return it without one doubt at *relay*, which has refused the message late.

        That host does not have the message. But its reply was waited for in vain, so it
        still comes after hosts that answer in time (`unanswered`). The refusal itself
        does not count: a patient sender would not have heard it.

        Args:
            relay: The host.
            text: What it said.
        """
        said = printable(f"{shown_of(relay)} said too late: {text}", MAX_TEXT)
        doubts = {**self.doubts, relay: self.doubts.get(relay, 0) - 1}
        left = {one: times for one, times in doubts.items() if times > 0}
        past = self._replace(doubts=left, said=said)
        return past.waited(relay, _REPLY, _REPLY_TIME)

    @property
    def unanswered(self) -> Mapping[str, int]:
        """{relay: how many final dots it did not answer in time}, doubts included."""
        times = dict(self.doubts)
        for (relay, awaited), seconds in self.waits.items():
            if awaited == _REPLY:
                times[relay] = times.get(relay, 0) + round(seconds / _REPLY_TIME)
        return times

    def waited(self, relay: str, awaited: str, seconds: float) -> Past:
        """Return it with *seconds* more for *relay* and *awaited*."""
        key = relay, awaited
        waited = self.waits.get(key, 0.0) + seconds
        return self._replace(waits={**self.waits, key: waited})

    def doubts_at(self, candidate: Candidate) -> tuple[int, int]:
        """Return how often *candidate*'s host, and *candidate*, left a dot unanswered."""
        unanswered = self.unanswered
        at_host = sum(
            times
            for relay, times in unanswered.items()
            if host_of(relay) == candidate.host
        )
        return at_host, unanswered.get(str(candidate.key), 0)

    def silences_at(self, host: str) -> int:
        """Return how often *host* left a dot unanswered that it could have answered."""
        silences = sum(
            times for relay, times in self.unanswered.items() if host_of(relay) == host
        )
        cut_off = sum(
            seconds / _ONCE
            for (relay, awaited), seconds in self.waits.items()
            if awaited == _CUT_OFF and host_of(relay) == host
        )
        return max(0, silences - round(cut_off))

    def words(self, room: int) -> tuple[str, str]:
        """Return doubts and waits as an entry has them, in *room* characters.

        Where there is no room for all, the smallest are left out. Then a host is asked
        once more than need be, or is waited for longer.
        """
        if not self.doubts and not self.waits:
            return "", ""
        largest = _largest(self.doubts)
        doubts = _fitting([((relay,), f"{times}") for relay, times in largest], room)
        waits = [(names, f"{seconds:.1f}") for names, seconds in _largest(self.waits)]
        return doubts, _fitting(waits, room - len(doubts))

    @classmethod
    def parse(cls, doubts: str, waits: str) -> Past:
        """Return what `words` made; raise ValueError for anything else."""
        times = (word.split(",") for word in doubts.split())
        seconds = (word.split(",") for word in waits.split())
        return cls(
            {one: int(_number(count)) for one, count in times},
            {(relay, awaited): _number(waited) for relay, awaited, waited in seconds},
        )


NO_PAST = Past()


def _largest(amounts: Mapping[K, V]) -> list[tuple[K, V]]:
    bounded = [(key, min(amount, MAX_AMOUNT)) for key, amount in amounts.items()]
    return sorted(bounded, key=lambda item: item[1], reverse=True)


def _fitting(amounts: Iterable[tuple[tuple[str, ...], str]], room: int) -> str:
    """Return as many words ``name,...,amount`` as there is room for."""
    words: list[str] = []
    for names, amount in amounts:
        room -= len(word := ",".join((*names, amount))) + 1
        if room < 0:
            break
        if all(map(_WORD.match, names)):
            words.append(word)
    return " ".join(words)


def _number(text: str) -> float:
    if not _NUMBER.match(text):
        raise ValueError(text)
    return float(text)


class Entry(NamedTuple):
    """What the journal holds for one delivery of a message to one recipient.

    Attributes:
        state: How far it is.
        owner: The process that made the entry; `NO_OWNER` once there is an outcome.
        until: When a claim ends at the latest; seconds since the epoch, UTC.
        relay: What the final dot was sent to, a candidate's key as text; else empty.
        status: Of a recipient that has the message, was refused or waits, else None.
        text: One printable line for it.
        past: Of any other recipient.
    """

    state: EntryState
    owner: Owner
    until: float
    relay: str = ""
    status: EnhancedStatus | None = None
    text: str = ""
    past: Past = NO_PAST

    def encode(self) -> bytes:
        """Return the entry as the store keeps it, `MAX_ENTRY` bytes at most."""
        text = self.past.said if self.state in _WITHOUT_TEXT else self.text
        fields = (
            *(_VERSION, self.state.value, *map(str, self.owner), f"{self.until:.0f}"),
            *(self.relay, str(self.status or ""), text),
        )
        line = "\t".join(fields)
        words = self.past.words(MAX_ENTRY - len(line) - 2)
        return "\t".join((line, *words)).encode("ascii", "replace")

    @classmethod
    def decode(cls, data: bytes) -> Entry | None:
        """Return what `encode` made, None for anything else."""
        try:
            version, state, *owner, until, relay, status, text, doubts, waits = (
                data.decode("ascii").split("\t")
            )
            if version != _VERSION:
                return None
            past = Past.parse(doubts, waits)
            if EntryState(state) in _WITHOUT_TEXT:
                past, text = past._replace(said=text), ""
            return cls(
                EntryState(state),
                Owner.parse(owner),
                float(until),
                relay,
                EnhancedStatus.parse(status),
                text,
                past,
            )
        except ValueError:
            return None


def meaning(
    entry: Entry | None, me: Owner, now: float, *, alive: bool
) -> Past | Outcome | None:
    """Return what an entry means to *me*, a process that wants to deliver.

    Args:
        entry: What the journal has; None is nothing.
        me: The process that asks.
        now: Seconds since the epoch, UTC.
        alive: Whether the entry's owner may be at work; see `mxpolicy.delivery.owner`.

    Returns:
        What earlier attempts have left behind, where *me* may deliver. An outcome, where
        nothing is to be done; a deferral while the owner listens for a late reply. None,
        where another process is delivering.
    """
    if entry is None:
        return NO_PAST
    # No process claims for longer: else a clock was wrong, theirs or ours.
    in_time = now < entry.until < now + LONGEST_CLAIM
    is_at_work = entry.owner != me and alive and in_time
    match entry.state:
        case EntryState.DELIVERED | EntryState.REFUSED:
            return _kept_outcome(entry)
        case EntryState.CLAIMED | EntryState.DOT_SENT:
            if is_at_work:
                return None
            if entry.state is EntryState.DOT_SENT:
                return entry.past.cut_off(entry.relay)
            return entry.past
        case EntryState.WAITING:
            if is_at_work and entry.status is not None and entry.status.class_ == 4:
                return Deferred(entry.status, entry.text, None, entry.relay, True)
            return entry.past
        case EntryState.DEFERRED:
            return entry.past


def _kept_outcome(entry: Entry) -> Past | Delivered | Bounced:
    class_ = 2 if entry.state is EntryState.DELIVERED else 5
    status = entry.status
    if status is None or status.class_ != class_:
        return NO_PAST  # not written by us
    if entry.state is EntryState.REFUSED:
        return Bounced(status, entry.text, None, entry.relay)
    text = entry.text.removesuffix(_EARLIER) + _EARLIER
    return Delivered(status, text, Reply(250, (entry.text,)), entry.relay)


_EARLIER = " (delivered earlier)"


def outcome_entry(outcome: Delivered | Bounced) -> Entry:
    """Return what is kept of *outcome*."""
    if isinstance(outcome, Delivered):
        state, room = EntryState.DELIVERED, MAX_TEXT
    else:
        state, room = EntryState.REFUSED, MAX_OUTCOME_TEXT
    text = printable(outcome.text, room)
    return Entry(state, NO_OWNER, 0.0, outcome.relay, outcome.status, text)


def left_by(outcome: Outcome, past: Past) -> Entry | None:
    """Return what is kept of a recipient that has *outcome*; None where that is nothing.

    A deferral leaves only its *past*.
    """
    if not isinstance(outcome, Deferred):
        return outcome_entry(outcome)
    return past_entry(past)


def past_entry(past: Past) -> Entry | None:
    """Return what is kept of a recipient that has a *past* and no outcome, or None."""
    if not past.doubts and not past.waits:
        return None
    return Entry(EntryState.DEFERRED, NO_OWNER, 0.0, past=past)


def awaited(relay: str, since: str) -> Deferred:
    """Return the outcome while the reply to an earlier attempt's dot may still come.

    Args:
        relay: What the dot was sent to.
        since: When it was sent, as RFC 3339 says.
    """
    text = f"waits for the reply of {shown_of(relay)} to the final dot since {since}"
    return Deferred(BAD_CONNECTION, one_line(text), None, relay, True)


def waiting_entry(
    relay: str, since: str, owner: Owner, until: float, past: Past
) -> Entry:
    """Return what is kept while *owner* listens for a late reply.

    Args:
        relay: What the dot was sent to.
        since: When, as RFC 3339 says.
        owner: As in `Entry`.
        until: As in `Entry`.
        past: With the doubt, which counts afterwards.
    """
    outcome = awaited(relay, since)
    text = printable(outcome.text, MAX_TEXT)
    return Entry(EntryState.WAITING, owner, until, relay, outcome.status, text, past)


def entry_key(
    identity: str, aim: str, digest: bytes, reverse_path: str, forward_path: str
) -> str:
    """Return the key of one delivery of a message to one recipient.

    Messages with equal bytes are two messages when their *identity* differs. One message
    to one recipient is two deliveries when their *aim* differs: Exim's ``unseen`` routers
    make copies, for an archive.

    Args:
        identity: The mail server's name for the message.
        aim: See `aim_of`.
        digest: Of the mail data; see `mxpolicy.delivery.mail_data.MailData.digest`.
        reverse_path: As on the wire, empty for the null one.
        forward_path: As on the wire.
    """
    from hashlib import sha256

    words = (identity, aim, reverse_path, forward_path)
    # Lengths, so that no two of them run into each other.
    prefixed = b"".join(
        b"%d:%s" % (len(word), word)
        for word in (one.encode("utf-8", "surrogateescape") for one in words)
    )
    return JOURNAL + sha256(prefixed + digest).hexdigest()


def aim_of(nexthop: str, default_port: int) -> str:
    """Return the one spelling of *nexthop*.

    One that cannot be understood is returned as it is: no mail goes by it.
    """
    try:
        return nexthop_aim(parse_nexthop(nexthop, default_port))
    except (NexthopError, AddressError):
        return nexthop
