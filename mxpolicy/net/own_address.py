"""Asks the kernel whether an address is one of this machine; no packet leaves."""

from __future__ import annotations

import socket

__all__ = ["is_local_address"]

# Connecting a datagram socket only chooses a route; any port will do.
_PORT = 25


def is_local_address(address: str) -> bool:
    """Return whether *address* (canonical text) belongs to this machine.

    The kernel reaches its own addresses from themselves, so the source address
    it would choose is the address itself. This sees addresses on any interface
    and in any number, without listing them. Addresses without a route are not
    ours. Of 127.0.0.0/8 only 127.0.0.1 is recognised.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _PORT))
            name: str = probe.getsockname()[0]
    except OSError:
        return False
    return name == address
