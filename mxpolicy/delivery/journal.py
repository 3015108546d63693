"""What has become of a message before: so that nobody gets it twice.

A mail server that has not heard our answer asks again: it was killed, or we were, or
some of several recipients on one call were deferred. The journal knows who has it
already, who was refused, and whether somebody is at it this moment.

An entry stands for one message to one recipient (`entry_key`) and is in one of the
states of `State`:

    (none) -> CLAIMED -> DOT_SENT -> DELIVERED
                 |           |
                 |           +-----> REFUSED, or (none) when it was refused for now
                 +-----------------> REFUSED, or (none) when it was deferred

`judge` decides what an entry means to whoever comes next. A claim holds as long as the
process that made it lives, and never longer than it said it would take. A message whose
dot was sent by a process that is dead may have arrived or not; it is sent again, and the
same host is asked first, which has the best chance to notice.

The journal makes nothing worse: what cannot be read or written counts as not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.reply import EnhancedStatus, Reply, printable

__all__ = [
    "Busy",
    "Claimed",
    "Entry",
    "Owner",
    "Settled",
    "State",
    "digest_of",
    "entry_key",
    "is_alive",
    "judge",
    "myself",
    "relay_in_doubt",
    "settled_entry",
]

# Seconds: a deadline is at most a day.
LONGEST_CLAIM = 25 * 3600.0
# Of a reply, kept; the rest is in the log.
MAX_TEXT = 400

_VERSION = "1"
_MACHINE_ID = "/etc/machine-id"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class State(Enum):
    """How far one message has got on its way to one recipient."""

    CLAIMED = "claimed"
    DOT_SENT = "dot-sent"
    DELIVERED = "delivered"
    REFUSED = "refused"


class Owner(NamedTuple):
    """The process that has claimed a message; see `is_alive`.

    Attributes:
        machine: The machine's id (machine-id(5)), empty where there is none.
        boot: The kernel's boot id, empty where there is none.
        namespace: That of its process ids: a number means nothing in another.
        pid: Process id.
        started: When it started, in clock ticks since boot (proc(5)).
        call: Tells apart the deliveries of one process.
    """

    machine: str
    boot: str
    namespace: str
    pid: int
    started: int
    call: str


# Who owns what is settled: it matters no more, and there are many such entries.
NOBODY = Owner("", "", "", 0, 0, "")


class Entry(NamedTuple):
    """What the journal holds for one message to one recipient.

    Attributes:
        state: Where it is.
        owner: Who made the entry; `NOBODY` once it is settled.
        until: When a claim ends on its own account; seconds since the epoch, UTC.
        relay: ``host[address]:port`` that the final dot was sent to, else empty.
        status: Of a settled recipient, else None.
        text: One printable line, of a settled recipient.
    """

    state: State
    owner: Owner
    until: float
    relay: str = ""
    status: EnhancedStatus | None = None
    text: str = ""

    def encode(self) -> bytes:
        """Return the entry as the store keeps it."""
        owner = self.owner
        fields = (
            *(_VERSION, self.state.value, *map(str, owner), f"{self.until:.0f}"),
            *(self.relay, str(self.status or ""), self.text),
        )
        return "\t".join(fields).encode("ascii", "replace")

    @classmethod
    def decode(cls, data: bytes) -> Entry | None:
        """Return what `encode` made, None for anything else."""
        try:
            version, state, *owner, until, relay, status, text = data.decode(
                "ascii"
            ).split("\t")
            machine, boot, namespace, pid, started, call = owner
            if version != _VERSION:
                return None
            return cls(
                State(state),
                Owner(machine, boot, namespace, int(pid), int(started), call),
                float(until),
                relay,
                EnhancedStatus.parse(status),
                text,
            )
        except ValueError:
            return None


class Claimed(NamedTuple):
    """It is ours to deliver.

    Attributes:
        relay: Who may have it already, since a final dot was sent there; else empty.
    """

    relay: str = ""


class Busy(NamedTuple):
    """Another process is at it, and alive."""


class Settled(NamedTuple):
    """There is nothing left to do for this recipient.

    Attributes:
        outcome: What became of it.
    """

    outcome: Outcome


def judge(
    entry: Entry | None, me: Owner, now: float, *, alive: bool
) -> Claimed | Busy | Settled:
    """Return what an entry means to *me*, who wants to deliver.

    Args:
        entry: What is there, None when nothing is.
        me: Who asks.
        now: Seconds since the epoch, UTC.
        alive: Whether the entry's owner lives; see `is_alive`.
    """
    if entry is None:
        return Claimed()
    match entry.state:
        case State.DELIVERED | State.REFUSED:
            return _settled(entry)
        case State.CLAIMED | State.DOT_SENT:
            # Nobody claims for longer: else a clock was wrong, theirs or ours.
            in_time = now < entry.until < now + LONGEST_CLAIM
            if entry.owner != me and alive and in_time:
                return Busy()
            return Claimed(entry.relay)


def _settled(entry: Entry) -> Claimed | Settled:
    class_ = 2 if entry.state is State.DELIVERED else 5
    status = entry.status
    if status is None or status.class_ != class_:
        return Claimed()  # not written by us
    if entry.state is State.REFUSED:
        return Settled(Bounced(status, entry.text, None, entry.relay))
    text = entry.text.removesuffix(_EARLIER) + _EARLIER
    return Settled(Delivered(status, text, Reply(250, (entry.text,)), entry.relay))


_EARLIER = " (delivered earlier)"


def settled_entry(outcome: Outcome) -> Entry | None:
    """Return what is kept of *outcome*, None when it settles nothing."""
    match outcome:
        case Delivered():
            state = State.DELIVERED
        case Bounced():
            state = State.REFUSED
        case Deferred():
            return None
    text = printable(outcome.text, MAX_TEXT)
    return Entry(state, NOBODY, 0.0, outcome.relay, outcome.status, text)


def relay_in_doubt(outcome: Outcome) -> str:
    """Return which host may have the message although it is deferred, else ``""``."""
    if isinstance(outcome, Deferred) and outcome.may_have_arrived:
        return outcome.relay
    return ""


def entry_key(
    identity: str, digest: bytes, reverse_path: str, forward_path: str
) -> str:
    """Return the key of one message to one recipient.

    Two messages with equal bytes are two messages when their *identity* differs.

    Args:
        identity: The mail server's name for the message.
        digest: Of the mail data; see `digest_of`.
        reverse_path: As on the wire, empty for the null one.
        forward_path: As on the wire.
    """
    from hashlib import sha256

    words = (identity, reverse_path, forward_path)
    # Lengths, so that no two of them run into each other.
    prefixed = b"".join(
        b"%d:%s" % (len(word), word)
        for word in (one.encode("utf-8", "surrogateescape") for one in words)
    )
    return "journal/" + sha256(prefixed + digest).hexdigest()


def digest_of(chunks: Iterable[bytes]) -> bytes:
    """Return the SHA-256 of mail data."""
    from hashlib import sha256

    total = sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.digest()


# -- who is alive ---------------------------------------------------------------------


def myself() -> Owner:
    """Return this process, for one delivery."""
    pid = os.getpid()
    call = os.urandom(4).hex()
    return Owner(*_place(), pid, _started(pid) or 0, call)


def is_alive(owner: Owner) -> bool:
    """Return whether the process may still be at work; when in doubt, it is.

    After a reboot of this machine nobody is. But another machine may share the store,
    and in another namespace of process ids, a container's, the number is not to be
    looked up: those live as long as they said they would.
    """
    machine, boot, namespace = _place()
    if owner.boot != boot:
        return not machine or owner.machine != machine
    if not boot or owner.namespace != namespace:
        return True
    return _started(owner.pid) == owner.started


def _place() -> tuple[str, str, str]:
    """Return machine, boot and namespace of process ids."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return _line(_MACHINE_ID), _line(_BOOT_ID), namespace


def _line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(100).strip()
    except (OSError, ValueError):
        return ""


def _started(pid: int) -> int | None:
    """Return the start time of a process that lives, else None (proc(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name stands in parentheses, then the state; start time is field 22.
            fields = file.read().rpartition(b")")[2].split()
            return None if fields[0] in b"ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
