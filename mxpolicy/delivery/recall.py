"""The memory at work: read before an attempt, written as it goes, probes beside it.

The shell of `mxpolicy.routing.reachability` (hosts), `mxpolicy.routing.broken_tls`
(STARTTLS) and `mxpolicy.routing.dialling` (what is learned on the way), which decide
everything. A `Memory` is the engine's; a `Visit` is one attempt's.

Mail is delayed by the store's own bound, and where no other host is left by
`LONGEST_WAIT`, for another message's probe. Only `Advised.refusal` settles anything: all
hosts failed a moment ago. Whatever goes wrong here is told, and nothing is remembered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery import events, trouble
from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.dialogue import Listener, SessionFailed
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Deferred, Delivered
from mxpolicy.reply import printable
from mxpolicy.routing import broken_tls
from mxpolicy.routing.broken_tls import BrokenTls, after_taking_in_clear
from mxpolicy.routing.candidate import Candidate, Finding, Phase
from mxpolicy.routing.dialling import Dialling, Ready
from mxpolicy.routing.host_record import (
    KEPT,
    NOTHING,
    SKEW,
    HostRecord,
    decode,
    encode,
    is_news,
)
from mxpolicy.routing.known_hosts import KnownHosts, advise
from mxpolicy.routing.reachability import (
    after_doubtful_probe,
    after_failure,
    after_ready,
    is_about_host,
    is_about_nexthop,
)
from mxpolicy.routing.tls_requirement import tls_requirement
from mxpolicy.state.store import HEAVY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.trace import Trace
    from mxpolicy.options import MemoryOptions
    from mxpolicy.outcome import Outcome
    from mxpolicy.state.store import Store

    Change = Callable[[HostRecord], HostRecord]

__all__ = [
    "HOST",
    "LINGER",
    "TLS",
    "Memory",
    "Visit",
    "hopeless",
    "host_key",
    "nexthop_key",
    "tls_key",
]

# What keys begin with: knowledge of a candidate, the same for one nexthop, broken TLS at
# a host of a name, a lease.
HOST = "host "
NEXTHOP = "nexthop "
TLS = "tls "
LEASED = "lease "

# Seconds that a process of its own goes on for a probe after its message is settled.
LINGER = 3.0

# Seconds that a message without any other host waits for another one's probe, less up
# to a fifth by chance: those that began to wait together do not dial together. And
# between two looks at what has come of the probe.
LONGEST_WAIT = 15.0
LOOK_AGAIN = 0.25

# Probes beside one message: a domain may have a hundred addresses that are due.
MAX_PROBES = 4

# Seconds for which the holder of a lease is not disturbed. A probe takes 45 at most;
# the lease of a process that has died passes on after this time.
LEASE = 60.0

# Others may write the same row at the same time; one of them wins each time.
MAX_TRIES = 4

_MAX_NEXTHOP = 255


def host_key(candidate: Candidate) -> str:
    """Return the key of what is remembered of *candidate*.

    Without the host's name: thousands of domains have names of their own for the
    same few addresses.
    """
    return f"{HOST}{candidate.egress} {candidate.address} {candidate.port}"


def nexthop_key(nexthop: str, candidate: Candidate) -> str:
    """Return the key of what is remembered of *candidate* for mail to *nexthop* only."""
    return f"{NEXTHOP}{printable(nexthop.lower(), _MAX_NEXTHOP)} {host_key(candidate)}"


def tls_key(candidate: Candidate) -> str:
    """Return the key of what is remembered of STARTTLS at *candidate*, by its name."""
    return f"{TLS}{candidate.host} {host_key(candidate)}"


class Advised(NamedTuple):
    """What is to be done with a plan.

    Attributes:
        candidates: In the order of asking.
        known: For the attempt.
        refusal: The outcome of every recipient; then nobody is dialled.
        tried: With a refusal: one printable text for each candidate.
    """

    candidates: tuple[Candidate, ...]
    known: KnownHosts
    refusal: Deferred | None = None
    tried: tuple[str, ...] = ()


class Memory:
    """What the engine remembers.

    Args:
        store: Where it is kept; no method of it may raise (`FallbackStore`).
        options: The pauses.
        utc: Seconds, as `time.time`.
        chance: 0 to 1, as `random.random`.
        linger: Seconds for which probes may go on after their message is settled.
    """

    def __init__(
        self,
        store: Store,
        options: MemoryOptions,
        *,
        utc: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        linger: float = LINGER,
    ) -> None:
        self.store = store
        self.options = options
        self.utc = utc
        self.chance = chance
        self.linger = linger

    async def records(
        self, keys: Mapping[Candidate, str]
    ) -> dict[Candidate, HostRecord]:
        """Return what is remembered, by candidate; those not in it are unknown."""
        values = await self._values(keys)
        return {candidate: decode(value) for candidate, value in values.items()}

    async def broken_tls(
        self, candidates: Sequence[Candidate]
    ) -> dict[Candidate, BrokenTls]:
        """Return what is known of broken STARTTLS, by candidate."""
        values = await self._values({one: tls_key(one) for one in candidates})
        known = {one: broken_tls.decode(value) for one, value in values.items()}
        return {one: found for one, found in known.items() if found is not None}

    async def _values(self, keys: Mapping[Candidate, str]) -> dict[Candidate, bytes]:
        values = await asyncio.gather(*(self.store.get(key) for key in keys.values()))
        return {
            candidate: value
            for candidate, value in zip(keys, values, strict=True)
            if value is not None
        }

    async def advise(self, nexthop: str, candidates: Sequence[Candidate]) -> KnownHosts:
        """Return what is remembered of *candidates* for mail to *nexthop*, by now."""
        of_host = await self.records({one: host_key(one) for one in candidates})
        of_nexthop = await self.records(
            {one: nexthop_key(nexthop, one) for one in candidates}
        )
        of_tls = await self.broken_tls(candidates)
        now = self.utc()
        return advise(candidates, of_host, of_nexthop, now, self.options, of_tls)

    async def change(self, key: str, change: Change) -> None:
        """Replace what is remembered by what *change* makes of it."""
        for _ in range(MAX_TRIES):
            old = await self.store.get(key)
            before = decode(old)
            after = change(before)
            if not is_news(before, after):
                return
            expires = self.utc() + KEPT
            if old is None:
                done = await self.store.add(key, encode(after), expires)
            else:
                done = await self.store.replace(key, old, encode(after), expires)
            if done:
                return

    async def note_broken_tls(self, candidate: Candidate, message_id: str) -> None:
        """Remember that a message was taken in clear after TLS had failed."""
        key, now = tls_key(candidate), self.utc()
        known = broken_tls.decode(await self.store.get(key))
        after = after_taking_in_clear(known, message_id, now)
        # Of two writes at the same time one is lost: so a proof may come one message later.
        await self.store.put(key, broken_tls.encode(after), now + broken_tls.KEPT)

    async def forget_broken_tls(self, candidate: Candidate) -> None:
        """Forget it: TLS works there, or is wanted."""
        await self.store.delete(tls_key(candidate))

    async def lease(self, key: str) -> bool:
        """Get the lease of *key*; False when somebody else has it."""
        now = self.utc()
        value = b"%.3f" % now
        # Heavy: it ends before all else, and would be the first to go from a full store.
        if await self.store.add(LEASED + key, value, now + LEASE, weight=HEAVY):
            return True
        held = await self.store.get(LEASED + key)
        # The clock was set back: the store would keep it until that time comes again.
        return (
            held is not None
            and is_lease_stale(held, now)
            and await self.store.replace(
                LEASED + key, held, value, now + LEASE, weight=HEAVY
            )
        )

    async def release(self, key: str) -> None:
        """Give the lease of *key* back."""
        await self.store.delete(LEASED + key)


class Visit:
    """One attempt's use of the memory.

    Call `consult` first, then `probe`, tell everything to `learn` and `settled`,
    and in the end, whatever has happened, `finish`.

    Args:
        memory: The engine's.
        context: The engine's.
        trace: The message's; told of our own trouble.
        nexthop: Whose verdicts of its own are kept.
        message_id: Names the message.
    """

    def __init__(
        self,
        memory: Memory,
        context: Context,
        trace: Trace,
        nexthop: str,
        message_id: str,
    ) -> None:
        self._memory = memory
        self._context = context
        self._trace = trace
        self._now = trace.now
        self._nexthop = nexthop
        self._message_id = message_id
        self._due: list[Candidate] = []
        self._leased: list[str] = []
        self._diallings: dict[Candidate, Dialling] = {}
        self._alarms: dict[Candidate, asyncio.TimerHandle] = {}
        self._taken: set[Candidate] = set()
        self._of_tls: Mapping[Candidate, BrokenTls] = {}
        self._in_clear: set[Candidate] = set()  # as TLS had failed in this attempt
        self._queue: deque[Callable[[], Awaitable[None]]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._probes: set[asyncio.Task[None]] = set()

    # -- before the attempt -------------------------------------------------

    async def consult(
        self, candidates: Sequence[Candidate], deadline: float
    ) -> Advised:
        """Return in which order *candidates* are asked, or why none is.

        When all have failed, one message probes them with its own delivery. The
        others wait for what it finds, `LONGEST_WAIT` at most and not until
        *deadline*, in the message's time. Then each dials for itself, like any sender that
        remembers nothing: whoever probes may be slow, or dead. A wait never ends
        in a deferral, unless a new full verdict was written of every candidate.
        """
        until = min(self._now() + self._wait(), deadline - LONGEST_WAIT)
        while True:
            known = await self._advise(candidates)
            advised = Advised(known.order, known)
            if known.has_other or not self._defers_fast:
                if known.has_other:
                    self._due = await self._lease_some(known.due)
                return advised
            if known.is_hopeless:
                return self._hopeless(known, advised)
            if await self._lease_all(candidates):
                known = await self._advise(candidates)
                if not known.is_hopeless:
                    return advised
                await self._release_all()
                return self._hopeless(known, advised)
            if self._now() >= until:
                return advised
            await asyncio.sleep(LOOK_AGAIN)

    def _wait(self) -> float:
        return LONGEST_WAIT * (1 - self._memory.chance() / 5)

    @property
    def _defers_fast(self) -> bool:
        return self._memory.options.fast_deferral

    async def _advise(self, candidates: Sequence[Candidate]) -> KnownHosts:
        known = await self._memory.advise(self._nexthop, candidates)
        self._of_tls = known.of_tls
        return known

    def _hopeless(self, known: KnownHosts, advised: Advised) -> Advised:
        refusal, tried = hopeless(advised.candidates, known.of_host, known.at)
        return advised._replace(refusal=refusal, tried=tried)

    async def _lease_some(self, due: Sequence[Candidate]) -> list[Candidate]:
        leased = []
        for candidate in due[:MAX_PROBES]:
            if await self._memory.lease(host_key(candidate)):
                self._leased.append(host_key(candidate))
                leased.append(candidate)
        return leased

    async def _lease_all(self, candidates: Sequence[Candidate]) -> bool:
        """Get the leases of all, or none.

        In the order of their keys: of two messages with some candidates in common
        one gets ahead.
        """
        for key in sorted({host_key(one) for one in candidates}):
            if not await self._memory.lease(key):
                await self._release_all()
                return False
            self._leased.append(key)
        return True

    async def _release_all(self) -> None:
        while self._leased:
            await self._memory.release(self._leased.pop())

    # -- while it goes on ---------------------------------------------------

    def learn(self, event: events.Event) -> None:
        """Learn from what happens; never waits."""
        match event:
            case events.CandidateStarted(at, candidate):
                self._diallings[candidate] = Dialling(candidate, at)
                self._watch(candidate)
            case events.PhaseReached(at, candidate, phase):
                if dialling := self._diallings.get(candidate):
                    self._learn(candidate, dialling.reached(phase, at))
                    self._watch(candidate)
            case events.CandidateDoubted(_, candidate, finding):
                self._failed(candidate, finding)
            case events.CandidateFailed(_, candidate, finding):
                self._failed(candidate, finding)
                self._forget(candidate)
            case events.CandidateDropped(_, candidate, _):
                self._forget(candidate)
            case events.CandidateTaken(_, candidate):
                self._taken.add(candidate)
            case events.WorkedAround():
                self._worked_around(event)
            case events.Secured(_, candidate):
                self._secured(candidate)
            case events.TlsWanted(_, candidate):
                self._in_clear.discard(candidate)
                self._do_later(lambda: self._memory.forget_broken_tls(candidate))
            case _:
                pass

    def settled(self, outcome: Outcome) -> None:
        """Learn from a recipient's outcome: a host that has taken a message is well."""
        if not isinstance(outcome, Delivered):
            return
        for candidate in self._taken:
            if str(candidate) == outcome.relay:
                self._learn(candidate, Ready())
                self._change(self._nexthop_key(candidate), HostRecord.cleared)
                self._learn_of_tls(candidate)

    def _failed(self, candidate: Candidate, finding: Finding) -> None:
        dialling = self._diallings.get(candidate)
        self._learn(candidate, dialling.failed(finding) if dialling else finding)

    def _watch(self, candidate: Candidate) -> None:
        """See to it that a full verdict is written as soon as it is one."""
        if alarm := self._alarms.pop(candidate, None):
            alarm.cancel()
        at = self._diallings[candidate].full_at()
        if at is not None:
            loop = asyncio.get_running_loop()
            delay = max(0.0, at - self._now())
            self._alarms[candidate] = loop.call_later(delay, self._ring, candidate)

    def _ring(self, candidate: Candidate) -> None:
        dialling = self._diallings.get(candidate)
        if dialling is not None:
            self._learn(candidate, dialling.overdue(self._now()))

    def _forget(self, candidate: Candidate) -> None:
        self._diallings.pop(candidate, None)
        if alarm := self._alarms.pop(candidate, None):
            alarm.cancel()

    def _learn(self, candidate: Candidate, lesson: Ready | Finding | None) -> None:
        if isinstance(lesson, Ready):
            ready = lesson
            now = self._memory.utc()
            self._change(
                host_key(candidate),
                lambda record: after_ready(
                    record._replace(name=candidate.host), now, *ready
                ),
            )
        elif lesson is not None:
            self._learn_failure(candidate, lesson)

    def _learn_failure(self, candidate: Candidate, finding: Finding) -> None:
        if is_about_host(finding):
            key = host_key(candidate)
        elif is_about_nexthop(finding):
            key = self._nexthop_key(candidate)
        else:
            return
        memory, now, chance = self._memory, self._memory.utc(), self._memory.chance()

        def fail(record: HostRecord) -> HostRecord:
            named = record._replace(name=candidate.host)
            return after_failure(
                named, finding, now, memory.options, chance, self._message_id
            )

        self._change(key, fail)

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

    def _secured(self, candidate: Candidate) -> None:
        self._in_clear.discard(candidate)
        if candidate in self._of_tls:
            self._do_later(lambda: self._memory.forget_broken_tls(candidate))

    def _learn_of_tls(self, candidate: Candidate) -> None:
        if candidate in self._in_clear:
            self._do_later(
                lambda: self._memory.note_broken_tls(candidate, self._message_id)
            )

    def _nexthop_key(self, candidate: Candidate) -> str:
        return nexthop_key(self._nexthop, candidate)

    # -- writing: one after the other, in the order in which it happened ------

    def _change(self, key: str, change: Change) -> None:
        self._do_later(lambda: self._memory.change(key, change))

    def _do_later(self, work: Callable[[], Awaitable[None]]) -> None:
        self._queue.append(work)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._queue:
                await self._queue.popleft()()
        except Exception as error:
            self._trace.trouble(error)
        finally:
            self._writer = None

    # -- probes ---------------------------------------------------------------

    def probe(self) -> None:
        """Begin to dial the candidates that we have a lease of, beside the attempt."""
        for candidate in self._due:
            task = asyncio.create_task(self._probe(candidate))
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    async def _probe(self, candidate: Candidate) -> None:
        """Dial *candidate* until it is ready or has failed fully; the owner of its trouble."""
        dialling = Dialling(candidate, self._now())
        try:
            await self._reach(dialling)
        except SessionFailed as failed:
            self._learn(candidate, dialling.failed(failed.finding))
        except TimeoutError:
            self._learn(candidate, dialling.overdue(self._now()))
        except asyncio.CancelledError:
            self._end_in_doubt(dialling)
            raise
        except LocalTrouble:
            pass  # nothing is known of the host, and the lease runs out
        except Exception as error:
            self._trace.trouble(error)

    async def _reach(self, dialling: Dialling) -> None:
        candidate = dialling.candidate

        def entered(phase: Phase) -> None:
            self._learn(candidate, dialling.reached(phase, self._now()))
            limit.reschedule(self._limit(dialling))

        sessions = self._context.sessions
        approach = Approach(tls_requirement(self._context.options.tls.default))
        async with asyncio.timeout_at(self._limit(dialling)) as limit:
            session = await sessions.open(candidate, approach, Listener(entered))
        if session.is_secured:
            self._secured(candidate)
        sessions.give_back(session)

    def _limit(self, dialling: Dialling) -> float | None:
        """When the probe ends in a full failure, on the loop's clock."""
        at = dialling.full_at()
        if at is None:
            return None
        return asyncio.get_running_loop().time() + max(0.0, at - self._now())

    def _end_in_doubt(self, dialling: Dialling) -> None:
        now, phase = self._memory.utc(), dialling.phase
        waited = self._now() - dialling.since
        options = self._memory.options
        self._change(
            host_key(dialling.candidate),
            lambda record: after_doubtful_probe(record, phase, waited, now, options),
        )

    # -- the end --------------------------------------------------------------

    async def finish(self, linger: float) -> None:
        """Wait *linger* seconds for the probes, and for what is to be written."""
        for candidate in list(self._alarms):
            self._forget(candidate)
        if self._probes and linger:
            await asyncio.wait(self._probes, timeout=linger)
        probes = list(self._probes)
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        if self._leased:
            self._do_later(self._release_all)
        while writer := self._writer:
            await writer


def hopeless(
    candidates: Sequence[Candidate], records: Mapping[Candidate, HostRecord], now: float
) -> tuple[Deferred, tuple[str, ...]]:
    """Return the outcome when all have failed, and a text for each of them."""
    tried = tuple(_tried(one, records.get(one, NOTHING), now) for one in candidates)
    text = "no host can be reached, as was found before: "
    refusal = Deferred(
        trouble.UNREACHABLE,
        trouble.one_line(text + "; ".join(tried)),
        relay=str(candidates[0]),
    )
    return refusal, tried


def _tried(candidate: Candidate, record: HostRecord, now: float) -> str:
    word = record.verdict.value if record.verdict else "failed"
    said = f" ({record.said})" if record.said else ""
    age = max(0.0, now - record.since)
    return f"{candidate} {word} {record.waited:.1f}s, {age:.0f}s ago{said}"


def is_lease_stale(value: bytes, now: float) -> bool:
    """Return whether a lease, as it was written, is none any more.

    Args:
        value: When it was taken, UTC seconds in decimal.
        now: UTC seconds.
    """
    try:
        age = now - float(value)
    except ValueError:
        return True
    return not -SKEW <= age < LEASE
