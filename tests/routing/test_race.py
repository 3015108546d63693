from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.options import RaceOptions
from mxpolicy.routing.candidate import (
    Awaited,
    Candidate,
    Finding,
    Phase,
    Scope,
    Verdict,
    Wait,
)
from mxpolicy.routing.race import (
    MAX_DIALLED,
    Action,
    Doubt,
    Drop,
    GiveUp,
    GiveUpReason,
    Race,
    Start,
    Take,
    Wake,
)
from mxpolicy.routing.race_timing import PATIENT_TIME, Entrant
from tests.routing.simulation import (
    CLOSED,
    DROPPED,
    GOOD,
    OUR_TROUBLE,
    POOLED,
    REFUSED,
    SILENT,
    SILENT_AT_EHLO,
    SILENT_AT_TLS,
    Answer,
    Host,
    Simulation,
    Step,
    answering,
    ask_patiently,
    dual_stack,
    equal_hosts,
    greeting_after,
    ranked_hosts,
)

DEADLINE = 900.0
LIMIT = 300.0  # for finding a ready host
BEST, MIDDLE, WORST = ranked_hosts(3)
WORSE_THAN_EQUALS = Candidate("last.example", "192.0.2.99", 25, 20)

REFUSAL = Finding(Verdict.REFUSED, Phase.CONNECT, 0.02)
LOST = Finding(Verdict.CLOSED, Phase.TRANSACTION, 0.1)
SAYS_4YZ = Finding(Verdict.TRANSIENT, Phase.TRANSACTION, 0.1)
SAYS_5YZ = Finding(Verdict.PERMANENT, Phase.TRANSACTION, 0.1)


def new_race(*candidates: Candidate, deadline: float = DEADLINE) -> Race:
    entrants = [Entrant(c) for c in candidates or (BEST, MIDDLE, WORST)]
    return Race(entrants, RaceOptions(), deadline)


def ahead_of_good(hosts: list[Host]) -> dict[Candidate, Host]:
    """Every host its own preference, a good one last."""
    return dict(zip(ranked_hosts(len(hosts) + 1), [*hosts, GOOD], strict=True))


def dropped_dual_stack(count: int) -> dict[Candidate, Host]:
    *dropped, good = ranked_hosts(count + 1)
    both = [address for host in dropped for address in dual_stack(host)]
    return dict.fromkeys(both, DROPPED) | {good: GOOD}


def dropped_interleaved() -> dict[Candidate, Host]:
    (a6, a4), (b6, b4) = map(dual_stack, equal_hosts(2))
    return dict.fromkeys([a6, b6, a4, b4], DROPPED) | {WORSE_THAN_EQUALS: GOOD}


def broken_ipv6() -> dict[Candidate, Host]:
    v6, v4 = dual_stack(BEST)
    return {v6: DROPPED, v4: GOOD}


# The table of the design: seconds until the good one, the last in order, is ready.


@pytest.mark.parametrize(
    ("world", "seconds"),
    [
        pytest.param(ahead_of_good([DROPPED]), 1.6, id="one_dropped"),
        pytest.param(dropped_dual_stack(1), 1.8, id="one_dual_stack_dropped"),
        pytest.param(dropped_interleaved(), 4.6, id="two_equal_dual_stack_dropped"),
        pytest.param(
            dict.fromkeys(equal_hosts(8), DROPPED) | {WORSE_THAN_EQUALS: GOOD},
            4.6,
            id="eight_equal_dropped",
        ),
        pytest.param(ahead_of_good([DROPPED] * 12), 18.1, id="twelve_dropped"),
        pytest.param(dropped_dual_stack(12), 24.1, id="twelve_dual_stack_dropped"),
        pytest.param(ahead_of_good([REFUSED] * 12), 0.3, id="twelve_refused"),
        pytest.param(
            dict(zip(equal_hosts(2), [DROPPED, GOOD], strict=True)),
            1.1,
            id="one_of_equals_dropped",
        ),
        pytest.param(ahead_of_good([SILENT]), 8.1, id="one_silent"),
        pytest.param(ahead_of_good([SILENT] * 3), 24.2, id="three_silent"),
        pytest.param(ahead_of_good([SILENT] * 4), 32.2, id="four_silent"),
        pytest.param(ahead_of_good([SILENT] * 8), 64.3, id="eight_silent"),
        pytest.param(ahead_of_good([SILENT] * 12), 96.3, id="twelve_silent"),
        pytest.param(
            ahead_of_good([DROPPED, DROPPED, SILENT]), 11.1, id="two_dropped_one_silent"
        ),
        pytest.param(broken_ipv6(), 0.3, id="broken_ipv6_of_the_same_host"),
    ],
)
def test_the_good_one_is_ready_as_soon_as_designed(
    world: dict[Candidate, Host], seconds: float
) -> None:
    played = Simulation(world).run()
    (good,) = [c for c, host in world.items() if host is GOOD]
    assert played.ready_at[good] == pytest.approx(seconds, abs=0.1)
    assert played.taken == [good]
    assert played.outcome == "delivered"


def test_one_of_five_equals_dropped_delays_by_a_second() -> None:
    world = dict.fromkeys(equal_hosts(5), GOOD)
    first, second, *_ = world
    played = Simulation(world | {first: DROPPED}).run()
    assert played.ready_at[second] == pytest.approx(1.1, abs=0.1)
    assert played.started == [first, second]


def test_postscreen_that_greets_after_six_seconds_wins_itself() -> None:
    played = Simulation({BEST: greeting_after(6.0), MIDDLE: GOOD}).run()
    assert played.ready_at[BEST] == pytest.approx(6.1, abs=0.1)
    assert played.started == [BEST]


# Every state and every input.


def begun() -> Race:
    race = new_race()
    race.begin(0.0)
    return race


def with_best_taken() -> Race:
    race = begun()
    race.reached(BEST, Phase.READY, 1.0)
    return race


def given_up() -> Race:
    race = with_best_taken()
    assert race.resume(SAYS_5YZ, 1.0) == [GiveUp(GiveUpReason.EXHAUSTED)]
    return race


