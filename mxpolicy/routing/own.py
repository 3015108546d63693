"""Our own identity in DNS: the names and addresses that mean this mail system.

RFC 5321 §5.1: a host that finds itself in the MX list discards itself and all that is
not strictly better. Else mail would go round in circles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.routing.dialable import Networks, parse_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["OwnIdentity"]


class OwnIdentity:
    """Tells whether a host is this mail system."""

    def __init__(
        self,
        names: Iterable[str] = (),
        addresses: Iterable[str] = (),
        is_local: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Take what is known of this mail system.

        Args:
            names: Host names, the EHLO name among them; empty ones are left out.
            addresses: Addresses or networks as the world sees them, for a mail
                system behind NAT (the option ``own_addresses``).
            is_local: Asks the kernel whether an address is one of this machine.

        Raises:
            ConfigError: One of *addresses* is neither address nor network.
        """
        self._names = frozenset(name.lower().rstrip(".") for name in names if name)
        self._addresses = Networks(parse_networks(addresses, "own_addresses"))
        self._is_local = is_local

    def has_name(self, host: str) -> bool:
        """Return whether *host* is one of our names."""
        return host.lower().rstrip(".") in self._names

    def has_address(self, address: str, *, ask_kernel: bool = True) -> bool:
        """Return whether mail dialled to *address* would come back to us."""
        return address in self._addresses or (ask_kernel and self._is_local(address))
