"""The nexthop that the mail server gives us, one or a list.

The forms are those of Postfix's transport(5) and relayhost: ``domain``,
``domain:port``, ``[host]``, ``[host]:port``, ``[192.0.2.1]``, ``[ipv6:2001:db8::1]``,
``[2001:db8::1]:2525``; several with commas or blanks between them. Brackets
suppress the MX lookup. Pure: nothing is looked up.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import (
    REMEMBERED,
    AddressError,
    canonical_address,
    is_address_literal,
    parse_address_literal,
    parse_domain,
)
from mxpolicy.errors import MxPolicyError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Nexthop",
    "NexthopError",
    "NexthopKind",
    "nexthop_aim",
    "parse_nexthop",
]

# An argument of a pipe(8) command has no bound of its own.
MAX_TEXT = 4096

# The names in transport(5) entries of the field. Services with implicit TLS
# (``submissions``) are left out: we would speak in clear where the host awaits TLS.
SERVICES = {"smtp": 25, "submission": 587}

_SEPARATORS = re.compile(r"[,\s]+")
_BRACKETED = re.compile(r"(\[[^\[\]]*\])(?::([^:]*))?\Z")
_BARE = re.compile(r"([^\[\]:]+)(?::([^:]*))?\Z")


class NexthopError(MxPolicyError, ValueError):
    """The nexthop cannot be understood: a mistake of the operator, to be deferred.

    Attributes:
        text: The nexthop.
        reason: What is wrong with it.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text, reason)
        self.text = text
        self.reason = reason

    def __str__(self) -> str:
        return f"nexthop {self.text[:200]!a}: {self.reason}"


class NexthopKind(Enum):
    """How a nexthop becomes hosts."""

    DOMAIN = "domain"  # by MX, then by address
    HOST = "host"  # by address
    ADDRESS = "address"  # it is one


class Nexthop(NamedTuple):
    """One element of the list.

    Attributes:
        text: As written.
        kind: See `NexthopKind`.
        name: A `mxpolicy.address.Domain`, or the canonical address.
        port: TCP port, 1 to 65535.
    """

    text: str
    kind: NexthopKind
    name: str
    port: int

    def is_domain_of(self, destination: str, default_port: int) -> bool:
        """Return whether this is the recipient's own domain, and not the operator's choice.

        Only then trouble with it may be the recipient's fault. *destination* is
        `mxpolicy.address.Mailbox.domain`; an address literal counts as well.
        """
        if self.port != default_port:
            return False
        if self.kind is NexthopKind.DOMAIN:
            return self.name == destination
        return self.kind is NexthopKind.ADDRESS and (
            is_address_literal(destination)
            and self.name == parse_address_literal(destination)
        )


@lru_cache(maxsize=REMEMBERED)
def parse_nexthop(text: str, default_port: int) -> tuple[Nexthop, ...]:
    """Return the elements of *text* in their order, each once; at least one.

    Raises:
        NexthopError: An element is malformed, or there is none.
        mxpolicy.address.UnsupportedDomain: An international name needs the extra
            ``idna``.
    """
    if len(text) > MAX_TEXT:
        raise NexthopError(text, "too long")
    elements = [element for element in _SEPARATORS.split(text) if element]
    if not elements:
        raise NexthopError(text, "empty")
    parsed = [_parse_element(element, default_port) for element in elements]
    seen: dict[tuple[NexthopKind, str, int], Nexthop] = {}
    for nexthop in parsed:
        seen.setdefault(nexthop[1:], nexthop)
    return tuple(seen.values())


def nexthop_aim(hops: Iterable[Nexthop]) -> str:
    """Return one spelling for all texts that mean the same nexthop, one or a list.

    ``[H]`` and ``[h]:25`` are one, and a domain differs from a host of the same name. The
    journal's keys and the places of deliveries are made of it, so it must not change.
    """
    return ",".join(
        f"{one.name}:{one.port}"
        if one.kind is NexthopKind.DOMAIN
        else f"[{one.name}]:{one.port}"
        for one in hops
    )


def _parse_element(text: str, default_port: int) -> Nexthop:
    if found := _BRACKETED.match(text):
        return _bracketed(text, found[1], _port(text, found[2], default_port))
    if found := _BARE.match(text):
        port = _port(text, found[2], default_port)
        # "user@192.0.2.1" and "relayhost = 192.0.2.1" are malformed, but clear.
        if address := canonical_address(found[1]):
            return Nexthop(text, NexthopKind.ADDRESS, address, port)
        return Nexthop(text, NexthopKind.DOMAIN, _name(text, found[1]), port)
    if canonical_address(text):
        raise NexthopError(text, f"write an IPv6 address as [{text}] or [{text}]:port")
    raise NexthopError(text, "expected domain, domain:port, [host] or [host]:port")


def _bracketed(text: str, literal: str, port: int) -> Nexthop:
    inner = literal[1:-1]
    address = canonical_address(inner)
    if address is None and ":" in inner:
        try:
            address = parse_address_literal(literal)
        except AddressError as error:
            raise NexthopError(text, "not an address") from error
    if address is not None:
        return Nexthop(text, NexthopKind.ADDRESS, address, port)
    return Nexthop(text, NexthopKind.HOST, _name(text, inner), port)


def _name(text: str, name: str) -> str:
    try:
        return parse_domain(name)
    except AddressError as error:
        # A subclass stays: an international name that this installation does not know
        # is not malformed.
        if type(error) is not AddressError:
            raise
        raise NexthopError(text, error.reason) from error


def _port(text: str, port: str | None, default: int) -> int:
    if port is None:
        return default
    if port in SERVICES:
        return SERVICES[port]
    if port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536:
        return int(port)
    raise NexthopError(text, "port must be 1 to 65535, smtp or submission")