MODES = {
    "new": new_race,
    "racing": begun,
    "suspended": with_best_taken,
    "over": given_up,
}
INPUTS: dict[str, Callable[[Race], list[Action]]] = {
    "begin": lambda race: race.begin(1.0),
    "reached": lambda race: race.reached(BEST, Phase.GREETING, 1.0),
    "failed": lambda race: race.failed(BEST, REFUSAL, 1.0),
    "wake": lambda race: race.wake(1.0),
    "drop_others": lambda race: race.drop_others(1.0),
    "resume": lambda race: race.resume(LOST, 1.0),
    "restart": lambda race: race.restart(1.0),
}
REFUSED_CALLS = {
    *(("new", name) for name in ("drop_others", "resume", "restart")),
    *(("racing", name) for name in ("begin", "drop_others", "resume", "restart")),
    ("suspended", "begin"),
    *(("over", name) for name in ("begin", "drop_others", "resume", "restart")),
}
ACTING_CALLS = {
    ("new", "begin"): [Start(BEST), Wake(2.5)],
    ("racing", "reached"): [Wake(9.0)],
    ("racing", "failed"): [Start(MIDDLE), Wake(2.5)],
    ("racing", "wake"): [Wake(1.5)],
    ("suspended", "resume"): [Start(MIDDLE), Wake(2.5)],
    ("suspended", "restart"): [Start(BEST), Wake(2.5)],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", INPUTS)
def test_every_call_in_every_mode_acts_or_is_ignored_or_refused(
    mode: str, name: str
) -> None:
    race = MODES[mode]()
    if (mode, name) in REFUSED_CALLS:
        with pytest.raises(AssertionError):
            INPUTS[name](race)
    else:
        assert INPUTS[name](race) == ACTING_CALLS.get((mode, name), [])


def open_in(phase: Phase) -> Callable[[], Race]:
    def make() -> Race:
        race = begun()
        race.reached(BEST, phase, 0.5)
        return race

    return make


def never_asked() -> Race:
    race = new_race(MIDDLE, BEST)
    race.begin(0.0)
    return race


def asked_and_failed() -> Race:
    race = begun()
    race.failed(BEST, REFUSAL, 0.5)
    return race


def spoilt() -> Race:
    race = begun()
    race.failed(BEST, None, 0.5)
    return race


def yielded() -> Race:
    timing = RaceOptions(open=1)
    race = Race([Entrant(BEST), Entrant(MIDDLE)], timing, DEADLINE)
    race.begin(-6.0)
    assert race.wake(0.0)[1] == Drop(
        BEST, Finding(Verdict.FILTERED, Phase.CONNECT, 6.0)
    )
    return race


NOT_OPEN = [never_asked, asked_and_failed, spoilt, yielded, with_best_taken, given_up]
EVENTS: dict[str, Callable[[Race], list[Action]]] = {
    **{
        f"reached_{phase.word}": lambda race, phase=phase: race.reached(  # type: ignore[misc]
            BEST, phase, 2.0
        )
        for phase in Phase
    },
    "failed": lambda race: race.failed(BEST, REFUSAL, 2.0),
    "our_trouble": lambda race: race.failed(BEST, None, 2.0),
}


@pytest.mark.parametrize("make", NOT_OPEN)
@pytest.mark.parametrize("event", EVENTS)
def test_news_of_one_that_is_not_open_changes_nothing(
    make: Callable[[], Race], event: str
) -> None:
    race, twin = make(), make()
    assert EVENTS[event](race) == twin.wake(2.0)
    assert race.has_better_pending(WORST) is twin.has_better_pending(WORST)
    assert race.wake(100.0) == twin.wake(100.0)


@pytest.mark.parametrize("phase", [p for p in Phase if p < Phase.READY])
@pytest.mark.parametrize("news", Phase)
def test_an_open_one_goes_forward_only(phase: Phase, news: Phase) -> None:
    race, twin = open_in(phase)(), open_in(phase)()
    actions = race.reached(BEST, news, 1.0)
    if news <= phase:
        assert actions == twin.wake(1.0)
    elif news < Phase.READY:
        assert actions == [Wake(9.0)]
    else:
        assert actions == [Take(BEST)]


@pytest.mark.parametrize("phase", [p for p in Phase if p < Phase.READY])
@pytest.mark.parametrize("finding", [REFUSAL, None])
def test_the_next_starts_at_once_when_an_open_one_fails(
    phase: Phase, finding: Finding | None
) -> None:
    race = open_in(phase)()
    assert race.failed(BEST, finding, 1.0) == [Start(MIDDLE), Wake(2.5)]
    assert race.has_better_pending(MIDDLE) is (finding is None)


def test_an_unknown_candidate_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        begun().reached(WORSE_THAN_EQUALS, Phase.GREETING, 1.0)


# Beginning and patience.


def test_nobody_to_ask_gives_up_at_once() -> None:
    race = Race([], RaceOptions(), DEADLINE)
    assert race.begin(0.0) == [GiveUp(GiveUpReason.EXHAUSTED)]


def test_a_deadline_that_is_past_dials_nobody() -> None:
    race = new_race(deadline=5.0)
    assert race.begin(5.0) == [GiveUp(GiveUpReason.DEADLINE)]
    assert race.has_better_pending(MIDDLE)


def test_the_same_candidate_twice_is_asked_once() -> None:
    race = new_race(BEST, BEST)
    race.begin(0.0)
    assert race.failed(BEST, REFUSAL, 0.1) == [GiveUp(GiveUpReason.EXHAUSTED)]


def test_patience_that_ends_is_told_once_for_every_phase() -> None:
    race = begun()
    assert race.wake(1.5) == [
        Doubt(BEST, Finding(Verdict.FILTERED, Phase.CONNECT, 1.5, full=False)),
        Start(MIDDLE),
        Wake(3.0),
    ]
    assert race.reached(BEST, Phase.GREETING, 2.0) == [Wake(3.0)]
    (doubt, wake) = race.wake(3.0)
    assert isinstance(doubt, Doubt)
    assert doubt.candidate == MIDDLE
    assert wake == Wake(10.0)
    assert race.wake(9.0) == [Wake(10.0)]
    assert race.wake(10.0) == [
        Doubt(BEST, Finding(Verdict.SILENT, Phase.GREETING, 8.0, full=False)),
        Start(WORST),
        Wake(31.5),
    ]
    assert race.wake(11.0) == [Wake(31.5)]


def test_the_race_wants_to_be_woken_when_the_first_patience_ends() -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.GREETING, 1.75)
    assert race.reached(BEST, Phase.GREETING, 1.625) == [Wake(9.625)]


def test_a_late_wake_does_what_was_due() -> None:
    doubt, start, wake = begun().wake(7.0)
    assert isinstance(doubt, Doubt)
    assert (start, wake) == (Start(MIDDLE), Wake(8.5))


def test_an_idle_session_is_taken_at_once() -> None:
    played = Simulation({BEST: POOLED, MIDDLE: GOOD}).run()
    assert [a for _, a in played.log[:3]] == [Start(BEST), Wake(1.5), Take(BEST)]


def test_a_remembered_slow_greeting_is_waited_for() -> None:
    slow = Entrant(BEST, greeting_latency=30.0)
    world = {BEST: greeting_after(31.0), MIDDLE: GOOD}
    played = Simulation(world, entrants=[slow, Entrant(MIDDLE)]).run()
    assert played.started == [BEST]


def test_patience_of_nothing_starts_as_many_as_there_are_places() -> None:
    timing = RaceOptions(host_delay=0.0)
    race = Race([Entrant(c) for c in equal_hosts(9)], timing, DEADLINE)
    assert sum(isinstance(a, Start) for a in race.begin(0.0)) == 4


# Places.


def test_one_makes_room_only_when_the_next_is_due() -> None:
    played = Simulation(ahead_of_good([DROPPED] * 12)).run()
    first = played.started[0]
    assert played.times(Drop, first)[0] == 9.0
    (drop,) = [a for at, a in played.log if at == 9.0 and isinstance(a, Drop)]
    assert drop.finding == Finding(Verdict.FILTERED, Phase.CONNECT, 9.0)


def test_a_worse_rank_has_its_turn_when_four_equals_are_open() -> None:
    equals = equal_hosts(6)
    world = dict.fromkeys([*equals, WORSE_THAN_EQUALS], DROPPED)
    played = Simulation(world).run()
    assert played.started[:6] == [*equals[:4], WORSE_THAN_EQUALS, equals[4]]
    assert played.times(Start, equals[4])[0] == 6.0


def test_equals_make_room_for_equals_only() -> None:
    first, second = equal_hosts(2)
    timing = RaceOptions(open=3, open_per_rank=1)
    race = Race([Entrant(first), Entrant(second)], timing, DEADLINE)
    race.begin(0.0)
    assert race.wake(5.0)[-1] == Wake(6.0)
    drop, start, wake = race.wake(6.0)
    assert isinstance(drop, Drop)
    assert (drop.candidate, start, wake) == (first, Start(second), Wake(7.0))
    assert race.wake(7.0)[-1] == Wake(36.0)


def test_with_nowhere_else_to_go_a_connection_may_take_thirty_seconds() -> None:
    played = Simulation({BEST: Host(((29.9, Phase.READY),))}).run()
    assert played.outcome == "delivered"
    played = Simulation({BEST: DROPPED}).run()
    assert played.log[-2:] == [
        (30.0, Drop(BEST, Finding(Verdict.FILTERED, Phase.CONNECT, 30.0))),
        (30.0, GiveUp(GiveUpReason.EXHAUSTED)),
    ]


@pytest.mark.parametrize("host", [SILENT, SILENT_AT_EHLO, SILENT_AT_TLS])
def test_with_nowhere_else_to_go_a_phase_may_take_five_minutes(host: Host) -> None:
    played = Simulation({BEST: host}, deadline=3600.0).run()
    drop = played.log[-2][1]
    assert isinstance(drop, Drop)
    assert drop.finding is not None
    assert drop.finding.waited == pytest.approx(300.0)
    assert played.given_up is GiveUpReason.EXHAUSTED


def test_one_that_made_room_is_asked_again_at_the_end() -> None:
    """It connects after 20 seconds: a patient sender would have waited for it."""
    world = dict.fromkeys(ranked_hosts(12), DROPPED)
    slow = Host(((20.0, Phase.READY),))
    played = Simulation(world | {BEST: slow}).run()
    assert played.outcome == "delivered"
    assert played.times(Start, BEST) == [0.0, pytest.approx(39.0, abs=0.1)]


def test_one_that_is_asked_again_hurries_nobody_and_is_not_hurried() -> None:
    world = dict.fromkeys(ranked_hosts(12), DROPPED)
    played = Simulation(world).run()
    ended: dict[Candidate, float] = {}
    for candidate in world:
        ended[candidate] = (
            played.times(Drop, candidate)[-1] - played.times(Start, candidate)[-1]
        )
    assert set(ended.values()) == {30.0}
    assert played.given_up is GiveUpReason.EXHAUSTED
    assert played.ended_at < 80.0


