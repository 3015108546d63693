"""The connections of a process, and the turns of its messages at them.

The shell of `mxpolicy.routing.turns`, which decides. It learns from a message's events
which connections it has. A message that waits for its turn looks at the memory again
when a failure of one of its hosts is remembered: it does not wait for a dead host.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from typing import TYPE_CHECKING

from mxpolicy.delivery import events, own_outcomes
from mxpolicy.routing.candidate import Phase
from mxpolicy.routing.reachability import TURNED_AWAY
from mxpolicy.routing.turns import Turns, best_hosts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.delivery.idle_sessions import IdleSessions
    from mxpolicy.outcome import Deferred
    from mxpolicy.routing.candidate import Candidate

__all__ = ["Connections", "Turn"]

# The part of its time that a message waits for its turn. The rest is for the delivery.
LONGEST_WAIT = 2 / 3

# Seconds until a host that has turned us away gets one connection more.
WIDEN_AFTER = 30.0


class Connections:
    """The connections of all messages of a process.

    Args:
        per_host: How many with one host; 0 is no limit.
        in_all: How many; 0 is no limit. Other descriptors need room, too: they get no
            more than a quarter of those that the process may open.
        idle: The sessions that wait for another message, which count, too.
    """

    def __init__(self, per_host: int, in_all: int, idle: IdleSessions | None) -> None:
        self._turns: Turns[Turn] = Turns(per_host, _affordable(in_all))
        self._idle = idle
        # Turns that have come, and have not dialled yet.
        self._coming: Counter[Candidate] = Counter()
        # Connections that their host has accepted, by address.
        self._accepted: Counter[str] = Counter()
        self._alarms: dict[str, asyncio.TimerHandle] = {}

    @property
    def open(self) -> int:
        """How many there are, or are about to be, without those that wait."""
        return self._turns.total

    def renew(self, per_host: int, in_all: int) -> None:
        """Go on with other limits; see `__init__`."""
        self._turns.per_host, self._turns.in_all = per_host, _affordable(in_all)
        self.grant()

    def turn(
        self,
        destination: str,
        now: Callable[[], float],
        until: float,
        *,
        may_wait: bool,
    ) -> Turn:
        """Return a message's; see `Turn`."""
        return Turn(self, destination, now, until, may_wait=may_wait)

    def take(self, candidate: Candidate) -> None:
        """A connection with *candidate* begins, and waits for no turn."""
        self._turns.take(candidate)

    def give(self, candidate: Candidate) -> None:
        """It has ended, or waits for another message."""
        self._turns.give(candidate)
        self.grant()

    def ask(self, turn: Turn, destination: str, hosts: Sequence[Candidate]) -> None:
        """Let *turn* wait; `Turn.come` is called when it has come, perhaps at once."""
        self._turns.ask(turn, destination, hosts)
        self.grant()

    def withdraw(self, turn: Turn) -> None:
        """Let *turn* wait no more."""
        self._turns.withdraw(turn)

    def grant(self) -> None:
        """Let those go on that have their turn."""
        for turn, candidate in self._turns.grant(self._has_idle):
            self._coming[candidate] += 1
            self._make_room(candidate)
            turn.come(candidate)

    def take_idle(self, candidate: Candidate, *, may_wait: bool) -> bool:
        """A message is about to use a session that waits; return whether it may.

        It may not go past others that wait for their turn, nor use a session that is for
        one of them. The connection counts from now on.

        Args:
            candidate: The session's.
            may_wait: Whether the message would wait for its turn; see `Turn`.
        """
        if may_wait and not self._has_turn_at_once(candidate):
            return False
        self._turns.take(candidate)
        self.accepted(candidate, 1)
        return True

    def _has_turn_at_once(self, candidate: Candidate) -> bool:
        if self._idle is None or not self._turns.has_turn_at_once(candidate):
            return False
        return self._idle.count(candidate) > self._coming[candidate]

    def give_idle(self, candidate: Candidate) -> None:
        """What `take_idle` has counted has ended, or waits again."""
        self.accepted(candidate, -1)
        self.give(candidate)

    def dials(self, candidate: Candidate) -> None:
        """The message with a turn at *candidate* dials now, or gives it back."""
        self._coming[candidate] -= 1
        if not self._coming[candidate]:
            del self._coming[candidate]

    def accepted(self, candidate: Candidate, change: int) -> None:
        """Its host has accepted one connection more (1), or one less (-1)."""
        socket = candidate.key.socket
        self._accepted[socket] += change
        if not self._accepted[socket]:
            del self._accepted[socket]

    def is_reached(self, candidate: Candidate) -> bool:
        """Return whether there is a connection that its host has accepted."""
        return self._accepted[candidate.key.socket] > 0

    def turned_away(self, candidate: Candidate) -> None:
        """Its host has turned one away: it may take no more than it has accepted."""
        if self.is_reached(candidate):
            self._turns.narrow(candidate, self._accepted[candidate.key.socket])
            self._widen_later(candidate)

    def _widen_later(self, candidate: Candidate) -> None:
        socket = candidate.key.socket
        if alarm := self._alarms.pop(socket, None):
            alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarms[socket] = loop.call_later(WIDEN_AFTER, self._widen, candidate)

    def _widen(self, candidate: Candidate) -> None:
        del self._alarms[candidate.key.socket]
        if self._turns.widen(candidate):
            self._widen_later(candidate)
        self.grant()

    def _has_idle(self, candidate: Candidate) -> bool:
        return self._idle is not None and self._idle.count(candidate) > 0

    def _make_room(self, candidate: Candidate) -> None:
        """End sessions that wait for another message, where there are too many now.

        Those are left that are for messages whose turn has come.
        """
        idle, turns = self._idle, self._turns
        if idle is None:
            return

        def is_for(one: Candidate) -> int:
            return min(self._coming[one], idle.count(one))

        here = turns.used(candidate) - is_for(candidate)
        limit = turns.limit(candidate)
        while 0 < limit < here + idle.count_at_host(candidate):
            if not idle.close_one(candidate):
                break
        in_all = turns.total - sum(map(is_for, self._coming))
        while 0 < turns.in_all < in_all + len(idle):
            if not idle.close_one():
                break

    def learned(self, candidate_socket: str) -> None:
        """A failure of a host is remembered now: those that wait for it look again.

        Args:
            candidate_socket: See `mxpolicy.routing.candidate.Key.socket`.
        """
        for turn in self._turns.waiting_for(candidate_socket):
            turn.look_again()

    def why_full(self, hosts: Sequence[Candidate], seconds: float) -> Deferred:
        """Return the outcome of a message that has waited *seconds* for a turn in vain."""
        turns = self._turns
        if turns.is_full:
            return own_outcomes.no_connection(turns.in_all, seconds)
        return own_outcomes.no_turn(hosts[0], turns.limit(hosts[0]), seconds)


