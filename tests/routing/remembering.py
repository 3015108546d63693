"""Messages one after the other, or at the same time, in a world that changes.

`World` plays the part of `mxpolicy.delivery.consult`, `learner` and `probe`, and of the store for the pure
`mxpolicy.routing.reachability`, and lets each message run in a `Simulation`: the
same race, the same rules, a clock that is moved. A year takes a second.
"""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.leases import LENGTH as LEASE
from mxpolicy.options import MemoryOptions
from mxpolicy.routing.candidate import Finding, Phase, Verdict
from mxpolicy.routing.dialling import Dialling, Ready
from mxpolicy.routing.host_record import HostRecord, decode, encode
from mxpolicy.routing.known_hosts import advise
from mxpolicy.routing.race import Doubt, Drop, Start
from mxpolicy.routing.race_timing import Entrant
from mxpolicy.routing.reachability import (
    after_doubtful_probe,
    after_failure,
    after_ready,
    is_about_host,
)
from tests.routing.simulation import Host, Simulation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.race import Action

__all__ = ["DEFAULTS", "START", "Sent", "World"]

DEFAULTS = MemoryOptions()
START = 1_800_000_000.0

LOOK_AGAIN = 0.5
LONGEST_WAIT = 15.0


class Sent(NamedTuple):
    """What became of a message.

    Attributes:
        at: When it came.
        by: Who took it; None when it was deferred.
        took: Seconds.
        dialled: Whom it dialled, probes apart.
        probed: Whom it looked after beside that.
        outcome: ``delivered``, ``deferred``, ``bounced``, or ``fast`` when it was
            deferred at once.
    """

    at: float
    by: Candidate | None
    took: float
    dialled: tuple[Candidate, ...]
    probed: tuple[Candidate, ...]
    outcome: str


class _Watched(Simulation):
    """A race that teaches."""

    lessons: list[tuple[float, Candidate, Ready | Finding]]

    def run(self) -> _Watched:
        self.lessons = []
        self._diallings: dict[Candidate, Dialling] = {}
        super().run()
        self._overdue(self.now)
        return self

    def _learn(self, candidate: Candidate, lesson: Ready | Finding | None) -> None:
        if lesson is not None:
            self.lessons.append((self.now, candidate, lesson))

    def _overdue(self, now: float) -> None:
        for candidate, dialling in self._diallings.items():
            at = dialling.full_at()
            if at is not None and at <= now:
                finding = dialling.overdue(at)
                assert finding is not None
                self.lessons.append((at, candidate, finding))

    def _act(self, action: Action, now: float) -> None:
        self._overdue(now)
        match action:
            case Start(candidate):
                self._diallings[candidate] = Dialling(candidate, now)
            case Doubt(candidate, finding):
                self._learn(candidate, self._diallings[candidate].failed(finding))
            case Drop(candidate, finding):
                dialling = self._diallings.pop(candidate)
                if finding is not None:
                    self._learn(candidate, dialling.failed(finding))
            case _:
                pass
        super()._act(action, now)

    def _happens(self, candidate: Candidate, dialling: int, step: int) -> None:
        what = self.world[candidate].steps[step][1]
        self._overdue(self.now)
        watched = self._diallings[candidate]
        if isinstance(what, Phase):
            self._learn(candidate, watched.reached(what, self.now))
        elif isinstance(what, Verdict):
            finding = Finding(what, self._phase[candidate], self.now - watched.since)
            self._learn(candidate, watched.failed(finding))
            del self._diallings[candidate]
        super()._happens(candidate, dialling, step)


