"""Whose turn it is at a host that takes only so many connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.routing.candidate import Candidate
from mxpolicy.routing.turns import Turns, best_hosts

LIMIT, MOST = 3, 8


def host(number: int, preference: int = 10, name: str = "") -> Candidate:
    name = name or f"mx{number}.example"
    return Candidate(name, f"192.0.2.{number}", 25, preference)


ONE, TWO, THREE = host(1), host(2), host(3)


class Process:
    """One that dials as it is told; messages are named like their destination."""

    def __init__(self, per_host: int = LIMIT, in_all: int = MOST) -> None:
        self.turns: Turns[str] = Turns(per_host, in_all)
        self.idle: set[Candidate] = set()
        self.number = 0

    def come(self, destination: str, *hosts: Candidate, count: int = 1) -> str:
        """Let messages ask; return who had their turn at once."""
        for _ in range(count):
            self.number += 1
            self.turns.ask(f"{destination}{self.number}", destination, hosts or (ONE,))
        return self.granted()

    def granted(self) -> str:
        return " ".join(who for who, _ in self.turns.grant(self.idle.__contains__))

    def end(self, *hosts: Candidate) -> str:
        for one in hosts or (ONE,):
            self.turns.give(one)
        return self.granted()


def test_so_many_dial_a_host_and_the_others_wait_in_their_order() -> None:
    process = Process()
    assert process.come("a", count=5) == "a1 a2 a3"
    assert process.end() == "a4"
    assert process.end() == "a5"
    assert process.end() == ""
    assert process.turns.total == 2


def test_thousand_waiting_messages_do_not_delay_another_destination() -> None:
    process = Process()
    process.come("slow", ONE, count=1000)
    assert process.come("good", TWO).startswith("good")


def test_destinations_of_one_host_come_one_after_the_other() -> None:
    process = Process()
    process.come("a", count=1000)
    process.come("b", count=2)
    process.come("c")
    granted = [process.end()[:1] for _ in range(6)]
    assert granted == ["a", "b", "c", "a", "b", "a"]


def test_provider_of_many_domains_has_the_share_of_one_destination() -> None:
    process = Process(per_host=5, in_all=6)
    process.come("x", TWO, count=6)
    for number in range(100):
        process.come(f"d{number}-", ONE)
    process.come("y", THREE, count=100)
    # The process is full: whoever ends makes room for each of the three in turn.
    granted = [process.end(TWO)[:1] for _ in range(3)]
    assert sorted(granted) == ["d", "x", "y"]


def test_names_of_one_address_count_together() -> None:
    process = Process()
    names = [host(1, name=f"mx.customer{number}.example") for number in range(9)]
    granted = [process.come("c", name) for name in names]
    assert sum(map(bool, granted)) == LIMIT


def test_addresses_of_one_name_count_together() -> None:
    process = Process()
    addresses = [host(number, name="mx.example") for number in range(9)]
    assert process.come("c", *addresses, count=9).count("c") == LIMIT


def test_turn_is_at_the_first_host_with_room() -> None:
    turns: Turns[int] = Turns(LIMIT, 0)
    for number in range(2 * LIMIT + 1):
        turns.ask(number, "a", (ONE, TWO))
    assert [one for _, one in turns.grant()] == [ONE] * LIMIT + [TWO] * LIMIT


def test_turn_is_where_a_session_waits() -> None:
    process = Process()
    process.idle.add(TWO)
    process.turns.ask("a", "a", (ONE, TWO))
    assert list(process.turns.grant(process.idle.__contains__)) == [("a", TWO)]


def test_connection_that_waits_for_no_turn_counts() -> None:
    process = Process()
    for _ in range(LIMIT):
        process.turns.take(ONE)
    assert process.come("a") == ""
    assert process.come("b", TWO) == "b2"
    assert process.end() == "a1"


def test_process_has_a_limit_for_all_hosts() -> None:
    process = Process()
    for number in range(10, 10 + MOST):
        assert process.come("d", host(number))
    assert process.turns.is_full
    assert process.come("e", TWO) == ""
    assert process.end(host(10)) == f"e{MOST + 1}"


def test_no_limit_is_no_limit() -> None:
    process = Process(0, 0)
    assert process.come("a", count=1000).count("a") == 1000
    assert not process.turns.is_full


def test_who_waits_no_more_is_passed_over() -> None:
    process = Process()
    process.come("a", count=6)
    assert process.turns.waiting_for(ONE.key.socket) == ["a4", "a5", "a6"]
    assert process.turns.waiting_for(TWO.key.socket) == []
    process.turns.withdraw("a4")
    process.turns.withdraw("a4")
    process.turns.withdraw("a1")  # it has its turn
    assert process.end() == "a5"


def test_best_hosts_are_those_of_one_preference() -> None:
    worse, backup = host(4, 20), host(5, 20)
    assert best_hosts([ONE, TWO, worse, backup]) == (ONE, TWO)
    assert best_hosts([worse, ONE]) == (worse,), "the better one is in its pause"
    assert best_hosts([]) == ()


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "end", "take", "withdraw"]),
        st.integers(1, 4),
        st.sampled_from("abc"),
    ),
    max_size=80,
)


@given(_STEPS, st.integers(1, 3), st.integers(1, 6))
def test_room_is_never_left_while_anybody_waits_for_it(
    steps: list[tuple[str, int, str]], per_host: int, in_all: int
) -> None:
    process = Process(per_host, in_all)
    turns = process.turns
    open_: list[Candidate] = []
    waiting: dict[str, Candidate] = {}
    for number, (deed, at, destination) in enumerate(steps):
        one = host(at)
        if deed == "ask":
            waiting[str(number)] = one
            turns.ask(str(number), destination, (one,))
        elif deed == "end" and one in open_:
            open_.remove(one)
            turns.give(one)
        elif deed == "take":
            open_.append(one)
            turns.take(one)
        elif deed == "withdraw" and waiting:
            who = next(iter(waiting))
            del waiting[who]
            turns.withdraw(who)
        before = len(open_)
        for who, where in turns.grant():
            assert waiting.pop(who) == where
            open_.append(where)
            assert open_.count(where) <= per_host
            assert len(open_) <= in_all
        assert turns.total == len(open_) >= before
        if len(open_) < in_all:
            assert all(open_.count(one) >= per_host for one in waiting.values())
