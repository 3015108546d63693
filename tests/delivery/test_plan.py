"""The planner against a table of records; waiting takes no time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.plan import MAX_QUESTIONS, OTHER_FAMILY, STAGE, Plan, Planner
from mxpolicy.options import NxdomainPolicy, Options, ResolverOptions
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.routing.nexthop import parse_nexthop
from mxpolicy.routing.own import OwnIdentity
from mxpolicy.routing.unresolved import Unresolved
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.fast_loop import run_fast

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
    within: float | None = None,
) -> tuple[Plan, float]:
    """Return the plan and the seconds it took on the loop's clock."""
    options = options or Options()
    planner = Planner(resolver, options, own or OwnIdentity(), lambda: 0.0)
    return run_fast(
        planner.plan(
            parse_nexthop(nexthop, options.port),
            destination_domain=destination,
            reverse_path="sender@example.net",
            forward_path=forward_path,
            within=within,
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
        case _:
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


# facts of Postfix's smtp_addr.c and smtp_connect.c, row by row; where we differ, the
# comment says why.
ROWS = [
    pytest.param(
        FakeResolver(
            a={"example.com": ["192.0.2.1"]},
            fail={"MX example.com"},
        ),
        "defer 4.4.3",
        id="mx_lookup_fails_although_the_domain_has_an_address",
    ),
    # Postfix calls NO_RECOVERY permanent (5.4.3). To the resolver library that
    # is REFUSED, FORMERR and the like: trouble of a name server, not of the
    # domain, and others have lost mail by it.
    pytest.param(
        FakeResolver(fail={"MX example.com", "A example.com", "AAAA example.com"}),
        "defer 4.4.3",
        id="mx_lookup_ends_in_an_error_without_recovery",
    ),
    pytest.param(
        FakeResolver(mx={"example.com": [(10, "not a host name")]}),
        "bounce 5.4.4",
        id="mx_target_is_no_host_name",
    ),
    pytest.param(
        FakeResolver(
            mx={"example.com": [(5, "not a host name"), (10, "mx.example.com")]},
            a={"mx.example.com": ["192.0.2.1"]},
        ),
        ["192.0.2.1"],
        id="mx_target_is_no_host_name_but_another_is",
    ),
    # Postfix says 5.1.0; RFC 7505 §5.1 has registered 5.1.10 for it.
    pytest.param(
        FakeResolver(mx={"example.com": [(0, ".")]}, a={"example.com": ["192.0.2.1"]}),
        "bounce 5.1.10",
        id="null_mx",
    ),
    # Postfix refuses the whole set. RFC 7505 §3 wants the null MX alone; beside
    # real hosts it is a mistake, and mail is there to be delivered.
    pytest.param(
        FakeResolver(
            mx={"example.com": [(0, "."), (10, "mx.example.com")]},
            a={"mx.example.com": ["192.0.2.1"]},
        ),
        ["192.0.2.1"],
        id="null_mx_beside_a_real_one",
    ),
    pytest.param(
        FakeResolver(
            a={"example.com": ["192.0.2.1"]}, aaaa={"example.com": ["2001:db8::1"]}
        ),
        ["2001:db8::1", "192.0.2.1"],
        id="no_mx_but_addresses",
    ),
    pytest.param(
        FakeResolver(empty={"example.com"}),
        "bounce 5.4.4",
        id="neither_mx_nor_address",
    ),
    # Postfix's smtp(8) says 5.4.4 for this as well; its smtpd(8) says 5.1.2 for
    # the same fact, and so do we: the sender has mistyped a domain.
    pytest.param(FakeResolver(), "bounce 5.1.2", id="no_such_domain"),
    pytest.param(
        FakeResolver(fail={"AAAA example.com"}, empty={"example.com"}),
        "defer 4.4.3",
        id="no_mx_and_half_of_the_addresses_unknown",
    ),
    pytest.param(
        FakeResolver(
            mx={"example.com": [(10, "a.example.com"), (20, "b.example.com")]}
        ),
        "bounce 5.4.4",
        id="no_mx_target_resolves",
    ),
    pytest.param(
        FakeResolver(
            mx={"example.com": [(10, "a.example.com"), (20, "b.example.com")]},
            fail={"A b.example.com"},
        ),
        "defer 4.4.3",
        id="no_mx_target_resolves_and_one_lookup_fails",
    ),
    pytest.param(
        FakeResolver(
            mx={"example.com": [(10, "a.example.com"), (20, "b.example.com")]},
            a={"b.example.com": ["192.0.2.2"]},
            fail={"A a.example.com", "AAAA a.example.com"},
        ),
        ["192.0.2.2"],
        id="some_mx_targets_fail",
    ),
    pytest.param(
        FakeResolver(mx={"example.com": [(10, "192.0.2.7")]}),
        ["192.0.2.7"],
        id="mx_target_is_an_ip_literal",
    ),
]


@pytest.mark.parametrize(("resolver", "expected"), ROWS)
def test_dns_outcome_becomes_this_plan(
    resolver: FakeResolver, expected: str | list[str]
) -> None:
    one = plan(resolver)
    assert (addresses(one) if one.candidates else refused(one)) == expected


@pytest.mark.parametrize(
    ("resolver", "expected"),
    [
        pytest.param(FakeResolver(), "defer 4.1.2", id="no_such_domain"),
        pytest.param(FakeResolver(empty={"example.com"}), "defer 4.4.4", id="no_mail"),
        # Postfix's smtp_defer_if_no_mx_address_found.
        pytest.param(
            FakeResolver(mx={"example.com": [(10, "mx.example.com")]}),
            "defer 4.4.4",
            id="no_mx_target_resolves",
        ),
        # These are no missing names: the domain's owner has said so.
        pytest.param(
            FakeResolver(mx={"example.com": [(0, ".")]}), "bounce 5.1.10", id="null_mx"
        ),
    ],
)
def test_missing_names_are_deferred_on_request(
    resolver: FakeResolver, expected: str
) -> None:
    assert refused(plan(resolver, options=Options(nxdomain=NxdomainPolicy.DEFER))) == (
        expected
    )


LIST_WITH_ME = FakeResolver(
    mx={
        "example.com": [
            (10, "first.example.com"),
            (20, "me.example.net"),
            (20, "equal.example.com"),
            (30, "worse.example.com"),
        ]
    },
    a={
        "first.example.com": ["192.0.2.10"],
        "me.example.net": ["192.0.2.20"],
        "equal.example.com": ["192.0.2.21"],
        "worse.example.com": ["192.0.2.30"],
    },
)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(me("Me.Example.net."), id="by_name"),
        pytest.param(me(local={"192.0.2.20"}), id="by_an_address_of_this_machine"),
        pytest.param(me(addresses={"192.0.2.20"}), id="by_own_addresses_behind_nat"),
        pytest.param(me(addresses={"192.0.2.20/31"}), id="by_an_own_network"),
    ],
)
def test_own_preference_and_everything_worse_is_left_out(own: OwnIdentity) -> None:
    one = plan(LIST_WITH_ME, own=own)
    assert addresses(one) == ["192.0.2.10"]
    assert one.own_preference == 20
    assert any("preference 20" in remark for remark in one.remarks)


