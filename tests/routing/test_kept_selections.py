from __future__ import annotations

from typing import Any

import pytest

from mxpolicy.routing.kept_selections import KEPT, MOST_KEPT, KeptSelections, Selected
from mxpolicy.routing.mx import Host, Lookup, LookupStatus
from mxpolicy.routing.nexthop import Nexthop, NexthopKind
from mxpolicy.routing.selection import Selection

HOP = Nexthop("one.example", NexthopKind.DOMAIN, "one.example", 25)
SELECTION = Selection(((Host("mx.one.example", 10), ("192.0.2.1",)),))


def found(*ttls: float) -> Selected:
    """Return hosts that follow from lookups which hold so long."""
    lookups = [
        Lookup("mx.one.example", "A", LookupStatus.FOUND, ("192.0.2.1",), ttl=ttl)
        for ttl in ttls
    ]
    return Selected(SELECTION, tuple(lookups))


def other(number: int) -> Nexthop:
    return HOP._replace(name=f"{number}.example")


def test_hosts_of_a_moment_ago_are_the_same_and_their_dns_holds_less_long() -> None:
    kept = KeptSelections()
    assert kept.get(HOP, 100.0) is None
    kept.put(HOP, found(60.0, 300.0), 100.0)
    again = kept.get(HOP, 104.0)
    assert again == found(56.0, 296.0)
    assert kept.get(other(1), 104.0) is None


@pytest.mark.parametrize(
    ("ttls", "seconds"), [((3.0, 300.0), 3.0), ((300.0,), KEPT), ((), KEPT)]
)
def test_hosts_are_kept_for_a_short_while_and_no_longer_than_dns_allows(
    ttls: tuple[float, ...], seconds: float
) -> None:
    kept = KeptSelections()
    kept.put(HOP, found(*ttls), 100.0)
    assert kept.get(HOP, 100.0 + seconds - 0.1) is not None
    assert kept.get(HOP, 100.0 + seconds) is None


@pytest.mark.parametrize(
    "change",
    [
        {"status": LookupStatus.FAILED, "records": (), "reason": "no answer"},
        {"reason": "no answer, by records of before"},
        {"ttl": 0.0},
    ],
)
def test_what_has_failed_is_asked_again_by_the_next_message(
    change: dict[str, Any],
) -> None:
    kept, good = KeptSelections(), found(60.0, 60.0)
    bad = good.lookups[1]._replace(**change)
    kept.put(HOP, good, 99.0)
    kept.put(HOP, Selected(SELECTION, (good.lookups[0], bad)), 100.0)
    assert kept.get(HOP, 100.0) is None, "nor does it leave an older one in its place"


def test_number_of_nexthops_is_bounded_and_the_oldest_one_goes_first() -> None:
    kept = KeptSelections()
    kept.put(other(0), found(60.0), 100.0)
    for number in range(1, MOST_KEPT):
        kept.put(other(number), found(60.0), 101.0)
    kept.put(other(0), found(60.0), 102.0)
    kept.put(HOP, found(60.0), 103.0)
    assert kept.get(other(1), 103.0) is None
    assert kept.get(other(0), 103.0) is not None
    assert kept.get(HOP, 103.0) is not None
