"""What main.cf says to Postfix's own client alone, so that mxpolicy does otherwise. Pure.

Each is a setting of smtp(8) (postconf(5)). `tls_level` has those about TLS.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.master_cf import parse_services

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LISTS", "PROBES", "UNHEEDED", "told_to_client", "unheeded", "verified"]


class _Unheeded(NamedTuple):
    """Settings that have one effect.

    Attributes:
        names: One of them that is empty, or as its default, is not set.
        effect: What is so of mail that goes by mxpolicy, and what can be done.
    """

    names: tuple[str, ...]
    effect: str


_ROWS = (
    _Unheeded(
        ("smtp_generic_maps",),
        "leaves with the addresses that it has in the queue: what is to be rewritten"
        " belongs into canonical_maps or masquerade_domains",
    ),
    _Unheeded(
        (
            *("smtp_header_checks", "smtp_mime_header_checks"),
            *("smtp_nested_header_checks", "smtp_body_checks"),
        ),
        "leaves as it is in the queue, so header fields that these take out are sent:"
        " header_checks and body_checks hold for all mail",
    ),
    _Unheeded(
        ("smtp_bind_address", "smtp_bind_address6"),
        "leaves from the address that the system chooses, which SPF and PTR records must"
        " name, too",
    ),
    _Unheeded(
        ("smtp_destination_rate_delay",),
        "goes at the pace of its own transport: mxpolicy_destination_rate_delay, or"
        " mxlmtp_destination_rate_delay",
    ),
)

UNHEEDED = tuple(name for row in _ROWS for name in row.names)

# The transport that asks hosts whether an address exists (ADDRESS_VERIFICATION_README).
PROBES = "address_verify_default_transport"

# The lists of smtpd(8) by which it is asked.
LISTS = tuple(
    f"smtpd_{one}_restrictions"
    for one in ("client", "helo", "sender", "relay", "recipient", "data")
)
_VERIFY = re.compile(r"\breject_unverified_(?:sender|recipient)\b")

# As postconf(1) has them filled in.
_NONE = frozenset({"", "0s", "0"})


def told_to_client(master: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Return *settings* as they hold for the client that sends to the world.

    Args:
        master: Lines of master.cf as ``postconf -M`` prints them.
        settings: Of main.cf; ``default_transport`` and `UNHEEDED` are looked at.
    """
    world = settings["default_transport"].partition(":")[0]
    own: dict[str, str] = {}
    for one in parse_services(master, "smtp"):
        # Its usual name, also where all mail goes by mxpolicy already.
        if one.name in {world, "smtp"}:
            own |= {key: text for key, text in one.overrides.items() if key in UNHEEDED}
    return {**settings, **own}


def verified(master: str, settings: Mapping[str, str]) -> list[str]:
    """Return the words by which smtpd(8) has hosts asked whether an address exists.

    Args:
        master: As for `told_to_client`.
        settings: Of main.cf; `LISTS` are looked at.
    """
    said = [settings[one] for one in LISTS]
    for one in parse_services(master, "smtpd"):
        said += [one.overrides.get(name, "") for name in LISTS]
    return sorted(set(_VERIFY.findall(" ".join(said))))


def unheeded(settings: Mapping[str, str]) -> list[str]:
    """Return a sentence about each effect that *settings* have on other mail than ours.

    Args:
        settings: From `told_to_client`.
    """
    found = []
    for row in _ROWS:
        said = [
            f"{one} is {value}"
            for one in row.names
            if (value := settings.get(one, "")) not in _NONE
        ]
        if said:
            are = " and ".join(said)
            found.append(f"{are}: mail that goes by mxpolicy {row.effect}")
    return found
