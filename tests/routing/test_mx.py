"""What an MX lookup comes to, and what is said when nothing is left."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.mx import (
    Exchangers,
    Host,
    Lookup,
    LookupStatus,
    MxRecord,
    Resolved,
    explain_no_address,
    loops_back,
    mail_exchangers,
    operators_trouble,
    refuse_failed_lookup,
)

FOUND, NODATA = LookupStatus.FOUND, LookupStatus.NODATA
NXDOMAIN, FAILED = LookupStatus.NXDOMAIN, LookupStatus.FAILED


def mx(*records: tuple[int, str], status: LookupStatus = FOUND) -> Lookup:
    return Lookup(
        "example.com",
        "MX",
        status,
        tuple(MxRecord(*record) for record in records),
        reason="SERVFAIL from 192.0.2.53" if status is FAILED else "",
    )


def exchangers(*records: tuple[int, str]) -> Exchangers:
    return mail_exchangers("example.com", mx(*records))


def resolved(
    name: str, a: LookupStatus, aaaa: LookupStatus, preference: int = 0
) -> Resolved:
    addresses = ("127.0.0.1",) if FOUND in (a, aaaa) else ()
    lookups = tuple(
        Lookup(name, rdtype, status, reason="timeout" if status is FAILED else "")
        for rdtype, status in (("A", a), ("AAAA", aaaa))
    )
    return Resolved(Host(name, preference), addresses, lookups)


def test_hosts_are_named_by_preference() -> None:
    assert exchangers((20, "b.example"), (10, "a.example"), (20, "c.example")) == (
        Exchangers(
            (Host("a.example", 10), Host("b.example", 20), Host("c.example", 20))
        )
    )


@pytest.mark.parametrize("status", [NODATA, NXDOMAIN])
def test_domain_stands_for_itself_after_an_answer_without_mx(
    status: LookupStatus,
) -> None:
    assert mail_exchangers("example.com", mx(status=status)) == Exchangers(
        (Host("example.com"),), implicit=True
    )


def test_domain_never_stands_for_itself_after_a_failed_lookup() -> None:
    found = mail_exchangers("example.com", mx(status=FAILED))
    assert found.hosts == ()
    assert found.refusal == Deferred(
        EnhancedStatus(4, 4, 3),
        "no DNS answer for example.com: MX of example.com: SERVFAIL from 192.0.2.53",
    )


def test_null_mx_bounces_when_it_is_alone() -> None:
    found = exchangers((0, "."))
    assert found.hosts == ()
    assert found.refusal == Bounced(
        EnhancedStatus(5, 1, 10), "domain example.com does not accept mail (null MX)"
    )


def test_null_mx_beside_real_hosts_is_skipped() -> None:
    found = exchangers((0, "."), (10, "a.example"))
    assert found.hosts == (Host("a.example", 10),)
    assert found.refusal is None
    assert found.remarks == ("null MX beside others skipped (preference 0)",)


def test_only_null_mx_records_are_a_null_mx() -> None:
    assert exchangers((0, "."), (10, ".")).refusal == exchangers((0, ".")).refusal


@pytest.mark.parametrize(
    "bad",
    [
        "mail server.example",
        "a..example",
        "-a.example",
        "http://a.example",
        "\\032",
        "*",
    ],
)
def test_bad_host_name_is_skipped_and_poisons_nobody(bad: str) -> None:
    found = exchangers((5, bad), (10, "a.example"))
    assert found.hosts == (Host("a.example", 10),)
    assert len(found.remarks) == 1
    assert found.remarks[0].isprintable()


def test_only_bad_host_names_bounce() -> None:
    found = exchangers((5, "a b.example"))
    assert found.hosts == ()
    assert found.refusal == Bounced(
        EnhancedStatus(5, 4, 4), "no MX record of example.com names a host"
    )


def test_host_of_two_preferences_keeps_the_better() -> None:
    found = exchangers((20, "a.example"), (10, "A.example"), (15, "b.example"))
    assert found.hosts == (Host("a.example", 10), Host("b.example", 15))


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1"])
def test_address_as_mx_target_is_taken_for_what_it_is(literal: str) -> None:
    found = exchangers((10, literal))
    assert found.hosts == (Host(literal, 10, literal),)
    assert found.remarks == (f"MX is an address: {literal}",)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize(
    ("a", "aaaa"),
    [(FAILED, NODATA), (NXDOMAIN, FAILED), (FAILED, FAILED)],
)
def test_any_failed_address_lookup_defers(
    implicit: bool, a: LookupStatus, aaaa: LookupStatus
) -> None:
    outcome = explain_no_address(
        "example.com",
        [
            resolved("a.example", NXDOMAIN, NXDOMAIN),
            resolved("b.example", a, aaaa),
        ],
        implicit=implicit,
    )
    assert isinstance(outcome, Deferred)
    assert outcome.status == (4, 4, 3)
    assert "b.example" in outcome.text


@pytest.mark.parametrize(
    ("implicit", "a", "aaaa", "status", "words"),
    [
        pytest.param(
            True, NXDOMAIN, NXDOMAIN, (1, 2), "does not exist", id="no_such_domain"
        ),
        pytest.param(
            True, NODATA, NODATA, (4, 4), "neither MX nor address", id="no_mail"
        ),
        pytest.param(
            True, NODATA, NXDOMAIN, (4, 4), "neither MX nor address", id="half"
        ),
        pytest.param(
            False, NXDOMAIN, NXDOMAIN, (4, 4), "no mail server of", id="dangling_mx"
        ),
        pytest.param(
            False, NODATA, NODATA, (4, 4), "no mail server of", id="mx_without_address"
        ),
    ],
)
def test_answers_that_there_is_none_bounce_or_defer_by_option(
    implicit: bool,
    a: LookupStatus,
    aaaa: LookupStatus,
    status: tuple[int, int],
    words: str,
) -> None:
    hosts = [resolved("example.com", a, aaaa)]
    bounced = explain_no_address("example.com", hosts, implicit=implicit)
    assert isinstance(bounced, Bounced)
    assert bounced.status == (5, *status)
    assert words in bounced.text
    deferred = explain_no_address(
        "example.com", hosts, implicit=implicit, defer_missing=True
    )
    assert deferred == Deferred(bounced.status._replace(class_=4), bounced.text)


def test_undialable_addresses_bounce_without_telling_which() -> None:
    outcome = explain_no_address(
        "example.com", [resolved("mx.example", FOUND, NODATA)], defer_missing=True
    )
    assert isinstance(outcome, Bounced)
    assert outcome.status == (5, 4, 4)
    assert "127" not in outcome.text
    assert "loopback" not in outcome.text


def test_operators_nexthop_never_bounces() -> None:
    assert operators_trouble(loops_back("relay.example")) == Deferred(
        EnhancedStatus(4, 3, 5),
        "configured nexthop: mail for relay.example loops back to myself",
    )
    soft = refuse_failed_lookup("relay.example", [mx(status=FAILED)])
    assert operators_trouble(soft) == soft


@given(
    st.lists(
        st.tuples(
            st.integers(0, 65535),
            st.one_of(
                st.text(max_size=12), st.sampled_from([".", "a.example", "1.2.3.4"])
            ),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=200)
def test_any_mx_set_gives_sorted_hosts_or_a_bounce(
    records: list[tuple[int, str]],
) -> None:
    found = exchangers(*records)
    assert (found.hosts == ()) is (found.refusal is not None)
    preferences = [host.preference for host in found.hosts]
    assert preferences == sorted(preferences)
    names = [host.name for host in found.hosts]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and name != "." for name in names)
    assert all(remark.isprintable() for remark in found.remarks)
