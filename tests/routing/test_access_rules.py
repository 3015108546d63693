"""Which rule decides; what is certain about a domain is tried in tests/server/test_access_policy.py."""

from __future__ import annotations

import pytest

from mxpolicy.errors import ConfigError
from mxpolicy.options import AccessAbout, AccessFinding, AccessRule
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.protocol.access_policy import MAX_ACTION
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.access_rules import (
    AccessRules,
    Situation,
    finding,
    unreachable,
    words,
)
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.host_record import HostRecord

NULL_MX = (AccessFinding.NULL_MX,)
RULE = AccessRule(NULL_MX, "DUNNO")

FOUND = Situation(
    AccessFinding.NULL_MX,
    AccessAbout.RECIPIENT,
    "mail.example.com",
    "RCPT",
    "192.0.2.9",
    "kim",
)


def decided(rule: AccessRule, situation: Situation = FOUND) -> bool:
    """Return whether *rule*, and not the ones after it, decides."""
    return AccessRules([rule]).action(situation) == rule.action


@pytest.mark.parametrize(
    ("key", "value", "matches"),
    [
        ("finding", NULL_MX, True),
        ("finding", (AccessFinding.NO_ADDRESS, AccessFinding.NULL_MX), True),
        ("finding", (AccessFinding.NO_ADDRESS,), False),
        ("about", AccessAbout.SENDER, False),
        ("protocol_state", (), True),
        ("protocol_state", ("MAIL", "RCPT"), True),
        ("protocol_state", ("DATA",), False),
        ("client", (), True),
        ("client", ("192.0.2.9",), True),
        ("client", ("2001:db8::/32", "192.0.2.0/24"), True),
        ("client", ("192.0.2.1", "0.0.0.0/32"), False),
        ("sasl_username", (), True),
        ("sasl_username", ("kim",), True),
        ("sasl_username", ("*",), True),
        ("sasl_username", ("Kim", ""), False),
        ("domain", (), True),
        ("domain", ("mail.example.com",), True),
        ("domain", (".example.com",), True),
        ("domain", (".com",), True),
        ("domain", ("example.com",), False),
        ("domain", (".mail.example.com",), False),
        ("domain", (".ample.com",), False),
    ],
)
def test_rule_matches_by_all_its_keys(key: str, value: object, matches: bool) -> None:
    rule = RULE._replace(**{key: value})  # type: ignore[arg-type]
    assert decided(rule) is matches


def test_client_without_an_address_is_in_no_network() -> None:
    everywhere = RULE._replace(client=("0.0.0.0/0", "::/0"))
    assert decided(everywhere)
    assert not decided(everywhere, FOUND._replace(client_address=""))


def test_address_within_another_is_no_member_of_its_network() -> None:
    rule = RULE._replace(client=("10.0.0.0/8",))
    assert not decided(rule, FOUND._replace(client_address="2002:a00:1::1"))


def test_nobody_has_no_name() -> None:
    nobody = FOUND._replace(sasl_username="")
    assert not decided(RULE._replace(sasl_username=("*", "")), nobody)


def test_first_rule_that_matches_decides() -> None:
    rules = [
        AccessRule(NULL_MX, "450", client=("198.51.100.0/24",)),
        AccessRule(NULL_MX, "WARN"),
        AccessRule(NULL_MX, "REJECT"),
    ]
    assert AccessRules(rules).action(FOUND) == "WARN"


@pytest.mark.parametrize("about", AccessAbout)
@pytest.mark.parametrize("found", AccessFinding)
def test_without_rules_only_null_mx_is_refused(
    found: AccessFinding, about: AccessAbout
) -> None:
    action = AccessRules([]).action(FOUND._replace(finding=found, about=about))
    assert action == ("550" if found is AccessFinding.NULL_MX else None)


def test_own_rules_come_before_those_of_rfc_7505() -> None:
    rules = AccessRules([AccessRule(NULL_MX, "DUNNO", domain=("example.net",))])
    assert rules.action(FOUND) == "550"
    assert rules.action(FOUND._replace(domain="example.net")) == "DUNNO"


