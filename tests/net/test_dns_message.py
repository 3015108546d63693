"""Messages that no server of the resolver's tests sends."""

from __future__ import annotations

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.net.dns_message import (
    MAX_NEGATIVE_TTL,
    MAX_TTL,
    Answer,
    Question,
    is_for,
    is_truncated,
    read_answer,
)
from mxpolicy.routing.mx import LookupStatus, MxRecord

QUESTION = Question.of("example.com", "MX")


def message(text: str) -> bytes:
    """The wire form of a message in dnspython's text form, flags ``QR RD RA``."""
    head = "id 4660\nopcode QUERY\nrcode NOERROR\nflags QR RD RA\n;QUESTION\n"
    return dns.message.from_text(head + text).to_wire()


def answer(text: str) -> Answer:
    found = read_answer(message("example.com. IN MX\n" + text), QUESTION)
    assert found is not None
    return found


GOOD = message(
    "example.com. IN MX\n;ANSWER\n"
    "example.com. 300 IN CNAME real.example.com.\n"
    "real.example.com. 200 IN MX 10 mx.example.com.\n"
    "real.example.com. 200 IN MX 20 mx2.example.com.\n"
    ";ADDITIONAL\nmx.example.com. 300 IN A 192.0.2.1"
)


def test_records_of_other_names_are_not_believed() -> None:
    found = answer(";ANSWER\nvictim.example. 300 IN MX 10 evil.example.")
    assert found.status is LookupStatus.FAILED
    assert found.records == ()


def test_records_beside_the_chain_are_left_out() -> None:
    found = answer(
        ";ANSWER\n"
        "example.com. 300 IN CNAME real.example.com.\n"
        "real.example.com. 300 IN MX 10 mx.example.com.\n"
        "other.example.com. 300 IN MX 1 evil.example."
    )
    assert found.records == (MxRecord(10, "mx.example.com"),)


@pytest.mark.parametrize(
    ("ttl", "minimum", "kept"),
    [(900, 86400, MAX_NEGATIVE_TTL), (60, 900, 60), (900, 30, 30), (900, 0, 0)],
)
def test_negative_answer_is_kept_as_the_soa_says_and_not_for_long(
    ttl: int, minimum: int, kept: float
) -> None:
    found = answer(
        f";AUTHORITY\nexample.com. {ttl} IN SOA ns. hostmaster. 1 2 3 4 {minimum}"
    )
    assert (found.status, found.ttl) == (LookupStatus.NODATA, kept)


def test_no_answer_is_kept_for_more_than_a_day() -> None:
    found = answer(";ANSWER\nexample.com. 2000000000 IN MX 10 mx.example.com.")
    assert found.ttl == MAX_TTL


def test_shortest_ttl_of_the_chain_counts() -> None:
    found = read_answer(GOOD, QUESTION)
    assert found is not None
    assert found.ttl == 200


def test_cname_chain_has_an_end() -> None:
    links = "".join(f"n{n}. 60 IN CNAME n{n + 1}.\n" for n in range(40))
    found = answer(f";ANSWER\nexample.com. 60 IN CNAME n0.\n{links}")
    assert found.status is LookupStatus.FAILED
    assert found.reason == "CNAME chain too long"


def test_success_without_a_question_is_no_answer() -> None:
    bare = bytearray(GOOD[:12])
    bare[4:12] = bytes(8)
    assert read_answer(bytes(bare), QUESTION) is None


@pytest.mark.parametrize(
    ("wire", "accepted"),
    [
        (b"\x12\x34\x81\x80" + bytes(8), True),
        (b"\x12\x35\x81\x80" + bytes(8), False),
        (b"\x12\x34\x01\x00" + bytes(8), False),
        (b"\x12\x34\x81\x80", False),
        (b"", False),
    ],
    ids=["response", "other_id", "query", "short", "empty"],
)
def test_only_responses_with_our_id_are_looked_at(wire: bytes, accepted: bool) -> None:
    assert is_for(wire, 0x1234) is accepted


def test_truncation_is_seen_without_reading_the_rest() -> None:
    assert is_truncated(b"\x12\x34\x83\x80" + b"\xff" * 8)
    assert not is_truncated(GOOD)


def test_query_asks_for_recursion_and_ad_and_not_for_signatures() -> None:
    _, wire = QUESTION.to_wire(edns=True)
    query = dns.message.from_wire(wire)
    assert query.flags == dns.flags.RD | dns.flags.AD
    assert query.edns == 0
    assert not query.ednsflags & dns.flags.DO


@given(
    st.lists(
        st.tuples(st.integers(2, len(GOOD) - 1), st.integers(0, 255)), max_size=12
    ),
    st.integers(12, len(GOOD)),
)
@settings(max_examples=300)
def test_damaged_answer_never_raises_and_never_says_there_is_none(
    damage: list[tuple[int, int]], length: int
) -> None:
    wire = bytearray(GOOD)
    for place, octet in damage:
        wire[place] = octet
    found = read_answer(bytes(wire[:length]), QUESTION)
    assert found is None or isinstance(found, Answer)
    if found is not None and found.status is LookupStatus.FOUND:
        assert found.records
    if len(wire[:length]) < len(GOOD) and not damage:
        assert found is None or found.status is LookupStatus.FAILED


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_noise_is_no_answer(noise: bytes) -> None:
    found = read_answer(noise, QUESTION)
    assert found is None or found.status is LookupStatus.FAILED