def test_a_tarpit_makes_room_for_one_that_is_asked_again() -> None:
    *others, last = ranked_hosts(7)
    world = dict.fromkeys(others, SILENT) | {last: SILENT}
    late = greeting_after(100.0)
    played = Simulation(world | {BEST: late}, deadline=3600.0).run()
    assert played.times(Drop, BEST)[0] == pytest.approx(48.1, abs=0.1)
    assert played.times(Start, BEST)[1] == pytest.approx(56.1, abs=0.1)
    assert played.taken == [BEST]


# Winner.


def racing_two() -> Race:
    """BEST has had its SYN-ACK, MIDDLE was started beside it at 9.0."""
    race = begun()
    race.reached(BEST, Phase.GREETING, 1.0)
    race.wake(9.0)
    return race


def test_a_better_one_that_is_connected_is_given_grace() -> None:
    race = racing_two()
    assert race.reached(MIDDLE, Phase.READY, 9.1) == [Wake(9.1 + 0.2)]
    assert race.wake(9.2) == [Wake(9.1 + 0.2)]
    assert race.wake(9.1 + 0.2) == [Take(MIDDLE)]


def test_a_better_one_that_is_ready_within_its_grace_wins() -> None:
    race = racing_two()
    race.reached(MIDDLE, Phase.READY, 9.1)
    assert race.reached(BEST, Phase.EHLO, 9.2) == [Wake(9.1 + 0.2)]
    assert race.reached(BEST, Phase.READY, 9.25) == [Take(BEST)]


def test_grace_ends_when_the_better_one_fails() -> None:
    race = racing_two()
    race.reached(MIDDLE, Phase.READY, 9.1)
    assert race.failed(BEST, LOST, 9.2) == [Take(MIDDLE)]


def test_one_without_syn_ack_is_given_no_grace() -> None:
    race = begun()
    race.wake(1.5)
    assert race.reached(MIDDLE, Phase.READY, 1.6) == [Take(MIDDLE)]


def test_an_equal_one_is_given_no_grace() -> None:
    first, second = equal_hosts(2)
    race = new_race(first, second)
    race.begin(0.0)
    race.wake(1.0)
    race.reached(first, Phase.GREETING, 1.1)
    assert race.reached(second, Phase.READY, 1.2) == [Take(second)]


def test_the_winner_in_grace_that_hangs_up_lets_the_race_go_on() -> None:
    race = racing_two()
    race.reached(MIDDLE, Phase.READY, 9.1)
    assert race.failed(MIDDLE, LOST, 9.2)[0] == Start(WORST)


def test_of_equals_that_are_ready_the_first_is_taken() -> None:
    first, second = equal_hosts(2)
    race = new_race(BEST, first, second)
    race.begin(0.0)
    race.reached(BEST, Phase.GREETING, 1.0)
    race.wake(9.0)
    race.wake(10.0)
    race.reached(second, Phase.READY, 10.1)
    race.reached(first, Phase.READY, 10.2)
    assert race.wake(10.3) == [Take(second)]


def test_grace_does_not_pass_the_time_for_finding() -> None:
    race = new_race(deadline=30.0)
    race.begin(0.0)
    race.reached(BEST, Phase.GREETING, 1.0)
    race.wake(9.0)
    assert race.reached(MIDDLE, Phase.READY, 9.9) == [Wake(10.0)]
    assert race.wake(10.0) == [Take(MIDDLE)]


# A session of an earlier message, which is over.


def test_one_whose_idle_session_was_over_is_dialled_as_if_it_had_not_been_ready() -> (
    None
):
    race, twin = begun(), new_race()
    race.reached(BEST, Phase.READY, 0.0)
    assert race.restart(0.1) == [Start(BEST), Wake(1.6)]
    twin.begin(0.1)
    for at in (1.6, 3.1, 6.1, 30.1):
        assert race.wake(at) == twin.wake(at)


def test_one_whose_idle_session_was_over_waits_for_no_better_one() -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 1.5)
    race.reached(BEST, Phase.GREETING, 1.6)  # dialled now, MIDDLE would come at 9.6
    assert race.restart(1.7) == [Start(MIDDLE), Wake(3.2)]
    assert race.reached(BEST, Phase.READY, 1.8) == [Take(BEST)]


def test_better_one_that_became_ready_meanwhile_is_taken() -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 1.5)
    race.reached(BEST, Phase.READY, 1.6)
    assert race.restart(1.7) == [Start(MIDDLE), Take(BEST)]
    assert race.drop_others(1.8) == [Drop(MIDDLE)]


def test_better_one_that_connected_too_late_is_dropped_before_the_restart() -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 25.0)
    race.reached(BEST, Phase.GREETING, 31.0)
    actions = race.restart(31.1)
    assert isinstance(actions[0], Drop)
    assert actions[0].candidate == BEST
    assert actions[1] == Start(MIDDLE)


def test_restart_of_one_is_no_second_dialling() -> None:
    candidates = ranked_hosts(MAX_DIALLED)
    race = new_race(*candidates)
    race.begin(0.0)
    for one in candidates[:-2]:
        race.failed(one, REFUSAL, 0.0)
    race.reached(candidates[-2], Phase.READY, 0.0)
    race.restart(0.1)
    assert Start(candidates[-1]) in race.failed(candidates[-2], REFUSAL, 0.2)


def test_one_that_is_asked_again_keeps_its_last_chance_over_a_restart() -> None:
    race = new_race(BEST)
    race.begin(0.0)
    race.reached(BEST, Phase.READY, 0.1)
    waited = LOST._replace(wait=Wait(Awaited.RCPT, 60.0))
    assert race.resume(waited, 60.0)[0] == Start(BEST)
    race.reached(BEST, Phase.READY, 60.0)
    race.restart(60.1)
    race.reached(BEST, Phase.READY, 60.2)
    assert race.is_last_chance()


@pytest.mark.parametrize("now", [10.0, 30.0])
def test_nothing_is_restarted_when_the_time_is_over(now: float) -> None:
    race = new_race(BEST, deadline=30.0)
    race.begin(0.0)
    race.reached(BEST, Phase.READY, 10.0)
    assert race.restart(now) == [GiveUp(GiveUpReason.DEADLINE)]


# After the winner.


def test_losers_stay_open_until_the_winner_has_settled() -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 1.6)
    assert race.wake(40.0) == []
    assert race.drop_others(2.0) == [Drop(BEST)]
    assert race.drop_others(2.0) == []


def test_a_loser_that_had_its_full_time_is_remembered_when_dropped() -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 1.6)
    finding = Finding(Verdict.FILTERED, Phase.CONNECT, 6.0)
    assert race.drop_others(6.0) == [Drop(BEST, finding)]


def test_a_ready_loser_is_dropped_without_a_finding() -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 1.6)
    race.reached(BEST, Phase.READY, 1.7)
    assert race.drop_others(60.0) == [Drop(BEST)]


@pytest.mark.parametrize("finding", [LOST, SAYS_4YZ, SAYS_5YZ])
def test_a_better_loser_that_is_ready_is_taken_at_once(finding: Finding) -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 1.6)
    assert race.reached(BEST, Phase.READY, 1.7) == []
    assert race.resume(finding, 2.0) == [Take(BEST)]


def test_a_worse_loser_that_is_ready_is_taken_before_waiting_for_a_better() -> None:
    race = racing_two()
    race.wake(10.5)
    race.reached(MIDDLE, Phase.READY, 10.6)
    race.wake(10.8)
    race.reached(WORST, Phase.READY, 10.9)
    assert race.resume(SAYS_4YZ, 11.0) == [Take(WORST)]


def test_after_a_5yz_only_better_ones_are_asked() -> None:
    race = racing_two()
    race.wake(10.5)
    race.reached(MIDDLE, Phase.READY, 10.6)
    race.wake(10.8)
    race.reached(WORST, Phase.READY, 10.9)
    assert race.has_better_pending(MIDDLE)
    assert race.resume(SAYS_5YZ, 11.0) == [Drop(WORST), Wake(1.0 + 300.0)]
    assert race.failed(BEST, LOST, 12.0) == [GiveUp(GiveUpReason.EXHAUSTED)]
    assert not race.has_better_pending(MIDDLE)


