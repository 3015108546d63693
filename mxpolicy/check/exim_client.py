"""What is said to Exim's own smtp transport alone, so that mxpolicy does otherwise. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mxpolicy.check.exim import Stanza

__all__ = ["left_out", "unheeded"]

# (options that have one effect, what is so of mail that goes by mxpolicy)
_ROWS = (
    (
        ("dkim_domain",),
        "leaves without that signature: have it signed before Exim, or keep domains that"
        " ask for one out of it",
    ),
    (
        ("headers_add", "headers_remove", "headers_rewrite", "return_path"),
        "leaves with the header fields and the sender that it has in the queue",
    ),
    (("transport_filter",), "leaves as it is in the queue"),
    (
        ("interface",),
        "leaves from the address that the system chooses, which SPF and PTR records must"
        " name, too",
    ),
    (
        ("hosts_require_tls", "hosts_require_dane", "tls_verify_hosts"),
        "is encrypted only where the host offers that, and no certificate is checked",
    ),
)


def left_out(routers: Mapping[str, Stanza]) -> list[str]:
    """Return a sentence about each router that leaves addresses out, and mxpolicy does not.

    Args:
        routers: As ``-bP`` shows them, by name.
    """
    return [
        f"router {name} leaves out hosts at {hosts} (ignore_target_hosts). mxpolicy leaves"
        " out loopback and the like; for private addresses put never_dial: [private] into"
        " its configuration"
        for name, one in routers.items()
        if one.get("driver") == "dnslookup"
        and (hosts := one.get("ignore_target_hosts"))
    ]


def unheeded(
    transports: Mapping[str, Stanza], routers: Mapping[str, Stanza]
) -> list[str]:
    """Return a sentence about each effect that options have on other mail than ours.

    Args:
        transports: As ``-bP`` shows them, by name.
        routers: Likewise. Those that look up MX records lead to the transport that
            sends to the world.
    """
    return list(dict.fromkeys(_unheeded(transports, routers)))


def _unheeded(
    transports: Mapping[str, Stanza], routers: Mapping[str, Stanza]
) -> Iterator[str]:
    by_mx = [one for one in routers.values() if one.get("driver") == "dnslookup"]
    named = {one.get("transport", "") for one in by_mx}
    # Its name is made of each message: it may be any.
    is_any = any("$" in one for one in named)
    for name, one in transports.items():
        if one.get("driver") != "smtp" or not (is_any or name in named):
            continue
        for options, effect in _ROWS:
            said = [key for key in options if one.get(key)]
            if said:
                are = " and ".join(f"{key} = {one[key]}" for key in said)
                yield f"transport {name} has {are}: mail that goes by mxpolicy {effect}"
