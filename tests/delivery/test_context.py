from __future__ import annotations

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.errors import ConfigError
from mxpolicy.net.own_name import own_name
from mxpolicy.options import Options
from mxpolicy.state.memory import MemoryStore


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
