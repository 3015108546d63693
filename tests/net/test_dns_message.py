"""Messages that no server of the resolver's tests sends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

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
    read_answer,
)
from mxpolicy.net.dns_wire import WireError, name_from_text
from mxpolicy.routing.mx import LookupStatus, MxRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = name_from_text("example.com")
QUESTION = Question.of("example.com", "MX")
A_QUESTION = Question.of("example.com", "A")

FOUND, NODATA = LookupStatus.FOUND, LookupStatus.NODATA
NXDOMAIN, FAILED = LookupStatus.NXDOMAIN, LookupStatus.FAILED

QR, TC, RA = 0x8000, 0x0200, 0x0080
A, NS, CNAME, SOA, MX, TXT, AAAA, OPT = 1, 2, 5, 6, 15, 16, 28, 41
IN, CHAOS = 1, 3


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


# Messages that dnspython does not write: records as bytes


def record(
    rdtype: int,
    rdata: bytes,
    *,
    owner: bytes = NAME,
    rdclass: int = IN,
    size: int | None = None,
    ttl: int = 60,
) -> bytes:
    """One record; *size* instead of its RDATA's real length."""
    size = len(rdata) if size is None else size
    numbers = (rdtype, 2), (rdclass, 2), (ttl, 4), (size, 2)
    return owner + b"".join(n.to_bytes(octets, "big") for n, octets in numbers) + rdata


def mx(
    preference: int, name: str, *, rdclass: int = IN, size: int | None = None
) -> bytes:
    rdata = preference.to_bytes(2, "big") + name_from_text(name)
    return record(MX, rdata, rdclass=rdclass, size=size)


def wire(
    question: Question,
    answers: Sequence[bytes] = (),
    authorities: Sequence[bytes] = (),
    additionals: Sequence[bytes] = (),
    *,
    flags: int = QR | RA,
    counts: Sequence[int] | None = None,
    tail: bytes = b"",
) -> bytes:
    """A message; *counts* instead of the real ones, *tail* behind everything."""
    asked = question.name + question.rdtype.to_bytes(2, "big") + b"\0\1"
    counts = counts or (1, len(answers), len(authorities), len(additionals))
    header = (0x1234, flags, *counts)
    octets = b"".join(number.to_bytes(2, "big") for number in header)
    return octets + asked + b"".join([*answers, *authorities, *additionals]) + tail


A_GOOD = record(A, bytes([192, 0, 2, 1]))
MX_GOOD = mx(10, "mx.example.com")
SOA_GOOD = record(SOA, b"\1a\0\1b\0" + bytes(16) + b"\0\0\0\x3c")

# Where the MX of a message with this question would have its first exchange.
BEYOND = b"\xff\xff"

BROKEN = [
    pytest.param(A, record(A, bytes(3)), id="a_of_3_bytes"),
    pytest.param(A, record(A, bytes(5)), id="a_of_5_bytes"),
    pytest.param(A, record(A, b""), id="a_of_nothing"),
    pytest.param(A, record(A, bytes(16)), id="a_that_is_aaaa"),
    pytest.param(MX, record(MX, b""), id="mx_of_nothing"),
    pytest.param(MX, record(MX, b"\0"), id="mx_of_1_byte"),
    pytest.param(MX, record(MX, b"\0\5"), id="mx_without_name"),
    pytest.param(MX, record(MX, b"\0\5\2mx"), id="mx_name_without_end"),
    pytest.param(MX, record(MX, b"\0\5\x09mx\0"), id="mx_label_beyond_rdata"),
    pytest.param(MX, record(MX, b"\0\5\x42mx\0"), id="mx_unknown_label"),
    pytest.param(MX, record(MX, b"\0\5\xc0"), id="mx_half_a_pointer"),
    pytest.param(MX, record(MX, b"\0\5" + BEYOND), id="mx_pointer_to_nowhere"),
    pytest.param(MX, record(MX, b"\0\5" + b"\x3f" + b"x" * 63), id="mx_cut"),
    pytest.param(
        MX, record(MX, b"\0\5" + (b"\x3f" + b"x" * 63) * 4 + b"\0"), id="mx_too_long"
    ),
]


@pytest.mark.parametrize(("rdtype", "broken"), BROKEN)
@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_broken_record_spoils_no_other(rdtype: int, broken: bytes, place: str) -> None:
    question, good = (QUESTION, MX_GOOD) if rdtype == MX else (A_QUESTION, A_GOOD)
    answers = {
        "before": [broken, good],
        "after": [good, broken],
        "between": [good, broken, good],
    }[place]
    found = read_answer(wire(question, answers), question)
    assert found is not None
    assert found.status is FOUND
    good_one = MxRecord(10, "mx.example.com") if rdtype == MX else "192.0.2.1"
    assert found.records == (good_one,)
    assert not found.ask_again


