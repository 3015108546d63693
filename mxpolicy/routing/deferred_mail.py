"""Which messages wait for which hosts, and when each host is looked at again. Pure.

A recipient waits here when it was deferred because none of its hosts was ready. The mail
server would try it again after minutes or hours (Postfix: up to `maximal_backoff_time`).
When one of the hosts can be reached again, the mail server is told at once
(`mxpolicy.delivery.kick`).

All is kept in the process, and bounded. What is forgotten is tried again by the mail
server, as without all this.

Theory of operation
-------------------

Each host that mail waits for is looked at again and again: what is remembered of it
(`mxpolicy.routing.host_record`) says what follows.

- No verdict, and it had one: it is ready again. Its mail is released.
- No verdict, and it never had one: its failure is not remembered for all mail. Nothing
  will ever clear it, so it is forgotten.
- In its pause: it is looked at when the pause is over.
- The pause is over: it is probed, if no other process does that.

With a clock that was set back, the looks come sooner by as much: else mail would wait for
that long.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.reachability import Standing, standing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.host_record import HostRecord

__all__ = [
    "FIRST_LOOK",
    "HOSTS_EACH",
    "LOOK_AGAIN",
    "RECIPIENTS",
    "DeferredMail",
    "Next",
    "Waiting",
]

# Recipients kept. Of more, the ones that were deferred first are forgotten.
RECIPIENTS = 20_000

# Hosts that one recipient waits for: the first in its order. And those of all.
HOSTS_EACH = 8
HOSTS = 40_000

# Seconds from the deferral to the first look: by then the verdict is written.
FIRST_LOOK = 2.0

# Seconds between two looks at a host that is being probed.
LOOK_AGAIN = 5.0


class Next(Enum):
    """What follows from a look at a host."""

    WAIT = "it is looked at again later"
    PROBE = "it is to be dialled"
    READY = "its mail is to be released"
    FORGET = "nothing remembered keeps mail from it"


class Waiting(NamedTuple):
    """A recipient that waits. The mail server is told of its message."""

    queue_id: str
    recipient: str


class _AwaitedHost:
    """A host that mail waits for.

    Attributes:
        candidate: It, under one of its names.
        waiting: The recipients, in the order of their deferral.
        look_at: When it is looked at next, UTC seconds.
        has_failed: A verdict was seen at one of the looks.
    """

    __slots__ = ("candidate", "has_failed", "look_at", "waiting")

    def __init__(self, candidate: Candidate, look_at: float) -> None:
        self.candidate = candidate
        self.waiting: dict[Waiting, None] = {}
        self.look_at = look_at
        self.has_failed = False


class DeferredMail:
    """The recipients that wait for hosts; all times are UTC seconds.

    Args:
        recipients: How many are kept.
        hosts: The same, of the hosts that they wait for.
    """

    def __init__(self, recipients: int = RECIPIENTS, hosts: int = HOSTS) -> None:
        self._most = recipients
        self._most_hosts = hosts
        self._hosts: dict[str, _AwaitedHost] = {}  # by `Key.socket`
        self._waiting: dict[Waiting, list[str]] = {}  # the hosts of each
        # No host is due sooner. It may be too soon: mail that is settled takes its hosts
        # away, and to look for the next one each time would cost too much.
        self._soonest = inf
        self._now = -inf  # the last time that was said

    def __len__(self) -> int:
        return len(self._waiting)

    def deferred(
        self, one: Waiting, candidates: Sequence[Candidate], now: float
    ) -> None:
        """A recipient was deferred, because none of *candidates* was ready."""
        self._heed_clock(now)
        self.settled(one)
        sockets = []
        for candidate in candidates[:HOSTS_EACH]:
            socket = candidate.key.socket
            host = self._hosts.get(socket)
            if host is None:
                host = self._hosts[socket] = _AwaitedHost(candidate, now + FIRST_LOOK)
                self._soonest = min(self._soonest, host.look_at)
            host.waiting[one] = None
            sockets.append(socket)
        if sockets:
            self._waiting[one] = sockets
        while len(self._waiting) > self._most or len(self._hosts) > self._most_hosts:
            self.settled(next(iter(self._waiting)))

    def settled(self, one: Waiting) -> None:
        """A recipient waits no more: it has another outcome, or is released."""
        for socket in self._waiting.pop(one, ()):
            host = self._hosts[socket]
            del host.waiting[one]
            if not host.waiting:
                del self._hosts[socket]

    def ready(self, candidate: Candidate, now: float) -> None:
        """*candidate* was ready for other mail: look at it as soon as that is written."""
        if host := self._hosts.get(candidate.key.socket):
            host.look_at = min(host.look_at, now + FIRST_LOOK)
            self._soonest = min(self._soonest, host.look_at)

    def next_look(self, now: float) -> float | None:
        """Return when `due` is to be asked next, None while no mail waits."""
        self._heed_clock(now)
        return self._soonest if self._hosts else None

    def due(self, now: float) -> list[Candidate]:
        """Return the hosts to be looked at now; give each to `look`."""
        self._heed_clock(now)
        due = [one for one in self._hosts.values() if one.look_at <= now]
        for host in due:
            host.look_at = now + LOOK_AGAIN
        looks = (one.look_at for one in self._hosts.values())
        self._soonest = min(looks, default=inf)
        return [one.candidate for one in due]

    def look(
        self,
        candidate: Candidate,
        record: HostRecord,
        now: float,
        options: MemoryOptions,
    ) -> Next:
        """Return what follows from what is remembered of *candidate* now.

        Args:
            candidate: One that was `due`.
            record: What is remembered of it, for all mail.
            now: UTC seconds.
            options: For the pauses.
        """
        host = self._hosts.get(candidate.key.socket)
        if host is None:
            return Next.FORGET
        if record.verdict is None:
            if host.has_failed:
                return Next.READY
            self._forget(host)
            return Next.FORGET
        host.has_failed = True
        if standing(record, now, options) is Standing.PAUSED:
            host.look_at = record.since + min(record.pause, options.longest_pause)
            return Next.WAIT
        return Next.PROBE

    def release(self, candidate: Candidate) -> dict[str, list[Waiting]]:
        """Return the mail for *candidate* by queue id; its recipients wait no more."""
        host = self._hosts.get(candidate.key.socket)
        released: dict[str, list[Waiting]] = {}
        for one in list(host.waiting) if host else ():
            released.setdefault(one.queue_id, []).append(one)
            self.settled(one)
        return released

    def _heed_clock(self, now: float) -> None:
        if now < self._now:
            back = self._now - now
            for host in self._hosts.values():
                host.look_at -= back
            self._soonest -= back
        self._now = now

    def _forget(self, host: _AwaitedHost) -> None:
        """Let no recipient wait for *host*; other hosts of theirs stay."""
        socket = host.candidate.key.socket
        for one in host.waiting:
            others: Iterable[str] = self._waiting.pop(one)
            if left := [other for other in others if other != socket]:
                self._waiting[one] = left
        del self._hosts[socket]
