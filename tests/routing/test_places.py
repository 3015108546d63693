"""Who may go on when most places are taken."""

from __future__ import annotations

import pytest

from mxpolicy.routing.candidate import Candidate, Phase
from mxpolicy.routing.places import (
    FIRST_ANSWER,
    LONGEST_LOOK,
    LOOKUPS,
    MAX_HOSTS,
    NEXT_ANSWER,
    SHORT_LOOK,
    Lately,
    OverLimit,
    Place,
    Progress,
    Undecided,
    check_limits,
    first_hosts,
    host_aim,
    is_tight,
)

NOW = 1_000_000.0
LIMIT = 60
BAD, OTHER, GOOD = "bad.example:25", "other.example:25", "good.example:25"
HOST = "[192.0.2.1]:25"


class Machine:
    """Places that are taken, each by a delivery of its own."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    def add(
        self, count: int, *aims: str, waits: bool = False, age: float = 60.0
    ) -> Machine:
        for _ in range(count):
            holder = str(len(self.places))
            words = f"mx1.{aims[0]} (connect)" if waits else ""
            place = Place(holder, frozenset(aims), NOW - age, words)
            self.places.append(place)
        return self

    def judge(
        self, *aims: str, limit: int = LIMIT, lately: Lately | None = None
    ) -> OverLimit | Undecided | None:
        known = dict.fromkeys(aims, lately) if lately else {}
        return check_limits(self.places, aims, limit, NOW, known)


@pytest.mark.parametrize(
    ("bad", "good", "goes_on"),
    [
        pytest.param(0, 0, True, id="nobody_there"),
        pytest.param(44, 0, True, id="just_below_three_quarters"),
        pytest.param(45, 0, False, id="three_quarters_of_one_destination"),
        pytest.param(14, 31, True, id="less_than_a_quarter_waits"),
        pytest.param(15, 30, False, id="a_quarter_waits"),
        pytest.param(15, 29, True, id="a_quarter_waits_and_there_is_room"),
        pytest.param(0, 59, True, id="nobody_waits"),
    ],
)
def test_destination_that_waits_is_limited_only_under_pressure(
    bad: int, good: int, goes_on: bool
) -> None:
    machine = Machine().add(bad, BAD, waits=True).add(good, GOOD)
    assert (machine.judge(BAD) is None) is goes_on
    assert machine.judge(OTHER) is None


@pytest.mark.parametrize("age", [0.1, 5.0, LONGEST_LOOK, 600.0, -3600.0])
@pytest.mark.parametrize("there", [44, 45, 59, 200])
def test_healthy_destination_has_all_the_places_there_are(
    there: int, age: float
) -> None:
    said = Machine().add(there, GOOD, age=age).judge(GOOD)
    assert not isinstance(said, OverLimit)
    if not 0 <= age < LONGEST_LOOK:  # set back by an hour, nobody can tell
        assert said is None


def test_busy_destination_is_not_limited_for_a_few_that_wait() -> None:
    machine = Machine().add(52, GOOD).add(7, GOOD, waits=True)
    assert machine.judge(GOOD) is None


@pytest.mark.parametrize("destinations", [2, 4, 7, 10, 14])
def test_several_that_wait_never_take_all_places(destinations: int) -> None:
    names = [f"bad{number}.example:25" for number in range(destinations)]
    machine = Machine()
    for _ in range(100):  # their mail comes in turn, and all of it waits
        for name in names:
            if not machine.judge(name):
                machine.add(1, name, waits=True)
    assert len(machine.places) < LIMIT
    assert machine.judge(GOOD) is None


def test_single_one_that_waits_limits_nobody() -> None:
    machine = Machine().add(58, GOOD).add(1, BAD, waits=True)
    assert machine.judge(BAD) is None
    assert isinstance(machine.add(1, BAD, waits=True).judge(BAD), OverLimit)


def test_destination_limited_lately_has_all_its_places_counted() -> None:
    machine = Machine().add(15, BAD).add(30, GOOD)
    assert machine.judge(BAD) is None
    said = machine.judge(BAD, lately=Lately.LIMITED)
    assert said == OverLimit(BAD, 45, LIMIT, 15, None, False)
    # It does not hold itself there: only who is seen to wait renews it.
    machine = Machine().add(15, BAD, waits=True).add(30, GOOD)
    said = machine.judge(BAD, lately=Lately.LIMITED)
    assert isinstance(said, OverLimit)
    assert said.was_seen


def test_domains_that_wait_for_one_host_are_one_destination() -> None:
    machine = Machine()
    for number in range(45):
        machine.add(1, f"customer{number}.example:25", HOST, waits=True)
    assert machine.judge("customer99.example:25") is None
    said = machine.judge(HOST)
    assert isinstance(said, OverLimit)
    assert (said.aim, said.waiting) == (HOST, 45)
    assert machine.judge("[192.0.2.2]:25") is None
    assert machine.judge("[192.0.2.1]:26") is None


def test_one_that_waits_longest_is_named() -> None:
    machine = Machine().add(44, BAD, waits=True).add(1, BAD, waits=True, age=300)
    said = machine.judge(BAD)
    assert isinstance(said, OverLimit)
    assert said.longest is machine.places[-1]


def test_burst_is_undecided_until_somebody_can_be_seen_to_wait() -> None:
    machine = Machine().add(45, BAD, age=1.0)
    assert machine.judge(BAD) == Undecided(BAD, LONGEST_LOOK, None)
    assert machine.judge(GOOD) is None
    assert Machine().add(45, BAD, age=LONGEST_LOOK).judge(BAD) is None
    assert Machine().add(44, BAD, age=1.0).judge(BAD) is None
    few = Machine().add(14, BAD, age=1.0).add(31, GOOD)
    assert few.judge(BAD) is None


def test_burst_is_not_undecided_where_mail_went_through_a_moment_ago() -> None:
    machine = Machine().add(45, GOOD, age=1.0)
    assert machine.judge(GOOD, lately=Lately.WELL) is None
    machine = Machine().add(45, BAD, waits=True).add(14, GOOD, age=1.0)
    assert machine.judge(GOOD, lately=Lately.WELL) is None
    # Who is seen to wait waits, whatever was before.
    assert isinstance(machine.judge(BAD, lately=Lately.WELL), OverLimit)


@pytest.mark.parametrize("burst", [1, 5, 100])
def test_burst_beside_mail_that_waits_leaves_the_last_places_to_others(
    burst: int,
) -> None:
    machine = Machine().add(45, BAD, waits=True)
    for number in range(burst):  # no one of them can be seen to wait yet
        if not machine.judge(OTHER):
            machine.add(1, OTHER, age=number / 10)
    assert len(machine.places) == 45 + min(burst, 8)
    assert machine.judge(GOOD) is None
    if burst == 100:
        said = machine.judge(OTHER)
        assert isinstance(said, Undecided)
        assert said.patience == SHORT_LOOK
        assert said.otherwise == OverLimit(OTHER, 53, LIMIT, 8, None, False)


def test_bursts_of_three_destinations_beside_mail_that_waits_leave_a_place() -> None:
    machine = Machine().add(45, BAD, waits=True)
    for name in ("a", "b", "c"):
        for _ in range(100):
            if not machine.judge(name):
                machine.add(1, name, age=0.1)
    assert len(machine.places) < LIMIT


def test_delivery_that_goes_several_ways_holds_one_place() -> None:
    places = [Place("1", frozenset([BAD]), NOW, "DNS")] * 60
    assert check_limits(places, [BAD], LIMIT, NOW) is None


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 10, 20, 10000])
def test_any_limit_leaves_a_free_machine_alone(limit: int) -> None:
    assert Machine().judge(BAD, limit=limit) is None
    assert not is_tight(0, limit)
    crowd = Machine().add(2 * limit, BAD, waits=True).judge(BAD, limit=limit)
    assert isinstance(crowd, OverLimit) is (limit > 0)


def candidate(number: int, preference: int = 10) -> Candidate:
    return Candidate(f"mx{number}.example", f"192.0.2.{number}", 25, preference)


def test_hosts_of_a_destination_are_those_asked_first() -> None:
    best, same, worse = candidate(1), candidate(2), candidate(3, 20)
    assert first_hosts([best, same, worse]) == [HOST, "[192.0.2.2]:25"]
    # Who failed a moment ago is asked last, and counts for nothing.
    assert first_hosts([worse, best, same]) == ["[192.0.2.3]:25"]
    assert first_hosts([]) == []
    many = [candidate(number) for number in range(1, 20)]
    assert len(first_hosts(many)) == MAX_HOSTS


# -- when a delivery waits -----------------------------------------------------------


FIRST, SECOND = candidate(1), candidate(2)


def test_lookups_that_take_long_are_waiting() -> None:
    progress = Progress(100.0)
    assert progress.waits_from == 100.0 + LOOKUPS
    assert progress.waits_for == "DNS"


def test_no_answer_to_a_syn_is_waiting_whoever_else_is_dialled() -> None:
    progress = Progress(100.0)
    progress.planned(100.1)
    progress.started(FIRST, 100.2)
    progress.started(SECOND, 101.7)
    assert progress.waits_from == pytest.approx(100.1 + FIRST_ANSWER)
    assert progress.hosts == [host_aim(FIRST), host_aim(SECOND)]
    progress.went_on(SECOND, 101.8, Phase.GREETING)
    assert progress.waits_from == 101.8 + NEXT_ANSWER
    assert progress.waits_for == f"{SECOND} (greeting)"


@pytest.mark.parametrize("seconds", [0.001, 1.0, 5.0, 9.9])
def test_host_that_answers_each_command_slowly_is_not_waited_for(
    seconds: float,
) -> None:
    progress = Progress(100.0)
    progress.planned(100.0)
    progress.started(FIRST, 100.0)
    now = 100.1
    progress.went_on(FIRST, now, Phase.GREETING)
    for phase in (Phase.EHLO, Phase.READY, *[Phase.TRANSACTION] * 4):
        now += seconds
        assert now < progress.waits_from
        progress.went_on(FIRST, now, phase)


def test_next_host_after_one_that_failed_has_its_own_time() -> None:
    progress = Progress(100.0)
    progress.planned(100.0)
    progress.started(FIRST, 100.0)
    progress.went_on(FIRST, 100.1, Phase.TRANSACTION)
    progress.ended(FIRST)
    progress.started(SECOND, 105.0)
    assert progress.waits_from == 105.0 + FIRST_ANSWER
    assert progress.hosts == [host_aim(SECOND)]
    assert progress.waits_for == f"{SECOND} (connect)"


def test_turn_that_is_waited_for_is_waiting() -> None:
    progress = Progress(100.0)
    progress.planned(100.0)
    assert progress.waits_for == "its turn"
    assert progress.waits_from == 100.0 + FIRST_ANSWER
