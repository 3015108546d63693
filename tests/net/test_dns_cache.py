"""The cache; time is a number."""

from __future__ import annotations

from mxpolicy.net.dns_cache import FIRST_FAILURE, LONGEST_FAILURE, Cache
from mxpolicy.routing.mx import Lookup, LookupStatus


def lookup(
    name: str = "example.com",
    status: LookupStatus = LookupStatus.FOUND,
    ttl: float = 60.0,
) -> Lookup:
    return Lookup(name, "A", status, (), ttl=ttl)


FAILED = lookup(status=LookupStatus.FAILED, ttl=0)


def test_answer_is_kept_until_its_ttl_is_over() -> None:
    cache = Cache()
    cache.put(lookup(), 100.0)
    assert cache.get("example.com", "A", 130.0) == lookup(ttl=30.0)
    assert cache.get("example.com", "AAAA", 130.0) is None
    assert cache.get("example.com", "A", 160.0) is None


def test_answer_of_ttl_zero_replaces_an_older_one() -> None:
    cache = Cache()
    cache.put(lookup(), 100.0)
    cache.put(lookup(ttl=0), 110.0)
    assert cache.get("example.com", "A", 110.0) is None


def test_failures_in_a_row_are_kept_longer_and_longer() -> None:
    cache = Cache()
    now = 0.0
    kept = []
    for _ in range(5):
        cache.put(FAILED, now)
        found = cache.get("example.com", "A", now)
        assert found is not None
        kept.append(found.ttl)
        now += found.ttl
        assert cache.get("example.com", "A", now) is None
    assert kept == [FIRST_FAILURE, 10.0, 20.0, LONGEST_FAILURE, LONGEST_FAILURE]


def test_success_ends_the_row_of_failures() -> None:
    cache = Cache()
    cache.put(FAILED, 0.0)
    cache.put(FAILED, 5.0)
    cache.put(lookup(), 15.0)
    cache.put(FAILED, 75.0)
    found = cache.get("example.com", "A", 75.0)
    assert found is not None
    assert found.ttl == FIRST_FAILURE


def test_failure_is_no_answer_to_more_patience() -> None:
    cache = Cache()
    cache.put(FAILED, 0.0, patience=3.6)
    assert cache.get("example.com", "A", 1.0, patience=3.6)
    assert cache.get("example.com", "A", 1.0, patience=1.0)
    assert cache.get("example.com", "A", 1.0, patience=15.0) is None
    cache.put(lookup(), 1.0, patience=3.6)
    assert cache.get("example.com", "A", 2.0, patience=15.0)


def test_failure_takes_no_answer_away() -> None:
    cache = Cache()
    cache.put(lookup(), 0.0, patience=15.0)
    cache.put(FAILED, 1.0, patience=3.6)
    found = cache.get("example.com", "A", 1.0, patience=15.0)
    assert found == lookup(ttl=59.0)


def test_cache_is_bounded_and_the_oldest_leaves() -> None:
    cache = Cache(max_entries=3)
    for name in ("a", "b", "c"):
        cache.put(lookup(name), 0.0)
    cache.put(lookup("a"), 1.0)
    cache.put(lookup("d"), 2.0)
    kept = [name for name in "abcd" if cache.get(name, "A", 3.0)]
    assert kept == ["a", "c", "d"]


def test_cache_is_bounded_by_all_records_together() -> None:
    cache = Cache(max_records=10)
    for name, count in (("a", 4), ("b", 5), ("c", 2), ("c", 1), ("d", 5), ("e", 11)):
        records = tuple(f"192.0.2.{n}" for n in range(count))
        cache.put(lookup(name)._replace(records=records), 0.0)
        kept = [one for one in "abcde" if cache.get(one, "A", 3.0)]
        if name == "d":
            # "b" was the oldest that was too much beside it.
            assert kept == ["c", "d"]
    assert kept == []