@pytest.mark.parametrize(
    "own", [me("first.example.com"), me(local={"192.0.2.10"})], ids=["name", "address"]
)
def test_best_preference_being_me_is_a_loop(own: OwnIdentity) -> None:
    one = plan(LIST_WITH_ME, own=own)
    assert refused(one) == "bounce 5.4.6"
    assert one.own_preference == 10


def test_implicit_mx_being_me_is_a_loop() -> None:
    one = plan(FakeResolver(a={"example.com": ["192.0.2.1"]}), own=me("example.com"))
    assert refused(one) == "bounce 5.4.6"


def test_literal_being_me_is_a_loop() -> None:
    one = plan(
        FakeResolver(),
        "[192.0.2.1]",
        destination="[192.0.2.1]",
        own=me(local={"192.0.2.1"}),
    )
    assert refused(one) == "bounce 5.4.6"


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        pytest.param((), "defer 4.4.4", id="does_not_exist"),
        pytest.param({"A a.example.com"}, "defer 4.4.3", id="lookup_fails"),
    ],
)
def test_backup_defers_when_no_better_host_has_an_address(
    fail: Collection[str], expected: str
) -> None:
    resolver = FakeResolver(
        mx={"example.com": [(10, "a.example.com"), (20, "me.example.net")]},
        a={"me.example.net": ["192.0.2.20"]},
        fail=fail,
    )
    assert refused(plan(resolver, own=me("me.example.net"))) == expected