def test_a_better_one_that_has_others_of_ours_is_asked_again_and_5yz_is_not_final() -> (
    None
):
    race = begun()
    assert Start(MIDDLE) in race.failed(BEST, REFUSAL, 0.1, is_crowded=True)
    assert Take(MIDDLE) in race.reached(MIDDLE, Phase.READY, 0.2)
    assert race.has_better_pending(MIDDLE)
    assert Start(BEST) in race.resume(SAYS_5YZ, 1.0)
    over = race.failed(BEST, REFUSAL, 1.1, is_crowded=True)
    assert over == [GiveUp(GiveUpReason.CAPPED)]
    assert race.has_better_pending(MIDDLE)


def test_a_sole_one_that_has_others_of_ours_is_asked_once() -> None:
    race = new_race(BEST)
    race.begin(0.0)
    over = race.failed(BEST, REFUSAL, 0.1, is_crowded=True)
    assert over == [GiveUp(GiveUpReason.EXHAUSTED)]


def test_a_better_one_that_was_never_asked_is_asked_after_a_5yz() -> None:
    """Memory may put the best one last."""
    race = new_race(MIDDLE, WORST, BEST)
    race.begin(0.0)
    race.reached(MIDDLE, Phase.READY, 0.1)
    assert race.resume(SAYS_5YZ, 0.2) == [Start(BEST), Wake(30.2)]


def test_the_ceiling_of_a_5yz_only_sinks() -> None:
    race = new_race(WORST, MIDDLE, BEST)
    race.begin(0.0)
    race.reached(WORST, Phase.READY, 0.1)
    assert race.resume(SAYS_5YZ, 0.2)[0] == Start(MIDDLE)
    race.reached(MIDDLE, Phase.READY, 0.3)
    assert race.resume(SAYS_5YZ, 0.4)[0] == Start(BEST)
    race.reached(BEST, Phase.READY, 0.5)
    assert race.resume(LOST, 0.6) == [GiveUp(GiveUpReason.EXHAUSTED)]


def test_a_5yz_of_the_best_is_final() -> None:
    race = with_best_taken()
    assert not race.has_better_pending(BEST)
    assert race.resume(SAYS_5YZ, 1.1) == [GiveUp(GiveUpReason.EXHAUSTED)]


@pytest.mark.parametrize("hosts", [ranked_hosts(13), equal_hosts(13)])
def test_two_sessions_may_end_in_4yz(hosts: list[Candidate]) -> None:
    world = dict.fromkeys(hosts, answering(Verdict.TRANSIENT))
    played = Simulation(world).run()
    assert len(played.taken) == 2
    assert played.given_up is GiveUpReason.CAPPED
    assert played.outcome == "deferred"


def test_a_good_second_host_is_reached_when_the_best_always_says_4yz() -> None:
    played = Simulation({BEST: answering(Verdict.TRANSIENT), MIDDLE: GOOD}).run()
    assert played.taken == [BEST, MIDDLE]
    assert played.outcome == "delivered"


def test_a_good_second_host_is_reached_when_both_addresses_of_the_best_say_4yz() -> (
    None
):
    best = [BEST._replace(address=f"192.0.2.{200 + number}") for number in range(4)]
    world = dict.fromkeys(best, answering(Verdict.TRANSIENT))
    played = Simulation({**world, MIDDLE: GOOD}).run()
    assert played.taken == [*best[:2], MIDDLE]
    assert played.outcome == "delivered"


def test_a_5yz_after_two_4yz_of_the_best_host_defers() -> None:
    world = dict.fromkeys(dual_stack(BEST), answering(Verdict.TRANSIENT))
    played = Simulation({**world, MIDDLE: answering(Verdict.PERMANENT)}).run()
    assert played.taken[-1] == MIDDLE
    assert played.outcome == "deferred"


@pytest.mark.parametrize("hosts", [ranked_hosts(5), equal_hosts(5)])
def test_greylisting_site_of_dual_stack_hosts_is_visited_no_more_than_thrice(
    hosts: list[Candidate],
) -> None:
    both = [address for host in hosts for address in dual_stack(host)]
    played = Simulation(dict.fromkeys(both, answering(Verdict.TRANSIENT))).run()
    assert len(played.taken) == 3
    assert len({one.host for one in played.taken}) == 2


def test_a_5yz_of_an_equal_is_final() -> None:
    world = dict.fromkeys(equal_hosts(2), answering(Verdict.PERMANENT))
    played = Simulation(world).run()
    assert len(played.started) == 1
    assert played.outcome == "bounced"


def test_two_4yz_leave_nobody_exhausted_when_there_are_no_others() -> None:
    world = dict.fromkeys(ranked_hosts(2), answering(Verdict.TRANSIENT))
    assert Simulation(world).run().given_up is GiveUpReason.EXHAUSTED


def test_4yz_from_worse_ones_do_not_silence_a_better_one() -> None:
    later = [answering(Verdict.TRANSIENT)] * 3
    world = dict(zip(ranked_hosts(4), [greeting_after(60.0), *later], strict=True))
    played = Simulation(world).run()
    assert played.taken[-1] == BEST
    assert len(played.taken) == 3
    assert played.outcome == "delivered"


def test_a_5yz_that_a_patient_sender_would_not_have_heard_defers() -> None:
    slow = greeting_after(20.0, Answer(Verdict.TRANSIENT))
    world = {BEST: slow, MIDDLE: slow, WORST: answering(Verdict.PERMANENT)}
    played = Simulation(world).run()
    assert played.taken == [WORST, BEST, MIDDLE]
    assert played.outcome == "deferred"


def test_a_host_lost_in_the_transaction_is_followed_by_the_next() -> None:
    world = dict(
        zip(ranked_hosts(9), [answering(Verdict.CLOSED)] * 8 + [GOOD], strict=True)
    )
    played = Simulation(world).run()
    assert played.outcome == "delivered"
    assert len(played.taken) == 9


def test_whoever_was_dropped_is_asked_again_when_the_body_is_lost() -> None:
    lost_late = GOOD._replace(answer=Answer(Verdict.STALLED, settles=True))
    world = {BEST: greeting_after(20.0), MIDDLE: lost_late}
    played = Simulation(world).run()
    assert played.started == [BEST, MIDDLE, BEST]
    assert played.outcome == "delivered"


def test_one_that_grew_tired_of_waiting_is_asked_again() -> None:
    """It was ready and hung up, because somebody else was being talked to."""
    tired = Host(
        ((0.02, Phase.GREETING), (9.0, Phase.READY), (5.0, Verdict.CLOSED)),
    )
    slow_refusal = GOOD._replace(answer=Answer(Verdict.PERMANENT, after=40.0))
    played = Simulation({BEST: tired, MIDDLE: slow_refusal}).run()
    assert played.started == [BEST, MIDDLE, BEST]
    assert played.taken == [MIDDLE, BEST]
    assert played.outcome == "delivered"


def test_one_that_grew_tired_of_the_grace_is_not_made_to_wait_again() -> None:
    race = racing_two()
    race.reached(MIDDLE, Phase.READY, 10.0)
    race.failed(MIDDLE, LOST, 10.1)
    assert race.failed(WORST, LOST, 10.1)[0] == Start(MIDDLE)
    assert race.reached(MIDDLE, Phase.READY, 11.0) == [Take(MIDDLE)]


def test_one_that_grew_tired_twice_has_still_not_failed() -> None:
    race = begun()
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 2.0)
    race.reached(BEST, Phase.READY, 2.1)
    race.failed(BEST, LOST, 2.2)
    assert race.resume(LOST, 2.3)[0] == Start(WORST)
    assert Start(BEST) in race.wake(4.0)
    race.reached(WORST, Phase.READY, 4.1)
    race.reached(BEST, Phase.READY, 4.2)
    race.failed(BEST, LOST, 4.3)
    assert race.has_better_pending(WORST)
    assert race.resume(SAYS_5YZ, 4.4) == [Start(BEST), Wake(34.4)]


def test_one_that_is_found_closed_after_it_was_kept_waiting_is_asked_again() -> None:
    tired = greeting_after(9.0)._replace(idle_time=30.0)
    slow_refusal = GOOD._replace(answer=Answer(Verdict.PERMANENT, after=40.0))
    played = Simulation({BEST: tired, MIDDLE: slow_refusal}).run()
    assert played.taken == [MIDDLE, BEST, BEST]
    assert played.outcome == "delivered"


def test_one_that_is_lost_after_a_moment_of_grace_did_not_mind_waiting() -> None:
    silent_late = GOOD._replace(answer=Answer(Verdict.SILENT, after=40.0))
    played = Simulation({BEST: SILENT, MIDDLE: silent_late}).run()
    assert played.started == [BEST, MIDDLE]