def test_network_that_is_none_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"policy\.rules: expected an address"):
        AccessRules([RULE._replace(client=("example.com",))])


@pytest.mark.parametrize(
    ("found", "recipient", "sender"),
    [
        (AccessFinding.NULL_MX, "5.1.10", "5.7.27"),
        (AccessFinding.NO_SUCH_DOMAIN, "5.1.2", "5.1.8"),
        (AccessFinding.NO_ADDRESS, "5.4.4", "5.1.8"),
        (AccessFinding.NEVER_DIALLED, "5.4.4", "5.1.8"),
        (AccessFinding.LOOPS_TO_MYSELF, "5.4.6", "5.1.8"),
        (AccessFinding.ALL_PAUSED, "5.4.1", "5.4.1"),
    ],
)
def test_refusal_without_words_has_status_and_domain(
    found: AccessFinding, recipient: str, sender: str
) -> None:
    one = FOUND._replace(finding=found)
    assert words(one, 5).startswith(f"{recipient} recipient domain mail.example.com ")
    other = one._replace(about=AccessAbout.SENDER)
    assert words(other, 5).startswith(f"{sender} sender domain mail.example.com ")
    assert words(other, 4).startswith(f"4{sender[1:]} sender domain")
    assert words(one, 0).startswith("recipient domain mail.example.com ")


@pytest.mark.parametrize(
    "refusal",
    [
        None,
        Deferred(EnhancedStatus(4, 4, 3), "DNS"),
        Deferred(EnhancedStatus(4, 1, 10), "null MX, since an hour only"),
        Deferred(EnhancedStatus(4, 4, 4), "nxdomain: defer"),
        Bounced(EnhancedStatus(5, 1, 3), "bad address"),
        Bounced(EnhancedStatus(5, 7, 1), "of a later version"),
    ],
    ids=str,
)
def test_what_is_not_certain_is_no_finding(refusal: Bounced | Deferred | None) -> None:
    assert finding(refusal, ()) is None


# -- hosts that are away for now ---------------------------------------------------

HERE = Candidate("mx1.example.com", "192.0.2.1", 25, 10)
BACKUP = Candidate("mx2.example.com", "192.0.2.2", 25, 20)
RECORDS = {
    HERE: HostRecord(Verdict.FILTERED, Phase.CONNECT, True, 1000.0, 60.0, 6.0),
    BACKUP: HostRecord(Verdict.REFUSED, Phase.CONNECT, True, 1030.0, 60.0, 0.1),
}


def test_hosts_in_their_pause_are_a_finding_whatever_becomes_of_mail() -> None:
    for refusal in (None, Deferred(EnhancedStatus(4, 4, 1), "paused")):
        found = finding(refusal, (), is_hopeless=True)
        assert found is AccessFinding.ALL_PAUSED


def test_best_host_is_named_with_its_age() -> None:
    # As memory orders them the best is not always the first.
    text = unreachable((BACKUP, HERE), RECORDS, 1042.4)
    assert text == "mx1.example.com[192.0.2.1]:25 filtered 42s ago, and 1 more"
    # A clock that was set back.
    text = unreachable((BACKUP,), RECORDS, 1029.0)
    assert text == "mx2.example.com[192.0.2.2]:25 refused 0s ago"


def test_text_about_the_longest_names_is_short_enough() -> None:
    label = "x" * 60
    name = ".".join([label] * 4)
    long = HERE._replace(host=name, address="2001:db8:1111:2222:3333:4444:5555:6666")
    detail = unreachable((long,), {long: RECORDS[HERE]}, 1e6)
    one = FOUND._replace(
        finding=AccessFinding.ALL_PAUSED, domain="example.com", detail=detail
    )
    assert len(words(one, 4)) < MAX_ACTION


def test_only_what_passes_is_never_refused_for_good() -> None:
    passing = [one for one in AccessFinding if FOUND._replace(finding=one).is_passing]
    assert passing == [AccessFinding.ALL_PAUSED]
