"""Every form of nexthop that transport(5) and relayhost know."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.address import UnsupportedDomain
from mxpolicy.routing.nexthop import (
    Nexthop,
    NexthopError,
    NexthopKind,
    nexthop_aim,
    parse_nexthop,
)

DOMAIN, HOST, ADDRESS = NexthopKind.DOMAIN, NexthopKind.HOST, NexthopKind.ADDRESS


@pytest.mark.parametrize(
    ("text", "kind", "name", "port"),
    [
        ("example.com", DOMAIN, "example.com", 25),
        ("Example.COM.", DOMAIN, "example.com", 25),
        ("example.com:2525", DOMAIN, "example.com", 2525),
        ("bücher.example", DOMAIN, "xn--bcher-kva.example", 25),
        ("[mx.example.com]", HOST, "mx.example.com", 25),
        ("[mx.example.com]:587", HOST, "mx.example.com", 587),
        ("[mx.example.com]:submission", HOST, "mx.example.com", 587),
        ("example.com:smtp", DOMAIN, "example.com", 25),
        ("[192.0.2.1]", ADDRESS, "192.0.2.1", 25),
        ("[192.0.2.1]:2525", ADDRESS, "192.0.2.1", 2525),
        ("192.0.2.1", ADDRESS, "192.0.2.1", 25),
        ("192.0.2.1:2525", ADDRESS, "192.0.2.1", 2525),
        ("[ipv6:2001:db8::1]", ADDRESS, "2001:db8::1", 25),
        ("[IPv6:2001:DB8:0::1]:26", ADDRESS, "2001:db8::1", 26),
        ("[2001:db8::1]", ADDRESS, "2001:db8::1", 25),
        ("[2001:db8::1]:2525", ADDRESS, "2001:db8::1", 2525),
        ("[localhost]:10025", HOST, "localhost", 10025),
        ("example.com:65535", DOMAIN, "example.com", 65535),
    ],
)
def test_nexthop_has_this_form(
    text: str, kind: NexthopKind, name: str, port: int
) -> None:
    assert parse_nexthop(text, 25) == (Nexthop(text, kind, name, port),)


def test_default_port_is_the_configured_one() -> None:
    assert parse_nexthop("example.com", 2525)[0].port == 2525


@pytest.mark.parametrize(
    "text",
    [
        "a.example, [b.example]:26",
        "a.example,[b.example]:26",
        "a.example [b.example]:26",
        "  a.example ,, \t[b.example]:26 ,",
        "a.example, A.example., [b.example]:26, a.example:25",
    ],
)
def test_list_keeps_its_order_and_each_element_once(text: str) -> None:
    got = [(one.kind, one.name, one.port) for one in parse_nexthop(text, 25)]
    assert got == [(DOMAIN, "a.example", 25), (HOST, "b.example", 26)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        ",",
        "2001:db8::1",
        "[mx.example.com",
        "mx.example.com]",
        "[]",
        "[]:25",
        "[[192.0.2.1]]",
        "[mx.example.com]25",
        "[mx.example.com]:25:26",
        "[mx.example.com:25]",
        "[x400:abc]",
        "[fe80::1%eth0]",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:-1",
        "example.com:+25",
        "example.com: 25x",
        "example.com:٢٥",
        "example.com:smtps",
        "exa_mple..com",
        "user@example.com",
        "smtp:example.com",
        "inet:192.0.2.1:25",
        "unix:/run/socket",
        "example.com\0",
        "a.example, b..example",
        "x" * 5000,
    ],
)
def test_malformed_nexthop_is_refused_as_a_whole(text: str) -> None:
    # The whole list, because a mistyped first relay must not quietly send all
    # mail to the second.
    with pytest.raises(NexthopError) as caught:
        parse_nexthop(text, 25)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_unbracketed_ipv6_address_is_told_the_right_form() -> None:
    with pytest.raises(NexthopError, match=r"write an IPv6 address as \[2001:db8::1\]"):
        parse_nexthop("2001:db8::1", 25)


def test_name_that_cannot_be_told_here_is_not_called_malformed() -> None:
    with pytest.raises(UnsupportedDomain):
        parse_nexthop("a\U00050000.example", 25)


@pytest.mark.parametrize(
    ("text", "destination", "own"),
    [
        pytest.param("example.com", "example.com", True, id="domain"),
        pytest.param("EXAMPLE.com.", "example.com", True, id="other_spelling"),
        pytest.param("bücher.example", "xn--bcher-kva.example", True, id="u_label"),
        pytest.param("example.com:25", "example.com", True, id="default_port_written"),
        pytest.param("[192.0.2.1]", "[192.0.2.1]", True, id="literal"),
        pytest.param("[2001:db8::1]", "[IPv6:2001:db8::1]", True, id="literal_v6"),
        pytest.param("example.com:26", "example.com", False, id="other_port"),
        pytest.param("[example.com]", "example.com", False, id="brackets"),
        pytest.param("relay.example", "example.com", False, id="relay"),
        pytest.param("[192.0.2.2]", "[192.0.2.1]", False, id="other_address"),
        pytest.param("[192.0.2.1]", "example.com", False, id="address_for_a_domain"),
        pytest.param("example.com", "", False, id="several_destinations"),
    ],
)
def test_nexthop_is_the_recipients_own_domain(
    text: str, destination: str, own: bool
) -> None:
    assert parse_nexthop(text, 25)[0].is_domain_of(destination, 25) is own


@pytest.mark.parametrize(
    ("texts", "aim"),
    [
        (("Example.COM", "example.com:25", "example.com:smtp"), "example.com:25"),
        (("[mx.example.com]", "[MX.example.com]:25"), "[mx.example.com]:25"),
        (("[192.0.2.1]", "192.0.2.1"), "[192.0.2.1]:25"),
        (("[2001:DB8::1]:587", "[ipv6:2001:db8:0::1]:587"), "[2001:db8::1]:587"),
        (("a.example, b.example:26",), "a.example:25,b.example:26"),
    ],
)
def test_nexthop_has_one_aim_however_it_is_written(
    texts: tuple[str, ...], aim: str
) -> None:
    assert {nexthop_aim(parse_nexthop(text, 25)) for text in texts} == {aim}


@given(st.text(st.sampled_from("ab.:[],25 -é\0"), max_size=25))
@settings(max_examples=300)
def test_any_text_is_parsed_to_usable_nexthops_or_refused(text: str) -> None:
    try:
        nexthops = parse_nexthop(text, 25)
    except NexthopError:
        return
    assert nexthops
    for one in nexthops:
        assert one.name
        assert one.name.isascii()
        assert 0 < one.port < 65536
        # What is not of the list's own making can be read again.
        assert parse_nexthop(one.text, 25) == (one,)