def test_names_that_cannot_be_tried_are_not_looked_up() -> None:
    resolver = FakeResolver(LIST_WITH_ME.mx, LIST_WITH_ME.addresses["A"])
    plan(resolver, own=me("me.example.net"))
    assert not [one for one in resolver.asked if "worse" in one or "equal" in one]


def test_another_port_of_this_machine_is_another_service() -> None:
    # Loop elimination on port 25 only, as in Postfix: a nexthop with a port of
    # its own is a content filter or a test, and the operator has named it.
    one = plan(
        FakeResolver(a={"filter.example.net": ["192.0.2.20"]}),
        "[filter.example.net]:10025",
        own=me("filter.example.net", local={"192.0.2.20"}),
    )
    assert addresses(one) == ["192.0.2.20"]


def test_mx_at_127_0_0_1_is_skipped_and_no_loop() -> None:
    # Postfix takes it for itself and gives up the hosts behind it. It is
    # everybody's address: an old trick against spam, or a mistake.
    resolver = FakeResolver(
        mx={"example.com": [(1, "trap.example.com"), (10, "mx.example.com")]},
        a={"trap.example.com": ["127.0.0.1"], "mx.example.com": ["192.0.2.1"]},
    )
    one = plan(resolver, own=me(local={"127.0.0.1"}))
    assert addresses(one) == ["192.0.2.1"]
    assert one.own_preference is None
    assert one.remarks == ("never dialled: trap.example.com[127.0.0.1] (loopback)",)


@pytest.mark.parametrize(
    ("nexthop", "destination"),
    [
        ("example.com", "example.com"),
        ("[127.0.0.1]", "[127.0.0.1]"),
        ("[ipv6:::1]", "[IPv6:::1]"),
        ("[::ffff:127.0.0.1]", "[IPv6:::ffff:127.0.0.1]"),
    ],
)
def test_only_undialable_addresses_bounce(nexthop: str, destination: str) -> None:
    resolver = FakeResolver(a={"example.com": ["169.254.169.254", "127.0.0.1"]})
    one = plan(resolver, nexthop, destination=destination)
    assert refused(one) == "bounce 5.4.4"
    assert one.refusal is not None
    assert "169.254" not in one.refusal.text


def test_operator_may_except_loopback_for_a_test_bed() -> None:
    resolver = FakeResolver(a={"example.com": ["127.0.0.5"]})
    options = Options(allow_dial=("127.0.0.0/8",))
    one = plan(resolver, options=options, own=me(local={"127.0.0.5"}))
    assert addresses(one) == ["127.0.0.5"]
    literal = plan(FakeResolver(), "[127.0.0.6]:2525", options=options)
    assert addresses(literal) == ["127.0.0.6"]


def test_own_addresses_hold_even_where_dialling_is_allowed() -> None:
    resolver = FakeResolver(a={"example.com": ["127.0.0.5"]})
    one = plan(
        resolver,
        options=Options(allow_dial=("127.0.0.0/8",)),
        own=me(addresses={"127.0.0.5"}),
    )
    assert refused(one) == "bounce 5.4.6"


