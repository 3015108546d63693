"""The planner against a table of records; waiting takes no time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery.plan import MAX_QUESTIONS, OTHER_FAMILY, Plan, Planner
from mxpolicy.options import NxdomainPolicy, Options, ResolverOptions
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.routing.nexthop import parse_nexthop
from mxpolicy.routing.own import OwnIdentity
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.fast_loop import run_fast

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection

LOOKUP_TIME = ResolverOptions().timeout


def timed_plan(
    resolver: FakeResolver,
    nexthop: str = "example.com",
    *,
    destination: str = "example.com",
    options: Options | None = None,
    own: OwnIdentity | None = None,
    forward_path: str = "user@example.com",
) -> tuple[Plan, float]:
    """Return the plan and the seconds it took on the loop's clock."""
    options = options or Options()
    planner = Planner(resolver, options, own or OwnIdentity())
    return run_fast(
        planner.plan(
            parse_nexthop(nexthop, options.port),
            destination_domain=destination,
            reverse_path="sender@example.net",
            forward_path=forward_path,
        )
    )


def plan(resolver: FakeResolver, nexthop: str = "example.com", **more: object) -> Plan:
    return timed_plan(resolver, nexthop, **more)[0]  # type: ignore[arg-type]


def addresses(one: Plan) -> list[str]:
    return [candidate.address for candidate in one.candidates]


def refused(one: Plan) -> str:
    """``bounce 5.4.4`` or ``defer 4.4.3``; there must be no candidate."""
    assert one.candidates == ()
    match one.refusal:
        case Bounced(status):
            assert status.class_ == 5
            return f"bounce {status}"
        case Deferred(status):
            assert status.class_ == 4
            return f"defer {status}"
    raise AssertionError(f"not refused: {one}")


def me(
    *names: str, local: Collection[str] = (), addresses: Collection[str] = ()
) -> OwnIdentity:
    return OwnIdentity(names, addresses, frozenset(local).__contains__)


def test_hosts_come_by_preference() -> None:
    resolver = FakeResolver(
        mx={"example.com": [(20, "b.example.com"), (10, "a.example.com")]},
        a={"a.example.com": ["192.0.2.1"], "b.example.com": ["192.0.2.2"]},
    )
    one = plan(resolver)
    assert [str(candidate) for candidate in one.candidates] == [
        "a.example.com[192.0.2.1]:25",
        "b.example.com[192.0.2.2]:25",
    ]
    assert [candidate.preference for candidate in one.candidates] == [10, 20]
    assert one.refusal is None
    assert one.nexthop == "example.com"
