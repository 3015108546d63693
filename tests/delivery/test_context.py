from __future__ import annotations

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.errors import ConfigError
from mxpolicy.net.own_name import own_name
from mxpolicy.options import LimitOptions, MemoryOptions, Options, ResolverOptions
from mxpolicy.state.memory import MemoryStore
from tests.helpers.fake_resolver import FakeResolver


@pytest.mark.parametrize("helo", ["Mail.Example.NET", ""])
def test_name_for_ehlo_is_one_of_ours_and_so_are_the_operators(helo: str) -> None:
    context = Context(Options(helo=helo, own_names=("lists.example.net",)))
    assert context.identity.has_name(helo or own_name())
    assert context.identity.has_name("LISTS.example.net.")
    assert not context.identity.has_name("mx.example.com")


def test_own_addresses_are_the_operators_and_the_kernels() -> None:
    context = Context(
        Options(own_addresses=("198.51.100.0/24",)),
        is_own_address=lambda address: address == "192.0.2.1",
    )
    mine = [context.identity.has_address(one) for one in ("198.51.100.7", "192.0.2.1")]
    assert mine == [True, True]
    assert not context.identity.has_address("192.0.2.2")


def test_address_that_is_none_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError):
        Context(Options(own_addresses=("somewhere",)))


def test_two_contexts_share_no_memory_unless_they_are_given_one() -> None:
    options, store = Options(), MemoryStore()
    assert Context(options).store is not Context(options).store
    assert Context(options, store=store).store is store


def test_renewed_context_shares_what_outlives_a_configuration() -> None:
    before = Context(Options(), keeps_sessions=True)
    after = before.renewed(
        Options(
            helo="new.example.net",
            own_addresses=("192.0.2.1",),
            limits=LimitOptions(processes=7, spool_memory=1024),
            memory=MemoryOptions(pause=5.0),
        )
    )
    for name in ("store", "sessions", "admission", "calls", "spool_memory", "utc"):
        assert getattr(after, name) is getattr(before, name)
    assert after.admission.processes == 7
    assert after.spool_memory.total == 1024
    assert after.memory.options.pause == 5.0
    assert after.identity.has_name("new.example.net")
    assert after.identity.has_address("192.0.2.1")
    # What has begun by the old one goes on by it.
    assert before.memory.options.pause == 60.0
    assert not before.identity.has_name("new.example.net")


def test_resolver_keeps_its_cache_while_the_configuration_says_the_same_of_it() -> None:
    servers = ("192.0.2.53",)
    before = Context(Options(resolver=ResolverOptions(servers=servers)))
    same = before.renewed(Options(port=26, resolver=ResolverOptions(servers=servers)))
    assert same.resolver is before.resolver
    other = same.renewed(Options(resolver=ResolverOptions(servers=servers, timeout=5)))
    assert other.resolver is not before.resolver
    assert other.resolver is other.renewed(other.options).resolver


def test_resolver_that_was_given_stays() -> None:
    given = FakeResolver()
    before = Context(Options(), resolver=given)
    after = before.renewed(Options(resolver=ResolverOptions(servers=("192.0.2.53",))))
    assert after.resolver is given


def test_configuration_that_is_wrong_changes_nothing() -> None:
    before = Context(Options())
    wrong = Options(own_addresses=("somewhere",), limits=LimitOptions(processes=7))
    with pytest.raises(ConfigError):
        before.renewed(wrong)
    assert before.admission.processes == Options().limits.processes
