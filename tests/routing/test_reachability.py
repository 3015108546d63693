"""`mxpolicy.routing.reachability`: records, standings, advice, and years of outages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.routing.candidate import Candidate, Finding, Phase, Scope, Verdict
from mxpolicy.routing.reachability import (
    NOTHING,
    Record,
    Standing,
    advise,
    after_doubtful_probe,
    after_failure,
    after_ready,
    after_taking,
    decode,
    encode,
    is_about_host,
    is_about_nexthop,
    is_news,
    standing,
)
from tests.routing.remembering import DEFAULTS, START, World
from tests.routing.simulation import (
    DROPPED,
    GOOD,
    REFUSED,
    SILENT,
    Host,
    greeting_after,
    ranked_hosts,
)

FILTERED = Finding(Verdict.FILTERED, Phase.CONNECT, 6.0, text="no answer")
DOUBT = Finding(Verdict.FILTERED, Phase.CONNECT, 1.5, full=False)
STALLED = Finding(Verdict.STALLED, Phase.TRANSACTION, 20.0)

PRIMARY, BACKUP = ranked_hosts(2)
DAY = 86400.0


def fail(
    record: Record, finding: Finding, now: float, chance: float = 0.0, by: str = "m"
) -> Record:
    return after_failure(record, finding, now, DEFAULTS, chance, by)


def at(record: Record, now: float) -> Standing:
    return standing(record, now, DEFAULTS)


# --- one record


def test_failed_candidate_is_paused_then_due_then_unknown() -> None:
    record = fail(NOTHING, FILTERED, START)
    assert at(record, START) is Standing.PAUSED
    assert at(record, START + 59.9) is Standing.PAUSED
    assert at(record, START + 60) is Standing.DUE
    assert at(record, START + 119.9) is Standing.DUE
    assert at(record, START + 120) is Standing.UNKNOWN


def test_pause_doubles_to_the_longest_when_the_failure_is_confirmed() -> None:
    record, now, pauses = NOTHING, START, []
    for _ in range(6):
        record = fail(record, FILTERED, now)
        pauses.append(record.pause)
        now += record.pause + 1
    assert pauses == [60, 120, 240, 480, 600, 600]


def test_failures_within_the_pause_do_not_double_it() -> None:
    record = fail(NOTHING, FILTERED, START)
    for second in range(50):
        record = fail(record, FILTERED, START + second)
    assert record.pause == 60


def test_failure_long_after_the_last_begins_anew() -> None:
    record = fail(fail(NOTHING, FILTERED, START), FILTERED, START + 61)
    assert record.pause == 120
    assert fail(record, FILTERED, START + DAY).pause == 60


def test_chance_shortens_the_pause_by_a_fifth_at_most() -> None:
    assert fail(NOTHING, FILTERED, START, chance=1.0).pause == 48
    assert fail(NOTHING, FILTERED, START, chance=0.5).pause == 54


def test_pause_is_longer_than_one_try_costs() -> None:
    slow = Finding(Verdict.SILENT, Phase.GREETING, 300.0)
    assert fail(NOTHING, slow, START, chance=1.0).pause == 300


@pytest.mark.parametrize("verdict", [Verdict.GREETING_4XX, Verdict.NO_ROUTE])
def test_some_verdicts_never_double(verdict: Verdict) -> None:
    finding = Finding(verdict, Phase.GREETING, 0.1)
    record = fail(NOTHING, finding, START)
    assert fail(record, finding, START + 61).pause == 60


def test_doubt_has_the_first_pause_and_never_doubles() -> None:
    record = fail(NOTHING, DOUBT, START)
    assert not record.full
    for later in (61, 122, 183):
        record = fail(record, DOUBT, START + later)
        assert record.pause == 60


def test_doubt_does_not_weaken_what_is_known_fully() -> None:
    record = fail(NOTHING, FILTERED, START)
    assert fail(record, DOUBT, START + 10) == record
    # Who holds the lease doubts long before he knows; others go by what was known.
    assert fail(record, DOUBT, START + 70) == record
    assert not fail(record, DOUBT, START + 121).full


def test_one_success_clears_and_latencies_stay() -> None:
    record = fail(NOTHING, FILTERED, START)
    record = after_ready(record, START + 5, 0.03, 6.1)
    assert at(record, START + 5) is Standing.UNKNOWN
    assert record == Record(
        connect_time=0.03, greeting_latency=6.1, last_ready=START + 5
    )
    again = after_ready(fail(record, FILTERED, START + 9), START + 10)
    assert again.greeting_latency == 6.1


def test_stall_is_a_full_verdict_when_two_messages_have_seen_it() -> None:
    record = fail(NOTHING, STALLED, START, by="one")
    assert not record.full
    assert not fail(record, STALLED, START + 5, by="one").full
    assert fail(record, STALLED, START + 5, by="two").full


def test_stall_is_cleared_by_a_message_taken_not_by_readiness() -> None:
    record = fail(NOTHING, STALLED, START, by="one")
    assert at(after_ready(record, START + 1), START + 1) is Standing.PAUSED
    assert after_taking(record) == NOTHING


def test_stalled_host_is_not_probed() -> None:
    record = fail(NOTHING, STALLED, START)
    assert at(record, START + 61) is Standing.UNKNOWN


@pytest.mark.parametrize("step", [-365 * DAY, -3600.0, -61.0, 61.0, 3600.0, 365 * DAY])
def test_clock_step_never_pauses_longer_than_the_longest(step: float) -> None:
    record = fail(NOTHING, FILTERED, START)._replace(pause=600.0)
    paused = [
        second
        for second in range(0, 3600, 5)
        if at(record, START + step + second) is Standing.PAUSED
    ]
    assert len(paused) * 5 <= 600


@given(
    since=st.floats(0, 4e9),
    pause=st.floats(0, 1e6),
    now=st.floats(0, 4e9),
    longest=st.floats(0.001, 86400),
)
def test_no_candidate_is_paused_longer_than_the_longest(
    since: float, pause: float, now: float, longest: float
) -> None:
    options = replace(DEFAULTS, longest_pause=longest)
    record = Record(Verdict.FILTERED, full=True, since=since, pause=pause)
    if standing(record, now, options) is Standing.PAUSED:
        later = standing(record, now + longest + 0.001 + now * 1e-9, options)
        assert later is not Standing.PAUSED


def test_probe_that_came_further_than_the_failure_clears_it() -> None:
    record = fail(NOTHING, DOUBT, START)
    after = after_doubtful_probe(record, Phase.GREETING, 3.0, START + 70, DEFAULTS)
    assert at(after, START + 70) is Standing.UNKNOWN


def test_probe_that_saw_no_answer_to_three_syns_renews_the_pause_as_a_doubt() -> None:
    record = fail(NOTHING, FILTERED, START)
    after = after_doubtful_probe(record, Phase.CONNECT, 3.1, START + 70, DEFAULTS)
    assert (after.full, after.since, after.pause) == (False, START + 70, 60)
    early = after_doubtful_probe(record, Phase.CONNECT, 1.0, START + 70, DEFAULTS)
    assert early == record


def test_probe_that_could_not_tell_leaves_a_slow_greeter_to_the_next_message() -> None:
    record = fail(NOTHING, Finding(Verdict.SILENT, Phase.GREETING, 8.0), START)
    after = after_doubtful_probe(record, Phase.GREETING, 3.1, START + 70, DEFAULTS)
    assert after == record


def test_healthy_host_is_written_down_now_and_then_only() -> None:
    first = after_ready(NOTHING, START, 0.03, 0.5)
    assert is_news(NOTHING, first)
    assert not is_news(first, after_ready(first, START + 60, 0.05, 0.55))
    assert is_news(first, after_ready(first, START + 60, 0.05, 6.0))
    assert is_news(first, after_ready(first, START + 301, 0.03, 0.5))
    assert is_news(first, fail(first, FILTERED, START + 1))
    failed = fail(first, FILTERED, START + 1)
    assert is_news(failed, after_ready(failed, START + 2, 0.03, 0.5))


def test_what_was_worked_around_is_not_tried_for_a_while() -> None:
    record = Record(tls_broken=START, small_segments=START)
    assert record.is_tls_broken(START + 3599)
    assert not record.is_tls_broken(START + 3600)
    assert not record.is_tls_broken(START - 1)
    assert record.needs_small_segments(START + 86399)
    assert not record.needs_small_segments(START + 86400)
    assert not NOTHING.is_tls_broken(START)
    assert not NOTHING.needs_small_segments(START)


# --- whom a finding is about


@pytest.mark.parametrize(
    ("finding", "host", "nexthop"),
    [
        (FILTERED, True, False),
        (Finding(Verdict.SILENT, Phase.GREETING, 30.0), True, False),
        (Finding(Verdict.GREETING_5XX, Phase.GREETING, 0.1), True, False),
        (Finding(Verdict.EHLO_REFUSED, Phase.EHLO, 0.1), True, False),
        (STALLED, True, False),
        (Finding(Verdict.LOOPS_TO_MYSELF, Phase.EHLO, 0.1), False, True),
        (Finding(Verdict.STARTTLS_MISSING, Phase.TLS, 0.1), False, True),
        (Finding(Verdict.TLS_FAILED, Phase.TLS, 0.1), False, True),
        (Finding(Verdict.SILENT, Phase.TRANSACTION, 60.0), False, True),
        (Finding(Verdict.CLOSED, Phase.TRANSACTION, 60.0), False, True),
        (Finding(Verdict.TRANSIENT, Phase.TRANSACTION, 0.1), False, False),
        (Finding(Verdict.PERMANENT, Phase.TRANSACTION, 0.1), False, False),
        (Finding(Verdict.UNFIT, Phase.TRANSACTION, 0.1), False, False),
        (Finding(Verdict.SILENT, Phase.DOT, 600.0), False, False),
        (Finding(Verdict.CLOSED, Phase.CONNECT, 0, Scope.SITE), False, False),
        (Finding(Verdict.SILENT, Phase.CONNECT, 0, Scope.MESSAGE), False, False),
    ],
    ids=lambda value: f"{value.verdict.value}" if isinstance(value, Finding) else "",
)
def test_finding_is_kept_for_all_for_the_nexthop_or_not(
    finding: Finding, host: bool, nexthop: bool
) -> None:
    assert is_about_host(finding) is host
    assert is_about_nexthop(finding) is nexthop


def test_no_domain_pauses_anothers_host() -> None:
    # What mail of one's own can bring about at a host that is another's: everything
    # after EHLO. None of it is kept for all, but for a stall that is seen twice.
    for verdict in Verdict:
        for phase in (Phase.TLS, Phase.READY, Phase.TRANSACTION, Phase.DOT):
            finding = Finding(verdict, phase, 1.0)
            assert is_about_host(finding) is (verdict is Verdict.STALLED)
    bad = fail(NOTHING, Finding(Verdict.SILENT, Phase.TRANSACTION, 60.0), START)
    elsewhere = advise([PRIMARY, BACKUP], {}, {}, START, DEFAULTS)
    assert elsewhere.order == (PRIMARY, BACKUP)
    here = advise([PRIMARY, BACKUP], {}, {PRIMARY: bad}, START, DEFAULTS)
    assert here.order == (BACKUP, PRIMARY)
    assert not here.due
    alone = advise([PRIMARY], {}, {PRIMARY: bad._replace(full=True)}, START, DEFAULTS)
    assert not alone.is_hopeless


# --- advice


def test_order_is_of_preference_when_nothing_is_remembered() -> None:
    hosts = ranked_hosts(5)
    advice = advise(hosts, {}, {}, START, DEFAULTS)
    assert advice == (tuple(hosts), (), True, False)


def test_paused_are_asked_last_and_nobody_is_dropped() -> None:
    hosts = ranked_hosts(6)
    known = {
        hosts[0]: fail(NOTHING, FILTERED, START),
        hosts[1]: fail(NOTHING, DOUBT, START),
        hosts[2]: fail(NOTHING, FILTERED, START - 70),
        hosts[3]: fail(NOTHING, DOUBT, START - 70),
    }
    advice = advise(hosts, known, {}, START + 1, DEFAULTS)
    expected = [hosts[n] for n in (4, 5, 3, 2, 1, 0)]
    assert list(advice.order) == expected
    assert set(advice.due) == {hosts[2], hosts[3]}
    assert advice.has_other
    assert not advice.is_hopeless


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
    advice = advise(hosts, doubted, {}, START + 1, DEFAULTS)
    assert advice.has_other
    assert not advice.is_hopeless


# --- bytes

records = st.builds(
    Record,
    verdict=st.none() | st.sampled_from(Verdict),
    phase=st.sampled_from(Phase),
    full=st.booleans(),
    since=st.integers(0, 2**33).map(float),
    pause=st.integers(0, 86400).map(float),
    waited=st.integers(0, 86400).map(float),
    connect_time=st.none() | st.integers(0, 30000).map(lambda ms: ms / 1000),
    greeting_latency=st.none() | st.integers(0, 300000).map(lambda ms: ms / 1000),
    last_ready=st.none() | st.integers(0, 2**33).map(float),
    tls_broken=st.none() | st.integers(0, 2**33).map(float),
    small_segments=st.none() | st.integers(0, 2**33).map(float),
    name=st.sampled_from(["", "mx.example.com"]),
    witness=st.text("0123456789abcdef", max_size=16),
    said=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
)


@given(records)
def test_record_is_read_as_it_was_written(record: Record) -> None:
    assert decode(encode(record)) == record


@given(st.binary(max_size=200) | st.tuples(records.map(encode), st.integers(0, 200)))
def test_anything_can_be_read(value: bytes | tuple[bytes, int]) -> None:
    if isinstance(value, tuple):
        value = value[0][: value[1]]
    record = decode(value)
    assert standing(record, START, DEFAULTS) in Standing
    assert decode(encode(record)) == record


def test_record_of_another_version_is_nothing() -> None:
    value = encode(fail(NOTHING, FILTERED, START))
    assert decode(value) != NOTHING
    assert decode(b"2" + value[1:]) == NOTHING
    assert decode(None) == NOTHING
    assert decode(value.replace(b"filtered", b"cursed")) == NOTHING
    assert decode(value.replace(b" 60 ", b" nan ")) == NOTHING


# --- years

OUTAGES = st.lists(
    st.tuples(
        st.floats(0, 365 * DAY),  # begins
        st.floats(60, 3 * DAY),  # lasts
        st.sampled_from([DROPPED, REFUSED, SILENT]),
    ),
    max_size=20,
)
LINGER = st.sampled_from([3.0, 45.0])


def outage(
    outages: list[tuple[float, float, Host]], now: float, good: Host = GOOD
) -> Host:
    for begins, lasts, how in outages:
        if begins <= now - START < begins + lasts:
            return how
    return good


@settings(max_examples=25, deadline=None)
@given(
    of_primary=OUTAGES,
    of_backup=OUTAGES,
    gaps=st.lists(st.floats(0.5, 3 * DAY), min_size=5, max_size=120),
    steps=st.lists(st.tuples(st.integers(0, 119), st.floats(-DAY, DAY)), max_size=3),
    linger=LINGER,
)
def test_no_host_is_lost_in_a_year_of_outages_and_clock_steps(
    of_primary: list[tuple[float, float, Host]],
    of_backup: list[tuple[float, float, Host]],
    gaps: list[float],
    steps: list[tuple[int, float]],
    linger: float,
) -> None:
    outages = {PRIMARY: of_primary, BACKUP: of_backup}
    world = World(
        (PRIMARY, BACKUP), lambda one, now: outage(outages[one], now), linger=linger
    )
    now = START
    for number, gap in enumerate(gaps):
        now += gap
        world.skew += sum(step for when, step in steps if when == number)
        sent = world.send(now)
        up = [one for one in outages if outage(outages[one], now) is GOOD]
        if sent.outcome == "fast":
            # The exception: everyone was seen to fail fully, that recently.
            for one in outages:
                tried = [at for at, who in world.dialled if who == one]
                assert tried
                assert now - tried[-1] <= DEFAULTS.longest_pause + 330
        elif up:
            assert sent.outcome == "delivered"
            assert sent.by in up
    # All outages are over: after the longest pause both are used as if nothing had been.
    now += 4 * DAY + 365 * DAY
    assert world.send(now).by == PRIMARY


@pytest.mark.parametrize("linger", [3.0, 45.0], ids=["process", "daemon"])
@pytest.mark.parametrize("how", [DROPPED, REFUSED, SILENT], ids=["d", "r", "s"])
@pytest.mark.parametrize("every", [0.5, 7.0, 45.0, 300.0])
@pytest.mark.parametrize(
    "recovered", [GOOD, greeting_after(2.0)], ids=["as fast", "slower than its backup"]
)
def test_recovered_primary_is_used_again_within_one_pause(
    linger: float, how: Host, every: float, recovered: Host
) -> None:
    outage_ends = START + 1800

    def hosts(one: Candidate, now: float) -> Host:
        if one == BACKUP:
            return GOOD
        return how if now < outage_ends else recovered

    world = World((PRIMARY, BACKUP), hosts, linger=linger)
    now = START
    while now < outage_ends:
        world.send(now)
        now += every
    pause = world.record(PRIMARY).pause
    while world.send(now).by != PRIMARY:
        now += every
        assert now - outage_ends <= pause + 2 * every + 10


@pytest.mark.parametrize("linger", [45.0])
def test_slow_greeter_is_learned_and_not_overtaken(linger: float) -> None:
    slow = greeting_after(20.0)
    world = World(
        (PRIMARY, BACKUP),
        lambda one, now: slow if one == PRIMARY else GOOD,
        linger=linger,
    )
    sent = [world.send(START + 10 * number) for number in range(100)]
    assert sent[0].by == BACKUP
    learned = next(n for n, one in enumerate(sent) if one.by == PRIMARY)
    assert learned <= 12
    assert {one.by for one in sent[learned:]} == {PRIMARY}


def test_greeter_as_slow_as_postscreen_is_never_overtaken() -> None:
    slow = greeting_after(6.0)
    world = World(
        (PRIMARY, BACKUP), lambda one, now: slow if one == PRIMARY else GOOD, linger=3
    )
    assert {world.send(START + 10 * n).by for n in range(50)} == {PRIMARY}


def test_only_one_message_pays_for_a_dropped_primary() -> None:
    world = World(
        (PRIMARY, BACKUP),
        lambda one, now: DROPPED if one == PRIMARY else GOOD,
        linger=3.0,
    )
    sent = [world.send(START + number) for number in range(3600)]
    assert {one.by for one in sent} == {BACKUP}
    slow = [one for one in sent if one.took > 1]
    assert len(slow) <= 2  # the first, and who came before its patience had ended
    assert sum(bool(one.probed) for one in sent) <= 3600 / (0.8 * 60) + 1


def test_dead_destination_is_dialled_once_in_a_pause_whatever_the_queue() -> None:
    world = World((PRIMARY, BACKUP), lambda one, now: DROPPED)
    seconds = 1800
    sent = world.send_all([START + number / 5 for number in range(5 * seconds)])
    assert {one.outcome for one in sent} == {"deferred", "fast"}
    # Pauses of 60, 120, 240, 480, 600 and 600 s, each shorter by a fifth at most; those
    # that came before the first verdict was known dialled, too.
    first = [at for at, who in world.dialled if at < START + 40]
    later = [at for at, who in world.dialled if at >= START + 40]
    assert len(first) <= 2 * 5 * 8
    assert len(later) <= 2 * 6


def test_burst_after_an_outage_defers_nobody_and_makes_no_storm() -> None:
    up_at = START + 3600

    def hosts(one: Candidate, now: float) -> Host:
        return DROPPED if now < up_at else GOOD

    world = World((PRIMARY,), hosts)
    now = START
    while now < up_at:
        world.send(now)
        now += 30
    due = world.record(PRIMARY)
    now = max(up_at, due.since + due.pause + 1)
    sent = world.send_all([now] * 200)
    assert {one.outcome for one in sent} == {"delivered"}
    assert max(one.took for one in sent) < 2
    # One went ahead. The others came when it was known that they may.
    waited = [one for one in sent if one.took > 0.4]
    assert len(waited) <= 199


def test_waiting_ends_when_who_has_the_lease_has_died() -> None:
    world = World((PRIMARY,), lambda one, now: GOOD)
    world._kept[PRIMARY] = encode(fail(NOTHING, FILTERED, START))
    world._lease(PRIMARY, START + 60)
    stuck = world.send(START + 61)
    assert stuck.outcome == "fast"
    assert stuck.took == 15
    assert world.send(START + 121).outcome == "delivered"
