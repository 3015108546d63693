"""What is known of destinations, and until when."""

from __future__ import annotations

from math import inf

import pytest

from mxpolicy.delivery.approach import SMALL_SEGMENT, Approach
from mxpolicy.delivery.destinations import FRESH, MOST, Destination, Destinations
from mxpolicy.delivery.plan import Plan
from mxpolicy.options import MemoryOptions, TlsLevel
from mxpolicy.routing.candidate import Candidate
from mxpolicy.routing.host_record import HostRecord
from mxpolicy.routing.known_hosts import NOTHING_KNOWN, KnownHosts
from mxpolicy.routing.tls_requirement import tls_requirement
from mxpolicy.routing.unresolved import Unresolved

FIRST = Candidate("mx1.example.com", "192.0.2.1", 25, 10)
SECOND = Candidate("mx2.example.com", "192.0.2.2", 25, 10)
WORSE = Candidate("mx3.example.com", "192.0.2.3", 25, 20)
PLAN = Plan("example.com", (FIRST, SECOND, WORSE))
NOW = 1000.0


def learnt(
    plan: Plan = PLAN,
    known: KnownHosts = NOTHING_KNOWN,
    known_until: float = inf,
    domain: str = "example.com",
    destinations: Destinations | None = None,
) -> Destinations:
    destinations = destinations or Destinations()
    destinations.learn(
        domain,
        domain,
        plan,
        known,
        known_until=known_until,
        now=NOW,
        tls=TlsLevel.MAY,
    )
    return destinations


def found(destinations: Destinations, now: float = NOW) -> Destination | None:
    return destinations.find("example.com", "example.com", now)


def test_it_is_found_for_a_while() -> None:
    destinations = learnt()
    assert found(destinations, NOW + FRESH - 1)
    assert not found(destinations, NOW + FRESH)
    assert not destinations.find("example.com", "", NOW)


def test_it_holds_no_longer_than_dns_and_the_pause_of_a_better_host() -> None:
    destinations = learnt(known_until=NOW + 2)
    assert found(destinations, NOW + 1)
    assert not found(destinations, NOW + 2)


def test_the_best_hosts_are_usable_as_they_would_be_reached() -> None:
    small = HostRecord(small_segments=1.0)
    known = KnownHosts(of_host={SECOND: small}, at=2.0)
    one = found(learnt(known=known))
    assert one is not None
    tls = tls_requirement(TlsLevel.MAY)
    assert one.usable == (
        (FIRST, Approach(tls)),
        (SECOND, Approach(tls, SMALL_SEGMENT)),
    )


def test_plan_begins_with_the_host_that_is_used() -> None:
    one = found(learnt())
    assert one is not None
    assert one.plan_from(SECOND).candidates == (SECOND, FIRST, WORSE)


@pytest.mark.parametrize("host", [FIRST, SECOND, WORSE])
def test_failure_of_any_of_its_hosts_ends_it(host: Candidate) -> None:
    destinations = learnt()
    destinations.failed("192.0.2.99:25")
    assert found(destinations)
    destinations.failed(host.key.socket)
    assert not found(destinations)


def test_new_plan_takes_the_place_of_the_old_one_also_where_it_does_not_serve() -> None:
    unresolved = (Unresolved("mx0.example.com", 5, 0, "A"),)
    destinations = learnt(PLAN._replace(unresolved=unresolved), destinations=learnt())
    assert not found(destinations)


def test_no_more_than_so_many_are_known() -> None:
    destinations = Destinations()
    for number in range(MOST + 1):
        learnt(domain=f"{number}.example", destinations=destinations)
    assert not destinations.find("0.example", "0.example", NOW)
    assert destinations.find("1.example", "1.example", NOW)


def test_another_message_has_its_own_order_behind_the_host_that_is_used() -> None:
    one = found(learnt())
    assert one is not None
    orders = {
        one.of_message(WORSE, bytes([number]), 0.0, MemoryOptions())[0].candidates
        for number in range(16)
    }
    assert orders == {(WORSE, FIRST, SECOND), (WORSE, SECOND, FIRST)}
