"""Destinations whose plan another message may use: what the fast path goes by.

An ordinary delivery leaves here how its recipients went: the plan, what was remembered
of the hosts, and how each is reached. For `FRESH` seconds another message to the same
destination may use a session with one of the best hosts, without asking DNS and the
memory again. A new failure of a host ends that at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery.approach import SMALL_SEGMENT, Approach
from mxpolicy.routing.fast_path import usable_hosts
from mxpolicy.routing.known_hosts import advise
from mxpolicy.routing.order import Located, arrange
from mxpolicy.routing.tls_requirement import tls_requirement

if TYPE_CHECKING:
    from mxpolicy.delivery.plan import Plan
    from mxpolicy.options import MemoryOptions, TlsLevel
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.known_hosts import KnownHosts

__all__ = ["FRESH", "MOST", "Destination", "Destinations"]

# Seconds for which a plan serves, and what was remembered by then. Other processes
# remember, too. And so one message in so many seconds keeps the memory of a busy host
# up to date (`mxpolicy.routing.host_record.NEWS_EVERY`).
FRESH = 30.0

# How many are known. Each takes some KiB.
MOST = 500


class Destination(NamedTuple):
    """Where recipients of one domain, or of one nexthop, go.

    Attributes:
        nexthop: As the mail server wrote it.
        domain: The destination domain; empty where the operator wrote the nexthop.
        plan: The hosts, in the order in which they were asked.
        known: What was remembered of them.
        usable: Those whose sessions may be used, and how they must have been reached.
        until: Until when it holds, on the clock.
        known_until: Until when such mail goes to those hosts, on the clock.
    """

    nexthop: str
    domain: str
    plan: Plan
    known: KnownHosts
    usable: tuple[tuple[Candidate, Approach], ...]
    until: float
    known_until: float

    def plan_from(self, first: Candidate) -> Plan:
        """Return the plan with the candidate *first* at its head."""
        others = (one for one in self.plan.candidates if one != first)
        return self.plan._replace(candidates=(first, *others))

    def of_message(
        self, first: Candidate, seed: bytes, utc: float, options: MemoryOptions
    ) -> tuple[Plan, KnownHosts]:
        """Return the plan of another message, and what is remembered, for its order.

        After *first* come the others as its other attempts meet them: equal hosts have an
        order for each message (`mxpolicy.routing.order.shuffle_seed`).

        Args:
            first: The candidate at its head.
            seed: The message's.
            utc: Now, seconds.
            options: For the pauses.
        """
        addresses: dict[tuple[int, int, str, int], list[str]] = {}
        for one in self.plan.candidates:
            host = one.nexthop_position, one.preference, one.host, one.port
            addresses.setdefault(host, []).append(one.address)
        hosts = [Located(*host, tuple(those)) for host, those in addresses.items()]
        known = advise(
            arrange(hosts, seed),
            self.known.of_host,
            self.known.of_nexthop,
            utc,
            options,
            self.known.of_tls,
        )
        others = (one for one in known.order if one != first)
        return self.plan._replace(candidates=(first, *others)), known


class Destinations:
    """What is known of destinations, in one process, by one configuration."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Destination] = {}

    def learn(
        self,
        nexthop: str,
        domain: str,
        plan: Plan,
        known: KnownHosts,
        *,
        known_until: float,
        now: float,
        tls: TlsLevel,
    ) -> None:
        """Note how a message goes *now*; see `Destination`.

        Args:
            nexthop: Where it goes.
            domain: Its destination domain.
            plan: Its candidates are in the order in which they are asked.
            known: What is remembered of them.
            known_until: As in `Destination`.
            now: On the clock.
            tls: The level of the operator.
        """
        key = nexthop, domain
        self._known.pop(key, None)
        usable = () if plan.unresolved else usable_hosts(plan.candidates, known)
        if not usable:
            return
        while len(self._known) >= MOST:
            del self._known[next(iter(self._known))]
        self._known[key] = Destination(
            nexthop,
            domain,
            plan,
            known,
            tuple((one, _approach(one, known, tls)) for one in usable),
            min(now + FRESH, known_until),
            known_until,
        )

    def find(self, nexthop: str, domain: str, now: float) -> Destination | None:
        """Return what is known of a destination, if it still holds."""
        found = self._known.get((nexthop, domain))
        return found if found is not None and now < found.until else None

    def failed(self, candidate_socket: str) -> None:
        """A failure of a host is remembered: what was known is so no longer.

        Args:
            candidate_socket: See `mxpolicy.routing.candidate.Key.socket`.
        """
        for key, one in [*self._known.items()]:
            if any(host.key.socket == candidate_socket for host in one.plan.candidates):
                del self._known[key]


def _approach(candidate: Candidate, known: KnownHosts, tls: TlsLevel) -> Approach:
    is_small = known.needs_small_segments(candidate)
    requirement = tls_requirement(tls, is_broken=known.is_tls_broken(candidate))
    return Approach(requirement, SMALL_SEGMENT if is_small else None)