@pytest.mark.parametrize(("rdtype", "broken"), BROKEN)
@pytest.mark.parametrize("rcode", [0, 3], ids=["noerror", "nxdomain"])
def test_answer_without_a_good_record_never_says_that_there_is_none(
    rdtype: int, broken: bytes, rcode: int
) -> None:
    question = QUESTION if rdtype == MX else A_QUESTION
    found = read_answer(
        wire(question, [broken], [SOA_GOOD], flags=QR | RA | rcode), question
    )
    assert found is not None
    assert found.status is FAILED
    assert found.reason == "malformed answer"
    assert found.ask_again


def test_mx_that_points_to_itself_spoils_no_other() -> None:
    start = len(wire(QUESTION, [record(MX, b"\0\5")]))
    loop = record(MX, b"\0\5" + (0xC000 | start).to_bytes(2, "big"))
    found = read_answer(wire(QUESTION, [loop, MX_GOOD]), QUESTION)
    assert found is not None
    assert found.records == (MxRecord(10, "mx.example.com"),)


OTHERS = [
    pytest.param([record(A, b"\1\2")], id="broken_a"),
    pytest.param([record(OPT, b"", owner=NAME)], id="opt_not_at_the_root"),
    pytest.param([record(OPT, b"", owner=b"\0")] * 2, id="opt_twice"),
    pytest.param([record(OPT, b"\0\1", owner=b"\0")], id="opt_broken"),
    pytest.param([record(250, b"\xff" * 9)], id="tsig"),
    pytest.param([b"\xff" * 40], id="noise"),
    pytest.param([b"\x3f"], id="cut"),
]


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("section", ["authority", "additional", "tail"])
def test_what_stands_elsewhere_spoils_no_answer(
    others: list[bytes], section: str
) -> None:
    placed = {
        "authority": wire(QUESTION, [MX_GOOD], others),
        "additional": wire(QUESTION, [MX_GOOD], [], others),
        "tail": wire(QUESTION, [MX_GOOD], tail=b"".join(others)),
    }[section]
    found = read_answer(placed, QUESTION)
    assert found is not None
    assert found.records == (MxRecord(10, "mx.example.com"),)
    assert not found.ask_again


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize(("rcode", "status"), [(0, NODATA), (3, NXDOMAIN)])
def test_what_stands_elsewhere_spoils_no_negative_answer(
    others: list[bytes], rcode: int, status: LookupStatus
) -> None:
    flags = QR | RA | rcode
    found = read_answer(wire(QUESTION, [], [SOA_GOOD], others, flags=flags), QUESTION)
    assert found is not None
    assert (found.status, found.ttl) == (status, 60)
    found = read_answer(wire(QUESTION, [], others, flags=flags), QUESTION)
    assert found is not None
    assert (found.status, found.ttl) == (status, 0)


def test_rcode_is_the_headers_whatever_opt_says() -> None:
    badvers = record(OPT, b"", owner=b"\0", ttl=1 << 24)
    found = read_answer(wire(QUESTION, [MX_GOOD], [], [badvers]), QUESTION)
    assert found is not None
    assert found.status is FOUND


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param((1, 1, 0, 0), (10,), id="fewer_than_there_are"),
        pytest.param((1, 2, 9, 9), (10, 20), id="more_elsewhere"),
        pytest.param((1, 3, 0, 0), (10, 20), id="one_more"),
        pytest.param((1, 65535, 0, 0), (10, 20), id="many_more"),
    ],
)
def test_records_that_are_there_are_used_when_counts_lie(
    counts: Sequence[int], expected: Sequence[int]
) -> None:
    records = [MX_GOOD, mx(20, "mx2.example.com")]
    found = read_answer(wire(QUESTION, records, counts=counts), QUESTION)
    assert found is not None
    assert [one.preference for one in found.records if isinstance(one, MxRecord)] == [
        *expected
    ]
    # Records may have been lost on the way: worth a question over TCP.
    assert found.ask_again == (counts[1] > 2)


def test_record_that_claims_the_rest_of_the_message_is_no_good_one() -> None:
    long = mx(5, "other.example.com", size=300)
    found = read_answer(wire(QUESTION, [MX_GOOD, long]), QUESTION)
    assert found is not None
    assert found.records == (MxRecord(10, "mx.example.com"),)
    assert found.ask_again
    found = read_answer(wire(QUESTION, [long]), QUESTION)
    assert found is not None
    assert (found.status, found.ask_again) == (FAILED, True)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(mx(1, "evil.example", rdclass=CHAOS), id="class"),
        pytest.param(record(TXT, b"\1x"), id="type"),
        pytest.param(record(A, bytes(4)), id="address"),
        pytest.param(
            record(MX, b"\0\1\0", owner=name_from_text("www.example.com")), id="owner"
        ),
    ],
)
def test_answer_about_something_else_is_no_answer(other: bytes) -> None:
    for authorities in ([], [SOA_GOOD]):
        found = read_answer(wire(QUESTION, [other], authorities), QUESTION)
        assert found is not None
        assert (found.status, found.reason) == (FAILED, "lame answer")
    found = read_answer(wire(QUESTION, [other, MX_GOOD]), QUESTION)
    assert found is not None
    assert found.records == (MxRecord(10, "mx.example.com"),)


