"""Makes the plan: from a nexthop to the candidates, in the order of trying.

It looks up MX and addresses, all names at once. The pure modules decide
(`mxpolicy.routing.mx`, `~mxpolicy.routing.selection`, `~mxpolicy.routing.order`).
It dials, writes and leases nothing, so a plan does no harm. RFC 5321 §5.1, RFC 7505.

The MX lookup takes ``resolver.timeout`` or less, and so do all addresses together. Every
host is waited for so long, even when others were found: a host whose name is answered
late may be the only one that can be reached.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from mxpolicy.address import REMEMBERED, AddressError, parse_mailbox
from mxpolicy.delivery import trouble
from mxpolicy.options import NxdomainPolicy
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.reply import printable
from mxpolicy.routing.dialable import Dialable
from mxpolicy.routing.domain_record import is_stale
from mxpolicy.routing.kept_selections import KeptSelections, Selected
from mxpolicy.routing.mx import (
    MAX_HOSTS,
    Exchangers,
    Host,
    Lookup,
    LookupStatus,
    Resolved,
    mail_exchangers,
    operators_trouble,
)
from mxpolicy.routing.nexthop import Nexthop, NexthopKind, nexthop_aim
from mxpolicy.routing.order import Located, arrange, shuffle_seed
from mxpolicy.routing.selection import (
    LOOP_PORT,
    Selection,
    better_than_own_name,
    select,
)
from mxpolicy.routing.unresolved import Unresolved

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

    from mxpolicy.options import Options
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.own import OwnIdentity

__all__ = ["Lookups", "Plan", "Planner", "destination"]

T = TypeVar("T")

# Seconds more for the lookup of one address family when the other one has an address:
# some name servers drop AAAA queries, and the host can be reached without.
OTHER_FAMILY = 2.0

# Seconds for which a lookup counts as failed that was not waited for any longer.
LATE_HOLDS = 5.0

# Questions on their way at once for one message.
MAX_QUESTIONS = 32

FAMILIES = ("AAAA", "A")

# A plan waits twice for DNS, for MX and for addresses. Where its time is short, each
# gets this share of it. So the plan ends by itself and names the lookups without answer.
STAGE = 0.45


class Lookups(Protocol):
    """What a planner needs of a resolver: `mxpolicy.net.resolver.Resolver`."""

    async def lookup(
        self, name: str, rdtype: str, within: float | None = None
    ) -> Lookup:
        """Return the answer, *within* so many seconds; never raise for DNS trouble."""
        ...


class Plan(NamedTuple):
    """The hosts to try.

    Attributes:
        nexthop: As the mail server wrote it.
        candidates: At most 100, in the order of trying.
        remarks: What was left out or repaired, one printable line each; for the
            log, not for the sender.
        refusal: The outcome for every recipient; only without candidates.
        own_preference: The preference at which this system is itself an exchanger of
            the first nexthop; None when it is not. All candidates of the first nexthop
            are better.
        lookups: What DNS said, in the order of the nexthops and of their hosts. It was
            not asked for hosts of our own name, nor for any that is not better.
        unresolved: Hosts and nexthops without candidates, because lookups failed.
        aim: The one spelling of *nexthop* (`nexthop_aim`), for what is remembered.
    """

    nexthop: str
    candidates: tuple[Candidate, ...]
    remarks: tuple[str, ...] = ()
    refusal: Outcome | None = None
    own_preference: int | None = None
    lookups: tuple[Lookup, ...] = ()
    unresolved: tuple[Unresolved, ...] = ()
    aim: str = ""

    @property
    def ttl(self) -> float:
        """For how many seconds the hosts will be the same; infinite without lookups."""
        found = (
            lookup.ttl for lookup in self.lookups if lookup.status is LookupStatus.FOUND
        )
        return min(found, default=inf)

    def as_far_as_known(self, outcome: Outcome) -> Outcome:
        """Return *outcome*; as a deferral where it bounces by old MX records."""
        if not isinstance(outcome, Bounced) or not any(map(is_stale, self.lookups)):
            return outcome
        text = f"{outcome.text} (DNS fails; by MX records of before)"
        return trouble.soft(outcome)._replace(text=trouble.one_line(text))

    def with_unresolved(self, outcome: Outcome) -> Outcome:
        """Return *outcome*; a deferral names the hosts that cannot be looked up."""
        if not isinstance(outcome, Deferred) or not self.unresolved:
            return outcome
        names = ", ".join(dict.fromkeys(one.name for one in self.unresolved))
        text = f"{outcome.text}; better, and cannot be looked up: {names}"
        return outcome._replace(text=trouble.one_line(text))


@lru_cache(maxsize=REMEMBERED)
def destination(nexthop: str, domain: str) -> tuple[str, str]:
    """Return the nexthop, and the destination domain of a recipient of *domain*.

    A nexthop that is not the recipient's own domain was written by the operator. Then
    the destination domain is empty, and DNS trouble is the operator's to mend.
    """
    nexthop = nexthop or domain
    try:
        # Parsed like the recipient's: it may be spelt in U-labels, or [ipv6:...].
        own = parse_mailbox(f"x@{nexthop.strip()}").domain == domain
    except AddressError:
        own = False
    return nexthop, domain if own else ""


def _stale_remarks(lookups: Iterable[Lookup]) -> Iterator[str]:
    """Yield what was remembered instead of looked up."""
    for one in filter(is_stale, lookups):
        yield printable(f"remembered: MX of {one.name}; DNS says: {one.reason}")


class _Questions:
    """The lookups of one plan: how long each may take, and how many are asked at once."""

    def __init__(self, resolver: Lookups, timeout: float) -> None:
        self._resolver = resolver
        self.timeout = timeout
        self._places = asyncio.Semaphore(MAX_QUESTIONS)

    async def ask_mx(self, name: str) -> Lookup:
        return await self._resolver.lookup(name, "MX", self.timeout)

    async def ask_address(self, name: str, rdtype: str) -> Lookup:
        async with self._places:
            return await self._resolver.lookup(name, rdtype, self.timeout)


class Planner:
    """Makes plans. It remembers for a moment which hosts a nexthop has."""

    def __init__(
        self,
        resolver: Lookups,
        options: Options,
        own: OwnIdentity,
        utc: Callable[[], float],
    ) -> None:
        """Prepare.

        Args:
            resolver: See there.
            options: For the whole time.
            own: Who we are.
            utc: Seconds, as `time.time`.

        Raises:
            ConfigError: ``never_dial`` or ``allow_dial`` cannot be understood.
        """
        self._resolver = resolver
        self._options = options
        self._own = own
        self._utc = utc
        self._dialable = Dialable(options.never_dial, options.allow_dial)
        self._kept = KeptSelections()

    async def plan(
        self,
        nexthops: Sequence[Nexthop],
        *,
        destination_domain: str,
        reverse_path: str,
        forward_path: str,
        within: float | None = None,
    ) -> Plan:
        """Return the plan for one recipient, or for several of one domain.

        Each nexthop of a list counts by itself: where one fails, the others are used.

        Args:
            nexthops: From `mxpolicy.routing.nexthop.parse_nexthop`, at least one.
            destination_domain: The recipient's `Mailbox.domain`. Trouble with any
                other nexthop is the operator's, and never bounces.
            reverse_path: With *forward_path* decides the order of equal hosts.
            forward_path: The first recipient of the whole call, even if it is settled.
                So equal hosts keep their order over retries (`shuffle_seed`).
            within: Seconds for the whole plan, where ``resolver.timeout`` is too long.
        """
        stage = self._options.resolver.timeout
        if within is not None:
            stage = min(stage, STAGE * within)
        questions = _Questions(self._resolver, stage)
        selected = await _at_once(
            [self._select(nexthop, questions) for nexthop in nexthops]
        )
        selections = [one.selection for one in selected]
        seed = shuffle_seed(reverse_path, forward_path, destination_domain, self._utc())
        candidates = arrange(_located(nexthops, selections), seed)
        refusal = None
        if not candidates:
            refusal = self._refusal(nexthops, selections, destination_domain)
        return Plan(
            ", ".join(nexthop.text for nexthop in nexthops),
            candidates,
            (
                *(remark for one in selections for remark in one.remarks),
                *(remark for one in selected for remark in _stale_remarks(one.lookups)),
            ),
            refusal,
            selections[0].own_preference,
            tuple(lookup for one in selected for lookup in one.lookups),
            tuple(_unresolved(selected)),
            nexthop_aim(nexthops),
        )

    async def _select(self, nexthop: Nexthop, questions: _Questions) -> Selected:
        clock = asyncio.get_running_loop().time
        known = self._kept.get(nexthop, clock())
        if known is None:
            known = await self._look_up(nexthop, questions)
            self._kept.put(nexthop, known, clock())
        return known

    async def _look_up(self, nexthop: Nexthop, questions: _Questions) -> Selected:
        own = self._own if nexthop.port == LOOP_PORT else None
        exchangers, lookups = await _exchangers(nexthop, questions)
        hosts, named_at = exchangers.hosts, None
        if own is not None:
            hosts, named_at = better_than_own_name(hosts, own)
        if len(hosts) > MAX_HOSTS:
            remark = f"{len(hosts) - MAX_HOSTS} of {len(hosts)} mail servers left out"
            exchangers = exchangers._replace(remarks=(*exchangers.remarks, remark))
        resolved = await _resolve(hosts[:MAX_HOSTS], questions)
        selection = select(
            nexthop.name,
            exchangers,
            resolved,
            own,
            self._dialable,
            named_at=named_at,
            defer_missing=self._options.nxdomain is NxdomainPolicy.DEFER,
        )
        lookups += tuple(lookup for one in resolved for lookup in one.lookups)
        return Selected(selection, lookups)

    def _refusal(
        self,
        nexthops: Sequence[Nexthop],
        selections: Sequence[Selection],
        destination_domain: str,
    ) -> Outcome:
        """Return the first nexthop's refusal.

        It bounces only where the recipient's own domain is the one nexthop.
        """
        refusal = selections[0].refusal
        assert refusal is not None, "a selection without hosts says why"
        if len(nexthops) == 1 and nexthops[0].is_domain_of(
            destination_domain, self._options.port
        ):
            return refusal
        return operators_trouble(refusal)


async def _exchangers(
    nexthop: Nexthop, questions: _Questions
) -> tuple[Exchangers, tuple[Lookup, ...]]:
    match nexthop.kind:
        case NexthopKind.DOMAIN:
            lookup = await questions.ask_mx(nexthop.name)
            return mail_exchangers(nexthop.name, lookup), (lookup,)
        case NexthopKind.HOST:
            return Exchangers((Host(nexthop.name),)), ()
        case NexthopKind.ADDRESS:
            return Exchangers((Host(nexthop.name, address=nexthop.name),)), ()


async def _resolve(hosts: Sequence[Host], questions: _Questions) -> list[Resolved]:
    """Look up all *hosts* at once, the best ones first where there are too many."""
    end = asyncio.get_running_loop().time() + questions.timeout
    return await _at_once([_resolve_host(host, end, questions) for host in hosts])


async def _at_once(work: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Return what all of *work* return; a single one needs no task of its own."""
    if len(work) == 1:
        return [await work[0]]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]


