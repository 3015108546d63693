"""The machine's fully qualified name, found without asking DNS.

`socket.getfqdn` would ask, and block for as long as a dead name server makes it;
that name is needed for every message.
"""

from __future__ import annotations

import os

from mxpolicy.address import AddressError, parse_domain

__all__ = ["own_name"]

# Block lists of several MiB are kept in this file; our own line is on top.
MAX_HOSTS_FILE = 65536


def own_name(hosts_file: str = "/etc/hosts") -> str:
    """Return the name for EHLO: a domain, or ``localhost.localdomain`` at worst.

    The node name if it has a dot, else the first name with a dot that
    *hosts_file* gives beside it (hosts(5)). RFC 5321 §4.1.4 asks for a name that
    resolves; a host that insists wants the option ``helo`` set.
    """
    node = os.uname().nodename
    for name in (node, *_aliases(node, hosts_file), f"{node}.localdomain"):
        try:
            domain = parse_domain(name)
        except AddressError:
            continue
        if "." in domain:
            return domain
    return "localhost.localdomain"


def _aliases(node: str, hosts_file: str) -> list[str]:
    try:
        with open(hosts_file, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_HOSTS_FILE)
    except OSError:
        return []
    lines = (line.partition("#")[0].split()[1:] for line in text.splitlines())
    return [name for names in lines if node in names for name in names]
