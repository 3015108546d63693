"""`mxpolicy.routing.reachability`: what changes a record, and years of outages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.routing.candidate import Candidate, Finding, Phase, Scope, Verdict
from mxpolicy.routing.host_record import NOTHING, HostRecord, encode, is_news
from mxpolicy.routing.known_hosts import advise
from mxpolicy.routing.reachability import (
    Standing,
    after_doubtful_probe,
    after_failure,
    after_ready,
    after_reuse,
    is_about_host,
    is_about_nexthop,
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
IN_DOUBT = Finding(Verdict.CLOSED, Phase.DOT, 0.1)
BUSY = Finding(
    Verdict.GREETING_4XX, Phase.GREETING, 0.1, text="421 busy", is_transient=True
)
BUSY_AT_EHLO = Finding(
    Verdict.EHLO_REFUSED, Phase.EHLO, 0.1, text="421 busy", is_transient=True
)
NOT_NOW = pytest.mark.parametrize("busy", [BUSY, BUSY_AT_EHLO], ids=["220", "ehlo"])

PRIMARY, BACKUP = ranked_hosts(2)
DAY = 86400.0


def fail(
    record: HostRecord, finding: Finding, now: float, chance: float = 0.0, by: str = "m"
) -> HostRecord:
    return after_failure(record, finding, now, DEFAULTS, chance, by)


def at(record: HostRecord, now: float) -> Standing:
    return standing(record, now, DEFAULTS)


# --- one record


@pytest.mark.parametrize(
    ("finding", "left"),
    [
        pytest.param(FILTERED, Verdict.FILTERED, id="filtered"),
        pytest.param(DOUBT, Verdict.FILTERED, id="in doubt"),
        pytest.param(BUSY, Verdict.GREETING_4XX, id="busy"),
        pytest.param(STALLED, None, id="stalled"),
        pytest.param(IN_DOUBT, None, id="in doubt at the dot"),
    ],
)
def test_old_session_that_takes_mail_leaves_what_it_does_not_disprove(
    finding: Finding, left: Verdict | None
) -> None:
    record = fail(NOTHING, finding, START)
    after = after_reuse(record)
    assert after.verdict is left
    assert not after.full
    known = advise([PRIMARY], {PRIMARY: after}, {}, START + 1, DEFAULTS)
    assert not known.is_hopeless
    if left is None:
        assert after == record.cleared()
    else:
        assert after == record._replace(full=False)


def test_old_session_that_takes_mail_changes_nothing_without_a_verdict() -> None:
    ready = after_ready(NOTHING, START, 0.1, 6.0)
    assert after_reuse(ready) == ready


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


def test_no_route_never_doubles() -> None:
    finding = Finding(Verdict.NO_ROUTE, Phase.CONNECT, 0.1)
    record = fail(NOTHING, finding, START)
    assert fail(record, finding, START + 61).pause == 60


# --- "not now": 4yz to the connection or to EHLO


@NOT_NOW
def test_too_many_connections_of_a_host_that_was_ready_only_reorder(
    busy: Finding,
) -> None:
    ready = after_ready(NOTHING, START)
    for later in (0.1, 30.0, 60.0):
        record = fail(ready, busy, START + later)
        assert not record.full
        advice = advise(
            [PRIMARY, BACKUP], {PRIMARY: record}, {}, START + later, DEFAULTS
        )
        assert advice.order == (BACKUP, PRIMARY)
        alone = advise([PRIMARY], {PRIMARY: record}, {}, START + later, DEFAULTS)
        assert alone.has_other
        assert not alone.is_hopeless


@pytest.mark.parametrize("verdict", Verdict, ids=lambda one: one.value)
def test_host_that_was_ready_and_turns_one_away_is_not_down_for_all(
    verdict: Verdict,
) -> None:
    turned_away = Finding(verdict, Phase.GREETING, 0.1)
    record = fail(after_ready(NOTHING, START), turned_away, START + 50)
    assert record.full is (
        verdict.value
        not in {
            *("refused", "closed", "greeting_4xx", "greeting_5xx", "not_smtp"),
            "ehlo_refused",
        }
    )
    later = fail(after_ready(NOTHING, START), turned_away, START + 91)
    assert later.full


@NOT_NOW
def test_too_many_connections_reorder_while_others_are_taken_all_the_time(
    busy: Finding,
) -> None:
    # What is written is only written now and then: the host is ready each second.
    stored = after_ready(NOTHING, START)
    for second in range(1, 600):
        now = START + second
        ready = after_ready(stored, now)
        stored = ready if is_news(stored, ready) else stored
        for later in (0.5, 59.0):
            assert not fail(stored, busy, now + later).full


@NOT_NOW
def test_first_not_now_of_a_cold_host_is_a_doubt_while_others_await_their_220(
    busy: Finding,
) -> None:
    record = fail(NOTHING, busy, START)
    for later in (0.1, 6.0, 29.0):
        record = fail(record, busy, START + later)
        assert not record.full


@NOT_NOW
def test_host_that_goes_on_saying_not_now_is_fully_paused_and_never_doubled(
    busy: Finding,
) -> None:
    record = fail(NOTHING, busy, START)
    for later in range(1, 32):
        record = fail(record, busy, START + later)
    assert record.full
    for _ in range(4):
        record = fail(record, busy, record.since + record.pause + 1)
        assert (record.full, record.pause) == (True, 60)


def test_not_now_after_another_failure_is_not_confirmed_by_it() -> None:
    record = fail(NOTHING, DOUBT, START)
    assert not fail(record, BUSY, START + 40).full
    full = fail(NOTHING, FILTERED, START)
    assert fail(full, BUSY, START + 10) == full


def test_host_that_took_a_message_a_moment_ago_has_been_ready() -> None:
    # A transaction of ten minutes, and others are told that there are too many.
    record = fail(after_ready(NOTHING, START), BUSY, START + 599)
    record = after_ready(record, START + 600)
    assert at(record, START + 600) is Standing.UNKNOWN
    assert not fail(record, BUSY, START + 650).full


# --- doubt


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
    assert record == HostRecord(
        connect_time=0.03, greeting_latency=6.1, last_ready=START + 5
    )
    again = after_ready(fail(record, FILTERED, START + 9), START + 10)
    assert again.greeting_latency == 6.1


def test_stall_is_cleared_by_a_message_taken() -> None:
    record = fail(NOTHING, STALLED, START)
    assert at(record, START + 1) is Standing.PAUSED
    assert record.cleared() == NOTHING


def test_in_doubt_at_the_dot_reorders_after_two_messages_of_a_day() -> None:
    def order(record: HostRecord, now: float) -> tuple[Candidate, ...]:
        hosts = [PRIMARY, BACKUP]
        return advise(hosts, {}, {PRIMARY: record}, now, DEFAULTS).order

    record = fail(NOTHING, IN_DOUBT, START, by="one")
    assert order(record, START + 1) == (PRIMARY, BACKUP)
    record = fail(record, IN_DOUBT, START + 400, by="one")
    assert order(record, START + 401) == (PRIMARY, BACKUP)
    record = fail(record, IN_DOUBT, START + 3600, by="two")
    assert order(record, START + 3601) == (BACKUP, PRIMARY)
    assert order(record, START + 3600 + 599) == (BACKUP, PRIMARY)
    # The pause is over, and it goes to the first one again: one doubt is enough now.
    assert order(record, START + 3600 + 601) == (PRIMARY, BACKUP)
    again = fail(record, IN_DOUBT, START + 9000, by="two")
    assert order(again, START + 9001) == (BACKUP, PRIMARY)
    # One success clears, and what was a day ago proves nothing.
    assert record.cleared() == NOTHING
    late = fail(record, IN_DOUBT, START + 2 * DAY, by="three")
    assert order(late, START + 2 * DAY + 1) == (PRIMARY, BACKUP)


def test_lone_doubt_at_the_dot_does_not_hide_what_reorders_already() -> None:
    silent = Finding(Verdict.SILENT, Phase.TRANSACTION, 60.0)
    record = fail(NOTHING, silent, START)
    assert fail(record, IN_DOUBT, START + 1) == record
    record = fail(fail(NOTHING, IN_DOUBT, START), silent, START + 1)
    assert at(record, START + 2) is Standing.PAUSED


def test_small_segments_that_are_not_answered_are_given_up() -> None:
    narrow = HostRecord(small_segments=START)
    assert fail(narrow, DOUBT, START + 1).needs_small_segments(START + 1)
    assert fail(narrow, BUSY, START + 1).needs_small_segments(START + 1)
    assert not fail(narrow, FILTERED, START + 1).needs_small_segments(START + 1)


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
    options = DEFAULTS._replace(longest_pause=longest)
    record = HostRecord(Verdict.FILTERED, full=True, since=since, pause=pause)
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


# --- whom a finding is about


ALL, NEXTHOP, NOT = "for all mail", "for its nexthop", "not"

# By phase: what is kept of a finding about the host, verdicts by name apart.
KEPT_OF_HOST: dict[Phase, tuple[str, dict[Verdict, str]]] = {
    phase: (ALL, {Verdict.STALLED: NEXTHOP, Verdict.LOOPS_TO_MYSELF: NEXTHOP})
    for phase in (Phase.CONNECT, Phase.GREETING, Phase.EHLO)
}
KEPT_OF_HOST |= {phase: (NEXTHOP, {}) for phase in (Phase.TLS, Phase.READY)}
KEPT_OF_HOST |= {
    phase: (
        NOT,
        dict.fromkeys((Verdict.CLOSED, Verdict.SILENT, Verdict.STALLED), NEXTHOP),
    )
    for phase in (Phase.TRANSACTION, Phase.DOT)
}


@pytest.mark.parametrize("scope", Scope, ids=lambda one: one.value)
@pytest.mark.parametrize("phase", Phase, ids=lambda one: one.word)
@pytest.mark.parametrize("verdict", Verdict, ids=lambda one: one.value)
def test_finding_is_kept_for_all_for_the_nexthop_or_not(
    verdict: Verdict, phase: Phase, scope: Scope
) -> None:
    usual, others = KEPT_OF_HOST[phase]
    expected = others.get(verdict, usual) if scope is Scope.HOST else NOT
    finding = Finding(verdict, phase, 1.0, scope)
    assert is_about_host(finding) is (expected == ALL)
    assert is_about_nexthop(finding) is (expected == NEXTHOP)


def test_no_domain_pauses_anothers_host() -> None:
    # What mail of one's own can bring about at a host that is another's: everything
    # after EHLO. None of it is kept for all.
    for verdict in Verdict:
        for phase in (Phase.TLS, Phase.READY, Phase.TRANSACTION, Phase.DOT):
            assert not is_about_host(Finding(verdict, phase, 1.0))
    bad = fail(NOTHING, Finding(Verdict.SILENT, Phase.TRANSACTION, 60.0), START)
    elsewhere = advise([PRIMARY, BACKUP], {}, {}, START, DEFAULTS)
    assert elsewhere.order == (PRIMARY, BACKUP)
    here = advise([PRIMARY, BACKUP], {}, {PRIMARY: bad}, START, DEFAULTS)
    assert here.order == (BACKUP, PRIMARY)
    assert not here.due
    alone = advise([PRIMARY], {}, {PRIMARY: bad._replace(full=True)}, START, DEFAULTS)
    assert not alone.is_hopeless


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


def test_wait_for_the_lease_of_a_dead_process_ends_in_a_delivery() -> None:
    world = World((PRIMARY,), lambda one, now: GOOD)
    world._kept[PRIMARY] = encode(fail(NOTHING, FILTERED, START))
    world._lease(PRIMARY, START + 60)
    sent = world.send(START + 61)
    assert sent.outcome == "delivered"
    assert 15 <= sent.took < 16


@pytest.mark.parametrize("greets", [9.0, 20.0, 29.0, 60.0, 250.0])
def test_recovered_host_that_greets_slowly_is_given_up_by_no_message(
    greets: float,
) -> None:
    slow = greeting_after(greets)
    world = World((PRIMARY,), lambda one, now: slow)
    world._kept[PRIMARY] = encode(fail(NOTHING, FILTERED, START))
    sent = world.send_all([START + 61] * 100)
    assert {one.outcome for one in sent} == {"delivered"}
    # One went ahead. The others waited, and then had a connection each.
    assert len(world.dialled) == 100


def test_queue_for_a_silent_host_dials_for_fifteen_seconds_of_a_pause() -> None:
    world = World((PRIMARY,), lambda one, now: SILENT)
    world._kept[PRIMARY] = encode(fail(NOTHING, FILTERED, START))
    sent = world.send_all([START + 61 + second for second in range(300)])
    dialled = [one.at for one in sent if one.dialled]
    # The probe ends after 30 s; who had waited for 15 s by then has dialled.
    assert {one.outcome for one in sent} == {"deferred", "fast"}
    assert len(dialled) <= 16 + 16
    assert dialled[0] == START + 61
