"""Which message may dial next, where only so many connections may be open. Pure.

A process that delivers many messages at once has a limit of connections with each host,
and one in all. A message that finds its host's full waits for its *turn*, before any host
is dialled: a host that it waits for is not slow.

What a host is
    Its name and its address count each by itself. So thousands of domains at one provider
    count together, and so do many names of one address.

Whose turn is next
    Destinations come one after the other, each with the message that has waited longest.
    Those with the same hosts share the turns of one. So a thousand messages for a slow
    destination do not delay the one message for another.

What a host allows
    A host may take fewer connections than we do. When it turns one away while it serves
    others, the limit is as many as it serves, and rises again step by step. So the rest
    of a burst waits for its turn, and is not deferred.

What does not wait
    The limits begin turns. A race that has begun dials as many hosts as it needs, and so
    does a message for which a process of the mail server waits. Their connections count.

Which hosts
    A message may have its turn at any host of the best preference, in the order in which
    it asks them. It does not turn to a worse one because a better one is busy.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mxpolicy.routing.candidate import Candidate

__all__ = ["Turns", "best_hosts"]

# Where there is no limit, one that a host has shown ends with so many.
MOST_NARROW = 100

W = TypeVar("W")

_Hosts = frozenset[str]


class _InLine(NamedTuple, Generic[W]):
    waiter: W
    hosts: tuple[Candidate, ...]


class Turns(Generic[W]):
    """The connections that are open, and the turns that are waited for.

    Args:
        per_host: How many with one host; 0 is no limit.
        in_all: How many; 0 is no limit.

    Attributes:
        total: How many are open.
    """

    def __init__(self, per_host: int, in_all: int) -> None:
        self.per_host = per_host
        self.in_all = in_all
        self.total = 0
        self._names: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        # By the hosts that they may have, then by destination. The first is next.
        self._queues: dict[_Hosts, dict[str, deque[_InLine[W]]]] = {}
        self._queue_of: dict[W, tuple[_Hosts, str]] = {}
        # By address: how many a host has been found to take.
        self._narrow: dict[str, int] = {}

    # -- connections --------------------------------------------------------

    def take(self, candidate: Candidate) -> None:
        """A connection with *candidate* is opened, whatever the limits say."""
        self.total += 1
        self._names[candidate.host] += 1
        self._addresses[candidate.key.socket] += 1

    def give(self, candidate: Candidate) -> None:
        """It is closed, or waits for another message."""
        self.total -= 1
        for counter, name in (
            (self._names, candidate.host),
            (self._addresses, candidate.key.socket),
        ):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def used(self, candidate: Candidate) -> int:
        """Return how many connections its host has, by name or by address."""
        return max(self._names[candidate.host], self._addresses[candidate.key.socket])

    @property
    def is_full(self) -> bool:
        """Whether all connections are open, whatever the host."""
        return 0 < self.in_all <= self.total

    def limit(self, candidate: Candidate) -> int:
        """Return how many connections its host may have; 0 is no limit."""
        narrow = self._narrow.get(candidate.key.socket, self.per_host)
        return min(narrow, self.per_host) if self.per_host else narrow

    def narrow(self, candidate: Candidate, taken: int) -> None:
        """Its host turns away what is more than *taken*, which is 1 at least."""
        self._narrow[candidate.key.socket] = taken

    def widen(self, candidate: Candidate) -> bool:
        """Allow one more; return whether the limit is still narrower than usual."""
        socket = candidate.key.socket
        most = self._narrow.get(socket, self.per_host) + 1
        is_narrow = most < (self.per_host or MOST_NARROW)
        if is_narrow:
            self._narrow[socket] = most
        else:
            self._narrow.pop(socket, None)
        return is_narrow

    def _has_room(self, candidate: Candidate) -> bool:
        limit = self.limit(candidate)
        return not limit or self.used(candidate) < limit

    def has_turn_at_once(self, candidate: Candidate) -> bool:
        """Return whether one more may be opened, and nothing waits for that."""
        if self.is_full or not self._has_room(candidate):
            return False
        socket = candidate.key.socket
        return not any(socket in hosts for hosts in self._queues)

    # -- waiting --------------------------------------------------------------

    def ask(self, waiter: W, destination: str, hosts: Sequence[Candidate]) -> None:
        """Let *waiter* wait for a turn, behind those that wait already; see `grant`.

        Args:
            waiter: It waits for nothing yet.
            destination: What it is for.
            hosts: At which its turn may be, at least one; see `best_hosts`.
        """
        key = frozenset(one.key.socket for one in hosts)
        queue = self._queues.setdefault(key, {}).setdefault(destination, deque())
        queue.append(_InLine(waiter, tuple(hosts)))
        self._queue_of[waiter] = key, destination

    def withdraw(self, waiter: W) -> None:
        """Let *waiter* wait no more; it need not wait."""
        if waiter in self._queue_of:
            key, destination = self._queue_of.pop(waiter)
            queue = self._queues[key][destination]
            queue.remove(next(one for one in queue if one.waiter == waiter))
            self._clean(key, destination)

    def waiting_for(self, socket: str) -> list[W]:
        """Return what waits for a turn at the candidate of that `Key.socket`."""
        return [
            one.waiter
            for key, queues in self._queues.items()
            if socket in key
            for queue in queues.values()
            for one in queue
        ]

    def grant(
        self, has_idle: Callable[[Candidate], bool] = lambda candidate: False
    ) -> Iterator[tuple[W, Candidate]]:
        """Yield whose turn it is, and where. It waits no more, and its connection counts.

        Args:
            has_idle: Whether a session with a candidate waits for another message. Then
                the turn is there, if it may be.
        """
        went_on = True
        while went_on:
            went_on = False
            for key in [*self._queues]:
                if self.is_full:
                    return
                if granted := self._grant(key, has_idle):
                    went_on = True
                    yield granted

    def _grant(
        self, key: _Hosts, has_idle: Callable[[Candidate], bool]
    ) -> tuple[W, Candidate] | None:
        """Return the next turn of those that wait for the same hosts."""
        queues = self._queues[key]
        destination = next(iter(queues))
        queue = queues[destination]
        free = [one for one in queue[0].hosts if self._has_room(one)]
        if not free:
            return None
        candidate = next((one for one in free if has_idle(one)), free[0])
        waiter = queue.popleft().waiter
        del self._queue_of[waiter]
        self.take(candidate)
        # The next turn is another destination's, and another host's.
        queues[destination] = queues.pop(destination)
        self._queues[key] = self._queues.pop(key)
        self._clean(key, destination)
        return waiter, candidate

    def _clean(self, key: _Hosts, destination: str) -> None:
        if not self._queues[key][destination]:
            del self._queues[key][destination]
        if not self._queues[key]:
            del self._queues[key]


def best_hosts(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return the first of *candidates*, and those that are as good as it is."""
    found: list[Candidate] = []
    for candidate in candidates:
        if found and candidate.rank != found[0].rank:
            break
        found.append(candidate)
    return tuple(found)
