"""Who we are."""

from __future__ import annotations

import pytest

from mxpolicy.errors import ConfigError
from mxpolicy.routing.own import OwnIdentity


def test_names_are_compared_without_case_and_final_dot() -> None:
    own = OwnIdentity(["MX.Example.net.", ""])
    assert own.has_name("mx.example.net")
    assert not own.has_name("example.net")
    assert not own.has_name("")


def test_configured_addresses_hold_without_the_kernel() -> None:
    own = OwnIdentity((), ["192.0.2.1", "2001:db8::/64"])
    assert own.has_address("192.0.2.1", ask_kernel=False)
    assert own.has_address("2001:db8::25", ask_kernel=False)
    assert own.has_address("::ffff:192.0.2.1", ask_kernel=False)
    assert not own.has_address("192.0.2.2")


def test_kernel_is_asked_only_on_request() -> None:
    asked: list[str] = []

    def is_local(address: str) -> bool:
        asked.append(address)
        return True

    own = OwnIdentity(is_local=is_local)
    assert not own.has_address("192.0.2.1", ask_kernel=False)
    assert asked == []
    assert own.has_address("192.0.2.1")
    assert asked == ["192.0.2.1"]


def test_bad_own_address_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match="own_addresses: expected an address"):
        OwnIdentity((), ["mx.example.net"])
