"""The kernel knows its own addresses; nothing is sent to learn them."""

from __future__ import annotations

import pytest

from mxpolicy.net.own_address import is_local_address


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("255.255.255.255", False),
        ("224.0.0.1", False),
    ],
)
def test_address_is_of_this_machine(address: str, local: bool) -> None:
    assert is_local_address(address) is local
