"""`mxpolicy.delivery.forecast`: what is said before a message comes."""

from __future__ import annotations

import pytest

from mxpolicy.delivery.forecast import forecast
from mxpolicy.delivery.plan import Plan
from mxpolicy.options import MemoryOptions
from mxpolicy.outcome import Deferred
from mxpolicy.routing.candidate import Candidate, Verdict
from mxpolicy.routing.host_record import HostRecord
from mxpolicy.routing.known_hosts import advise

NOW = 1_800_000_000.0
FIRST = Candidate("mx1.example.com", "192.0.2.1", 25, 10)
SECOND = Candidate("mx2.example.com", "192.0.2.2", 25, 20)
PLAN = Plan("example.com", (FIRST, SECOND))

FAILED = HostRecord(Verdict.REFUSED, full=True, since=NOW - 5, pause=60.0, waited=0.1)


@pytest.mark.parametrize("fast", [True, False])
def test_message_is_refused_when_all_failed_a_moment_ago(fast: bool) -> None:
    options = MemoryOptions(fast_deferral=fast)
    records = {FIRST: FAILED, SECOND: FAILED._replace(said="no route")}
    known = advise(PLAN.candidates, records, {}, NOW, options)
    plan, foreseen = forecast(PLAN, known, options)
    assert foreseen.is_hopeless
    assert plan.candidates == PLAN.candidates
    if not fast:
        assert plan.refusal is None
        return
    assert isinstance(plan.refusal, Deferred)
    assert plan.refusal.text == (
        "no host can be reached, as was found before:"
        " mx1.example.com[192.0.2.1]:25 refused 0.1s, 5s ago;"
        " mx2.example.com[192.0.2.2]:25 refused 0.1s, 5s ago (no route)"
    )


def test_host_in_its_pause_comes_last() -> None:
    options = MemoryOptions()
    known = advise(PLAN.candidates, {FIRST: FAILED}, {}, NOW, options)
    plan, _ = forecast(PLAN, known, options)
    assert plan.candidates == (SECOND, FIRST)
    assert plan.refusal is None
