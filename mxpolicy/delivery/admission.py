"""Admission: which deliveries go on now, and which are put off.

The shell of `mxpolicy.routing.places`, which decides. While a delivery runs it has a row
in the store: its owner, its destination, and the host that it waits for. The row is
removed at the end. The row of a process that was killed does not count. Other machines
and other containers have places of their own.

A quiet machine pays one row, two looks and one removal for each message. Nothing here
makes a delivery fail: without a store that works, there is no limit.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery import events, own_outcomes
from mxpolicy.delivery.owner import Owner, is_alive
from mxpolicy.delivery.writer import Writer
from mxpolicy.routing.candidate import Phase
from mxpolicy.routing.places import (
    Lately,
    OverLimit,
    Place,
    Progress,
    Undecided,
    check_limits,
    first_hosts,
    host_aim,
    is_tight,
)
from mxpolicy.state.store import HEAVY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from mxpolicy.outcome import Deferred
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.state.store import Store

__all__ = ["Admission", "Stay"]

# What keys begin with: a place that is taken; how an aim was lately.
PLACE = "place "
LATELY = "lately "

# Seconds for which an aim counts as limited: where deliveries waited for it, and where
# that was not clear yet.
LIMITED_FOR = 600.0
UNDECIDED_FOR = 10.0
# Seconds for which an aim that takes mail counts as well: few, because it may stop in
# the middle of a burst.
WELL_FOR = 10.0
# Seconds past the deadline that a row is kept: the final dot may still be unanswered.
SLACK = 900.0
# Seconds between two looks at the places that are taken.
LOOK_AGAIN = 0.25


class Admission:
    """The places of a machine, which its deliveries share.

    Args:
        store: Never raises; see `mxpolicy.state.fallback`.
        processes: How many places there are; 0 is no limit, and then nothing is written.
        utc: Seconds since the epoch.
        lives: Whether the owner of a row is still at work.
    """

    def __init__(
        self,
        store: Store,
        processes: int,
        *,
        utc: Callable[[], float] = time.time,
        lives: Callable[[Owner], bool] = is_alive,
    ) -> None:
        self.store = store
        self.processes = processes
        self.utc = utc
        self._numbers = count(1)
        self._lives = lives

    async def places(self, me: Owner) -> list[Place]:
        """Return the places of this machine that others than *me* have taken.

        While there is room for all, places of the dead may be among them: they do no
        harm then.
        """
        rows = [
            row
            for stored in await self.store.scan(PLACE)
            if (row := _PlaceRow.decode(stored.key, stored.value))
            and _is_neighbour(row.owner, me)
        ]
        if is_tight(len({row.place.holder for row in rows}), self.processes):
            rows = [row for row in rows if await self._is_there(row)]
        return [row.place for row in rows]

    def row_key(self, owner: Owner) -> str:
        """Return the key of a new row: a delivery may go several ways at once."""
        number = next(self._numbers)
        return f"{PLACE}{owner.namespace} {owner.pid} {owner.call} {number}"

    async def _is_there(self, row: _PlaceRow) -> bool:
        if self._lives(row.owner):
            return True
        await self.store.delete(row.key)
        return False

    async def lately(self, aims: Collection[str]) -> dict[str, Lately]:
        """Return how *aims* were lately, as far as it is known."""
        rows = await self.store.get_many([LATELY + aim for aim in aims])
        found = {key: self._parsed(value) for key, value in rows.items()}
        return {key.removeprefix(LATELY): one for key, one in found.items() if one}

    def _parsed(self, value: bytes) -> Lately | None:
        try:
            word, until = value.decode("ascii").split(" ")
            what, left = Lately(word), float(until) - self.utc()
        except ValueError:
            return None
        # More is left than is ever given only where the clock was set back.
        longest = LIMITED_FOR if what is Lately.LIMITED else WELL_FOR
        return what if 0 < left <= longest else None

    async def note(self, aim: str, what: Lately, seconds: float) -> None:
        """Let *aim* count as *what* for so many seconds."""
        until = self.utc() + seconds
        value = f"{what.value} {until:.3f}".encode("ascii")
        await self.store.put(LATELY + aim, value, until, weight=HEAVY)

    async def went_through(self, aims: Collection[str], is_busy: bool) -> None:
        """Note that mail goes through, where that may help another delivery.

        Args:
            aims: Where it goes through.
            is_busy: Whether many places are taken.
        """
        known = await self.lately(aims)
        for aim in aims:
            if known.get(aim) is Lately.LIMITED or (is_busy and aim not in known):
                await self.note(aim, Lately.WELL, WELL_FOR)


class Stay:
    """The place of one delivery, from its begin to its end.

    Call `enter` first, and `dial` before any host is dialled. Give every event to
    `learn`. In the end call `leave`, whatever has happened.

    Args:
        admission: The engine's.
        me: The delivery.
        aim: The one spelling of the nexthop.
        clock: Seconds, as events have them.
        until: When the delivery is over at the latest, on *clock*.
        tell: Given what goes wrong in the background: a bug of ours.
        needs_place: Whether a process of the mail server waits for the delivery.
    """

    def __init__(
        self,
        admission: Admission,
        me: Owner,
        aim: str,
        clock: Callable[[], float],
        until: float,
        tell: Callable[[Exception], None],
        *,
        needs_place: bool = True,
    ) -> None:
        self._needs_place = needs_place
        self._admission = admission
        self._aim = aim
        self._hosts: list[str] = []
        self._clock = clock
        self._until = until
        self._expires = admission.utc() + until - clock() + SLACK
        self._began = admission.utc()
        self._me = me
        self._key = ""  # of our row
        self._has_place = False
        self._progress = Progress(clock())
        self._is_waiting = False
        self._has_waited = False
        self._met: set[str] = set()  # hosts that were ready
        self._was_tight = False
        self._has_looked = False  # long enough at places that may be waiting
        self._alarm: asyncio.TimerHandle | None = None
        self._is_outdated = False
        self._writer = Writer(tell)

    # -- before the delivery --------------------------------------------------

    async def enter(self) -> Deferred | None:
        """Take a place, where one is needed; return why there is none.

        May be called twice.
        """
        is_needed = self._needs_place and self._admission.processes > 0
        if not is_needed or self._has_place:
            return None
        refusal = await self._refusal([self._aim])
        if refusal is not None:
            return refusal
        self._key = self._admission.row_key(self._me)
        self._has_place = True
        await self._put()
        self._progress = Progress(self._clock())
        self._watch()
        return None

    async def dial(self, candidates: Sequence[Candidate]) -> Deferred | None:
        """Return why *candidates* may not be dialled now, None when they may.

        It looks again only where few places were left a moment ago.
        """
        if not self._has_place:
            return None
        self._hosts = first_hosts(candidates)
        if not self._was_tight:
            return None
        self._silence()  # this wait is no host's fault
        refusal = await self._refusal(self._hosts)
        if refusal is None:
            await self._put()
            self.planned()
        return refusal

    async def _refusal(self, aims: Sequence[str]) -> Deferred | None:
        """Return why we may not go on; wait where that is not clear yet."""
        came = self._clock()
        most = (self._until - came) / 3
        while True:
            said = await self._look(aims)
            if isinstance(said, OverLimit):
                return await self._turned_away(
                    said, LIMITED_FOR if said.was_seen else 0
                )
            if said is None or self._has_looked:
                return None
            self._has_looked = self._clock() >= came + min(said.patience, most)
            if self._has_looked and said.otherwise is not None:
                return await self._turned_away(said.otherwise, UNDECIDED_FOR)
            if not self._has_looked:
                await asyncio.sleep(LOOK_AGAIN)

    async def _turned_away(self, over: OverLimit, seconds: float) -> Deferred:
        """Return why, and let deliveries of the next *seconds* know it at once."""
        if seconds:
            await self._admission.note(over.aim, Lately.LIMITED, seconds)
        return own_outcomes.no_place(over, self._admission.utc())

    async def _look(self, aims: Sequence[str]) -> OverLimit | Undecided | None:
        admission = self._admission
        places = await admission.places(self._me)
        taken = len({one.holder for one in places})
        self._was_tight = self._was_tight or 2 * taken >= admission.processes
        lately: dict[str, Lately] = {}
        if is_tight(taken, admission.processes):
            lately = await admission.lately(aims)
        return check_limits(places, aims, admission.processes, admission.utc(), lately)

    # -- while it goes on -----------------------------------------------------

    def planned(self) -> None:
        """The candidates are known."""
        self._progress.planned(self._clock())
        if self._has_place:
            self._watch()

    def learn(self, event: events.Event) -> None:
        """Note what happens; never waits."""
        if not self._has_place:
            return
        match event:
            case events.CandidateStarted(at, candidate):
                self._progress.started(candidate, at)
            case events.PhaseReached(at, candidate, phase):
                if phase >= Phase.READY:
                    self._met.add(host_aim(candidate))
                self._progress.went_on(candidate, at, phase)
            case events.CandidateTaken(at, candidate) | events.Progressed(
                at, candidate
            ):
                self._progress.went_on(candidate, at, Phase.TRANSACTION)
            case events.CandidateFailed(_, candidate) | events.CandidateDropped(
                _, candidate
            ):
                self._progress.ended(candidate)
            case _:
                return
        self._watch()

    def _watch(self) -> None:
        """Let other deliveries know when we begin, or cease, to wait."""
        due = self._progress.waits_from - self._clock()
        if self._is_waiting != (due <= 0):
            self._is_waiting = due <= 0
            self._has_waited = self._has_waited or self._is_waiting
            self._write()
        self._silence()
        if due > 0:
            self._alarm = asyncio.get_running_loop().call_later(due, self._watch)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _write(self) -> None:
        """Bring our row up to date, without waiting for it."""
        if not self._is_outdated:
            self._is_outdated = True
            self._writer.do_later(self._write_if_outdated)

    async def _write_if_outdated(self) -> None:
        if self._is_outdated:
            self._is_outdated = False
            await self._put()

    async def _put(self) -> None:
        row = _PlaceRow(self._key, self._me, self._own_place())
        # Heavy: it ends before all else, and would be the first to go from a full store.
        store = self._admission.store
        await store.put(row.key, row.encode(), self._expires, weight=HEAVY)

    def _own_place(self) -> Place:
        holder, progress = _holder(self._me), self._progress
        if not self._is_waiting:
            aims = frozenset((self._aim, *self._hosts))
            return Place(holder, aims, self._began)
        aims = frozenset((self._aim, *(progress.hosts or self._hosts)))
        waited = self._clock() - progress.since
        since = self._admission.utc() - waited
        return Place(holder, aims, since, progress.waits_for)

    # -- the end ----------------------------------------------------------------

    async def leave(self) -> None:
        """Give the place back."""
        if not self._has_place:
            return
        self._has_place = self._is_outdated = False  # nothing more is written
        self._silence()
        await self._writer.wait()
        await self._admission.store.delete(self._key)
        if self._met and not self._has_waited:
            aims = (self._aim, *sorted(self._met))
            await self._admission.went_through(aims, self._was_tight)


class _PlaceRow(NamedTuple):
    """A place as the store has it."""

    key: str
    owner: Owner
    place: Place

    def encode(self) -> bytes:
        """Return the value: one line."""
        place = self.place
        aims = " ".join(sorted(place.aims))
        words = (*self.owner, aims, f"{place.since:.3f}", place.waits_for)
        return "\t".join(map(str, words)).encode("ascii", "replace")

    @classmethod
    def decode(cls, key: str, value: bytes) -> _PlaceRow | None:
        """Return what `encode` made, None for anything else."""
        try:
            *words, aims, since, waits_for = value.decode("ascii").split("\t")
            owner = Owner.parse(words)
            those = frozenset(aims.split(" "))
            return cls(
                key, owner, Place(_holder(owner), those, float(since), waits_for)
            )
        except ValueError:
            return None


def _holder(owner: Owner) -> str:
    return f"{owner.pid} {owner.started} {owner.call}"


def _is_neighbour(owner: Owner, me: Owner) -> bool:
    """Return whether it is another delivery of this mail server.

    Another machine, or container, that shares the store has places of its own. Where
    processes cannot be told from each other, there is no limit.
    """
    here = (me.machine, me.boot, me.namespace)
    return (
        bool(me.boot)
        and (owner.machine, owner.boot, owner.namespace) == here
        and owner != me
    )
