"""From DNS answers to hosts, and what it means when there are none.

RFC 5321 §5.1 (MX, implicit MX, ourselves in the list), RFC 7505 (null MX), RFC
2308 (the answer "there is none" differs from no answer). Pure: lookups come in as
values. `mxpolicy.delivery.plan` makes them, `mxpolicy.routing.selection` leaves out
what must not be dialled, `mxpolicy.routing.order` puts the rest in order.

A refusal here is an `Outcome` for all recipients of the nexthop. It is permanent only
for what the domain's owner has published. No answer, half an answer and an answer that
is not understood are deferred.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import AddressError, canonical_address, parse_domain
from mxpolicy.outcome import Bounced, Deferred, Outcome
from mxpolicy.reply import EnhancedStatus, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Exchangers",
    "Host",
    "Lookup",
    "LookupStatus",
    "MxRecord",
    "Resolved",
    "explain_no_address",
    "loops_back",
    "mail_exchangers",
    "operators_trouble",
    "refuse_failed_lookup",
    "refuse_no_primary",
]

# As many as the addresses that are kept of all hosts together: the first address of
# every host goes before the second of any.
MAX_HOSTS = 100

ROOT = "."

# RFC 3463 §3, RFC 7505 §5.1
NO_SUCH_DOMAIN = EnhancedStatus(5, 1, 2)
NULL_MX = EnhancedStatus(5, 1, 10)
NO_ROUTE = EnhancedStatus(5, 4, 4)
LOOP = EnhancedStatus(5, 4, 6)
MISCONFIGURED = EnhancedStatus(4, 3, 5)
DIRECTORY_FAILURE = EnhancedStatus(4, 4, 3)
NO_ROUTE_NOW = EnhancedStatus(4, 4, 4)


class LookupStatus(Enum):
    """What DNS said about one name and type."""

    FOUND = "found"
    NODATA = "no data"  # the name exists, not with this type (RFC 2308 §2.2)
    NXDOMAIN = "no such name"
    FAILED = "failed"  # nothing that could be believed


class MxRecord(NamedTuple):
    """One MX record (RFC 1035 §3.3.9).

    Attributes:
        preference: 0 to 65535, smaller is better.
        exchange: As DNS has it, without the final dot; ``.`` is the root.
    """

    preference: int
    exchange: str


class Lookup(NamedTuple):
    """One answer, CNAMEs already followed.

    Attributes:
        name: The name asked for.
        rdtype: ``MX``, ``A``, ``AAAA``.
        status: See `LookupStatus`; only FOUND has records.
        records: `MxRecord` for MX, canonical address texts for A and AAAA.
        secure: Validated by a resolver that we believe (RFC 4035, AD).
        ttl: Seconds the answer may be kept.
        reason: Why it failed, for a text; empty otherwise.
    """

    name: str
    rdtype: str
    status: LookupStatus
    records: tuple[MxRecord, ...] | tuple[str, ...] = ()
    secure: bool = False
    ttl: float = 0.0
    reason: str = ""

    @property
    def exchanges(self) -> tuple[MxRecord, ...]:
        """The records of an MX lookup."""
        return tuple(one for one in self.records if isinstance(one, MxRecord))

    @property
    def addresses(self) -> tuple[str, ...]:
        """The records of an A or AAAA lookup."""
        return tuple(one for one in self.records if isinstance(one, str))


class Host(NamedTuple):
    """A mail exchanger.

    Attributes:
        name: A domain, or the address where that is all there is.
        preference: Of its MX record; 0 for an implicit MX and for ``[host]``.
        address: Known without asking DNS: a literal.
    """

    name: str
    preference: int = 0
    address: str | None = None


class Exchangers(NamedTuple):
    """What an MX lookup came to.

    Attributes:
        hosts: By preference; empty only with a refusal.
        remarks: What was left out, one line each.
        refusal: Why there are none.
        implicit: The domain has no MX record and stands for itself.
    """

    hosts: tuple[Host, ...] = ()
    remarks: tuple[str, ...] = ()
    refusal: Outcome | None = None
    implicit: bool = False


class Resolved(NamedTuple):
    """A host with what DNS said about its addresses.

    Attributes:
        host: The host.
        addresses: Canonical texts, both families, in no order.
        lookups: The answers; empty for a literal.
    """

    host: Host
    addresses: tuple[str, ...] = ()
    lookups: tuple[Lookup, ...] = ()

    @property
    def failures(self) -> tuple[Lookup, ...]:
        """The lookups without an answer."""
        return tuple(one for one in self.lookups if one.status is LookupStatus.FAILED)

    @property
    def is_unresolved(self) -> bool:
        """True when no address is known, and a lookup that failed may be why."""
        return not self.addresses and bool(self.failures)

    @property
    def exists(self) -> bool:
        """False when every answer was that there is no such name."""
        return any(one.status is not LookupStatus.NXDOMAIN for one in self.lookups)


def mail_exchangers(domain: str, lookup: Lookup) -> Exchangers:
    """Return the mail exchangers of *domain* from the answer to its MX lookup.

    No MX record means the domain itself (RFC 5321 §5.1, implicit MX), but only
    after an answer: mail must not go to a web server because a name server is
    away. NXDOMAIN counts as no record, as in Postfix; the address lookup decides.
    """
    match lookup.status:
        case LookupStatus.FAILED:
            return Exchangers(refusal=refuse_failed_lookup(domain, (lookup,)))
        case LookupStatus.NODATA | LookupStatus.NXDOMAIN:
            return Exchangers((Host(domain),), implicit=True)
        case LookupStatus.FOUND:
            return _from_records(domain, lookup.exchanges)


def _from_records(domain: str, records: Sequence[MxRecord]) -> Exchangers:
    # RFC 7505 §3: "." is a null MX only when it is alone. Beside real exchangers it
    # is a mistake: the domain wants its mail (Postfix refuses the whole set).
    if records and all(record.exchange == ROOT for record in records):
        text = f"domain {domain} does not accept mail (null MX)"
        return Exchangers(refusal=Bounced(NULL_MX, printable(text)))
    hosts: dict[str, Host] = {}
    remarks: list[str] = []
    for record in sorted(records):
        host, remark = _host(record)
        if remark:
            remarks.append(remark)
        if host:
            hosts.setdefault(host.name, host)
    if not hosts:
        text = f"no MX record of {domain} names a host"
        return Exchangers((), tuple(remarks), Bounced(NO_ROUTE, printable(text)))
    return Exchangers(tuple(hosts.values()), tuple(remarks))


def _host(record: MxRecord) -> tuple[Host | None, str]:
    if record.exchange == ROOT:
        return None, f"null MX beside others skipped (preference {record.preference})"
    if address := canonical_address(record.exchange):
        # Forbidden (RFC 5321 §5.1) but common, and its meaning is clear.
        return Host(address, record.preference, address), f"MX is an address: {address}"
    try:
        return Host(parse_domain(record.exchange), record.preference), ""
    except AddressError:
        return None, printable(f"MX is not a host name, skipped: {record.exchange}")


def loops_back(domain: str) -> Outcome:
    """Refuse: the best exchanger is this mail system, which has not kept the mail."""
    return Bounced(LOOP, printable(f"mail for {domain} loops back to myself"))


def refuse_no_primary(domain: str) -> Outcome:
    """Refuse for now: exchangers better than ourselves exist, none has an address.

    Postfix defers here too. The missing record is another system's, and ours is the
    backup that was chosen to wait.
    """
    text = f"this system is an MX of {domain}, and no better one can be looked up"
    return Deferred(NO_ROUTE_NOW, printable(text))


def refuse_failed_lookup(domain: str, failed: Sequence[Lookup]) -> Outcome:
    """Refuse for now: DNS did not answer."""
    first = failed[0]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    text = f"no DNS answer for {domain}: {first.rdtype} of {first.name}: {first.reason}"
    return Deferred(DIRECTORY_FAILURE, printable(text + more))


def explain_no_address(
    domain: str,
    resolved: Sequence[Resolved],
    *,
    implicit: bool = False,
    defer_missing: bool = False,
) -> Outcome:
    """Return why no host of *domain* has an address that may be dialled.

    It is permanent only when every lookup was answered: a name server that is away
    may hold the missing address. An address that is never dialled counts as an answer.
    The text does not name it, so that bounces do not map our networks.

    Args:
        resolved: Every host that was looked up, at least one.
        implicit: The only host is the domain itself, without an MX record.
        defer_missing: The option ``nxdomain: defer``.
    """
    failed = [lookup for one in resolved for lookup in one.failures]
    if failed:
        return refuse_failed_lookup(domain, failed)
    if any(one.addresses for one in resolved):
        text = f"no host of {domain} has an address that mail can be sent to"
        return Bounced(NO_ROUTE, printable(text))
    if not implicit:
        status, text = NO_ROUTE, f"no mail server of {domain} has an address"
    elif any(one.exists for one in resolved):
        status, text = NO_ROUTE, f"{domain} has neither MX nor address records"
    else:
        status, text = NO_SUCH_DOMAIN, f"domain {domain} does not exist"
    if defer_missing:
        return Deferred(status._replace(class_=4), printable(text))
    return Bounced(status, printable(text))


def operators_trouble(refusal: Outcome) -> Outcome:
    """Turn a bounce into 4.3.5: the operator, not the recipient, named this nexthop.

    A relay that vanishes from DNS must not make all mail bounce (Postfix does the
    same for relayhost and fallback relays).
    """
    if isinstance(refusal, Bounced):
        return Deferred(MISCONFIGURED, printable(f"configured nexthop: {refusal.text}"))
    return refusal
