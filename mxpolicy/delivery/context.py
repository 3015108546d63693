"""What all messages of one engine share, made once and injected."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from mxpolicy.delivery.admission import Admission
from mxpolicy.delivery.connect import Egress
from mxpolicy.delivery.domain_history import DomainHistory, StaleMx
from mxpolicy.delivery.failed_lookups import FailedLookups
from mxpolicy.delivery.host_memory import HostMemory, socket_of
from mxpolicy.delivery.host_records import HostRecords
from mxpolicy.delivery.owner import Calls
from mxpolicy.delivery.plan import Planner
from mxpolicy.delivery.sessions import Sessions
from mxpolicy.delivery.spool_memory import SpoolMemory
from mxpolicy.net.dial import dial as dial_directly
from mxpolicy.net.own_address import is_local_address
from mxpolicy.net.own_name import own_name
from mxpolicy.net.resolver import Resolver
from mxpolicy.routing.candidate import DIRECT
from mxpolicy.routing.own import OwnIdentity
from mxpolicy.state.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from mxpolicy.delivery.connect import Dial
    from mxpolicy.delivery.connections import Connections
    from mxpolicy.delivery.destinations import Destinations
    from mxpolicy.delivery.idle_sessions import IdleSessions
    from mxpolicy.delivery.late_reply import LateReplies
    from mxpolicy.delivery.plan import Lookups
    from mxpolicy.options import Options
    from mxpolicy.state.store import Store

__all__ = ["Context"]


class Context:
    """The configuration, our identity, the clocks, and the way to DNS, hosts and store.

    Args:
        options: The configuration.
        store: What is remembered. None of its methods may raise
            (`mxpolicy.state.fallback`). By default it lasts as long as this context.
        resolver: Asks DNS; by default the resolver of *options*.
        dial: Connects to a candidate without proxy or relay.
        clock: Seconds, monotonic, in step with the event loop's.
        utc: Seconds since the epoch, in step with the store's.
        chance: Returns 0 to 1, another number each time.
        is_own_address: Whether an address is one of this machine's.
        calls: The deliveries under way in this process. Contexts of one process that
            share a store must share it.
        keeps_sessions: Whether the process delivers many messages. Then connections are
            limited, and sessions wait for another message, so that
            `mxpolicy.delivery.engine.Engine.stop` must be called in the end. Claims are
            kept in memory, unless *calls* says otherwise.
        late_replies: Of a process that lives on. By default a reply that comes too late
            is not listened to.
        heeded: By the configuration, the kinds of events that are heeded
            (`mxpolicy.delivery.trace.Trace`); by default all.

    Attributes:
        heeded: By the present one.
        helo: Our name in EHLO.
        identity: The names and addresses that mean this mail system.
        resolver: Asks DNS.
        sessions: Supplies sessions with hosts.
        memory, domains, failed_lookups: What is remembered, over the store.
        admission: The places of this machine.
        connections: Those of a process that keeps sessions, and whose turn is next.
        destinations: Of such a process: how mail went a moment ago.
        planner: Makes the plans, by the resolver.
        spool_memory: What mail data may take of it.

    Raises:
        ConfigError: ``own_addresses`` cannot be understood.
    """

    def __init__(
        self,
        options: Options,
        *,
        store: Store | None = None,
        resolver: Lookups | None = None,
        dial: Dial = dial_directly,
        clock: Callable[[], float] = time.monotonic,
        utc: Callable[[], float] = time.time,
        chance: Callable[[], float] = lambda: (
            int.from_bytes(os.urandom(4), "big") / 2**32
        ),
        is_own_address: Callable[[str], bool] = is_local_address,
        calls: Calls | None = None,
        keeps_sessions: bool = False,
        late_replies: LateReplies | None = None,
        heeded: Callable[[Options], Container[object] | None] = lambda options: None,
    ) -> None:
        self._heeded_by = heeded
        self.clock = clock
        self.utc = utc
        self.chance = chance
        self.calls = calls or Calls(keeps_claims=keeps_sessions)
        self.spool_memory = SpoolMemory(options.limits.spool_memory)
        self.late_replies = late_replies
        self.store = store or MemoryStore()
        self._is_resolver_given = resolver is not None
        self.resolver = resolver or Resolver(options.resolver)
        self._dial = dial
        self._is_own_address = is_own_address
        self._idle: IdleSessions | None = None
        self.connections: Connections | None = None
        self.destinations: Destinations | None = None
        if keeps_sessions:
            # A process for one message does not need them.
            from mxpolicy.delivery.connections import Connections
            from mxpolicy.delivery.destinations import Destinations
            from mxpolicy.delivery.idle_sessions import IdleSessions

            limits = options.limits
            self._idle = idle = IdleSessions(options.transaction, clock)
            self.connections = Connections(
                limits.connections_per_host, limits.connections, idle
            )
            self.destinations = Destinations()
        self._host_records = HostRecords(self.store, utc)
        self._apply(options)
        self.sessions = Sessions({DIRECT: self._direct()}, self._idle, late_replies)
        self.admission = Admission(
            self.store, options.limits.processes, utc=utc, lives=self.calls.lives
        )

    def renewed(self, options: Options) -> Context:
        """Return a context by *options* that shares all else with this one.

        Store, sessions, places, and what is remembered are the same. So is the resolver
        with its cache, where *options* say the same of it. Deliveries that have begun
        keep this context: what they learn of destinations is not for those after them.

        Raises:
            ConfigError: As at the beginning. Nothing has changed.
        """
        from copy import copy  # not in each process for one message

        other = copy(self)
        is_same = options.resolver == self.options.resolver
        if not is_same and not self._is_resolver_given:
            other.resolver = Resolver(options.resolver)
        other._apply(options)
        other.sessions.renew({DIRECT: other._direct()})
        if other._idle is not None:
            other._idle.renew(options.transaction)
        if other.destinations is not None:
            # Of its own: what began before goes by the old options, and learns still.
            from mxpolicy.delivery.destinations import Destinations

            other.destinations = Destinations()
        other.admission.processes = options.limits.processes
        other.spool_memory.total = options.limits.spool_memory
        if other.connections is not None:
            limits = options.limits
            other.connections.renew(limits.connections_per_host, limits.connections)
        return other

    def _apply(self, options: Options) -> None:
        """Make what depends on *options* and is not shared."""
        self.options = options
        self.heeded = self._heeded_by(options)
        self.helo = options.helo or own_name()
        self.identity = OwnIdentity(
            (self.helo, *options.own_names),
            options.own_addresses,
            self._is_own_address,
        )
        self.memory = HostMemory(
            self.store, options.memory, self.utc, self._host_records
        )
        if self.connections is not None:
            self._host_records.failed = self._failed
            self.memory.is_reached = self.connections.is_reached
        self.domains = DomainHistory(self.store, utc=self.utc)
        self.failed_lookups = FailedLookups(self.store, utc=self.utc)
        lookups = StaleMx(self.resolver, self.domains)
        self.planner = Planner(lookups, options, self.identity, self.utc)

    def _failed(self, key: str) -> None:
        """A failure of a host is remembered now."""
        candidate_socket = socket_of(key)
        if self.connections is not None and self.destinations is not None:
            self.destinations.failed(candidate_socket)
            self.connections.learned(candidate_socket)

    def _direct(self) -> Egress:
        return Egress(self._dial, self.helo, self.identity.has_name, self.clock)
