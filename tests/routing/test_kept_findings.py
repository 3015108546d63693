"""For how long a finding is answered again, on a clock that is moved."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.options import AccessFinding, MemoryOptions
from mxpolicy.routing.candidate import Phase, Verdict
from mxpolicy.routing.host_record import NOTHING, HostRecord
from mxpolicy.routing.kept_findings import (
    MEMORY_HOLDS,
    NOTHING_FOUND,
    PLAN_HOLDS,
    Found,
    Kept,
    KeptFindings,
    memory_holds,
    plan_holds,
)
from mxpolicy.routing.mx import Lookup, LookupStatus
from mxpolicy.routing.reachability import standing, standing_ends

OPTIONS = MemoryOptions()
FULL = HostRecord(Verdict.FILTERED, Phase.CONNECT, True, 1000.0, 60.0, 6.0)
NULL_MX = Found(AccessFinding.NULL_MX)


def lookup(ttl: float, status: LookupStatus = LookupStatus.FOUND) -> Lookup:
    return Lookup("example.com", "MX", status, ttl=ttl)


@pytest.mark.parametrize(
    ("ttls", "seconds"),
    [
        pytest.param([], PLAN_HOLDS, id="an address literal has no lookups"),
        pytest.param([60.0], 60.0, id="one answer"),
        pytest.param([60.0, 7.5, 3600.0], 7.5, id="the answer that ends first"),
        pytest.param([86400.0], PLAN_HOLDS, id="a day is too long"),
        pytest.param([60.0, 0.0], 0.0, id="an answer that must not be kept"),
    ],
)
def test_plan_holds_as_long_as_its_answers(ttls: list[float], seconds: float) -> None:
    assert plan_holds(lookup(one) for one in ttls) == seconds


def test_plan_of_a_failure_holds_as_long_as_the_failure_is_kept() -> None:
    failed = lookup(30.0, LookupStatus.FAILED)
    assert plan_holds([lookup(60.0), failed]) == 30.0


@pytest.mark.parametrize(
    ("records", "now", "seconds"),
    [
        pytest.param([], 1000.0, MEMORY_HOLDS, id="nothing is remembered"),
        pytest.param([NOTHING], 1000.0, MEMORY_HOLDS, id="never failed"),
        pytest.param([FULL], 1010.0, MEMORY_HOLDS, id="in the middle of its pause"),
        pytest.param([FULL], 1059.75, 0.25, id="the pause is nearly over"),
        pytest.param([NOTHING, FULL], 1059.75, 0.25, id="that of one of two"),
        pytest.param([FULL], 1119.5, 0.5, id="the verdict is nearly forgotten"),
        pytest.param([FULL], 5000.0, MEMORY_HOLDS, id="long forgotten"),
        pytest.param([FULL], 994.5, 0.5, id="by a clock that is ahead"),
    ],
)
def test_memory_holds_until_a_pause_ends(
    records: list[HostRecord], now: float, seconds: float
) -> None:
    assert memory_holds(records, now, OPTIONS) == pytest.approx(seconds)


records = st.builds(
    HostRecord,
    verdict=st.sampled_from([None, Verdict.FILTERED, Verdict.CLOSED]),
    phase=st.sampled_from([Phase.CONNECT, Phase.DOT]),
    full=st.booleans(),
    since=st.floats(0, 2000),
    pause=st.floats(0, 900),
)


@given(records, st.floats(0, 4000), st.floats(0, 0.999))
def test_standing_is_the_same_until_it_ends_and_then_another(
    record: HostRecord, now: float, share: float
) -> None:
    ends = standing_ends(record, now, OPTIONS)
    here = standing(record, now, OPTIONS)
    assert ends > now
    until = min(ends, now + 10_000)
    assert standing(record, now + share * (until - now), OPTIONS) is here
    if ends < inf and record.pause > 0:
        assert standing(record, ends, OPTIONS) is not here


def kept(
    found: Found = NULL_MX, plan: float = 1100.0, memory: float = 1001.0, hosts: int = 1
) -> Kept[str]:
    return Kept(found, "a plan", hosts, plan, memory)


def test_finding_is_answered_until_memory_is_asked_again() -> None:
    findings: KeptFindings[str] = KeptFindings()
    assert findings.found("example.com", 1000.0) is None
    findings.keep("example.com", kept())
    assert findings.found("example.com", 1000.9) == NULL_MX
    assert findings.found("example.com", 1001.0) is None
    assert findings.found("example.net", 1000.0) is None


def test_plan_is_used_again_until_it_ends() -> None:
    findings: KeptFindings[str] = KeptFindings()
    assert findings.plan("example.com", 1000.0) is None
    findings.keep("example.com", kept())
    assert findings.plan("example.com", 1099.9) == kept()
    assert findings.plan("example.com", 1100.0) is None
    # A plan that has ended answers nothing, whatever memory says.
    findings.keep("example.com", kept(plan=1000.5))
    assert findings.found("example.com", 1000.4) == NULL_MX
    assert findings.found("example.com", 1000.5) is None


def test_that_nothing_is_found_is_kept_too() -> None:
    findings: KeptFindings[str] = KeptFindings()
    findings.keep("example.com", kept(NOTHING_FOUND))
    assert findings.found("example.com", 1000.0) == NOTHING_FOUND


def test_domains_are_bounded_and_what_was_kept_first_leaves_first() -> None:
    findings: KeptFindings[str] = KeptFindings(max_kept=2)
    for domain in ("a", "b", "a", "c"):
        findings.keep(domain, kept())
    assert len(findings) == 2
    assert findings.found("b", 1000.0) is None
    assert findings.found("a", 1000.0) == findings.found("c", 1000.0) == NULL_MX


def test_hosts_of_all_domains_are_bounded() -> None:
    findings: KeptFindings[str] = KeptFindings(max_hosts=100)
    for number in range(10):
        findings.keep(str(number), kept(hosts=9))
    assert len(findings) == 10
    findings.keep("large", kept(hosts=60))
    assert len(findings) == 5
    for _ in range(10):
        findings.keep("large", kept(hosts=60))
    assert len(findings) == 5
    findings.keep("too large", kept(hosts=101))
    assert len(findings) == 0
