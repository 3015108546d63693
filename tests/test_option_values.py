"""The words of single values, where the zoo of files would be too coarse."""

import pytest

from mxpolicy import options
from mxpolicy.option_values import (
    ITEMS,
    LISTS,
    duration_text,
    parse_duration,
    parse_size,
    shown,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("90s", 90.0),
        ("5m", 300.0),
        ("5 m", 300.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
    ],
)
def test_duration_is_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "s", "5", "5M", "5S", "+5s", "-5s", "5,5s", "1_0s", "1e3s", "\u0665s", "5s ", "5.s", "5sec"],
)  # fmt: skip
def test_duration_in_other_words_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="is not a duration; write a number and one of"
    ):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1B", 1), ("512KiB", 524288), ("10 MiB", 10485760), ("1GiB", 1 << 30)],
)
def test_size_is_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["0s", "250ms", "1.5s", "90s", "5m", "2h", "1d", "36h"]
)
def test_duration_is_written_as_it_is_read(text: str) -> None:
    assert duration_text(parse_duration(text)) == text


@pytest.mark.parametrize("text", ["0B", "1B", "1025B", "512KiB", "10MiB", "1GiB"])
def test_size_is_written_as_it_is_read(text: str) -> None:
    assert size_text(parse_size(text)) == text


@pytest.mark.parametrize(
    "text", ["", "10", "10M", "10MB", "1.5MiB", "-1B", "10mib", "9" * 5000]
)
def test_size_in_other_words_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="is not a size; write a whole number and one of"
    ):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("900", "900s"),
        ("0.2", "0.2s"),
        (".2", ".2s"),
        ("1:30", "30s"),
        ("9" * 50, "30s"),
    ],
)
def test_duration_without_a_unit_is_shown_with_one(text: str, example: str) -> None:
    with pytest.raises(ValueError, match=rf"for example {example}$"):
        parse_duration(text)


@pytest.mark.parametrize(
    "text", ["port", "25.", "\u0662\u0665", "0x19", "0b1", "1_000", "9" * 5000]
)
def test_port_is_a_plain_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        ITEMS[options.Port](text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MX.Example.COM.", "mx.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_dmarc.example", "_dmarc.example"),
        ("localhost", "localhost"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_host_name_is_lower_case_without_the_final_dot(text: str, name: str) -> None:
    assert LISTS[options.HostNames](text) == name


@pytest.mark.parametrize("text", ["", ".", "..", "a..b", "a..", "-a.b", "a-.b", "a b", "a/b", "1.2.3.4", "a.7", "\u212a.example", "a\n.example"])  # fmt: skip
def test_host_name_of_other_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host name|A-labels"):
        LISTS[options.HostNames](text)


@pytest.mark.parametrize(
    "text", ["[192.0.2.1]", "[IPv6:2001:db8::1]", "[ipv6:::1]", ""]
)
def test_helo_may_be_a_literal_or_left_to_us(text: str) -> None:
    assert ITEMS[options.HostName](text) == text


@pytest.mark.parametrize(
    "text", ["[]", "[", "[IPv6:192.0.2.1]", "[2001:db8::1]", "[192.0.2.1]x", "[IPv6:]"]
)
def test_helo_that_is_no_literal_of_rfc_5321_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an address literal"):
        ITEMS[options.HostName](text)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
    ],
)
def test_network_is_an_address_or_cidr(text: str, network: str) -> None:
    assert LISTS[options.Networks](text) == network


@pytest.mark.parametrize("text", ["192.0.2.0/", "192.0.2.0/-1", "192.0.2/24", "fe80::%1/64", "1", "3232235776"])  # fmt: skip
def test_network_of_other_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address or a network"):
        LISTS[options.Networks](text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", True), ("ON", True), ("True", True), ("no", False), ("off", False), ("auto", None)],
)  # fmt: skip
def test_switch_has_the_words_people_use(text: str, value: bool | None) -> None:
    assert ITEMS[options.YesNoAuto](text) is value


def test_what_is_shown_is_short_and_printable() -> None:
    assert shown("a\x00\n\u2028\u202eb") == "a????b"
    assert shown("x" * 100) == "x" * 57 + "..."