async def _resolve_host(host: Host, end: float, questions: _Questions) -> Resolved:
    if host.address is not None:
        return Resolved(host, (host.address,))
    tasks = {
        asyncio.create_task(questions.ask_address(host.name, rdtype)): rdtype
        for rdtype in FAMILIES
    }
    try:
        await _wait_for_both(tasks, end)
        lookups = tuple(
            task.result()
            if task.done()
            else Lookup(
                host.name,
                rdtype,
                LookupStatus.FAILED,
                ttl=LATE_HOLDS,
                reason="no answer in time",
            )
            for task, rdtype in tasks.items()
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    addresses = tuple(one for lookup in lookups for one in lookup.addresses)
    return Resolved(host, addresses, lookups)


async def _wait_for_both(tasks: Iterable[asyncio.Task[Lookup]], end: float) -> None:
    loop = asyncio.get_running_loop()
    done, pending = await asyncio.wait(
        tasks,
        timeout=max(0.0, end - loop.time()),
        return_when=asyncio.FIRST_COMPLETED,
    )
    if not pending:
        return
    left = max(0.0, end - loop.time())
    if any(task.result().status is LookupStatus.FOUND for task in done):
        left = min(left, OTHER_FAMILY)
    await asyncio.wait(pending, timeout=left)


def _unresolved(selected: Sequence[Selected]) -> Iterator[Unresolved]:
    for position, (selection, lookups) in enumerate(selected):
        for host in selection.unresolved:
            yield Unresolved(host.name, host.preference, position)
        for lookup in lookups:
            if lookup.rdtype == "MX" and lookup.status is LookupStatus.FAILED:
                yield Unresolved(lookup.name, nexthop_position=position, rdtype="MX")


def _located(
    nexthops: Sequence[Nexthop], selections: Sequence[Selection]
) -> list[Located]:
    return [
        Located(position, host.preference, host.name, nexthop.port, addresses)
        for position, (nexthop, selection) in enumerate(
            zip(nexthops, selections, strict=True)
        )
        for host, addresses in selection.hosts
    ]
