"""In which order addresses are tried.

RFC 5321 §5.1: by preference, and hosts of one preference in random order "to
spread the load". Random means a keyed hash here: the same message meets the same
order when it is retried, or greylisting would see a new client each time, and a
domain that changes one record does not reshuffle the others. RFC 8305 §4: the
families take turns.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.candidate import Candidate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MAX_ADDRESSES", "Located", "arrange", "shuffle_seed"]

# Postfix's bound since 3.9. Anyone can publish thousands.
MAX_ADDRESSES = 100


class Located(NamedTuple):
    """A host, and the addresses of it that may be dialled.

    Attributes:
        place: Of its nexthop in the list, from 0; earlier ones go first.
        preference: Of its MX record.
        name: For the log and for TLS.
        port: TCP port.
        addresses: Canonical texts in any order.
    """

    place: int
    preference: int
    name: str
    port: int
    addresses: tuple[str, ...]


class _Queue:
    """The addresses of one host that are not in the order yet, in their own order."""

    def __init__(self, located: Located, key: bytes, addresses: Sequence[str]) -> None:
        self.located = located
        self.key = key
        self.taken = 0
        self.kept: list[str] = []
        self._addresses = _alternate(addresses)

    def keep_next(self) -> bool:
        """Let one more address pass the cap; False when there is none."""
        if len(self.kept) == len(self._addresses):
            return False
        self.kept.append(self._addresses[len(self.kept)])
        return True

    def first(self, *, ipv6: bool) -> str | None:
        """The next kept address of this family, if any."""
        for address in self.kept:
            if (":" in address) is ipv6:
                return address
        return None

    def take(self, address: str) -> Candidate:
        """Move *address* into the order."""
        self.kept.remove(address)
        self.taken += 1
        place, preference, name, port, _ = self.located
        return Candidate(name, address, port, preference, nexthop_place=place)


def shuffle_seed(reverse_path: str, forward_path: str, domain: str) -> bytes:
    """Return the seed of a message's order: equal for every retry, else unpredictable."""
    digest = blake2b(digest_size=16)
    for part in (reverse_path, forward_path, domain):
        digest.update(part.encode(errors="surrogateescape") + b"\0")
    return digest.digest()


def arrange(
    hosts: Iterable[Located], seed: bytes, limit: int = MAX_ADDRESSES
) -> tuple[Candidate, ...]:
    """Return the candidates in the order in which they are tried, at most *limit*.

    By place, then preference. Within one preference every host has one address
    tried before any has its second, and the families take turns, beginning with
    the first host's IPv6. When *limit* cuts, it cuts second addresses before first
    ones and worse hosts before better. An address that two hosts share stays
    with the better one.
    """
    queues = _queues(hosts, seed)
    _admit(queues, limit)
    groups: dict[tuple[int, int], list[_Queue]] = {}
    for queue in queues:
        groups.setdefault(queue.located[:2], []).append(queue)
    return tuple(one for group in groups.values() for one in _interleave(group))


def _queues(hosts: Iterable[Located], seed: bytes) -> list[_Queue]:
    keyed = sorted(
        ((host[:2], _key(seed, host.name), host) for host in hosts),
        key=lambda entry: (entry[0], entry[1], entry[2]),
    )
    seen: set[tuple[str, int]] = set()
    queues = []
    for _, key, host in keyed:
        fresh = [one for one in host.addresses if (one, host.port) not in seen]
        fresh = list(dict.fromkeys(fresh))
        seen.update((one, host.port) for one in fresh)
        fresh.sort(key=lambda one: _key(seed, host.name, one))
        queues.append(_Queue(host, key, fresh))
    return queues


def _admit(queues: Sequence[_Queue], limit: int) -> None:
    """Share the places out, one to each host in turn."""
    hungry = list(queues)
    while hungry and limit > 0:
        fed = []
        for queue in hungry:
            if limit > 0 and queue.keep_next():
                fed.append(queue)
                limit -= 1
        hungry = fed


def _interleave(group: Sequence[_Queue]) -> Iterable[Candidate]:
    """The fewest taken goes first, then the other family, then the shuffled order."""
    ipv6 = True  # what the next one should be
    first = True
    waiting = [queue for queue in group if queue.kept]
    while waiting:
        fewest = min(queue.taken for queue in waiting)
        turn = [queue for queue in waiting if queue.taken == fewest]
        queue = turn[0] if first else _of_family(turn, ipv6=ipv6)
        address = queue.first(ipv6=ipv6) or queue.kept[0]
        yield queue.take(address)
        ipv6, first = ":" not in address, False
        waiting = [queue for queue in waiting if queue.kept]


def _of_family(turn: Sequence[_Queue], *, ipv6: bool) -> _Queue:
    return next((queue for queue in turn if queue.first(ipv6=ipv6)), turn[0])


def _alternate(addresses: Sequence[str]) -> list[str]:
    """One family after the other (RFC 8305 §4), IPv6 first, order kept within each."""
    ipv6 = [address for address in addresses if ":" in address]
    ipv4 = [address for address in addresses if ":" not in address]
    short = min(len(ipv6), len(ipv4))
    mixed = [one for pair in zip(ipv6, ipv4, strict=False) for one in pair]
    return mixed + ipv6[short:] + ipv4[short:]


def _key(seed: bytes, *parts: str) -> bytes:
    return blake2b("\0".join(parts).encode(), key=seed, digest_size=8).digest()