def test_one_that_is_lost_after_it_answered_rcpt_did_not_mind_waiting() -> None:
    lost_late = Answer(Verdict.CLOSED, settles=True)
    silent_late = GOOD._replace(answer=Answer(Verdict.SILENT, after=40.0))
    world = {BEST: greeting_after(9.0, lost_late), MIDDLE: silent_late}
    played = Simulation(world).run()
    assert played.taken == [MIDDLE, BEST]
    assert played.outcome == "deferred"


@pytest.mark.parametrize("finding", [SAYS_4YZ, SAYS_5YZ])
def test_one_that_answers_after_it_was_kept_waiting_is_not_asked_again(
    finding: Finding,
) -> None:
    race = new_race(BEST, MIDDLE)
    race.begin(0.0)
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 1.6)
    race.reached(BEST, Phase.READY, 1.7)
    assert race.resume(LOST, 60.0) == [Take(BEST)]
    assert race.resume(finding, 60.1) == [GiveUp(GiveUpReason.EXHAUSTED)]


def test_one_that_was_taken_fresh_and_is_lost_has_failed() -> None:
    played = Simulation({BEST: answering(Verdict.CLOSED)}).run()
    assert played.taken == [BEST]
    assert played.given_up is GiveUpReason.EXHAUSTED


def test_one_that_grew_tired_and_cannot_be_asked_again_stays_pending() -> None:
    race = new_race(BEST, MIDDLE, deadline=30.0)
    race.begin(0.0)
    race.reached(BEST, Phase.GREETING, 0.1)
    race.wake(8.1)
    race.reached(MIDDLE, Phase.READY, 8.2)
    race.wake(8.5)
    race.reached(BEST, Phase.READY, 8.6)
    race.failed(BEST, LOST, 20.0)
    assert race.resume(SAYS_5YZ, 30.0) == [GiveUp(GiveUpReason.DEADLINE)]
    assert race.has_better_pending(MIDDLE)


def test_our_own_trouble_makes_no_5yz_final() -> None:
    played = Simulation({BEST: OUR_TROUBLE, MIDDLE: answering(Verdict.PERMANENT)}).run()
    assert played.given_up is GiveUpReason.CAPPED
    assert played.outcome == "deferred"
    assert played.started == [BEST, MIDDLE]


def test_our_own_trouble_in_the_transaction_makes_no_5yz_final() -> None:
    race = with_best_taken()
    race.resume(LOST._replace(scope=Scope.SITE), 1.0)
    race.reached(MIDDLE, Phase.READY, 1.1)
    assert race.has_better_pending(MIDDLE)
    assert race.resume(SAYS_5YZ, 1.2) == [GiveUp(GiveUpReason.CAPPED)]


def test_a_finding_about_ourselves_is_our_own_trouble() -> None:
    race = begun()
    race.failed(BEST, REFUSAL._replace(scope=Scope.SITE), 1.0)
    assert race.has_better_pending(MIDDLE)


# Turned away is not failed.

REFUSES = answering(Verdict.PERMANENT)


def slow_to_answer(seconds: float, verdict: Verdict | None = None) -> Host:
    """Return a host that is ready at once and takes its time for RCPT."""
    return GOOD._replace(answer=Answer(verdict, after=seconds))


@pytest.mark.parametrize("seconds", [59.0, 90.0, 299.0])
def test_a_5yz_waits_for_a_better_one_that_is_slow_to_answer(seconds: float) -> None:
    played = Simulation({BEST: slow_to_answer(seconds), MIDDLE: REFUSES}).run()
    assert played.outcome == "delivered"
    assert played.taken[-1] == BEST


def test_a_4yz_waits_for_a_better_one_that_is_slow_to_answer() -> None:
    later = answering(Verdict.TRANSIENT)
    world = {BEST: slow_to_answer(90.0), MIDDLE: later, WORST: later}
    assert Simulation(world).run().outcome == "delivered"


def test_one_that_is_slow_to_answer_is_asked_again_when_all_others_fail() -> None:
    played = Simulation({BEST: slow_to_answer(90.0), MIDDLE: REFUSED}).run()
    assert played.started == [BEST, MIDDLE, BEST]
    assert played.outcome == "delivered"


def test_a_5yz_is_final_once_a_silent_better_one_had_a_patient_senders_time() -> None:
    played = Simulation({BEST: slow_to_answer(inf), MIDDLE: REFUSES}).run()
    assert played.taken == [BEST, MIDDLE, BEST]
    assert played.outcome == "bounced"
    assert played.ended_at == pytest.approx(60.0 + 300.0, abs=1.0)


def test_several_slow_better_ones_are_all_asked_again() -> None:
    slow = slow_to_answer(200.0)
    refusing = slow_to_answer(250.0, Verdict.PERMANENT)
    played = Simulation({BEST: refusing, MIDDLE: slow, WORST: REFUSES}).run()
    assert played.taken == [BEST, MIDDLE, WORST, BEST]
    assert played.outcome == "bounced"


def test_a_better_one_that_greets_late_is_waited_for_until_the_deadline() -> None:
    world = {BEST: greeting_after(60.0), MIDDLE: REFUSES}
    played = Simulation(world, deadline=120.0).run()
    assert played.outcome == "delivered"


@pytest.mark.parametrize("host", [SILENT, SILENT_AT_EHLO, SILENT_AT_TLS, DROPPED])
def test_a_5yz_is_not_final_when_the_deadline_cut_a_better_one_short(
    host: Host,
) -> None:
    played = Simulation({BEST: host, MIDDLE: REFUSES}, deadline=25.0).run()
    assert played.ended_at == pytest.approx(25.0)
    assert played.given_up is GiveUpReason.DEADLINE
    assert played.outcome == "deferred"


def test_a_better_one_that_made_room_and_was_not_asked_again_has_not_failed() -> None:
    *silent, refusing = ranked_hosts(8)
    world = dict.fromkeys(silent, SILENT) | {refusing: REFUSES}
    played = Simulation(world, deadline=200.0).run()
    assert played.taken == [refusing]
    assert played.outcome == "deferred"


def test_a_5yz_of_an_equal_does_not_wait() -> None:
    first, second = equal_hosts(2)
    played = Simulation({first: slow_to_answer(90.0), second: REFUSES}).run()
    assert played.taken == [first, second]
    assert played.outcome == "bounced"


def test_a_better_egress_that_is_slow_is_waited_for() -> None:
    relay = BEST._replace(egress="relay", egress_position=1)
    played = Simulation({MIDDLE: slow_to_answer(90.0), relay: REFUSES}).run()
    assert played.outcome == "delivered"


def test_one_that_stalled_is_asked_again_only_after_a_5yz() -> None:
    stalled = LOST._replace(verdict=Verdict.STALLED, wait=Wait(Awaited.BODY, 20.0))
    race = with_best_taken()
    assert race.resume(stalled, 21.0)[0] == Start(MIDDLE)
    race.reached(MIDDLE, Phase.READY, 22.0)
    assert race.others_left() == 1
    assert race.resume(SAYS_5YZ, 23.0)[0] == Start(BEST)
    race.reached(BEST, Phase.READY, 24.0)
    assert race.is_last_chance()
    assert race.resume(stalled, 44.0) == [GiveUp(GiveUpReason.CAPPED)]
    assert race.has_better_pending(MIDDLE)
    assert race.waits() == {BEST: {Awaited.BODY: 40.0}}


def test_one_that_lets_nobody_in_the_second_time_has_not_failed() -> None:
    """It allows one connection, perhaps, and is still busy with the first one."""
    race = new_race(BEST, MIDDLE)
    race.begin(0.0)
    race.reached(BEST, Phase.READY, 0.1)
    race.resume(LOST._replace(wait=Wait(Awaited.RCPT, 60.0)), 60.1)
    race.reached(MIDDLE, Phase.READY, 60.2)
    assert race.resume(SAYS_5YZ, 60.3)[0] == Start(BEST)
    busy = Finding(Verdict.GREETING_4XX, Phase.GREETING, 0.1)
    assert race.failed(BEST, busy, 60.4) == [GiveUp(GiveUpReason.CAPPED)]
    assert race.has_better_pending(MIDDLE)


def test_one_that_answers_in_the_end_was_not_waited_for_in_vain() -> None:
    world = {BEST: slow_to_answer(90.0, Verdict.TRANSIENT), MIDDLE: REFUSED}
    played = Simulation(world).run()
    assert played.outcome == "deferred"
    assert played.race.waits() == {}


def test_a_wait_for_one_address_counts_for_no_other() -> None:
    v6, v4 = dual_stack(BEST)
    world = {v6: DROPPED, v4: SILENT, MIDDLE: REFUSES}
    played = Simulation(world, deadline=60.0).run()
    assert played.outcome == "deferred"
    assert set(played.race.waits()) == {v6, v4}


