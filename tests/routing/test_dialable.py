"""Addresses that nobody makes us dial."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.address import canonical_address
from mxpolicy.errors import ConfigError
from mxpolicy.routing.dialable import Dialable, parse_networks


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("0.0.0.0", "this network"),
        ("0.1.2.3", "this network"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.169.254", "link-local"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "this network"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("fec0::1", "link-local"),
        ("ff02::1", "multicast"),
        pytest.param("::ffff:127.0.0.1", "loopback", id="mapped"),
        pytest.param("::127.0.0.1", "loopback", id="v4_compatible"),
        pytest.param("64:ff9b::127.0.0.1", "loopback", id="nat64"),
        pytest.param("64:ff9b:1::127.0.0.1", "loopback", id="local_nat64_96"),
        pytest.param("64:ff9b:1:7f00:0:100::", "loopback", id="local_nat64_48"),
        pytest.param("2002:7f00:1::1", "loopback", id="6to4"),
        pytest.param("2002:a9fe:a9fe::", "link-local", id="6to4_metadata"),
        pytest.param("2001:0:7f00:1::80ff:fefe", "loopback", id="teredo_server"),
        pytest.param("2001:0:c000:201::80ff:fffe", "loopback", id="teredo_client"),
    ],
)
def test_address_is_never_dialled(address: str, word: str) -> None:
    assert Dialable().objection(canonical_address(address) or "") == word


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.1",
        "10.0.0.1",
        "192.168.1.1",
        "1.0.0.1",
        "126.255.255.255",
        "128.0.0.1",
        "223.255.255.255",
        "2001:db8::1",
        "2001:4860::1",
        "fd00::1",
        "::ffff:192.0.2.1",
        "64:ff9b::192.0.2.1",
        "64:ff9b:1:c000:2:100::",
        "64:ff9b:1::192.0.2.1",
        "2002:c000:201::1",
        "2001:1:7f00:1::1",
        "fe00::1",
    ],
)
def test_ordinary_and_private_addresses_are_dialled(address: str) -> None:
    assert Dialable().objection(canonical_address(address) or "") is None


@pytest.mark.parametrize(
    ("address", "objection"),
    [
        ("10.1.2.3", "never_dial"),
        ("172.31.255.255", "never_dial"),
        ("192.168.0.1", "never_dial"),
        ("100.64.0.1", "never_dial"),
        ("fd12::1", "never_dial"),
        ("::ffff:10.1.2.3", "never_dial"),
        ("2002:a01:203::1", "never_dial"),
        ("203.0.113.7", "never_dial"),
        ("203.0.113.8", None),
        ("198.51.100.77", "never_dial"),
        ("172.32.0.1", None),
    ],
)
def test_operator_adds_private_ranges_addresses_and_networks(
    address: str, objection: str | None
) -> None:
    judge = Dialable(["private", "203.0.113.7", "198.51.100.1/24"])
    assert judge.objection(canonical_address(address) or "") == objection


def test_exceptions_win_over_everything_but_only_for_the_address_itself() -> None:
    judge = Dialable(["private"], ["127.0.0.0/8", "10.0.0.25"])
    assert judge.objection("127.0.0.9") is None
    assert judge.objection("10.0.0.25") is None
    assert judge.objection("10.0.0.26") == "never_dial"
    assert judge.objection("::ffff:7f00:9") == "loopback"
    assert judge.is_exempt("127.0.0.9")
    assert not judge.is_exempt("192.0.2.1")


def test_all_mistakes_in_a_list_of_networks_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_networks(["192.0.2.1", "10.0.0.0/33", "privat"], "never_dial")
    assert [line.split(", not ")[1] for line in caught.value.mistakes] == [
        "'10.0.0.0/33'",
        "'privat'",
    ]


@given(st.ip_addresses(v=4, network="127.0.0.0/8"))
@settings(max_examples=50)
def test_no_embedding_of_loopback_gets_through(address: object) -> None:
    packed = int(address)  # type: ignore[call-overload]
    judge = Dialable()
    for value in (
        packed | 0xFFFF << 32,
        packed | 0x64FF9B << 96,
        0x2002 << 112 | packed << 80,
        0x20010000C0000201 << 64 | (packed ^ 0xFFFFFFFF),
    ):
        text = ":".join(f"{value:032x}"[i : i + 4] for i in range(0, 32, 4))
        assert judge.objection(canonical_address(text) or "") == "loopback"