class World:
    """Hosts that come and go, and what is remembered of them.

    Args:
        candidates: In the order of preference.
        hosts: What a candidate does when it is dialled at a time.
        linger: How long a probe may go on after its message is settled: 45 s in a
            daemon, 3 s in a process of its own.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        hosts: Callable[[Candidate, float], Host],
        *,
        options: MemoryOptions = DEFAULTS,
        linger: float = 45.0,
        seed: int = 1,
    ) -> None:
        self.candidates = tuple(candidates)
        self.hosts = hosts
        self.options = options
        self.linger = linger
        self.skew = 0.0  # what the wall clock is wrong by
        self.dialled: list[tuple[float, Candidate]] = []
        self._random = random.Random(seed)
        self._kept: dict[Candidate, bytes] = {}
        self._leases: dict[Candidate, float] = {}
        # (when, in which order, candidate, lesson): not yet learned
        self._coming: list[
            tuple[float, int, Candidate, Callable[[HostRecord], HostRecord]]
        ]
        self._coming = []
        self._serial = 0

    def record(self, candidate: Candidate) -> HostRecord:
        """Return what is remembered."""
        return decode(self._kept.get(candidate))

    def send(self, at: float) -> Sent:
        """Send a message at *at*, and follow it to its end."""
        return self.send_all([at])[0]

    def send_all(self, times: Sequence[float]) -> list[Sent]:
        """Send a message at each of *times*; they wait for each other as they do."""
        ends: dict[int, Sent] = {}
        looks = [(at, number) for number, at in enumerate(times)]
        heapq.heapify(looks)
        while looks:
            now, number = heapq.heappop(looks)
            self._catch_up(now)
            sent = self._look(times[number], now)
            if sent is None:
                heapq.heappush(looks, (now + LOOK_AGAIN, number))
            else:
                ends[number] = sent
        return [ends[number] for number in range(len(times))]

    def _look(self, at: float, now: float) -> Sent | None:
        """Do what is best for a message of *at* at *now*; None to wait for others."""
        known = {one: self.record(one) for one in self.candidates}
        advice = advise(self.candidates, known, {}, now + self.skew, self.options)
        if advice.is_hopeless:
            return Sent(at, None, now - at, (), (), "fast")
        probed = []
        if advice.has_other:
            probed = [one for one in advice.due if self._lease(one, now)]
        elif not self._lease_all(now) and now - at < LONGEST_WAIT:
            return None
        sent = self._race(now, advice.order, probed)
        return sent._replace(at=at, took=sent.took + now - at)

    def _race(
        self, at: float, order: Sequence[Candidate], probed: Sequence[Candidate]
    ) -> Sent:
        known = {one: self.record(one) for one in order}
        entrants = [
            Entrant(one, known[one].connect_time, known[one].greeting_latency)
            for one in order
        ]
        world = {one: self.hosts(one, at) for one in order}
        race = _Watched(world, start=at, deadline=at + 900, entrants=entrants)
        race.run()
        for when, candidate, lesson in race.lessons:
            self._teach(when, candidate, lesson)
        self.dialled += [(at, one) for one in (*race.started, *probed)]
        for candidate in probed:
            self._probe(candidate, at, race.now + self.linger)
        taken = race.taken[-1] if race.outcome == "delivered" else None
        return Sent(
            at, taken, race.now - at, tuple(race.started), tuple(probed), race.outcome
        )

    def _probe(self, candidate: Candidate, at: float, until: float) -> None:
        dialling, now = Dialling(candidate, at), at
        for seconds, what in self.hosts(candidate, at).steps:
            full_at = dialling.full_at()
            if full_at is not None and full_at < min(now + seconds, until):
                break
            if now + seconds > until:
                break
            now += seconds
            if isinstance(what, Phase):
                if ready := dialling.reached(what, now):
                    self._teach(now, candidate, ready)
                    return
            elif what is not None:
                finding = Finding(what, dialling.phase, now - dialling.since)
                self._teach(now, candidate, finding)
                return
        full_at = dialling.full_at()
        assert full_at is not None
        if full_at <= until:
            overdue = dialling.overdue(full_at)
            assert overdue is not None
            self._teach(full_at, candidate, overdue)
            return
        phase, waited = dialling.phase, until - dialling.since
        self._later(
            until,
            candidate,
            lambda record: after_doubtful_probe(
                record, phase, waited, until + self.skew, self.options
            ),
        )

    def _teach(self, at: float, candidate: Candidate, lesson: Ready | Finding) -> None:
        now = at + self.skew

        def learn(record: HostRecord) -> HostRecord:
            if isinstance(lesson, Ready):
                return after_ready(record, now, *lesson)
            if not is_about_host(lesson):
                return record
            return after_failure(
                record, lesson, now, self.options, self._random.random()
            )

        self._later(at, candidate, learn)

    def _later(
        self, at: float, candidate: Candidate, learn: Callable[[HostRecord], HostRecord]
    ) -> None:
        self._serial += 1
        heapq.heappush(self._coming, (at, self._serial, candidate, learn))

    def _catch_up(self, now: float) -> None:
        while self._coming and self._coming[0][0] <= now:
            _, _, candidate, learn = heapq.heappop(self._coming)
            before = self.record(candidate)
            after = learn(before)
            if after != before:
                self._leases.pop(candidate, None)
            self._kept[candidate] = encode(after)

    def _lease_all(self, at: float) -> bool:
        free = [at - self._leases.get(one, -LEASE) >= LEASE for one in self.candidates]
        return all(free) and all(self._lease(one, at) for one in self.candidates)

    def _lease(self, candidate: Candidate, at: float) -> bool:
        if at - self._leases.get(candidate, -LEASE) < LEASE:
            return False
        self._leases[candidate] = at
        return True
