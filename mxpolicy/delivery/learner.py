"""Learns from the events of a message what is remembered of hosts.

`mxpolicy.routing.dialling` says what an event shows, and `mxpolicy.routing.reachability`
how a record changes by it. No delivery waits for the writing.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.delivery import events
from mxpolicy.delivery.host_memory import host_key, nexthop_key
from mxpolicy.delivery.writer import Writer
from mxpolicy.outcome import Delivered
from mxpolicy.routing.dialling import Dialling, Ready
from mxpolicy.routing.host_record import HostRecord
from mxpolicy.routing.reachability import (
    TURNED_AWAY,
    after_doubtful_probe,
    after_failure,
    after_ready,
    after_reuse,
    is_about_host,
    is_about_nexthop,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mxpolicy.delivery.host_memory import HostMemory
    from mxpolicy.delivery.trace import Trace
    from mxpolicy.routing.broken_tls import BrokenTls
    from mxpolicy.routing.candidate import Candidate, Finding

    Change = Callable[[HostRecord], HostRecord]

__all__ = ["Learner"]


class Learner:
    """Learns from one message to one nexthop.

    Give every event to `learn`, and call `finish` in the end, whatever has happened.

    Args:
        memory: Where it is kept.
        trace: The message's.
        chance: Returns 0 to 1, another number each time.
        aim: The nexthop's one spelling; some records are for mail to it only.
        message_id: Names the message, the same when it is tried again.
        of_tls: What was known of broken STARTTLS when the message began.
    """

    def __init__(
        self,
        memory: HostMemory,
        trace: Trace,
        chance: Callable[[], float],
        aim: str,
        message_id: str,
        of_tls: Mapping[Candidate, BrokenTls],
    ) -> None:
        self._memory = memory
        self._trace = trace
        self._chance = chance
        self._aim = aim
        self._message_id = message_id
        self._of_tls = of_tls
        self._diallings: dict[Candidate, Dialling] = {}
        self._alarms: dict[Candidate, asyncio.TimerHandle] = {}
        self._taken: set[Candidate] = set()
        self._reused: set[Candidate] = set()  # by an earlier message's session
        self._in_clear: set[Candidate] = set()  # because TLS had failed
        self._writer = Writer(trace.trouble)
        self._unwritten = 0  # changes of records
        self._all_written: asyncio.Future[None] | None = None

    def learn(self, event: events.Event) -> None:
        """Learn from what happens; never waits."""
        match event:
            case events.CandidateStarted(at, candidate):
                self._reused.discard(candidate)
                self._diallings[candidate] = Dialling(candidate, at)
                self._watch(candidate)
            case events.PhaseReached(at, candidate, phase):
                if dialling := self._diallings.get(candidate):
                    self.found(candidate, dialling.reached(phase, at))
                    self._watch(candidate)
            case events.CandidateDoubted(_, candidate, finding):
                self._failed(candidate, finding)
            case events.CandidateFailed(_, candidate, finding):
                self._failed(candidate, finding)
                self._forget(candidate)
            case events.CandidateDropped(_, candidate, _):
                self._forget(candidate)
            case events.SessionReused(_, candidate):
                self._reused.add(candidate)
                self._forget(candidate)
            case events.CandidateTaken(_, candidate):
                self._taken.add(candidate)
            case events.WorkedAround():
                self._worked_around(event)
            case events.Secured(_, candidate) if candidate not in self._reused:
                self.secured(candidate)
            case events.TlsWanted(_, candidate):
                self._in_clear.discard(candidate)
                self._forget_broken_tls(candidate)
            case events.RecipientSettled(_, _, Delivered(relay=relay)):
                self._delivered(relay)
            case _:
                pass

    # -- one dialling -------------------------------------------------------

    def found(self, candidate: Candidate, found: Ready | Finding | None) -> None:
        """Remember what a dialling of *candidate* has shown; None is nothing new."""
        if isinstance(found, Ready):
            self._ready(candidate, found)
        elif found is not None and is_about_host(found):
            self._change(host_key(candidate), self._failure(candidate, found))
        elif found is not None and is_about_nexthop(found):
            self._change(
                nexthop_key(self._aim, candidate), self._failure(candidate, found)
            )

    def secured(self, candidate: Candidate) -> None:
        """Remember that TLS works at *candidate*."""
        self._in_clear.discard(candidate)
        if candidate in self._of_tls:
            self._forget_broken_tls(candidate)

    def probe_was_cut(self, dialling: Dialling) -> None:
        """Remember how far a probe came that was ended without a result."""
        now, phase = self._memory.utc(), dialling.phase
        waited = self._trace.now() - dialling.since
        options = self._memory.options
        self._change(
            host_key(dialling.candidate),
            lambda record: after_doubtful_probe(record, phase, waited, now, options),
        )

    def _failed(self, candidate: Candidate, finding: Finding) -> None:
        dialling = self._diallings.get(candidate)
        self.found(candidate, dialling.failed(finding) if dialling else finding)

    def _ready(self, candidate: Candidate, ready: Ready) -> None:
        now = self._memory.utc()
        self._change(
            host_key(candidate),
            lambda record: after_ready(
                record._replace(name=candidate.host), now, *ready
            ),
        )

    def _failure(self, candidate: Candidate, finding: Finding) -> Change:
        now, options = self._memory.utc(), self._memory.options
        chance, message_id = self._chance(), self._message_id
        if finding.verdict in TURNED_AWAY and self._memory.is_reached(candidate):
            finding = finding._replace(full=False)

        def fail(record: HostRecord) -> HostRecord:
            named = record._replace(name=candidate.host)
            return after_failure(named, finding, now, options, chance, message_id)

        return fail

    # -- full verdicts, written at the moment that they are due --------------

    def _watch(self, candidate: Candidate) -> None:
        self._set_alarm(candidate, self._diallings[candidate].full_at())

    def _forget(self, candidate: Candidate) -> None:
        self._diallings.pop(candidate, None)
        self._set_alarm(candidate, None)

    def _set_alarm(self, candidate: Candidate, at: float | None) -> None:
        if alarm := self._alarms.pop(candidate, None):
            alarm.cancel()
        if at is not None:
            loop = asyncio.get_running_loop()
            delay = max(0.0, at - self._trace.now())
            self._alarms[candidate] = loop.call_later(delay, self._ring, candidate)

    def _ring(self, candidate: Candidate) -> None:
        if dialling := self._diallings.get(candidate):
            self.found(candidate, dialling.overdue(self._trace.now()))

    # -- approaches that worked, and messages that were taken -----------------

    def _worked_around(self, event: events.WorkedAround) -> None:
        if event.in_clear:
            self._in_clear.add(event.candidate)
        if not event.small_segments:
            return
        now = self._memory.utc()

        def note(record: HostRecord) -> HostRecord:
            if record.needs_small_segments(now):
                return record
            return record._replace(small_segments=now)

        self._change(host_key(event.candidate), note)

    def _delivered(self, relay: str) -> None:
        """Learn from a delivered recipient: the host works."""
        for candidate in self._taken:
            if str(candidate.key) != relay:
                continue
            key = nexthop_key(self._aim, candidate)
            if candidate in self._reused:
                now = self._memory.utc()
                change = partial(_after_reuse, now=now)
                self._change(host_key(candidate), change)
                self._change(key, after_reuse)
            else:
                self._ready(candidate, Ready())
                self._change(key, HostRecord.cleared)
            if candidate in self._in_clear:
                note, message_id = self._memory.note_broken_tls, self._message_id
                self._writer.do_later(partial(note, candidate, message_id))

    # -- writing ----------------------------------------------------------------

    def _change(self, key: str, change: Change) -> None:
        if self._memory.records.change(
            key, change, self._trace.trouble, self._count_down
        ):
            self._unwritten += 1

    def _count_down(self) -> None:
        self._unwritten -= 1
        if not self._unwritten and self._all_written is not None:
            self._all_written.set_result(None)

    def _forget_broken_tls(self, candidate: Candidate) -> None:
        self._writer.do_later(partial(self._memory.forget_broken_tls, candidate))

    async def finish(self) -> None:
        """Return when everything is written."""
        for candidate in list(self._alarms):
            self._forget(candidate)
        await self._writer.wait()
        if self._unwritten:
            self._all_written = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._all_written])
            self._all_written = None


def _after_reuse(record: HostRecord, now: float) -> HostRecord:
    return after_reuse(record)._replace(last_ready=now)
