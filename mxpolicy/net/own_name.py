"""The machine's fully qualified name, found without asking DNS.

Every message needs that name. `socket.getfqdn` would ask DNS, and block while a dead
name server does not answer.
"""

from __future__ import annotations

import os

from mxpolicy.address import AddressError, parse_domain

__all__ = ["own_name"]

# Some keep block lists of several MiB in this file; our own line is on top.
MAX_HOSTS_FILE = 65536

# The name of a machine without a name; no host can tell it from another.
NAMELESS = "localhost.localdomain"


def own_name(hosts_file: str = "/etc/hosts", node: str = "") -> str:
    """Return the name for EHLO: a domain, or ``localhost.localdomain`` at worst.

    The node name if it has a dot, else the first name with a dot that *hosts_file*
    gives beside it (hosts(5)). Names that begin with the node name come first. RFC 5321
    §4.1.4 asks for a name that resolves; for a host that insists, set the option
    ``helo``.

    Args:
        hosts_file: Where to look.
        node: The node name; the kernel's (uname(2)) when empty.
    """
    node = (node or os.uname().nodename).lower()
    aliases = _aliases(node, hosts_file)
    full = [name for name in aliases if name.startswith(f"{node}.")]
    for name in (node, *full, *aliases, f"{node}.localdomain"):
        try:
            domain = parse_domain(name)
        except AddressError:
            continue
        host, dot, _ = domain.partition(".")
        if dot and host != "localhost":
            return domain
    return NAMELESS


def _aliases(node: str, hosts_file: str) -> list[str]:
    """Return all names on the lines of *hosts_file* that name *node*, lower case."""
    try:
        with open(hosts_file, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_HOSTS_FILE)
    except OSError:
        return []
    if len(text) == MAX_HOSTS_FILE:
        text = text.rpartition("\n")[0]  # half a line may hold half a name
    lines = (line.partition("#")[0].lower().split()[1:] for line in text.splitlines())
    return [name for names in lines if node in names for name in names]