def test_chain_with_a_broken_link_fails_and_one_beside_it_does_not_matter() -> None:
    target = name_from_text("real.example.com")
    link = record(CNAME, target)
    broken = record(CNAME, b"\x42")
    there = record(MX, b"\0\x0a" + NAME, owner=target)
    found = read_answer(wire(QUESTION, [broken, there], [SOA_GOOD]), QUESTION)
    assert found is not None
    assert (found.status, found.reason) == (FAILED, "malformed answer")
    found = read_answer(wire(QUESTION, [broken, link, there]), QUESTION)
    assert found is not None
    assert found.records == (MxRecord(10, "example.com"),)


def test_broken_record_at_an_alias_does_not_hide_where_it_leads() -> None:
    target = name_from_text("real.example.com")
    there = record(MX, b"\0\x0a" + NAME, owner=target)
    broken = record(MX, b"\0")
    found = read_answer(
        wire(QUESTION, [broken, record(CNAME, target), there]), QUESTION
    )
    assert found is not None
    assert found.records == (MxRecord(10, "example.com"),)


def test_case_of_names_does_not_matter() -> None:
    upper = Question(name_from_text("example.com").swapcase(), QUESTION.rdtype)
    there = record(MX, b"\0\x0a" + b"\2mX\3NET\0", owner=b"\7exAMPle\3cOm\0")
    found = read_answer(wire(upper, [there]), QUESTION)
    assert found is not None
    assert found.records == (MxRecord(10, "mx.net"),)


def test_odd_octets_in_a_name_are_escaped() -> None:
    there = record(MX, b"\0\x0a" + b"\5a.b\\c\4\0 \xff@\0")
    found = read_answer(wire(QUESTION, [there]), QUESTION)
    assert found is not None
    assert found.records == (MxRecord(10, r"a\.b\\c.\000\032\255\@"),)


def test_ttl_with_the_highest_bit_is_zero() -> None:
    there = record(A, bytes(4), ttl=0x80000001)
    found = read_answer(wire(A_QUESTION, [there, A_GOOD]), A_QUESTION)
    assert found is not None
    assert found.ttl == 0


@pytest.mark.parametrize("bare", [True, False], ids=["header_only", "broken_question"])
@pytest.mark.parametrize(
    ("flags", "reason", "ask_again"),
    [
        (QR | 1, "FORMERR", False),
        (QR | 2, "SERVFAIL", False),
        (QR | 5, "REFUSED", False),
        (QR | 11, "RCODE 11", False),
        (QR | TC, "truncated answer", True),
    ],
)
def test_header_alone_tells_why(
    bare: bool, flags: int, reason: str, ask_again: bool
) -> None:
    counts = (0, 0, 0, 0) if bare else (2, 0, 0, 0)
    cut = wire(QUESTION, flags=flags, counts=counts)[: 12 if bare else 14]
    found = read_answer(cut, QUESTION)
    assert found is not None
    assert (found.status, found.reason) == (FAILED, reason)
    assert found.ask_again is ask_again


def bomb(hops: int) -> bytes:
    """64 KiB of MX records, all of whose names go through the same *hops* pointers."""
    at = 12 + len(NAME) + 4 + len(NAME) + 10
    chain = b"\0" + b"".join(
        (0xC000 | at + max(0, 2 * hop - 1)).to_bytes(2, "big") for hop in range(hops)
    )
    last = (0xC000 | at + len(chain) - 2).to_bytes(2, "big")
    one = record(MX, b"\0\1" + last, owner=b"\xc0\x0c")
    count = (65535 - at - len(chain)) // len(one)
    return wire(QUESTION, [record(TXT, chain), *[one] * count, MX_GOOD])


def test_compression_bomb_takes_bounded_time() -> None:
    assert read_answer(bomb(2), QUESTION) == Answer(
        FOUND, (MxRecord(1, "."), MxRecord(10, "mx.example.com")), ttl=60
    )
    began = time.process_time()
    found = read_answer(bomb(7000), QUESTION)
    assert time.process_time() - began < 1.0
    assert found is not None
    assert set(found.records) <= {MxRecord(1, "."), MxRecord(10, "mx.example.com")}


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


@pytest.mark.parametrize("edns", [False, True])
def test_query_asks_for_recursion_and_ad_and_not_for_signatures(edns: bool) -> None:
    query = dns.message.from_wire(QUESTION.to_wire(0x1234, edns=edns))
    assert query.id == 0x1234
    assert query.flags == dns.flags.RD | dns.flags.AD
    assert str(query.question[0]) == "example.com. IN MX"
    assert (query.edns, query.payload) == ((0, 1232) if edns else (-1, 0))
    assert not query.ednsflags & dns.flags.DO


@pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64, "x." * 200, "straße.de"])
def test_what_is_no_domain_name_cannot_be_asked(name: str) -> None:
    with pytest.raises(WireError):
        Question.of(name, "MX")


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
    if damage or found is None or length == len(GOOD):
        return
    # Cut, it is as good as its records, and it is known that some are missing.
    assert found.status is FAILED or found.ask_again or length > len(GOOD) - 30


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_noise_is_no_answer(noise: bytes) -> None:
    found = read_answer(noise, QUESTION)
    assert found is None or found.status is LookupStatus.FAILED
