"""`mxpolicy.routing.known_hosts`: the order by what is remembered."""

from __future__ import annotations

from math import inf

from mxpolicy.routing.candidate import Finding, Phase, Verdict
from mxpolicy.routing.host_record import NOTHING, HostRecord
from mxpolicy.routing.known_hosts import advise
from mxpolicy.routing.reachability import after_failure
from tests.routing.remembering import DEFAULTS, START
from tests.routing.simulation import ranked_hosts

FILTERED = Finding(Verdict.FILTERED, Phase.CONNECT, 6.0, text="no answer")
DOUBT = Finding(Verdict.FILTERED, Phase.CONNECT, 1.5, full=False)
PRIMARY, BACKUP = ranked_hosts(2)


def fail(record: HostRecord, finding: Finding, now: float) -> HostRecord:
    return after_failure(record, finding, now, DEFAULTS, 0.0, "m")


def test_order_is_of_preference_when_nothing_is_remembered() -> None:
    hosts = ranked_hosts(5)
    known = advise(hosts, {}, {}, START, DEFAULTS)
    assert known[:4] == (tuple(hosts), (), True, False)


def test_paused_are_asked_last_and_nobody_is_dropped() -> None:
    hosts = ranked_hosts(6)
    records = {
        hosts[0]: fail(NOTHING, FILTERED, START),
        hosts[1]: fail(NOTHING, DOUBT, START),
        hosts[2]: fail(NOTHING, FILTERED, START - 70),
        hosts[3]: fail(NOTHING, DOUBT, START - 70),
    }
    known = advise(hosts, records, {}, START + 1, DEFAULTS)
    expected = [hosts[n] for n in (4, 5, 3, 2, 1, 0)]
    assert list(known.order) == expected
    assert set(known.due) == {hosts[2], hosts[3]}
    assert known.has_other
    assert not known.is_hopeless


def test_hopeless_only_when_everyone_failed_fully_within_its_pause() -> None:
    paused = fail(NOTHING, FILTERED, START)
    hosts = [PRIMARY, BACKUP]
    both = {PRIMARY: paused, BACKUP: paused}
    assert advise(hosts, both, {}, START + 59, DEFAULTS).is_hopeless
    later = advise(hosts, both, {}, START + 61, DEFAULTS)
    assert not later.is_hopeless
    assert not later.has_other
    assert later.due == (PRIMARY, BACKUP)
    doubted = {PRIMARY: paused, BACKUP: fail(NOTHING, DOUBT, START)}
    known = advise(hosts, doubted, {}, START + 1, DEFAULTS)
    assert known.has_other
    assert not known.is_hopeless


def test_failure_of_a_host_counts_before_that_of_its_nexthop() -> None:
    failed, doubted = fail(NOTHING, FILTERED, START), fail(NOTHING, DOUBT, START)
    known = advise(
        [PRIMARY, BACKUP], {PRIMARY: failed}, {PRIMARY: doubted, BACKUP: doubted},
        START, DEFAULTS,
    )  # fmt: skip
    assert known.record(PRIMARY) == failed
    assert known.record(BACKUP) == doubted
    assert [known.is_limited(one) for one in (PRIMARY, BACKUP)] == [False, True]
    assert known.entrant(PRIMARY).remembered is not None
    assert known.entrant(BACKUP).remembered is None


def test_mail_goes_to_a_worse_host_until_the_pause_of_a_better_one_ends() -> None:
    best, middle, worst = ranked_hosts(3)
    records = {
        best: fail(NOTHING, FILTERED, START),
        middle: fail(NOTHING, DOUBT, START - 30),
        worst: fail(NOTHING, DOUBT, START - 50),
    }
    known = advise([best, middle, worst], records, {}, START + 1, DEFAULTS)
    assert known.better_is_due(best) == inf
    assert known.better_is_due(middle) == START + 60
    assert known.better_is_due(worst) == START + 30
    known = advise([best, middle, worst], records, {}, START + 40, DEFAULTS)
    assert known.better_is_due(worst) == START + 60
    known = advise([best, middle, worst], records, {}, START + 70, DEFAULTS)
    assert known.better_is_due(worst) == inf
