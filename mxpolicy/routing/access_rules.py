"""What is known about a domain without dialling a host, and what is answered then.

`finding` reads it from a plan without candidates. `AccessRules` are the operator's
rules and, after them, those of RFC 7505. Pure: plans are made elsewhere.

A finding is what the domain's owner has published and DNS has said in full. Nothing is
refused for anything else: no answer, half an answer, an address that is not understood,
or another reason to defer the mail.

There is one exception: deliveries found a moment ago that no host of the domain can be
reached. It is never a reason to refuse for good.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import canonical_address
from mxpolicy.options import AccessAbout, AccessFinding, AccessRule
from mxpolicy.outcome import Bounced
from mxpolicy.reply import EnhancedStatus, printable
from mxpolicy.routing.dialable import Networks, parse_networks
from mxpolicy.routing.mx import LOOP, NO_ROUTE, NO_SUCH_DOMAIN, NULL_MX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.host_record import HostRecord
    from mxpolicy.routing.mx import Lookup

__all__ = [
    "ANY_NAME",
    "AccessRules",
    "Situation",
    "finding",
    "unreachable",
    "words",
]

ANY_NAME = "*"
"""In ``sasl_username``: any login."""

# RFC 7505 §4.1: "550 5.1.10 Recipient address has null MX". §4.2: "550 5.7.27 Sender
# address has null MX". Everything else may be right for this mail system: a domain
# that has no MX for the world, or that loops, can be a local one here.
_LAST = (
    AccessRule((AccessFinding.NULL_MX,), "550"),
    AccessRule((AccessFinding.NULL_MX,), "550", AccessAbout.SENDER),
)

_STATUSES = {
    NULL_MX: AccessFinding.NULL_MX,
    NO_SUCH_DOMAIN: AccessFinding.NO_SUCH_DOMAIN,
    LOOP: AccessFinding.LOOPS_TO_MYSELF,
}

# RFC 3463 §3.5: X.4.1, no answer from host.
_UNREACHABLE = EnhancedStatus(4, 4, 1)

# Characters. A reply line should not be over 512 bytes (RFC 5321 §4.5.3.1.5). The mail
# server puts the address before ours; a name may have 253.
_DETAIL_LENGTH = 200

# Finding -> the status for a recipient, and what is said of the domain. The status is
# the plan's, so that the answer and a later bounce agree.
_WORDS = {
    AccessFinding.NULL_MX: (NULL_MX, "does not accept mail (null MX)"),
    AccessFinding.NO_SUCH_DOMAIN: (NO_SUCH_DOMAIN, "does not exist"),
    AccessFinding.NO_ADDRESS: (NO_ROUTE, "has no mail server with an address"),
    AccessFinding.NEVER_DIALLED: (
        NO_ROUTE,
        "has no mail server that mail can be sent to",
    ),
    AccessFinding.LOOPS_TO_MYSELF: (LOOP, "loops back to this mail system"),
    AccessFinding.ALL_PAUSED: (
        _UNREACHABLE,
        "has no mail server that could be reached",
    ),
}

# RFC 7505 §5.1: sender address has null MX. RFC 3463 §3.2: X.1.8, bad sender's
# system address.
_SENDER_NULL_MX = EnhancedStatus(5, 7, 27)
_BAD_SENDER_DOMAIN = EnhancedStatus(5, 1, 8)


class Situation(NamedTuple):
    """One finding, and what the mail server said beside the address.

    Attributes:
        finding: The finding.
        about: Whether it is the sender's or the recipient's domain.
        domain: A `mxpolicy.address.Domain` or an address literal.
        protocol_state: Upper case.
        client_address: Canonical, or empty.
        sasl_username: Empty without a login.
        detail: What was seen, printable; may be empty.
    """

    finding: AccessFinding
    about: AccessAbout
    domain: str
    protocol_state: str = ""
    client_address: str = ""
    sasl_username: str = ""
    detail: str = ""

    @property
    def is_passing(self) -> bool:
        """Whether it may be over in a minute, so that nothing is refused for good."""
        return self.finding is AccessFinding.ALL_PAUSED


class AccessRules:
    """The operator's rules, ready to be asked, and those of RFC 7505 after them."""

    def __init__(self, rules: Iterable[AccessRule]) -> None:
        """Prepare.

        Raises:
            ConfigError: A network cannot be understood.
        """
        self._rules = [
            (rule, Networks(parse_networks(rule.client, "policy.rules")))
            for rule in (*rules, *_LAST)
        ]

    def action(self, situation: Situation) -> str | None:
        """Return the action of the first rule that matches; None when none does."""
        rule = self.rule(situation)
        return None if rule is None else rule.action

    def rule(self, situation: Situation) -> AccessRule | None:
        """Return the first rule that matches; None when none does."""
        for rule, clients in self._rules:
            if _matches(rule, clients, situation):
                return rule
        return None


