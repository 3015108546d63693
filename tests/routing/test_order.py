"""The order of trying, and what the cap takes away."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.routing.candidate import Candidate
from mxpolicy.routing.order import (
    MAX_ADDRESSES,
    ORDER_HOLDS,
    Located,
    arrange,
    shuffle_seed,
)

NOW = 1_800_000_000.0
SEED = shuffle_seed("a@example.net", "b@example.com", "example.com", NOW)


def host(name: str, preference: int, *addresses: str, position: int = 0) -> Located:
    return Located(position, preference, name, 25, addresses)


def seeds(count: int) -> list[bytes]:
    return [
        shuffle_seed("", f"user{n}@example.com", "example.com", NOW)
        for n in range(count)
    ]


def text(candidates: tuple[Candidate, ...]) -> list[str]:
    return [f"{one.host} {one.address}" for one in candidates]


def test_better_preference_goes_first_whatever_the_seed() -> None:
    hosts = [host("b", 20, "192.0.2.2"), host("a", 10, "192.0.2.1")]
    for seed in seeds(20):
        assert text(arrange(hosts, seed)) == ["a 192.0.2.1", "b 192.0.2.2"]


def test_equal_hosts_each_go_first_about_equally_often() -> None:
    # One of them has IPv6 too, which must not draw all the load.
    hosts = [
        host("a", 10, "192.0.2.1"),
        host("b", 10, "192.0.2.2", "2001:db8::2"),
        host("c", 10, "192.0.2.3"),
    ]
    first = Counter(arrange(hosts, seed)[0].host for seed in seeds(600))
    assert set(first) == {"a", "b", "c"}
    assert min(first.values()) > 150


def test_same_message_meets_the_same_order_and_others_another() -> None:
    hosts = [host(name, 10, f"192.0.2.{n}") for n, name in enumerate("abcdef")]
    orders = {tuple(arrange(hosts, seed)) for seed in seeds(30)}
    assert len(orders) > 20
    assert arrange(hosts, SEED) == arrange(list(reversed(hosts)), SEED)


def test_seed_tells_sender_recipient_and_domain_apart() -> None:
    parts = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("", "a", "bc")]
    assert len({shuffle_seed(*one, NOW) for one in parts}) == len(parts)


def test_message_keeps_its_order_for_hours_with_one_change_at_most() -> None:
    changed: Counter[int] = Counter()
    for n in range(200):
        times = [NOW + ORDER_HOLDS * part / 20 for part in range(20)]
        seeds = [shuffle_seed("", f"user{n}", "example.com", at) for at in times]
        changes = [one != other for one, other in pairwise(seeds)]
        assert sum(changes) <= 1
        changed.update([changes.index(True)] if any(changes) else [])
    assert len(changed) > 15, "not all messages have another order at the same time"


def test_every_equal_host_is_among_the_first_two_before_a_message_is_old() -> None:
    hosts = [host(name, 10, f"192.0.2.{n}") for n, name in enumerate("abcdefgh")]
    for n in range(20):
        met: set[str] = set()
        for day in range(5):
            for hour in range(24):
                at = NOW + 86400.0 * day + 3600.0 * hour
                seed = shuffle_seed("", f"user{n}@example.com", "example.com", at)
                met.update(one.host for one in arrange(hosts, seed)[:2])
        assert met == set("abcdefgh")


def test_new_host_does_not_reshuffle_the_others() -> None:
    hosts = [host(name, 10, f"192.0.2.{n}") for n, name in enumerate("abcdef")]
    before = [one.host for one in arrange(hosts, SEED)]
    after = [one.host for one in arrange([*hosts, host("x", 10, "192.0.2.99")], SEED)]
    after.remove("x")
    assert after == before


def test_families_take_turns_ipv6_first() -> None:
    one = host("a", 10, "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
    families = [candidate.is_ipv6 for candidate in arrange([one], SEED)]
    assert families == [True, False, True, False]


def test_every_equal_host_is_tried_once_before_any_twice() -> None:
    hosts = [
        host(name, 10, f"192.0.2.{n}", f"2001:db8::{n + 1}")
        for n, name in enumerate("abcd")
    ]
    order = arrange(hosts, SEED)
    assert {one.host for one in order[:4]} == set("abcd")
    assert [one.is_ipv6 for one in order] == [True, False] * 4


def test_lone_family_does_not_wait_for_the_other() -> None:
    order = arrange([host("a", 10, "192.0.2.1", "192.0.2.2", "2001:db8::1")], SEED)
    assert [one.is_ipv6 for one in order] == [True, False, False]


def test_shared_address_stays_with_the_better_host() -> None:
    order = arrange(
        [host("b", 20, "192.0.2.1", "192.0.2.2"), host("a", 10, "192.0.2.1")], SEED
    )
    assert text(order) == ["a 192.0.2.1", "b 192.0.2.2"]


def test_address_given_twice_is_tried_once() -> None:
    assert len(arrange([host("a", 10, "192.0.2.1", "192.0.2.1")], SEED)) == 1


def test_later_nexthop_comes_after_the_worst_of_the_first() -> None:
    order = arrange(
        [host("relay", 0, "192.0.2.9", position=1), host("a", 65535, "192.0.2.1")], SEED
    )
    assert text(order) == ["a 192.0.2.1", "relay 192.0.2.9"]
    assert [one.nexthop_position for one in order] == [0, 1]
    assert order[0].rank < order[1].rank


def test_same_address_on_another_port_is_another_candidate() -> None:
    hosts = [
        Located(0, 0, "a", 25, ("192.0.2.1",)),
        Located(1, 0, "a", 587, ("192.0.2.1",)),
    ]
    assert [one.port for one in arrange(hosts, SEED)] == [25, 587]


def test_cap_keeps_the_first_of_every_host_before_the_second_of_any() -> None:
    greedy = host("greedy", 1, *(f"192.0.2.{n}" for n in range(1, 255)))
    modest = [
        host(f"m{n}", 10, f"198.51.100.{n}", f"2001:db8::{n + 1}") for n in range(40)
    ]
    order = arrange([greedy, *modest], SEED)
    kept = Counter(one.host for one in order)
    assert len(order) == MAX_ADDRESSES
    assert all(kept[f"m{n}"] == 2 for n in range(40))
    assert kept["greedy"] == 20


def test_host_without_addresses_takes_no_place_from_others() -> None:
    hosts = [host(f"empty{n}", 1) for n in range(5)]
    hosts += [host(f"m{n}", 2, f"192.0.2.{n}") for n in range(3)]
    assert len(arrange(hosts, SEED, limit=3)) == 3


ADDRESSES = st.one_of(
    st.integers(0, 30).map(lambda n: f"192.0.2.{n}"),
    st.integers(0, 30).map(lambda n: f"2001:db8::{n:x}1"),
)
HOSTS = st.lists(
    st.builds(
        Located,
        st.integers(0, 1),
        st.integers(0, 3),
        st.sampled_from([f"mx{n}" for n in range(12)]),
        st.sampled_from([25, 26]),
        st.lists(ADDRESSES, max_size=8).map(tuple),
    ),
    max_size=12,
    unique_by=lambda one: one.name,
)


@given(HOSTS, st.binary(min_size=1, max_size=16), st.integers(0, 20), st.randoms())
@settings(max_examples=200)
def test_arranging_keeps_its_promises(
    hosts: list[Located], seed: bytes, limit: int, random: object
) -> None:
    order = arrange(hosts, seed, limit)
    shuffled = list(hosts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert arrange(shuffled, seed, limit) == order, "equal input, equal order"
    ranks = [one.rank for one in order]
    assert ranks == sorted(ranks), "never a worse one before a better"
    sockets = [(one.address, one.port) for one in order]
    assert len(set(sockets)) == len(sockets), "nobody twice"
    everything = {(address, one.port) for one in hosts for address in one.addresses}
    assert set(sockets) <= everything
    assert len(order) == min(limit, len(everything)), "nobody lost"
    full = Counter(one.host for one in arrange(hosts, seed, 1000))
    kept = Counter(one.host for one in order)
    for name in full:
        for other in full:
            if kept[name] < full[name]:
                assert kept[other] <= kept[name] + 1, "the cap is fair"
