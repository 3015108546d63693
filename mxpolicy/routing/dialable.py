"""Which addresses are never dialled, whatever domain publishes them.

A stranger can point an MX at ``127.0.0.1`` or ``169.254.169.254``. A mail server that
dials it talks to itself, or becomes a port scanner for the stranger (the answers come
back in bounces). An address that *embeds* an IPv4 address counts as that one too:
``::ffff:127.0.0.1`` is loopback. This holds for names and for literal nexthops.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from mxpolicy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["LOOPBACK", "PRIVATE", "Dialable", "Network", "Networks", "parse_networks"]

LOOPBACK = "loopback"
"""The objection to an address that every machine has for itself."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PRIVATE = "private"
"""The word that stands for the private ranges in ``never_dial`` and ``allow_dial``."""

# What it is called in a remark -> the ranges (RFC 6890 and its registries).
_NEVER = (
    ("this network", ("0.0.0.0/8", "::/128")),
    (LOOPBACK, ("127.0.0.0/8", "::1/128")),
    ("link-local", ("169.254.0.0/16", "fe80::/10", "fec0::/10")),
    ("multicast", ("224.0.0.0/4", "ff00::/8")),
    ("reserved", ("240.0.0.0/4",)),  # 255.255.255.255 is in it
)

# RFC 1918, RFC 6598, RFC 4193.
_PRIVATE = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
)


class Networks:
    """A set of networks; an address is in it by itself or by one that it embeds."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)

    def __contains__(self, address: str) -> bool:
        return any(self.has(one) for one in _with_embedded(address))

    def has(self, address: Address) -> bool:
        """Return whether the address itself is in it, whatever it embeds."""
        # `in` is False, not an error, when the versions differ.
        return any(address in network for network in self._networks)


class Dialable:
    """The options ``never_dial`` and ``allow_dial``, ready for use."""

    def __init__(
        self, never_dial: Iterable[str] = (), allow_dial: Iterable[str] = ()
    ) -> None:
        """Prepare.

        Raises:
            ConfigError: One of the texts is no address, network or ``private``.
        """
        self._allowed = Networks(parse_networks(allow_dial, "allow_dial"))
        self._never = [
            (word, Networks(map(ipaddress.ip_network, ranges)))
            for word, ranges in _NEVER
        ]
        configured = parse_networks(never_dial, "never_dial")
        self._never.append(("never_dial", Networks(configured)))

    def objection(self, address: str) -> str | None:
        """Return why *address* is not dialled, in one or two words, or None if it may be."""
        if self.is_exempt(address):
            return None
        for one in _with_embedded(address):
            for word, networks in self._never:
                if networks.has(one):
                    return word
        return None

    def is_exempt(self, address: str) -> bool:
        """Return whether the operator named *address* as an exception.

        Then it may be dialled. It does not count as ourselves merely because it is local
        to the kernel: a test bed on loopback is.
        """
        return self._allowed.has(ipaddress.ip_address(address))


def parse_networks(texts: Iterable[str], option: str) -> tuple[Network, ...]:
    """Return the networks that *texts* name: addresses, networks, or ``private``.

    Host bits may be set (``192.0.2.1/24``).

    Raises:
        ConfigError: One line for each text that is none of these.
    """
    networks: list[Network] = []
    mistakes: list[str] = []
    for text in texts:
        try:
            ranges = _PRIVATE if text == PRIVATE else (text,)
            networks.extend(ipaddress.ip_network(one, strict=False) for one in ranges)
        except ValueError:
            mistakes.append(f"{option}: expected an address or a network, not {text!a}")
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(networks)


def _with_embedded(text: str) -> Iterator[Address]:
    address = ipaddress.ip_address(text)
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        yield from _embedded(address)


def _embedded(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses to which a packet for *address* may be taken."""
    packed = address.packed
    # ::ffff:0:0/96 (RFC 4291 §2.5.5.2), 2002::/16 (RFC 3056 §2); 2001::/32 (RFC 4380 §4)
    # has its server's and the client's.
    yield from filter(None, (address.ipv4_mapped, address.sixtofour))
    yield from address.teredo or ()
    if packed[:12] in (_COMPATIBLE, _NAT64):
        yield ipaddress.IPv4Address(packed[12:])
    if packed[:6] == _LOCAL_NAT64:
        # RFC 6052 §2.2: used as a /96, or as a /48 with the IPv4 address around
        # octet 8. Where one reading is meant, the other is zeros.
        for octets in (packed[12:], packed[6:8] + packed[9:11]):
            if octets[0]:
                yield ipaddress.IPv4Address(octets)


_COMPATIBLE = bytes(12)  # ::/96, RFC 4291 §2.5.5.1
_NAT64 = bytes.fromhex("0064ff9b") + bytes(8)  # 64:ff9b::/96, RFC 6052 §2.1
_LOCAL_NAT64 = bytes.fromhex("0064ff9b0001")  # 64:ff9b:1::/48, RFC 8215
