"""What the kernel would send from, and so which addresses are this machine's.

No packet leaves.
"""

from __future__ import annotations

import socket
from contextlib import suppress

__all__ = ["is_local_address", "source_for"]

# Connecting a datagram socket only chooses a route; any port will do.
_PORT = 25


def is_local_address(address: str) -> bool:
    """Return whether *address* (canonical text) belongs to this machine.

    The kernel reaches an address of its own from that address. This holds on any
    interface, for any number of addresses. An address without a route is not ours. Of
    127.0.0.0/8 only 127.0.0.1 is recognised.
    """
    return source_for(address) == address


def source_for(address: str) -> str | None:
    """Return the address that *address* would be reached from; None without a route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, _PORT))
        return str(probe.getsockname()[0])
    return None
