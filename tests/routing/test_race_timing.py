from __future__ import annotations

import pytest

from mxpolicy.options import RaceOptions
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.race_timing import (
    Entrant,
    connect_step,
    full_time,
    patience,
    patient_time,
    slow_verdict,
)

V4 = Candidate("mx1.example", "192.0.2.1", 25, 10)
V6 = Candidate("mx1.example", "2001:db8::1", 25, 10)
SECOND_V4 = Candidate("mx1.example", "192.0.2.9", 25, 10)
EQUAL = Candidate("mx2.example", "192.0.2.2", 25, 10)
EQUAL_V6 = Candidate("mx2.example", "2001:db8::2", 25, 10)
WORSE = Candidate("mx3.example", "192.0.2.3", 25, 20)
SAME_HOST_WORSE = V6._replace(preference=20)
NEXT_EGRESS = V6._replace(egress="relay", egress_position=1)
NEXT_NEXTHOP = V6._replace(nexthop_position=1)


@pytest.mark.parametrize(
    ("earlier", "following", "seconds"),
    [
        pytest.param(V4, V6, 0.25, id="other_family_of_the_host"),
        pytest.param(V6, V4, 0.25, id="other_family_the_other_way"),
        pytest.param(V4, SECOND_V4, 1.0, id="second_address_of_one_family"),
        pytest.param(V4, EQUAL, 1.0, id="equal_host"),
        pytest.param(V4, EQUAL_V6, 1.0, id="other_family_of_another_host"),
        pytest.param(V4, WORSE, 1.5, id="worse_preference"),
        pytest.param(V4, SAME_HOST_WORSE, 1.5, id="same_host_listed_again_worse"),
        pytest.param(V4, NEXT_EGRESS, 1.5, id="same_host_by_the_next_egress"),
        pytest.param(V4, NEXT_NEXTHOP, 1.5, id="same_host_in_the_next_nexthop"),
        pytest.param(WORSE, V4, 1.0, id="better_one_that_memory_put_last"),
    ],
)
def test_patience_before_the_syn_ack_depends_on_who_is_next(
    earlier: Candidate, following: Candidate, seconds: float
) -> None:
    assert (
        patience(Entrant(earlier), Phase.CONNECT, following, RaceOptions()) == seconds
    )


@pytest.mark.parametrize(
    ("earlier", "following", "seconds", "words"),
    [
        (V4, V6, 0.25, "the same host's other address family"),
        (V4, SECOND_V4, 1.0, "another address of the same host"),
        (V4, EQUAL_V6, 1.0, "another host of this preference"),
        (V4, WORSE, 1.5, "a worse preference"),
        (V4, NEXT_NEXTHOP, 1.5, "the next nexthop of the list"),
        (WORSE, V4, 1.0, "a better preference, asked later"),
        (NEXT_NEXTHOP, V4, 1.0, "a better preference, asked later"),
    ],
)
def test_step_between_two_starts_has_its_reason(
    earlier: Candidate, following: Candidate, seconds: float, words: str
) -> None:
    assert connect_step(earlier, following, RaceOptions()) == (seconds, words)


@pytest.mark.parametrize(
    ("phase", "connect_time", "greeting_latency", "seconds"),
    [
        pytest.param(Phase.CONNECT, 0.1, None, 1.0, id="connects_fast"),
        pytest.param(Phase.CONNECT, 0.8, None, 1.6, id="connects_slowly"),
        pytest.param(Phase.CONNECT, None, 40.0, 1.0, id="latency_is_not_for_connect"),
        pytest.param(Phase.GREETING, None, None, 8.0, id="unknown"),
        pytest.param(Phase.GREETING, None, 3.0, 8.0, id="greets_fast"),
        pytest.param(Phase.GREETING, None, 30.0, 60.0, id="greets_after_30"),
        pytest.param(Phase.GREETING, None, 100.0, 80.0, id="no_longer_than_80"),
        pytest.param(Phase.GREETING, 30.0, None, 8.0, id="connect_time_is_not_for_220"),
        pytest.param(Phase.EHLO, 30.0, 30.0, 8.0, id="ehlo_has_no_memory"),
        pytest.param(Phase.TLS, 30.0, 30.0, 8.0, id="tls_has_no_memory"),
    ],
)
def test_patience_is_twice_what_is_remembered_where_longer(
    phase: Phase,
    connect_time: float | None,
    greeting_latency: float | None,
    seconds: float,
) -> None:
    entrant = Entrant(V4, connect_time, greeting_latency)
    assert patience(entrant, phase, EQUAL, RaceOptions()) == seconds


def test_patience_as_configured_is_not_shortened_to_80_seconds() -> None:
    timing = RaceOptions(phase_patience=120.0)
    assert patience(Entrant(V4, None, 90.0), Phase.GREETING, EQUAL, timing) == 120.0


@pytest.mark.parametrize(
    ("phase", "full", "utmost", "verdict"),
    [
        (Phase.CONNECT, 6.0, 30.0, Verdict.FILTERED),
        (Phase.GREETING, 30.0, 300.0, Verdict.SILENT),
        (Phase.EHLO, 30.0, 300.0, Verdict.SILENT),
        (Phase.TLS, 30.0, 300.0, Verdict.TLS_SILENT),
    ],
)
def test_times_and_verdict_of_a_slow_one_depend_on_the_phase(
    phase: Phase, full: float, utmost: float, verdict: Verdict
) -> None:
    assert (full_time(phase), patient_time(phase)) == (full, utmost)
    assert slow_verdict(phase) is verdict
