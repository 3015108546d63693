"""What is remembered of hosts, in the store: read at once for all candidates of a message.

The shell of `mxpolicy.routing.host_record`, `mxpolicy.routing.reachability`,
`mxpolicy.routing.known_hosts` and `mxpolicy.routing.broken_tls`, which decide. Reading
delays mail by the store's own bound at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery.host_records import HostRecords
from mxpolicy.reply import printable
from mxpolicy.routing import broken_tls
from mxpolicy.routing.broken_tls import after_taking_in_clear
from mxpolicy.routing.host_record import NOTHING
from mxpolicy.routing.known_hosts import KnownHosts, advise
from mxpolicy.state.change import New, change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.state.store import Store

__all__ = [
    "HOST",
    "NEXTHOP",
    "TLS",
    "HostMemory",
    "host_key",
    "nexthop_key",
    "socket_of",
    "tls_key",
]

# What the keys begin with: a candidate's record for all mail, the one for mail to a
# nexthop, broken TLS at a host of a name.
HOST = "host "
NEXTHOP = "nexthop "
TLS = "tls "

_MAX_NEXTHOP = 255


def host_key(candidate: Candidate) -> str:
    """Return the key of what is remembered of *candidate*.

    It does not have the host's name: thousands of domains have their own names for the
    same few addresses.
    """
    return HOST + candidate.key.socket


def socket_of(key: str) -> str:
    """Return the `Key.socket` in what `host_key` or `nexthop_key` has made."""
    return key.rpartition(HOST)[2]


def nexthop_key(aim: str, candidate: Candidate) -> str:
    """Return the key of what is remembered of *candidate* for mail to one nexthop.

    Args:
        aim: The nexthop's one spelling (`mxpolicy.routing.nexthop.nexthop_aim`).
        candidate: It.
    """
    return f"{NEXTHOP}{printable(aim, _MAX_NEXTHOP)} {host_key(candidate)}"


def tls_key(candidate: Candidate) -> str:
    """Return the key of what is remembered of STARTTLS at *candidate*, by its name."""
    return f"{TLS}{candidate.host} {host_key(candidate)}"


class HostMemory:
    """What an engine remembers of hosts.

    Args:
        store: Where it is kept; no method of it may raise (`FallbackStore`).
        options: The pauses.
        utc: Seconds, as `time.time`.
        records: Shared by all that use *store* in this process.

    Attributes:
        records: The records of hosts, to be changed.
        is_reached: Whether the host of a candidate has accepted a connection of ours
            that is open now. Then it is not down, though it turns another one away.
    """

    def __init__(
        self,
        store: Store,
        options: MemoryOptions,
        utc: Callable[[], float],
        records: HostRecords | None = None,
    ) -> None:
        self._store = store
        self.records = records or HostRecords(store, utc)
        self.is_reached: Callable[[Candidate], bool] = lambda candidate: False
        self.options = options
        self.utc = utc

    async def advise(self, aim: str, candidates: Sequence[Candidate]) -> KnownHosts:
        """Return what is remembered of *candidates* now, for mail to the nexthop *aim*."""
        hosts = {host_key(one): one for one in candidates}
        nexthops = {nexthop_key(aim, one): one for one in candidates}
        names = {tls_key(one): one for one in candidates}
        rows = await self._store.get_many([*hosts, *nexthops, *names])
        of_tls = {
            one: known
            for key, one in names.items()
            if (known := broken_tls.decode(rows.get(key))) is not None
        }
        seen = {
            key: self.records.seen(key, rows.get(key)) for key in (*hosts, *nexthops)
        }
        return advise(
            candidates,
            {one: seen[key] for key, one in hosts.items() if seen[key] != NOTHING},
            {one: seen[key] for key, one in nexthops.items() if seen[key] != NOTHING},
            self.utc(),
            self.options,
            of_tls,
        )

    async def note_broken_tls(self, candidate: Candidate, message_id: str) -> None:
        """Remember that a message was taken in clear after TLS had failed."""
        now = self.utc()

        def step(value: bytes | None) -> New:
            known = broken_tls.decode(value)
            after = after_taking_in_clear(known, message_id, now)
            return New(broken_tls.encode(after), now + broken_tls.KEPT)

        await change(self._store, tls_key(candidate), step)

    async def forget_broken_tls(self, candidate: Candidate) -> None:
        """Forget it: TLS works there, or is wanted."""
        await self._store.delete(tls_key(candidate))
