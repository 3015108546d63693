"""What a Postfix demands of TLS, which mxpolicy does not: it takes what a host offers.

Postfix's own client has the levels of TLS_README. mxpolicy is at ``may`` for all hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEMANDING", "LEVEL", "LMTP_LEVEL", "POLICY_MAPS", "demand"]

# For all hosts, and for some.
LEVEL = "smtp_tls_security_level"
POLICY_MAPS = "smtp_tls_policy_maps"

# Of lmtp(8).
LMTP_LEVEL = "lmtp_tls_security_level"

# Levels at which nothing is delivered to a host without TLS.
DEMANDING = frozenset({"encrypt", "dane-only", "fingerprint", "verify", "secure"})
# The same for a host that has TLSA records.
_DANE = "dane"


def demand(settings: Mapping[str, str]) -> str:
    """Return what main.cf demands, in words; empty when it demands nothing.

    Args:
        settings: Of main.cf; `LEVEL` and `POLICY_MAPS` are looked at.
    """
    level, maps = (settings.get(one, "") for one in (LEVEL, POLICY_MAPS))
    demands = [f"{LEVEL} is {level}"] if level in {*DEMANDING, _DANE} else []
    demands += [f"{POLICY_MAPS} is {maps}"] if maps else []
    return " and ".join(demands)