@pytest.mark.parametrize(
    ("nexthop", "resolver", "expected"),
    [
        pytest.param("relay.example", FakeResolver(), "defer 4.3.5", id="nxdomain"),
        pytest.param("[relay.example]", FakeResolver(), "defer 4.3.5", id="host"),
        pytest.param(
            "relay.example",
            FakeResolver(mx={"relay.example": [(0, ".")]}),
            "defer 4.3.5",
            id="null_mx",
        ),
        pytest.param("[127.0.0.1]", FakeResolver(), "defer 4.3.5", id="never_dial"),
        pytest.param("example.com:26", FakeResolver(), "defer 4.3.5", id="own_port"),
        pytest.param(
            "[example.com]", FakeResolver(), "defer 4.3.5", id="brackets_are_a_choice"
        ),
        pytest.param(
            "example.com, relay.example", FakeResolver(), "defer 4.3.5", id="list"
        ),
        # What will pass by itself keeps its own status, as in Postfix.
        pytest.param(
            "relay.example",
            FakeResolver(fail={"MX relay.example"}),
            "defer 4.4.3",
            id="lookup_fails",
        ),
    ],
)
def test_nexthop_of_the_operator_never_bounces(
    nexthop: str, resolver: FakeResolver, expected: str
) -> None:
    # Postfix forces 4.3.5 for relayhost and fallback relays only; a transport
    # map entry that vanishes from DNS is the operator's just as much.
    assert refused(plan(resolver, nexthop)) == expected


def test_operators_nexthop_that_is_me_is_his_mistake() -> None:
    resolver = FakeResolver(a={"relay.example": ["192.0.2.1"]})
    one = plan(resolver, "[relay.example]", own=me("relay.example"))
    assert refused(one) == "defer 4.3.5"


def test_each_nexthop_of_a_list_fails_alone() -> None:
    resolver = FakeResolver(
        mx={"c.example": [(0, ".")]},
        a={"d.example": ["192.0.2.4"], "b.example": ["192.0.2.2"]},
        fail={"MX a.example"},
    )
    one = plan(resolver, "a.example, [b.example], c.example, [d.example]:26, x.example")
    assert [(str(c), c.nexthop_position) for c in one.candidates] == [
        ("b.example[192.0.2.2]:25", 1),
        ("d.example[192.0.2.4]:26", 3),
    ]
    assert one.refusal is None


def test_brackets_suppress_the_mx_lookup() -> None:
    resolver = FakeResolver(
        mx={"example.com": [(10, "mx.example.com")]},
        a={"example.com": ["192.0.2.1"], "mx.example.com": ["192.0.2.2"]},
    )
    assert addresses(plan(resolver, "[example.com]")) == ["192.0.2.1"]
    assert resolver.asked == ["AAAA example.com", "A example.com"]


def test_literal_nexthop_needs_no_dns() -> None:
    resolver = FakeResolver()
    one = plan(resolver, "[2001:db8::1]:2525")
    assert [str(c) for c in one.candidates] == ["2001:db8::1[2001:db8::1]:2525"]
    assert resolver.asked == []


def test_retry_of_a_message_meets_the_same_order() -> None:
    names = [f"mx{n}.example.com" for n in range(8)]
    resolver = FakeResolver(
        mx={"example.com": [(10, name) for name in names]},
        a={name: [f"192.0.2.{n}"] for n, name in enumerate(names)},
    )
    assert plan(resolver) == plan(resolver)
    others = {
        tuple(addresses(plan(resolver, forward_path=f"u{n}@example.com")))
        for n in range(10)
    }
    assert len(others) > 5


def test_plan_in_a_hurry_ends_by_itself_and_names_what_did_not_answer() -> None:
    names = ("AAAA mx.example.com", "A mx.example.com")
    resolver = FakeResolver(
        mx={"example.com": [(10, "mx.example.com")]},
        slow=dict.fromkeys(names, 60),
    )
    for within, seconds in ((8.0, STAGE * 8.0), (100.0, LOOKUP_TIME)):
        made, took = timed_plan(resolver, within=within)
        assert took == pytest.approx(seconds)
        assert refused(made) == "defer 4.4.3"


@pytest.mark.parametrize(
    ("dead", "alive"),
    [("AAAA", {"a": ["192.0.2.1"]}), ("A", {"aaaa": ["2001:db8::1"]})],
)
def test_dead_family_costs_two_seconds_when_the_other_is_there(
    dead: str, alive: dict[str, list[str]]
) -> None:
    (table,) = alive
    resolver = FakeResolver(
        mx={"example.com": [(10, "mx.example.com")]},
        **{table: {"mx.example.com": alive[table]}},
        slow={f"{dead} mx.example.com": 60},
    )
    one, took = timed_plan(resolver)
    assert addresses(one) == alive[table]
    assert took == pytest.approx(OTHER_FAMILY, abs=0.1)
    assert any("no answer in time" in remark for remark in one.remarks)