@pytest.mark.parametrize("awaited", Awaited)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_seconds_waited_for_one_message_add_up(awaited: Awaited, share: float) -> None:
    patient = PATIENT_TIME[awaited]
    entrant = Entrant(BEST, waits={awaited: share * patient})
    race = Race([entrant, Entrant(MIDDLE)], RaceOptions(), DEADLINE)
    race.begin(0.0)
    race.reached(BEST, Phase.READY, 0.1)
    silent = LOST._replace(wait=Wait(awaited, 0.7 * patient))
    race.resume(silent, 100.0)
    race.reached(MIDDLE, Phase.READY, 100.1)
    assert race.has_better_pending(MIDDLE) is (share == 0.0)


@pytest.mark.parametrize("awaited", Awaited)
def test_seconds_waited_for_something_else_do_not_count(awaited: Awaited) -> None:
    waits = {one: 1000.0 for one in Awaited if one is not awaited}
    entrant = Entrant(BEST, waits=waits)
    race = Race([entrant, Entrant(MIDDLE)], RaceOptions(), DEADLINE)
    race.begin(0.0)
    race.reached(BEST, Phase.READY, 0.1)
    race.resume(LOST._replace(wait=Wait(awaited, 1.0)), 100.0)
    race.reached(MIDDLE, Phase.READY, 100.1)
    assert race.has_better_pending(MIDDLE)


def not_asked(race: Race) -> None:
    pass


def opened(race: Race) -> None:
    assert Start(BEST) in race.wake(1.0)


def turned_away(race: Race) -> None:
    opened(race)
    race.reached(BEST, Phase.READY, 1.0)
    race.failed(MIDDLE, REFUSAL, 1.0)
    race.resume(LOST._replace(wait=Wait(Awaited.CONNECT, 1.0)), 2.0)


def asked_again(race: Race) -> None:
    turned_away(race)
    race.failed(WORST, REFUSAL, 2.0)


def taken(race: Race) -> None:
    opened(race)
    race.reached(BEST, Phase.READY, 1.0)


def failed(race: Race) -> None:
    opened(race)
    race.failed(BEST, REFUSAL, 1.0)


def let_down_by_us(race: Race) -> None:
    opened(race)
    race.failed(BEST, None, 1.0)


STANDINGS: dict[Callable[[Race], None], tuple[bool, bool]] = {
    not_asked: (True, True),
    opened: (True, True),
    taken: (True, True),
    asked_again: (True, False),
    turned_away: (True, False),
    failed: (False, False),
    let_down_by_us: (True, True),
}


@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("known", ["nothing", "a_bit", "the_message", "remembered"])
def test_a_refusal_waits_for_every_standing_of_a_better_one_but_heard(
    standing: Callable[[Race], None], known: str
) -> None:
    """What was waited for before counts once it is asked in this attempt, too."""
    entrant = {
        "nothing": Entrant(BEST),
        "a_bit": Entrant(
            BEST,
            waits={Awaited.CONNECT: 20.0},
            remembered=Wait(Awaited.CONNECT, 6.0),
        ),
        "the_message": Entrant(BEST, waits={Awaited.CONNECT: 29.0}),
        "remembered": Entrant(BEST, remembered=Wait(Awaited.CONNECT, 30.0)),
    }[known]
    timing = RaceOptions(rank_delay=1.0, host_delay=1.0)
    race = Race([Entrant(MIDDLE), entrant, Entrant(WORST)], timing, DEADLINE)
    race.begin(0.0)
    standing(race)
    is_known = known in ("the_message", "remembered")
    assert race.has_better_pending(MIDDLE) is STANDINGS[standing][is_known]


def test_one_that_is_remembered_as_silent_is_asked_for_its_full_time_only() -> None:
    known = Entrant(BEST, remembered=Wait(Awaited.GREETING, 300.0))
    world = {MIDDLE: REFUSES, BEST: SILENT}
    played = Simulation(world, entrants=[Entrant(MIDDLE), known]).run()
    assert played.outcome == "bounced"
    assert played.ended_at == pytest.approx(30.0, abs=0.5)


def test_one_that_is_remembered_as_silent_and_is_back_is_heard() -> None:
    known = Entrant(BEST, remembered=Wait(Awaited.CONNECT, 30.0))
    world = {MIDDLE: REFUSES, BEST: GOOD}
    played = Simulation(world, entrants=[Entrant(MIDDLE), known]).run()
    assert played.outcome == "delivered"


def test_one_that_is_remembered_as_silent_has_all_its_time_when_nobody_refused() -> (
    None
):
    known = Entrant(BEST, remembered=Wait(Awaited.GREETING, 300.0))
    played = Simulation({BEST: greeting_after(250.0)}, entrants=[known]).run()
    assert played.outcome == "delivered"


# Caps and the deadline.


def test_thirty_two_are_dialled_at_most() -> None:
    world = dict.fromkeys(ranked_hosts(40), REFUSED)
    played = Simulation(world).run()
    assert len(played.started) == MAX_DIALLED == 32
    assert played.given_up is GiveUpReason.CAPPED


def test_nobody_makes_room_when_nobody_else_may_be_dialled() -> None:
    world = dict.fromkeys(ranked_hosts(40), DROPPED)
    played = Simulation(world).run()
    assert played.started == list(world)[:MAX_DIALLED]
    last = played.started[-1]
    assert played.times(Drop, last) == [played.times(Start, last)[0] + 30.0]


def test_finding_may_take_a_third_of_the_deadline() -> None:
    played = Simulation({BEST: SILENT, MIDDLE: SILENT}, deadline=60.0).run()
    assert played.ended_at == 20.0
    assert played.given_up is GiveUpReason.DEADLINE
    findings = [a.finding for _, a in played.log[-3:-1] if isinstance(a, Drop)]
    assert [f.full for f in findings if f] == [False, False]


def test_time_spent_in_a_transaction_is_not_spent_on_finding() -> None:
    slow = GOOD._replace(answer=Answer(Verdict.SILENT, after=400.0))
    played = Simulation({BEST: slow, MIDDLE: greeting_after(250.0)}).run()
    assert played.outcome == "delivered"


def test_time_for_finding_is_for_all_rounds_together() -> None:
    first = greeting_after(200.0, Answer(Verdict.TRANSIENT))
    played = Simulation({BEST: first, MIDDLE: SILENT}).run()
    assert played.ended_at == pytest.approx(LIMIT + 0.1, abs=0.01)


def test_a_ready_loser_is_taken_though_the_time_for_finding_is_used_up() -> None:
    race = new_race(deadline=30.0)
    race.begin(0.0)
    race.reached(BEST, Phase.GREETING, 1.0)
    race.wake(9.0)
    race.reached(MIDDLE, Phase.READY, 9.9)
    race.wake(10.0)
    race.reached(BEST, Phase.READY, 20.0)
    assert race.resume(SAYS_4YZ, 29.0) == [Take(BEST)]
    assert race.resume(SAYS_4YZ, 29.5) == [GiveUp(GiveUpReason.DEADLINE)]


def test_a_ready_loser_is_not_taken_after_the_deadline() -> None:
    race = new_race(deadline=30.0)
    race.begin(0.0)
    race.wake(1.5)
    race.reached(MIDDLE, Phase.READY, 1.6)
    race.reached(BEST, Phase.READY, 1.7)
    assert race.resume(LOST, 30.0) == [Drop(BEST), GiveUp(GiveUpReason.DEADLINE)]
    assert race.has_better_pending(MIDDLE)


def test_one_that_is_ready_late_is_taken_as_long_as_the_deadline_is_not_past() -> None:
    race = new_race(deadline=30.0)
    race.begin(0.0)
    assert race.reached(BEST, Phase.READY, 10.5) == [Take(BEST)]


# Whatever the world is like.

SECONDS = st.sampled_from([0.0, 0.02, 0.3, 1.3, 5.5, 7.1, 9.3, 20.3, 29.1, 70.7, 250.3])
FAILURES = st.sampled_from([Verdict.REFUSED, Verdict.CLOSED, Verdict.NOT_SMTP])
PHASES = [Phase.GREETING, Phase.EHLO, Phase.TLS, Phase.READY]


