from __future__ import annotations

import pytest

from mxpolicy.routing.candidate import Candidate, egress_of, shown_of

DIRECT = Candidate("mx.example.com", "192.0.2.1", 25, 10)
TUNNEL = DIRECT._replace(egress="tunnel", egress_position=1)
LITERAL = Candidate("2001:db8::1", "2001:db8::1", 26)


@pytest.mark.parametrize(
    ("candidate", "word", "shown", "socket"),
    [
        pytest.param(
            DIRECT,
            "mx.example.com[192.0.2.1]:25",
            "mx.example.com[192.0.2.1]:25",
            "direct 192.0.2.1 25",
            id="direct",
        ),
        pytest.param(
            TUNNEL,
            "mx.example.com[192.0.2.1]:25/tunnel",
            "mx.example.com[192.0.2.1]:25",
            "tunnel 192.0.2.1 25",
            id="tunnel",
        ),
        pytest.param(
            LITERAL,
            "2001:db8::1[2001:db8::1]:26",
            "2001:db8::1[2001:db8::1]:26",
            "direct 2001:db8::1 26",
            id="ipv6",
        ),
    ],
)
def test_words_of_a_key(
    candidate: Candidate, word: str, shown: str, socket: str
) -> None:
    assert str(candidate.key) == word
    assert str(candidate) == shown
    assert candidate.key.socket == socket
    assert shown_of(word) == shown
    assert egress_of(word) == candidate.egress


@pytest.mark.parametrize("word", ["none", "", "odd/name.example"])
def test_what_is_no_key_is_shown_as_it_is(word: str) -> None:
    assert shown_of(word) == word
    assert egress_of(word) == "direct"


def test_key_does_not_know_where_a_candidate_stands_in_a_plan() -> None:
    again = DIRECT._replace(preference=20, nexthop_position=1)
    assert again.key == DIRECT.key
    assert len({DIRECT.key, again.key, TUNNEL.key}) == 2


@pytest.mark.parametrize(
    ("other", "shares"),
    [
        pytest.param(Candidate("mx.example", "192.0.2.2", 25), True, id="name"),
        pytest.param(Candidate("other.example", "192.0.2.1", 25), True, id="address"),
        pytest.param(Candidate("other.example", "192.0.2.1", 26), False, id="port"),
        pytest.param(Candidate("other.example", "192.0.2.2", 25), False, id="neither"),
    ],
)
def test_host_is_known_by_its_name_and_by_its_address(
    other: Candidate, shares: bool
) -> None:
    one = Candidate("mx.example", "192.0.2.1", 25)
    assert one.shares_host(other) is shares
    assert other.shares_host(one) is shares
