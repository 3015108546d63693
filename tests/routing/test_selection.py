"""Leaving out ourselves and what must not be dialled; stories are in test_plan."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.routing.dialable import Dialable
from mxpolicy.routing.mx import Exchangers, Host, Lookup, LookupStatus, Resolved
from mxpolicy.routing.own import OwnIdentity
from mxpolicy.routing.selection import better_than_own_name, select

HOSTS = (Host("a", 10), Host("b", 20), Host("c", 20), Host("d", 30))


def test_own_name_takes_its_equals_and_worse_with_it() -> None:
    better, mine = better_than_own_name(HOSTS, OwnIdentity(["c", "d"]))
    assert (better, mine) == (HOSTS[:1], 20)


def test_list_without_own_name_is_whole() -> None:
    assert better_than_own_name(HOSTS, OwnIdentity(["x"])) == (HOSTS, None)


def test_better_one_of_name_and_address_counts() -> None:
    resolved = [
        Resolved(Host("a", 10), ("192.0.2.1",)),
        Resolved(Host("b", 20), ("192.0.2.2",)),
    ]
    selection = select(
        "example.com",
        Exchangers(HOSTS),
        resolved,
        OwnIdentity(addresses=["192.0.2.2"]),
        Dialable(),
        named_at=30,
    )
    assert selection.own_preference == 20
    assert selection.hosts == ((Host("a", 10), ("192.0.2.1",)),)


def test_host_keeps_its_good_addresses_beside_a_bad_one() -> None:
    selection = select(
        "example.com",
        Exchangers(HOSTS),
        [Resolved(Host("a", 10), ("127.0.0.1", "192.0.2.1", "::1"))],
        OwnIdentity(is_local=lambda _: False),
        Dialable(),
    )
    assert selection.hosts == ((Host("a", 10), ("192.0.2.1",)),)
    assert len(selection.remarks) == 2


def test_remarks_are_not_as_many_as_a_stranger_likes() -> None:
    resolved = [
        Resolved(Host(f"h{n}", n), tuple(f"127.0.{n}.{k}" for k in range(200)))
        for n in range(50)
    ]
    selection = select(
        "example.com", Exchangers(HOSTS), resolved, OwnIdentity(), Dialable()
    )
    assert len(selection.remarks) <= 50


STATUSES = st.sampled_from(
    [LookupStatus.NODATA, LookupStatus.NXDOMAIN, LookupStatus.FAILED]
)
RESOLVED = st.builds(
    lambda name, preference, a, aaaa, addresses: Resolved(
        Host(name, preference),
        addresses,
        (Lookup(name, "A", a), Lookup(name, "AAAA", aaaa)),
    ),
    st.sampled_from(["a.example", "b.example", "c.example"]),
    st.integers(0, 3),
    STATUSES,
    STATUSES,
    st.lists(
        st.sampled_from(["192.0.2.1", "192.0.2.99", "127.0.0.1", "2001:db8::1"]),
        max_size=3,
    ).map(tuple),
)


@given(st.lists(RESOLVED, min_size=1, max_size=5), st.booleans())
@settings(max_examples=200)
def test_nothing_left_always_has_a_reason_and_a_failure_never_bounces(
    resolved: list[Resolved], implicit: bool
) -> None:
    own = OwnIdentity(addresses=["192.0.2.99"])
    exchangers = Exchangers(tuple(one.host for one in resolved), implicit=implicit)
    selection = select("example.com", exchangers, resolved, own, Dialable())
    assert (selection.hosts == ()) is (selection.refusal is not None)
    for host, addresses in selection.hosts:
        assert addresses
        assert not {"192.0.2.99", "127.0.0.1"} & set(addresses)
        mine = selection.own_preference
        assert mine is None or host.preference < mine
    mine = selection.own_preference
    counted = [one for one in resolved if mine is None or one.host.preference < mine]
    if selection.refusal is not None and any(one.failures for one in counted):
        assert isinstance(selection.refusal, Deferred)
    if isinstance(selection.refusal, Bounced):
        assert not any(one.failures for one in counted)