@st.composite
def scripts(draw: st.DrawFn) -> tuple[Step, ...]:
    """Some way into a session, and then ready, a failure, silence or our trouble."""
    reached = draw(st.integers(0, 4))
    steps: list[Step] = [(draw(SECONDS), phase) for phase in PHASES[:reached]]
    ends = draw(st.sampled_from(["fails", "silent"]))
    if ends == "fails":
        steps.append((draw(SECONDS), draw(FAILURES)))
    return tuple(steps)


ANSWERS = st.builds(
    Answer,
    st.sampled_from([None, None, Verdict.TRANSIENT, Verdict.PERMANENT, Verdict.CLOSED]),
    st.sampled_from([0.1, 3.3, 40.7, 90.1, 250.3, 400.9]),
    st.booleans(),
)
PRESETS = st.sampled_from(
    [GOOD, DROPPED, REFUSED, SILENT, CLOSED, SILENT_AT_TLS, POOLED]
)
IDLE_TIMES = st.sampled_from([inf, inf, 1.1, 5.0])
HOSTS = st.one_of(PRESETS, st.builds(Host, scripts(), ANSWERS, IDLE_TIMES))
ADDRESSES = st.builds(
    lambda host, is_ipv6, preference: Candidate(
        f"mx{host}.example",
        f"2001:db8::{host}" if is_ipv6 else f"192.0.2.{host}",
        25,
        preference,
    ),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([10, 10, 20, 30]),
)
REMEMBERED = st.sampled_from([None, None, 0.5, 4.0, 35.0])
TIMINGS = st.builds(
    # Of a named tuple itself, Hypothesis would make up the other fields.
    lambda most, per_rank: RaceOptions(open=most, open_per_rank=per_rank),
    st.integers(1, 7),
    st.integers(1, 5),
)


@st.composite
def simulations(draw: st.DrawFn) -> Callable[[], Simulation]:
    """A world in which anything may happen; call it for a fresh run of the same."""
    host = st.one_of(HOSTS, st.just(OUR_TROUBLE))
    world = draw(st.dictionaries(ADDRESSES, host, max_size=14))
    order = draw(st.permutations(list(world)))
    entrants = [Entrant(c, draw(REMEMBERED), draw(REMEMBERED)) for c in order]
    timing = draw(TIMINGS)
    deadline = draw(st.sampled_from([0.0, 3.0, 61.0, 900.0, 3500.0]))
    lag = draw(st.sampled_from([0.0, 0.0, 0.07]))
    early_wakes = draw(st.booleans())
    return lambda: Simulation(
        world,
        timing=timing,
        deadline=deadline,
        entrants=entrants,
        lag=lag,
        early_wakes=early_wakes,
    )


MANY = settings(max_examples=150, deadline=None)


@MANY
@given(simulations())
def test_every_race_ends_within_its_places_caps_and_time(
    make: Callable[[], Simulation],
) -> None:
    """What holds at every moment, the simulation asserts itself."""
    played = make().run()
    limit = played.deadline / 3
    if played.refused_by:
        limit = played.deadline  # better ones have all of it
    assert played.finding_time <= limit + 0.2 + 0.1 * len(played.log)
    if played.lag == 0.0:
        assert played.finding_time <= limit + 1e-6
    assert (played.given_up is None) == (played.outcome == "delivered")


@MANY
@given(simulations())
def test_equal_inputs_give_equal_courses(make: Callable[[], Simulation]) -> None:
    assert make().run().log == make().run().log


@MANY
@given(simulations())
def test_everybody_is_asked_in_full_before_all_are_said_to_have_failed(
    make: Callable[[], Simulation],
) -> None:
    played = make().run()
    if played.given_up is not GiveUpReason.EXHAUSTED:
        return
    highest = min((c.rank for c in played.refused_by), default=None)
    for candidate in played.world:
        if highest is not None and candidate.rank >= highest:
            continue
        assert candidate in played.started
        slow = [
            a for _, a in played.log if isinstance(a, Drop) and a.candidate == candidate
        ]
        ended_by_itself = len(slow) < len(played.times(Start, candidate))
        was_slow = any(a.finding and a.finding.full for a in slow)
        assert ended_by_itself or was_slow


@MANY
@given(simulations())
def test_nobody_is_capped_without_a_cap(make: Callable[[], Simulation]) -> None:
    played = make().run()
    if played.given_up is not GiveUpReason.CAPPED:
        return
    verdicts = [played.world[c].answer.verdict for c in played.taken]
    spoilt = [c for c in played.started if played.world[c] is OUR_TROUBLE]
    assert Verdict.TRANSIENT in verdicts or spoilt or len(played.started) == MAX_DIALLED


@MANY
@given(st.lists(st.sampled_from([DROPPED, REFUSED, CLOSED]), min_size=1, max_size=40))
def test_up_to_thirty_two_are_asked_when_all_fail(hosts: list[Host]) -> None:
    world = dict(zip(ranked_hosts(len(hosts)), hosts, strict=True))
    played = Simulation(world, deadline=3600.0).run()
    assert set(played.started) == set(list(world)[:MAX_DIALLED])


WAITS = st.builds(Wait, st.sampled_from(Awaited), SECONDS | st.just(300.0))


@st.composite
def ranked_worlds(
    draw: st.DrawFn, hosts: st.SearchStrategy[Host] = HOSTS, size: int = 6
) -> dict[Candidate, Host]:
    chosen = draw(st.lists(hosts, min_size=1, max_size=size))
    return dict(zip(ranked_hosts(len(chosen)), chosen, strict=True))


@settings(max_examples=400, deadline=None)
@given(ranked_worlds(), st.data(), TIMINGS)
def test_racing_harms_nobody_whom_patience_would_have_served(
    world: dict[Candidate, Host], data: st.DataObject, timing: RaceOptions
) -> None:
    """The law, with all the time in the world and whatever order memory gives."""
    entrants = [Entrant(c) for c in data.draw(st.permutations(list(world)))]
    patient = ask_patiently(world)
    played = Simulation(world, entrants=entrants, timing=timing, deadline=1e6).run()
    allowed = {"delivered", patient.outcome}
    assert played.outcome in allowed


@MANY
@given(
    ranked_worlds(),
    st.data(),
    TIMINGS,
    st.sampled_from([3.0, 61.0, 120.0, 310.0, 900.0, 2900.0]),
)
def test_no_deadline_and_no_memory_makes_a_bounce_that_patience_would_not(
    world: dict[Candidate, Host],
    data: st.DataObject,
    timing: RaceOptions,
    deadline: float,
) -> None:
    """The referee sees to it that each better one has spoken or was waited for."""
    entrants = [
        Entrant(
            candidate,
            waits={data.draw(st.sampled_from(Awaited)): data.draw(SECONDS)},
            remembered=data.draw(st.none() | WAITS),
        )
        for candidate in data.draw(st.permutations(list(world)))
    ]
    Simulation(world, entrants=entrants, timing=timing, deadline=deadline).run()


@MANY
@given(
    ranked_worlds(scripts().map(Host) | PRESETS),
    st.sampled_from([61.0, 900.0, 1e6]),
)
def test_racing_finds_a_ready_host_no_later_than_patience(
    world: dict[Candidate, Host], deadline: float
) -> None:
    """As long as there is a place for everybody; the grace aside."""
    patient = ask_patiently(world)
    played = Simulation(world, deadline=deadline).run()
    if patient.ready_at is None or patient.ready_at >= deadline / 3:
        return
    assert played.outcome == "delivered"
    (took,) = [at for at, a in played.log if isinstance(a, Take)]
    assert took <= patient.ready_at + played.timing.grace + 1e-6


# -- in doubt since an earlier attempt -------------------------------------------------

IN_DOUBT = Finding(Verdict.CLOSED, Phase.DOT, 0.1)


def doubtful_race(*entrants: tuple[Candidate, int]) -> Race:
    found = [Entrant(c, doubts=n, silences_of_all=n) for c, n in entrants]
    return Race(found, RaceOptions(), DEADLINE)


def taken_one(race: Race, candidate: Candidate, now: float) -> None:
    """Have *candidate*, which was dialled, win."""
    assert Take(candidate) in race.reached(candidate, Phase.READY, now)


def test_least_doubtful_host_is_dialled_first_and_by_preference_among_equals() -> None:
    doubts = dict(zip(ranked_hosts(5), (2, 1, 0, 1, 0), strict=True))
    best, second, third, fourth, last = doubts
    played = Simulation(
        dict.fromkeys(doubts, REFUSED),
        entrants=[Entrant(c, doubts=n) for c, n in doubts.items()],
    ).run()
    started = [one.candidate for _, one in played.log if isinstance(one, Start)]
    assert started == [third, last, second, fourth, best]