def test_slow_family_is_waited_for_while_the_other_has_nothing() -> None:
    resolver = FakeResolver(
        aaaa={"example.com": ["2001:db8::1"]}, slow={"AAAA example.com": 9}
    )
    one, took = timed_plan(resolver)
    assert addresses(one) == ["2001:db8::1"]
    assert took == pytest.approx(9, abs=0.1)


def test_dead_family_beside_an_empty_one_is_no_answer() -> None:
    resolver = FakeResolver(empty={"example.com"}, slow={"AAAA example.com": 60})
    one, took = timed_plan(resolver)
    assert refused(one) == "defer 4.4.3"
    assert took == pytest.approx(LOOKUP_TIME, abs=0.1)


def test_all_names_are_looked_up_at_once() -> None:
    names = [f"mx{n}.example.com" for n in range(10)]
    resolver = FakeResolver(
        mx={"example.com": [(10, name) for name in names]},
        a={name: [f"192.0.2.{n}"] for n, name in enumerate(names)},
        slow={f"{rdtype} {name}": 3 for name in names for rdtype in ("A", "AAAA")},
    )
    one, took = timed_plan(resolver)
    assert len(one.candidates) == 10
    assert took == pytest.approx(3, abs=0.1)


def test_hundreds_of_dead_names_take_one_lookups_time_and_few_questions() -> None:
    names = [f"mx{n}.example.com" for n in range(300)]
    resolver = FakeResolver(
        mx={"example.com": [(n, name) for n, name in enumerate(names)]},
        a={"mx0.example.com": ["192.0.2.1"]},
        slow={
            f"{rdtype} {name}": LOOKUP_TIME
            for name in names[1:]
            for rdtype in ("A", "AAAA")
        },
    )
    one, took = timed_plan(resolver)
    assert addresses(one) == ["192.0.2.1"]
    assert took == pytest.approx(LOOKUP_TIME, abs=0.1)
    assert resolver.most_at_once <= MAX_QUESTIONS
    assert "200 of 300 mail servers left out" in one.remarks


def test_at_most_a_hundred_addresses_are_kept() -> None:
    names = [f"mx{n}.example.com" for n in range(30)]
    resolver = FakeResolver(
        mx={"example.com": [(10, name) for name in names]},
        a={name: [f"192.0.{n}.{k}" for k in range(10)] for n, name in enumerate(names)},
    )
    one = plan(resolver)
    assert len(one.candidates) == 100
    assert len({candidate.host for candidate in one.candidates[:30]}) == 30


@pytest.mark.parametrize(
    ("fail", "unresolved"),
    [
        pytest.param({"A a.example.com", "AAAA a.example.com"}, ["a"], id="both"),
        pytest.param({"AAAA a.example.com"}, [], id="one_of_two"),
        pytest.param({"AAAA c.example.com"}, ["c"], id="only_aaaa_and_no_a"),
        pytest.param({"A e.example.com"}, [], id="not_asked"),
    ],
)
def test_plan_names_the_hosts_that_could_not_be_looked_up(
    fail: set[str], unresolved: list[str]
) -> None:
    resolver = FakeResolver(
        mx={"example.com": [(10, "a.example.com"), (20, "c.example.com")]},
        a={"a.example.com": ["198.51.100.1"]},
        empty={"c.example.com"},
        fail=fail,
    )
    found = plan(resolver, "example.com, [a.example.com]")
    names = {"a": ("a.example.com", 10), "c": ("c.example.com", 20)}
    of_the_first = [one for one in found.unresolved if one.nexthop_position == 0]
    assert [(one.name, one.preference) for one in of_the_first] == [
        names[name] for name in unresolved
    ]


def test_nexthop_without_mx_lookup_is_unresolved_in_its_place() -> None:
    resolver = FakeResolver(fail={"MX a.example"}, a={"b.example": ["198.51.100.1"]})
    found = plan(resolver, "[b.example], a.example")
    assert found.unresolved == (Unresolved("a.example", 0, 1, "MX"),)
