"""The sessions that wait for another message, each for some seconds.

`mxpolicy.routing.reuse` says which ones may wait, and until when. No task waits for it,
and none for its host: a session whose host has said anything meanwhile, or hung up, is
found when it is to be used, or when its few seconds are over.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.routing.reuse import kept_until, may_be_kept
from mxpolicy.routing.tls_requirement import Level

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.approach import Approach
    from mxpolicy.delivery.session import Session
    from mxpolicy.options import TransactionOptions
    from mxpolicy.routing.candidate import Candidate, Key

    _Fit = tuple[Key, Approach]

__all__ = ["MOST", "MOST_AT_ADDRESS", "UNUSED_FOR", "IdleSessions"]

# Sessions that wait, in all and with one address. Each takes a descriptor here, and a
# place at the host. Of too many the one ends that has waited longest.
MOST = 200
MOST_AT_ADDRESS = 20

# A host may never take a second message over a session, and to find that out costs up to
# `mxpolicy.routing.reuse.PATIENCE` each time. After so many times in a row no session
# with it waits for so many seconds. And of how many hosts that is known.
TIMES_ENOUGH, UNUSED_FOR, MOST_KNOWN = 2, 600.0, 1000

# Seconds between two looks for those whose time is over. Such a one is not used, so it
# only ends a little later.
LOOK = 0.25


class IdleSessions:
    """Sessions by what they fit: the candidate's key, and the approach to it.

    Args:
        options: How long one waits, and for how many messages.
        clock: Seconds, monotonic.
    """

    def __init__(self, options: TransactionOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        # Those that have waited longest come first; until when.
        self._until: dict[Session, float] = {}
        self._fitting: dict[_Fit, list[Session]] = {}
        # By address (`Key.socket`), and by the host's name, which has no blank in it.
        self._near: dict[str, dict[Session, None]] = {}
        # By address: how often in a row a session was over, and when it was last.
        self._over: dict[str, tuple[int, float]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = inf

    def renew(self, options: TransactionOptions) -> None:
        """Go on by other *options*, from the next session on."""
        self._options = options

    def keep(self, session: Session, known_until: float = inf) -> bool:
        """Let *session* wait for another message, if it may; return whether it does.

        Args:
            known_until: See `mxpolicy.routing.reuse.kept_until`.
        """
        now = self._clock()
        idle = self._options.session_idle
        until = kept_until(now, session.began, idle=idle, known_until=known_until)
        if until <= now or not self._may_be_kept(session):
            return False
        socket = session.candidate.key.socket
        if session.is_reused:
            self._over.pop(socket, None)
        times, at = self._over.get(socket, (0, 0.0))
        if times >= TIMES_ENOUGH and now < at + UNUSED_FOR:
            return False
        self._make_room(session.candidate)
        self._until[session] = until
        self._fitting.setdefault(_fit(session), []).append(session)
        for place in (socket, session.candidate.host):
            self._near.setdefault(place, {})[session] = None
        self._ring_at(until)
        return True

    def was_over(self, candidate: Candidate) -> None:
        """A session with *candidate* that had waited took no other message."""
        socket = candidate.key.socket
        times, _ = self._over.pop(socket, (0, 0.0))
        self._over[socket] = times + 1, self._clock()
        if len(self._over) > MOST_KNOWN:
            del self._over[next(iter(self._over))]
        if times + 1 >= TIMES_ENOUGH:
            self.close_at(candidate)

    def _may_be_kept(self, session: Session) -> bool:
        approach, extensions = session.approach, session.extensions
        # The host put TLS off; the next session may have it.
        is_put_off = (
            approach.tls.level is Level.MAY
            and extensions.starttls
            and not session.is_secured
        )
        if is_put_off or approach.had_to_be_in_clear or not approach.waits_for_body:
            return False
        limits = (self._options.session_messages or None, extensions.limits.mailmax)
        most = min((one for one in limits if one is not None), default=None)
        return session.dialogue.is_quiet() and may_be_kept(
            session.course,
            transactions=session.transactions,
            most=most,
            strays=session.dialogue.strays,
        )

    def take(self, candidate: Candidate, approach: Approach) -> Session | None:
        """Return a session that fits, the last one used; it waits no more."""
        while waiting := self._fitting.get((candidate.key, approach)):
            session = waiting[-1]
            is_in_time = self._clock() < self._until[session]
            self._let_go(session)
            if is_in_time and session.dialogue.is_quiet():
                return session
            session.quit()
        return None

    def count(self, candidate: Candidate) -> int:
        """Return how many sessions with the address of *candidate* wait."""
        return len(self._near.get(candidate.key.socket, ()))

    def count_at_host(self, candidate: Candidate) -> int:
        """Return how many sessions with its host wait, by name or by address."""
        near = self._near
        named, here = near.get(candidate.host, {}), near.get(candidate.key.socket, {})
        return len(named.keys() | here.keys()) if named else len(here)

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._until)

    def close_one(self, candidate: Candidate | None = None) -> bool:
        """End the one that has waited longest; return whether there was any.

        Args:
            candidate: Of those with its host only.
        """
        for session in self._until:
            if candidate is None or session.candidate.shares_host(candidate):
                self._end(session)
                return True
        return False

    def close_at(self, candidate: Candidate) -> bool:
        """End all sessions with the address of *candidate*; return whether there were any."""
        found = [*self._near.get(candidate.key.socket, ())]
        for session in found:
            self._end(session)
        return bool(found)

    def close(self) -> bool:
        """End all of them; return whether there were any."""
        found = [*self._until]
        for session in found:
            self._end(session)
        return bool(found)

    # -- the end of a wait --------------------------------------------------

    def _make_room(self, candidate: Candidate) -> None:
        here = self._near.get(candidate.key.socket, {})
        if len(here) >= MOST_AT_ADDRESS:
            self._end(next(iter(here)))
        if len(self._until) >= MOST:
            self._end(next(iter(self._until)))

    def _end(self, session: Session) -> None:
        self._let_go(session)
        session.quit()

    def _let_go(self, session: Session) -> None:
        del self._until[session]
        fit = _fit(session)
        self._fitting[fit].remove(session)
        if not self._fitting[fit]:
            del self._fitting[fit]
        for place in (session.candidate.key.socket, session.candidate.host):
            del self._near[place][session]
            if not self._near[place]:
                del self._near[place]
        if not self._until:
            self._ring_at(inf)

    def _ring_at(self, at: float) -> None:
        """Have the alarm ring no later than *at*; never, when that is infinite."""
        if at == inf or at < self._rings_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm, self._rings_at = None, at
            if at < inf:
                delay = max(0.0, at - self._clock())
                loop = asyncio.get_running_loop()
                self._alarm = loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._alarm, self._rings_at = None, inf
        now = self._clock()
        for session, until in [*self._until.items()]:
            if until <= now:
                self._end(session)
        if self._until:
            self._ring_at(max(now + LOOK, min(self._until.values())))


def _fit(session: Session) -> _Fit:
    return session.candidate.key, session.approach