def test_less_doubtful_host_wins_when_both_are_ready() -> None:
    race = doubtful_race((BEST, 1), (MIDDLE, 0))
    assert race.begin(0.0)[0] == Start(MIDDLE)
    race.reached(MIDDLE, Phase.GREETING, 0.1)
    half = race.wake(9.0)[-1]
    assert isinstance(half, Wake)
    assert Start(BEST) in race.wake(half.at)
    # It is given the time that a better rank gets.
    (wake,) = race.reached(BEST, Phase.READY, half.at + 0.1)
    assert isinstance(wake, Wake)
    assert Take(MIDDLE) in race.reached(MIDDLE, Phase.READY, half.at + 0.2)


@pytest.mark.parametrize(
    ("phase", "until"), [(Phase.CONNECT, 30.0), (Phase.GREETING, DEADLINE / 6)]
)
def test_host_in_doubt_is_not_asked_while_a_patient_sender_waits_for_another(
    phase: Phase, until: float
) -> None:
    race = doubtful_race((BEST, 1), (MIDDLE, 0))
    race.begin(0.0)
    actions = race.reached(MIDDLE, phase, 0.0)
    while actions[-1].at < until:  # type: ignore[union-attr]
        actions = race.wake(actions[-1].at)  # type: ignore[union-attr]
        assert Start(BEST) not in actions
    assert Start(BEST) in race.wake(until)


def test_host_in_doubt_waits_for_one_that_is_slow_under_tls_as_it_was_at_ehlo() -> None:
    race = doubtful_race((BEST, 1), (MIDDLE, 0))
    race.begin(0.0)
    race.reached(MIDDLE, Phase.EHLO, 0.1)
    actions = race.reached(MIDDLE, Phase.TLS, DEADLINE / 6 - 1.0)
    ready_at = DEADLINE / 3 - 1.0
    while isinstance(wake := actions[-1], Wake) and wake.at < ready_at:
        actions = race.wake(wake.at)
        assert Start(BEST) not in actions
    taken_one(race, MIDDLE, ready_at)


def test_others_that_may_have_the_message_are_no_reason_to_hurry() -> None:
    race = doubtful_race((BEST, 1), (MIDDLE, 0), (WORST, 0))
    race.begin(0.0)
    taken_one(race, MIDDLE, 0.1)
    assert race.others_left() == 1


def test_5yz_before_its_turn_is_not_final_while_a_doubtful_better_host_is_left() -> (
    None
):
    race = doubtful_race((BEST, 1), (MIDDLE, 0), (WORST, 0))
    race.begin(0.0)
    taken_one(race, MIDDLE, 0.1)
    assert race.has_better_pending(MIDDLE)
    actions = race.resume(SAYS_5YZ, 0.2)
    assert [one for one in actions if isinstance(one, Start)] == [Start(BEST)]
    taken_one(race, BEST, 0.3)
    actions = race.resume(IN_DOUBT, 0.4, in_doubt=True)
    assert actions == [GiveUp(GiveUpReason.EXHAUSTED)]
    assert not race.has_better_pending(MIDDLE)


def test_refusal_is_heeded_and_no_copy_risked_once_the_better_host_was_in_doubt_twice() -> (
    None
):
    race = doubtful_race((BEST, 2), (MIDDLE, 0))
    race.begin(0.0)
    taken_one(race, MIDDLE, 0.1)
    assert not race.has_better_pending(MIDDLE)
    assert race.resume(SAYS_5YZ, 0.2) == [GiveUp(GiveUpReason.EXHAUSTED)]


def test_equals_that_put_off_do_not_keep_one_in_doubt_from_being_asked() -> None:
    first, second, third, last = (
        BEST._replace(host=f"mx{n}", address=f"192.0.2.{n}") for n in range(4)
    )
    entrants = [
        Entrant(first),
        Entrant(second, doubts=1),
        Entrant(third),
        Entrant(last),
    ]
    race = Race(entrants, RaceOptions(), DEADLINE)
    assert race.begin(0.0)[0] == Start(first)
    taken_one(race, first, 0.1)
    assert Start(third) in race.resume(SAYS_4YZ, 0.2)
    taken_one(race, third, 0.3)
    # It would have been the second one: the third does not count, and the last is not asked.
    actions = race.resume(SAYS_4YZ, 0.4)
    assert Start(second) in actions
    assert Start(last) not in actions
    taken_one(race, second, 0.5)
    assert race.resume(SAYS_4YZ, 0.6) == [GiveUp(GiveUpReason.CAPPED)]


def test_better_host_that_one_recipient_has_not_met_is_asked_for_its_sake() -> None:
    entrants = [Entrant(BEST, doubts=2, silences_of_all=0), Entrant(MIDDLE)]
    race = Race(entrants, RaceOptions(), DEADLINE)
    race.begin(0.0)
    taken_one(race, MIDDLE, 0.1)
    assert race.has_better_pending(MIDDLE)
    assert Start(BEST) in race.resume(SAYS_5YZ, 0.2)


def test_second_doubt_goes_on_to_other_hosts_and_to_no_address_of_the_same() -> None:
    v6, v4 = dual_stack(BEST)
    race = doubtful_race((v6, 1), (v4, 1), (MIDDLE, 1))
    race.begin(0.0)
    assert Start(v4) in race.wake(0.5)
    taken_one(race, v6, 0.6)
    actions = race.resume(IN_DOUBT, 0.7, in_doubt=True)
    assert Drop(v4) in actions
    assert Start(MIDDLE) in actions
    assert Start(v4) not in actions
    assert race.failed(MIDDLE, REFUSAL, 0.8) == [GiveUp(GiveUpReason.EXHAUSTED)]


def test_address_that_was_in_doubt_comes_after_the_others_of_its_host() -> None:
    v6, v4 = dual_stack(BEST)
    entrants = [Entrant(v6, doubts=1, doubts_here=1), Entrant(v4, doubts=1)]
    race = Race(entrants, RaceOptions(), DEADLINE)
    assert race.begin(0.0)[0] == Start(v4)
    half = race.wake(10.0)[-1]
    assert isinstance(half, Wake)
    assert half.at == 30.0, "as long as a patient sender waits for the other"
    assert Start(v6) in race.wake(half.at)


def test_host_in_doubt_is_not_asked_again_however_long_it_was_kept_waiting() -> None:
    race = doubtful_race((BEST, 0), (MIDDLE, 1))
    race.begin(0.0)
    race.reached(BEST, Phase.GREETING, 0.1)
    half = race.wake(9.0)[-1]
    assert isinstance(half, Wake)
    race.wake(half.at)
    race.reached(MIDDLE, Phase.READY, half.at + 0.1)
    race.reached(BEST, Phase.READY, half.at + 0.2)  # taken
    race.resume(LOST, half.at + 30.0)  # MIDDLE was kept waiting, and is taken
    actions = race.resume(IN_DOUBT, half.at + 30.1, in_doubt=True)
    assert actions == [GiveUp(GiveUpReason.EXHAUSTED)]


def test_one_that_connects_later_than_a_patient_sender_waits_has_failed() -> None:
    # Its 5yz would bounce what the other takes when it is asked again.
    race = new_race(BEST, WORST)
    race.begin(0.0)
    race.wake(1.5)
    assert Take(WORST) in race.reached(WORST, Phase.READY, 9.0)
    for now, phase in (70.0, Phase.GREETING), (71.0, Phase.READY):
        assert not race.reached(BEST, phase, now)
    silent = LOST._replace(wait=Wait(Awaited.RCPT, 60.0))
    actions = race.resume(silent, 99.0)
    assert Take(BEST) not in actions
    assert Drop(BEST) in actions
    assert Start(WORST) in actions
    assert not race.has_better_pending(WORST)


def test_one_that_connects_too_late_while_another_is_taken_counts_as_waited_for() -> (
    None
):
    hosts = ranked_hosts(5)
    slow = Host(((0.0, Phase.READY),), Answer(Verdict.TRANSIENT, 90.1))
    refuses = Host(((0.0, Phase.READY),), Answer(Verdict.PERMANENT, 0.1))
    late = Host(((70.7, Phase.GREETING),))
    world = dict(zip(hosts, [DROPPED, late, slow, DROPPED, refuses], strict=True))
    order = [hosts[number] for number in (0, 1, 3, 2, 4)]
    timing = RaceOptions(open=2, open_per_rank=1)
    entrants = [Entrant(one) for one in order]
    played = Simulation(world, entrants=entrants, timing=timing, deadline=1e6).run()
    assert played.outcome in {"delivered", ask_patiently(world).outcome}
