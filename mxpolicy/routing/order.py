"""In which order addresses are tried.

RFC 5321 §5.1: by preference, and hosts of one preference in random order "to spread the
load". Random means a keyed hash here. So a retried message meets the same order for some
hours: greylisting would see a new client each time otherwise. Then it meets another one:
hosts that put it off every time would keep it from the rest otherwise. And a domain that
changes one record does not reshuffle the others. RFC 8305 §4: the families take turns.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.candidate import Candidate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MAX_ADDRESSES", "ORDER_HOLDS", "Located", "arrange", "shuffle_seed"]

# Postfix's bound since 3.9. A domain can publish thousands.
MAX_ADDRESSES = 100

# Seconds for which a message keeps its order of equal hosts. Greylisting asks for an hour
# at most, and a message has days, thus dozens of orders.
ORDER_HOLDS = 2 * 3600.0


class Located(NamedTuple):
    """A host, and the addresses of it that may be dialled.

    Attributes:
        position: Of its nexthop in the list, from 0; earlier ones go first.
        preference: Of its MX record.
        name: For the log and for TLS.
        port: TCP port.
        addresses: Canonical texts in any order.
    """

    position: int
    preference: int
    name: str
    port: int
    addresses: tuple[str, ...]


def shuffle_seed(
    reverse_path: str, forward_path: str, domain: str, utc: float
) -> bytes:
    """Return the seed of a message's order at *utc*, which is else unpredictable.

    Retries within `ORDER_HOLDS` have the same one, but for one change. When that comes
    differs from message to message.
    """
    digest = blake2b(digest_size=16)
    for part in (reverse_path, forward_path, domain):
        digest.update(part.encode(errors="surrogateescape") + b"\0")
    begins = int.from_bytes(digest.digest()[:4], "big") % int(ORDER_HOLDS)
    digest.update(str(int((utc + begins) // ORDER_HOLDS)).encode())
    return digest.digest()


def arrange(
    hosts: Iterable[Located], seed: bytes, limit: int = MAX_ADDRESSES
) -> tuple[Candidate, ...]:
    """Return the candidates in the order in which they are tried, at most *limit*.

    By position, then preference. Within one preference, one address of every host comes
    before the second of any. The families take turns, beginning with the first host's
    IPv6. *limit* cuts second addresses before first ones, and worse hosts before better.
    An address that two hosts share stays with the better one.
    """
    hosts = tuple(hosts)
    if limit and len(hosts) == 1 and len(hosts[0].addresses) == 1:  # as most domains
        return (_candidate(hosts[0], hosts[0].addresses[0]),)
    queues = _queues(hosts, seed)
    _cut(queues, limit)
    groups: dict[tuple[int, int], list[_Queue]] = {}
    for queue in queues:
        groups.setdefault(queue.located[:2], []).append(queue)
    return tuple(one for group in groups.values() for one in _interleave(group))


def _candidate(host: Located, address: str) -> Candidate:
    position, preference, name, port, _ = host
    return Candidate(name, address, port, preference, nexthop_position=position)


class _Queue:
    """One host, and those of its addresses that are not in the order yet."""

    def __init__(self, located: Located, left: list[str]) -> None:
        self.located = located
        self.left = left
        self.taken = 0

    def has(self, *, ipv6: bool) -> bool:
        """Return whether an address of this family is left."""
        return any((":" in address) is ipv6 for address in self.left)

    def take(self, *, ipv6: bool) -> Candidate:
        """Return the next one, of this family if there is any."""
        of_family = (one for one in self.left if (":" in one) is ipv6)
        address = next(of_family, self.left[0])
        self.left.remove(address)
        self.taken += 1
        return _candidate(self.located, address)


def _queues(hosts: Iterable[Located], seed: bytes) -> list[_Queue]:
    seen: set[tuple[str, int]] = set()
    queues = []
    for host in sorted(hosts, key=lambda one: (one[:2], _key(seed, one.name), one)):
        fresh = {one for one in host.addresses if (one, host.port) not in seen}
        seen.update((one, host.port) for one in fresh)
        shuffled = sorted(fresh, key=lambda one: _key(seed, host.name, one))
        queues.append(_Queue(host, _alternate(shuffled)))
    return queues


def _cut(queues: Sequence[_Queue], limit: int) -> None:
    """Leave *limit* addresses in all, shared out one to each host in turn."""
    turns = sorted(
        (turn, number)
        for number, queue in enumerate(queues)
        for turn in range(len(queue.left))
    )
    for turn, number in reversed(turns[limit:]):
        del queues[number].left[turn]


def _interleave(group: Sequence[_Queue]) -> Iterable[Candidate]:
    """Give the hosts in turn, then the other family, then the shuffled order."""
    ipv6 = True  # what the next one should be
    is_first = True
    while waiting := [queue for queue in group if queue.left]:
        fewest = min(queue.taken for queue in waiting)
        turn = [queue for queue in waiting if queue.taken == fewest]
        of_family = (one for one in turn if is_first or one.has(ipv6=ipv6))
        candidate = next(of_family, turn[0]).take(ipv6=ipv6)
        yield candidate
        ipv6, is_first = not candidate.is_ipv6, False


def _alternate(addresses: Sequence[str]) -> list[str]:
    """One family after the other (RFC 8305 §4), IPv6 first, order kept within each."""
    ipv6 = [address for address in addresses if ":" in address]
    ipv4 = [address for address in addresses if ":" not in address]
    pairs = zip_longest(ipv6, ipv4)
    return [one for pair in pairs for one in pair if one is not None]


def _key(seed: bytes, *parts: str) -> bytes:
    return blake2b("\0".join(parts).encode(), key=seed, digest_size=8).digest()
