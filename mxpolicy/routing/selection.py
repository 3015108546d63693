"""Which hosts are left without those that must not be dialled.

Two rules, in this order. Ourselves: RFC 5321 §5.1, "if the relay SMTP client finds
itself in the list, it must discard that host and all with an equal or worse
preference". Then `never_dial`. Pure: addresses have been looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.reply import printable
from mxpolicy.routing.dialable import LOOPBACK
from mxpolicy.routing.mx import (
    explain_no_address,
    loops_back,
    refuse_failed_lookup,
    refuse_no_primary,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.dialable import Dialable
    from mxpolicy.routing.mx import Exchangers, Host, Resolved
    from mxpolicy.routing.own import OwnIdentity

__all__ = ["LOOP_PORT", "Selection", "better_than_own_name", "select"]

# Postfix looks for itself only on the port where mail comes in. Another port of this
# machine is another service (a content filter), and only an operator names it.
LOOP_PORT = 25

# Remarks of one kind: a hundred bad hosts need not make a hundred lines.
MAX_REMARKS = 20


class Selection(NamedTuple):
    """What is left of one nexthop.

    Attributes:
        hosts: With the addresses that may be dialled, at least one each.
        remarks: What was left out, one line each.
        refusal: Why nothing is left; None when something is.
        own_preference: At which preference we are an exchanger ourselves.
        unresolved: Hosts without known address, because lookups failed.
    """

    hosts: tuple[tuple[Host, tuple[str, ...]], ...] = ()
    remarks: tuple[str, ...] = ()
    refusal: Outcome | None = None
    own_preference: int | None = None
    unresolved: tuple[Host, ...] = ()


def better_than_own_name(
    hosts: Sequence[Host], own: OwnIdentity
) -> tuple[tuple[Host, ...], int | None]:
    """Return the hosts better than our own name in the list, and its preference.

    The other hosts need no lookup.
    """
    mine = [host.preference for host in hosts if own.has_name(host.name)]
    if not mine:
        return tuple(hosts), None
    return tuple(host for host in hosts if host.preference < min(mine)), min(mine)


def select(
    domain: str,
    exchangers: Exchangers,
    resolved: Sequence[Resolved],
    own: OwnIdentity | None,
    dialable: Dialable,
    *,
    named_at: int | None = None,
    defer_missing: bool = False,
) -> Selection:
    """Return the hosts of *domain* that may be tried, or why there are none.

    Args:
        domain: For texts.
        exchangers: Where the hosts come from.
        resolved: The hosts that were looked up, with their addresses.
        own: Our identity; None when no host can be ourselves, because the port is not
            `LOOP_PORT`.
        dialable: Which addresses may be dialled.
        named_at: Preference of our own name; *resolved* has only better hosts.
        defer_missing: The option ``nxdomain: defer``.
    """
    if exchangers.refusal is not None:
        return Selection(remarks=exchangers.remarks, refusal=exchangers.refusal)
    mine = named_at
    if own is not None:
        found = _own_preference(resolved, own, dialable)
        mine = min((one for one in (mine, found) if one is not None), default=None)
    better = [one for one in resolved if mine is None or one.host.preference < mine]
    hosts, objections = _dialable_only(better, dialable)
    remarks = exchangers.remarks + _failures(better) + objections
    if mine is not None:
        remarks += (f"this system is an MX of preference {mine}; no others are tried",)
    refusal = None
    if not hosts:
        refusal = _why_none(domain, better, mine, exchangers, defer_missing)
    unresolved = tuple(one.host for one in better if one.is_unresolved)
    return Selection(hosts, remarks, refusal, mine, unresolved)


def _own_preference(
    resolved: Sequence[Resolved], own: OwnIdentity, dialable: Dialable
) -> int | None:
    return min(
        (
            one.host.preference
            for one in resolved
            if any(_is_own(address, own, dialable) for address in one.addresses)
        ),
        default=None,
    )


def _is_own(address: str, own: OwnIdentity, dialable: Dialable) -> bool:
    # Every machine has 127.0.0.1: an MX of that address must not be dialled, and says
    # nothing about us. An address that the operator excepts from never_dial belongs to a
    # test bed, on this machine on purpose.
    ask_kernel = dialable.objection(address) != LOOPBACK and not dialable.is_exempt(
        address
    )
    return own.has_address(address, ask_kernel=ask_kernel)


def _dialable_only(
    resolved: Sequence[Resolved], dialable: Dialable
) -> tuple[tuple[tuple[Host, tuple[str, ...]], ...], tuple[str, ...]]:
    hosts = []
    remarks = []
    for one in resolved:
        allowed = []
        for address in one.addresses:
            if word := dialable.objection(address):
                remarks.append(f"never dialled: {one.host.name}[{address}] ({word})")
            else:
                allowed.append(address)
        if allowed:
            hosts.append((one.host, tuple(allowed)))
    return tuple(hosts), tuple(remarks[:MAX_REMARKS])


def _failures(resolved: Sequence[Resolved]) -> tuple[str, ...]:
    return tuple(
        printable(f"no DNS answer: {lookup.rdtype} of {lookup.name}: {lookup.reason}")
        for one in resolved
        for lookup in one.failures
    )[:MAX_REMARKS]


def _why_none(
    domain: str,
    better: Sequence[Resolved],
    mine: int | None,
    exchangers: Exchangers,
    defer_missing: bool,
) -> Outcome:
    if mine is None:
        return explain_no_address(
            domain, better, implicit=exchangers.implicit, defer_missing=defer_missing
        )
    if not better:
        return loops_back(domain)
    failed = [lookup for one in better for lookup in one.failures]
    if failed:
        return refuse_failed_lookup(domain, failed)
    return refuse_no_primary(domain)