def _affordable(in_all: int) -> int:
    """Return *in_all*, or what a quarter of the descriptors is enough for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or not in_all:
        return in_all
    return min(in_all, max(1, soft // 4))


class Turn:
    """The turn of one message at its hosts, and the connections that it has.

    Call `ask` until it returns a candidate, and `wait` in between. Give every event to
    `learn`. In the end call `leave`, whatever has happened.

    Args:
        connections: The process's.
        destination: The one spelling of the nexthop.
        now: Seconds, monotonic, in step with the event loop's.
        until: When the final dot must be sent, as *now*.
        may_wait: Whether it waits for its turn; else it only counts.
    """

    def __init__(
        self,
        connections: Connections,
        destination: str,
        now: Callable[[], float],
        until: float,
        *,
        may_wait: bool,
    ) -> None:
        self._connections = connections
        self._destination = destination
        self._now = now
        self._may_wait = may_wait
        self._came = now()
        self._until = self._came + (until - self._came) * LONGEST_WAIT
        self._hosts: tuple[Candidate, ...] = ()
        self._is_asking = False
        self._at: Candidate | None = None
        self._news = asyncio.Event()
        # Connections that are open, that their host has accepted, with a transaction.
        self._open: set[Candidate] = set()
        self._accepted: set[Candidate] = set()
        self._offered: set[Candidate] = set()

    def ask(self, order: Sequence[Candidate]) -> tuple[Candidate, ...] | None:
        """Return the order in which the hosts are asked; None: `wait`, and ask again.

        Args:
            order: All candidates as the memory orders them now.
        """
        if not self._may_wait:
            return tuple(order)
        hosts = best_hosts(order)
        if self._at is not None and self._at not in hosts:
            self._give_turn_back(self._at)
        is_asking = self._is_asking and set(hosts) == set(self._hosts)
        if self._at is None and not is_asking:
            self._connections.withdraw(self)
            self._hosts, self._is_asking = hosts, True
            self._connections.ask(self, self._destination, hosts)
        if self._at is None:
            return None
        others = (one for one in order if one != self._at)
        return self._at, *others

    async def wait(self) -> Deferred | None:
        """Wait until there is news; return the outcome where that takes too long."""
        try:
            async with asyncio.timeout(max(0.0, self._until - self._now())):
                await self._news.wait()
        except TimeoutError:
            waited = self._now() - self._came
            return self._connections.why_full(self._hosts, waited)
        self._news.clear()
        return None

    def adopt(self, candidate: Candidate) -> None:
        """It has the connection that `Connections.take_idle` has counted."""
        self._open.add(candidate)
        self._accepted.add(candidate)

    def come(self, candidate: Candidate) -> None:
        """It is its turn, at *candidate*."""
        self._at, self._is_asking = candidate, False
        self._news.set()

    def look_again(self) -> None:
        """The memory may have another order now."""
        self._news.set()

    def learn(self, event: events.Event) -> None:
        """Note which connections there are; never waits."""
        match event:
            case events.CandidateStarted(_, candidate):
                self._opened(candidate)
            case events.PhaseReached(_, candidate, phase) if phase > Phase.CONNECT:
                self._was_accepted(candidate)
            case events.CandidateTaken(_, candidate):
                self._offered.add(candidate)
            case events.CandidateDropped(_, candidate):
                self._closed(candidate)
            case events.CandidateLeft(_, candidate):
                self._offered.discard(candidate)
                self._closed(candidate)
            case events.CandidateFailed(_, candidate, finding):
                if candidate not in self._offered:
                    self._is_accepted_no_more(candidate)
                    if finding.verdict in TURNED_AWAY:
                        self._connections.turned_away(candidate)
                    self._closed(candidate)
            case _:
                pass

    def _opened(self, candidate: Candidate) -> None:
        self._is_accepted_no_more(candidate)
        if candidate == self._at:
            self._at = None  # counted since it has come
            self._connections.dials(candidate)
        elif candidate not in self._open:
            self._connections.take(candidate)
        self._open.add(candidate)
        self._offered.discard(candidate)  # perhaps dialled anew

    def _was_accepted(self, candidate: Candidate) -> None:
        if candidate in self._open and candidate not in self._accepted:
            self._accepted.add(candidate)
            self._connections.accepted(candidate, 1)

    def _is_accepted_no_more(self, candidate: Candidate) -> None:
        if candidate in self._accepted:
            self._accepted.remove(candidate)
            self._connections.accepted(candidate, -1)

    def _closed(self, candidate: Candidate) -> None:
        self._is_accepted_no_more(candidate)
        if candidate in self._open:
            self._open.discard(candidate)
            self._connections.give(candidate)

    def _give_turn_back(self, candidate: Candidate) -> None:
        self._at = None
        self._connections.dials(candidate)
        self._connections.give(candidate)

    def leave(self) -> None:
        """Give back what it has."""
        self._connections.withdraw(self)
        if self._at is not None:
            self._give_turn_back(self._at)
        for candidate in [*self._open]:
            self._closed(candidate)
