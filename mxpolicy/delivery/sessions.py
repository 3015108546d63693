"""Supplies sessions that are ready, and takes them back after use.

The attempt and the probe get their sessions only here. A session that is given back after
a plain success waits some seconds for another message (`IdleSessions`), where the process
lives long enough for that. All others quit.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.delivery.connect import Egress, connect
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.errors import LocalTrouble
from mxpolicy.routing.candidate import Phase, Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from mxpolicy.delivery.approach import Approach
    from mxpolicy.delivery.dialogue import Listener
    from mxpolicy.delivery.idle_sessions import IdleSessions
    from mxpolicy.delivery.late_reply import LateReplies
    from mxpolicy.delivery.session import Session
    from mxpolicy.routing.candidate import Candidate

    _Way = Callable[[Candidate | None], Awaitable[bool]]

__all__ = ["Sessions"]

# How a host says that it has too many sessions of ours.
_TURNED_AWAY = {
    Verdict.REFUSED,
    Verdict.CLOSED,
    Verdict.GREETING_4XX,
    Verdict.GREETING_5XX,
    Verdict.EHLO_REFUSED,
}


# Seconds without a greeting after which one that waits for a late reply makes room. The
# host may have no process for another session, and no way to say so: its kernel accepts
# the connection, or drops the SYN. It is longer than most hosts wait on purpose.
SILENT_FOR = 20.0


class Sessions:
    """The sessions of one engine.

    Args:
        egresses: By name, as in `Candidate.egress`.
        idle: Where sessions wait for another message; None where none does.
        late: Where sessions wait for a late reply; None where none does.
    """

    def __init__(
        self,
        egresses: Mapping[str, Egress],
        idle: IdleSessions | None = None,
        late: LateReplies | None = None,
    ) -> None:
        self._egresses = egresses
        self._idle = idle
        self._late = late
        self._is_stopped = False
        # In use, and by which egress they were dialled.
        self._in_use: dict[Session, Egress] = {}
        # Probes that have not ended, by address.
        self._probes: dict[str, list[asyncio.Event]] = {}

    def renew(self, egresses: Mapping[str, Egress]) -> None:
        """Go on with other *egresses*; what was dialled by the old ones is not kept."""
        self._egresses = egresses
        if self._idle is not None:
            self._idle.close()

    def take_idle(
        self, candidate: Candidate, approach: Approach, listener: Listener
    ) -> Session | None:
        """Return a session that has waited for such a message; None without one.

        It may be over, which shows only when it is used (`mxpolicy.routing.reuse`).
        """
        if self._idle is None:
            return None
        session = self._idle.take(candidate, approach)
        if session is not None:
            session.lend(listener)
            self._in_use[session] = self._egresses[candidate.egress]
        return session

    async def probe(
        self, candidate: Candidate, approach: Approach, listener: Listener
    ) -> Session:
        """Return what `open` does, to be given back at once: no mail goes over it."""
        socket, ended = candidate.key.socket, asyncio.Event()
        self._probes.setdefault(socket, []).append(ended)
        try:
            return await self.open(candidate, approach, listener, is_probe=True)
        finally:
            ended.set()
            self._probes[socket].remove(ended)
            if not self._probes[socket]:
                del self._probes[socket]

    async def open(
        self,
        candidate: Candidate,
        approach: Approach,
        listener: Listener,
        *,
        is_probe: bool = False,
    ) -> Session:
        """Return a new session with *candidate* that is ready for MAIL.

        When there is no place for one, here or at the host, our idle sessions make room,
        and then one that only waits for a late reply. A probe that has the host's place
        is waited for, unless it is itself.

        Args:
            approach: How it is reached; see `mxpolicy.delivery.connect` for what is
                tried after that.
            listener: Is told what happens, until the session is given back.

        Raises:
            SessionFailed: The host does not get us there.
            LocalTrouble: We do not get there.
        """
        egress = self._egresses[candidate.egress]
        ways = [self._end_idle, self._end_late]
        if not is_probe:
            ways.append(self._await_probes)
        session = await self._connect(egress, candidate, approach, listener, ways)
        self._in_use[session] = egress
        return session

    async def _connect(
        self,
        egress: Egress,
        candidate: Candidate,
        approach: Approach,
        listener: Listener,
        ways_to_room: Iterable[_Way],
    ) -> Session:
        ways = iter(ways_to_room)
        while True:
            try:
                with self._hurrying(candidate, listener) as told:
                    return await connect(egress, candidate, approach, told)
            except LocalTrouble:
                if not await _one_works(ways, None):
                    raise
            except SessionFailed as failed:
                is_turned_away = failed.finding.verdict in _TURNED_AWAY
                if not is_turned_away or not await _one_works(ways, candidate):
                    raise

    @contextmanager
    def _hurrying(self, candidate: Candidate, listener: Listener) -> Iterator[Listener]:
        """Let those that wait for a late reply make room while no greeting comes.

        Yields the listener that is to be told of the phases.
        """
        late = self._late
        if late is None:
            yield listener
            return
        loop = asyncio.get_running_loop()
        alarm: asyncio.TimerHandle

        def ring() -> None:
            nonlocal alarm
            late.end_oldest(candidate)
            alarm = loop.call_later(SILENT_FOR, ring)

        def entered(phase: Phase) -> None:
            if phase > Phase.GREETING:
                alarm.cancel()
            listener.entered(phase)

        alarm = loop.call_later(SILENT_FOR, ring)
        try:
            yield listener._replace(entered=entered)
        finally:
            alarm.cancel()

    async def _end_idle(self, candidate: Candidate | None) -> bool:
        """End those that wait for another message; return False where there are none.

        Args:
            candidate: Where; None is everywhere.
        """
        if self._idle is None:
            return False
        if candidate is None:
            return self._idle.close()
        return self._idle.close_at(candidate)

    async def _end_late(self, candidate: Candidate | None) -> bool:
        """The same for one that waits for a late reply."""
        return self._late is not None and await self._late.give_way(candidate)

    async def _await_probes(self, candidate: Candidate | None) -> bool:
        """Wait for the probes there are; return False where there are none."""
        if candidate is None or candidate.key.socket not in self._probes:
            return False
        for ended in [*self._probes[candidate.key.socket]]:
            await ended.wait()
        return True

    def give_back(self, session: Session, known_until: float = inf) -> None:
        """Take *session* back, also a broken one: its user has finished with it.

        Args:
            known_until: When it is no longer sure that such a message goes there, on
                the clock.
        """
        egress = self._in_use.pop(session, None)
        is_current = egress is self._egresses.get(session.candidate.egress)
        idle = self._idle if is_current and not self._is_stopped else None
        if idle is None or not idle.keep(session, known_until):
            session.quit()

    def was_over(self, session: Session) -> None:
        """*session* had waited for another message, and took none; not given back yet."""
        if self._idle is not None:
            self._idle.was_over(session.candidate)

    def stop(self) -> None:
        """Let no session wait any more. Those in use go on."""
        self._is_stopped = True
        if self._idle is not None:
            self._idle.close()


async def _one_works(
    ways: Iterator[_Way],
    candidate: Candidate | None,
) -> bool:
    """Make room in the first of *ways* that works; return False where none does."""
    for make_room in ways:
        if await make_room(candidate):
            return True
    return False