def _matches(rule: AccessRule, clients: Networks, situation: Situation) -> bool:
    """Return whether all conditions of *rule* hold; a missing one always holds."""
    client, user = situation.client_address, situation.sasl_username
    names = rule.sasl_username
    return (
        situation.finding in rule.finding
        and situation.about is rule.about
        and (not rule.protocol_state or situation.protocol_state in rule.protocol_state)
        and (not rule.client or (client != "" and clients.has(ip_address(client))))
        and (not names or (user != "" and (user in names or ANY_NAME in names)))
        and (
            not rule.domain
            or any(_covers(one, situation.domain) for one in rule.domain)
        )
    )


def _covers(pattern: str, domain: str) -> bool:
    is_parent = pattern.startswith(".")
    return domain.endswith(pattern) if is_parent else domain == pattern


def finding(
    refusal: Outcome | None, lookups: Iterable[Lookup], *, is_hopeless: bool = False
) -> AccessFinding | None:
    """Return what is certain about a domain, from the plan for mail to it.

    Args:
        refusal: Why there is no host to dial; None when there is a host. Only a bounce
            is certain.
        lookups: What DNS said.
        is_hopeless: Every host that could be dialled has failed a moment ago.
    """
    if is_hopeless:
        return AccessFinding.ALL_PAUSED
    if not isinstance(refusal, Bounced):
        return None
    if refusal.status == NO_ROUTE:
        # An address literal has no lookups: it was the address that was refused.
        asked = list(lookups)
        if not asked or any(map(_has_address, asked)):
            return AccessFinding.NEVER_DIALLED
        return AccessFinding.NO_ADDRESS
    return _STATUSES.get(refusal.status)


def unreachable(
    candidates: Sequence[Candidate], records: Mapping[Candidate, HostRecord], now: float
) -> str:
    """Return a text about hosts that all have failed: which, how, and how long ago.

    Args:
        candidates: At least one, each with its record. The best one is named.
        records: How each of them failed.
        now: UTC seconds.
    """
    best = min(candidates, key=lambda one: one.rank)
    record = records[best]
    word = record.verdict.value if record.verdict else "failed"
    age = max(0.0, now - record.since)
    place = printable(str(best), _DETAIL_LENGTH)
    text = f"{place} {word} {age:.0f}s ago"
    others = len(candidates) - 1
    return f"{text}, and {others} more" if others else text


def _has_address(lookup: Lookup) -> bool:
    # An MX record may hold an address where a name should be.
    exchanges = (one.exchange for one in lookup.exchanges)
    return bool(lookup.addresses) or any(map(canonical_address, exchanges))


def words(situation: Situation, class_: int) -> str:
    """Return status and text for a refusal without words of its own.

    Args:
        situation: Why it is refused.
        class_: 4 or 5, of the status; 0 for a text without one.
    """
    status, said = _WORDS[situation.finding]
    # Hosts that cannot be reached are the same for sender and recipient.
    if situation.about is AccessAbout.SENDER and not situation.is_passing:
        is_null_mx = situation.finding is AccessFinding.NULL_MX
        status = _SENDER_NULL_MX if is_null_mx else _BAD_SENDER_DOMAIN
    text = f"{situation.about.value} domain {situation.domain} {said}"
    if situation.detail:
        text += f": {situation.detail}"
    return f"{status._replace(class_=class_)} {text}" if class_ else text
